"""The files in which a model declares how its states become embeddings."""

from __future__ import annotations

import base64
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from starlette.testclient import TestClient

import lm_research
from lm_research import evaluate
from lm_research.errors import ConfigError, PretrainedError, UserError
from lm_research.interop.sentence_transformers import NATIVE, EmbeddingConfig, load, save
from lm_research.serving.app import make_app
from lm_research.tasks.embedding import init_embedding

GOLDEN = json.loads((pathlib.Path(__file__).parent / "sentence_goldens" / "sentences.json").read_text())
PROMPTED = EmbeddingConfig(
    "max",
    prompts={"query": "find: "},
    default_prompt_name="query",
    similarity="dot",
    include_prompt=False,
    truncate_dim=4,
)


def write(folder: pathlib.Path, case: dict[str, Any]) -> pathlib.Path:
    """Make the directory of a case: a tiny model and sentence-transformers' files."""
    files = {name: base64.b64decode(text) for name, text in GOLDEN["models"][case["base"]].items()}
    for name, number in case["files"].items():
        text = GOLDEN["contents"][number]
        files[name.removesuffix(".64")] = base64.b64decode(text) if name.endswith(".64") else text.encode()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def case_named(name: str, base: str = "bert") -> dict[str, Any]:
    (found,) = (case for case in GOLDEN["cases"] if (case["name"], case["base"]) == (name, base))
    return found


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def cases() -> list[Any]:
    """Every case. By default each pooling is computed by one model, and the older spelling of the files is read with one of them."""
    later = {
        ("bert", f"{pooling}, old") for pooling in ("cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    }
    later |= {("llama", pooling) for pooling in ("cls", "max", "mean_sqrt_len_tokens", "weightedmean")}
    named = {(case["base"], case["name"]): case for case in GOLDEN["cases"]}
    assert later < named.keys()
    return [
        pytest.param(case, id=" ".join(key), marks=pytest.mark.slow if key in later else ())
        for key, case in named.items()
    ]


@pytest.mark.parametrize("case", cases())
def test_vectors_and_similarities_match_sentence_transformers(case: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """See sentence_goldens/make_goldens.py; the files are written back unchanged, and read again."""
    lm, texts = lm_research.from_pretrained(write(tmp_path / "a", case)), GOLDEN["texts"]
    for one in case["calls"]:
        call = dict(one["call"])
        normalize = {"normalize": call.pop("normalize_embeddings")} if "normalize_embeddings" in call else {}
        found = lm.embed(texts, **call, **normalize)
        np.testing.assert_allclose(found, unpacked(one["vectors"]).reshape(len(texts), -1), atol=2e-5)
        np.testing.assert_allclose(lm.similarity(found[:1], found[1:])[0], unpacked(one["alike"]), rtol=1e-4, atol=2e-5)
        if case["name"] == "usual prompt":
            asked = lm_research.pipeline("sentence-similarity", lm)
            alike = asked({"source_sentence": texts[0], "sentences": texts[1:]}, **call)
            np.testing.assert_allclose(alike, unpacked(one["alike"]), rtol=1e-4, atol=2e-5)
    lm.save_pretrained(tmp_path / "b")
    again = lm_research.from_pretrained(tmp_path / "b")
    assert again.embedding == lm.embedding
    if again.embedding.dense:
        np.testing.assert_allclose(again.embed(texts), lm.embed(texts), atol=1e-6)
    for name in case["files"]:
        if name != "tokenizer_config.json":
            content = (tmp_path / "a" / name.removesuffix(".64")).read_bytes()
            assert (tmp_path / "b" / name.removesuffix(".64")).read_bytes() == content, name


def test_the_server_puts_prompts_before_texts(tmp_path: pathlib.Path) -> None:
    case = case_named("usual prompt")
    lm, texts = lm_research.from_pretrained(write(tmp_path, case)), GOLDEN["texts"]
    client = TestClient(make_app(lm, "model"))
    for one in case["calls"]:
        answer = client.post("/v1/embeddings", json={"input": texts, **one["call"]}).json()
        found = [row["embedding"] for row in answer["data"]]
        np.testing.assert_allclose(found, unpacked(one["vectors"]).reshape(len(texts), -1), atol=2e-5)
        said = one["call"].get("prompt", lm.embedding.prompt(one["call"].get("prompt_name")))
        assert answer["usage"]["total_tokens"] == sum(len(lm.tokenizer.encode(said + text)) for text in texts)
    answer = client.post("/v1/embeddings", json={"input": texts, "prompt_name": "none"})
    assert answer.status_code == 400 and "no prompt named 'none'" in answer.json()["error"]["message"]
    ids = [[2, 5, 3]]
    np.testing.assert_allclose(lm.embed(ids), lm.embed(["a"], prompt=""), atol=1e-6)  # ids are read as they are
    with pytest.raises(UserError, match="a prompt can precede texts only"):
        lm.embed(ids, prompt_name="query")


@pytest.mark.parametrize(
    ("name", "base"),
    [("usual prompt", "bert"), ("skipped prompt", "bert"), ("skipped prompt", "llama"), ("cut", "bert")],
)
def test_evaluation_compares_as_the_files_declare(name: str, base: str, tmp_path: pathlib.Path) -> None:
    """Similarities of the first text and the others, with the default prompt before them."""
    model, texts, call = (
        write(tmp_path / "model", case_named(name, base)),
        GOLDEN["texts"],
        case_named(name, base)["calls"][0],
    )
    rows = [{"text": texts[0], "pair": text, "label": number / 4} for number, text in enumerate(texts[1:])]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "name": "pairs",
        "task": "embedding",
        "data": str(tmp_path / "pairs.jsonl"),
        "pair_key": "pair",
        "problem_type": "regression",
    }
    (tmp_path / "suite.json").write_text(json.dumps([task]))
    given = [f"--model={model}", f"--suite={tmp_path}/suite.json", f"--output={tmp_path}/out", "--resamples=5"]
    assert evaluate.main(given) == 0
    (file,) = (tmp_path / "out").rglob("*.jsonl")
    found = [json.loads(line)["prediction"] for line in file.read_text().splitlines()]
    np.testing.assert_allclose(found, unpacked(call["alike"]), rtol=1e-4, atol=2e-5)


def test_any_dense_layer_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="has a Dense module after the pooling"):
        init_embedding(str(write(tmp_path, case_named("dense"))))


def test_available_prompts() -> None:
    """sentence-transformers gives every model the names query and document."""
    assert EmbeddingConfig().prompt() == EmbeddingConfig().prompt("query") == EmbeddingConfig().prompt("document") == ""
    assert PROMPTED.prompt() == PROMPTED.prompt("query") == "find: "
    with pytest.raises(UserError, match="no prompt named 'passage' .*it has: query, document"):
        PROMPTED.prompt("passage")
    with pytest.raises(UserError, match="no prompt named 'lost'"):
        EmbeddingConfig(default_prompt_name="lost").prompt()


@pytest.mark.parametrize(
    "said",
    [
        EmbeddingConfig("mean", True, 256),
        EmbeddingConfig("cls", False),
        EmbeddingConfig("last", True, 32),
        EmbeddingConfig("mean+cls"),
        PROMPTED,
    ],
)
def test_round_trip(said: EmbeddingConfig, tmp_path: pathlib.Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / NATIVE).write_bytes(said.dumps())
    save(tmp_path, said, 8)
    assert load(tmp_path) == load(tmp_path / "plain") == said


def test_a_directory_without_these_files(tmp_path: pathlib.Path) -> None:
    assert load(tmp_path) is None


def written(folder: pathlib.Path, pooling: dict[str, Any], *kinds: str) -> pathlib.Path:
    """Make a directory as versions 2 to 5 of sentence-transformers write it."""
    kinds = ("Transformer", "Pooling", *kinds)
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}
        for path, kind in zip(paths, kinds, strict=True)
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


OLD = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}
POOLINGS = {  # how versions 2 to 5, and 6, write it -> what it is
    "cls": (OLD | {"pooling_mode_cls_token": True}, "cls"),
    "mean": (OLD | {"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
    "last": (OLD | {"pooling_mode_lasttoken": True}, "last"),
    "last, 6": ({"embedding_dimension": 8, "pooling_mode": "lasttoken", "include_prompt": True}, "last"),
    "mean, 6": ({"embedding_dimension": 8, "pooling_mode": "mean"}, "mean"),
    "max": (OLD | {"pooling_mode_max_tokens": True}, "max"),
    "two": (OLD | {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls+mean"),
    "two, 6": ({"embedding_dimension": 8, "pooling_mode": ["mean_sqrt_len_tokens", "lasttoken"]}, "mean_sqrt_len+last"),
    "another": ({"embedding_dimension": 8, "pooling_mode": "median"}, "median"),
}


@pytest.mark.parametrize("case", POOLINGS)
def test_pooling(case: str, tmp_path: pathlib.Path) -> None:
    config, expected = POOLINGS[case]
    said = load(written(tmp_path, config))
    assert said == EmbeddingConfig(expected, normalize=False)
    assert said.supported == (case != "another")
    if not said.supported:
        with pytest.raises(
            UserError, match="pooling is 'median'; it must be mean, cls, last, max, mean_sqrt_len or weightedmean"
        ):
            said.check()


def test_unsupported_pooling_is_reported(tmp_path: pathlib.Path) -> None:
    said = load(written(tmp_path, POOLINGS["mean"][0], "Dense", "Normalize"))
    assert said.normalize and not said.supported
    with pytest.raises(UserError, match="a Dense after the pooling, which is not supported"):
        said.check()


@pytest.mark.parametrize(
    ("changes", "after", "supported"),
    [
        ({}, "Pooling", True),
        ({"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}, "Pooling", True),
        ({"module_input_name": "token_embeddings"}, "Pooling", False),
        ({"module_output_name": "token_embeddings"}, "Pooling", False),
        ({"activation_function": "torch.nn.modules.activation.Softplus"}, "Pooling", False),
        ({}, "Normalize", False),
    ],
)
@pytest.mark.parametrize(("width", "residual"), [(2, True), (3, True), (3, False)])
def test_dense_layers(
    changes: dict[str, str], after: str, supported: bool, width: int, residual: bool, tmp_path: pathlib.Path
) -> None:
    """A layer of sentences after the pooling, in the layout of torch.nn.Linear; between equal widths the residual is the input."""
    kinds = ("Dense",) if after == "Pooling" else ("Normalize", "Dense")
    folder = written(tmp_path, POOLINGS["cls"][0], *kinds) / f"{len(kinds) + 1}_Dense"
    folder.mkdir()
    weights = {
        "linear.weight": np.arange(2 * width, dtype=np.float32).reshape(width, 2),
        "linear.bias": np.ones(width, np.float16),
    }
    if residual and width != 2:
        weights["residual.weight"] = np.full((width, 2), 7, np.float64)
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"in_features": 2, "out_features": width, "use_residual": residual} | changes)
    )
    said = load(tmp_path)
    assert said.supported == supported and said.further == (() if supported else ("Dense",))
    if supported:
        (dense,) = said.dense
        expected = {"kernel": weights["linear.weight"].T, "bias": np.ones(width), "residual": None}
        if residual:
            expected["residual"] = np.eye(2) if width == 2 else np.full((2, width), 7)
        assert dense.activation == "Tanh"
        for name, array in expected.items():
            found = getattr(dense, name)
            assert (found is None) == (array is None)
            assert array is None or (np.array_equal(found, array) and found.dtype == np.float32)


@pytest.mark.parametrize("content", ["{", "[1]", '[{"type": "a.Pooling"}]', '{"a": 1}'])
def test_damaged_files(content: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(PretrainedError, match="modules.json and the files that it lists cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "embedding.json"])
@pytest.mark.parametrize("target", ["nothing", "itself"])
def test_dangling_links_are_refused(name: str, target: str, tmp_path: pathlib.Path) -> None:
    """Ignoring them would give different vectors."""
    if name != "embedding.json":
        written(tmp_path, POOLINGS["cls"][0])
    path = tmp_path / name
    path.unlink(missing_ok=True)
    path.symlink_to(path if target == "itself" else tmp_path / target)
    with pytest.raises(PretrainedError, match=f"{name} cannot be read: it is a link"):
        load(tmp_path)
