"""MLflow."""

from __future__ import annotations

import logging
import os
import time

from typing_extensions import override

from lm_research.config import by_key
from lm_research.run.trackers.base import TRACKERS, TrackedRun, Tracker, TrackerIds


@TRACKERS.register("mlflow")
class MLflow(Tracker):
    """One run at MLFLOW_TRACKING_URI, or in WORKDIR/mlflow.db, in the experiment MLFLOW_EXPERIMENT_NAME."""

    package = "mlflow"

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # offline means offline
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for name in ("alembic", "mlflow", "mlflow.store.db.utils"):  # they log a line per created table
            logging.getLogger(name).setLevel(logging.WARNING)
        address, folder = os.environ.get("MLFLOW_TRACKING_URI"), run.workdir.absolute()
        self._client, self._metric, ids = (
            MlflowClient(address or f"sqlite:///{folder / 'mlflow.db'}"),
            Metric,
            TrackerIds(run.workdir),
        )
        self._id = ids.get("mlflow")
        if self._id and self._exists(self._id):
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lm_research"
        found = self._client.get_experiment_by_name(experiment)
        place = None if address else (folder / "mlflow").as_uri()
        number = found.experiment_id if found else self._client.create_experiment(experiment, artifact_location=place)
        self._id = ids.put("mlflow", self._client.create_run(number, run_name=folder.name).info.run_id)
        params = [Param(name, str(value)[:500]) for name, value in by_key(run.config).items()]
        for first in range(0, len(params), 100):  # the most that one call accepts
            self._client.log_batch(self._id, params=params[first : first + 100])

    def _exists(self, run_id: str) -> bool:
        """Check whether the server has the run, since the address may have changed."""
        try:
            self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    @override
    def write(self, step: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(
            self._id, metrics=[self._metric(name, value, now, step) for name, value in values.items()]
        )

    @override
    def write_text(self, step: int, name: str, text: str) -> None:
        self._client.log_text(self._id, text, f"{name}/step_{step:08d}.txt")

    @override
    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
