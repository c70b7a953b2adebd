"""Several corpora read in chosen proportions, and who reads what when: still a pure function of (seed, step).

The rows of a run are numbered. They are dealt out in blocks of BLOCK: in every block each source has the same number of
rows, its quota, shuffled among the block's rows by a key of the block. So the k-th row of a source, and from it the
epoch and example, follow from a row's number alone: no counter, nothing to replay, and no example left out. Stages, which
change the weights from a step on, begin with a block; the block before may be cut short and has quotas for its size.

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

BLOCK = 65_536  # rows; shares are kept to one part in this


@dataclasses.dataclass(frozen=True)
class Stage:
    """From the first row of `step` on, sources are read in proportion to `weights`, one for each."""

    step: int
    weights: tuple[float, ...]


def sources_of(data: DataConfig) -> list[tuple[str, str]]:
    """(name, source) of each part of a mixture; [("", data.source)] without one.

    Raises:
      ConfigError: data.mixture clashes with another key.
    """
    return [(name, part.source) for name, part in _parts(data).items()] if data.mixture else [("", data.source)]


def _parts(data: DataConfig) -> Mapping[str, MixtureSource]:
    parts = data.mixture or {}
    if data.validation_source:
        raise ConfigError(
            "data.mixture and data.validation_source are both set: of a mixture each source holds out its own share "
            "(data.validation_fraction). Leave validation_source empty."
        )
    for name in parts:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"data.mixture has a source {name!r}: names are letters, digits, dots, dashes and underscores."
            )
    if len({part.weight is None for part in parts.values()}) > 1:
        raise ConfigError("data.mixture gives some sources a weight and others none. Give all of them one, or none.")
    return parts


def stages_of(data: DataConfig, tokens: Mapping[str, int]) -> list[Stage]:
    """The stages that a config asks for, the first from step 0.

    Args:
      data: mixture, mixture_alpha and mixture_stages are used.
      tokens: training tokens of each source. Without weights a source's share is its tokens to the power of mixture_alpha
        (Devlin's multilingual BERT 0.7, Conneau et al. 2020 for XLM-R 0.3; 1 takes them as they are, 0 all alike).

    Raises:
      ConfigError: it cannot be understood.
    """
    parts = _parts(data)
    weights = [part.weight for part in parts.values() if part.weight is not None]
    if not weights:
        weights = [float(tokens[name]) ** data.mixture_alpha for name in parts]
    elif data.mixture_alpha != 1.0:
        raise ConfigError(
            "data.mixture gives weights and data.mixture_alpha is set, which makes weights from sizes. Leave one of them out."
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
    """int64 [S]: rows of each source in a block of `size`: its share, by largest remainder, at least 1 where that fits."""
    exact = np.asarray(weights) * size
    rows = np.floor(exact).astype(np.int64)
    rows = np.where((exact > 0) & (rows == 0) & (size >= 2 * len(exact)), 1, rows)
    order = np.argsort(-(exact - np.floor(exact)), kind="stable")
    while rows.sum() < size:
        rows[order[: size - rows.sum()]] += 1
    while rows.sum() > size:  # what smallest sources were given, the largest gives
        rows[rows.argmax()] -= 1
    return rows


class Mixture(Examples):
    """Examples of several sources, for a Feed; a row's number says which source it reads.

    Attributes:
      names: of the sources.
      num_examples: of all sources together; read in order, they follow one another.
    """

    def __init__(self, parts: Mapping[str, Examples], stages: Sequence[Stage], batch_size: int) -> None:
        """`batch_size` turns the stages' steps into rows."""
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
        """Epoch and example number of rows by their numbers, both int64 [B]; an example's number tells its source."""
        source_B, count_B = self._stages.deal(row_B, seed)
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
        """Rows of whichever source each example belongs to; an index of -1 is an empty row."""
        source_B = self.source_of(index_B)
        rows: dict[str, np.ndarray] = {}
        for source in np.unique(source_B):
            of = np.flatnonzero(source_B == source)
            local = np.where(index_B[of] >= 0, index_B[of] - self._offsets[source], -1)
            for name, values in self.parts[source].batch(epoch_B[of], local).items():
                rows.setdefault(name, np.empty((len(index_B), *values.shape[1:]), values.dtype))[of] = values
        return rows

    def source_of(self, index_B: np.ndarray) -> np.ndarray:
        """Place in `names` of the source of each example, int64 [B]."""
        return np.maximum(np.searchsorted(self._offsets, index_B, side="right") - 1, 0)

    def epochs(self, step: int) -> dict[str, float]:
        """How often each source has been read after `step` steps, to within a block's quota."""
        return dict(zip(self.names, (self._stages.counts(step) / np.maximum(self._sizes, 1)).tolist(), strict=True))

    def weights(self, step: int) -> dict[str, float]:
        """Share of each source in the rows of a step."""
        return dict(zip(self.names, self._stages.at(step).weights, strict=True))


class _Stages:
    """Rows dealt out to sources, stage after stage."""

    def __init__(self, stages: Sequence[Stage], batch_size: int) -> None:
        self._stages, self._batch_size = list(stages), batch_size
        self._starts = np.array([stage.step * batch_size for stage in stages], dtype=np.int64)
        self._quotas = [quotas(stage.weights, BLOCK) for stage in stages]
        self._before = [np.zeros(len(stages[0].weights), dtype=np.int64)]  # rows of each source before each stage
        for number, rows in enumerate(np.diff(self._starts).tolist()):
            blocks, rest = divmod(rows, BLOCK)
            self._before.append(self._before[-1] + blocks * self._quotas[number] + quotas(stages[number].weights, rest))

    def deal(self, row_B: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """For each row its source, and how many rows that source had before it, both int64 [B]."""
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
        """The stage that a step belongs to."""
        return [stage for stage in self._stages if stage.step <= step][-1]

    def counts(self, step: int) -> np.ndarray:
        """Rows of each source in the first `step` steps, float64 [S]."""
        stage = self._stages.index(self.at(step))
        rows = step * self._batch_size - int(self._starts[stage])
        return self._before[stage] + rows * np.asarray(self._stages[stage].weights)


def mix(data: DataConfig, store: TokenStore, batch_size: int, make: Callable[[TokenStore], Examples]) -> Examples:
    """The examples of a store: `make(store)`, or, of a mixture, those of each source in its proportion.

    Args:
      data: of the run.
      store: as open_corpus gives it.
      batch_size: global batch of the run.
      make: for example `lambda store: objective.examples(store, "train")`.

    Raises:
      ConfigError: the config's weights cannot be understood.
    """
    if not data.mixture:
        return make(store)
    parts = {name: store.source(name) for name in store.source_names}
    stages = stages_of(data, {name: part.num_tokens for name, part in parts.items()})
    return Mixture({name: make(part) for name, part in parts.items()}, stages, batch_size)
