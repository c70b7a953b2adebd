"""Tasks that point into texts: token-classification and question-answering.

Legend: L length.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.errors import UserError
from lm_research.pipelines.base import Pipeline, flaw, label_names, softmax
from lm_research.tokenizers.windows import Window, best_spans, windows, without_space, word_windows

_Widen = Callable[[int, int], tuple[int, int]]
AGGREGATIONS = ("none", "simple", "first", "average", "max")

_MOST_WINDOWS = 10_000  # of a context


class TokenClassification(Pipeline):
    """Classes of the tokens of a text, or of the entities they make up.

    A text that is longer than the model reads is read in windows of whole words that overlap; each word's class comes from the window where
    it has most around it.

    Options: `stride` (128): tokens that neighboring windows share, at most half of one. `aggregation_strategy`: none gives tokens {"entity", "score", "index", "word", "start", "end"}; the others
    {"entity_group", "score", "word", "start", "end"}: simple joins neighboring tokens of one class; first, average and max
    first give each word the class of its first token, of its tokens' mean, or of its surest token. `ignore_labels` (["O"]).
    Tags B-X and I-X are read as one class X; B- begins anew.
    """

    heads = ("token_classification",)

    def run(
        self,
        batch: list[str],
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] | str = ("O",),
        stride: int = 128,
    ) -> Iterator[list[dict[str, Any]]]:
        if aggregation_strategy not in AGGREGATIONS:
            raise UserError(
                f"aggregation_strategy is {aggregation_strategy!r}; it is one of {', '.join(AGGREGATIONS)}."
            )
        ignore_labels = [ignore_labels] if isinstance(ignore_labels, str) else ignore_labels
        names = label_names(self.lm)
        if stride < 0:
            raise UserError(f"stride is {stride}; it is at least 0.")
        encoded = self.tokenizer(list(batch), padding=True, return_offsets=True)
        fits = not self.longest or encoded["input_ids"].shape[1] <= self.longest
        logits = self.forward(encoded)["logits"] if fits else self._in_windows(encoded, stride)
        for row, text in enumerate(batch):
            tokens = self._tokens(text, encoded, softmax(logits[row]), row)
            if aggregation_strategy == "none":
                found = [self._one(token, names) for token in tokens]
                yield [one for one in found if one["entity"] not in ignore_labels]
                continue
            pieces = tokens if aggregation_strategy == "simple" else _words(tokens, aggregation_strategy)
            groups = _groups(pieces, names, self.tokenizer.decode)
            yield [group for group in groups if group["entity_group"] not in ignore_labels]

    def _in_windows(self, encoded: Mapping[str, np.ndarray], stride: int) -> np.ndarray:
        """Logits [B, L, C] of rows of which some are too long; those of special tokens around a text are 0."""
        frame, found = self.tokenizer.call_frame, list[tuple[int, np.ndarray, slice]]()
        room = self.longest - frame.size
        for row, mask in enumerate(encoded["attention_mask"]):
            real = np.flatnonzero(mask)
            head, body, tail = np.split(real, [len(frame.head), len(real) - len(frame.tail)])
            starts, ends = encoded["offset_mapping"][row, body].T
            opens = (starts[1:] != ends[:-1]) | self.tokenizer.starts_word[encoded["input_ids"][row, body[1:]]]
            words = np.split(body, np.flatnonzero(opens) + 1)
            words = [word[at : at + room] for word in words for at in range(0, len(word), room)]
            for window in word_windows(list(map(len, words)), room, stride):
                places = np.concatenate([head, *words[window.first : window.stop], tail])
                before, own = (sum(map(len, words[a:b])) for a, b in itertools.pairwise(window[:1] + window[2:]))
                found.append((row, places, slice(len(head) + before, len(head) + before + own)))
        logits = np.zeros((*encoded["input_ids"].shape, self.lm.definition.head.num_labels), np.float32)
        for start in range(0, len(found), self.batch_size):
            part = found[start : start + self.batch_size]
            read = self._of_places(encoded, [(row, places) for row, places, _ in part])
            for (row, places, inside), logits_LC in zip(part, read, strict=True):
                logits[row, places[inside]] = logits_LC[inside]
        return logits

    def _of_places(
        self, encoded: Mapping[str, np.ndarray], windows: Sequence[tuple[int, np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """Logits [L, C] of windows, each a row's number and the places of its tokens there."""
        width, left = max(len(places) for _, places in windows), self.tokenizer.padding_side == "left"
        sides = [slice(width - len(at), width) if left else slice(len(at)) for _, at in windows]
        rows = {name: np.zeros((len(windows), width), np.int32) for name in encoded if name != "offset_mapping"}
        rows["input_ids"][:] = self.tokenizer.pad_id
        for number, ((row, places), side) in enumerate(zip(windows, sides, strict=True)):
            for name, values in rows.items():
                values[number, side] = encoded[name][row, places]
        for logits_LC, side in zip(self.forward(rows)["logits"], sides, strict=True):
            yield logits_LC[side]

    def _tokens(
        self, text: str, encoded: Mapping[str, np.ndarray], shares: np.ndarray, row: int
    ) -> list[dict[str, Any]]:
        """Those that stand for characters of the text."""
        ids, offsets = encoded["input_ids"][row], encoded["offset_mapping"][row]
        special = set(self.tokenizer.special_ids.tolist()) - {self.tokenizer.roles.get("unk")}
        tokens: list[dict[str, Any]] = []
        for place in np.flatnonzero(encoded["attention_mask"][row]).tolist():
            start, end = (int(x) for x in offsets[place])
            start = without_space(text, start, end)
            if int(ids[place]) in special or start == end:
                continue
            goes_on = bool(tokens) and tokens[-1]["end"] == start and not self.tokenizer.starts_word[ids[place]]
            word = self.tokenizer.token_name(int(ids[place]))
            own = dict(ids=[int(ids[place])], word=word, goes_on=goes_on)
            tokens.append(dict(start=start, end=end, shares=shares[place], index=place, **own))
        return tokens

    def _one(self, token: dict[str, Any], names: list[str]) -> dict[str, Any]:
        best = int(token["shares"].argmax())
        kept = {name: token[name] for name in ("index", "word", "start", "end")}
        return {"entity": names[best], "score": float(token["shares"][best]), **kept}


def _words(tokens: list[dict[str, Any]], way: str) -> list[dict[str, Any]]:
    """Tokens joined to words."""
    words: list[list[dict[str, Any]]] = []
    for token in tokens:
        if token["goes_on"] and words:
            words[-1].append(token)
        else:
            words.append([token])
    joined = []
    for parts in words:
        shares = np.stack([part["shares"] for part in parts])
        chosen = {"first": shares[0], "average": shares.mean(0), "max": shares[shares.max(1).argmax()]}[way]
        ids = [token for part in parts for token in part["ids"]]
        joined.append({"start": parts[0]["start"], "end": parts[-1]["end"], "shares": chosen, "ids": ids})
    return joined


def _groups(
    pieces: list[dict[str, Any]], names: list[str], decode: Callable[[list[int]], str]
) -> Iterator[dict[str, Any]]:
    """Neighbors of one class as one entity; its score is their mean."""
    open_: dict[str, Any] | None = None
    for piece in pieces:
        best = int(piece["shares"].argmax())
        prefix, _, kind = names[best].rpartition("-") if names[best][:2] in ("B-", "I-") else ("", "", names[best])
        if open_ and open_["kind"] == kind and prefix != "B":
            open_["end"] = piece["end"]
            open_["scores"].append(float(piece["shares"][best]))
            open_["ids"] += piece["ids"]
            continue
        if open_:
            yield _close(open_, decode)
        open_ = {name: piece[name] for name in ("start", "end")}
        open_ |= {"kind": kind, "scores": [float(piece["shares"][best])], "ids": list(piece["ids"])}
    if open_:
        yield _close(open_, decode)


def _close(group: dict[str, Any], decode: Callable[[list[int]], str]) -> dict[str, Any]:
    score, word = sum(group["scores"]) / len(group["scores"]), decode(group["ids"]).strip()
    return {"entity_group": group["kind"], "score": score, "word": word, "start": group["start"], "end": group["end"]}


class QuestionAnswering(Pipeline):
    """The part of a context that answers a question: {"question": ..., "context": ...}, or question= and context= of a call.

    Long contexts are read in windows that overlap. The score is the product of the shares of start and end, each among the
    context's tokens in one window and the summary token before them, which stands for no answer (Devlin et al. 2018, section
    4.3). An answer that several windows hold has the highest of its scores.

    Options: `top_k` (1), `doc_stride` tokens that windows have in common (128, or half of max_seq_len if that is less),
    `max_answer_len` (15) tokens, `max_seq_len` (384, or the model's length), `handle_impossible_answer` (False): let "" be an
    answer, as in SQuAD 2.0; `align_to_words` (True): widen answers to whole words, as the tokenizer parts them.
    An answer is {"score", "start", "end", "answer"}, characters of the context; with top_k > 1 a list.
    """

    heads = ("span",)

    @classmethod
    def wrong(cls, one: Any) -> str | None:
        problem = flaw(one, ["question", "context"], '{"question": TEXT, "context": TEXT}')
        if problem is None and not one["context"].strip():
            return "has an empty context: give the text that holds the answer."
        return problem

    def __call__(self, inputs: Any = None, context: Any = None, *, question: Any = None, **options: Any) -> Any:
        """As Pipeline's, and with `question` and `context`: two texts, two lists, or a list of questions about one context.

        Raises:
          UserError: as Pipeline's; one of the two is missing, or there are not as many contexts as questions.
        """
        if context is None and question is None:
            return super().__call__(inputs, **options)
        question = inputs if question is None else question
        texts = isinstance(question, str), isinstance(context, str)
        if texts == (True, True):
            return super().__call__({"question": question, "context": context}, **options)
        if not isinstance(question, list | tuple) or not isinstance(context, str | list | tuple):
            raise UserError(
                f"question-answering was given question={question!r:.80} and context={context!r:.80}. Give two texts, two lists, "
                "or a list of questions and one context."
            )
        contexts = [context] * len(question) if texts[1] else context
        if len(contexts) != len(question):
            raise UserError(
                f"There are {len(question)} questions and {len(contexts)} contexts: give one context for each, or one for all."
            )
        pairs = [{"question": one, "context": other} for one, other in zip(question, contexts, strict=True)]
        return super().__call__(pairs, **options)

    def run(
        self,
        batch: list[Mapping[str, str]],
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int = 384,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Iterator[Any]:
        length = min(max_seq_len, self.longest or max_seq_len)
        stride = min(length // 2, 128) if doc_stride is None else doc_stride
        for name, value, least in (
            ("top_k", top_k, 1),
            ("max_answer_len", max_answer_len, 1),
            ("doc_stride", stride, 0),
        ):
            if value < least:
                raise UserError(f"{self.task}: {name}={value}: it is at least {least}.")
        for one in batch:
            context = one["context"]
            read, widened = self._windows(one["question"], context, length, stride)
            widen = widened if align_to_words else lambda first, last: (first, last)
            answers = self._search(context, read, widen, top_k, max_answer_len, handle_impossible_answer)
            yield answers[0] if top_k == 1 else answers

    def _windows(self, question: str, context: str, length: int, stride: int) -> tuple[list[Window], _Widen]:
        """Windows of the context, each with the question; and what makes characters [first, last) whole words."""
        asked, whole = self.tokenizer.encodings([question, context], add_special_tokens=False)
        special = self.tokenizer.num_special_tokens(pair=True)
        room = length - special - len(asked.ids)
        if not any(context[first:last].strip() for first, last in whole.offsets):
            raise UserError(
                f"The context {context!r:.80} is empty for this model, whose tokenizer has no token for it: give the text that "
                "holds the answer."
            )
        if room < 1 or room <= stride and len(whole.ids) > room:
            raise UserError(
                f"The question takes {special + len(asked.ids)} of max_seq_len={length} tokens, which leaves no more than "
                f"doc_stride={stride} for the context. Shorten it, raise max_seq_len or lower doc_stride."
            )
        if len(whole.ids) > room + _MOST_WINDOWS * max(1, room - stride):
            raise UserError(
                f"A context of {len(whole.ids)} tokens would be read in more than {_MOST_WINDOWS:,} windows with max_seq_len={length} and "
                f"doc_stride={stride}. Lower doc_stride, or shorten it."
            )
        (read,) = windows(self.tokenizer, [question], [context], length, min(stride, room - 1))
        return read, _widener(context, whole.word_ids, whole.offsets)

    def _search(
        self, context: str, read: list[Window], widen: _Widen, top_k: int, longest: int, may_be_none: bool
    ) -> list[dict[str, Any]]:
        found: dict[tuple[int, int], float] = {}
        none = 1.0
        for window in read:
            rows = {"input_ids": window.ids[None], "attention_mask": np.ones_like(window.ids)[None]}
            outputs = self.forward(rows | ({"token_type_ids": window.types[None]} if self.tokenizer.uses_types else {}))
            places = np.flatnonzero(window.offsets[:, 0] >= 0)
            summary = [0] if may_be_none or window.ids[0] == self.tokenizer.roles.get("cls") else []
            allowed = np.concatenate([np.array(summary, int), places])
            start, end = (_shares(outputs[f"{side}_logits"][0], allowed) for side in ("start", "end"))
            none = min(none, float(start[0] * end[0]))
            own: dict[tuple[int, int], float] = {}
            for a, b, score in best_spans(start[places], end[places], longest, np.multiply):
                if len(own) == top_k:
                    break
                first, last = widen(int(window.offsets[places[a], 0]), int(window.offsets[places[b], 1]))
                first = without_space(context, first, last)
                if first < last:
                    own.setdefault((first, last), score)
            for span, score in own.items():
                found[span] = max(found.get(span, 0.0), score)
        answers: list[dict[str, Any]] = [
            {"score": score, "start": a, "end": b, "answer": context[a:b]} for (a, b), score in found.items()
        ]
        if may_be_none:
            answers.append({"score": none, "start": 0, "end": 0, "answer": ""})
        return sorted(answers, key=lambda answer: -answer["score"])[:top_k]


def _widener(context: str, words: Iterable[int | None], offsets: Iterable[tuple[int, int]]) -> _Widen:
    """What makes the characters [first, last) of some tokens those of whole words.

    Args:
      words: of each token of the context, the number of its word.
      offsets: the characters that it covers.
    """
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for word, tokens in itertools.groupby(zip(words, offsets, strict=True), key=lambda token: token[0]):
        spans = [span for _, span in tokens if span[0] < span[1]]
        # Some tokenizers take a whole text for a word: such are left alone.
        if word is None or not spans or len(context[spans[0][0] : spans[-1][1]].split()) != 1:
            continue
        starts |= {first: spans[0][0] for first, _ in spans}
        ends |= {last: spans[-1][1] for _, last in spans}
    return lambda first, last: (starts.get(first, first), ends.get(last, last))


def _shares(logits_L: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Softmax over some positions, 0 elsewhere."""
    shares = np.zeros(len(logits_L))
    shares[allowed] = softmax(logits_L[allowed].astype(np.float64))
    return shares
