"""Near-duplicate detection: MinHash (Broder 1997) and locality-sensitive hashing.

A document is represented by its set of SHINGLE consecutive words (characters, in scripts without spaces). The fraction of equal
entries of two signatures estimates the Jaccard similarity of two sets. Signatures are cut into BANDS bands. Documents with
an equal band are in one bucket and are compared with its first document. A decision depends only on a document and the first ones
of its buckets, so neither the order of work nor the number of workers changes it.

Shapes: D documents, K entries of a signature, T tokens.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from lm_research.data.stateless_rng import mix

SIZE = 128  # K
# Bands of 4 entries: at similarity 0.8 a band is equal with probability 1 - (1 - 0.8**4)**32 = 0.99999996, at 0.5 with 0.87.
BANDS = 32
SHINGLE = 5
_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿฀-๿]|[^\W_぀-ヿ㐀-鿿豈-﫿฀-๿]+")  # kana, Han, Thai: one by one
_FACTORS = mix(np.arange(1, SIZE + 1)) | np.uint64(1)
_SHIFTS = mix(np.arange(SIZE + 1, 2 * SIZE + 1))


def signature(text: str) -> np.ndarray:
    """Compute the minimum of each of K hashes over a text's shingles, uint32 [K]; case and punctuation are ignored."""
    words = _WORD.findall(text.lower())
    hashes_T = np.array([zlib.crc32(word.encode()) for word in words] or [0], dtype=np.uint64)
    width = min(SHINGLE, len(hashes_T))
    shingles = np.zeros(len(hashes_T) - width + 1, dtype=np.uint64)
    for offset in range(width):
        shingles = mix(shingles + hashes_T[offset : offset + len(shingles)] + np.uint64(1))
    minimum_K = np.full(SIZE, 2**64 - 1, dtype=np.uint64)
    for start in range(0, len(shingles), 4096):
        values = shingles[start : start + 4096, None] * _FACTORS + _SHIFTS
        minimum_K = np.minimum(minimum_K, values.min(0))
    return (minimum_K >> np.uint64(32)).astype(np.uint32)


def find_near_duplicates(signatures_DK: np.ndarray, threshold: float) -> np.ndarray:
    """Mark near duplicates of earlier documents, bool [D]: one band of the signatures is equal, and a fraction `threshold` of their entries.

    Args:
      signatures_DK: uint32; a few copies of single columns are held in memory.
      threshold: fraction above 0.
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
