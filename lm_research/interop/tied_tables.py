"""Token tables that a config.json ties: which tensors of the files they are, and whether their values are equal.

As in transformers 5, the files override the config: equal tables are tied, different ones stay separate, and a missing table is
the one that it is tied to, whichever of them is stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from lm_research.interop.tensor_files import TensorSource
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import Family
from lm_research.models.families.common import ParamMapping
from lm_research.models.head_kinds import HEADS

ENCODER, DECODER = "encoder/embeddings/tokens", "decoder/embeddings/tokens"
OUTPUTS = ("next_token/table", "masked_lm/table")  # paths of the output table of an untied model
ROWS = 4096  # rows that are compared at once


class Names:
    """Names of weights in the files, with any of the prefixes that these may have."""

    def __init__(self, source: TensorSource, family: Family, arch: Architecture, head: str, kind: str) -> None:
        def of(head: str) -> str:
            return family.prefix(arch, head, kind)

        self.prefixes = tuple(dict.fromkeys((of(head), "", *map(of, HEADS), *family.other_prefixes)))
        self._stored = set(source.names)

    def candidates(self, weight: ParamMapping, layer: int = 0) -> Iterator[str]:
        """All possible names of a weight, in order of preference."""
        for name in (*weight.preferred, *weight.names):
            yield from self.of(weight.of_layer(name, layer))

    def of(self, name: str) -> list[str]:
        """A family's name with each of the prefixes."""
        return [p + name[1:] for p in self.prefixes] if name.startswith("@") else [name]

    def stored(self, weight: ParamMapping, layer: int = 0) -> list[str]:
        """The candidates that the files have; the first is read."""
        return [name for name in self.candidates(weight, layer) if name in self._stored]


def weights(family: Family, arch: Architecture, head: str) -> dict[str, ParamMapping]:
    """Return a family's weights by path; a tied table has the names of all its uses."""
    known = {weight.path: weight for weight in family.weights(arch, head)}
    untied = {weight.path: weight for weight in family.weights(arch.replace(tied=False, shared_tokens=False), head)}
    one, uses = _tied_to(arch), tuple[str, ...]()
    if arch.encoder is not None and arch.shared_tokens:
        one, uses = ENCODER, (ENCODER, DECODER)
    if arch.tied:
        uses += OUTPUTS
    more = [name for path in uses if path in untied for name in untied[path].names]
    known[one] = dataclasses.replace(known[one], names=tuple(dict.fromkeys((*known[one].names, *more))))
    return known


def fit(
    source: TensorSource, family: Family, arch: Architecture, head: str, kind: str
) -> tuple[Architecture, tuple[tuple[str, str], ...]]:
    """Untie tables of the architecture whose values differ in the files, and tie equal ones if no key of config.json decides.

    Returns:
      The architecture with the remaining ties, and pairs of names (table, table that it is tied to) that differ.
    """
    names, differing = Names(source, family, arch, head, kind), dict[frozenset[str], tuple[str, str]]()

    def differ(one: ParamMapping | None, other: ParamMapping) -> bool:
        found = [names.stored(weight)[:1] for weight in (one, other) if weight is not None]
        if len(found) < 2 or not all(found) or equal(source, found[0][0], found[1][0]):
            return False
        pair = found[0][0], found[1][0]
        differing.setdefault(frozenset(pair), pair)
        return True

    if arch.encoder is not None and arch.shared_tokens:
        untied, shared = arch.replace(shared_tokens=False), weights(family, arch, head)[ENCODER]
        separate = weights(family, untied, head)
        if any([differ(separate[path], shared) for path in (ENCODER, DECODER)]):
            arch = untied
    if arch.tied and HEADS[head].tokens:
        untied, tied = arch.replace(tied=False), weights(family, arch, head)[_tied_to(arch)]
        separate = weights(family, untied, head)
        if differ(next((separate[path] for path in OUTPUTS if path in separate), None), tied):
            arch = untied
    elif not arch.tied and not family.tie_flags and HEADS[head].tokens:  # no key says that the tables are separate
        separate = weights(family, arch, head)
        found = [names.stored(separate[path])[:1] for path in (*OUTPUTS, _tied_to(arch)) if path in separate]
        if len(found) == 2 and all(found) and equal(source, found[0][0], found[1][0]):
            arch = arch.replace(tied=True)
    return arch, tuple(differing.values())


def own_outputs(weights: Mapping[str, ParamMapping]) -> dict[str, ParamMapping]:
    """The output table of a model whose config.json ties none: it is not read from the token tables."""
    tables = {name for path in (ENCODER, DECODER) if path in weights for name in weights[path].names}

    def own(weight: ParamMapping) -> ParamMapping:
        return dataclasses.replace(weight, names=tuple(name for name in weight.names if name not in tables))

    return {path: own(weights[path]) for path in OUTPUTS if path in weights}


def members(source: TensorSource, family: Family, arch: Architecture, head: str, kind: str) -> dict[str, str]:
    """Map the name of each table that config.json ties to the name of the stored tensor; {} if it ties none."""
    shares = arch.encoder is not None and arch.shared_tokens
    names, one = Names(source, family, arch, head, kind), ENCODER if shares else _tied_to(arch)
    table = weights(family, arch, head)[one]
    stored = names.stored(table)
    if not stored or not (shares or arch.tied):
        return {}
    full_names = [[name for name in names.of(name) if name in stored] or names.of(name)[:1] for name in table.names]
    return {name: name if name in stored else stored[0] for name, *_ in full_names}


def equal(source: TensorSource, one: str, other: str) -> bool:
    """Whether two tensors have the same values, compared in parts."""
    if one == other or source.shape(one) != source.shape(other):
        return one == other
    a, b = source.read(one), source.read(other)
    if (a.ctypes.data, a.strides, a.dtype) == (b.ctypes.data, b.strides, b.dtype):  # one storage under two names
        return True
    return all(np.array_equal(a[i : i + ROWS], b[i : i + ROWS]) for i in range(0, len(a), ROWS))


def _tied_to(arch: Architecture) -> str:
    """Path of the token table that the output table is tied to."""
    return DECODER if arch.causal and arch.has_tokens else ENCODER
