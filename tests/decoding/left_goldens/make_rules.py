"""Make rules.json next to this file: what transformers generates where its rules count the padding of prompts.

Run with torch 2.13 and transformers 5.24: PYTHONPATH=tests python tests/decoding/left_goldens/make_rules.py

The models are those of ../goldens. Prompts are padded on the left, sources on either side, and the beginnings of outputs on the left,
with a token that the model often generates. A case is kept if its texts depend on that token, and do not change with weights that
differ by a millionth.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
import transformers

from decoding.goldens import make_goldens as goldens

HERE = pathlib.Path(__file__).resolve().parent
NEW = 8


def rules(pad: int, one: int, two: int) -> list[dict]:
    """Arguments of generate whose rules read prompts or sources."""
    cases: list[dict] = [
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"sequence_bias": [[[pad, one], 30.0], [[pad, pad, two], 40.0]]},
        {"bad_words_ids": [[pad, one], [pad, two], [pad, pad]]},
        {"encoder_repetition_penalty": 0.3},
        {"encoder_no_repeat_ngram_size": 1},
        {"encoder_no_repeat_ngram_size": 2},
    ]
    cases += [{**case, "num_beams": 3} for case in cases[1::3]]
    return [{"max_new_tokens": NEW, **case} for case in cases]


def inputs_of(model, name: str) -> Iterator[tuple[str, np.ndarray, dict]]:
    """Yield the name of the padded argument, 1 for its real tokens, and the inputs."""
    rows = {key: np.array(value) for key, value in goldens.inputs_of(model, name).items()}
    mask = rows["attention_mask"]
    if not model.config.is_encoder_decoder:
        yield "input_ids", mask, rows
        yield "input_ids", mask, {"input_ids": rows["input_ids"]}
        return
    yield "input_ids", mask, rows
    moved = {
        key: np.stack([np.roll(row, 9 - sum(m)) for row, m in zip(value, mask, strict=True)])
        for key, value in rows.items()
    }
    yield "input_ids", moved["attention_mask"], moved
    shown = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    start = model.config.decoder_start_token_id
    begun = {
        "decoder_input_ids": np.array([[start, start, start, 5, 6], [start, start, 7, 8, 7], [start, 10, 11, 9, 10]])
    }
    yield "decoder_input_ids", shown, rows | begun | {"decoder_attention_mask": shown}


def run(model, inputs: dict, arguments: dict) -> list[list[int]]:
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    with torch.no_grad():
        return model.generate(**tensors, **arguments, do_sample=False).tolist()


def main() -> None:
    transformers.logging.set_verbosity_error()
    found = []
    for name in ("gpt2", "t5", "bart", "pair_bert_gpt2", "pair_roberta_roberta"):
        with tempfile.TemporaryDirectory() as folder:
            golden = goldens.describe(name, pathlib.Path(folder) / "made")
            model, other = (goldens.load(golden, pathlib.Path(folder) / "in", noise) for noise in (0.0, 1e-6))
        free = goldens.run(model, goldens.inputs_of(model, name), {"max_new_tokens": 12, "no_repeat_ngram_size": 3})
        counts = Counter(token for row in free["sequences"] for token in row[-12:] if token > 4)
        often = [token for token, _ in counts.most_common(3)]
        for argument, mask, inputs in inputs_of(model, name):
            by_mask = "attention_mask" in inputs
            real = np.where(inputs[argument] == often[0], 3, inputs[argument])
            (given, pad), (plain, pad_4) = (
                (inputs | {argument: np.where(mask == 1, real, token)}, {"pad_token_id": 3 if by_mask else token})
                for token in (often[0], 4)
            )
            for case in rules(*often):
                texts, again = (run(one, given, case | pad) for one in (model, other))
                unlike = [row[-NEW:] for row in run(model, plain, case | pad_4)] != [row[-NEW:] for row in texts]
                if texts == again and unlike:
                    rows = {key: value.tolist() for key, value in given.items()}
                    found.append({"model": name, "inputs": rows, "arguments": case | pad, "sequences": texts})
                    print(name, argument, by_mask, case)
    versions = {**goldens.VERSIONS, "maker": "tests/decoding/left_goldens/make_rules.py"}
    body = ",\n".join(json.dumps(case) for case in found)
    (HERE / "rules.json").write_text(f'{{"versions": {json.dumps(versions)}, "cases": [\n{body}\n]}}\n')


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
