"""A draft model changes how often the model runs, and not its output: neither the best tokens nor the distribution of samples.

Legend: B rows, J drafted tokens, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sampling import CRITICAL, chi_square

from helpers import tiny, toys
from helpers.toys import VOCAB, Exact
from lm_research.decoding import speculative
from lm_research.decoding.generate import generate
from lm_research.pretrained import LanguageModel


@pytest.fixture(scope="module")
def pair() -> tuple[LanguageModel, LanguageModel]:
    """A model and a draft that is sometimes right."""
    lm, draft = toys.language_model(seed=0), toys.language_model(seed=0)
    rng = np.random.default_rng(1)
    draft.params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), draft.params)
    return lm, draft


@pytest.mark.parametrize(
    ("ahead", "options"),
    [
        pytest.param(1, {}, marks=pytest.mark.slow),
        (4, {"eos_token_id": 6, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3}),
    ],
)
def test_the_best_tokens_are_those_of_the_model(pair: tuple, ahead: int, options: dict) -> None:
    lm, draft = pair
    given = dict(max_new_tokens=12, return_dict_in_generate=True, **options)
    prompts = [[3, 1, 4], [1], [5, 2, 6, 5, 3]]
    plain = generate(lm, prompts, **given)
    fast = generate(lm, prompts, assistant_model=draft, num_assistant_tokens=ahead, **given)
    assert fast.new_tokens == plain.new_tokens
    assert fast.rounds <= 12


def test_a_perfect_draft_is_never_refused(pair: tuple) -> None:
    lm, _ = pair
    output = generate(
        lm, [[3, 1, 4]], max_new_tokens=12, assistant_model=lm, num_assistant_tokens=3, return_dict_in_generate=True
    )
    assert output.rounds == 3  # four tokens each


def test_draws_follow_the_models_distribution(pair: tuple) -> None:
    """All 64 pairs of the first two tokens of 20,000 texts, with the draft three ahead, against exact probabilities."""
    lm, draft = pair
    exact, prompt, rows = Exact(lm), [3, 1, 4], 20_000
    first = np.exp(exact.next(prompt))
    shares = np.concatenate([first[a] * np.exp(exact.next([*prompt, a])) for a in range(VOCAB)])
    options = dict(max_new_tokens=2, do_sample=True, top_k=0, num_return_sequences=rows, seed=0)
    output = generate(
        lm, [prompt], assistant_model=draft, num_assistant_tokens=3, return_dict_in_generate=True, **options
    )
    pairs = np.array(output.new_tokens)
    statistic, freedom = chi_square(np.bincount(pairs[:, 0] * VOCAB + pairs[:, 1], minlength=64), shares)
    assert freedom == 63 and statistic < 132  # one in a million: 131.6
    # The test would detect the draft's own distribution.
    other = np.exp(Exact(draft).next(prompt))
    assert chi_square(np.bincount(pairs[:, 0], minlength=VOCAB), other)[0] > CRITICAL[7]


@pytest.mark.slow
def test_filters_hold_for_both(pair: tuple) -> None:
    lm, draft = pair
    prompt, rows = [3, 1, 4], 8000
    share = np.exp(Exact(lm).next(prompt))
    kept = np.argsort(-share)[:3]
    expected = np.where(np.isin(np.arange(VOCAB), kept), share**2, 0.0)  # temperature 1/2
    output = generate(
        lm,
        [prompt],
        assistant_model=draft,
        num_assistant_tokens=2,
        max_new_tokens=1,
        do_sample=True,
        top_k=3,
        temperature=0.5,
        num_return_sequences=rows,
        seed=2,
        return_dict_in_generate=True,
    )
    counts = np.bincount(np.array(output.new_tokens)[:, 0], minlength=VOCAB)
    statistic, freedom = chi_square(counts, expected / expected.sum())
    assert statistic < CRITICAL[freedom]


def test_acceptance_rule() -> None:
    """Whatever is drafted, the token at its place follows the model's distribution: p of 4 tokens, drafts from q."""
    rows, p, q = 20_000, np.array([0.5, 0.1, 0.4, 0.0]), np.array([0.1, 0.6, 0.1, 0.2])
    keys_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(jnp.arange(rows))
    drafted_BJ = np.random.default_rng(0).choice(4, size=(rows, 1), p=q).astype(np.int32)
    draft_BJV = jnp.broadcast_to(jnp.asarray(q, jnp.float32), (rows, 1, 4))
    share_BLV = jnp.broadcast_to(jnp.asarray(p, jnp.float32), (rows, 2, 4))
    kept_B, next_B = tiny.jit(speculative.accept)(drafted_BJ, draft_BJV, share_BLV, keys_B)
    token_B = np.where(np.asarray(kept_B) == 1, drafted_BJ[:, 0], np.asarray(next_B))
    statistic, freedom = chi_square(np.bincount(token_B, minlength=4), p)
    assert statistic < CRITICAL[freedom]
    # Kept with probability sum of min(p, q) = 0.1 + 0.1 + 0.1 = 0.3.
    assert abs(np.asarray(kept_B).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / rows)
