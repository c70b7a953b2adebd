"""Memory of requests by arithmetic: float32 scores twice, keys and values once, and half of what is free."""

from __future__ import annotations

import pytest

from helpers import few
from lm_research.errors import UserError
from lm_research.models.families import define_model
from lm_research.serving import memory

DECODER, PAIR = (define_model(few.setting(name).model, few.VOCAB).arch for name in ("causal_lm", "denoising"))
SCORES = 2 * 4 * 2  # bytes for a query and a key: two copies of four bytes in each of two heads
ENTRY = 2 * 4 * 2 * 16  # bytes of a position: keys and values of four bytes, in two layers of width 16


@pytest.mark.parametrize(
    ("arch", "needed"),
    [
        # Prompts of 3 and 5 tokens, 7 new ones: two rows of 5 queries and 12 keys, and four texts of 12.
        (DECODER, 2 * SCORES * 5 * 12 + 4 * ENTRY * 12),
        # An encoder reads two rows of 5; the decoder's four texts have a first token and 7 new ones, and the encoder's 5 positions.
        (PAIR, 2 * SCORES * 5 * 5 + 4 * ENTRY * (8 + 5)),
    ],
    ids=["decoder", "encoder-decoder"],
)
def test_a_search_needs_twice_its_memory(arch: object, needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda: 2 * needed)
    memory.check_search("prompt", arch, [3, 5], 4, 7)
    monkeypatch.setattr(memory, "free_bytes", lambda: 2 * needed - 1)
    with pytest.raises(UserError, match="^prompt: "):
        memory.check_search("prompt", arch, [3, 5], 4, 7)


@pytest.mark.parametrize("arch", [DECODER, PAIR], ids=["decoder", "encoder-decoder"])
def test_a_pass_reads_as_many_texts_as_its_limit_allows(arch: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """2^30 bytes are 2^26 pairs of 16: 64 texts of 1,024 tokens, four of 4,096, and one that is longer."""
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**40)
    assert [memory.max_batch_size("input", arch, length) for length in (1024, 4096, 2**14)] == [64, 4, 1]
    assert memory.max_batch_size("input", arch, 0) == 2**30  # texts without tokens need no scores
