"""How long does a save hold the training loop, and how much memory does a restore take?

    python -m experiments.benchmarks.checkpoint.run --folder /tmp/checkpoint_benchmark [--saves 5]

Saves a state of 96 million parameters (GPT-2's shapes with 8 layers; float32, AdamW) several times through `run/checkpoint.py`, then restores
it in a new process, which has restored a small one before. Prints one line per save and one for the restore.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp

from lm_research.config import CheckpointConfig
from lm_research.run.checkpoint import Checkpoints

SHAPES = {
    "tokens": (50_304, 768),
    "positions": (1_024, 768),
    **{name: (8, 768, 768) for name in ("query", "key", "value", "output")},
    "up": (8, 768, 3_072),
    "down": (8, 3_072, 768),
}


def make_state(divisor: int = 1) -> Any:
    """Make a state, with every array's last axis divided."""

    def draw(seed: int) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.key(seed), len(SHAPES))
        named = zip(SHAPES.items(), keys, strict=True)
        return {name: jax.random.normal(key, (*shape[:-1], shape[-1] // divisor)) for (name, shape), key in named}

    optimizer = {"count": jnp.int32(1), "mu": draw(1), "nu": draw(2)}
    return {"step": jnp.int32(1), "params": draw(0), "optimizer": optimizer, "halted": jnp.int32(-1)}


def open_(folder: pathlib.Path) -> Checkpoints:
    """Open the checkpoints of a folder, of which it keeps one."""
    return Checkpoints(folder, CheckpointConfig(keep=1, keep_best=0), {})


def save(folder: pathlib.Path, saves: int) -> None:
    """Save a state, a small one first, and print how long `save` took, and the commit."""
    store = open_(folder / "small")
    store.save(make_state(768))
    store.close()
    store, state = open_(folder), jax.block_until_ready(jax.jit(make_state)())
    size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e9
    begin = time.perf_counter()
    store.prepare(state)  # as a run does when it starts, while the step is compiled
    print(f"prepared in {time.perf_counter() - begin:.3f} s", flush=True)
    time.sleep(3)  # as compiling a step takes
    for number in range(1, saves + 1):
        state["step"] = jnp.int32(number)
        begin = time.perf_counter()
        store.save(state)
        held = time.perf_counter() - begin
        store.wait()
        total = time.perf_counter() - begin
        print(f"save {number} of {size:.2f} GB: held {held:.3f} s of {total:.2f} s, {held / total:.1%}", flush=True)
    store.close()


def memory() -> int:
    """Return the bytes of memory of this process."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def restore(folder: pathlib.Path) -> None:
    """Restore the state, and print the peak of memory beyond what a small restore left."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for place, divisor in ((folder / "small", 768), (folder, 1)):
        shapes = jax.eval_shape(lambda divisor=divisor: make_state(divisor))
        store, peak, done = open_(place), [memory()], threading.Event()
        before, begin = memory(), time.perf_counter()

        def watch(peak: list[int] = peak, done: threading.Event = done) -> None:
            while not done.wait(0.002):
                peak[0] = max(peak[0], memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        state = store.restore(shapes, jax.tree.map(lambda _: here, shapes))
        seconds = time.perf_counter() - begin
        done.set()
        watcher.join()
        sizes = [x.nbytes / 1e9 for x in jax.tree.leaves(state)]
        store.close()
    print(
        f"restore: {seconds:.2f} s; state {sum(sizes):.2f} GB, largest array {max(sizes):.2f} GB, peak {(peak[0] - before) / 1e9:.2f} GB"
    )


def main() -> int:
    """Run one side, or both in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="a folder for 2 GB of checkpoints")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--side", choices=["both", "save", "restore"], default="both")
    flags = parser.parse_args()
    if flags.side == "save":
        save(flags.folder, flags.saves)
    elif flags.side == "restore":
        restore(flags.folder)
    else:
        for side in ("save", "restore"):
            subprocess.run([sys.executable, "-m", __spec__.name, *sys.argv[1:], "--side", side], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
