"""The packages of lm_research keep their layers: which may import which, and which may refer to a family by name."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lm_research"

# Lowest layer first. A file imports from its own package and from lower layers; packages of one layer do not import each other.
FLOORS = (
    {"common", "trees"},
    {"config"},
    {"parallel", "tokenizers"},
    {"data", "models", "metrics"},
    {"interop", "objectives", "decoding"},
    {"training", "tasks", "pretrained"},
    {"run", "pipelines", "analysis"},
    {"planning", "sweeping", "evaluation", "reporting", "serving"},
    {
        "train",
        "evaluate",
        "generate",
        "predict",
        "serve",
        "prepare",
        "convert",
        "plan",
        "compare",
        "report",
        "port_check",
    },
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Stricter than the layers: the commands' shared interface stays light, and parallel/ would bring jax into data/.
ONLY = {
    "cli": {"common", "config"},
    "tokenizers": {"common", "config"},
    "data": {"common", "config", "tokenizers"},
}
FORBIDDEN_OUTSIDE = {"torch", "transformers", "tensorflow"}
DEVICE_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax"}
KNOWS_FAMILIES = {PACKAGE / "models" / "families", PACKAGE / "interop"}

# Objects of other libraries whose members come and go, and private names that have no public twin; a member of ours is declared.
PROBES = {
    "common/disk.py": {"id(error)"},  # which errors a chain has shown
    "common/documents.py": {"id(node)"},  # the ancestors of a node
    "config/loading.py": {
        "module.__dict__",
        "getattr(module, 'get_config', None)",
        "getattr(sys.modules[name], '__file__', None)",
    },
    "data/sources/tfds_source.py": {
        "getattr(value, 'ndim', 1)",
        "hasattr(value, 'item')",
        "getattr(builder, 'url_infos', None)",
    },
    "data/workers.py": {"hasattr(os, 'sched_getaffinity')"},
    "decoding/generation_config.py": {
        "hasattr(value, 'tolist')",
        "getattr(value, 'ndim', 0)",
        "getattr(value, 'ndim', None)",
    },
    "decoding/generation_request.py": {"hasattr(tokens, '__len__')"},
    "errors.py": {"getattr(sys.modules['__main__'], '__spec__', None)"},
    "metrics/texts.py": {
        "_bleu()._compute_score_from_stats",
        "_bleu(bleu_tokenizer)._extract_corpus_statistics",
        "_chrf()._compute_score_from_stats",
        "_chrf()._extract_corpus_statistics",
    },
    "parallel/mesh.py": {
        "getattr(device, 'slice_index', None)",
        "getattr(devices[0], 'slice_index', None)",
    },  # TPUs only
    "parallel/peers.py": {
        "distributed._jax",
        "library._ZSt13set_terminatePFvvE",
        "library.__cxa_current_exception_type",
    },
    "run/goodput.py": {"getattr(sys.modules['__main__'], '__spec__', None)"},
    "run/trackers/mlflow.py": {"getattr(error, 'error_code', '')"},
    "sweeping/study.py": {"old._trial_id", "trial._trial_id", "self.study._storage"},
    "tokenizers/template_sandbox.py": {"hasattr(function, 'jinja_pass_arg')"},
}
PUBLIC = {"_replace", "_asdict", "_fields"}  # of named tuples

SOURCES = sorted(PACKAGE.rglob("*.py"))
# Goldens are made once by scripts that run the other implementation; tests do not import them.
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith(("make_", "references")))


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a file of `package`, including those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room_of(path: Path) -> str:
    if path == PACKAGE / "interop" / "lm_eval.py":  # an adapter of the whole library for another program
        return "evaluate"
    if path == PACKAGE / "errors.py":  # exceptions for users, at the top level; they belong to the lowest layer
        return "common"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def may_import(room: str, other: str) -> bool:
    if room == other:
        return True
    if room in ONLY:
        return other in ONLY[room]
    if other == "cli":  # next to the commands, which do not import each other
        return FLOOR[room] == len(FLOORS) - 1
    return FLOOR[other] < FLOOR[room]


def strangers(path: Path, tree: ast.AST) -> list[str]:
    """Imports in a file of lm_research that its package may not have."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    room, found = room_of(path), []
    for line, module in imports(tree, package):
        parts = module.split(".")
        if parts[0] in FORBIDDEN_OUTSIDE or (room == "data" and parts[0] in DEVICE_LIBRARIES):
            found.append(f"{path.name}:{line} imports {module}")
        if parts[0] == "lm_research" and len(parts) > 1 and not parts[1].startswith("__"):
            parts[1] = "common" if parts[1] == "errors" else parts[1]
            assert parts[1] in FLOOR.keys() | {"cli"}, f"{path.name}:{line}: {parts[1]} has no floor; see FLOORS"
            if room != "__init__" and not may_import(room, parts[1]):
                found.append(f"{path.name}:{line} imports {module}: {room} is not above {parts[1]}")
            if room == "__init__" and parts[1:3] != [
                "common",
                "interrupts",
            ]:  # which only commands import, before anything else
                found.append(f"{path.name}:{line}: importing lm_research must stay light, it imports {module}")
    return found


def names_families(tree: ast.AST, families: set[str]) -> list[int]:
    """Lines that test a value against a family's name: ==, in, match, startswith, or the keys of a table."""
    tested: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            tested += [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "endswith"):
            tested += node.args
        elif isinstance(node, ast.match_case):
            tested.append(node.pattern)
        elif isinstance(node, ast.Dict):
            tested += [key for key in node.keys if isinstance(key, ast.Constant)]
    constants = (inner for node in tested for inner in ast.walk(node) if isinstance(inner, ast.Constant))
    return [inner.lineno for inner in constants if isinstance(inner.value, str) and inner.value.lower() in families]


def probes(tree: ast.AST) -> set[str]:
    """Probes in the code: attributes that an object may lack, identification by id, and reads of another object's private members.

    Names of the standard library and of other packages are exempt; `_replace`, `_asdict` and `_fields` are public.
    """
    found: set[str] = set()
    modules = {
        alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            literal = node.func.id in ("getattr", "setattr") and isinstance(node.args[1], ast.Constant)
            if literal or node.func.id in ("hasattr", "id"):
                found.add(ast.unparse(node))
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            private = node.attr.startswith("_") and not node.attr.endswith("__") and node.attr not in PUBLIC
            if node.attr == "__dict__" or (
                private and owner not in {"self", "cls", "super()"} | modules - {"lm_research"}
            ):
                found.add(ast.unparse(node))
    return found


@functools.cache
def families() -> set[str]:
    texts = [path.read_text(encoding="utf-8") for path in (PACKAGE / "models" / "families").glob("*.py")]
    known = {name for text in texts for name in re.findall(r'FAMILIES\.register\("(\w+)"', text)}
    return known | {"bert", "gpt", "gpt2", "roberta", "xlmr", "xlm_roberta", "t5", "bart", "mbart"}


def test_every_package_has_a_layer() -> None:
    rooms = {room_of(path) for path in SOURCES} - {"__init__"}
    assert rooms <= FLOOR.keys() | {"cli"}, "a new room: give it a floor here and in docs/architecture.md"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file(path: Path) -> None:
    """It imports only from lower layers, names families only where they are described, and probes no objects."""
    tree, name = ast.parse(path.read_bytes()), str(path.relative_to(PACKAGE))
    assert strangers(path, tree) == []
    if not KNOWS_FAMILIES & set(path.parents):
        assert names_families(tree, families()) == [], "say it through the family's Architecture instead"
    found = probes(tree)
    assert found - PROBES.get(name, set()) == set(), "declare it where the class is"
    assert PROBES.get(name, set()) - found == set(), "no longer there: take it out of PROBES"


def test_tests_need_no_other_framework() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in TESTS}
    found = [
        f"{path.name}:{line} {module}"
        for path, text in texts.items()
        if any(name in text for name in FORBIDDEN_OUTSIDE)
        for line, module in imports(ast.parse(text), "tests")
        if module.split(".")[0] in FORBIDDEN_OUTSIDE
    ]
    assert found == []


@pytest.mark.parametrize(
    ("room", "statement", "wrong"),
    [
        ("data/x.py", "import jax.numpy as jnp", True),
        ("data/x.py", "def f():\n    from flax import nnx", True),
        ("data/x.py", "from lm_research.parallel import mesh", True),
        ("data/x.py", "from lm_research.models import layers", True),
        ("data/x.py", "from ..models import layers", True),
        ("data/x.py", "from . import store", False),
        ("data/x.py", "from lm_research import errors", False),
        ("models/x.py", "from lm_research import data", True),
        ("models/families/x.py", "from ...objectives import masked_lm", True),
        ("models/x.py", "import jax", False),
        ("parallel/x.py", "from lm_research.models.layers import Dense", True),
        ("objectives/x.py", "from lm_research.data.store import Store", False),
        ("training/x.py", "import lm_research.train", True),
        ("training/x.py", "import transformers", True),
        ("training/x.py", "import tensorflow_datasets", False),
        ("config.py", "from lm_research.data import store", True),
        ("train.py", "from lm_research import cli", False),
        ("train.py", "from lm_research import compare", True),
        ("cli.py", "from lm_research import training", True),
        ("training/x.py", "from lm_research import cli", True),
    ],
)
def test_the_rule_itself(room: str, statement: str, wrong: bool) -> None:
    assert bool(strangers(PACKAGE / room, ast.parse(statement))) == wrong


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("if family == 'bert': pass", True),
        ("if family in ('gpt2', 'other'): pass", True),
        ("if family.startswith('gpt'): pass", True),
        ("match family:\n    case 'bert': pass", True),
        ("table = {'t5': 1}", True),
        ("family: str = 'bert'", False),
        ("if name == 'masked_lm': pass", False),
    ],
)
def test_the_rule_on_family_names_itself(code: str, wrong: bool) -> None:
    assert bool(names_families(ast.parse(code), families())) == wrong


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("getattr(x, 'size', 0)", True),
        ("getattr(x, name)", False),
        ("hasattr(x, name)", True),
        ("setattr(x, 'size', 1)", True),
        ("seen[id(x)]", True),
        ("x.__dict__['size']", True),
        ("x._size", True),
        ("self.x._size", True),
        ("self._size + cls._size + super()._size()", False),
        ("import os\nos._exit(1)", False),
        ("type(x).__name__", False),
        ("row._replace(size=1)", False),
    ],
)
def test_the_rule_on_probing_itself(code: str, wrong: bool) -> None:
    assert bool(probes(ast.parse(code))) == wrong


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def test_importing_the_package_is_light() -> None:
    heavy = ["jax", "flax", "numpy", "optax", "orbax", "grain", "tensorflow_datasets", "sentencepiece", "absl"]
    assert run_python(f"import sys, lm_research; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_the_api_and_compare_do_not_import_jax() -> None:
    code = "import sys, lm_research.cli, lm_research.compare; print([m for m in ('jax', 'numpy') if m in sys.modules])"
    assert run_python(code) == "[]"


def test_data_can_be_read_without_importing_jax() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((PACKAGE / "data").rglob("*.py"))
    ]
    # Only our own modules are looked at: other libraries may import jax.
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
ours = {{m.split('.')[1] for m in sys.modules if m.startswith('lm_research.')}}
print(sorted(ours - {{'data', 'tokenizers', 'common', 'errors', 'config'}}))
"""
    assert run_python(code) == "[]"
