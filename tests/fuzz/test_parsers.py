"""Every parser on corrupted files: what it cannot use it refuses with a UserError, quickly and in little memory.

A few dozen inputs of each are in the default run, the same ones each time. `pytest tests/fuzz -m fuzz` draws new ones for an hour
(FUZZ_SECONDS sets how long, for all parsers together) and keeps those that fail in .hypothesis/, which the next run tries first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import time
from typing import Any
from unittest import mock

import corpus
import guard
import parsers
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import ODD, spoilt_bytes, spoilt_json

from lm_research import cli
from lm_research.errors import UserError

PARSERS = parsers.PARSERS
SECONDS = float(os.environ.get("FUZZ_SECONDS", 3600))
HEALTH = list(HealthCheck)


@pytest.fixture(scope="module", autouse=True)
def quiet(bert_run: pathlib.Path) -> Any:
    """Warnings about the damage would fill gigabytes."""
    parsers.RUN["bert"] = bert_run
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


def read(parser: parsers.Parser, folder: pathlib.Path, victim: str, data: bytes) -> bool:
    """Read a folder with one corrupted file; return whether a UserError refused it. Any other exception fails the test."""
    path, good = folder / victim, parser.files()[victim]
    path.write_bytes(data)
    try:
        with guard.limited():
            parser.read(folder)
    except UserError as error:
        message = str(error)
        assert message.strip() and len(message) < 5000, message[:200]
        return True
    finally:
        path.write_bytes(good)
    return False


def spoilt(parser: parsers.Parser) -> st.SearchStrategy[tuple[str, bytes]]:
    def of(victim: str) -> st.SearchStrategy[tuple[str, bytes]]:
        good = parser.files()[victim]
        kinds = [spoilt_bytes(good)] + [spoilt_json(good)] * (3 if victim.endswith(".json") else 0)
        return st.tuples(st.just(victim), st.one_of(kinds))

    return st.sampled_from(parser.victims).flatmap(of)


def write(parser: parsers.Parser, folder: pathlib.Path) -> pathlib.Path:
    for name, data in parser.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_valid_files_are_read(parser: parsers.Parser, tmp_path: pathlib.Path) -> None:
    parser.read(write(parser, tmp_path))


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_corrupted_files(parser: parsers.Parser, tmp_path: pathlib.Path) -> None:
    write(parser, tmp_path)

    @settings(
        max_examples=parser.examples, derandomize=True, database=None, deadline=None, suppress_health_check=HEALTH
    )
    @given(spoilt(parser))
    def trial(case: tuple[str, bytes]) -> None:
        read(parser, tmp_path, *case)

    trial()


@pytest.mark.parametrize("case", corpus.CASES, ids=lambda case: case.name)
def test_inputs_that_once_failed(case: corpus.Case, tmp_path: pathlib.Path) -> None:
    parser = next(parser for parser in PARSERS if parser.name == case.parser)
    refused = read(parser, write(parser, tmp_path), case.victim, case.data())
    assert refused or parser.skips


@pytest.mark.fuzz
@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_corrupted_files_for_an_hour(parser: parsers.Parser, tmp_path: pathlib.Path) -> None:
    write(parser, tmp_path)
    end, tried = time.monotonic() + SECONDS / len(PARSERS), 0

    @settings(
        max_examples=200,
        deadline=None,
        suppress_health_check=HEALTH,
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
    )
    @given(spoilt(parser))
    def trial(case: tuple[str, bytes]) -> None:
        nonlocal tried
        tried += 1
        read(parser, tmp_path, *case)

    while time.monotonic() < end:
        trial()
    print(f"{parser.name}: {tried} inputs")


FLAGS = (
    "--config",
    "--workdir",
    "--config.train.num_steps",
    "--config.model.hidden_size",
    "--config.optimizer.learning_rate",
    "--noconfig.debug",
    "--config.data.path",
    "--config",
    "--debug",
    "--help",
    "-",
    "--",
    "--config.",
    "--config.a.b",
    "config.train.num_steps",
    "--num_processes",
)


@settings(max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=HEALTH)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(FLAGS), st.sampled_from(("", "=", " ")), st.sampled_from(ODD).map(str) | st.text(max_size=8)
        ),
        max_size=4,
    )
)
def test_command_lines(parts: list[tuple[str, str, str]]) -> None:
    argv = ["--config=configs/quickstart.py", "--workdir=/tmp/none"]
    for flag, how, value in parts:
        argv += [flag, value] if how == " " else [f"{flag}{how}{value if how else ''}"]
    with guard.limited(), contextlib.suppress(UserError), mock.patch.dict(os.environ):
        cli.parse(argv)
