"""Broken configs, flags and values: each ends with exit code 2 and one paragraph that names the culprit and the fix."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lm_research import cli
from lm_research.config import Config

ROOT = Path(__file__).resolve().parents[1]
HEAD = "from lm_research.config import default_config\ndef get_config():\n    config = default_config()\n"
TAIL = "    return config\n"


@dataclasses.dataclass
class Case:
    """What is broken: a config file's text, or flags; and the words that the paragraph must contain."""

    name: str
    words: tuple[str, ...]
    file: str | None = None
    json: str | None = None
    config: str = ""
    flags: tuple[str, ...] = ()


def setting(line: str) -> str:
    """A config file with `line` on its fourth line."""
    return f"{HEAD}    {line}\n{TAIL}"


FILES = [
    Case("syntax", ("bad.py, line 4", "Fix"), file=setting("config.seed = = 3")),
    Case("indentation", ("bad.py, line 2", "Fix"), file="def get_config():\nreturn 3\n"),
    Case("exception", ("bad.py, line 4", "ZeroDivisionError"), file=setting("config.seed = 1 // 0")),
    Case(
        "exception in a helper", ("bad.py, line 2: `int('x')` raised ValueError",), file="def f():\n    int('x')\nf()\n"
    ),
    Case("unknown module", ("bad.py, line 1", "No module named 'nowhere'"), file="import nowhere\n"),
    Case("undefined name", ("bad.py, line 4", "NameError"), file=setting("config.seed = sede")),
    Case("exits", ("bad.py, line 2", "SystemExit"), file="import sys\nsys.exit(3)\n"),
    Case("no get_config", ("bad.py", "no get_config()", "Add `def get_config():`"), file="config = 3\n"),
    Case("get_config is no function", ("bad.py", "no get_config()"), file="get_config = 3\n"),
    Case("no return", ("bad.py", "NoneType", "`return config`"), file=HEAD),
    Case("returns a dict", ("bad.py", "dict", "default_config()"), file="def get_config():\n    return {}\n"),
    Case("argument not taken", ("bad.py", "takes no argument", "'big'"), file=HEAD + TAIL, config="bad.py:big"),
    Case("argument needed", ("bad.py:ARG",), file=HEAD.replace("()", "(size)", 1) + TAIL),
    Case("misspelt key", ("bad.py", "train.num_stepz", "'num_steps'"), file=setting("config.train.num_stepz = 3")),
    Case("misspelt section", ("bad.py", "trian", "'train.num_steps'"), file=setting("config.trian.num_steps = 3")),
    Case("key at the top", ("bad.py", "num_steps", "'train.num_steps'"), file=setting("config.num_steps = 3")),
    Case("misspelt in update", ("bad.py", "num_stepz", "num_steps"), file=setting("config.train.update(num_stepz=3)")),
    Case("wrong type", ("bad.py, line 4", "train.num_steps", "int"), file=setting("config.train.num_steps = 'many'")),
    Case("fraction of a step", ("bad.py, line 4", "train.num_steps"), file=setting("config.train.num_steps = 1.5")),
    Case("None", ("bad.py", "data.source", "str"), file=setting("config.data.source = None")),
    Case("bool for a number", ("bad.py", "seed", "int"), file=setting("config.seed = True")),
    Case("section as value", ("bad.py, line 4", "config.train is a section"), file=setting("config.train = 3")),
    Case("empty file", ("bad.py", "no get_config()"), file=""),
    Case("not JSON", ("config.json", "line 2", "Fix"), json='{"seed": 3,\n}', config="config.json"),
    Case("JSON list", ("config.json", "expected object"), json="[]", config="config.json"),
    Case("JSON key", ("config.json", "num_stepz", "'num_steps'"), json='{"train": {"num_stepz": 3}}', config="."),
    Case("JSON type", ("config.json", "seed", "int"), json='{"seed": "3"}', config="config.json"),
    Case("JSON seed as object", ("config.json", "seed"), json='{"seed": {}}', config="config.json"),
    Case("JSON with argument", ("config.json:big", "Remove"), json="{}", config="config.json:big"),
    Case("JSON too deep", ("config.json", "nested"), json="[" * 100_000, config="config.json"),
    Case(
        "JSON too deep in a key",
        ("config.json", "nested"),
        json='{"seed": ' + '{"a":' * 500 + "1" + "}" * 501,
        config=".",
    ),
    Case("JSON with digits", ("config.json",), json='{"seed": ' + "9" * 5000 + "}", config="."),
    Case(
        "JSON integer as a rate",
        ("learning_rate",),
        json='{"optimizer": {"learning_rate": 1' + "0" * 400 + "}}",
        config=".",
    ),
    Case("Python too deep", ("bad.py",), file="(" * 5000 + ")" * 5000),
    Case("Python with a NUL", ("bad.py",), file="x = 1\0"),
    Case("JSON NaN", ("learning_rate", "finite"), json='{"optimizer": {"learning_rate": NaN}}', config="."),
]

PLACES = [
    Case("missing file", ("nosuch.py",), config="nosuch.py"),
    Case("nearly right name", ("bert_bse.py", "Did you mean", "bert_base.py"), config=f"{ROOT}/configs/bert_bse.py"),
    Case("forgotten suffix", ("configs/bert_base", "Did you mean", "bert_base.py"), config=f"{ROOT}/configs/bert_base"),
    Case("directory of configs", ("configs", "bert_base.py"), config=f"{ROOT}/configs"),
    Case("empty directory", ("config.json", "directory"), config="."),
    Case("other suffix", ("note.txt", ".py"), config="note.txt"),
    Case("empty", ("--config is empty",), config="", flags=("--config=",)),
    Case("name too long", ("--config", "255 bytes"), config="x" * 300 + ".py"),
    Case("name too long, with an argument", ("--config", "255 bytes"), config="x" * 300 + ".py:a"),
    Case("path too long", ("--config", "4095"), config="x/" * 3000 + "a.py"),
    Case("NUL", ("--config", "NUL"), config="a\0.py"),
    Case("no UTF-8", ("UTF-8",), config="a\udcff.py"),
    Case("home of nobody", ("--config", "home directory"), config="~nobody_of_this_name/a.py"),
    Case("a device", ("/dev/null", "a device"), config="/dev/null"),
    Case("unknown variant", ("quickstart.py", "'gtp'", "'gpt'"), config=f"{ROOT}/configs/quickstart.py:gtp"),
]


def flags(name: str, words: tuple[str, ...], *argv: str) -> Case:
    return Case(name, words, config=f"{ROOT}/configs/quickstart.py", flags=argv)


FLAGS = [
    flags("misspelt override", ("train.num_step", "'num_steps'"), "--config.train.num_step=3"),
    flags("override of a wrong section", ("model.num_steps", "model"), "--config.model.num_steps=3"),
    flags("override of a section", ("config.model is a section",), "--config.model=bert"),
    flags("override without section", ("num_steps", "'train.num_steps'"), "--config.num_steps=3"),
    flags("forgotten config.", ("--config.train.num_steps",), "--train.num_steps=3"),
    flags("key alone", ("--config.train.num_steps",), "--num_steps=3"),
    flags("misspelt flag", ("--wrkdir", "'--workdir'"), "--wrkdir=x"),
    flags("absl's own flags", ("--flagfile", "not a flag"), "--flagfile=x"),
    flags("no dashes", ("'config.seed=3'", "--config.seed=3"), "config.seed=3"),
    flags("stray word", ("'fast'", "--help"), "fast"),
    flags("stray config file", ("--config=other.py",), "other.py"),
    flags("value missing at the end", ("--config.train.num_steps", "optimizer steps"), "--config.train.num_steps"),
    flags("value missing", ("--config.seed", "needs a value"), "--config.seed", "--config.train.num_steps=3"),
    flags("no for a number", ("--noconfig.seed", "--config.seed=VALUE"), "--noconfig.seed"),
    flags("text for a number", ("train.num_steps=many", "int", "optimizer steps"), "--config.train.num_steps=many"),
    flags("exponent for a whole number", ("num_steps=1e5", "Write 100000"), "--config.train.num_steps=1e5"),
    flags("infinite whole number", ("num_steps=inf", "int"), "--config.train.num_steps=inf"),
    flags("text for a rate", ("learning_rate=fast", "float"), "--config.optimizer.learning_rate=fast"),
    flags("text for a switch", ("scan_layers=maybe", "true or false"), "--config.model.scan_layers=maybe"),
    flags("digits", ("num_steps=999", "int"), f"--config.train.num_steps={'9' * 5000}"),
    flags("superscript", ("num_steps=²", "int"), "--config.train.num_steps=²"),
    flags("large number", ("learning_rate", "finite"), "--config.optimizer.learning_rate=1e400"),
    flags("large width", ("model.hidden_size", "1048576"), f"--config.model.hidden_size={2**40}"),
    flags("long text", ("characters",), f"--config.task.labels={'a,' * 600_000}"),
    flags("path with a NUL", ("config.data.source", "NUL"), "--config.data.source=a\0b"),
    flags("text that is none", ("UTF-8",), "--config.task.prompt=a\udcffb"),
    flags("long unknown flag", ("is not a flag",), f"--{'x' * 100_000}=3"),
    flags("empty number", ("--config.seed=", "int"), "--config.seed="),
    flags("infinite rate", ("learning_rate", "finite"), "--config.optimizer.learning_rate=inf"),
    flags("negative", ("train.batch_size", "at least 1"), "--config.train.batch_size=-8"),
    flags("negative after a space", ("train.batch_size", "at least 1"), "--config.train.batch_size", "-8"),
    flags("too large", ("dropout_rate", "0.99"), "--config.model.dropout_rate=1.5"),
    flags("seed too large", ("seed", "2147483647"), f"--config.seed={2**31}"),
    flags("unknown choice", ("schedule.name", "'cosine'"), "--config.schedule.name=cosin"),
    flags("far from any choice", ("model.dtype", "bfloat16, float32"), "--config.model.dtype=int8"),
    flags("heads do not divide", ("num_heads=3", "multiple"), "--config.model.num_heads=3"),
    flags("examples too long", ("model.max_length", "--config.model.max_length=4096"), "--config.data.max_length=4096"),
    flags("accumulation does not divide", ("accumulation_steps=5", "multiple"), "--config.train.accumulation_steps=5"),
    flags("two warm-ups", ("warmup_steps", "warmup_ratio"), "--config.schedule.warmup_steps=5"),
    flags("profile", ("profile.steps", "FIRST-LAST"), "--config.profile.steps=ten"),
    flags("two configs", ("--config is given 2 times",), "--config=other.py"),
    flags("two workdirs", ("--workdir is given 2 times",), "--workdir=other"),
]

WORKDIRS = [
    ("missing", None, "--workdir is missing"),
    ("empty", "", "--workdir is empty"),
    ("a file", "note.txt", "is a file"),
    ("below a file", "note.txt/run", "is a file"),
    ("another cloud", "az://container/run", "Mount it"),
    ("no bucket", "gs:///run", "names no bucket"),
    ("long", "x" * 256, "255 bytes"),
    ("long path", "x/" * 2050, "4095"),
    ("NUL", "a\0b", "NUL"),
    ("no UTF-8", "a\udcff", "UTF-8"),
    ("home of nobody", "~nobody_of_this_name/run", "home directory"),
    ("a device", "/dev/null", "is a file"),
]


def one_paragraph(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    def main(config: Config, workdir: Path) -> int:
        raise AssertionError("main must not run")

    assert cli.call(main, argv, command="train", summary="") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert "Traceback" not in err
    assert 30 < len(err) < 500
    return err


@pytest.mark.parametrize("case", FILES + PLACES + FLAGS, ids=lambda case: case.name)
def test_broken(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("hello")
    if case.file is not None:
        Path("bad.py").write_text(case.file)
    if case.json is not None:
        Path("config.json").write_text(case.json)
    config = case.config or ("bad.py" if case.file is not None else "")
    argv = [*([f"--config={config}"] if config else []), "--workdir=run", *case.flags]
    error = one_paragraph(argv, capsys)
    for word in case.words:
        assert word in error
    assert not Path("run").exists()


@pytest.mark.parametrize(("name", "workdir", "words"), WORKDIRS, ids=[name for name, _, _ in WORKDIRS])
def test_broken_workdir(
    name: str,
    workdir: str | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("hello")
    argv = [f"--config={ROOT}/configs/quickstart.py", *([] if workdir is None else [f"--workdir={workdir}"])]
    assert words in one_paragraph(argv, capsys)


def test_missing_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config=configs/quickstart.py" in one_paragraph(["--workdir=run"], capsys)


def test_binary_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.py"
    path.write_bytes(b"\xff\xfe\x00seed")
    assert "UTF-8" in one_paragraph([f"--config={path}", f"--workdir={tmp_path}"], capsys)


def test_error_in_an_imported_config_names_that_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "base.py").write_text(setting("config.train.num_steps = 'many'"))
    (folder / "mine.py").write_text("from configs.base import get_config\n")
    error = one_paragraph([f"--config={folder}/mine.py", f"--workdir={tmp_path}"], capsys)
    assert f"{folder}/base.py, line 4" in error
