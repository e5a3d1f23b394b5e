"""The OpenAPI file against schemathesis: python -m tests.serve.fuzz SCHEMATHESIS [--cases 6000]

No request may make the server fail, and none may change what it answers afterwards.
"""

from __future__ import annotations

import argparse
import subprocess

from tests.serve.program import chat, running

OPERATIONS = 9
CASES = 6000
"""Asked for, of which some 5,500 are made: operations without parameters have few."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", help="schemathesis' own")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # A short context: without max_tokens an answer is as long as that.
    with (
        running("--context", "64", "--max-batch", "32", "--log-level", "error") as program,
        program.client() as client,
    ):
        before = client.post("/v1/chat/completions", json=chat()).json()["choices"]
        done = subprocess.run(
            [
                *(options.program, "run", f"{program.url}/openapi.json"),
                *("--checks", "not_a_server_error,status_code_conformance,content_type_conformance"),
                *("--phases", "coverage,fuzzing", "--max-examples", str(options.cases // OPERATIONS)),
                *("--seed", str(options.seed), "--continue-on-failure", "--request-timeout", "60"),
            ],
            check=False,
        )
        assert client.get("/health").status_code == 200
        assert client.post("/v1/chat/completions", json=chat()).json()["choices"] == before
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
