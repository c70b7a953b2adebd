"""experiments/benchmarks/train_step/profile.py and parts.py: the products are those of a step, and the table adds up."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.benchmarks.train_step import parts, profile
from experiments.benchmarks.train_step.workload import Row


@pytest.mark.parametrize(("family", "rows", "vocab"), [("bert", 16 * 20, 30522), ("gpt2", 16 * 128, 50257)])
def test_products_are_three_times_those_of_the_forward_pass(family: str, rows: int, vocab: int) -> None:
    row = Row(family, 2, 128, 128, 16)
    dense = [(128, 128, 4 * 2), (128, 512, 2), (512, 128, 2)]

    found = {
        name: sum(2.0 * np.prod(p.a) * p.b[-2 if p.transposed[1] else -1] * p.count for p in group)
        for name, group in parts.products(row, dense, row.tokens).items()
    }

    # 2 FLOPs for each number of a matrix and each token, and twice that in the backward pass (Kaplan et al. 2020, section 2.1)
    assert found["dense layers"] == 6 * row.tokens * 2 * 12 * 128**2
    assert found["attention"] == 3 * 2 * (2 * 2 * 16 * 128 * 128 * 128)  # layers x (q k^T and p v) x B L L D
    assert found["vocabulary"] == pytest.approx(6 * rows * 128 * vocab, rel=0.01)  # slices are rounded up to whole rows


def test_a_product_matches_its_description() -> None:
    product = parts.Product("", (3, 5, 4), (3, 5, 2), 1, (True, False))

    part = product.part(jax)

    a, b = parts.numbers(3, 5, 4), parts.numbers(3, 5, 2)
    np.testing.assert_allclose(part.run(), np.einsum("nki,nkj->nij", a, b), rtol=1e-5, atol=1e-5)
    assert part.flops == 2 * 3 * 4 * 5 * 2


def test_the_table_adds_up_to_the_step() -> None:
    def part(milliseconds: float, count: int = 1, flops: float = 0.0) -> parts.Part:
        return parts.Part("", lambda: None, count, flops, milliseconds / 1e3)

    groups = [parts.Group("dense layers", [part(10, 4)], [part(5, 4, 1e9)], [part(4, 4, 1e9)])]

    lines = list(profile.table(part(100), groups))

    assert lines[2:] == [
        "| dense layers: products | 20.0 | 20% | 200 (200) | 250 (250) |",  # 1 GFLOP in 5 ms, in 4 ms
        "| dense layers: the rest | 20.0 | 20% |  |  |",
        "| residue | 60.0 | 60% |  |  |",
        "| step | 100.0 | 100% |  |  |",
    ]
