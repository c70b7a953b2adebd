"""Personal data: what is removed, what stays. Numbers are documentation numbers (RFC 5737, RFC 3849, payment test cards)."""

from __future__ import annotations

import time

import pytest

from lm_research.data.cleaning import scrub as scrub_module
from lm_research.data.cleaning.scrub import KINDS, parse, scrub
from lm_research.errors import ConfigError


def clean(text: str) -> str:
    return scrub(text, KINDS)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+x@mail.example.co.uk, please.", "Write to [EMAIL], please."),
        ("<müller@bücher.example>", "<[EMAIL]>"),
        ("Call +44 20 7946 0958 or (555) 010-9999.", "Call [PHONE] or [PHONE]."),
        ("555-010-1234, 03-1234-5678, 030 12345678, 0049 30 901820", "[PHONE], [PHONE], [PHONE], [PHONE]"),
        ("host 192.0.2.17:80 and 2001:db8::8a2e:370:7334", "host [IP]:80 and [IP]"),
        ("card 4111 1111 1111 1111, 5500-0000-0000-0004, 378282246310005", "card [CARD], [CARD], [CARD]"),
        ("id AKIAIOSFODNN7EXAMPLE", "id [KEY]"),
        ("token=ghp_0123456789abcdefghijABCDEFGHIJ012345", "token=[KEY]"),
        ("sk-abcdefghijklmnopqrstuvwx", "[KEY]"),
        ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----\nb", "a\n[KEY]\nb"),
    ],
)
def test_what_is_removed(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "In 1999-2000 it cost 12,345.67 dollars.",
        "Chapter 3:16, verses 12:30:45.",
        "version 1.2.3 of 10.0",
        "4111 1111 1111 1112",  # the check digit is wrong
        "ISBN 978-3-16-148410-0",
        "999.999.999.999",
        "a @ b, user@host, @name",
        "std::vector<int> a::b",
        "born 2024-01-31, page 1234567",
        "ghost skis eyJust",
    ],
)
def test_what_stays(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.0.2.1", True),
        ("::1:2:3", True),
        ("1::2:3", False),  # six characters
        ("1:2::", False),
        ("2001:db8", False),  # no address
        ("2001:db8::", True),
        ("abcd::1", False),  # two colons, as in times and in names of C++
        ("2001:db8::1", True),
        ("abc:dead:beef::", False),  # without a digit it may be words
    ],
)
def test_addresses_of_ipv6_are_long(text: str, found: bool) -> None:
    assert scrub_module._is_ip(text) == found


@pytest.mark.parametrize(("digits", "found"), [(7, False), (8, True), (15, True), (16, False)])
def test_telephone_numbers_have_8_to_15_digits(digits: int, found: bool) -> None:
    assert scrub_module._is_phone("(" + "1" * digits + ") ") == found


def test_counts_by_kind() -> None:
    text, counts = scrub(
        "a@example.org b@example.org 192.0.2.1 4111111111111111 555-010-9999 AKIAIOSFODNN7EXAMPLE", KINDS
    )
    assert dict(zip(KINDS, counts, strict=True)) == {"key": 1, "email": 2, "ip": 1, "card": 1, "phone": 1}
    assert text == "[EMAIL] [EMAIL] [IP] [CARD] [PHONE] [KEY]"


def test_keys_are_found_among_words_that_look_like_their_beginnings() -> None:
    text = " ".join(scrub_module._KEY_MARKS)
    assert clean(f"{text} AKIAIOSFODNN7EXAMPLE") == f"{text} [KEY]"


def test_only_the_requested_kinds() -> None:
    assert parse(("phone", "email")) == ("email", "phone") and parse(("all",)) == KINDS and parse(()) == ()
    assert scrub("a@example.org 192.0.2.1", parse(("ip",)))[0] == "a@example.org [IP]"
    with pytest.raises(ConfigError, match="clean.redact_pii names 'mail'.*Did you mean 'email'"):
        parse(("mail",))


def test_luhn_by_hand() -> None:
    """ISO/IEC 7812-1: of 4539 1488 0343 6467 every second digit from the right is doubled.

    8+5+6+9+2+4+7+8 + 0+3+8+3+3+4+6+7 = 80 (9s cast out), a multiple of 10.
    """
    assert clean("4539 1488 0343 6467") == "[CARD]" and clean("4539 1488 0343 6476") != "[CARD]"


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "1" * 200_000, "1 " * 100_000, "a.b-" * 50_000 + "@", ":" * 200_000, "(0)" * 60_000]
)
def test_no_text_takes_long(text: str) -> None:
    started = time.perf_counter()
    clean(text)
    assert time.perf_counter() - started < 5.0
