"""Registries find what is registered: in files of their package, in packages of users, and by hand."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lm_research.config import registries, resolve, variants
from lm_research.config.variants import Variants
from lm_research.errors import ConfigError

SHAPES = """
from lm_research.config.variants import Variants
SHAPES = Variants("shape", "{package}", chooser="kind")
"""
FILE = """
from {package} import SHAPES
@SHAPES.register("{name}")
def {name}():
    return "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Round:
    radius: float = 1.0


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package `shapes_here` with a registry, a file that registers one variant, one with two, and one with none."""
    name, before = "shapes_here", set(sys.modules)
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(SHAPES.format(package=name))
    (folder / "circle.py").write_text(FILE.format(package=name, name="circle"))
    (folder / "boxes.py").write_text("".join(FILE.format(package=name, name=box) for box in ("square", "cube")))
    (folder / "helpers.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for module in set(sys.modules) - before:
        del sys.modules[module]


def shapes(package: str) -> Variants:
    return __import__(package).SHAPES


def test_a_file_of_the_package_is_found_without_a_list_and_imported_only_on_request(package: str) -> None:
    assert shapes(package).get("circle")() == "circle"
    assert f"{package}.boxes" not in sys.modules
    assert shapes(package).get("cube")() == "cube"  # registered by a file of another name
    assert shapes(package).names() == tuple(shapes(package)) == ("circle", "cube", "square")
    assert "cube" in shapes(package) and "helpers" not in shapes(package) and "globe" not in shapes(package)


def test_an_unknown_name_is_reported_with_the_nearest(package: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.shape\.kind is 'circel'\. Did you mean 'circle'\?"):
        shapes(package).get("circel")
    for odd in ("helpers", "../circle", "shapes_here.circle", "", "a b"):
        with pytest.raises(ConfigError, match="config.shape.kind is"):
            shapes(package).get(odd)


def test_settings_come_from_the_variant_or_the_base(package: str) -> None:
    registry = Variants("shape", package, base=object)
    registry.register("ring", Round)(len)
    registry.register("dot")(len)
    assert registry.settings("ring") is Round and registry.settings("dot") is object


def test_a_name_belongs_to_one_module(package: str) -> None:
    with pytest.raises(
        ConfigError, match=r"'circle' is registered twice: by shapes_here\.circle and by .*test_variants"
    ):
        shapes(package).get("circle") and shapes(package).register("circle")(len)
    registry = Variants("shape", package)
    assert registry.register("own")(len) is len and registry.register("own")(max) is max  # a file that is read again


@dataclasses.dataclass
class Entry:
    name: str
    module: str
    dist: None = None


def test_plug_ins_are_imported_by_their_entry_points(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_shapes.py").write_text(FILE.format(package=package, name="star"))
    asked = []
    monkeypatch.setattr(
        variants.importlib.metadata, "entry_points", lambda group: asked.append(group) or [Entry("x", "their_shapes")]
    )
    variants.import_entry_points.cache_clear()
    assert shapes(package).get("star")() == "star" and shapes(package).get("circle")
    assert asked == ["lm_research.plugins"]
    variants.import_entry_points.cache_clear()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No module named 'broken_plugin'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("x = (", "SyntaxError"),
        ("from lm_research.errors import DataError\nraise DataError('Their own words.')", "Their own words."),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_a_user_error(
    text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    if text:
        (tmp_path / "broken_plugin.py").write_text(text)
    with pytest.raises(ConfigError, match="config.plugins names 'broken_plugin', which cannot be imported") as caught:
        variants.import_plugins(["broken_plugin"])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "registry", [registries.OBJECTIVES, registries.OPTIMIZERS, registries.SCHEDULES], ids=lambda r: r.section
)
def test_built_in_variants_are_complete(registry: Variants) -> None:
    """The names used in the README and in stored runs."""
    ours = {
        "objective": (
            "causal_lm",
            "denoising",
            "masked_lm",
            "prefix_lm",
            "replaced_token",
            "seq2seq",
            "span_corruption",
        ),
        "optimizer": ("adafactor", "adamw", "lamb", "lion", "muon", "sgd"),
        "schedule": ("constant", "cosine", "inverse_sqrt", "linear", "polynomial", "wsd"),
    }
    assert registry.names() == ours[registry.section]


@pytest.mark.parametrize(
    "code, said",
    [
        ("raise SystemExit(0)", "SystemExit: 0 at"),
        ("1 / 0", "division by zero at"),
        ("OPTIMIZERS.register(3)", "a name must be a non-empty string"),
        ("OPTIMIZERS.register('broken_one', 3)", "must be a subclass of OptimizerConfig"),
        (
            "class Own(OptimizerConfig):\n    rate: float = key(0.5, 'r.')\nOPTIMIZERS.register('broken_one', Own)",
            "not a dataclass",
        ),
        (
            "@dataclasses.dataclass(frozen=True)\nclass Own(OptimizerConfig):\n    check: float = key(0.5, 'c.')\n"
            "OPTIMIZERS.register('broken_one', Own)",
            "have a key 'check'",
        ),
    ],
)
def test_an_invalid_plug_in_is_reported_in_one_sentence(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "import dataclasses\nfrom lm_research.config import OptimizerConfig, key\nfrom lm_research.config.registries import OPTIMIZERS\n"
    (tmp_path / "a_broken_plug_in.py").write_text(head + code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match="config.plugins names 'a_broken_plug_in', which cannot be imported"
    ) as caught:
        resolve({"plugins": ["a_broken_plug_in"]})
    assert said in str(caught.value)
