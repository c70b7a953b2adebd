"""What people get wrong, said in one paragraph: what, where, and the fix.

A `UserError` ends a verb with exit code 2 and no traceback (`--debug` shows it). Mistakes of programmers
are asserts; they keep their traceback and end with exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Exit codes of every verb.
DONE = 0
BUG = 1
USER_MISTAKE = 2
NON_FINITE_LOSS = 3
STOPPED_BY_SIGNAL = 75  # EX_TEMPFAIL: the work is saved; the same command goes on from there


class UserError(Exception):
    """A mistake that the person at the keyboard can mend. `str(error)` is the paragraph they read."""


class ConfigError(UserError):
    """A configuration file, key or value that cannot be used."""


class DataError(UserError):
    """A corpus, data set or token store that cannot be read."""


class TokenizerError(UserError):
    """A tokenizer that cannot be trained, loaded or used with this model."""


class MeshError(UserError):
    """Devices that cannot be arranged, or arrays that cannot be divided, as asked."""


class CheckpointError(UserError):
    """A checkpoint or run directory that is missing, damaged or belongs to another run."""


class PretrainedError(UserError):
    """A directory of pretrained weights that is missing, damaged, unsafe to read or made for another model."""


class NonFiniteLoss(Exception):
    """The loss or its gradient became NaN or infinite; the state before that update is kept."""


def suggest(name: str, valid: Iterable[str]) -> str:
    """A closing clause that names the nearest valid name, or the valid ones when none is near."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Valid: {', '.join(valid)}."
