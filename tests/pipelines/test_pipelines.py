"""Cases without another implementation to compare with: question answering by brute force, generation, and errors."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.golden_pipelines import write_model, write_vocabulary
from helpers.hf_folders import write_folder
from lm_research import pipeline
from lm_research.errors import UserError
from lm_research.models.definition import define
from lm_research.models.heads import HeadSpec
from lm_research.pipelines.base import softmax
from lm_research.pipelines.extraction import QuestionAnswering
from lm_research.pipelines.generation import TextGeneration
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
    """All spans of at most 15 tokens, one by one, in the one window that holds everything; [CLS] has a probability too."""
    tokens = reader.tokenizer(QUESTION, CONTEXT, return_offsets=True)
    outputs = reader.lm(**{name: tokens[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
    inside = np.flatnonzero((tokens["token_type_ids"][0] == 1) & (tokens["input_ids"][0] != 3))
    start, end = (
        softmax(np.asarray(outputs[f"{side}_logits"])[0][[0, *inside]].astype(np.float64))[1:]
        for side in ("start", "end")
    )
    spans = {(a, b): start[a] * end[b] for a in range(len(inside)) for b in range(a, min(a + 15, len(inside)))}
    best = sorted(spans, key=lambda span: -spans[span])[:4]

    options = dict(top_k=4, max_seq_len=40, doc_stride=4, align_to_words=False)
    found = reader({"question": QUESTION, "context": CONTEXT}, **options)

    offsets = tokens["offset_mapping"][0][inside]
    for (a, b), answer in zip(best, found, strict=True):
        assert (answer["start"], answer["end"]) == (offsets[a][0], offsets[b][1])
        assert answer["score"] == pytest.approx(spans[a, b], rel=1e-4)
        assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]]


@pytest.mark.parametrize("stride", [0, 1, 5, 10, 12])
def test_long_contexts_are_read_in_windows(reader: QuestionAnswering, stride: int) -> None:
    """Together the windows hold the context's tokens unchanged, also where one begins within a word; `stride` of them twice."""
    whole = reader.tokenizer(CONTEXT, add_special_tokens=False)["input_ids"][0].tolist()
    question = reader.tokenizer(QUESTION)["input_ids"][0].tolist()
    windows, _ = reader._windows(QUESTION, CONTEXT, 24, stride)
    parts = [window.ids[window.offsets[:, 0] >= 0].tolist() for window in windows]
    assert len(windows) > 1
    for window, part in zip(windows, parts, strict=True):
        assert window.ids.tolist() == [*question, *part, 3] and len(window.ids) <= 24
    assert parts[0] + [token for part in parts[1:] for token in part[stride:]] == whole
    assert all(one[len(one) - stride :] == other[:stride] for one, other in zip(parts, parts[1:], strict=False))
    if stride == 10:
        assert any(reader.tokenizer.backend.id_to_token(part[0]).startswith("##") for part in parts)
    found = reader({"question": QUESTION, "context": CONTEXT}, max_seq_len=24, doc_stride=stride)
    assert found["answer"] == CONTEXT[found["start"] : found["end"]] and found["answer"]


def test_each_window_has_its_own_probabilities(reader: QuestionAnswering) -> None:
    """Hugging Face's rule: softmax over [CLS] and the context's tokens of a window; the best product of any window."""
    windows, _ = reader._windows(QUESTION, CONTEXT, 24, 5)
    best = 0.0
    for window in windows:
        outputs = reader.lm(input_ids=window.ids[None], token_type_ids=window.types[None])
        inside = np.flatnonzero(window.offsets[:, 0] >= 0)
        start, end = (softmax(np.asarray(outputs[f"{side}_logits"])[0][[0, *inside]])[1:] for side in ("start", "end"))
        best = max(best, *(start[a] * end[b] for a in range(len(inside)) for b in range(a, min(a + 15, len(inside)))))
    found = reader({"question": QUESTION, "context": CONTEXT}, max_seq_len=24, doc_stride=5)
    assert found["score"] == pytest.approx(best, rel=1e-4)


def test_the_default_stride_is_half_of_a_short_model(reader: QuestionAnswering) -> None:
    """min(max_seq_len // 2, 128); a context that fits needs no stride."""
    given = {"question": QUESTION, "context": CONTEXT}
    asked = reader.tokenizer(QUESTION, "")["input_ids"].shape[1]
    assert reader(given, max_seq_len=22) == reader(given, max_seq_len=22, doc_stride=11)
    assert reader({"question": QUESTION, "context": "a king"}, max_seq_len=asked + 2)["answer"]
    with pytest.raises(UserError, match="leaves no more than doc_stride=5"):
        reader({"question": QUESTION, "context": "a king visited"}, max_seq_len=asked + 2)


def test_answers_are_whole_words(reader: QuestionAnswering) -> None:
    words = [(match.start(), match.end()) for match in re.finditer(r"\w+|[^\w\s]", CONTEXT)]
    given = {"question": QUESTION, "context": CONTEXT}
    pieces, whole = (reader(given, top_k=40, max_answer_len=2, align_to_words=way) for way in (False, True))
    starts, ends = zip(*words, strict=True)
    assert any(one["start"] not in starts or one["end"] not in ends for one in pieces)
    assert all(one["start"] in starts and one["end"] in ends for one in whole)

    def widened(one):
        return (
            max(start for start in starts if start <= one["start"]),
            min(end for end in ends if end >= one["end"]),
        )

    assert widened(pieces[0]) == (whole[0]["start"], whole[0]["end"]) and pieces[0]["score"] == whole[0]["score"]


def test_a_question_may_name_special_tokens(reader: QuestionAnswering) -> None:
    (window,), _ = reader._windows("who [SEP] visits [SEP]", "a king visits", 40, 4)
    ids = reader.tokenizer("a king visits", add_special_tokens=False)["input_ids"][0].tolist()
    assert window.ids[window.offsets[:, 0] >= 0].tolist() == ids


def test_questions_by_name(reader: QuestionAnswering) -> None:
    other = "A queen visits mountains."
    one, two = ({"question": QUESTION, "context": context} for context in (CONTEXT, other))
    assert reader(question=QUESTION, context=CONTEXT) == reader(QUESTION, CONTEXT) == reader(one)
    assert reader(question=[QUESTION] * 2, context=[CONTEXT, other]) == reader([one, two])
    assert reader(question=[QUESTION, "who?"], context=other, top_k=2) == reader(
        [two, two | {"question": "who?"}], top_k=2
    )
    with pytest.raises(UserError, match="2 questions and 1 contexts"):
        reader(question=[QUESTION] * 2, context=[CONTEXT])
    with pytest.raises(UserError, match="question=None and context='The king"):
        reader(context=CONTEXT)


def test_an_empty_answer_is_allowed_on_request(reader: QuestionAnswering) -> None:
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
    write_vocabulary(tmp)
    return causal_with(tmp, bos_token_id=2)


def causal_with(vocabulary: pathlib.Path, **config: Any) -> LanguageModel:
    """A tiny GPT-2 with a vocabulary."""
    from lm_research.config import ModelConfig
    from lm_research.models.families import define_model
    from lm_research.tokenizers.loading import load_tokenizer

    section = ModelConfig(family="gpt2", hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_length=64)
    tokenizer = load_tokenizer(vocabulary)
    definition = define_model(section, tokenizer.size)
    return LanguageModel(definition, definition.init(0), "gpt2", config, tokenizer)


def test_text_generation_equals_generate(tmp_path: pathlib.Path) -> None:
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
    # The template adds the special tokens: the tokenizer adds none.
    ids = lm.tokenizer("user : who visited the river ? . the", add_special_tokens=False)["input_ids"]
    expected = lm.generate(ids, max_new_tokens=4, return_dict_in_generate=True).texts[0]
    assert expected and found == [*messages, {"role": "assistant", "content": expected}]


def test_a_causal_model_classifies_without_training(tmp_path: pathlib.Path) -> None:
    """The labels' likelihoods, by the model's own logits."""
    lm = causal(tmp_path, tmp_path)
    labels = ["food", "the old river"]
    found = pipeline("zero-shot-classification", lm)("a king", candidate_labels=labels, hypothesis_template="is {}")
    means = []
    for label in labels:
        # A causal model reads the separator before a text, not BERT's special tokens.
        start, end = ([lm.tokenizer.sep_id, *lm.tokenizer.encode(text)] for text in ("a king", f"a king is {label}"))
        ids = np.concatenate([start, lm.tokenizer.encode(f" is {label}")])
        logits = np.asarray(lm(input_ids=ids[None])["logits"])[0].astype(np.float64)
        shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        means.append(np.mean([shares[place - 1, ids[place]] for place in range(len(start), len(ids))]))
        assert len(end) == len(ids)
    expected = softmax(np.array(means))
    assert found["scores"] == pytest.approx(sorted(expected, reverse=True), rel=1e-4)
    assert found["labels"][0] == labels[int(expected.argmax())]


@pytest.mark.parametrize("legacy", [True, False])
def test_labels_continue_the_text_in_sentencepiece(legacy: bool, tmp_path: pathlib.Path) -> None:
    """Llama's kind puts a space before a text; a label after one has the ids of the running text, and no second space."""
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy}
    lm = causal_with(write_folder(tmp_path, "llama", tokenizer_config__json=settings))
    text, labels = "God said", ["light", "the earth"]
    prompt, whole = lm.tokenizer.encode(text), [lm.tokenizer.encode(f"{text} is {label}") for label in labels]
    assert all(ids[: len(prompt)] == prompt for ids in whole)
    expected = lm.score([text, text], [ids[len(prompt) :] for ids in whole])
    for found, own in zip(lm.score([text, text], [f" is {label}" for label in labels]), expected, strict=True):
        np.testing.assert_allclose(found, own, rtol=1e-6)
    found = pipeline("zero-shot-classification", lm)(text, candidate_labels=labels, hypothesis_template="is {}")
    shares = softmax(np.array([one.mean() for one in expected]))
    assert dict(zip(found["labels"], found["scores"], strict=True)) == pytest.approx(
        dict(zip(labels, shares, strict=True)), rel=1e-5
    )


def test_similar_sentences(tmp_path: pathlib.Path) -> None:
    folder = write_model("features", tmp_path / "bert")
    texts = ["the king visited spain", "a queen visits the river", "bread is good"]
    found = pipeline("sentence-similarity", folder)({"source_sentence": texts[0], "sentences": texts})
    states = [np.asarray(pipeline("feature-extraction", folder)(text))[0].mean(0) for text in texts]
    cosine = [a @ states[0] / np.linalg.norm(a) / np.linalg.norm(states[0]) for a in states]
    assert found == pytest.approx(cosine, abs=1e-5)
    # Also where the directory does not divide its embeddings by their lengths.
    parts = ("Transformer", "Pooling")
    modules = [
        {"idx": i, "name": str(i), "path": "1_Pooling" * i, "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    width = states[0].shape[-1]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    similar = pipeline("sentence-similarity", folder)
    assert np.linalg.norm(similar.lm.embed(texts[:1])) != pytest.approx(1, abs=0.1)
    assert similar({"source_sentence": texts[0], "sentences": texts}) == pytest.approx(cosine, abs=1e-5)


def test_a_run_of_ours_fills_masks(tmp_path: pathlib.Path, bert_run: pathlib.Path) -> None:
    """Its own sentencepiece model does not recognize special tokens in texts; here they are recognized."""
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
def test_errors(case: str, tmp_path: pathlib.Path) -> None:
    task, model, inputs, options, message = MISTAKES[case]
    with pytest.raises(UserError, match=message):
        pipeline(task, write_model(model, tmp_path))(inputs, **options)


def test_invalid_questions(reader: QuestionAnswering) -> None:
    given = {"question": QUESTION, "context": CONTEXT}
    with pytest.raises(UserError, match="has no 'context'"):
        reader({"question": QUESTION})
    with pytest.raises(UserError, match="Input 1 of question-answering has None as 'context', not a text"):
        reader([given, {"question": QUESTION, "context": None}])
    with pytest.raises(UserError, match="has an empty context"):
        reader({"question": QUESTION, "context": " "})
    with pytest.raises(UserError, match="is empty for this model"):
        reader({"question": QUESTION, "context": "\u200b"})
    with pytest.raises(UserError, match="leaves no more than doc_stride"):
        reader(given, max_seq_len=12, doc_stride=8)
    for name in ("max_answer_len", "top_k"):
        with pytest.raises(UserError, match=f"{name}=0 must be at least 1"):
            reader(given, **{name: 0})
    assert define(reader.lm.definition.arch, HeadSpec("span")).head.name == reader.lm.head


def test_options_are_checked_before_the_model() -> None:
    for name, value, message in (
        ("device", 0, "has no option 'device'. JAX uses the available accelerator"),
        ("torch_dtype", "float16", 'Write dtype="bfloat16"'),
        ("top", 3, "Did you mean 'top_k'"),
        ("truncation", True, "Texts are truncated"),
        ("batch_size", 0, "batch_size=0 must be at least 1"),
        ("batch_size", "8", "must be a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline("text-classification", "no/such/folder", **{name: value})


def test_options_of_a_call(tmp_path: pathlib.Path) -> None:
    classify = pipeline("text-classification", write_model("classes", tmp_path))
    for inputs, options, message in (
        ("x", {"topk": 2}, "Did you mean 'top_k'"),
        ("x", {"device": 0}, "leave it out"),
        ("x", {"batch_size": 0}, "batch_size=0 must be at least 1"),
        (["x"], {"batch_size": 0}, "batch_size=0 must be at least 1"),
        ("x", {"top_k": "two"}, "must be a whole number or 'one' or None"),
        (None, {}, "Input 0 of text-classification is None, not a text"),
        (["a", "b", None], {"batch_size": 2}, "Input 2 of text-classification is None"),
        ([{"text": "a", "text_pair": 5}], {}, "has 5 as 'text_pair'"),
    ):
        with pytest.raises(UserError, match=message):
            classify(inputs, **options)
    with pytest.raises(UserError, match="text-generation has no option 'max_new_token'. Did you mean 'max_new_tokens'"):
        TextGeneration.check_options("text-generation", {"max_new_token": 5})
    TextGeneration.check_options("text-generation", {"max_new_tokens": 5, "assistant_model": None})


def test_one_text_is_answered_in_a_list(tmp_path: pathlib.Path) -> None:
    """As transformers 5.24 does: [{...}] for a text, {...} for a pair or in a list, and as top_k requires where a call sets it."""
    folder = write_model("classes", tmp_path)
    classify, text = pipeline("text-classification", folder), "bread is good!"
    (best,) = classify([text])
    ranked = classify(text, top_k=None)
    by_name = {one["label"]: one for one in ranked}
    assert best == ranked[0] and classify(text) == [best] and classify(text, top_k=1) == [best]
    assert list(classify(iter([text]))) == [best]
    assert isinstance(classify({"text": text, "text_pair": text}), dict)
    assert classify(text, return_all_scores=True) == [[by_name[name] for name in ("bad", "so-so", "good")]]
    assert pipeline("text-classification", classify.lm, top_k=None)(text) == [ranked]


def test_a_text_is_not_a_list_of_letters(tmp_path: pathlib.Path) -> None:
    fill = pipeline("fill-mask", write_model("masked", tmp_path / "masked"))
    assert fill("a [MASK]", targets="king") == fill("a [MASK]", targets=["king"])
    similar = pipeline("sentence-similarity", write_model("features", tmp_path / "features"))
    given = {"source_sentence": "a king", "sentences": ["the queen"]}
    assert similar(given | {"sentences": "the queen"}) == similar(given)
    with pytest.raises(UserError, match="has 5 as 'sentences'"):
        similar(given | {"sentences": 5})


def test_labels_may_be_the_second_argument(tmp_path: pathlib.Path) -> None:
    sort, labels = pipeline("zero-shot-classification", write_model("inference", tmp_path)), ["food", "travel"]
    assert sort("bread", labels) == sort("bread", candidate_labels=labels)
    assert sort(["bread", "a river"], labels) == sort(["bread", "a river"], candidate_labels="food, travel")
    for options, message in (
        ({"candidate_labels": 5}, "candidate_labels=5 must be a list of texts or a text"),
        ({"candidate_labels": labels, "hypothesis_template": "{} {"}, "cannot be filled in"),
    ):
        with pytest.raises(UserError, match=message):
            sort("bread", **options)


def test_a_causal_model_reads_as_much_of_a_long_text_as_fits(tmp_path: pathlib.Path) -> None:
    """64 positions, of which the label's tokens take some, except the last, which is only predicted."""
    lm, labels = causal(tmp_path, tmp_path), ["food", "the old river"]
    sort = pipeline("zero-shot-classification", lm)
    options = dict(candidate_labels=labels, hypothesis_template="is {}")
    # The separator, then one token a word; "is the old river" has 4.
    fits = "king " * (64 + 1 - 4 - 1)
    assert sort(fits + "queen " * 50, **options)["scores"] == pytest.approx(sort(fits, **options)["scores"], rel=1e-6)
    with pytest.raises(UserError, match="which leaves none for the text"):
        sort("a king", candidate_labels=["food " * 65])


def test_hugging_face_options_that_text_generation_accepts(tmp_path: pathlib.Path) -> None:
    lm = causal(tmp_path, tmp_path)
    write = pipeline("text-generation", lm, max_new_tokens=5)
    output = lm.generate(prompts="a queen the king", max_new_tokens=5, return_dict_in_generate=True)
    assert write("the king", prefix="a queen ") == [{"generated_text": "the king" + output.texts[0]}]
    ids = [lm.tokenizer.sep_id, *lm.tokenizer.encode("a queen the king"), *output.new_tokens[0]]
    assert write(["a queen the king"], return_tensors=True) == [[{"generated_token_ids": ids}]]
    stop = output.texts[0].split()[1]
    expected = lm.generate(prompts="a queen the king", max_new_tokens=5, stop_strings=[stop])[0]
    assert write("a queen the king", stop_sequence=stop, return_full_text=False) == [{"generated_text": expected}]
    assert write("a queen the king", return_text=True) == write("a queen the king")
    for inputs in (5, [None], {"role": "user"}):
        with pytest.raises(UserError, match="not a text or messages"):
            write(inputs)


def translator(folder: pathlib.Path) -> LanguageModel:
    """A tiny BART that reads at most 16 tokens, with mBART's tokenizer, which ends texts with </s> and their language."""
    from lm_research.config import ModelConfig
    from lm_research.models.families import define_model
    from lm_research.tokenizers.loading import load_tokenizer

    tokenizer = load_tokenizer(write_folder(folder, "mbart"))
    section = ModelConfig(family="bart", hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_length=16)
    config = {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    definition = define_model(section, tokenizer.size)
    return LanguageModel(definition, definition.init(0), "bart", config, tokenizer)


def test_translation_between_languages_of_texts_that_are_cut(tmp_path: pathlib.Path) -> None:
    lm = translator(tmp_path)
    romanian, english = (lm.tokenizer.token_id(code) for code in ("ro_RO", "en_XX"))
    translate = pipeline("translation", lm, max_new_tokens=4, return_tensors=True)

    def ids(source: list[int], start: int) -> list[dict[str, Any]]:
        row = lm.generate(input_ids=[source], decoder_start_token_id=start, max_new_tokens=4)[0]
        return [{"translation_token_ids": row.tolist()}]

    plain = lm.tokenizer.encode("a king")
    assert translate("a king") == ids([*plain, 2, english], 2)
    assert translate("a king", src_lang="ro_RO", tgt_lang="en_XX") == ids([*plain, 2, romanian], english)
    long = lm.tokenizer.encode("a king " * 20)
    with pytest.raises(UserError, match="positions for 16"):
        translate("a king " * 20)
    assert translate("a king " * 20, truncation=True) == ids([*long[:14], 2, english], 2)
    assert translate("a king " * 20, truncation=True, src_lang="ro_RO") == ids([*long[:14], 2, romanian], 2)
    with pytest.raises(UserError, match="no language 'ro-RO'. Did you mean 'ro_RO'"):
        translate("a king", tgt_lang="ro-RO")
    lm.tokenizer = load_vocabulary(tmp_path / "bert")
    with pytest.raises(UserError, match="has no language codes"):
        pipeline("translation", lm)("a king", src_lang="ro_RO")


def load_vocabulary(folder: pathlib.Path) -> Any:
    from lm_research.tokenizers.loading import load_tokenizer

    folder.mkdir()
    write_vocabulary(folder)
    return load_tokenizer(folder)
