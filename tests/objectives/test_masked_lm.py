"""Masked pairs against the corpus they come from, and against the rates of the paper (Devlin et al. 2018).

In the stores of these tests every token occurs once: id 5 + j is token j of the corpus, so a row shows where each of
its tokens was read. Statistical bounds are five standard deviations; draws are fixed by their keys.

Legend: B rows, L length, M masked positions.
"""

from __future__ import annotations

import math
import pathlib
import types
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.data.store import TokenStore
from lm_research.errors import ConfigError
from lm_research.models.heads import Projection
from lm_research.objectives.masked_lm import MaskedLanguageModel, MaskedPairs
from lm_research.objectives.masking import num_masked
from lm_research.objectives.segment_pairs import Segments, group_sentences

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = 5
L = 32


def numbered_store(folder: pathlib.Path, seed: int, count: int, sentences: tuple, words: tuple) -> TokenStore:
    """Documents of random lengths whose tokens are numbered through."""
    token = SPECIAL
    texts = []
    for document in tiny.documents(seed, count, sentences, words):
        texts.append([])
        for sentence in document:
            texts[-1].append(list(range(token, token + len(sentence))))
            token += len(sentence)
    return tiny.store(folder, texts, vocab_size=token)


def make(store: TokenStore, seed: int = 0, purpose: str = "train", length: int = L, **objective: Any) -> MaskedPairs:
    sections = dict(model=dict(max_length=512), data=dict(max_length=length), objective=objective, seed=seed)
    tokenizer = tiny.WordTokenizer(len(store.token_counts))
    return MaskedPairs(store, tokenizer, tiny.config("bert", **sections), purpose)


def whole_epoch(examples: MaskedPairs, epoch: int = 0) -> dict[str, np.ndarray]:
    return examples.batch(np.full(examples.num_examples, epoch), np.arange(examples.num_examples))


class Row(NamedTuple):
    """One row with its masks removed: places in the corpus of A and B, and the labels."""

    a: range
    b: range
    is_random: bool
    length: int


def read_row(batch: dict[str, np.ndarray], b: int) -> Row:
    """Undo the masks, check [CLS] A [SEP] B [SEP] with its types and segments, and that A and B are corpus text."""
    tokens, real = batch["tokens_BL"][b].copy(), batch["weights_BM"][b] > 0
    tokens[batch["mask_positions_BM"][b][real]] = batch["targets_BM"][b][real]
    length = int(batch["segments_BL"][b].sum())
    ends = np.flatnonzero(tokens == SEP)
    assert tokens[0] == CLS and len(ends) == 2 and ends[1] == length - 1
    assert (tokens[length:] == PAD).all() and (batch["segments_BL"][b] == (np.arange(L) < length)).all()
    column = np.arange(L)
    assert (batch["types_BL"][b] == ((column > ends[0]) & (column < length))).all()
    parts = tokens[1 : ends[0]] - SPECIAL, tokens[ends[0] + 1 : ends[1]] - SPECIAL
    for part in parts:
        assert len(part) and (np.diff(part) == 1).all()
    spans = (range(int(part[0]), int(part[-1]) + 1) for part in parts)
    return Row(*spans, bool(batch["next_sentence_B"][b]), length)


class Corpus(NamedTuple):
    examples: MaskedPairs
    batch: dict[str, np.ndarray]
    rows: list[Row]
    store: TokenStore

    def document(self, place: int) -> int:
        starts = np.asarray(self.store.sentence_starts)[np.asarray(self.store.document_starts)]
        return int(np.searchsorted(starts, place, side="right") - 1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    store = numbered_store(tmp_path_factory.mktemp("store"), 0, 700, (1, 40), (1, 12))
    examples = make(store)
    batch = whole_epoch(examples)
    return Corpus(examples, batch, [read_row(batch, b) for b in range(examples.num_examples)], store)


def near(share: float, expected: float, count: int) -> bool:
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize(("length", "rate", "expected"), [(128, 0.15, 20), (512, 0.15, 77), (8, 0.01, 1)])
def test_number_of_masked_positions(length: int, rate: float, expected: int) -> None:
    assert num_masked(length, rate) == expected  # the paper's 20 and 77


def test_chunks_cover_every_sentence_and_fill_a_row(corpus: Corpus) -> None:
    room, starts = L - 3, np.asarray(corpus.store.sentence_starts)
    chunks = group_sentences(corpus.store, room)
    covered = np.zeros(corpus.store.num_sentences, int)
    for document, start, stop in chunks:
        first, end = corpus.store.document_starts[document : document + 2]
        assert first <= start < stop <= end
        covered[start:stop] += 1
        tokens = starts[stop] - starts[start]
        if stop < end:  # full, and without a sentence more than it needs
            assert tokens >= room and starts[stop - 1] - starts[start] < room
        elif stop - start == 1:  # a single last sentence takes the one before it, if there is one
            assert start == first
    assert covered.min() == 1
    twice = np.flatnonzero(covered == 2)  # the sentence before a last one
    assert all(sentence + 2 in np.asarray(corpus.store.document_starts) for sentence in twice)
    assert len({tuple(chunk) for chunk in chunks}) == len(chunks)


def test_masked_tokens_are_replaced_80_10_10(corpus: Corpus) -> None:
    batch = corpus.batch
    row, place = np.nonzero(batch["weights_BM"])
    now = batch["tokens_BL"][row, batch["mask_positions_BM"][row, place]]
    was = batch["targets_BM"][row, place]
    count = len(now)
    assert count > 7000 and (was >= SPECIAL).all()
    assert near((now == MASK).mean(), 0.8, count)
    ordinary = len(corpus.store.token_counts) - SPECIAL
    assert near((now == was).mean(), 0.1 + 0.1 / ordinary, count)
    strange = now[(now != MASK) & (now != was)]
    assert near(len(strange) / count, 0.1 * (1 - 1 / ordinary), count) and (strange >= SPECIAL).all()
    # Uniform over the vocabulary: mean and standard deviation of a uniform number.
    assert abs((strange - SPECIAL).mean() / ordinary - 0.5) < 5 * math.sqrt(1 / 12 / len(strange))
    assert abs((strange - SPECIAL).std() / ordinary - math.sqrt(1 / 12)) < 0.03


def test_each_row_predicts_15_percent_of_its_tokens_and_no_special_one(corpus: Corpus) -> None:
    for b, row in enumerate(corpus.rows):
        real = corpus.batch["weights_BM"][b] > 0
        places = corpus.batch["mask_positions_BM"][b]
        wanted = min(max(1, round(row.length * 0.15)), num_masked(L, 0.15), len(row.a) + len(row.b))
        assert real.sum() == wanted and (np.diff(places[real]) > 0).all()
        assert not np.isin(places[real], [0, len(row.a) + 1, row.length - 1]).any() and places[real].max() < row.length
        assert (places[~real] == 0).all() and (corpus.batch["targets_BM"][b][~real] == 0).all()


def test_every_ordinary_position_is_masked_equally_often(corpus: Corpus) -> None:
    counts, chances = np.zeros(L), np.zeros(L)
    for b, row in enumerate(corpus.rows):
        real = corpus.batch["weights_BM"][b] > 0
        counts += np.bincount(corpus.batch["mask_positions_BM"][b][real], minlength=L)
        ordinary = (np.arange(L) > 0) & (np.arange(L) < row.length - 1) & (np.arange(L) != len(row.a) + 1)
        chances += ordinary * real.sum() / ordinary.sum()
    inside = chances > 0
    assert (np.abs(counts - chances)[inside] < 5 * np.sqrt(chances[inside])).all()


def test_labels_are_true(corpus: Corpus) -> None:
    following = 0
    for row in corpus.rows:
        if row.is_random:
            assert corpus.document(row.a[0]) != corpus.document(row.b[0])
        else:
            assert corpus.document(row.a[0]) == corpus.document(row.b[-1])
            assert row.b[0] >= row.a[-1] + 1
            following += row.b[0] == row.a[-1] + 1
            if row.b[0] > row.a[-1] + 1:  # only what was cut off is between them
                assert row.length == L or row.b[0] - row.a[-1] <= 12 * L
    assert following > 0.3 * len(corpus.rows) / 2


def test_half_of_the_pairs_are_random_where_a_chunk_can_be_cut(corpus: Corpus) -> None:
    chunks = corpus.examples.source.chunks
    lone = chunks[:, 2] - chunks[:, 1] == 1
    labels = corpus.batch["next_sentence_B"]
    assert labels[lone].all()
    # A tenth are shortened, some to one sentence, and those have no choice: between 50% and 50% + 10% / 2.
    share, sigma = labels[~lone].mean(), math.sqrt(0.25 / (~lone).sum())
    assert 0.5 - 5 * sigma < share < 0.55 + 5 * sigma


def test_random_seconds_look_like_true_ones(corpus: Corpus) -> None:
    """Only the meaning may reveal the label: both kinds are filled and cut in the same way."""
    full = [row for row in corpus.rows if row.length == L]
    boundaries = np.asarray(corpus.store.sentence_starts)
    shares = []
    for is_random in (False, True):
        ends = [(r.a[0], r.a[-1] + 1, r.b[0], r.b[-1] + 1) for r in full if r.is_random == is_random]
        shares.append(
            1 - np.isin(ends, boundaries).mean(0)
        )  # inside a sentence: A's front and back, B's front and back
    assert (np.array(shares) > 0.2).all() and np.abs(shares[0] - shares[1]).max() < 0.15, shares


def test_cuts_fall_on_every_sentence_boundary_equally_often(tmp_path: pathlib.Path) -> None:
    examples = make(numbered_store(tmp_path, 2, 5, (60, 61), (1, 2)), short_seq_prob=0.0)
    epochs = 2000  # of the first chunk: 29 sentences of one token, so nothing is cut off and there are 28 places
    batch = examples.batch(np.arange(epochs), np.zeros(epochs, int))
    rows = [read_row(batch, b) for b in range(epochs)]
    counts = np.bincount([len(row.a) for row in rows if not row.is_random], minlength=29)[1:]
    assert len(counts) == 28
    chi = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    assert abs(chi - 27) < 5 * math.sqrt(2 * 27)


def paper_loop(a: int, b: int, room: int) -> tuple[int, int]:
    """Lengths after the released generator's truncation: one token at a time from the longer, B when level."""
    while a + b > room:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    return a, b


def test_truncation_ends_where_the_papers_loop_does(corpus: Corpus) -> None:
    room, none = 9, np.zeros(24 * 24, np.int64)
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(24), np.arange(24)))
    keys = (97 * a + b).astype(np.uint64)
    cut = corpus.examples.source._truncate(Segments(none, a, none, b, none > 0), np.full_like(a, room), keys)
    assert [*zip(cut.length_a.tolist(), cut.length_b.tolist(), strict=True)] == [
        paper_loop(*pair, room) for pair in zip(a.tolist(), b.tolist(), strict=True)
    ]
    fronts, lost = 0, 0
    for start, length, whole in ((cut.start_a, cut.length_a, a), (cut.start_b, cut.length_b, b)):
        assert (start >= 0).all() and (start + length <= whole).all()
        fronts, lost = fronts + start[length > 0].sum(), lost + (whole - length)[length > 0].sum()
    assert near(fronts / lost, 0.5, lost)


@pytest.fixture(scope="module")
def long_documents(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return numbered_store(tmp_path_factory.mktemp("store"), 1, 60, (400, 401), (1, 6))


def test_a_tenth_of_the_rows_is_cut_to_a_uniform_length(long_documents: TokenStore) -> None:
    examples = make(long_documents, sentence_pair="none")
    starts = np.asarray(long_documents.sentence_starts)
    room, chunks = L - 2, examples.source.chunks
    full = starts[chunks[:, 2]] - starts[chunks[:, 1]] >= room
    lengths = whole_epoch(examples)["segments_BL"].sum(1)[full] - 2
    short = lengths[lengths < room]
    assert near(len(short) / len(lengths), 0.1 * (1 - 1 / (room - 1)), len(lengths))
    assert short.min() >= 2 and abs(short.mean() - (2 + room - 1) / 2) < 5 * (room - 2) / math.sqrt(12 * len(short))
    never = whole_epoch(make(long_documents, sentence_pair="none", short_seq_prob=0.0))
    assert (never["segments_BL"].sum(1)[full] == L).all()


def test_single_segments_have_one_separator_and_no_types(long_documents: TokenStore) -> None:
    batch = whole_epoch(make(long_documents, sentence_pair="none"))
    lengths = batch["segments_BL"].sum(1)
    assert ((batch["tokens_BL"] == SEP).sum(1) == 1).all() and not batch["types_BL"].any()
    assert (batch["tokens_BL"][np.arange(len(lengths)), lengths - 1] == SEP).all()
    assert not batch["next_sentence_B"].any()


def test_an_example_is_a_function_of_seed_epoch_and_index(corpus: Corpus) -> None:
    index = np.array([17, 3, 999, 3])
    alone = [make(corpus.store).batch(np.array([0]), np.array([i])) for i in index]
    for name, value in corpus.batch.items():
        np.testing.assert_array_equal(value[index], np.concatenate([batch[name] for batch in alone]))
    mixed = corpus.examples.batch(np.array([5, 0, 5]), np.array([8, 17, 3]))
    np.testing.assert_array_equal(mixed["tokens_BL"][1], corpus.batch["tokens_BL"][17])
    np.testing.assert_array_equal(mixed["tokens_BL"][2], whole_epoch(corpus.examples, 5)["tokens_BL"][3])


def test_epochs_seeds_and_purposes_mask_differently(corpus: Corpus) -> None:
    others = [whole_epoch(corpus.examples, 1), whole_epoch(make(corpus.store, seed=1))]
    others.append(whole_epoch(make(corpus.store, purpose="validation")))
    for other in others:
        assert (other["mask_positions_BM"] != corpus.batch["mask_positions_BM"]).any(1).mean() > 0.95
        # Labels are drawn again: half agree by chance, and those of single sentences always.
        assert 0.4 < (other["next_sentence_B"] == corpus.batch["next_sentence_B"]).mean() < 0.65


def test_empty_rows_have_weight_zero_and_change_no_other(corpus: Corpus) -> None:
    batch = corpus.examples.batch(np.zeros(3, int), np.array([4, -1, 2]))
    for name in ("segments_BL", "types_BL", "weights_BM", "row_weights_B", "mask_positions_BM", "tokens_BL"):
        assert not batch[name][1].any()
    for name, value in corpus.batch.items():
        np.testing.assert_array_equal(batch[name][[0, 2]], value[[4, 2]])


def test_batches_have_the_types_the_step_expects(corpus: Corpus) -> None:
    floats = {"weights_BM", "row_weights_B"}
    for name, value in corpus.batch.items():
        assert value.dtype == (np.float32 if name in floats else np.int32), name
    assert corpus.batch["mask_positions_BM"].shape == (corpus.examples.num_examples, num_masked(L, 0.15))


def test_a_single_document_replaces_the_others(tmp_path: pathlib.Path) -> None:
    """Random seconds come from the document itself, so that both labels occur and no second is empty."""
    store = numbered_store(tmp_path, 3, 1, (200, 201), (1, 6))
    batch = whole_epoch(make(store))
    rows = [read_row(batch, b) for b in range(len(batch["tokens_BL"]))]
    assert set(batch["next_sentence_B"].tolist()) == {0, 1}
    assert all(len(row.a) and len(row.b) for row in rows)
    following = [row for row, random in zip(rows, batch["next_sentence_B"], strict=True) if not random]
    assert all(row.b[0] > row.a[-1] for row in following)


def test_sentences_longer_than_a_row_make_level_pairs(tmp_path: pathlib.Path) -> None:
    store = numbered_store(tmp_path, 4, 20, (3, 4), (200, 201))
    batch = whole_epoch(make(store, short_seq_prob=0.0))
    rows = [read_row(batch, b) for b in range(len(batch["tokens_BL"]))]
    assert all(row.length == L and {len(row.a), len(row.b)} == {14, 15} for row in rows)


def test_held_out_text_can_be_masked_at_its_own_rate(tmp_path: pathlib.Path) -> None:
    """Whatever the rate in training, evaluations with eval_mask_rate read the very same rows and masks."""
    store = numbered_store(tmp_path, 0, 40, (2, 6), (3, 9))
    usual = whole_epoch(make(store, purpose="validation", mask_rate=0.15))
    judged = whole_epoch(make(store, purpose="validation", mask_rate=0.4, eval_mask_rate=0.15))
    for name, value in usual.items():
        np.testing.assert_array_equal(judged[name], value)
    train = whole_epoch(make(store, mask_rate=0.4, eval_mask_rate=0.15))
    assert train["targets_BM"].shape[1] == num_masked(L, 0.4) > num_masked(L, 0.15) == judged["targets_BM"].shape[1]


def test_how_full_rows_are_and_what_is_cut_off(tmp_path: pathlib.Path) -> None:
    """29 tokens fill a row. Of two documents of 40 and 10, 11 tokens of 50 are cut off; rows have 3 more: (29 + 3 + 10 + 3) / 64."""
    store = tiny.store(tmp_path, [[[5] * 40], [[6] * 10]])
    expected = "1.00 texts a row, 70.3% of positions used (not counting short examples), 22.0% of tokens cut off"
    assert make(store).notes == expected


class Stub:
    """A model with given outputs; keeps the arguments of its encoder."""

    def __init__(self, num_types: int, projection: Projection, pair_logits: list[list[float]]) -> None:
        self.arch, self.projection, self.logits = types.SimpleNamespace(num_types=num_types), projection, pair_logits

    def encoder(self, tokens: Any, segments: Any, **options: Any) -> str:
        self.given = {"tokens": tokens, "segments": segments, **options}
        return "states"

    def predict_tokens(self, states: str, positions: Any) -> Projection:
        assert states == "states" and positions == "places"
        return self.projection

    def predict_next_sentence(self, states: str) -> jnp.ndarray:
        assert states == "states"
        return jnp.array(self.logits)


@pytest.mark.parametrize(("pairs", "name"), [("next_sentence", "nsp"), ("sentence_order", "sop"), ("none", "")])
def test_sums_by_hand(pairs: str, name: str) -> None:
    """Three rows of one masked token. Tokens 0 and 1 have logits h and 0: with h = ln 3 and ln 7 the targets have 3/4 and 1/8.

    Pairs: probabilities of the labels are 3/4 and 1/4, the second is not the more likely one; the rows have weights 2, 1 and 0.
    """
    objective = MaskedLanguageModel(tiny.config("bert", objective=dict(sentence_pair=pairs)), tiny.WordTokenizer())
    hidden = jnp.log(jnp.array([3.0, 7.0, 5.0])).reshape(3, 1, 1)
    model = Stub(
        2, Projection(hidden, jnp.array([[1.0], [0.0]]), None), [[0.0, math.log(3)], [0.0, math.log(3)], [9.0, 0.0]]
    )
    batch = {
        "tokens_BL": "tokens", "segments_BL": "segments", "types_BL": "types", "positions_BL": "positions",
        "mask_positions_BM": "places", "targets_BM": jnp.array([[0], [1], [0]]), "weights_BM": jnp.array([[1.0], [1.0], [0.0]]),
        "next_sentence_B": jnp.array([1, 0, 1]), "row_weights_B": jnp.array([2.0, 1.0, 0.0]),
    }  # fmt: skip
    expected = {"mlm_loss_nats": math.log(4 / 3 * 8), "mlm_accuracy": 1.0}
    if name:
        expected |= {f"{name}_loss_nats": 2 * math.log(4 / 3) + math.log(4), f"{name}_accuracy": 2.0}
    assert objective.metric_sums(model, batch, "key") == pytest.approx(expected, rel=1e-6)
    assert set(objective.metrics) == set(expected) and objective.loss_terms == tuple(
        term for term in expected if term.endswith("nats")
    )
    assert objective.target_fraction == 3 / 16  # 15% of 16 is 2.4
    rows = {
        "segments_BL": jnp.array([[1, 2, 0], [1, 1, 0]]),
        "weights_BM": jnp.ones((2, 2)),
        "row_weights_B": jnp.array([1.0, 0.0]),
    }
    assert objective.normalizers(rows) == {"tokens": 4, "real": 4, "rows": 1}
    shared = {"tokens": "tokens", "segments": "segments", "positions_BL": "positions", "dropout_key": "key"}
    assert model.given == shared | {"types_BL": "types"}
    model.arch.num_types = 1  # RoBERTa
    objective.metric_sums(model, batch, "key")
    assert model.given == shared | {"types_BL": None}
    assert objective.head(objective.config) == ("pretraining" if name else "masked_lm")


def test_packed_rows_of_pairs_are_refused() -> None:
    arch, packed = tiny.model("bert").arch, dict(packing=True)
    with pytest.raises(ConfigError, match="data.packing=True puts several texts into a row"):
        MaskedLanguageModel.check(tiny.config("bert", data=packed), arch)
    MaskedLanguageModel.check(tiny.config("bert", data=packed, objective=dict(sentence_pair="none")), arch)
