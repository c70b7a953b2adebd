"""Make *.json next to this file: the token ids that another implementation, Hugging Face transformers on PyTorch, generates.

Run in a separate environment with torch 2.13, transformers 5.24 and safetensors; tests need neither of the first two:

    PYTHONPATH=tests python tests/decoding/goldens/make_goldens.py

Small models of odd sizes in float32 whose weights follow the rule of tests/helpers/golden_models.py. Each file holds

    kind, family, config, weights    as the files of tests/interop/goldens: enough to write the checkpoint
    versions                         what made the file
    inputs                           input_ids and attention_mask, rows of different lengths, padded on the left (decoders) or
                                     on the right (what encoders read)
    cases                            arguments of generate, and its sequences; of beams also their scores

Decoders of encoder families, and encoder-decoders made of two models, have few cases; for each the uncached run must also agree.
Where a case specifies it, the end token is one that the model often generates, so that texts end. A case whose result depends on
differences in the last bits would fail elsewhere: each is made a second time with weights that differ by a millionth, and
left out if the tokens change. So is a case whose tokens change with the token that pads prompts, which transformers counts as generated.
"""

from __future__ import annotations

import json
import pathlib
import platform
import sys
import tempfile

import numpy as np
import safetensors
import torch
import transformers

from helpers.golden_models import Golden, golden_tensors, write_checkpoint

HERE = pathlib.Path(__file__).resolve().parent
VERSIONS = {
    "maker": "tests/decoding/goldens/make_goldens.py",
    "transformers": transformers.__version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
    "python": platform.python_version(),
}
NEW = 12
VOCAB = 61

MODELS = {
    "gpt2": (
        "GPT2LMHeadModel",
        dict(
            vocab_size=VOCAB,
            n_embd=24,
            n_layer=3,
            n_head=3,
            n_positions=40,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.02,
        ),
    ),
    "llama": (
        "LlamaForCausalLM",
        dict(
            vocab_size=VOCAB,
            hidden_size=30,
            intermediate_size=43,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
        ),
    ),
    "mistral": (
        "MistralForCausalLM",
        dict(
            vocab_size=VOCAB,
            hidden_size=30,
            intermediate_size=43,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
            sliding_window=5,
        ),
    ),
    "t5": (
        "T5ForConditionalGeneration",
        dict(
            vocab_size=VOCAB,
            d_model=22,
            d_kv=6,
            d_ff=35,
            num_layers=3,
            num_decoder_layers=3,
            num_heads=3,
            relative_attention_num_buckets=12,
            relative_attention_max_distance=10,
            decoder_start_token_id=0,
            feed_forward_proj="gated-gelu",
        ),
    ),
    "bart": (
        "BartForConditionalGeneration",
        dict(
            vocab_size=VOCAB,
            d_model=24,
            encoder_layers=2,
            decoder_layers=3,
            encoder_attention_heads=3,
            decoder_attention_heads=4,
            encoder_ffn_dim=35,
            decoder_ffn_dim=29,
            max_position_embeddings=40,
        ),
    ),
}

BERT = dict(
    vocab_size=VOCAB,
    hidden_size=21,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=37,
    max_position_embeddings=40,
    type_vocab_size=2,
)
GPT2 = MODELS["gpt2"][1]
BART = dict(
    vocab_size=VOCAB,
    d_model=24,
    encoder_layers=3,
    decoder_layers=3,
    decoder_attention_heads=4,
    decoder_ffn_dim=29,
    max_position_embeddings=40,
)


def pair(encoder: dict, decoder: dict, pad: int = 0) -> tuple[str, dict]:
    decoder = dict(decoder, is_decoder=True, add_cross_attention=True)
    tokens = dict(decoder_start_token_id=4, pad_token_id=pad, eos_token_id=3)
    return "EncoderDecoderModel", dict(encoder=encoder, decoder=decoder, **tokens)


FEW = {
    "bert_decoder": ("BertLMHeadModel", dict(BERT, is_decoder=True)),
    "roberta_decoder": ("RobertaForCausalLM", dict(BERT, is_decoder=True)),
    "electra_decoder": ("ElectraForCausalLM", dict(BERT, is_decoder=True, embedding_size=10)),
    "bart_decoder": ("BartForCausalLM", BART),
    "mbart_decoder": ("MBartForCausalLM", BART),
    "marian_decoder": ("MarianForCausalLM", dict(BART, pad_token_id=1, eos_token_id=2)),
    "pair_bert_bert": pair(dict(BERT, model_type="bert"), dict(BERT, model_type="bert", hidden_size=24)),
    "pair_roberta_roberta": pair(dict(BERT, model_type="roberta"), dict(BERT, model_type="roberta"), 1),
    "pair_bert_gpt2": pair(dict(BERT, model_type="bert"), dict(GPT2, model_type="gpt2")),
    "pair_electra_bart": pair(dict(BERT, model_type="electra", embedding_size=10), dict(BART, model_type="bart")),
}


def describe(name: str, folder: pathlib.Path) -> Golden:
    kind, config = {**MODELS, **FEW}[name]
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**config))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    with safetensors.safe_open(folder / "model.safetensors", framework="np") as file:
        weights = {key: tuple(file.get_slice(key).get_shape()) for key in sorted(file.keys())}
    if kind.startswith("Marian"):  # its sinusoidal positions follow from their number
        weights = {key: shape for key, shape in weights.items() if not key.endswith("embed_positions.weight")}
    text = (folder / "config.json").read_text()
    return Golden(name, kind, json.loads(text)["model_type"], "outputs", text, weights, {}, {}, {}, VERSIONS)


def load(golden: Golden, folder: pathlib.Path, noise: float = 0.0):
    write_checkpoint(folder, golden)
    model = getattr(transformers, golden.kind).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    state = model.state_dict()
    for name, value in golden_tensors(golden).items():
        assert np.array_equal(state[name].numpy(), value), (golden.name, name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1 + noise * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def inputs_of(model, name: str, filler: int | None = None) -> dict[str, list]:
    rng = np.random.RandomState(len(name))
    lengths, length = (9, 4, 6), 9
    pad = model.config.pad_token_id if model.config.pad_token_id is not None else 2
    ids, mask = np.full((3, length), pad if filler is None else filler), np.zeros((3, length), int)
    for row, count in enumerate(lengths):
        place = slice(0, count) if model.config.is_encoder_decoder else slice(length - count, length)
        ids[row, place], mask[row, place] = rng.randint(5, VOCAB, count), 1
    return {"input_ids": ids.tolist(), "attention_mask": mask.tolist()}


def cases_of(seq2seq: bool, liked: int, words: list[int]) -> list[dict]:
    """Arguments of generate. `liked` is a token that the model generates; `words` are some that it generated in sequence."""
    end = {"eos_token_id": liked, "pad_token_id": 3}
    cases: list[dict] = [{}, end, {"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 3}]
    cases += [
        {**end, "min_new_tokens": 5},
        {**end, "min_length": 8},
        {"bad_words_ids": [words[:2], [words[2]], words[1:4]]},
        {"suppress_tokens": words[:2]},
        {"begin_suppress_tokens": words[:1]},
        {"forced_eos_token_id": 7},
        {**end, "exponential_decay_length_penalty": [2, 1.3], "no_repeat_ngram_size": 2},
        {"eos_token_id": [liked, words[1]], "pad_token_id": 3, "min_new_tokens": 2, "no_repeat_ngram_size": 2},
        {"max_length": 20, "no_repeat_ngram_size": 2},
    ]
    if seq2seq:
        cases += [
            {"encoder_repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
            {"encoder_no_repeat_ngram_size": 1},
            {"forced_bos_token_id": 9, "no_repeat_ngram_size": 2},
            {"decoder_input_ids": [[0, 5, 6], [0, 7, 8], [0, 9, 9]]},
        ]
    for beams in range(2, 9):
        cases.append({"num_beams": beams})
        cases.append({"num_beams": beams, **end, "length_penalty": (0.0, 0.6, 2.0, -1.0)[beams % 4]})
        cases.append({"num_beams": beams, **end, "no_repeat_ngram_size": 2, "num_return_sequences": beams})
    for early in (False, True, "never"):
        for penalty in (-0.5, 0.0, 1.0, 1.8):
            cases.append(
                {
                    "num_beams": 4,
                    **end,
                    "early_stopping": early,
                    "length_penalty": penalty,
                    "no_repeat_ngram_size": 3,
                    "num_return_sequences": 2,
                }
            )
    cases += [
        {"num_beams": 3, **end, "repetition_penalty": 1.4, "min_new_tokens": 4, "num_return_sequences": 3},
        {"num_beams": 4, "eos_token_id": [liked, words[1]], "pad_token_id": 3, "num_return_sequences": 4},
        {"num_beams": 3, "forced_eos_token_id": 7, "no_repeat_ngram_size": 2},
        {"num_beams": 2, **end, "bad_words_ids": [words[:2], [words[2]]], "no_repeat_ngram_size": 2},
    ]
    return [{"max_new_tokens": NEW, **case} if "max_length" not in case else case for case in cases]


def few_cases_of(seq2seq: bool, liked: int) -> list[dict]:
    end = {"eos_token_id": liked, "pad_token_id": 3}
    cases = [
        {},
        end,
        {"no_repeat_ngram_size": 2},
        {**end, "min_new_tokens": 5},
        {"num_beams": 3},
        {"num_beams": 3, **end, "length_penalty": 0.6},
        {"num_beams": 3, "no_repeat_ngram_size": 2},
        {"num_beams": 4, **end, "no_repeat_ngram_size": 2, "num_return_sequences": 3},
    ]
    if seq2seq:
        cases.append({"decoder_input_ids": [[4, 5, 6], [4, 7, 8], [4, 9, 9]], "no_repeat_ngram_size": 2})
    return [{"max_new_tokens": NEW, **case} for case in cases]


def run(model, inputs: dict, arguments: dict) -> dict:
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    given = {k: torch.tensor(v) if k == "decoder_input_ids" else v for k, v in arguments.items()}
    with torch.no_grad():
        said = model.generate(**tensors, **given, return_dict_in_generate=True, output_scores=True, do_sample=False)
    found = {"sequences": said.sequences.tolist()}
    if arguments.get("num_beams", 1) > 1:
        found["scores"] = [round(score, 6) for score in said.sequences_scores.tolist()]
    return found


def make(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        golden = describe(name, pathlib.Path(folder) / "made")
        model, other = (load(golden, pathlib.Path(folder) / "in", noise) for noise in (0.0, 1e-6))
    inputs, causal = inputs_of(model, name), not model.config.is_encoder_decoder
    refilled = inputs_of(model, name, filler=4) if causal else inputs
    free = run(model, inputs, {"max_new_tokens": NEW, "no_repeat_ngram_size": 2})["sequences"][0][-NEW:]
    plain = run(model, inputs, {"max_new_tokens": NEW})["sequences"][1][-NEW:]
    cases, left = [], 0
    seq2seq = model.config.is_encoder_decoder
    for arguments in few_cases_of(seq2seq, free[4]) if name in FEW else cases_of(seq2seq, plain[4], free[1:6]):
        found, *checks = run(model, inputs, arguments), run(other, inputs, arguments), run(model, refilled, arguments)
        if name in FEW:
            uncached = run(model, inputs, {**arguments, "use_cache": False})
            assert uncached["sequences"] == found["sequences"], (name, arguments)
        new = [
            [row[len(inputs["input_ids"][0]) :] if causal else row for row in x["sequences"]] for x in (found, *checks)
        ]
        if new[0] == new[1] == new[2]:
            cases.append({"arguments": arguments, **found})
        else:
            left += 1
    weights = {key: list(shape) for key, shape in golden.weights.items()}
    content = {"kind": golden.kind, "family": golden.family, "config": golden.config, "weights": weights}
    content |= {"versions": VERSIONS, "inputs": inputs, "cases": cases}
    lines = json.dumps({**content, "cases": None}, sort_keys=True)[:-1].replace('"cases": null, ', "")
    body = ",\n".join(json.dumps(case, sort_keys=True) for case in cases)
    path = HERE / f"{name}.json"
    path.write_text(f'{lines}, "cases": [\n{body}\n]}}\n')
    assert json.loads(path.read_text()) == json.loads(json.dumps({**content}))
    print(f"{path.name}: {len(cases)} cases, {left} left out, {path.stat().st_size} bytes")


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for name in sys.argv[1:] or {**MODELS, **FEW}:
        make(name)


if __name__ == "__main__":
    main()
