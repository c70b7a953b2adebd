"""Windows of whole words: each word is owned by the window with the most context; neighbors share at most `stride` tokens."""

from __future__ import annotations

import random

import pytest

from lm_research.tokenizers.windows import WordWindow, word_windows


def test_ten_words_by_hand() -> None:
    """Four fit, two are shared: of those, the first has more context in the one window, the second in the next."""
    assert word_windows([1] * 10, 4, 2) == [
        WordWindow(0, 4, 0, 3),
        WordWindow(2, 6, 3, 5),
        WordWindow(4, 8, 5, 7),
        WordWindow(6, 10, 7, 10),
    ]
    assert word_windows([1] * 5, 3, 1) == [WordWindow(0, 3, 0, 3), WordWindow(2, 5, 3, 5)]  # as much in both: the first
    assert word_windows([1] * 5, 3, 0) == [WordWindow(0, 3, 0, 3), WordWindow(3, 5, 3, 5)]
    assert word_windows([2, 2], 4, 2) == [WordWindow(0, 2, 0, 2)]
    assert word_windows([3, 3, 3], 3, 99) == [WordWindow(n, n + 1, n, n + 1) for n in range(3)]
    assert word_windows([], 3, 1) == [WordWindow(0, 0, 0, 0)]


@pytest.mark.parametrize("seed", range(40))
def test_any_words(seed: int) -> None:
    draw = random.Random(seed)
    room, stride = draw.randint(1, 12), draw.randint(0, 20)
    sizes = [draw.randint(1, room) for _ in range(draw.randint(1, 30))]
    windows = word_windows(sizes, room, stride)
    assert [word for one in windows for word in range(one.own_first, one.own_stop)] == list(range(len(sizes)))
    for one in windows:
        assert sum(sizes[one.first : one.stop]) <= room
        for word in range(one.own_first, one.own_stop):
            around = [
                min(sum(sizes[other.first : word]), sum(sizes[word + 1 : other.stop]))
                for other in windows
                if other.first <= word < other.stop
            ]
            mine = min(sum(sizes[one.first : word]), sum(sizes[word + 1 : one.stop]))
            assert mine == max(around)
    for one, following in zip(windows, windows[1:], strict=False):
        assert sum(sizes[following.first : one.stop]) <= min(stride, room // 2) and following.stop > one.stop
