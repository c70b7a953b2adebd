"""Every parser of external files: a valid folder, which of its files are corrupted, and its reader."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import gzip
import io
import json
import pathlib
import tempfile
import types
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pyarrow
import safetensors.numpy
from pyarrow import parquet

from helpers import golden_models, hf_folders, language_folders, torch_files
from lm_research.common import documents
from lm_research.config import dumps, loading, resolve
from lm_research.data.sources import read_documents
from lm_research.data.store import TokenStore, write_store
from lm_research.decoding.generation_config import load_defaults, make_options
from lm_research.errors import UserError
from lm_research.evaluation.runner import KINDS
from lm_research.evaluation.suite import load_suite
from lm_research.interop import huggingface, peft, sentence_transformers, tensor_files
from lm_research.pretrained import from_pretrained
from lm_research.reporting.runs import read_run
from lm_research.serving import schemas
from lm_research.tasks.records import read_records
from lm_research.tokenizers.chat_template import chat_text
from lm_research.tokenizers.loading import load_tokenizer

Files = Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class Parser:
    """One parser.

    Attributes:
      name: identifies the parser in failures.
      files: makes the valid folder: name -> content.
      read: reads such a folder through the public API; a UserError is a valid answer.
      spoils: the files that are corrupted; all unless given.
      examples: number of corrupted files in the default run.
      skips: whether `read` itself skips refused files, to read the others in the folder.
    """

    name: str
    files: Callable[[], Files]
    read: Callable[[pathlib.Path], Any]
    spoils: tuple[str, ...] = ()
    examples: int = 25
    skips: bool = False

    @property
    def victims(self) -> tuple[str, ...]:
        return self.spoils or tuple(self.files())


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@functools.cache
def model(name: str) -> Files:
    golden = golden_models.load_golden(golden_models.golden_path(name))
    weights = golden_models.golden_tensors(golden)
    return {"config.json": golden.config.encode(), "model.safetensors": safetensors.numpy.save(weights)}


def read_model(folder: pathlib.Path) -> None:
    found = huggingface.inspect(folder)
    assert found.definition.shapes


# Families of different kinds, whose config.json is corrupted more often.
OFTEN = ("bert", "gpt2", "llama", "t5", "bart", "deberta", "mixtral")


def models() -> list[Parser]:
    names = sorted(path.stem for path in golden_models.golden_paths("outputs"))
    firsts = {name.partition("_")[0]: name for name in reversed(names)}
    return [
        Parser(
            f"config.json of {family}",
            functools.partial(model, name),
            read_model,
            ("config.json",),
            12 if family in OFTEN else 3,
        )
        for family, name in sorted(firsts.items())
    ]


def read_tokenizer(folder: pathlib.Path) -> None:
    tokenizer = load_tokenizer(folder)
    for text in ("The cat sat, naïvely.", "", "[MASK] <s> ab\u200bc 東京"):
        tokenizer.decode(tokenizer.encode(text))


def tokenizers() -> list[Parser]:
    hf = [(name, functools.partial(hf_folders.files_of, name)) for name in sorted(hf_folders.goldens()["families"])]

    def in_a_language(name: str) -> Files:
        files = language_folders.goldens()["families"][name]["files"]
        return {key: base64.b64decode(text) for key, text in files.items()}

    marked = [(name, functools.partial(in_a_language, name)) for name in sorted(language_folders.goldens()["families"])]
    return [Parser(f"tokenizer of {name}", files, read_tokenizer, (), 20) for name, files in hf + marked]


TEMPLATE = b"""{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% if loop.first and message.role == 'system' %}
{{ message.content | trim }}{% elif not loop.last %}{{ message.content[:100] ~ eos_token }}{% else %}{{ namespace(x=2).x * 'a' }}{% endif %}
{% endfor %}{% set x = messages | map(attribute='role') | join(', ') %}{{ x if add_generation_prompt else "%5s" % 'x' }}"""


def read_template(folder: pathlib.Path) -> None:
    files = {**hf_folders.files_of("gpt2"), "chat_template.jinja": (folder / "chat_template.jinja").read_bytes()}
    with tempfile.TemporaryDirectory() as other:
        for name, data in files.items():
            (pathlib.Path(other) / name).write_bytes(data)
        tokenizer = load_tokenizer(other)
        chat_text(tokenizer, [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Why?"}])


WEIGHTS = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "a.bias": np.zeros(3, np.float16)}
_INDEX = {
    "metadata": {"total_size": 54},
    "weight_map": {"a.weight": "model-1.safetensors", "a.bias": "model-2.safetensors"},
}


def flax_bytes() -> bytes:
    """What flax.serialization writes of {"params": {"a": [0, 1, 2]}}: msgpack, an array as its extension 1."""
    array = b"\x93\x91\x03\xa7float32\xc4\x0c" + np.arange(3, dtype=np.float32).tobytes()
    return b"\x81\xa6params\x81\xa1a\xc7" + bytes([len(array)]) + b"\x01" + array


def read_weights(folder: pathlib.Path) -> None:
    source = tensor_files.open_tensors(folder)
    for name in source.names:
        assert np.asarray(source.read(name)).shape == tuple(source.shape(name))


# The magic number, the version of the form and an empty description of the machine, with which legacy files of torch.save begin.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00."


def torch_file(golden: str) -> Files:
    return {"pytorch_model.bin": zlib.decompress(base64.b85decode(golden))}


def lines(*rows: Any) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)


@functools.cache
def record_files() -> Files:
    rows = [{"text": "good news", "label": "a"}, {"text": "bad, or worse", "label": "b"}]
    table = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    return {
        "a.jsonl": lines(*rows),
        "b.json": as_json(rows),
        "c.csv": b'text,label\n"good, news",a\nbad,b\n',
        "d.tsv": b"text\tlabel\ngood\ta\n",
        "e.parquet": table.getvalue(),
        "f.jsonl.gz": gzip.compress(lines(*rows)),
        "g.conll": b"EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n",
    }


def each_file(folder: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> None:
    """Read all files of a folder, whichever of them is corrupted."""
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(UserError):
            read(path)


def read_labeled(path: pathlib.Path) -> None:
    for record in read_records(str(path), resolve({})):
        assert record.where


def read_texts(path: pathlib.Path) -> None:
    for document in read_documents(str(path), resolve({}).data):
        assert isinstance(document, str)


@functools.cache
def store_files() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "store"
        write_store(path, [[[1, 2, 3]], [[4, 5], [6]]], "digest", 64)
        return {file.name: file.read_bytes() for file in path.iterdir()}


def read_store(folder: pathlib.Path) -> None:
    store = TokenStore.open(folder)
    assert store.num_tokens == len(store.tokens)
    assert all(0 <= start <= store.num_tokens for start in store.sentence_starts)


SUITE = b"""tasks:
  - &first
    name: sst2
    task: classification
    data: rows.jsonl
    labels: [a, b]
  - <<: *first
    name: again
"""
CHAT = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "max_tokens": 4,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ["a"],
    "logit_bias": {"5": 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "seed": 1,
    "n": 2,
    "stream": False,
    "user": "u",
}
COMPLETION = {
    "prompt": ["a", "b"],
    "max_tokens": 4,
    "best_of": 2,
    "n": 1,
    "stop": "x",
    "logprobs": 2,
    "echo": False,
    "bad_words_ids": [[5]],
}


def read_body(kind: str) -> Callable[[pathlib.Path], Any]:
    def read(folder: pathlib.Path) -> Any:
        body = documents.parse_json((folder / "body.json").read_bytes(), "the body", Any)
        if kind == "chat":
            return schemas.chat(body, spoken())
        return schemas.completion(body) if kind == "completion" else schemas.inputs(body)

    return read


@functools.cache
def spoken() -> Any:
    """A stand-in for a model in the server: only its tokenizer is used."""
    with tempfile.TemporaryDirectory() as folder:
        hf_folders.write_folder(pathlib.Path(folder), "gpt2")
        (pathlib.Path(folder) / "chat_template.jinja").write_bytes(TEMPLATE)
        return types.SimpleNamespace(tokenizer=load_tokenizer(folder))


RUN: dict[str, pathlib.Path] = {}  # the workdir of a tiny run, where the tests put it


def run_files() -> Files:
    """A tiny run with only its newest checkpoint, so that nothing else can be read in its place."""
    newest = max(
        (path for path in (RUN["bert"] / "checkpoints").iterdir() if path.name.isdigit()),
        key=lambda path: int(path.name),
    )
    kept = [*newest.rglob("*"), *RUN["bert"].glob("*.json*"), RUN["bert"] / "log.txt"]
    return {str(path.relative_to(RUN["bert"])): path.read_bytes() for path in kept if path.is_file()}


@functools.cache
def right_params() -> Any:
    return jax.tree.map(np.asarray, from_pretrained(RUN["bert"]).params)


def read_checkpoint(folder: pathlib.Path) -> None:
    found = jax.tree.map(np.asarray, from_pretrained(folder).params)
    jax.tree.map(np.testing.assert_array_equal, found, right_params())


def parse_document(folder: pathlib.Path) -> None:
    documents.read_json(folder / "a.json", Any)


PARSERS = [
    *models(),
    *tokenizers(),
    Parser("chat template", lambda: {"chat_template.jinja": TEMPLATE}, read_template, (), 40),
    Parser("JSON", lambda: {"a.json": as_json({"a": [1, {"b": "c"}]})}, parse_document, (), 50),
    Parser("YAML", lambda: {"a.yaml": SUITE}, lambda folder: documents.read_yaml(folder / "a.yaml"), (), 50),
    Parser(
        "generation_config.json",
        lambda: {
            "generation_config.json": as_json(
                {"max_new_tokens": 5, "eos_token_id": [1, 2], "num_beams": 2, "early_stopping": "never"}
            )
        },
        lambda folder: make_options({}, load_defaults(folder), {}),
        (),
        40,
    ),
    Parser(
        "adapter_config.json",
        lambda: {
            "adapter_config.json": as_json(
                {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"], "task_type": None}
            )
        },
        peft.read_config,
        (),
        40,
    ),
    Parser(
        "sentence-transformers",
        lambda: {
            **model("bert_model"),
            "modules.json": as_json(
                [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
                + [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
            ),
            "1_Pooling/config.json": as_json({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}),
            "sentence_bert_config.json": as_json({"max_seq_length": 12, "do_lower_case": False}),
        },
        sentence_transformers.load,
        ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
        40,
    ),
    Parser("safetensors", lambda: {"model.safetensors": safetensors.numpy.save(WEIGHTS)}, read_weights, (), 60),
    Parser(
        "safetensors index",
        lambda: {
            "model.safetensors.index.json": as_json(_INDEX),
            "model-1.safetensors": safetensors.numpy.save({"a.weight": WEIGHTS["a.weight"]}),
            "model-2.safetensors": safetensors.numpy.save({"a.bias": WEIGHTS["a.bias"]}),
        },
        read_weights,
        ("model.safetensors.index.json",),
        40,
    ),
    Parser("torch zip", functools.partial(torch_file, torch_files.GOLDEN_ZIP), read_weights, (), 80),
    Parser("torch legacy", functools.partial(torch_file, torch_files.GOLDEN_LEGACY), read_weights, (), 80),
    Parser("flax msgpack", lambda: {"flax_model.msgpack": flax_bytes()}, read_weights, (), 60),
    Parser("labeled records", record_files, lambda folder: each_file(folder, read_labeled), (), 60, skips=True),
    Parser("texts", record_files, lambda folder: each_file(folder, read_texts), (), 60, skips=True),
    Parser("token store", store_files, read_store, (), 40),
    Parser(
        "run directory",
        run_files,
        read_run,
        ("config.json", "metrics.jsonl", "environment.json", "summary.json", "time.json", "log.txt"),
        60,
    ),
    Parser("checkpoint", run_files, read_checkpoint, (), 10),
    Parser(
        "run config",
        lambda: {"config.json": dumps(resolve({})).encode()},
        lambda folder: resolve(loading.load(str(folder))),
        (),
        40,
    ),
    Parser(
        "suite",
        lambda: {"suite.yaml": SUITE, "rows.jsonl": lines({"text": "a", "label": "a"})},
        lambda folder: load_suite(str(folder / "suite.yaml"), KINDS),
        ("suite.yaml",),
        40,
    ),
    Parser("completion request", lambda: {"body.json": as_json(COMPLETION)}, read_body("completion"), (), 60),
    Parser("chat request", lambda: {"body.json": as_json(CHAT)}, read_body("chat"), (), 60),
    Parser("embedding request", lambda: {"body.json": as_json([[3], [1, 2]])}, read_body("embedding"), (), 30),
]
