"""Make the goldens in this folder, in a separate environment: `pip install torch sentence-transformers seqeval`.

    python tests/tasks/goldens/make_goldens.py

embedding.npz: random vectors and states, with what the losses and the pooling of sentence-transformers make of them.
entities.json: random tags in BIO and BIOES, with seqeval's strict scores of them; and any tags, some without a type or with hyphens
in it, with the scores of its default mode.
Made with torch 2.13.0, sentence-transformers 6.2.0, transformers 5.24.0, seqeval 1.2.2.
"""

from __future__ import annotations

import json
import pathlib
import random

import numpy as np
import torch
from sentence_transformers import SentenceTransformer, util
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2, IOBES

HERE = pathlib.Path(__file__).parent


class Given(torch.nn.Module):
    """A stand-in for a model: its "features" are the vectors."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": features["vectors"]}


def embedding() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(6, 3, 8)).astype(np.float32)
    labels = draw.uniform(-1, 1, 6).astype(np.float32)
    model = SentenceTransformer(modules=[Given()])
    columns = [{"vectors": torch.tensor(vectors[:, c])} for c in range(3)]
    ranking, symmetric = losses.MultipleNegativesRankingLoss, losses.MultipleNegativesSymmetricRankingLoss
    found = {
        "ranking": ranking(model, scale=20.0)(columns[:2], None),
        "ranking_negatives": ranking(model, scale=20.0)(columns, None),
        "ranking_products": ranking(model, scale=1.0, similarity_fct=util.dot_score)(columns[:2], None),
        "symmetric": symmetric(model, scale=20.0)(columns[:2], None),
        "symmetric_negatives": symmetric(model, scale=20.0)(columns, None),
        "cosine": losses.CosineSimilarityLoss(model)(columns[:2], torch.tensor(labels)),
    }
    states = draw.normal(size=(4, 5, 8)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]])
    for mode in ("mean", "cls", "lasttoken"):
        pooled = Pooling(8, pooling_mode=mode)(
            {"token_embeddings": torch.tensor(states), "attention_mask": torch.tensor(mask)}
        )
        found[f"pool_{mode}"] = pooled["sentence_embedding"]
    np.savez(
        HERE / "embedding.npz",
        vectors=vectors,
        labels=labels,
        states=states,
        mask=mask,
        **{name: np.asarray(value.detach()) for name, value in found.items()},
    )


def valid(draw: random.Random, ends: bool) -> list[str]:
    """Random tags that follow their scheme."""
    tags: list[str] = []
    while len(tags) < 8:
        kind, length = draw.choice(["PER", "LOC"]), draw.randint(0, 3)
        if not length:
            tags.append("O")
        elif not ends:
            tags += [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
        else:
            tags += [f"S-{kind}"] if length == 1 else [f"B-{kind}"] + [f"I-{kind}"] * (length - 2) + [f"E-{kind}"]
    return tags


def entities() -> None:
    draw, cases = random.Random(0), []
    for ends in (False, True):
        for mode in ("strict", "conll"):
            prefixes = "BIES" if ends else "BI"
            true = [valid(draw, ends) for _ in range(12)]
            if mode == "strict":  # both follow the scheme, so that nothing depends on how a broken one is read
                own = [draw.choice([row, valid(draw, ends)]) for row in true]
                own = [(row + ["O"] * 20)[: len(t)] for row, t in zip(own, true, strict=True)]
                own = [fixed(row, ends) for row in own]
            else:  # anything, as conlleval reads it
                names = ["O", *(f"{p}-{k}" for p in prefixes for k in ("PER", "LOC"))]
                own = [[tag if draw.random() < 0.7 else draw.choice(names) for tag in row] for row in true]
            options = dict(mode="strict", scheme=IOBES if ends else IOB2) if mode == "strict" else {}
            scores = {f.__name__: f(true, own, **options) for f in (precision_score, recall_score, f1_score)}
            cases.append({"mode": mode, "ends": ends, "true": true, "own": own, **scores})
    for names in (["O", "B", "I"], ["O", "B", "I", "E", "S"], "O B I E S B- I- B-A I-A B-A-B I-A-B E-A S-A-B".split()):
        true, own = ([draw.choices(names, [2, *[1] * (len(names) - 1)], k=9) for _ in range(30)] for _ in range(2))
        own = [
            [a if draw.random() < 0.6 else b for a, b in zip(*pair, strict=True)]
            for pair in zip(true, own, strict=True)
        ]
        scores = {f.__name__: f(true, own) for f in (precision_score, recall_score, f1_score)}
        cases.append({"mode": f"{len(names)} tags", "ends": False, "true": true, "own": own, **scores})
    (HERE / "entities.json").write_text(json.dumps(cases) + "\n")


def fixed(tags: list[str], ends: bool) -> list[str]:
    """Close the last entity where the row was cut inside it."""
    if ends and tags[-1][0] in "BI":
        start = max(i for i, tag in enumerate(tags) if tag[0] == "B")
        tags = [*tags[:start], *["O"] * (len(tags) - start)]
    return tags


if __name__ == "__main__":
    embedding()
    entities()
