"""Sessions with clients in environments of their own: python -m tests.serve.clients PYTHON... [--aiperf PATH]

Each PYTHON has OpenAI's client of some version; where `llm` is installed beside it, that is used too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from tests.serve import generator, sessions
from tests.serve.program import running

MODELS = """
- model_id: paceline
  model_name: table
  api_base: {url}/v1
  api_key_name: paceline
"""


def use_llm(program: Path, url: str) -> None:
    """Ask with and without a stream, go on with the conversation, and read the log."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "extra-openai-models.yaml").write_text(MODELS.format(url=url))
        environment = {**os.environ, "LLM_USER_PATH": folder}

        def llm(*arguments: str) -> str:
            command = [program, *arguments]
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        options = ("-m", "paceline", "--key", "none", "-o", "seed", "3", "-o", "max_tokens", "30")
        streamed = llm("Hello", *options)
        assert streamed.strip()
        assert llm("Hello", *options, "--no-stream") == streamed
        assert llm("And then?", "-c", *options).strip()
        assert "Hello" in llm("logs", "-n", "3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pythons", nargs="*", type=Path, metavar="PYTHON")
    parser.add_argument("--aiperf", type=Path, help="the load generator's program")
    options = parser.parse_args()
    with running() as program:
        for python in options.pythons:
            subprocess.run([python, sessions.__file__, program.url], check=True)
            if (llm := python.with_name("llm")).exists():
                use_llm(llm, program.url)
                print("llm: the session went as it should")
        if options.aiperf:
            generator.use(options.aiperf, program.url)
            print("AIPerf: the session went as it should")


if __name__ == "__main__":
    main()
