"""SQuAD's nested files, flattened to one record per question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lm_research.errors import DataError


def is_nested(fields: Mapping[str, Any]) -> bool:
    """Check whether an object is a SQuAD document or article, not a record with a field of its own named "data" or "paragraphs"."""
    inner = {"data": "paragraphs", "paragraphs": "qas"}
    return any(
        isinstance(one, dict) and below in one
        for name, below in inner.items()
        for one in (fields[name] if isinstance(fields.get(name), list) else ())
    )


def flatten(document: Mapping[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, fields) of each question of data -> paragraphs -> qas; its context is added to its fields.

    Args:
      document: a whole document, or one article of its data.
      where: the place of the document, for messages.

    Raises:
      DataError: a level is missing or has the wrong type.
    """
    whole = "paragraphs" not in document
    for a, article in enumerate(_level(document, "data", where) if whole else [document]):
        at = f"{where}, data {a}" if whole else where
        for p, paragraph in enumerate(_level(article, "paragraphs", at)):
            below = f"{at}, paragraph {p}"
            for q, question in enumerate(_level(paragraph, "qas", below)):
                if not isinstance(question, dict):
                    raise DataError(f"{below}, question {q} is {question!r}, not an object with named fields. Fix it.")
                name = f"id {question['id']!r}" if "id" in question else f"question {q}"
                context = {"context": paragraph["context"]} if "context" in paragraph else {}
                yield f"{below}, {name}", {"title": article.get("title", "")} | question | context


def _level(parent: Any, name: str, where: str) -> list[Any]:
    if not isinstance(parent, dict) or not isinstance(parent.get(name), list):
        raise DataError(f"{where} has no list {name!r}: a SQuAD file is data -> paragraphs -> qas. Fix it.")
    return parent[name]
