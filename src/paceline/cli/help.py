"""Text that all commands' helps share."""

from __future__ import annotations

EXIT_CODES = """
\b
Exit codes:
  0    done
  1    a check failed (doctor, audit), or outputs differ (demo, bench, tune)
  2    bad input: an option, a prompt or a model file; or an audit that could not run
  130  stopped by Ctrl-C
  141  whoever read the output went away
"""


def examples(*lines: str) -> str:
    """An Examples section; click leaves a paragraph that starts with \\b as it is."""
    return "\b\nExamples:\n" + "".join(f"  {line}\n" for line in lines) + "\n"
