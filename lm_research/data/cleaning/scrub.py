"""Personal data and secrets in texts, replaced by [EMAIL], [PHONE], [IP], [CARD] and [KEY].

Patterns and check digits, no model: what looks like one of these goes, so that now and then a harmless number goes too;
names and addresses of people stay.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from lm_research.errors import ConfigError, suggest

KINDS = ("key", "email", "ip", "card", "phone")  # in the order in which they are looked for

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
# Looking back keeps the search linear: a run of such characters is entered at its start only.
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
    """The kinds of these names, or all of them for "all", in the order of KINDS.

    Raises:
      ConfigError: one is not known.
    """
    wanted = [name.strip().lower() for name in names]
    for name in wanted:
        if name not in (*KINDS, "all"):
            raise ConfigError(f"clean.redact_pii names {name!r}. {suggest(name, (*KINDS, 'all'))}")
    return tuple(kind for kind in KINDS if kind in wanted or "all" in wanted)


def scrub(text: str, kinds: tuple[str, ...]) -> tuple[str, tuple[int, ...]]:
    """The text with what it holds of `kinds` replaced, and how often each of KINDS was."""
    counts = dict.fromkeys(KINDS, 0)
    for kind in kinds:
        if not _MAY_HOLD[kind](text):
            continue
        pattern, is_one = _PATTERNS[kind]

        def replace(match: re.Match[str], kind: str = kind, is_one: Callable[[str], bool] = is_one) -> str:
            if not is_one(match[0]):
                return match[0]
            counts[kind] += 1
            return f"[{kind.upper()}]"

        text = pattern.sub(replace, text)
    return text, tuple(counts.values())


def _is_card(text: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, Luhn's sum) and digits stand in groups."""
    digits = [int(digit) for digit in text if digit.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _is_ip(text: str) -> bool:
    """Of texts without a dot: an IPv6 address that is not as short as 1::2, which may be anything."""
    if "." in text:
        return True
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return len(text) > 6 and text.count(":") > 2 and any(digit.isdigit() for digit in text)


def _is_phone(text: str) -> bool:
    """E.164 allows 15 digits; fewer than 8 are no whole number."""
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


# Quick looks that spare most texts the slower search.
_MAY_HOLD: dict[str, Callable[[str], bool]] = {
    "key": lambda text: any(mark in text for mark in _KEY_MARKS),
    "email": lambda text: "@" in text,
    "ip": _has_digit,
    "card": _has_digit,
    "phone": _has_digit,
}
