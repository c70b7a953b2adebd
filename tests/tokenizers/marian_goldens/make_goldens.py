"""Make opus.json: a tiny directory like opus-mt's, and transformers' outputs for texts with it.

    pip install transformers==5.24.0 sentencepiece torch safetensors
    PYTHONPATH=tests python tests/tokenizers/marian_goldens/make_goldens.py

Weights are not stored: both sides make them from their names (tests/helpers/golden_models.py).
"""

from __future__ import annotations

import base64
import io
import json
import pathlib
import tempfile

import safetensors.numpy
import sentencepiece
import torch
import transformers

from helpers.golden_models import golden_tensor

HERE = pathlib.Path(__file__).parent
ENGLISH = [
    "In the beginning God created the heavens and the earth.",
    "The earth was without form, and void; darkness was upon the face of the deep.",
    "And God said, Let there be light: and there was light. 1,000 9, 12 don't.",
] * 8
SPANISH = [
    "En el principio creó Dios los cielos y la tierra.",
    "Y la tierra estaba desordenada y vacía, y las tinieblas estaban sobre la faz del abismo.",
    "Y dijo Dios: Sea la luz; y fue la luz. 神は 天と",
] * 8
TEXTS = [
    "In the beginning God created.",
    "",
    " ",
    "  two  spaces  ",
    ">>fra<< the earth",
    ">>xyz<< light",
    ">>fra<<light",
    "light >>fra<< void",
    "a</s>b <pad> c<unk>",
    "Señor 神 ☃ ½ ﬁ",
    "don't\nwait\tnow",
    "x<s>y [MASK]",
    "the ",
    "▁the",
]
SOURCES = ["In the beginning God created.", "the earth", "And there was light: void"]
WAYS = [{"num_beams": 1}, {}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 1, "num_return_sequences": 2}]


def model(lines: list[str], size: int) -> bytes:
    """A sentencepiece model without rules of normalization, which are a quarter of a megabyte."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=size,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=3,
    )
    return written.getvalue()


def files() -> dict[str, bytes]:
    """Pieces of both models, except the last ones of each, in another order; the end first and padding last, as published."""
    source, target = model(ENGLISH, 80), model(SPANISH, 90)
    opened = [sentencepiece.SentencePieceProcessor(model_proto=proto) for proto in (source, target)]
    pieces = {one.id_to_piece(number) for one in opened for number in range(3, one.get_piece_size() - 3)}
    names = ["</s>", "<unk>", ">>fra<<", ">>spa<<", *sorted(pieces, reverse=True), "<pad>"]
    vocab = json.dumps({name: number for number, name in enumerate(names)}).encode()
    settings = b'{"target_lang": "es", "source_lang": "en"}'
    return {"source.spm": source, "target.spm": target, "vocab.json": vocab, "tokenizer_config.json": settings}


def config(size: int) -> dict[str, object]:
    return {
        "vocab_size": size,
        "d_model": 24,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 35,
        "decoder_ffn_dim": 29,
        "max_position_embeddings": 64,
        "pad_token_id": size - 1,
        "decoder_start_token_id": size - 1,
        "eos_token_id": 0,
        "bos_token_id": 0,
        "forced_eos_token_id": 0,
        "scale_embedding": True,
        "activation_function": "swish",
    }


def main() -> None:
    content, pad = files(), 0
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        for name, data in content.items():
            (place / name).write_bytes(data)
        pad = len(json.loads(content["vocab.json"])) - 1
        written = transformers.MarianMTModel(transformers.MarianConfig(**config(pad + 1)))
        written.generation_config.update(
            bad_words_ids=[[pad]],
            num_beams=4,
            max_length=16,
            renormalize_logits=True,
            forced_eos_token_id=0,
        )
        written.save_pretrained(place)
        shapes = {name: value.shape for name, value in safetensors.numpy.load_file(place / "model.safetensors").items()}
        tensors = {name: golden_tensor(name, shape) for name, shape in shapes.items()}
        safetensors.numpy.save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        content |= {name: (place / name).read_bytes() for name in ("config.json", "generation_config.json")}
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        marian = transformers.MarianMTModel.from_pretrained(place).eval()
    batch = tokenizer(SOURCES, padding=True, return_tensors="pt")
    labels = tokenizer(text_target=TEXTS)["input_ids"]
    with torch.no_grad():
        sequences = [marian.generate(**batch, **way).tolist() for way in WAYS]
    golden = {
        "origin": f"transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}",
        "files": {name: base64.b64encode(data).decode() for name, data in content.items()},
        "weights": {name: list(shape) for name, shape in shapes.items()},
        "texts": TEXTS,
        "input_ids": tokenizer(TEXTS)["input_ids"],
        "labels": labels,
        "decoded": tokenizer.batch_decode(labels, skip_special_tokens=True),
        "named": tokenizer.batch_decode(labels),
        "padded": {name: value.tolist() for name, value in batch.items()},
        "sources": SOURCES,
        "ways": WAYS,
        "sequences": sequences,
    }
    (HERE / "opus.json").write_text(json.dumps(golden, separators=(",", ":"), sort_keys=True) + "\n")
    print(len(tokenizer), *sequences, sep="\n")


if __name__ == "__main__":
    main()
