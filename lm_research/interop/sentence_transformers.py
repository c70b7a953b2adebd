"""How a model's states become the embedding of a text, as sentence-transformers writes it down beside a model.

There `modules.json` lists what a text goes through: the model, `1_Pooling`, whose config.json says which states count, and
perhaps `2_Normalize`; `sentence_bert_config.json` has the number of tokens that texts are cut to. In the checkpoints of a
run, which hold plain files only, `embedding.json` says the same.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from lm_research.errors import PretrainedError, UserError
from lm_research.models.forward import POOLINGS

NATIVE = "embedding.json"
# Our name of a pooling -> the key that is true in 1_Pooling/config.json.
_MODES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
_NAMES = {"lasttoken": "last"}  # of files that name the mode in one word, where that differs from ours
_MODULES = "sentence_transformers.models"


@dataclasses.dataclass(frozen=True)
class Embedding:
    """What is done to the final states of a text's tokens.

    Attributes:
      pooling: one of forward.POOLINGS, or the name of one that is not supported.
      normalize: whether vectors have length 1.
      max_length: tokens that texts are cut to; 0 is what the model has positions for.
      further: kinds of modules that follow and are not supported, such as Dense.
    """

    pooling: str = "mean"
    normalize: bool = True
    max_length: int = 0
    further: tuple[str, ...] = ()

    def dumps(self) -> bytes:
        """The content of `embedding.json`."""
        return (json.dumps(dataclasses.asdict(self)) + "\n").encode()

    @property
    def supported(self) -> bool:
        return self.pooling in POOLINGS and not self.further

    def check(self) -> None:
        """Raises a UserError if embeddings of this kind cannot be computed."""
        if self.further:
            raise UserError(
                f"This model's modules.json has a {self.further[0]} after the pooling, which is not supported. Give lm.embed a "
                "pooling to have the vectors before it."
            )
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling is {self.pooling!r}; it is {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}.")


def load(directory: pathlib.Path) -> Embedding | None:
    """What a model directory says, or None if it says nothing.

    Raises:
      PretrainedError: one of the files is damaged.
    """
    try:
        if (directory / NATIVE).is_file():
            fields = json.loads((directory / NATIVE).read_text())
            return Embedding(**{**fields, "further": tuple(fields["further"])})
        if not (directory / "modules.json").is_file():
            return None
        modules = json.loads((directory / "modules.json").read_text())
        paths = {str(module["type"]).rpartition(".")[2]: directory / module["path"] for module in modules}
        pooling = _read(paths["Pooling"] / "config.json") if "Pooling" in paths else {}
        length = _read(directory / "sentence_bert_config.json").get("max_seq_length") or 0
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise PretrainedError(
            f"{directory}: modules.json and what it names cannot be read ({type(error).__name__}: {error}). Copy them again, or "
            "delete modules.json to go without."
        ) from error
    further = tuple(name for name in paths if name not in ("Transformer", "Pooling", "Normalize"))
    return Embedding(_mode(pooling), "Normalize" in paths, int(length), further)


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _mode(config: dict[str, Any]) -> str:
    """Our name of the pooling; several at once are joined by "+", which none of ours is."""
    if isinstance(config.get("pooling_mode"), str):
        return _NAMES.get(config["pooling_mode"], config["pooling_mode"])
    ours = {key: name for name, key in _MODES.items()}
    chosen = [ours.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    return "+".join(chosen) or "mean"


def save(directory: pathlib.Path, embedding: Embedding, width: int) -> None:
    """Writes the files of sentence-transformers into a model directory. `width` is that of the vectors."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if embedding.normalize else [])]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_MODULES}.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    for path in paths[1:]:
        (directory / path).mkdir(exist_ok=True)
    modes = {key: name == embedding.pooling for name, key in _MODES.items()}
    _write(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **modes})
    if embedding.max_length:
        _write(
            directory / "sentence_bert_config.json", {"max_seq_length": embedding.max_length, "do_lower_case": False}
        )
    _write(directory / "modules.json", modules)  # last: it is what the others are found by


def _write(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
