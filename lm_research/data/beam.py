"""Preparing a corpus with Apache Beam, on as many machines as a runner has.

The tasks are those of worker processes (workers.py): each reads and writes files, so the pipelines only hand them out, and
machines need a file system in common (NFS, Filestore, a mounted bucket). Each file of a source is one task of the first
step: a corpus for many machines is a folder of many files. Which documents repeat others is decided on the machine that
starts the pipelines, from 16 bytes a document, and 512 more for near repeats.
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
        """Names a runner and its own flags.

        Raises:
          ConfigError: Beam is not installed, or knows no such runner or flag.
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
            unknown = self._options.get_all_options(retain_unknown_options=False)
        except SystemExit as error:  # argparse
            raise ConfigError(f"--runner_options={' '.join(options)}: {runner} does not understand them.") from error
        assert unknown["runner"] == runner
        self._runner = runner

    def run(self, function: Callable[[Any], Any], items: Iterable[Any], advance: Callable[[Any], Any]) -> None:
        """One pipeline; `advance` is not called before its end, and then with 0 for each item.

        Raises:
          DataError: the pipeline failed, or a task found something wrong with the text.
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
        except Exception as error:  # runners raise what they like, some with the task's error as text
            words = " ".join(str(error).split())[-500:] or type(error).__name__
            raise DataError(
                f"The pipeline of {self._runner} failed: {words}. Run the same command again when that is fixed; what was "
                "finished is kept."
            ) from error
