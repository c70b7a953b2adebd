"""Which documents are trained on, which are held out, and which are left out and why.

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


@dataclasses.dataclass(frozen=True)
class SplitAssignment:
    """The documents of one spool.

    Attributes:
      spool: their text.
      parts_D: uint8, TRAIN, VALIDATION or DROPPED.
      shard_sizes: documents of each shard.
      report: counts for the manifest.
    """

    spool: DocumentSpool
    parts_D: np.ndarray
    shard_sizes: np.ndarray
    report: dict[str, Any]

    def of_shard(self, shard: int) -> np.ndarray:
        """parts_D of one shard."""
        start = int(self.shard_sizes[:shard].sum())
        return self.parts_D[start : start + int(self.shard_sizes[shard])]


def choose(
    spools: list[DocumentSpool], held_out: DocumentSpool | None, config: Config, log: Log
) -> list[SplitAssignment]:
    """Marks repeats, then divides what remains.

    Documents are held out by a hash of their number in their source, and never shuffled: order is decided when examples
    are drawn.

    Args:
      spools: one for each source; their documents follow one another.
      held_out: the text of data.validation_source, if there is one. What it shares with the others leaves them.
      config: the sections data, clean and tokenizer are used.
      log: told one line a step.

    Returns:
      A choice for each spool, then for `held_out`.

    Raises:
      DataError: nothing is left to train on, or to hold out.
    """
    ordered = [held_out, *spools] if held_out else spools
    facts = [spool.facts() for spool in ordered]
    sizes = [len(fact.reasons_D) for fact in facts]
    reasons = np.split(_mark_repeats(DocumentStats.joined(facts), config.clean.near_duplicates), np.cumsum(sizes)[:-1])
    choices = [_choice(*of) for of in zip(ordered, facts, reasons, strict=True)]
    for choice, reason in zip(choices, reasons, strict=True):
        _log_dropped(choice.spool, reason, log)
    if held_out:
        choices = [*choices[1:], choices[0]]
        _need(choices[-1])
        held = choices[-1].parts_D
        held[held == TRAIN] = VALIDATION
        if not any((choice.parts_D == TRAIN).any() for choice in choices):
            raise DataError(
                f"No document of {spools[0].source} is left to train on: each is empty, filtered out, or stands in "
                f"config.data.validation_source={held_out.source} too. Give another validation corpus, or leave that key "
                "empty to hold out a share."
            )
    else:
        for number, choice in enumerate(choices):
            _need(choice)
            if np.count_nonzero(choice.parts_D == TRAIN) == 1:
                choices[number] = _cut_document(choice, config, log)
            else:
                _hold_out(choice.parts_D, config.data.validation_fraction)
    counts = [sum(int((choice.parts_D == part).sum()) for choice in choices) for part in (TRAIN, VALIDATION)]
    log(f"Split: {counts[0]:,} documents to train on, {counts[1]:,} held out.")
    return choices


def _mark_repeats(facts: DocumentStats, threshold: float | None) -> np.ndarray:
    """uint8 [D]: reasons, those of repeats of an earlier document included."""
    reasons_D = facts.reasons_D.copy()
    kept = np.flatnonzero(reasons_D == REASONS.index("kept"))
    _, first = np.unique(facts.digests_D[kept], axis=0, return_index=True)
    repeated = np.ones(len(kept), dtype=bool)
    repeated[first] = False
    reasons_D[kept[repeated]] = REASONS.index("exact_duplicate")
    if threshold:
        kept = kept[~repeated]
        near = near_duplicates.repeats(facts.signatures_DK[kept], threshold)
        reasons_D[kept[near]] = REASONS.index("near_duplicate")
    return reasons_D


def _choice(spool: DocumentSpool, facts: DocumentStats, reasons_D: np.ndarray) -> SplitAssignment:
    parts_D = np.where(reasons_D == REASONS.index("kept"), TRAIN, DROPPED).astype(np.uint8)
    dropped = parts_D == DROPPED
    counts = {name: int((reasons_D == number).sum()) for number, name in enumerate(REASONS) if number}
    report = dict(
        source=spool.source,
        documents=len(parts_D),
        characters=int(facts.characters_D.sum()),
        dropped=counts,
        dropped_characters=int(facts.characters_D[dropped].sum()),
        scrubbed=dict(zip(scrub.KINDS, facts.scrubbed.sum(0).tolist(), strict=True)),
        unreadable=spool.num_skipped,
    )
    return SplitAssignment(spool, parts_D, facts.shard_sizes, report)


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


def _need(choice: SplitAssignment) -> None:
    if not (choice.parts_D == TRAIN).any():
        dropped = choice.report["dropped"]
        why = ", ".join(f"{name} {count:,}" for name, count in dropped.items() if count)
        raise DataError(
            f"The corpus {choice.spool.source} is empty: none of its {len(choice.parts_D)} documents holds text that is kept "
            f"(left out: {why}). The section clean of the config says what is left out."
        )


def _hold_out(parts_D: np.ndarray, fraction: float) -> None:
    """Marks documents for validation, in place: those whose number draws below `fraction`, and at least one."""
    kept = np.flatnonzero(parts_D == TRAIN)
    draws = stateless_rng.uniform(stateless_rng.example_keys(0, "validation", 0, kept), 1)[:, 0]
    held = draws < fraction
    held[draws.argmin()] = True
    held[draws.argmax()] = False
    parts_D[kept[held]] = VALIDATION


def _cut_document(choice: SplitAssignment, config: Config, log: Log) -> SplitAssignment:
    """For a source of one document: its last sentences are held out. The two halves replace it in a spool of their own."""
    data, keep_newlines = config.data, config.tokenizer.keep_newlines
    (place,) = np.flatnonzero(choice.parts_D == TRAIN)
    shard = int(np.searchsorted(np.cumsum(choice.shard_sizes), place, side="right"))
    document = choice.spool.documents(shard)[int(place - choice.shard_sizes[:shard].sum())]
    sentences = split_sentences(document, keep_newlines)
    if len(sentences) < 2:
        raise DataError(
            f"The corpus {choice.spool.source} is too small: one document of one sentence leaves nothing to hold out. Give more "
            f"text (config.data.document_separator={data.document_separator!r} says how text files are divided) or a "
            "config.data.validation_source."
        )
    count = min(max(1, round(data.validation_fraction * len(sentences))), len(sentences) - 1)
    glue = "" if keep_newlines else " "
    path = choice.spool.shards[shard].with_name("cut.npz")
    write_shard(path, [glue.join(sentences[:-count]), glue.join(sentences[-count:])], [0, 0])
    log(
        f"{choice.spool.source} is one document: its first {len(sentences) - count:,} sentences are to train on, its last "
        f"{count:,} held out."
    )
    spool = dataclasses.replace(choice.spool, shards=[path])
    return SplitAssignment(spool, np.array([TRAIN, VALIDATION], np.uint8), np.array([2]), choice.report)
