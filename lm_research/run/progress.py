"""Progress of a run on the screen: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Mapping
from typing import Any

import tqdm
from typing_extensions import override

from lm_research.run.callbacks import Callback


class Progress(Callback):
    """A progress bar, or lines of metrics if standard output is not a terminal."""

    def __init__(self, start: int, stop: int, log: Callable[[str], None], main_process: bool = True) -> None:
        self._log = log
        self._stop = stop
        self._live = main_process and sys.stdout.isatty()
        self._bar = tqdm.tqdm(
            initial=start, total=stop, unit="step", dynamic_ncols=True, disable=not self._live, file=sys.stdout
        )

    def reach(self, step: int) -> None:
        """Move the bar to this step, which the device has finished."""
        self._bar.update(step - self._bar.n)

    def retarget(self, stop: int) -> None:
        """Change the last step of the run."""
        self._stop = self._bar.total = stop

    def on_log(self, step: int, values: Mapping[str, Any]) -> None:
        """Show metrics: in the bar on a terminal, as a line elsewhere."""
        shown = [f"loss {values['loss_nats']:.4f}", f"lr {values['learning_rate']:.2e}"]
        shown += [f"grad {values['grad_norm']:.2f}", f"{values['tokens_per_second']:,.0f} tok/s"]
        if "mfu" in values:
            shown.append(f"mfu {100 * values['mfu']:.1f}%")
        if self._live:
            self._bar.set_postfix_str("  ".join(shown), refresh=False)
        else:
            left = datetime.timedelta(seconds=round(values["step_seconds"] * (self._stop - step)))
            self._log("  ".join([f"step {step:>6}/{self._stop}", *shown, f"eta {left}"]))

    @override
    def on_train_end(self, step: int) -> None:
        self.reach(step)
        self._bar.close()
