"""lm_research: pre-train and study encoder and decoder language models in JAX."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["LanguageModel", "from_pretrained", "pipeline"]


def __getattr__(name: str) -> Any:
    """Loads the Python face (pretrained.py, pipelines/) when it is first asked for: importing the package stays light."""
    if name == "pipeline":
        return importlib.import_module("lm_research.pipelines").pipeline
    if name in __all__:
        return getattr(importlib.import_module("lm_research.pretrained"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
