"""What a person sees while a run trains: a bar on a terminal, plain lines elsewhere, all of it in a file."""

from __future__ import annotations

import datetime
import pathlib
import sys
from typing import Any

import jax
import tqdm

from lm_research.common.disk import naming


class Log:
    """Prints lines (above the bar, if there is one) and keeps them in a file with the time."""

    def __init__(self, workdir: pathlib.Path, main_process: bool = True, name: str = "log.txt") -> None:
        """`name`: of the file in the run's folder; processes have one each, and only the main process prints."""
        path = workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", buffering=1)
        self._main = main_process

    def __call__(self, text: str = "") -> None:
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        with naming(self._file.name):
            for line in text.splitlines() or [""]:
                self._file.write(f"{now} {line}\n")
        if self._main:
            tqdm.tqdm.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        self._file.close()


def every(steps: int, step: int) -> bool:
    """Whether something that is due every so many steps is due after this one; 0 is never."""
    return bool(steps) and step > 0 and step % steps == 0


class Progress:
    """The bar, or nothing where standard output is not a terminal (lines of metrics show progress there)."""

    def __init__(self, start: int, stop: int, log: Log, main_process: bool = True) -> None:
        self._log = log
        self._stop = stop
        self._live = main_process and sys.stdout.isatty()
        self._bar = tqdm.tqdm(
            initial=start, total=stop, unit="step", dynamic_ncols=True, disable=not self._live, file=sys.stdout
        )

    def reach(self, step: int) -> None:
        """Shows that the device has finished this step."""
        self._bar.update(step - self._bar.n)

    def retarget(self, stop: int) -> None:
        """Another end of the run."""
        self._stop = self._bar.total = stop

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Shows a line of metrics: in the bar on a terminal, as a line elsewhere."""
        shown = [f"loss {values['loss_nats']:.4f}", f"lr {values['learning_rate']:.2e}"]
        shown += [f"grad {values['grad_norm']:.2f}", f"{values['tokens_per_second']:,.0f} tok/s"]
        if "mfu" in values:
            shown.append(f"mfu {100 * values['mfu']:.1f}%")
        if self._live:
            self._bar.set_postfix_str("  ".join(shown), refresh=False)
        else:
            left = datetime.timedelta(seconds=round(values["step_seconds"] * (self._stop - step)))
            self._log("  ".join([f"step {step:>6}/{self._stop}", *shown, f"eta {left}"]))

    def close(self, step: int) -> None:
        """Ends it after this step."""
        self.reach(step)
        self._bar.close()


class Trace:
    """Traces a range of steps with jax.profiler into WORKDIR/profile (open it with TensorBoard or Perfetto)."""

    def __init__(self, steps: tuple[int, int] | None, workdir: pathlib.Path) -> None:
        self._first, self._last = steps or (0, -1)
        self._path = str(workdir / "profile")
        self._running = False

    def before(self, step: int) -> None:
        if self._first <= step <= self._last and not self._running:  # a run may resume inside the range
            jax.profiler.start_trace(self._path)
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """Ends the trace once `result`, what the last traced step returned, is computed."""
        if self._running and step >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes what was traced, if the run ends inside the range."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
