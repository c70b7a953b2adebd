"""Make sources.json next to this file: what transformers generates where an encoder's rows are padded on the left.

Run with torch 2.13 and transformers 5.24: PYTHONPATH=tests python tests/decoding/left_goldens/make_goldens.py

The models are those of ../goldens. Rows are theirs with the padding in front, with and without the mask that hides it. A case that
changes with weights that differ by a millionth is left out; where the padding moves no positions (T5, RoBERTa) the texts are those of
rows padded on the right.
"""

from __future__ import annotations

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers

from decoding.goldens import make_goldens as goldens

HERE = pathlib.Path(__file__).resolve().parent
NAMES = ("t5", "bart", "pair_bert_bert", "pair_roberta_roberta", "pair_electra_bart")


def main() -> None:
    transformers.logging.set_verbosity_error()
    found = []
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            golden = goldens.describe(name, pathlib.Path(folder) / "made")
            model, other = (goldens.load(golden, pathlib.Path(folder) / "in", noise) for noise in (0.0, 1e-6))
        behind = goldens.inputs_of(model, name)
        moved = [
            np.roll(rows, 9 - sum(mask)).tolist()
            for mask, rows in zip(behind["attention_mask"], behind["input_ids"], strict=True)
        ]
        mask = [[0] * (9 - sum(mask)) + [1] * sum(mask) for mask in behind["attention_mask"]]
        for masked in (True, False):
            inputs = {"input_ids": moved, "attention_mask": mask if masked else None}
            # Encoders that count positions from their own padding see it, whatever token generation pads with.
            filled = [{"pad_token_id": 3}] if "roberta" in name and masked else []
            for arguments in ({"no_repeat_ngram_size": 2}, {"num_beams": 3, "no_repeat_ngram_size": 2}, *filled):
                arguments = {"max_new_tokens": 8, **arguments}
                given = {key: value for key, value in inputs.items() if value is not None}
                texts, again, unmoved = (
                    goldens.run(*call, arguments)["sequences"]
                    for call in ((model, given), (other, given), (model, behind))
                )
                if texts == again:
                    found.append({"model": name, "inputs": inputs, "arguments": arguments, "sequences": texts})
                    print(name, masked, arguments, "as behind" if texts == unmoved else "other than behind")
    versions = {**goldens.VERSIONS, "maker": "tests/decoding/left_goldens/make_goldens.py"}
    body = ",\n".join(json.dumps(case) for case in found)
    (HERE / "sources.json").write_text(f'{{"versions": {json.dumps(versions)}, "cases": [\n{body}\n]}}\n')


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
