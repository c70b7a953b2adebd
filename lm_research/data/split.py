"""Split: which documents are for training, which for validation, and which are dropped and why.

Shapes: D documents of one spool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lm_research.common.sentences import split_sentences
from lm_research.config import Config
from lm_research.data import stateless_rng
from lm_research.data.cleaning import REASONS, near_duplicates, scrub
from lm_research.data.ingest import DocumentSpool, DocumentStats, write_shard
from lm_research.errors import DataError

Log = Callable[[str], None]
TRAIN, VALIDATION, DROPPED = 0, 1, 2
PARTS = ("train", "validation")
_MUCH = 1_000_000  # characters of held-out text


@dataclasses.dataclass(frozen=True)
class SplitAssignment:
    """Assignment of the documents of one spool to parts.

    Attributes:
      spool: the text.
      parts_D: uint8, TRAIN, VALIDATION or DROPPED.
      shard_sizes: number of documents of each shard.
      report: counts for the manifest.
    """

    spool: DocumentSpool
    parts_D: np.ndarray
    shard_sizes: np.ndarray
    report: dict[str, Any]

    def of_shard(self, shard: int) -> np.ndarray:
        """Return parts_D of one shard."""
        start = int(self.shard_sizes[:shard].sum())
        return self.parts_D[start : start + int(self.shard_sizes[shard])]


def assign_splits(
    spools: list[DocumentSpool], held_out: DocumentSpool | None, config: Config, log: Log
) -> list[SplitAssignment]:
    """Drop repeated documents and divide the rest into training and validation documents.

    A hash of a document's number in its source decides whether it is held out. Documents are not shuffled here; the sampler does
    that.

    Args:
      spools: one for each source; an earlier source keeps documents that a later one repeats.
      held_out: the text of data.validation_source, if any; its documents are dropped from `spools`.
      config: the sections data, clean and tokenizer are used.
      log: called with one line per step.

    Returns:
      An assignment for each spool, followed by that of `held_out`.

    Raises:
      DataError: no document is left for training, or for validation.
    """
    ordered = [held_out, *spools] if held_out else spools
    stats = [spool.stats() for spool in ordered]
    sizes = [len(one.reasons_D) for one in stats]
    reasons = np.split(
        _mark_duplicates(DocumentStats.concatenate(stats), config.clean.near_duplicates), np.cumsum(sizes)[:-1]
    )
    assignments = [_without_dropped(*of) for of in zip(ordered, stats, reasons, strict=True)]
    for assignment, reason in zip(assignments, reasons, strict=True):
        _log_dropped(assignment.spool, reason, log)
    if held_out:
        assignments = [*assignments[1:], assignments[0]]
        _check_not_empty(assignments[-1])
        held = assignments[-1].parts_D
        held[held == TRAIN] = VALIDATION
        if not any((assignment.parts_D == TRAIN).any() for assignment in assignments):
            raise DataError(
                f"No document of {spools[0].source} is left to train on: each is empty, filtered out, or also in "
                f"config.data.validation_source={held_out.source}. Use another validation corpus, or leave that key "
                "empty to hold out a fraction."
            )
    else:
        for number, assignment in enumerate(assignments):
            _check_not_empty(assignment)
            if np.count_nonzero(assignment.parts_D == TRAIN) == 1:
                assignments[number] = _cut_document(assignment, config, log)
            else:
                _hold_out(assignment.parts_D, config.data.validation_fraction)
                _warn_of_long_documents(assignment, stats[number].characters_D, config, log)
    counts = [
        sum(int((assignment.parts_D == part).sum()) for assignment in assignments) for part in (TRAIN, VALIDATION)
    ]
    log(f"Split: {counts[0]:,} documents to train on, {counts[1]:,} held out.")
    return assignments


def _mark_duplicates(stats: DocumentStats, threshold: float | None) -> np.ndarray:
    """Extend the reasons by exact and near duplicates of earlier documents, uint8 [D]."""
    reasons_D = stats.reasons_D.copy()
    kept = np.flatnonzero(reasons_D == REASONS.index("kept"))
    _, first = np.unique(stats.digests_D[kept], axis=0, return_index=True)
    repeated = np.ones(len(kept), dtype=bool)
    repeated[first] = False
    reasons_D[kept[repeated]] = REASONS.index("exact_duplicate")
    if threshold:
        kept = kept[~repeated]
        near = near_duplicates.find_near_duplicates(stats.signatures_DK[kept], threshold)
        reasons_D[kept[near]] = REASONS.index("near_duplicate")
    return reasons_D


def _without_dropped(spool: DocumentSpool, stats: DocumentStats, reasons_D: np.ndarray) -> SplitAssignment:
    """Assign every document to TRAIN or DROPPED."""
    parts_D = np.where(reasons_D == REASONS.index("kept"), TRAIN, DROPPED).astype(np.uint8)
    dropped = parts_D == DROPPED
    counts = {name: int((reasons_D == number).sum()) for number, name in enumerate(REASONS) if number}
    report = dict(
        source=spool.source,
        documents=len(parts_D),
        characters=int(stats.characters_D.sum()),
        dropped=counts,
        dropped_characters=int(stats.characters_D[dropped].sum()),
        scrubbed=dict(zip(scrub.KINDS, stats.scrubbed.sum(0).tolist(), strict=True)),
        unreadable=spool.num_skipped,
    )
    return SplitAssignment(spool, parts_D, stats.shard_sizes, report)


def _log_dropped(spool: DocumentSpool, reasons_D: np.ndarray, log: Log) -> None:
    counts = {name: int((reasons_D == number).sum()) for number, name in enumerate(REASONS)}
    words = {
        "exact_duplicate": "documents that occurred before",
        "empty": "empty ones",
        "near_duplicate": "near repeats",
        "short": "too short",
        "long": "too long",
        "script": "in other scripts",
    }
    if any(count for name, count in counts.items() if name != "kept"):
        found = [
            f"{counts[name]:,} {text}"
            for name, text in words.items()
            if counts[name] or name in ("exact_duplicate", "empty")
        ]
        log(f"Warning: {spool.source}: left out {', '.join(found[:-1])} and {found[-1]}.")


def _check_not_empty(assignment: SplitAssignment) -> None:
    if not (assignment.parts_D == TRAIN).any():
        dropped = assignment.report["dropped"]
        why = ", ".join(f"{name} {count:,}" for name, count in dropped.items() if count)
        raise DataError(
            f"The corpus {assignment.spool.source} is empty: none of its {len(assignment.parts_D)} documents is left after cleaning "
            f"(left out: {why}). Check the section clean of the config, which decides what is left out."
        )


def _hold_out(parts_D: np.ndarray, fraction: float) -> None:
    """Move documents to VALIDATION in place: those whose draw is below `fraction`, at least one and not all."""
    kept = np.flatnonzero(parts_D == TRAIN)
    draws = stateless_rng.uniform_draw(stateless_rng.example_keys(0, "validation", 0, kept))
    held = draws < fraction
    held[draws.argmin()] = True
    held[draws.argmax()] = False
    parts_D[kept[held]] = VALIDATION


def _warn_of_long_documents(assignment: SplitAssignment, characters_D: np.ndarray, config: Config, log: Log) -> None:
    """Log a warning if so few documents were divided that much more text is held out than asked for, such as one of six files."""
    held, trained = (int(characters_D[assignment.parts_D == part].sum()) for part in (VALIDATION, TRAIN))
    fraction = config.data.validation_fraction
    if held > _MUCH and held > 3 * fraction * (held + trained):
        log(
            f"Warning: {assignment.spool.source}: {held / (held + trained):.0%} of the text is held out, instead of data.validation_fraction="
            f"{fraction:g}, because whole documents are, and there are {np.count_nonzero(assignment.parts_D != DROPPED):,}. Divide it into more "
            "(--config.data.document_separator=line, or blank lines), or set data.validation_source."
        )


def _cut_document(assignment: SplitAssignment, config: Config, log: Log) -> SplitAssignment:
    """Hold out the last sentences of a source with a single document; the two parts replace it in a new spool."""
    data, keep_newlines = config.data, config.tokenizer.keep_newlines
    (place,) = np.flatnonzero(assignment.parts_D == TRAIN)
    shard = int(np.searchsorted(np.cumsum(assignment.shard_sizes), place, side="right"))
    document = assignment.spool.documents(shard)[int(place - assignment.shard_sizes[:shard].sum())]
    sentences = split_sentences(document, keep_newlines)
    if len(sentences) < 2:
        raise DataError(
            f"The corpus {assignment.spool.source} is too small: one document of one sentence leaves nothing to hold out. Add "
            f"text (config.data.document_separator={data.document_separator!r} decides how text files are divided), or set "
            "config.data.validation_source."
        )
    count = min(max(1, round(data.validation_fraction * len(sentences))), len(sentences) - 1)
    glue = "" if keep_newlines else " "
    path = assignment.spool.shards[shard].with_name("cut.npz")
    write_shard(path, [glue.join(sentences[:-count]), glue.join(sentences[-count:])], [0, 0])
    log(
        f"{assignment.spool.source} is one document: its first {len(sentences) - count:,} sentences are for training, its last "
        f"{count:,} are held out."
    )
    spool = dataclasses.replace(assignment.spool, shards=[path])
    return SplitAssignment(spool, np.array([TRAIN, VALIDATION], np.uint8), np.array([2]), assignment.report)
