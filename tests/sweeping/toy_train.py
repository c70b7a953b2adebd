"""`python -m toy_train --config=... --config.KEY=VALUE --workdir=DIR`: the interface of a training run, at thirty milliseconds a step.

Its loss after s steps is (log10(learning_rate) + 3)^2 + 1 / s + layers / 100. It stores every step and resumes from there; with the
real command it shares the files and exit codes that a study reads. layers=13 is an error, 14 crashes once, 15 always.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import pathlib
import signal
import sys
import time


def main(argv: list[str]) -> int:
    keys = dict(argument.removeprefix("--").split("=", 1) for argument in argv)
    rate, layers = float(keys["config.optimizer.learning_rate"]), int(keys["config.model.num_layers"])
    workdir, steps = pathlib.Path(keys["workdir"]), int(keys["config.train.num_steps"])
    stop = int(keys.get("config.train.stop_after", 0)) or steps
    if layers == 13:
        print("error: thirteen layers bring bad luck. Take twelve.", file=sys.stderr)
        return 2
    workdir.mkdir(parents=True, exist_ok=True)
    handle = open(workdir / ".lock", "w")
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two at once would end with a traceback
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    path = workdir / "metrics.jsonl"
    done = len(path.read_text().splitlines()) if path.exists() else 0
    with (workdir / "starts.txt").open("a") as file:
        file.write(f"{done}\n")
    if layers == 15 or (layers == 14 and done == 0 and len((workdir / "starts.txt").read_text().split()) == 1):
        os.kill(os.getpid(), signal.SIGKILL)

    def loss(step):
        return (math.log10(rate) + 3) ** 2 + 1 / step + layers / 100

    for step in range(done + 1, stop + 1):
        time.sleep(0.03)
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "eval_loss_nats": loss(step)}) + "\n")
        if stopping:
            return 75
    line = json.loads(path.read_text().splitlines()[-1])
    (workdir / "summary.json").write_text(json.dumps({"train": {}, "eval": line}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
