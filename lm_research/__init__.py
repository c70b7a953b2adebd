"""lm_research: pre-train and study encoder and decoder language models in JAX."""

from __future__ import annotations

import sys

# `python -m lm_research.train ...` runs these lines first. Until `interrupts` is imported, signals are handled with built-in modules only.
_COMMAND = next((name for flag, name in zip(sys.orig_argv, sys.orig_argv[1:]) if flag == "-m"), "")  # noqa: B905
if _COMMAND.partition(".")[0] in ("lm_research", "experiments") and "." in _COMMAND:
    import _signal  # type: ignore[import-not-found]  # built in, without a stub
    import posix

    def _leave(number: int, frame: object) -> None:
        posix.write(1, b"stopped by a signal before it finished; run the same command again to continue.\n")
        posix._exit(75)

    for _number in (_signal.SIGTERM, _signal.SIGINT):
        _signal.signal(_number, _leave)

    import os

    if "JAX_NUM_PROCESSES" in os.environ or any(word.startswith("--num_processes") for word in sys.orig_argv):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # parallel/peers.py reports lost processes instead

    from lm_research.common import interrupts

    interrupts.watch()

__version__ = "0.1.0"
__all__ = ["LanguageModel", "families", "from_pretrained", "pipeline"]


def __getattr__(name: str) -> object:
    """Load the Python API (pretrained.py, pipelines/) on first access, so that importing the package stays cheap."""
    import importlib

    if name in __all__:
        module = {"pipeline": "pipelines", "families": "models.families"}.get(name, "pretrained")
        return getattr(importlib.import_module(f"lm_research.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
