"""Token tables that a config.json ties: which tensors of the files they are, and whether their values are those of one table.

As transformers 5 does, a tie is taken for what the files hold: equal tables are one, different ones stay apart whatever the config says, and
a table that is missing is the one that it is tied to, whichever of them is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from lm_research.interop.tensor_files import TensorSource
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import Family
from lm_research.models.families.common import ParamMapping
from lm_research.models.head_kinds import HEADS

ENCODER, DECODER = "encoder/embeddings/tokens", "decoder/embeddings/tokens"
OUTPUTS = ("next_token/table", "masked_lm/table")  # paths of the table of their own that predictions have otherwise
ROWS = 4096  # that are compared at once


class Names:
    """The names of weights in the files, whichever prefix these have."""

    def __init__(self, source: TensorSource, family: Family, arch: Architecture, head: str, kind: str) -> None:
        def of(head: str) -> str:
            return family.prefix(arch, head, kind)

        self.prefixes = tuple(dict.fromkeys((of(head), "", *map(of, HEADS))))
        self._stored = set(source.names)

    def candidates(self, weight: ParamMapping, layer: int = 0) -> Iterator[str]:
        """All names that a weight is looked for under, in order."""
        for name in (*weight.preferred, *weight.names):
            yield from self.of(weight.of_layer(name, layer))

    def of(self, name: str) -> list[str]:
        """A family's name with each of the prefixes."""
        return [p + name[1:] for p in self.prefixes] if name.startswith("@") else [name]

    def stored(self, weight: ParamMapping, layer: int = 0) -> list[str]:
        """Those of the candidates that the files have; the first is read."""
        return [name for name in self.candidates(weight, layer) if name in self._stored]


def weights(family: Family, arch: Architecture, head: str) -> dict[str, ParamMapping]:
    """A family's weights by path; a table with several uses is looked for under the names of all of them."""
    known = {weight.path: weight for weight in family.weights(arch, head)}
    apart = {weight.path: weight for weight in family.weights(arch.replace(tied=False, shared_tokens=False), head)}
    one, uses = _tied_to(arch), tuple[str, ...]()
    if arch.encoder is not None and arch.shared_tokens:
        one, uses = ENCODER, (ENCODER, DECODER)
    if arch.tied:
        uses += OUTPUTS
    more = [name for path in uses if path in apart for name in apart[path].names]
    known[one] = dataclasses.replace(known[one], names=tuple(dict.fromkeys((*known[one].names, *more))))
    return known


def fit(
    source: TensorSource, family: Family, arch: Architecture, head: str, kind: str
) -> tuple[Architecture, tuple[tuple[str, str], ...]]:
    """The architecture with those ties that the files keep, and the names of tables (one, and what it is tied to) that differ."""
    names, differing = Names(source, family, arch, head, kind), dict[frozenset[str], tuple[str, str]]()

    def differ(one: ParamMapping | None, other: ParamMapping) -> bool:
        found = [names.stored(weight)[:1] for weight in (one, other) if weight is not None]
        if len(found) < 2 or not all(found) or equal(source, found[0][0], found[1][0]):
            return False
        pair = found[0][0], found[1][0]
        differing.setdefault(frozenset(pair), pair)
        return True

    if arch.encoder is not None and arch.shared_tokens:
        apart, shared = arch.replace(shared_tokens=False), weights(family, arch, head)[ENCODER]
        own = weights(family, apart, head)
        if any([differ(own[path], shared) for path in (ENCODER, DECODER)]):
            arch = apart
    if arch.tied and HEADS[head].tokens:
        apart, tied = arch.replace(tied=False), weights(family, arch, head)[_tied_to(arch)]
        known = weights(family, apart, head)
        if differ(next((known[path] for path in OUTPUTS if path in known), None), tied):
            arch = apart
    return arch, tuple(differing.values())


def members(source: TensorSource, family: Family, arch: Architecture, head: str, kind: str) -> dict[str, str]:
    """The tables that config.json ties, by name, each with the tensor of the files that it is; nothing where it ties none."""
    shares = arch.encoder is not None and arch.shared_tokens
    names, one = Names(source, family, arch, head, kind), ENCODER if shares else _tied_to(arch)
    table = weights(family, arch, head)[one]
    stored = names.stored(table)
    if not stored or not (shares or arch.tied):
        return {}
    spelled = [[name for name in names.of(name) if name in stored] or names.of(name)[:1] for name in table.names]
    return {name: name if name in stored else stored[0] for name, *_ in spelled}


def equal(source: TensorSource, one: str, other: str) -> bool:
    """Whether two tensors hold the same values, compared a part at a time."""
    if one == other or source.shape(one) != source.shape(other):
        return one == other
    a, b = source.read(one), source.read(other)
    if (a.ctypes.data, a.strides, a.dtype) == (b.ctypes.data, b.strides, b.dtype):  # one storage under two names
        return True
    return all(np.array_equal(a[i : i + ROWS], b[i : i + ROWS]) for i in range(0, len(a), ROWS))


def _tied_to(arch: Architecture) -> str:
    """Path of the table that predictions are tied to."""
    return DECODER if arch.causal and arch.has_tokens else ENCODER
