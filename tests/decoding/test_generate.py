"""Inputs and outputs of `generate`: shapes, padding, seeds, ends, log-probabilities, streams, and errors.

Legend: R rows, L length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import tiny, toys
from helpers.toys import ByteTokenizer, Exact
from lm_research.decoding import engine
from lm_research.decoding.generate import engine_of, generate, score, stream
from lm_research.decoding.generation_config import make_options
from lm_research.errors import UserError
from lm_research.models.definition import define
from lm_research.pretrained import LanguageModel

PROMPTS = [[3, 1, 4], [1], [5, 2, 6, 5, 3]]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return toys.language_model(vocab=40)


@pytest.fixture(scope="module")
def exact(lm: LanguageModel) -> Exact:
    return Exact(lm)


@pytest.fixture(scope="module")
def speaker() -> LanguageModel:
    """A tokenizer of bytes, many of which are not valid characters."""
    return toys.language_model(vocab=257, scale=0.3, tokenizer=ByteTokenizer())


def greedy(exact: Exact, prompt: list[int], steps: int) -> list[int]:
    text = list(prompt)
    for _ in range(steps):
        text.append(int(exact.next(text).argmax()))
    return text[len(prompt) :]


def test_greedy_takes_the_best_token_at_each_step(lm: LanguageModel, exact: Exact) -> None:
    output = generate(lm, PROMPTS, max_new_tokens=6, return_dict_in_generate=True)
    assert output.new_tokens == [greedy(exact, prompt, 6) for prompt in PROMPTS]
    assert output.sequences.shape == (3, 5 + 6) and output.sequences.dtype == np.int32
    assert output.sequences[1].tolist() == [0, 0, 0, 0, 1, *output.new_tokens[1]]


def test_bfloat16_takes_the_best_token_of_bfloat16() -> None:
    definition = toys.definition(40, dtype="bfloat16")
    lm = LanguageModel(definition, tiny.random_params(definition, scale=0.5), "gpt2", {})
    exact = Exact(lm)
    for prompts in (PROMPTS, PROMPTS[:1]):
        found = generate(lm, prompts, max_new_tokens=6, return_dict_in_generate=True).new_tokens
        assert found == [greedy(exact, prompt, 6) for prompt in prompts]


def test_either_side_may_be_padded(lm: LanguageModel) -> None:
    left, right = np.full((3, 7), 9), np.full((3, 7), 9)
    for row, prompt in enumerate(PROMPTS):
        left[row, 7 - len(prompt) :] = right[row, : len(prompt)] = prompt
    masks = [
        np.array([[place in span for place in range(7)] for span in spans])
        for spans in (
            [range(7 - len(prompt), 7) for prompt in PROMPTS],
            [range(len(prompt)) for prompt in PROMPTS],
        )
    ]
    plain = generate(lm, PROMPTS, max_new_tokens=6)
    for ids, mask in zip((left, right), masks, strict=True):
        found = generate(lm, ids, attention_mask=mask, max_new_tokens=6)
        assert found[:, :7].tolist() == ids.tolist()  # as they were given
        assert found[:, 7:].tolist() == plain[:, 5:].tolist()


def test_padding_is_not_read_without_a_mask(lm: LanguageModel) -> None:
    """As in transformers: pad_token_id is masked wherever it occurs, unless it is also the end token; a row of nothing else is read."""
    padded = np.full((3, 7), 9)
    for row, prompt in enumerate(PROMPTS):
        padded[row, 7 - len(prompt) :] = prompt
    padded[2, 4] = 9  # within a text
    options = dict(max_new_tokens=6, pad_token_id=9)
    found, hidden = generate(lm, padded, **options), generate(lm, padded, attention_mask=padded != 9, **options)
    assert found.tolist() == hidden.tolist() == generate(lm, padded.tolist(), **options).tolist()
    read = generate(lm, padded, attention_mask=np.ones_like(padded), **options)
    assert found[:, 7:].tolist() != read[:, 7:].tolist()
    ends = generate(lm, padded, eos_token_id=[9, 39], **options)
    whole = generate(lm, padded, attention_mask=np.ones_like(padded), eos_token_id=[9, 39], **options)
    assert ends.tolist() == whole.tolist() != generate(lm, padded, eos_token_id=[39], **options).tolist()
    alone = generate(lm, [[9, 9]], **options)
    assert alone.tolist() == generate(lm, [[9, 9]], attention_mask=[[1, 1]], **options).tolist()
    filed = LanguageModel(lm.definition, lm.params, "gpt2", {"pad_token_id": 9})
    assert filed.generate(padded, max_new_tokens=6).tolist() == hidden.tolist()


def test_masks_may_be_of_rows_of_different_lengths(lm: LanguageModel) -> None:
    masks = [[1] * len(prompt) for prompt in PROMPTS]
    masks[2][0] = 0
    found = generate(lm, PROMPTS, attention_mask=masks, max_new_tokens=4, return_dict_in_generate=True).new_tokens
    cut = [*PROMPTS[:2], PROMPTS[2][1:]]
    assert found == generate(lm, cut, max_new_tokens=4, return_dict_in_generate=True).new_tokens


def test_seeds_are_taken_modulo_32_bits(lm: LanguageModel) -> None:
    first = generate(lm, PROMPTS, seed=3, **SAMPLED).tolist()
    for seed in (2**64 + 3, 3 - 2**32, np.int64(3), [2**64 + 3, 3, 3]):
        assert generate(lm, PROMPTS, seed=seed, **SAMPLED).tolist() == first


def test_texts_end_at_their_end_token(lm: LanguageModel, exact: Exact) -> None:
    free = [greedy(exact, prompt, 6) for prompt in PROMPTS]
    end = free[0][2]
    output = generate(
        lm, PROMPTS, max_new_tokens=6, eos_token_id=[end, 39], pad_token_id=7, return_dict_in_generate=True
    )
    cut = [text[: text.index(end) + 1] if end in text else text for text in free]
    assert output.new_tokens == cut and len(cut[0]) <= 3
    for row, text in zip(output.sequences[:, 5:].tolist(), cut, strict=True):
        assert row == text + [7] * (output.sequences.shape[1] - 5 - len(text))


SAMPLED = dict(max_new_tokens=6, do_sample=True, top_k=0, temperature=1.5)


def test_seeds_repeat_and_differ(lm: LanguageModel) -> None:
    first, again, other = (generate(lm, PROMPTS, seed=seed, **SAMPLED).tolist() for seed in (0, 0, 1))
    assert first == again != other
    free = {str(generate(lm, PROMPTS, **SAMPLED).tolist()) for _ in range(3)}
    assert len(free) == 3  # no seed: another one each time


def test_a_row_draws_the_same_in_any_batch(lm: LanguageModel) -> None:
    together = generate(lm, PROMPTS, seed=3, return_dict_in_generate=True, **SAMPLED).new_tokens
    for order in ([2], [1, 0], [2, 1, 0, 2, 1]):
        found = generate(lm, [PROMPTS[row] for row in order], seed=3, return_dict_in_generate=True, **SAMPLED)
        firsts = {row: text for row, text in zip(reversed(order), reversed(found.new_tokens), strict=True)}
        assert all(firsts[row] == together[row] for row in order)
    own = generate(lm, PROMPTS, seed=[5, 3, 7], return_dict_in_generate=True, **SAMPLED).new_tokens
    assert own[1] == together[1] and own[0] != together[0]


def test_copies_equal_that_many_equal_prompts(lm: LanguageModel) -> None:
    copies = generate(lm, PROMPTS[:1], seed=3, num_return_sequences=4, **SAMPLED).tolist()
    assert copies == generate(lm, PROMPTS[:1] * 4, seed=3, **SAMPLED).tolist()
    assert len({str(row) for row in copies}) == 4


def test_few_programs_serve_many_shapes(lm: LanguageModel) -> None:
    """Prompts of up to 16 tokens, other lengths and settings: the same compiled programs."""
    fresh = LanguageModel(lm.definition, lm.params, "gpt2", {})
    for length, new, temperature in ((2, 5, 0.5), (9, 7, 2.0), (15, 8, 0.7), (1, 3, 1.1)):
        generate(fresh, [[1] * length] * 3, max_new_tokens=new, do_sample=True, temperature=temperature, top_p=0.9)
    sizes = [program._cache_size() for program in engine_of(fresh)._programs.values()]
    assert sizes == [1, 1]  # one that reads and one that generates


def test_programs_that_are_not_used_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are compiled again when needed: callers cannot make a model keep ever more."""
    monkeypatch.setattr(engine, "PROGRAMS", 2)
    lm = toys.language_model()
    found = [lm.generate(input_ids=[[1, 2]], max_new_tokens=most).tolist() for most in (2, 20, 2)]
    assert found[0] == found[2] and found[1][0][:4] == found[0][0]
    assert len(engine_of(lm)._programs) == 2


def test_log_probabilities_match_the_model(lm: LanguageModel, exact: Exact) -> None:
    output = generate(
        lm, PROMPTS, max_new_tokens=4, top_logprobs=3, repetition_penalty=3.0, return_dict_in_generate=True
    )
    for row, (prompt, text) in enumerate(zip(PROMPTS, output.new_tokens, strict=True)):
        for place, token in enumerate(text):
            log = exact.next([*prompt, *text[:place]])
            best = np.argsort(-log)[:3]
            assert output.top_ids[row][place].tolist() == best.tolist()
            np.testing.assert_allclose(output.top_logprobs[row][place], log[best], atol=1e-4)
            np.testing.assert_allclose(output.logprobs[row][place], log[token], atol=1e-4)
    scores = score(lm, input_ids=PROMPTS, continuations=output.new_tokens)
    for found, expected in zip(scores, output.logprobs, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_prompts_are_texts(speaker: LanguageModel) -> None:
    texts = generate(speaker, prompts=["ab", "héé"], max_new_tokens=5)
    ids = generate(speaker, [list(text.encode()) for text in ("ab", "héé")], max_new_tokens=5)
    assert texts == [speaker.tokenizer.decode(row) for row in ids[:, 5:].tolist()]
    assert generate(speaker, prompts="ab", max_new_tokens=5) == texts[:1]


def test_stop_strings_end_a_row_after_them(speaker: LanguageModel) -> None:
    options = dict(max_new_tokens=24, do_sample=True, top_k=40, seed=1)
    free = generate(speaker, prompts=["ab", "xyz"], return_dict_in_generate=True, **options)
    stop = speaker.tokenizer.decode(free.new_tokens[0][17:19])
    output = generate(
        speaker, prompts=["ab", "xyz"], stop_strings=[stop, "\x00never"], return_dict_in_generate=True, **options
    )
    for text, whole in zip(output.texts, free.texts, strict=True):
        assert whole.startswith(text)
        assert text == whole if stop not in whole else stop in text and stop not in text[:-1]
    assert len(output.new_tokens[0]) < 24


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 100, "seed": 4}, {"stop_strings": "?"}])
def test_streams_join_to_the_text(speaker: LanguageModel, options: dict) -> None:
    for prompt in ("ab", "é"):
        pieces = list(stream(speaker, prompt, max_new_tokens=20, **options))
        assert "".join(pieces) == generate(speaker, prompts=prompt, max_new_tokens=20, **options)[0]
        assert all(pieces)


@pytest.mark.parametrize("way", [{"penalty_alpha": 0.4, "top_k": 4}, {"num_beams": 2}, {"draft": True}], ids=str)
def test_every_strategy_gives_log_probabilities(lm: LanguageModel, exact: Exact, way: dict[str, Any]) -> None:
    options = {"assistant_model": lm} if "draft" in way else way
    output = generate(lm, PROMPTS, max_new_tokens=3, output_logprobs=True, return_dict_in_generate=True, **options)
    for prompt, text, found in zip(PROMPTS, output.new_tokens, output.logprobs, strict=True):
        expected = [exact.next([*prompt, *text[:place]])[token] for place, token in enumerate(text)]
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_filters_of_a_models_files_matter_when_sampling(lm: LanguageModel) -> None:
    """Many files set temperature 0 and mean the best token."""
    filed = LanguageModel(lm.definition, lm.params, "gpt2", {})
    filed.generation_config = {"temperature": 0.0, "top_k": -1, "do_sample": False}
    assert filed.generate(PROMPTS, max_new_tokens=4).tolist() == generate(lm, PROMPTS, max_new_tokens=4).tolist()
    with pytest.raises(UserError, match="top_k=-1"):
        filed.generate(PROMPTS, max_new_tokens=4, do_sample=True)
    with pytest.raises(UserError, match="temperature=0.0: it must be above 0"):
        filed.generate(PROMPTS, max_new_tokens=4, do_sample=True, top_k=0)


def test_tokens_that_a_models_files_name_may_be_of_a_larger_vocabulary(lm: LanguageModel) -> None:
    filed = LanguageModel(lm.definition, lm.params, "gpt2", {"eos_token_id": 50256, "pad_token_id": -1})
    assert (
        filed.generate(PROMPTS[:1], max_new_tokens=4).tolist() == generate(lm, PROMPTS[:1], max_new_tokens=4).tolist()
    )
    filed.generation_config = {"top_k": "many"}
    with pytest.raises(UserError, match="model's files set top_k='many'.*an integer"):
        filed.generate(PROMPTS, max_new_tokens=4)


def test_arrays_equal_lists(lm: LanguageModel) -> None:
    words, plain = [[4, 5], [6, 7]], dict(max_new_tokens=5, eos_token_id=[11, 12], suppress_tokens=[1, 2])
    arrays = {name: np.asarray(value) for name, value in plain.items()}
    found = generate(lm, PROMPTS, bad_words_ids=np.asarray(words), **arrays)
    assert found.tolist() == generate(lm, PROMPTS, bad_words_ids=words, **plain).tolist()


def test_defaults_come_from_the_models_files(lm: LanguageModel) -> None:
    plain = generate(lm, PROMPTS, max_new_tokens=4, repetition_penalty=5.0, eos_token_id=11)
    filed = LanguageModel(lm.definition, lm.params, "gpt2", {"eos_token_id": 11, "repetition_penalty": 1.0})
    filed.generation_config = {"max_new_tokens": 4, "repetition_penalty": 5.0, "transformers_version": "5"}
    assert filed.generate(PROMPTS).tolist() == plain.tolist()
    assert filed.generate(PROMPTS, max_new_tokens=2).shape[1] == 5 + 2


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"max_new_token": 3}, "Did you mean 'max_new_tokens'"),
    ({"num_return_sequences": 2}, "do_sample=True"),
    ({"num_beams": 2, "num_return_sequences": 3}, "raise num_beams to 3"),
    ({"num_beams": 3, "num_beam_groups": 2}, "multiple"),
    ({"diversity_penalty": 0.5, "num_beams": 2}, "num_beam_groups"),
    ({"num_beams": 2, "stop_strings": "a"}, "num_beams=1"),
    ({"stop_strings": "a"}, "tokenizer"),
    ({"temperature": 0.0, "do_sample": True}, "above 0"),
    ({"top_p": 1.5, "do_sample": True}, "0 to 1"),
    ({"force_words_ids": [[1]]}, "num_beams=4"),
    ({"force_words_ids": [[1, 2, 3]], "num_beams": 4, "max_new_tokens": 2}, "Raise max_new_tokens"),
    ({"penalty_alpha": 0.5, "num_beams": 2}, "contrastive"),
    ({"max_new_tokens": 29}, "positions for 32"),
    ({"max_length": 5}, "counts the prompt"),
    ({"max_new_tokens": "three"}, "wrong type"),
    ({"max_new_tokens": True}, "an integer"),
    ({"max_new_tokens": 2**31}, "32 bits"),
    ({"top_k": 2.5, "do_sample": True}, "an integer"),
    ({"presence_penalty": float("nan")}, "a number"),
    ({"do_sample": "yes"}, "true or false"),
    ({"stop_strings": 5}, "a text or a list of texts"),
    ({"stop_strings": ["a", ""]}, "empty text"),
    ({"suppress_tokens": "x"}, "a list of token ids"),
    ({"bad_words_ids": [["a"]]}, "a list of lists"),
    ({"bad_words_ids": [[]]}, "a list of lists"),
    ({"exponential_decay_length_penalty": 5}, "a pair"),
    ({"sequence_bias": {"500": 3.0}}, r"\[\[\[500\], 3.0\]"),
    ({"sequence_bias": [[[], 3.0]]}, "without tokens"),
    ({"sequence_bias": [[[4, 40], 3.0]]}, "sequence_bias holds the token 40, but this model's tokens are 0 to 39"),
    ({"bad_words_ids": [[3], [4, -1]]}, "bad_words_ids holds the token -1"),
    ({"force_words_ids": [[99999]], "num_beams": 4}, "force_words_ids holds the token 99999"),
    ({"eos_token_id": 40}, "eos_token_id holds the token 40"),
    ({"begin_suppress_tokens": [2**40]}, "begin_suppress_tokens=.*1099511627776 does not fit into 32 bits"),
    ({"exponential_decay_length_penalty": [10**30, 1.5]}, "does not fit into 32 bits"),
    ({"sequence_bias": [[[4], float("inf")]]}, "inf is not finite"),
    ({"top_logprobs": 41}, "more than the model's 40 tokens"),
    ({"top_logprobs": 2, "num_beams": 2}, "output_logprobs=True"),
    ({"top_logprobs": 2, "penalty_alpha": 0.5}, "output_logprobs=True"),
    ({"penalty_alpha": 0.5, "stop_strings": "a"}, "tokenizer"),
    ({"seed": 1.9, "do_sample": True}, "an integer, or a list"),
    ({"input_ids": None, "prompts": [1, 2]}, "not a text.*input_ids"),
    ({"input_ids": None, "prompts": 5}, "input_ids"),
    ({"input_ids": [[1.7]]}, r"\[B, L\]"),
    ({"input_ids": [["a"]]}, r"\[B, L\]"),
    ({"input_ids": [[10**30]]}, r"\[B, L\]"),
    ({"input_ids": [[[1]]]}, r"\[B, L\]"),
    ({"attention_mask": [["a"]]}, "different shapes"),
    ({"decoder_input_ids": [[1]]}, "plain decoder"),
    ({"seed": [1, 2]}, "3 prompts"),
    ({"prompts": "text"}, "not both"),
    ({"input_ids": None}, "needs prompts"),
    ({"input_ids": None, "prompts": "text"}, "no tokenizer"),
    ({"input_ids": [[1, 40]]}, "outside of 0 to 39"),
    ({"input_ids": [[1], []]}, "empty row"),
    ({"input_ids": [1, 2]}, r"\[B, L\]"),
    ({"attention_mask": [[1, 1]]}, "no array|mask"),
    ({"early_stopping": "soon", "num_beams": 2}, "never"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES, ids=lambda x: str(x)[:50])
def test_errors_are_explained(lm: LanguageModel, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generate(lm, **{"input_ids": PROMPTS, **given})


def test_texts_whose_attention_exceeds_memory_are_refused() -> None:
    """A machine has less than the 4 * 2 heads * 10,000,000^2 bytes of scores."""
    lm = toys.language_model(vocab=40)
    lm.definition = define(
        lm.definition.arch.replace(positions="none", max_length=0).with_layers(positions="rotary"), lm.definition.head
    )
    with pytest.raises(UserError, match=r"A text has 10,000,000 tokens, whose attention takes [\d,]+ GiB.*Shorten it"):
        generate(lm, [[1] * 10_000_000])


def test_errors_in_the_files_are_reported_with_their_name(lm: LanguageModel) -> None:
    file = {"bad_words_ids": [[3, 10**30]]}
    with pytest.raises(UserError, match=r"generation_config.json: bad_words_ids=.*32 bits.*or give bad_words_ids"):
        make_options({}, file, {})
    with pytest.raises(UserError, match=r"config.json: num_beams=0: it must be at least 1"):
        make_options({}, {}, {"num_beams": 0})
    assert make_options({"bad_words_ids": [[3]]}, file, {}).bad_words_ids == [[3]]


def test_models_that_do_not_generate_and_wrong_drafts_are_refused(lm: LanguageModel) -> None:
    small = toys.language_model(vocab=8)
    with pytest.raises(UserError, match="same tokens"):
        generate(lm, PROMPTS, assistant_model=small)
    for option in ({"num_beams": 2}, {"top_logprobs": 2}):
        with pytest.raises(UserError, match="leave out num_beams"):
            generate(lm, PROMPTS, assistant_model=lm, **option)
    with pytest.raises(UserError, match="one prompt"):
        stream(lm, input_ids=PROMPTS)
    with pytest.raises(UserError, match="tokenizer"):
        stream(lm, input_ids=PROMPTS[:1])
