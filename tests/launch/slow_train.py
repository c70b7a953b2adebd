"""`python -m slow_train`: training whose batches take a tenth of a second, so that it can be caught in the act."""

from __future__ import annotations

import time

import numpy as np

from lm_research import cli, train
from lm_research.data.order import Feed

_make = Feed.__call__


def _slowly(self: Feed, number: int) -> dict[str, np.ndarray]:
    time.sleep(0.1 * (self.seed is not None))
    return _make(self, number)


if __name__ == "__main__":
    Feed.__call__ = _slowly
    cli.run(train.main, verb="train", summary="")
