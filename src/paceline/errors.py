"""Every exception that Paceline raises for a user's mistake or a broken file.

    PacelineError                 one clear line; the command line prints it and exits with `exit_code`
    ├── ConfigError               an option, parameter or prompt outside what is allowed
    │   └── IncompatibleDrafter   a drafter that this target cannot serve
    ├── ModelFileError            a model file that is missing, damaged or not supported
    ├── TokenFileError            a datastore or file of answers: missing, damaged, of another tokenizer
    ├── TrainingError             training data or a checkpoint: missing, damaged, of something else
    ├── CapacityError             more tokens than the cache holds
    └── QueueFull                 as many requests wait as may

Programmers' mistakes stay `ValueError` or `TypeError`; `assert` guards our own invariants only.
"""

from __future__ import annotations


class PacelineError(Exception):
    """Base of all errors a user can cause and cure. The message is one line: what, value, allowed."""

    exit_code = 2


class ConfigError(PacelineError):
    """An option, parameter or prompt outside what is allowed."""


class IncompatibleDrafter(ConfigError):
    """The drafter needs something that the target does not offer."""


class ModelFileError(PacelineError):
    """A model file that is missing, damaged, or holds something Paceline does not support."""


class TokenFileError(PacelineError):
    """A datastore or a file of earlier answers that is missing, damaged, or of another tokenizer."""


class TrainingError(PacelineError):
    """Training data or a checkpoint that is missing, damaged, or belongs to something else."""


class CapacityError(PacelineError):
    """A request that can never fit in the key/value cache."""


class QueueFull(PacelineError):
    """As many requests wait as the engine allows; try again later."""
