"""Cleaning of documents before tokenization, by the section `clean` of the config.

In this order: Unicode is normalized, personal data is replaced by placeholders (scrub.py), and documents that are too short, too long,
or in other scripts (scripts.py) are dropped. Exact and near duplicates (near_duplicates.py) are then found among all remaining
documents of a corpus and its held-out part.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from typing import Literal

from lm_research.common.texts import replace_surrogates
from lm_research.config import CleanConfig
from lm_research.data.cleaning import scripts, scrub
from lm_research.errors import ConfigError

# Reasons to drop a document, stored as an index into this tuple; 0 keeps the document.
REASONS = ("kept", "empty", "short", "long", "script", "exact_duplicate", "near_duplicate")

_LINE_BREAKS = re.compile("\r\n?|[\x85\u2028\u2029]")
_SPACES = re.compile("[\x0b\x0c]")
# Control characters, soft hyphens and zero-width spaces; joiners stay, because scripts and emoji need them.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """A document after cleaning: its text, its index in REASONS, and the number of replacements for each of scrub.KINDS."""

    text: str
    reason: int
    scrubbed: tuple[int, ...]


class Cleaner:
    """Cleans single documents as configured."""

    def __init__(self, clean: CleanConfig) -> None:
        """Check the settings; raises a ConfigError for an unknown script or kind of personal data, or contradicting limits."""
        self._clean = clean
        self._scripts = scripts.parse(clean.scripts)
        self._scrub = scrub.parse(clean.redact_pii)
        if clean.max_characters and clean.max_characters < clean.min_characters:
            raise ConfigError(
                f"clean.max_characters={clean.max_characters} is below clean.min_characters={clean.min_characters}, so no "
                "document would be left. Increase it, or set it to 0."
            )

    def __call__(self, text: str) -> Cleaned:
        """Clean a document. Lone surrogates, which UTF-8 cannot encode, always become question marks."""
        text = replace_surrogates(text)
        if self._clean.unicode != "none":
            text = normalize(text, "NFC" if self._clean.unicode == "NFC" else "NFKC")
        scrubbed = (0,) * len(scrub.KINDS)
        if self._scrub:
            text, scrubbed = scrub.scrub(text, self._scrub)
        return Cleaned(text, REASONS.index(self._reason(text)), scrubbed)

    def _reason(self, text: str) -> str:
        clean = self._clean
        if not text.strip():
            return "empty"
        if len(text) < clean.min_characters:
            return "short"
        if clean.max_characters and len(text) > clean.max_characters:
            return "long"
        if self._scripts and scripts.ratio(text, self._scripts) < clean.min_script_ratio:
            return "script"
        return "kept"


def normalize(text: str, form: Literal["NFC", "NFKC"]) -> str:
    """Normalize a text to a Unicode normal form, with line feeds as the only line breaks and without invisible characters."""
    text = _SPACES.sub(" ", _LINE_BREAKS.sub("\n", text))
    return unicodedata.normalize(form, _INVISIBLE.sub("", text))
