"""Make harness.json next to this file: answers of the harness's own model "hf" for small models.

Run in a separate environment with torch 2.13, transformers 5.24 and lm_eval 0.4.13; tests need neither of the first two:

    PYTHONPATH=tests python tests/interop/lm_eval_goldens/make_goldens.py

Weights follow the rule of tests/helpers/golden_models.py, times four, so that likelihoods differ. For encoder-decoders `hf` writes more
tokens than requested (as many again as the source has): those answers are not kept.
"""

from __future__ import annotations

import json
import pathlib
import tempfile
from types import SimpleNamespace

import lm_eval
import torch
import transformers
from lm_eval.models.huggingface import HFLM

from helpers.golden_models import golden_tensor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
TEXTS = ["the river flows to the sea", "a stone lies in the river", "bread and water at night"]
SMALL = {"vocab_size": 290, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
LLAMA = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
MODELS = {  # name -> class, its config, whether its tokenizer puts <s> before texts
    "learned": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}, False),
    "rotary": ("LlamaForCausalLM", LLAMA | {"max_position_embeddings": 20}, False),
    "rotary_bos": ("LlamaForCausalLM", LLAMA | {"max_position_embeddings": 20}, True),
    "relative": (
        "T5ForConditionalGeneration",
        {
            "d_model": 16,
            "num_layers": 1,
            "num_heads": 2,
            "d_ff": 24,
            "d_kv": 8,
            "decoder_start_token_id": 1,
            "n_positions": 12,
        },
        False,
    ),
}
REQUESTS = {
    "loglikelihood": [
        ["the river", " flows"],
        ["", "a stone"],
        ["bread and ", " water at night"],
        ["x " * 40, " river"],
        ["<s>the", " sea"],
    ],
    "loglikelihood_rolling": [[" ".join(TEXTS * 3)], ["the"], ["<s>a stone"]],
    "generate_until": [
        ["the river " * 12, {"until": ["\n"], "max_gen_toks": 5}],
        ["a stone", {"until": [], "max_gen_toks": 5}],
    ],
}


def tokenizer(bos: bool) -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        TEXTS * 20, trainers.BpeTrainer(vocab_size=290, special_tokens=["<s>", "</s>"], initial_alphabet=letters)
    )
    if bos:
        found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return found


def answers(kind: str, config: dict, bos: bool) -> dict:
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**SMALL, **config)).eval()
    with torch.no_grad():
        for name, weight in reversed(model.state_dict().items()):  # of tied tensors the first name counts
            weight.copy_(4 * torch.tensor(golden_tensor(name, tuple(weight.shape))))
    first = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}
    weights = {name: list(x.shape) for name, x in model.state_dict().items() if name == first[x.data_ptr()]}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        wrapped = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer(bos), bos_token="<s>", eos_token="</s>", pad_token="</s>"
        )
        wrapped.save_pretrained(folder)
        harness = HFLM(pretrained=folder, device="cpu", batch_size=2, dtype="float32")
        found = {
            name: getattr(harness, name)([SimpleNamespace(args=tuple(one)) for one in given], disable_tqdm=True)
            for name, given in REQUESTS.items()
            if name != "generate_until" or harness.backend == "causal"
        }
        text = (pathlib.Path(folder) / "config.json").read_text()
    return {
        "kind": kind,
        "config": json.loads(text),
        "weights": weights,
        "bos": bos,
        "max_length": harness.max_length,
        **found,
    }


versions = {"torch": torch.__version__, "transformers": transformers.__version__, "lm_eval": lm_eval.__version__}
content = {
    "versions": versions,
    "requests": REQUESTS,
    "tokenizers": {str(bos): json.loads(tokenizer(bos).to_str()) for bos in (False, True)},
    "models": {name: answers(*model) for name, model in MODELS.items()},
}
(HERE / "harness.json").write_text(json.dumps(content, ensure_ascii=False) + "\n")
