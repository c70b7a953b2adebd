"""Records of SuperGLUE's archives (Wang et al. 2019), with the fields added that tasks on pairs read.

BoolQ, CB, COPA and RTE have all of these fields. The others get:

    MultiRC   a passage with questions, each with answers, becomes one record an answer: passage, question (and answer), label, and
              question_id, equal for the answers of one question
    WiC       marked1, marked2: the sentences with the word between asterisks
    ReCoRD    a passage with queries and the entities that are marked in it becomes one record a query and entity: passage, statement (the
              query with the entity in its blank), entity, label (1: it is one of the answers), f1 (its words' F1 against the nearest answer,
              as SQuAD's script compares them), and question_id, equal for the entities of one query
    WSC       marked: the text with the pronoun between asterisks; candidate: what it may refer to

Asterisks around a word follow T5 (Raffel et al. 2019, appendix D).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lm_research.errors import DataError
from lm_research.metrics.answers import exact_match, f1

_WIC = {"word", "sentence1", "sentence2", "start1", "end1", "start2", "end2"}
_WSC = {"span1_text", "span2_text", "span2_index"}
_BLANK = "@placeholder"  # of ReCoRD's queries
# Begins each sentence of the summary that follows ReCoRD's articles.
_HIGHLIGHT = re.compile(r"([.?!\"'”’]?)\s*@highlight\s*")
_MARKUP = re.compile(r"\s*<br>\s*|</?b>")  # that some passages of MultiRC have


def expand(fields: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, fields) of a record or, from a passage of MultiRC or ReCoRD, of each record in it.

    Raises:
      DataError: a record has the fields of one of these tasks, but their content does not fit that task.
    """
    passage, target = fields.get("passage"), fields.get("target")
    try:
        if isinstance(passage, dict) and "questions" in passage:
            yield from _answers(passage, where)
        elif isinstance(passage, dict) and "entities" in passage:
            yield from _entities(passage, fields["qas"], where)
        elif fields.keys() >= _WIC:
            yield where, fields | {f"marked{i}": _mark_place(fields, i) for i in (1, 2)}
        elif isinstance(target, dict) and target.keys() >= _WSC and isinstance(fields.get("text"), str):
            marked = _mark_word(fields["text"], target["span2_text"], target["span2_index"])
            yield where, fields | {"marked": marked, "candidate": target["span1_text"]}
        else:
            yield where, fields
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where} has the fields of a SuperGLUE task, but not in its format ({type(error).__name__}: {error}). Fix it."
        ) from error


def _answers(passage: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    text = " ".join(_MARKUP.sub(" ", passage["text"]).split())
    for number, question in enumerate(passage["questions"], 1):
        for place, answer in enumerate(question["answers"], 1):
            fields = {"passage": text, "question": f"{question['question']} {answer['text']}"}
            fields["question_id"] = f"{where}, question {number}"
            if "label" in answer:
                fields["label"] = str(answer["label"])
            yield f"{where}, question {number}, answer {place}", fields


def _entities(
    passage: dict[str, Any], queries: list[dict[str, Any]], where: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    text = passage["text"]
    # `end` is the last character.
    mentions = (text[entity["start"] : entity["end"] + 1] for entity in passage["entities"])
    entities = list(dict.fromkeys(mentions))
    passage_text = _HIGHLIGHT.sub(lambda found: f"{found[1] or '.'} ", text).strip()
    for number, query in enumerate(queries, 1):
        if _BLANK not in query["query"]:
            raise KeyError(f"{_BLANK} in query {number}")
        answers = [answer["text"] for answer in query.get("answers", ())]
        for entity in entities:
            fields = {"passage": passage_text, "statement": query["query"].replace(_BLANK, entity), "entity": entity}
            fields["question_id"] = f"{where}, query {number}"
            if answers:
                fields["label"] = str(int(exact_match(entity, answers, null=False)))
                fields["f1"] = f1(entity, answers, null=False)
            yield f"{where}, query {number}, entity {entity!r}", fields


def _mark_place(fields: dict[str, Any], number: int) -> str:
    """Put the characters [start, end) of a sentence between asterisks."""
    text, start, end = (fields[f"{name}{number}"] for name in ("sentence", "start", "end"))
    return f"{text[:start]}*{text[start:end]}*{text[end:]}"


def _mark_word(text: str, words: str, index: int) -> str:
    """Put these words between asterisks; the first is word `index` of the text, which is split at spaces.

    In a few records the index is off; then the nearest place with these words is used.
    """
    text_words, marked_words = text.split(" "), words.split(" ")
    bare = [word.strip(".,;:!?\"'()").lower() for word in text_words]
    target = [word.strip(".,;:!?\"'()").lower() for word in marked_words]
    places = [i for i in range(len(text_words) - len(target) + 1) if bare[i : i + len(target)] == target]
    start = min(places, key=lambda i: abs(i - index), default=index)
    end = start + len(marked_words)
    return " ".join([*text_words[:start], f"*{' '.join(text_words[start:end])}*", *text_words[end:]])
