"""Pipelines that locate spans of texts: token-classification and question-answering.

Legend: L length, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from lm_research.errors import UserError
from lm_research.pipelines.base import Pipeline, dict_error, label_names, softmax
from lm_research.tokenizers.windows import Window, best_spans, windows, without_space, word_windows

_Widen = Callable[[int, int], tuple[int, int]]  # maps a character span to one that is at least as wide
AGGREGATIONS = ("none", "simple", "first", "average", "max")
_MAX_WINDOWS = 10_000  # per context


class TokenClassification(Pipeline):
    """Classify the tokens of a text, or find the entities that they form.

        tag = lm_research.pipeline("token-classification", "runs/conll", aggregation_strategy="simple")
        tag("Ada lives in Paris.")  # [{"entity_group": "PER", "score": 0.99, "word": "Ada", "start": 0, "end": 3}, ...]

    A text that is longer than the model's maximum length is read in overlapping windows of whole words; the class of each
    word comes from the window in which it has the most context. Tags B-X and I-X denote one class X; B- starts a new entity.

    Options:
      aggregation_strategy: "none" (default) returns tokens {"entity", "score", "index", "word", "start", "end"}. The others
        return entities {"entity_group", "score", "word", "start", "end"}: "simple" joins adjacent tokens of one class;
        "first", "average" and "max" first give each word the probabilities of its first token, the mean of its tokens, or
        those of its most confident token.
      ignore_labels: classes to leave out (default ["O"]).
      stride: number of tokens by which adjacent windows overlap (default 128), at most half a window.

    The output is a list of tokens or entities; start and end are character offsets.
    """

    heads = ("token_classification",)

    @override
    def run(
        self,
        batch: list[str],
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] | str = ("O",),
        stride: int = 128,
    ) -> Iterator[list[dict[str, Any]]]:
        if aggregation_strategy not in AGGREGATIONS:
            raise UserError(f"aggregation_strategy={aggregation_strategy!r} must be one of {', '.join(AGGREGATIONS)}.")
        ignore_labels = [ignore_labels] if isinstance(ignore_labels, str) else ignore_labels
        names = label_names(self.lm)
        if stride < 0:
            raise UserError(f"stride={stride} must be at least 0.")
        encoded = self.tokenizer(list(batch), padding=True, return_offsets=True)
        fits = not self.max_length or encoded["input_ids"].shape[1] <= self.max_length
        logits_BLC = self.forward(encoded)["logits"] if fits else self._windowed_logits(encoded, stride)
        for row, text in enumerate(batch):
            tokens = self._tokens(text, encoded, softmax(logits_BLC[row]), row)
            if aggregation_strategy == "none":
                labeled = [self._labeled(token, names) for token in tokens]
                yield [token for token in labeled if token["entity"] not in ignore_labels]
                continue
            pieces = tokens if aggregation_strategy == "simple" else _words(tokens, aggregation_strategy)
            entities = _entities(pieces, names, self.tokenizer.decode)
            yield [entity for entity in entities if entity["entity_group"] not in ignore_labels]

    def _windowed_logits(self, encoded: Mapping[str, np.ndarray], stride: int) -> np.ndarray:
        """Return the logits [B, L, C] of a batch with texts that are too long; those of added special tokens are 0."""
        frame, windows = self.tokenizer.call_frame, list[tuple[int, np.ndarray, slice]]()
        available = self.max_length - frame.size
        for row, mask in enumerate(encoded["attention_mask"]):
            positions = np.flatnonzero(mask)
            head, body, tail = np.split(positions, [len(frame.head), len(positions) - len(frame.tail)])
            starts, ends = encoded["offset_mapping"][row, body].T
            starts_word = (starts[1:] != ends[:-1]) | self.tokenizer.starts_word[encoded["input_ids"][row, body[1:]]]
            words = np.split(body, np.flatnonzero(starts_word) + 1)
            words = [word[at : at + available] for word in words for at in range(0, len(word), available)]
            for window in word_windows(list(map(len, words)), available, stride):
                read = np.concatenate([head, *words[window.first : window.stop], tail])
                before, kept = (sum(map(len, words[a:b])) for a, b in itertools.pairwise(window[:1] + window[2:]))
                windows.append((row, read, slice(len(head) + before, len(head) + before + kept)))
        logits_BLC = np.zeros((*encoded["input_ids"].shape, self.lm.definition.head.num_labels), np.float32)
        for start in range(0, len(windows), self.batch_size):
            part = windows[start : start + self.batch_size]
            outputs = self._gathered_logits(encoded, [(row, positions) for row, positions, _ in part])
            for (row, positions, kept_slice), logits_LC in zip(part, outputs, strict=True):
                logits_BLC[row, positions[kept_slice]] = logits_LC[kept_slice]
        return logits_BLC

    def _gathered_logits(
        self, encoded: Mapping[str, np.ndarray], windows: Sequence[tuple[int, np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """Yield the logits [L, C] of windows, each given as a row of the batch and the positions of its tokens."""
        width, left = max(len(positions) for _, positions in windows), self.tokenizer.padding_side == "left"
        sides = [slice(width - len(at), width) if left else slice(len(at)) for _, at in windows]
        arrays = {name: np.zeros((len(windows), width), np.int32) for name in encoded if name != "offset_mapping"}
        arrays["input_ids"][:] = self.tokenizer.pad_id
        for number, ((row, positions), side) in enumerate(zip(windows, sides, strict=True)):
            for name, values in arrays.items():
                values[number, side] = encoded[name][row, positions]
        for logits_LC, side in zip(self.forward(arrays)["logits"], sides, strict=True):
            yield logits_LC[side]

    def _tokens(
        self, text: str, encoded: Mapping[str, np.ndarray], probs_LC: np.ndarray, row: int
    ) -> list[dict[str, Any]]:
        """Return the tokens of row `row` that cover characters of the text."""
        ids, offsets = encoded["input_ids"][row], encoded["offset_mapping"][row]
        special = set(self.tokenizer.special_ids.tolist()) - {self.tokenizer.roles.get("unk")}
        tokens: list[dict[str, Any]] = []
        for index in np.flatnonzero(encoded["attention_mask"][row]).tolist():
            token_id = int(ids[index])
            start, end = (int(x) for x in offsets[index])
            start = without_space(text, start, end)
            if token_id in special or start == end:
                continue
            continues_word = bool(tokens) and tokens[-1]["end"] == start and not self.tokenizer.starts_word[token_id]
            tokens.append(
                dict(
                    start=start,
                    end=end,
                    probs=probs_LC[index],
                    index=index,
                    ids=[token_id],
                    word=self.tokenizer.token_name(token_id),
                    continues_word=continues_word,
                )
            )
        return tokens

    def _labeled(self, token: dict[str, Any], names: list[str]) -> dict[str, Any]:
        best = int(token["probs"].argmax())
        place = {name: token[name] for name in ("index", "word", "start", "end")}
        return {"entity": names[best], "score": float(token["probs"][best]), **place}


def _words(tokens: list[dict[str, Any]], strategy: str) -> list[dict[str, Any]]:
    """Join tokens into words."""
    words: list[list[dict[str, Any]]] = []
    for token in tokens:
        if token["continues_word"] and words:
            words[-1].append(token)
        else:
            words.append([token])
    joined = []
    for parts in words:
        probs_LC = np.stack([part["probs"] for part in parts])
        probs_C = {
            "first": probs_LC[0],
            "average": probs_LC.mean(0),
            "max": probs_LC[probs_LC.max(1).argmax()],
        }[strategy]
        ids = [token for part in parts for token in part["ids"]]
        joined.append({"start": parts[0]["start"], "end": parts[-1]["end"], "probs": probs_C, "ids": ids})
    return joined


def _entities(
    pieces: list[dict[str, Any]], names: list[str], decode: Callable[[list[int]], str]
) -> Iterator[dict[str, Any]]:
    """Join adjacent pieces of one class into an entity, whose score is their mean."""
    entity: dict[str, Any] | None = None
    for piece in pieces:
        best = int(piece["probs"].argmax())
        name = names[best]
        label = name[2:] if name.startswith(("B-", "I-")) else name
        if entity and entity["label"] == label and not name.startswith("B-"):
            entity["end"] = piece["end"]
            entity["scores"].append(float(piece["probs"][best]))
            entity["ids"] += piece["ids"]
            continue
        if entity:
            yield _entity_output(entity, decode)
        entity = {name: piece[name] for name in ("start", "end")}
        entity |= {"label": label, "scores": [float(piece["probs"][best])], "ids": list(piece["ids"])}
    if entity:
        yield _entity_output(entity, decode)


def _entity_output(entity: dict[str, Any], decode: Callable[[list[int]], str]) -> dict[str, Any]:
    score, word = sum(entity["scores"]) / len(entity["scores"]), decode(entity["ids"]).strip()
    span = {name: entity[name] for name in ("start", "end")}
    return {"entity_group": entity["label"], "score": score, "word": word, **span}


class QuestionAnswering(Pipeline):
    """Find the part of a context that answers a question.

        answer = lm_research.pipeline("question-answering", "runs/squad")
        answer(question="Who wrote Emma?", context="Jane Austen wrote Emma.")
        # {"score": 0.98, "start": 0, "end": 11, "answer": "Jane Austen"}

    The input is {"question": ..., "context": ...}, or the arguments `question` and `context` of a call. A long context is
    read in overlapping windows. The score is the product of the probabilities of start and end, each over the context's
    tokens in one window and the summary token, which represents "no answer" (Devlin et al. 2018, section 4.3). An answer
    found in several windows has its highest score.

    Options:
      top_k: number of answers (default 1).
      doc_stride: number of tokens by which windows overlap (default 128, or half of max_seq_len if that is less).
      max_answer_len: maximum length of an answer in tokens (default 15).
      max_seq_len: maximum length of a window in tokens (default 384, or the model's maximum length if that is less).
      handle_impossible_answer: allow the empty answer, as in SQuAD 2.0 (default False).
      align_to_words: extend answers to whole words of the tokenizer (default True).

    The output is {"score", "start", "end", "answer"}, or a list of them if top_k > 1; start and end are character offsets.
    """

    heads = ("span",)

    @override
    @classmethod
    def input_error(cls, item: Any) -> str | None:
        error = dict_error(item, ["question", "context"], '{"question": TEXT, "context": TEXT}')
        if error is None and not item["context"].strip():
            return "has an empty context: give the text that contains the answer."
        return error

    @override
    def __call__(self, inputs: Any = None, context: Any = None, *, question: Any = None, **options: Any) -> Any:
        """Answer one question or several.

        Args:
          inputs: inputs as of `Pipeline.__call__`, or the question.
          context: the context; a list with one context per question, or one text for all questions.
          question: the question, or a list of questions.
          **options: options of the task.

        Raises:
          UserError: the input or an option is not valid, the question or the context is missing, or the numbers of
            contexts and questions differ.
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
                f"There are {len(question)} questions and {len(contexts)} contexts: give one context for each question, or one "
                "text for all."
            )
        pairs = [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]
        return super().__call__(pairs, **options)

    @override
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
        length = min(max_seq_len, self.max_length or max_seq_len)
        stride = min(length // 2, 128) if doc_stride is None else doc_stride
        limits = ("top_k", top_k, 1), ("max_answer_len", max_answer_len, 1), ("doc_stride", stride, 0)
        for name, value, minimum in limits:
            if value < minimum:
                raise UserError(f"{self.task}: {name}={value} must be at least {minimum}.")
        for item in batch:
            context = item["context"]
            context_windows, to_words = self._windows(item["question"], context, length, stride)
            widen = to_words if align_to_words else lambda start, end: (start, end)
            answers = self._search(context, context_windows, widen, top_k, max_answer_len, handle_impossible_answer)
            yield answers[0] if top_k == 1 else answers

    def _windows(self, question: str, context: str, length: int, stride: int) -> tuple[list[Window], _Widen]:
        """Return the windows of the context, each with the question, and a function that widens spans to whole words."""
        question_tokens, tokens = self.tokenizer.encodings([question, context], add_special_tokens=False)
        overhead = self.tokenizer.num_special_tokens(pair=True) + len(question_tokens.ids)
        available = length - overhead
        if not any(context[start:end].strip() for start, end in tokens.offsets):
            raise UserError(
                f"The context {context!r:.80} is empty for this model, because its tokenizer has no token for it: give the text that "
                "contains the answer."
            )
        if available < 1 or available <= stride and len(tokens.ids) > available:
            raise UserError(
                f"The question takes {overhead} of max_seq_len={length} tokens, which leaves no more than doc_stride={stride} for "
                "the context. Shorten the question, raise max_seq_len or lower doc_stride."
            )
        if len(tokens.ids) > available + _MAX_WINDOWS * max(1, available - stride):
            raise UserError(
                f"A context of {len(tokens.ids)} tokens would be read in more than {_MAX_WINDOWS:,} windows with max_seq_len={length} "
                f"and doc_stride={stride}. Lower doc_stride, or shorten the context."
            )
        (found,) = windows(self.tokenizer, [question], [context], length, min(stride, available - 1))
        return found, _word_widener(context, tokens.word_ids, tokens.offsets)

    def _search(
        self,
        context: str,
        context_windows: list[Window],
        widen: _Widen,
        top_k: int,
        max_answer_len: int,
        allow_no_answer: bool,
    ) -> list[dict[str, Any]]:
        """Return the `top_k` best answers over all windows, best first."""
        scores: dict[tuple[int, int], float] = {}
        no_answer_score = 1.0
        for window in context_windows:
            arrays = {"input_ids": window.ids[None], "attention_mask": np.ones_like(window.ids)[None]}
            if self.tokenizer.uses_types:
                arrays["token_type_ids"] = window.types[None]
            outputs = self.forward(arrays)
            positions = np.flatnonzero(window.offsets[:, 0] >= 0)
            summary = [0] if allow_no_answer or window.ids[0] == self.tokenizer.roles.get("cls") else []
            allowed = np.concatenate([np.array(summary, int), positions])
            start_L, end_L = (_masked_softmax(outputs[f"{side}_logits"][0], allowed) for side in ("start", "end"))
            no_answer_score = min(no_answer_score, float(start_L[0] * end_L[0]))
            best: dict[tuple[int, int], float] = {}
            for a, b, score in best_spans(start_L[positions], end_L[positions], max_answer_len, np.multiply):
                if len(best) == top_k:
                    break
                start, end = widen(int(window.offsets[positions[a], 0]), int(window.offsets[positions[b], 1]))
                start = without_space(context, start, end)
                if start < end:
                    best.setdefault((start, end), score)
            for span, score in best.items():
                scores[span] = max(scores.get(span, 0.0), score)
        answers: list[dict[str, Any]] = [
            {"score": score, "start": start, "end": end, "answer": context[start:end]}
            for (start, end), score in scores.items()
        ]
        if allow_no_answer:
            answers.append({"score": no_answer_score, "start": 0, "end": 0, "answer": ""})
        return sorted(answers, key=lambda answer: -answer["score"])[:top_k]


def _word_widener(context: str, word_ids: Iterable[int | None], offsets: Iterable[tuple[int, int]]) -> _Widen:
    """Return a function that extends the character span of some tokens to whole words.

    Args:
      context: the text.
      word_ids: index of the word of each token, or None.
      offsets: character span of each token.
    """
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    for word, tokens in itertools.groupby(zip(word_ids, offsets, strict=True), key=lambda token: token[0]):
        spans = [span for _, span in tokens if span[0] < span[1]]
        # Some tokenizers treat a whole text as a word; spans in it are not extended.
        if word is None or not spans or len(context[spans[0][0] : spans[-1][1]].split()) != 1:
            continue
        starts |= {start: spans[0][0] for start, _ in spans}
        ends |= {end: spans[-1][1] for _, end in spans}
    return lambda start, end: (starts.get(start, start), ends.get(end, end))


def _masked_softmax(logits_L: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return the softmax over the positions `allowed`, and 0 elsewhere."""
    probs_L = np.zeros(len(logits_L))
    probs_L[allowed] = softmax(logits_L[allowed].astype(np.float64))
    return probs_L
