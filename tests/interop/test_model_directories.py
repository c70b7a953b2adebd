"""What a fine-tuning run reads from its model directory, if that is in a bucket: a stand-in for Google Cloud Storage."""

from __future__ import annotations

import base64
import json
import pathlib

import pytest

from helpers.gcs_server import GcsServer, Stored, served_here
from lm_research import from_pretrained
from lm_research.common import bucket_copies
from lm_research.common.paths import as_path
from lm_research.errors import UserError
from lm_research.interop.model_directories import inspect
from lm_research.tasks.embedding import init_embedding
from lm_research.tasks.generation import read_init_settings
from lm_research.tokenizers.loading import load_tokenizer

pytest.importorskip("gcsfs")
GOLDEN = json.loads((pathlib.Path(__file__).parent / "sentence_goldens" / "sentences.json").read_text())
FILES = {name: base64.b64decode(text) for name, text in GOLDEN["models"]["bert"].items()}


def put(server: GcsServer, folder: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        server.objects["bucket", f"{folder}/{name}"] = Stored(content, 1, 0.0)


def test_the_settings_of_tasks_come_from_a_bucket(tmp_path: pathlib.Path) -> None:
    pooling = {"word_embedding_dimension": 32, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    more = {
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": json.dumps(pooling).encode(),
        "generation_config.json": b'{"decoder_start_token_id": 7}',
    }
    with served_here() as server:
        put(server, "models/one", FILES | more)
        assert init_embedding("gs://bucket/models/one").pooling == "max"
        settings = read_init_settings("gs://bucket/models/one")
    assert settings["decoder_start_token_id"] == 7 and settings["family"] == "bert"


def test_models_are_saved_in_a_bucket() -> None:
    with served_here() as server:
        put(server, "models/one", FILES)
        lm = from_pretrained("gs://bucket/models/one")
        lm.save_pretrained("gs://bucket/models/two")
        stored = inspect(as_path("gs://bucket/models/two"))
        assert stored.definition.shapes == lm.definition.shapes
        assert load_tokenizer("gs://bucket/models/two").digest == load_tokenizer("gs://bucket/models/one").digest
    assert not pathlib.Path("gs:").exists()


def test_what_is_missing_or_damaged_has_its_address() -> None:
    with served_here() as server:
        put(server, "damaged", FILES | {"config.json": b"{", "tokenizer.json": b"{", "tokenizer_config.json": b"{"})
        for read in (lambda name: inspect(as_path(name)), load_tokenizer):
            for name in ("gs://bucket/nothing", "gs://bucket/damaged"):
                with pytest.raises(UserError, match=name):
                    read(name)
            server.denied.add("bucket")
            with pytest.raises(UserError, match="gs://bucket/damaged cannot be used: permission denied"):
                read("gs://bucket/damaged")
            server.denied.clear()


@pytest.mark.parametrize("place", ["runs/a", "runs/a/checkpoints/6"])
def test_the_arrays_of_a_checkpoint_are_not_fetched_with_its_tokenizer(
    place: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_copies.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    with served_here() as server:
        put(server, "runs/a/checkpoints/6", {"state/d/0": b"1" * 99, "commit_success.txt": b""})
        put(server, "runs/a/checkpoints/6/files", {"vocab.txt": FILES["vocab.txt"], "manifest.json": b"{}"})
        assert load_tokenizer(f"gs://bucket/{place}").size > 1
    fetched = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert fetched == {"files/vocab.txt", "files/manifest.json"}
