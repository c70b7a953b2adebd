"""`python -m slow_train`: training whose batches take a tenth of a second, so that tests can interrupt it.

With FEED_LOG=FOLDER in the environment every process logs there which rows it fed to which step.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time

import numpy as np

from lm_research import cli, train
from lm_research.data.sampler import BatchBuilder

_make = BatchBuilder.__call__
_folder = os.environ.get("FEED_LOG", "")


def _slowly(self: BatchBuilder, number: int) -> dict[str, np.ndarray]:
    batch = _make(self, number)
    if self.seed is None:
        return batch
    time.sleep(0.1)
    if _folder:
        rows = [x.reshape(-1, *x.shape[2:]) for _, x in sorted(batch.items())]  # there is one micro-batch: A is 1
        digests = [
            hashlib.sha256(b"".join(x[row].tobytes() for x in rows)).hexdigest()[:16] for row in range(len(rows[0]))
        ]
        with (pathlib.Path(_folder) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps({"step": number, "first": self.rows.start or 0, "rows": digests}) + "\n")
    return batch


if __name__ == "__main__":
    BatchBuilder.__call__ = _slowly
    cli.run(train.main, command="train", summary="")
