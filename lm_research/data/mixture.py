"""Mixtures: several corpora read in chosen proportions. Which example a row reads is a pure function of (seed, row).

The rows of a run are numbered and form blocks of BLOCK rows. In every block each source has the same number of
rows, its quota, shuffled among the block's rows by a key of the block. So a row's number determines its source, its place k among
the source's rows, and from k the epoch and example: there is no counter and nothing to replay, and no example is left out. Stages
change the weights from a given step. A stage begins a new block; the block before it may be shorter and has quotas for its size.

Example: blocks of 4 rows, weights 3/4 and 1/4. Each block has 3 rows of source 0 and one of source 1. If the second block is shuffled
to sources 0 1 0 0, it has the 4th to 6th rows of source 0, in shuffled order, and the 2nd row of source 1.

Legend: B rows, S sources.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lm_research.config import DataConfig
from lm_research.config.corpus import NAME, MixtureSource
from lm_research.data.sampler import Examples
from lm_research.data.stateless_rng import permute
from lm_research.data.store import TokenStore
from lm_research.errors import ConfigError, suggest

BLOCK = 65_536  # rows; also the precision of the proportions


@dataclasses.dataclass(frozen=True)
class Stage:
    """Weights of the sources, one each, that apply from the first row of `step`."""

    step: int
    weights: tuple[float, ...]


def sources_of(data: DataConfig) -> list[tuple[str, str]]:
    """List (name, source) of each part of a mixture; [("", data.source)] without a mixture.

    Raises:
      ConfigError: data.mixture contradicts another key.
    """
    return [(name, part.source) for name, part in _parts(data).items()] if data.mixture else [("", data.source)]


def _parts(data: DataConfig) -> Mapping[str, MixtureSource]:
    parts = data.mixture or {}
    if data.validation_source:
        raise ConfigError(
            "data.mixture and data.validation_source are both set, but each source of a mixture holds out a fraction of its own text "
            "(data.validation_fraction). Leave validation_source empty."
        )
    for name in parts:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"data.mixture has a source {name!r}: names consist of letters, digits, dots, dashes and underscores."
            )
    if len({part.weight is None for part in parts.values()}) > 1:
        raise ConfigError("data.mixture has weights for some sources only. Set a weight for all sources, or for none.")
    return parts


def stages_of(data: DataConfig, tokens: Mapping[str, int]) -> list[Stage]:
    """List the stages of a config, the first of which begins at step 0.

    Args:
      data: mixture, mixture_alpha and mixture_stages are used.
      tokens: training tokens of each source. Without weights a source is weighted by its tokens to the power of mixture_alpha
        (Devlin's multilingual BERT 0.7, Conneau et al. 2020 for XLM-R 0.3; 1 is proportional to size, 0 uniform).

    Raises:
      ConfigError: the keys contradict each other.
    """
    parts = _parts(data)
    weights = [part.weight for part in parts.values() if part.weight is not None]
    if not weights:
        weights = [float(tokens[name]) ** data.mixture_alpha for name in parts]
    elif data.mixture_alpha != 1.0:
        raise ConfigError(
            "data.mixture has weights, but data.mixture_alpha is set too, which computes weights from sizes. Remove one of them."
        )
    stages = [_stage(0, weights, "data.mixture")]
    for step, given in sorted((data.mixture_stages or {}).items()):
        where = f"data.mixture_stages, step {step}"
        for name in given:
            if name not in parts:
                raise ConfigError(f"{where} names {name!r}. {suggest(name, parts)}")
        if step < 1 or len(given) < len(parts):
            lacking = ", ".join(name for name in parts if name not in given)
            raise ConfigError(f"{where}: " + (f"{lacking} has no weight." if lacking else "stages begin after step 0."))
        stages.append(_stage(step, [given[name] for name in parts], where))
    return stages


def _stage(step: int, weights: Sequence[float], where: str) -> Stage:
    if not sum(weights) > 0:
        raise ConfigError(f"{where}: all weights are 0. Give at least one source a weight above 0.")
    return Stage(step, tuple(weight / sum(weights) for weight in weights))


def quotas(weights: Sequence[float], size: int) -> np.ndarray:
    """Divide the rows of a block of `size` among sources by largest remainder, int64 [S]; at least 1 row each if the block is large enough.

    Example: weights [0.5, 0.3, 0.2] and size 7 are exactly [3.5, 2.1, 1.4] rows, rounded down to [3, 2, 1]; the row that is left
    goes to the largest remainder, which gives [4, 2, 1].
    """
    exact = np.asarray(weights) * size
    rows = np.floor(exact).astype(np.int64)
    rows = np.where((exact > 0) & (rows == 0) & (size >= 2 * len(exact)), 1, rows)
    order = np.argsort(-(exact - np.floor(exact)), kind="stable")
    while rows.sum() < size:
        rows[order[: size - rows.sum()]] += 1
    while rows.sum() > size:  # the largest source makes up for the minimum of small ones
        rows[rows.argmax()] -= 1
    return rows


class Mixture(Examples):
    """Examples of several sources, for a BatchBuilder; a row's number determines its source.

    Attributes:
      names: names of the sources.
      num_examples: number of examples of all sources together, which are numbered consecutively.
    """

    def __init__(self, parts: Mapping[str, Examples], stages: Sequence[Stage], batch_size: int) -> None:
        """Combine the examples of sources; `batch_size` converts the stages' steps to rows."""
        self.names, self.parts = tuple(parts), tuple(parts.values())
        self._sizes = np.array([part.num_examples for part in self.parts], dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes)])
        self.num_examples = int(self._offsets[-1])
        self._stages = _Stages(stages, batch_size)
        for name, size, weights in zip(
            self.names, self._sizes, zip(*(s.weights for s in stages), strict=True), strict=True
        ):
            assert size or not any(weights), f"source {name} has no examples"

    def locate(self, row_B: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the epoch and example of rows by their numbers, both int64 [B]; an example's number determines its source."""
        source_B, count_B = self._stages.assign(row_B, seed)
        size_B = self._sizes[source_B]
        epoch_B, place_B = count_B // size_B, count_B % size_B
        index_B = np.empty_like(place_B)
        for source in np.unique(source_B):
            of = np.flatnonzero(source_B == source)
            purpose = f"order/{self.names[source]}"
            index_B[of] = (
                permute(place_B[of], int(self._sizes[source]), seed, purpose, epoch_B[of]) + self._offsets[source]
            )
        return epoch_B, index_B

    def batch(self, epoch_B: np.ndarray, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """Make a batch of examples from any sources; an index of -1 gives an empty row."""
        source_B = self.source_of(index_B)
        rows: dict[str, np.ndarray] = {}
        for source in np.unique(source_B):
            of = np.flatnonzero(source_B == source)
            local = np.where(index_B[of] >= 0, index_B[of] - self._offsets[source], -1)
            for name, values in self.parts[source].batch(epoch_B[of], local).items():
                rows.setdefault(name, np.empty((len(index_B), *values.shape[1:]), values.dtype))[of] = values
        return rows

    def source_of(self, index_B: np.ndarray) -> np.ndarray:
        """Find the source of each example as an index into `names`, int64 [B]."""
        return np.maximum(np.searchsorted(self._offsets, index_B, side="right") - 1, 0)

    def epochs(self, step: int) -> dict[str, float]:
        """Compute how often each source has been read after `step` steps, to within a block's quota."""
        return dict(zip(self.names, (self._stages.counts(step) / np.maximum(self._sizes, 1)).tolist(), strict=True))

    def weights(self, step: int) -> dict[str, float]:
        """Return the fraction of rows of a step that come from each source."""
        return dict(zip(self.names, self._stages.at(step).weights, strict=True))


class _Stages:
    """Assigns rows to sources, stage after stage."""

    def __init__(self, stages: Sequence[Stage], batch_size: int) -> None:
        self._stages, self._batch_size = list(stages), batch_size
        self._starts = np.array([stage.step * batch_size for stage in stages], dtype=np.int64)
        self._quotas = [quotas(stage.weights, BLOCK) for stage in stages]
        self._before = [np.zeros(len(stages[0].weights), dtype=np.int64)]  # rows of each source before each stage
        for number, rows in enumerate(np.diff(self._starts).tolist()):
            blocks, rest = divmod(rows, BLOCK)
            self._before.append(self._before[-1] + blocks * self._quotas[number] + quotas(stages[number].weights, rest))

    def assign(self, row_B: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the source of each row, and how many earlier rows that source has, both int64 [B]."""
        source_B, count_B = np.empty_like(row_B), np.empty_like(row_B)
        stage_B = np.searchsorted(self._starts, row_B, side="right") - 1
        block_B = (row_B - self._starts[stage_B]) // BLOCK
        for stage, block in {(int(s), int(b)) for s, b in zip(stage_B, block_B, strict=True)}:
            of = np.flatnonzero((stage_B == stage) & (block_B == block))
            start = int(self._starts[stage]) + block * BLOCK
            end = int(self._starts[stage + 1]) if stage + 1 < len(self._starts) else start + BLOCK
            size = min(BLOCK, end - start)
            quota = self._quotas[stage] if size == BLOCK else quotas(self._stages[stage].weights, size)
            ends = np.cumsum(quota)
            slot = permute(row_B[of] - start, size, seed, f"mixture/{stage}", block)
            source = np.searchsorted(ends, slot, side="right")
            source_B[of] = source
            count_B[of] = (self._before[stage] + block * self._quotas[stage] - (ends - quota))[source] + slot
        return source_B, count_B

    def at(self, step: int) -> Stage:
        """Return the stage of a step."""
        return [stage for stage in self._stages if stage.step <= step][-1]

    def counts(self, step: int) -> np.ndarray:
        """Compute the rows of each source in the first `step` steps, float64 [S]."""
        stage = self._stages.index(self.at(step))
        rows = step * self._batch_size - int(self._starts[stage])
        return self._before[stage] + rows * np.asarray(self._stages[stage].weights)


def mix(data: DataConfig, store: TokenStore, batch_size: int, make: Callable[[TokenStore], Examples]) -> Examples:
    """Build the examples of a store: `make(store)`, or for a mixture those of all sources in their proportions.

    Args:
      data: the section data of the run's config.
      store: the training store of the corpus.
      batch_size: global batch size of the run.
      make: builds the examples of one store, for example `lambda store: objective.examples(store, "train")`.

    Raises:
      ConfigError: the weights contradict each other.
    """
    if not data.mixture:
        return make(store)
    parts = {name: store.source(name) for name in store.source_names}
    stages = stages_of(data, {name: part.num_tokens for name, part in parts.items()})
    return Mixture({name: make(part) for name, part in parts.items()}, stages, batch_size)
