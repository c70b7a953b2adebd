"""Make sentences.json: tiny models with their sentence-transformers files, and that library's embeddings of texts.

    pip install torch sentence-transformers==6.2.0 transformers==5.24.0
    python tests/interop/sentence_goldens/make_goldens.py

An encoder padded on the right and a decoder padded on the left, each with random weights. Of `old` cases the pooling is written with
the flags of versions 2 to 5, of others all files are as version 6 saves them.
"""

from __future__ import annotations

import base64
import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer, __version__
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

HERE = pathlib.Path(__file__).parent
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", "A", ":", "query", "passage"]
TEXTS = ["a b c", "d e f g h i j a b", "A b", "j"]
PROMPTS = {"query": "query : ", "passage": "passage : a ", "odd": "zzz"}
FLAGS = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
CASES: dict[str, dict[str, Any]] = {
    **{f"{mode}, old": dict(mode=mode, old=True) for mode in FLAGS},
    **{mode: dict(mode=mode, include_prompt=False, calls=[{}, {"prompt": "query : "}]) for mode in FLAGS},
    "flags": dict(mode=("mean", "max", "cls"), old=True),
    "list": dict(mode=("mean", "cls"), normalize=True),
    "prompts": dict(
        mode="mean",
        prompts=PROMPTS,
        similarity_fn_name="dot",
        calls=[
            {},
            {"prompt_name": "query"},
            {"prompt_name": "passage"},
            {"prompt": "b"},
            {"prompt": ""},
            {"prompt_name": "document"},
        ],
    ),
    "usual prompt": dict(
        mode="weightedmean",
        prompts=PROMPTS,
        default_prompt_name="passage",
        normalize=True,
        similarity_fn_name="euclidean",
        calls=[{}, {"prompt": ""}, {"prompt_name": "query"}, {"prompt_name": "odd"}],
    ),
    "skipped prompt": dict(
        mode=("mean", "lasttoken"),
        prompts=PROMPTS,
        default_prompt_name="odd",
        include_prompt=False,
        similarity_fn_name="manhattan",
        calls=[{}, {"prompt": ""}, {"prompt_name": "passage"}],
    ),
    "short": dict(mode="mean", max_seq_length=5, calls=[{}, {"prompt": "query : "}]),
    "short, old": dict(mode="max", old=True, max_seq_length=5),
    "small letters, old": dict(mode="mean", old=True, do_lower_case=True),
    "dense": dict(mode=("cls", "mean"), dense=[(4, "Tanh", True), (3, "GELU", False)], normalize=True),
    "residual": dict(mode="mean", dense=[(8, "Identity", True)], use_residual=True),
    "cut": dict(mode="mean", normalize=True, truncate_dim=5, calls=[{}, {"normalize_embeddings": True}]),
}


def packed(x: np.ndarray) -> str:
    return base64.b64encode(np.asarray(x, "<f4").tobytes()).decode()


def models(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    torch.manual_seed(0)
    size = dict(vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    bert = transformers.BertModel(transformers.BertConfig(**size, max_position_embeddings=16, initializer_range=0.5))
    llama = transformers.LlamaModel(transformers.LlamaConfig(**size, max_position_embeddings=16, initializer_range=0.5))
    for name, model in (("bert", bert), ("llama", llama)):
        model.save_pretrained(folder / name)
        (folder / name / "vocab.txt").write_text("\n".join(WORDS))
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
        settings["padding_side"] = "left" if name == "llama" else "right"
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))
    return {name: folder / name for name in ("bert", "llama")}


def texts_of(folder: pathlib.Path) -> dict[str, str]:
    """Return the content of a folder's files; binary files in base64, their names ending in .64."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in (
            "README.md",
            "config.json",
            "model.safetensors",
            "vocab.txt",
            "tokenizer.json",
        ):
            text = path.suffix in (".json", ".txt")
            found[name if text else f"{name}.64"] = (
                path.read_text() if text else base64.b64encode(path.read_bytes()).decode()
            )
    return found


def build(base: pathlib.Path, case: dict[str, Any], folder: pathlib.Path) -> None:
    options = {name: case[name] for name in ("max_seq_length", "do_lower_case") if name in case}
    pooling = Pooling(8, case["mode"], include_prompt=case.get("include_prompt", True))
    modules: list[Any] = [Transformer(str(base), **options), pooling]
    width = pooling.get_embedding_dimension()
    for size, name, bias in case.get("dense", ()):
        more = {"use_residual": True} if case.get("use_residual") else {}
        modules.append(Dense(width, size, bias, getattr(torch.nn, name)(), **more))
        width = size
    modules += [Normalize()] if case.get("normalize") else []
    names = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
    model = SentenceTransformer(modules=modules, **{name: case[name] for name in names if name in case})
    model.save_pretrained(str(folder), create_model_card=False)
    if case.get("old"):
        chosen = (case["mode"],) if isinstance(case["mode"], str) else case["mode"]
        flags = {f"pooling_mode_{flag}": mode in chosen for mode, flag in FLAGS.items()}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **flags}))
        (folder / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": None, "do_lower_case": False} | options)
        )
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        for name in ("vocab.txt", "tokenizer_config.json"):
            (folder / name).write_bytes((base / name).read_bytes())


def main() -> None:
    written: dict[str, Any] = {"sentence_transformers": __version__, "texts": TEXTS, "models": {}, "cases": []}
    with tempfile.TemporaryDirectory() as temporary:
        bases = models(pathlib.Path(temporary))
        for base, path in bases.items():
            names = ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json")
            written["models"][base] = {name: base64.b64encode((path / name).read_bytes()).decode() for name in names}
            for number, (name, case) in enumerate(CASES.items()):
                if base == "llama" and not (
                    {"mode", "include_prompt"} >= case.keys() - {"calls"} or name == "skipped prompt"
                ):
                    continue
                folder = pathlib.Path(temporary) / f"{base}{number}"
                build(path, case, folder)
                model = SentenceTransformer(str(folder))
                calls = []
                for call in case.get("calls", [{}]):
                    vectors = model.encode(TEXTS, **call)
                    alike = model.similarity(vectors[:1], vectors[1:])[0]
                    calls.append({"call": call, "vectors": packed(vectors), "alike": packed(alike.numpy())})
                written["cases"].append({"name": name, "base": base, "files": texts_of(folder), "calls": calls})
    contents = sorted({text for case in written["cases"] for text in case["files"].values()})
    for case in written["cases"]:
        case["files"] = {name: contents.index(text) for name, text in case["files"].items()}
    written["contents"] = contents
    (HERE / "sentences.json").write_text(json.dumps(written) + "\n")


if __name__ == "__main__":
    main()
