"""Documents that repeat earlier ones with small changes: MinHash (Broder 1997) and locality-sensitive hashing.

A document is the set of its runs of SHINGLE words (characters, in scripts that write no spaces). The share of equal
entries of two signatures estimates the Jaccard similarity of two such sets. Signatures are cut into BANDS; documents that
share a band land in one bucket and are compared with the first of it. Each decision needs one document and the first of
its buckets, so neither order of work nor number of workers can change it.

Shapes: D documents, K entries of a signature, T tokens.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from lm_research.data.stateless_rng import mix

SIZE = 128  # K
BANDS = (
    32  # of 4 entries: similarity 0.8 meets in a band with probability 1 - (1 - 0.8**4)**32 = 0.99999996, 0.5 with 0.87
)
SHINGLE = 5
_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿฀-๿]|[^\W_぀-ヿ㐀-鿿豈-﫿฀-๿]+")  # kana, Han, Thai: one by one
_FACTORS = mix(np.arange(1, SIZE + 1)) | np.uint64(1)
_SHIFTS = mix(np.arange(SIZE + 1, 2 * SIZE + 1))


def signature(text: str) -> np.ndarray:
    """uint32 [K]: the smallest of K hashes over the text's shingles; capitals and punctuation do not count."""
    words = _WORD.findall(text.lower())
    hashes_T = np.array([zlib.crc32(word.encode()) for word in words] or [0], dtype=np.uint64)
    width = min(SHINGLE, len(hashes_T))
    shingles = np.zeros(len(hashes_T) - width + 1, dtype=np.uint64)
    for place in range(width):
        shingles = mix(shingles + hashes_T[place : place + len(shingles)] + np.uint64(1))
    smallest_K = np.full(SIZE, 2**64 - 1, dtype=np.uint64)
    for start in range(0, len(shingles), 4096):
        values = shingles[start : start + 4096, None] * _FACTORS + _SHIFTS
        smallest_K = np.minimum(smallest_K, values.min(0))
    return (smallest_K >> np.uint64(32)).astype(np.uint32)


def repeats(signatures_DK: np.ndarray, threshold: float) -> np.ndarray:
    """Array of bool [D]: an earlier document's signature agrees with this one's in a band and in a share of at least `threshold`.

    Args:
      signatures_DK: uint32; memory for a few columns of it is needed beside it.
      threshold: above 0.
    """
    width = SIZE // BANDS
    repeated_D = np.zeros(len(signatures_DK), dtype=bool)
    for band in range(BANDS):
        key_D = np.zeros(len(signatures_DK), dtype=np.uint64)
        for column in range(band * width, (band + 1) * width):
            key_D = mix(key_D + signatures_DK[:, column])
        _, first_U, bucket_D = np.unique(key_D, return_index=True, return_inverse=True)
        leader_D = first_U[bucket_D]
        follower = np.flatnonzero((leader_D != np.arange(len(key_D))) & ~repeated_D)
        for start in range(0, len(follower), 65536):
            some = follower[start : start + 65536]
            agreement = (signatures_DK[some] == signatures_DK[leader_D[some]]).mean(1)
            repeated_D[some] |= agreement >= threshold
    return repeated_D
