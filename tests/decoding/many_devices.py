"""Run by test_many_devices.py in a process with eight simulated devices: texts of a divided model, as JSON."""

from __future__ import annotations

import functools
import json
import queue
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax

from helpers import toys
from lm_research.decoding.generate import engine_of, generate
from lm_research.decoding.generation_request import Request
from lm_research.pretrained import LanguageModel, from_pretrained
from lm_research.serving.batcher import Batcher, RequestStream

PROMPTS = [[3, 1, 4], [1], [5, 2, 6, 5, 3]]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 3, "top_k": 5},
    "beams": {"num_beams": 3, "eos_token_id": 2},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
}


def texts(lm: LanguageModel) -> dict[str, list]:
    return {name: generate(lm, PROMPTS, max_new_tokens=6, **options).tolist() for name, options in WAYS.items()}


class Digits(toys.ByteTokenizer):
    """Token n is the digit n."""

    roles: dict[str, int] = {}
    size = toys.VOCAB

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) % self.size for letter in text] for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(str, ids))


def served(lm: LanguageModel) -> list[str]:
    """The tokens that a server's slots generate after the prompts."""
    lm.tokenizer, events, said = Digits(), queue.Queue(), [""] * len(PROMPTS)
    batcher = Batcher(lm, slots=3, length=24, max_queue=9, max_seconds=300, max_tokens=8)
    options, writers = batcher.options({"max_new_tokens": 6, "seed": 0}), []
    for number, prompt in enumerate(PROMPTS):
        deliver = functools.partial(lambda number, event: events.put((number, event)), number)
        writers.append(
            RequestStream(lm.tokenizer, prompt, None, options, 0, [], False, time.monotonic() + 300, deliver)
        )
    batcher.submit(writers)
    left = len(writers)
    while left:
        number, event = events.get(timeout=300)
        said[number] += event.text
        left -= bool(event.finish)
    batcher.close()
    return said


def main() -> None:
    """Save the model to a directory and load it onto a mesh by name, as users do."""
    with tempfile.TemporaryDirectory() as folder:
        toys.language_model().save_pretrained(folder)
        lm = from_pretrained(folder, mesh="data=2,fsdp=2,tensor=2")
    found = texts(lm)
    request = Request(lm, {"max_new_tokens": 6}, {"input_ids": PROMPTS}, None)
    state = engine_of(lm).prefill(request.plan(), request.prompts, request.settings)
    keys = jax.tree.leaves(state.cache.keys)[0]
    shard = keys.addressable_shards[0].data.shape
    layout = {"keys": keys.shape[-4:], "shard": shard[-4:], "devices": jax.device_count()}
    print(json.dumps({"texts": found, "served": served(lm), **layout}))


if __name__ == "__main__":
    main()
