"""Redaction: replaces personal data and secrets in texts by [EMAIL], [PHONE], [IP], [CARD] and [KEY].

It uses patterns and check digits, not a model. So it occasionally replaces a harmless number,
and it keeps names and postal addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from lm_research.errors import ConfigError, suggest

KINDS = ("key", "email", "ip", "card", "phone")  # in search order

_KEY = re.compile(
    r"-----BEGIN (?P<kind>[A-Z ]{0,20})PRIVATE KEY-----.*?-----END (?P=kind)PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # Amazon
    r"|\bAIza[0-9A-Za-z_-]{35}"  # Google
    r"|\bgh[pousr]_[0-9A-Za-z]{36,}|\bgithub_pat_[0-9A-Za-z_]{22,}|\bglpat-[0-9A-Za-z_-]{20,}"
    r"|\bsk-[0-9A-Za-z_-]{20,}|\bhf_[0-9A-Za-z]{30,}|\bxox[abeprs]-[0-9A-Za-z-]{10,}"
    r"|\beyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}",  # JSON web token
    re.DOTALL,
)
_KEY_MARKS = ("PRIVATE KEY", "AKIA", "ASIA", "AIza", "gh", "glpat-", "sk-", "hf_", "xox", "eyJ")
# The lookbehind keeps the search linear: a run of such characters is tried only at its start.
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IP = re.compile(
    rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.\d)"
    r"|(?<![\w:.])[0-9A-Fa-f:]{2,39}(?![\w:])",
    re.ASCII,
)
_CARD = re.compile(r"(?<![\w-])[2-6](?:[ -]?\d){12,18}(?![\w-])", re.ASCII)
_PHONE = re.compile(
    r"(?<![\w+])(?:\+|00)[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,4}\)?){2,6}(?!\w)"  # +44 20 7946 0958
    r"|(?<![\w.-])(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])"  # (555) 010-9999
    r"|(?<![\w.-])0\d{1,4}[ /-]\d{3,4}[ -]?\d{3,4}(?![\w-])",  # 03-1234-5678, 030 1234567
    re.ASCII,
)


def parse(names: tuple[str, ...]) -> tuple[str, ...]:
    """Normalize names of kinds, or "all", to the order of KINDS.

    Raises:
      ConfigError: a name is unknown.
    """
    requested = [name.strip().lower() for name in names]
    for name in requested:
        if name not in (*KINDS, "all"):
            raise ConfigError(f"clean.redact_pii names {name!r}. {suggest(name, (*KINDS, 'all'))}")
    return tuple(kind for kind in KINDS if kind in requested or "all" in requested)


def scrub(text: str, kinds: tuple[str, ...]) -> tuple[str, tuple[int, ...]]:
    """Replace data of `kinds` in a text; returns the text and the number of replacements for each of KINDS."""
    counts = dict.fromkeys(KINDS, 0)
    for kind in kinds:
        if not _MAY_HOLD[kind](text):
            continue
        pattern, is_valid = _PATTERNS[kind]

        def replace(match: re.Match[str], kind: str = kind, is_valid: Callable[[str], bool] = is_valid) -> str:
            if not is_valid(match[0]):
                return match[0]
            counts[kind] += 1
            return f"[{kind.upper()}]"

        text = pattern.sub(replace, text)
    return text, tuple(counts.values())


def _is_card(text: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, Luhn algorithm)."""
    digits = [int(digit) for digit in text if digit.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_ip(text: str) -> bool:
    """Accept text with a dot, and IPv6 addresses except short ones such as 1::2, which are ambiguous."""
    if "." in text:
        return True
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return len(text) > 6 and text.count(":") > 2 and any(digit.isdigit() for digit in text)


def _is_phone(text: str) -> bool:
    """Accept 8 to 15 digits; E.164 allows up to 15, and fewer than 8 are not a complete number."""
    return 8 <= sum(digit.isdigit() for digit in text) <= 15


_PATTERNS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "key": (_KEY, lambda text: True),
    "email": (_EMAIL, lambda text: True),
    "ip": (_IP, _is_ip),
    "card": (_CARD, _is_card),
    "phone": (_PHONE, _is_phone),
}
_DIGIT = re.compile(r"[0-9]")


def _has_digit(text: str) -> bool:
    return _DIGIT.search(text) is not None


# Fast checks that avoid the slower search for most texts.
_MAY_HOLD: dict[str, Callable[[str], bool]] = {
    "key": lambda text: any(mark in text for mark in _KEY_MARKS),
    "email": lambda text: "@" in text,
    "ip": _has_digit,
    "card": _has_digit,
    "phone": _has_digit,
}
