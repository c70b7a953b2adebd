"""What no other implementation can be asked for any more: question answering by brute force, writing, and mistakes."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from golden_pipelines import CONTENT, write_model, write_vocabulary

import lm_research
from lm_research import pipeline
from lm_research.errors import UserError
from lm_research.models.definition import define
from lm_research.models.heads import Head
from lm_research.pipelines.base import softmax
from lm_research.pipelines.spans import QuestionAnswering
from lm_research.pretrained import LanguageModel

QUESTION = "Who visited the river?"
CONTEXT = "The king of Spain visited the old river in march. A queen visits mountains. Bread is good, the travel bad."


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswering:
    """Question answering with random weights."""
    folder = write_model("features", tmp_path_factory.mktemp("models") / "bert")
    lm = lm_research.from_pretrained(folder, head="span")
    keys = np.random.default_rng(0)
    lm.params["classifier"]["kernel"] = keys.normal(size=lm.params["classifier"]["kernel"].shape).astype(np.float32)
    return pipeline("question-answering", lm)


def test_an_answer_is_the_likeliest_span_of_the_context(reader: QuestionAnswering) -> None:
    """All spans of at most 15 tokens, one by one, in the one window that holds everything."""
    tokens = reader.tokenizer(QUESTION, CONTEXT, return_offsets=True)
    outputs = reader.lm(**{name: tokens[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    inside = np.flatnonzero((tokens["token_type_ids"][0] == 1) & (tokens["input_ids"][0] != 3))
    start, end = (
        softmax(np.asarray(outputs[f"{side}_logits"])[0][inside].astype(np.float64)) for side in ("start", "end")
    )
    spans = {(a, b): start[a] * end[b] for a in range(len(inside)) for b in range(a, min(a + 15, len(inside)))}
    best = sorted(spans, key=lambda span: -spans[span])[:4]

    found = reader({"question": QUESTION, "context": CONTEXT}, top_k=4, max_seq_len=40, doc_stride=4)

    offsets = tokens["offset_mapping"][0][inside]
    for (a, b), answer in zip(best, found, strict=True):
        assert (answer["start"], answer["end"]) == (offsets[a][0], offsets[b][1])
        assert answer["score"] == pytest.approx(spans[a, b], rel=1e-4)
        assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]]


def test_long_contexts_are_read_in_windows(reader: QuestionAnswering) -> None:
    """Every window holds the question; together they hold every token of the context, `doc_stride` of them twice."""
    windows = reader._windows(QUESTION, CONTEXT, 24, 5)
    assert len(windows) > 1 and all(window["encoded"]["input_ids"].shape[1] <= 24 for window in windows)
    covered = [{tuple(window["offsets"][place]) for place in window["places"]} for window in windows]
    whole = reader.tokenizer(CONTEXT, add_special_tokens=False, return_offsets=True)["offset_mapping"][0]
    assert set().union(*covered) == {tuple(pair) for pair in whole}
    assert all(len(a & b) == 5 for a, b in zip(covered, covered[1:], strict=False))
    found = reader({"question": QUESTION, "context": CONTEXT}, max_seq_len=24, doc_stride=5)
    assert found["answer"] == CONTEXT[found["start"] : found["end"]] and found["answer"]


def test_no_answer_is_one_where_it_may_be(reader: QuestionAnswering) -> None:
    found = reader(
        {"question": QUESTION, "context": CONTEXT},
        top_k=60,
        handle_impossible_answer=True,
        max_seq_len=40,
        doc_stride=4,
    )
    assert [answer["score"] for answer in found if not answer["answer"]] and "" not in [
        answer["answer"]
        for answer in reader({"question": QUESTION, "context": CONTEXT}, top_k=60, max_seq_len=40, doc_stride=4)
    ]


def causal(folder: pathlib.Path, tmp: pathlib.Path) -> LanguageModel:
    """A tiny GPT-2 with the vocabulary of the goldens."""
    from lm_research.config import ModelConfig
    from lm_research.models.families import define_model

    section = ModelConfig(family="gpt2", hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_length=64)
    definition = define_model(section, len(CONTENT["vocab"]))
    write_vocabulary(tmp)
    from lm_research.data.hf_tokenizer import load_tokenizer

    return LanguageModel(definition, definition.init(0), "gpt2", {"bos_token_id": 2}, load_tokenizer(tmp))


def test_writing_is_what_generate_says(tmp_path: pathlib.Path) -> None:
    lm = causal(tmp_path, tmp_path)
    write = pipeline("text-generation", lm, max_new_tokens=5)
    (expected,) = lm.generate(prompts="the king", max_new_tokens=5)
    assert write("the king") == [{"generated_text": "the king" + expected}]
    assert write(["the king"], return_full_text=False) == [[{"generated_text": expected}]]
    several = write("a queen", do_sample=True, seed=1, num_return_sequences=3)
    assert len(several) == 3 and all(one["generated_text"].startswith("a queen") for one in several)


def test_messages_go_through_the_models_own_template(tmp_path: pathlib.Path) -> None:
    lm = causal(tmp_path, tmp_path)
    messages = [{"role": "user", "content": "who visited the river ?"}]
    with pytest.raises(UserError, match="no chat_template"):
        pipeline("conversational", lm)(messages)
    template = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} . {% endfor %}{% if add_generation_prompt %}the{% endif %}"
    settings = json.loads(lm.tokenizer.files["tokenizer_config.json"])
    lm.tokenizer.files["tokenizer_config.json"] = json.dumps(settings | {"chat_template": template}).encode()
    found = pipeline("conversational", lm)(messages, max_new_tokens=4)
    # Special tokens are the template's business: the tokenizer adds none.
    ids = lm.tokenizer("user : who visited the river ? . the", add_special_tokens=False)["input_ids"]
    expected = lm.generate(ids, max_new_tokens=4, return_dict_in_generate=True).texts[0]
    assert expected and found == [*messages, {"role": "assistant", "content": expected}]


def test_a_causal_model_sorts_without_training(tmp_path: pathlib.Path) -> None:
    """The labels' likelihoods, by the model's own logits."""
    lm = causal(tmp_path, tmp_path)
    labels = ["food", "the old river"]
    found = pipeline("zero-shot-classification", lm)("a king", candidate_labels=labels, hypothesis_template="is {}")
    means = []
    for label in labels:
        # A causal model reads the separator before a text, not what BERT puts around it.
        start, end = ([lm.tokenizer.sep_id, *lm.tokenizer.encode(text)] for text in ("a king", f"a king is {label}"))
        ids = np.concatenate([start, lm.tokenizer.encode(f" is {label}")])
        logits = np.asarray(lm(input_ids=ids[None])["logits"])[0].astype(np.float64)
        shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        means.append(np.mean([shares[place - 1, ids[place]] for place in range(len(start), len(ids))]))
        assert len(end) == len(ids)
    expected = softmax(np.array(means))
    assert found["scores"] == pytest.approx(sorted(expected, reverse=True), rel=1e-4)
    assert found["labels"][0] == labels[int(expected.argmax())]


def test_similar_sentences(tmp_path: pathlib.Path) -> None:
    folder = write_model("features", tmp_path / "bert")
    texts = ["the king visited spain", "a queen visits the river", "bread is good"]
    found = pipeline("sentence-similarity", folder)({"source_sentence": texts[0], "sentences": texts})
    states = [np.asarray(pipeline("feature-extraction", folder)(text))[0].mean(0) for text in texts]
    cosine = [a @ states[0] / np.linalg.norm(a) / np.linalg.norm(states[0]) for a in states]
    assert found == pytest.approx(cosine, abs=1e-5)


def test_a_run_of_ours_fills_masks(tmp_path: pathlib.Path, bert_run: pathlib.Path) -> None:
    """Its own sentencepiece model knows no special tokens in texts; here it does."""
    found = pipeline("fill-mask", bert_run)("The king said [MASK] to his house.", top_k=2)
    assert len(found) == 2 and all("king said" in one["sequence"] for one in found)


MISTAKES: dict[str, tuple[str, str, Any, dict[str, Any], str]] = {
    "task": ("fill-masks", "masked", "x", {}, "no task 'fill-masks'. Did you mean 'fill-mask'"),
    "head": ("fill-mask", "classes", "x", {}, "needs a model with head masked_lm"),
    "no mask": ("fill-mask", "masked", "the king", {}, r"has no \[MASK\] in it"),
    "long target": ("fill-mask", "masked", "a [MASK]", {"targets": ["visited"]}, "'visited' is 2 tokens"),
    "function": ("text-classification", "classes", "x", {"function_to_apply": "max"}, "softmax, sigmoid or none"),
    "no labels": ("zero-shot-classification", "inference", "x", {}, "Give candidate_labels"),
    "no entailment": ("zero-shot-classification", "classes", "x", {"candidate_labels": ["a"]}, "none is an entailment"),
    "aggregation": ("ner", "tags", "x", {"aggregation_strategy": "last"}, "one of none, simple"),
    "pair": ("text-classification", "classes", {"txt": "x"}, {}, "has no 'text', but 'txt'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, tmp_path: pathlib.Path) -> None:
    task, model, inputs, options, message = MISTAKES[case]
    with pytest.raises(UserError, match=message):
        pipeline(task, write_model(model, tmp_path))(inputs, **options)


def test_questions_that_cannot_be_asked(reader: QuestionAnswering) -> None:
    with pytest.raises(UserError, match="has no 'context'"):
        reader({"question": QUESTION})
    with pytest.raises(UserError, match="context of a question is empty"):
        reader({"question": QUESTION, "context": " "})
    with pytest.raises(UserError, match="leaves no more than doc_stride"):
        reader({"question": QUESTION, "context": CONTEXT}, max_seq_len=12, doc_stride=8)
    assert define(reader.lm.definition.arch, Head("span")).head.name == reader.lm.head
