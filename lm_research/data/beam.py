"""Prepare a corpus with Apache Beam, on the machines of a runner.

The tasks are the same as those of worker processes (workers.py). Each reads and writes files, so a pipeline only distributes them, and
the machines need a shared file system (NFS, Filestore, a mounted bucket). Each file of a source is one task of the first
step, so a corpus for many machines should be a folder of many files. The machine that starts the pipelines removes repeated
documents, which takes 16 bytes of memory per document, and 512 more for near duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lm_research.errors import ConfigError, DataError, UserError, suggest

_RUNNERS = ("DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner", "PortableRunner", "PrismRunner")


class Beam:
    """A Beam runner, as a Runner of corpus.py."""

    by_file = True

    def __init__(self, runner: str, options: list[str]) -> None:
        """Choose a runner and its options.

        Args:
          runner: one of Beam's runners.
          options: the runner's own flags.

        Raises:
          ConfigError: Beam is not installed, or has no such runner or option.
        """
        try:
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise ConfigError(
                "--runner needs Apache Beam. Install it with `pip install -e '.[beam]'`, or use --workers."
            ) from error
        if runner not in _RUNNERS:
            raise ConfigError(f"--runner={runner} is not a Beam runner. {suggest(runner, _RUNNERS)}")
        try:
            self._options = PipelineOptions([f"--runner={runner}", *options])
            known = self._options.get_all_options(retain_unknown_options=False)
        except SystemExit as error:  # argparse
            raise ConfigError(
                f"--runner_options={' '.join(options)}: {runner} does not accept these options."
            ) from error
        assert known["runner"] == runner
        self._runner = runner

    def run(self, function: Callable[[Any], Any], items: Iterable[Any], advance: Callable[[Any], Any]) -> None:
        """Run one pipeline; `advance` is called after its end, with 0 for each item.

        Raises:
          DataError: the pipeline failed, or a task rejected its input.
        """
        import apache_beam as beam

        items = list(items)
        if not items:
            return
        try:
            with beam.Pipeline(options=self._options) as pipeline:
                _ = pipeline | beam.Create(items) | beam.Reshuffle() | beam.Map(function)
        except UserError as error:
            raise DataError(str(error).partition(" [while running")[0]) from error
        except Exception as error:  # the type depends on the runner; some have the task's error as text
            words = " ".join(str(error).split())[-500:] or type(error).__name__
            raise DataError(
                f"The pipeline of {self._runner} failed: {words}. Fix that and run the same command again; finished "
                "tasks are kept."
            ) from error
