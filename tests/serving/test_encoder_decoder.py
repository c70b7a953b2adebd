"""Slots of an encoder-decoder: each row reads its own source, with more texts than slots."""

from __future__ import annotations

import pathlib
import queue
import time

import pytest
from serving_clients import Running

from helpers import tiny, toys
from helpers.language_folders import open_family
from lm_research.config import ModelConfig
from lm_research.models.families import define_model
from lm_research.pretrained import LanguageModel
from lm_research.serving.app import Limits, make_app
from lm_research.serving.batcher import Batcher, Event, RequestStream

SHAPE = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "max_length": 32}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    definition = define_model(ModelConfig(family="transformer", **SHAPE), 257)
    config, params = {"decoder_start_token_id": 0}, tiny.random_params(definition, scale=0.6)
    return LanguageModel(definition, params, "transformer", config, tokenizer=toys.ByteTokenizer())


@pytest.mark.slow
def test_beams_read_their_own_sources(lm: LanguageModel) -> None:
    running = Running(make_app(lm, "toy", Limits(slots=2, length=24, max_tokens=8)))
    try:
        body = {"prompt": ["ab", "abcdefgh"], "max_tokens": 8, "num_beams": 2, "n": 2}
        texts = [choice["text"] for choice in running.post("/v1/completions", body).json()["choices"]]
    finally:
        running.stop()
    assert texts == lm.generate(prompts=["ab", "abcdefgh"], max_new_tokens=8, num_beams=2, num_return_sequences=2)
    assert len(set(texts)) > 1


def test_sources_are_not_mixed_up(lm: LanguageModel) -> None:
    batcher = Batcher(lm, slots=3, length=24, max_queue=9, max_seconds=60, max_tokens=8)
    options, events, texts = batcher.options({"max_new_tokens": 8, "seed": 0}), queue.Queue(), {}
    prompts, writers = ["ab", "abcdefgh", "xyzzy", "q w"], []
    for text in prompts:

        def deliver(event: Event, text: str = text) -> None:
            events.put((text, event))

        tokens, source = batcher.prompt(text, options)
        deadline = time.monotonic() + 60
        writers.append(RequestStream(lm.tokenizer, tokens, source, options, 0, [], False, deadline, deliver))
    batcher.submit(writers)
    left = len(prompts)
    while left:
        text, event = events.get(timeout=60)
        texts[text] = texts.get(text, "") + event.text
        left -= bool(event.finish)
    batcher.close()
    assert [texts[text] for text in prompts] == lm.generate(prompts=prompts, max_new_tokens=8)
    assert len(set(texts.values())) > 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["MBart", "MBart50"])
def test_texts_are_in_the_languages_of_the_files_or_the_request(family: str, tmp_path: pathlib.Path) -> None:
    """In slots and outside them, as `generate` writes them."""
    tokenizer, golden = open_family(tmp_path, family)
    definition = define_model(ModelConfig(family="mbart", **SHAPE), tokenizer.size)
    params = tiny.random_params(definition, 2, 0.6)  # a seed that writes words
    lm = LanguageModel(definition, params, "mbart", {"decoder_start_token_id": 2, "eos_token_id": 2}, tokenizer)
    running, german = Running(make_app(lm, "toy", Limits(slots=2, length=24, max_tokens=6))), {"tgt_lang": "de_DE"}
    try:
        body, lengths = (
            {"prompt": "light", "max_tokens": 6, "min_tokens": 6, "temperature": 0},
            {"max_new_tokens": 6, "min_new_tokens": 6},
        )
        texts = {}
        for more in ({}, {"num_beams": 2}, german, german | {"src_lang": "fr_XX"}):
            texts[tuple(more)] = running.post("/v1/completions", body | more).json()["choices"][0]["text"]
            assert [texts[tuple(more)]] == lm.generate(prompts=["light"], **lengths, **more), more
        refused = running.post("/v1/completions", body | {"tgt_lang": "de"})
    finally:
        running.stop()
    assert len(set(texts.values())) > 2 and refused.status_code == 400 and "Valid: de_DE" in refused.text
    forced = {"decoder_start_token_id" if family == "MBart" else "forced_bos_token_id": golden["code"]}
    assert (
        texts[()]
        == lm.generate(input_ids=golden["input_ids"][2:], **lengths, return_dict_in_generate=True, **forced).texts[0]
    )
