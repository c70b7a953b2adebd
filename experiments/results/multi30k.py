"""Suite of Multi30k's test parts, for models of configs/transformer_multi30k.py; MULTI30K_PAIR selects the direction (en-de)."""

from __future__ import annotations

import os

from experiments.results.translation import MULTI30K

TASKS = MULTI30K.suite(os.environ.get("MULTI30K_PAIR", "en-de"))
