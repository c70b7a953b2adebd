"""Tasks that point into texts: token-classification and question-answering.

Legend: L length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.errors import UserError
from lm_research.pipelines.base import Pipeline, label_names, only, softmax

AGGREGATIONS = ("none", "simple", "first", "average", "max")


class TokenClassification(Pipeline):
    """Classes of the tokens of a text, or of the entities they make up.

    Options: `aggregation_strategy`: none gives tokens {"entity", "score", "index", "word", "start", "end"}; the others
    {"entity_group", "score", "word", "start", "end"}: simple joins neighbouring tokens of one class; first, average and max
    first give each word the class of its first token, of its tokens' mean, or of its surest token. `ignore_labels` (["O"]).
    Tags B-X and I-X are read as one class X; B- begins anew.
    """

    heads = ("token_classification",)

    def run(
        self, batch: list[str], aggregation_strategy: str = "none", ignore_labels: Sequence[str] = ("O",)
    ) -> Iterator[list[dict[str, Any]]]:
        if aggregation_strategy not in AGGREGATIONS:
            raise UserError(
                f"aggregation_strategy is {aggregation_strategy!r}; it is one of {', '.join(AGGREGATIONS)}."
            )
        names = label_names(self.lm)
        encoded = self.encode(batch, return_offsets=True)
        logits = self.forward(encoded)["logits"]
        for row, text in enumerate(batch):
            tokens = self._tokens(text, encoded, softmax(logits[row]), row)
            if aggregation_strategy == "none":
                found = [self._one(token, names) for token in tokens]
                yield [one for one in found if one["entity"] not in ignore_labels]
                continue
            pieces = tokens if aggregation_strategy == "simple" else _words(tokens, aggregation_strategy)
            groups = _groups(pieces, names, self.tokenizer.decode)
            yield [group for group in groups if group["entity_group"] not in ignore_labels]

    def _tokens(
        self, text: str, encoded: Mapping[str, np.ndarray], shares: np.ndarray, row: int
    ) -> list[dict[str, Any]]:
        """Those that stand for characters of the text."""
        ids, offsets = encoded["input_ids"][row], encoded["offset_mapping"][row]
        special = set(self.tokenizer.special_ids.tolist()) - {self.tokenizer.roles.get("unk")}
        tokens = []
        for place in np.flatnonzero(encoded["attention_mask"][row]).tolist():
            start, end = (int(x) for x in offsets[place])
            while start < end and text[start].isspace():  # a space belongs to the token, not to the word
                start += 1
            if int(ids[place]) in special or start == end:
                continue
            goes_on = bool(tokens) and tokens[-1]["end"] == start and not self.tokenizer.starts_word[ids[place]]
            word = self.tokenizer.backend.id_to_token(int(ids[place]))
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
    """Neighbours of one class as one entity; its score is their mean."""
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
    """The part of a context that answers a question: {"question": ..., "context": ...}.

    Long contexts are read in windows that overlap. The score is the product of the shares of start and end, each over
    all windows' positions in the context (Devlin et al. 2018, section 4.2).

    Options: `top_k` (1), `doc_stride` (128) tokens that windows have in common, `max_answer_len` (15) tokens,
    `max_seq_len` (384), `handle_impossible_answer` (False): let "" be an answer, as in SQuAD 2.0.
    An answer is {"score", "start", "end", "answer"}, characters of the context; with top_k > 1 a list.
    """

    heads = ("span",)

    def run(
        self,
        batch: list[Mapping[str, str]],
        top_k: int = 1,
        doc_stride: int = 128,
        max_answer_len: int = 15,
        max_seq_len: int = 384,
        handle_impossible_answer: bool = False,
    ) -> Iterator[Any]:
        for one in batch:
            if not isinstance(one, Mapping):
                raise UserError('question-answering takes {"question": TEXT, "context": TEXT}.')
            question, context = only(one, ["question", "context"])
            if not context.strip():
                raise UserError("The context of a question is empty: give the text that holds the answer.")
            windows = self._windows(question, context, min(max_seq_len, self.longest or max_seq_len), doc_stride)
            answers = self._search(context, windows, top_k, max_answer_len, handle_impossible_answer)
            yield answers[0] if top_k == 1 else answers

    def _windows(self, question: str, context: str, length: int, stride: int) -> list[dict[str, Any]]:
        """Windows of the context, each with the question: ids, where its part of the context stands, and characters."""
        empty = self.tokenizer(question, "")["input_ids"].shape[1]
        offsets = self.tokenizer(context, add_special_tokens=False, return_offsets=True)["offset_mapping"][0]
        room = length - empty
        if room <= stride:
            raise UserError(
                f"The question takes {empty} of max_seq_len={length} tokens, which leaves no more than doc_stride={stride} for the "
                "context. Shorten it, raise max_seq_len or lower doc_stride."
            )
        windows, first = [], 0
        while True:
            last = min(first + room, len(offsets))
            begin, end = int(offsets[first][0]), int(offsets[last - 1][1])
            encoded = self.tokenizer(question, context[begin:end], return_offsets=True)
            own = encoded["offset_mapping"][0]
            inside = self._context_places(question, encoded)
            windows.append({"encoded": encoded, "places": inside, "offsets": own + begin})
            if last == len(offsets):
                return windows
            first = last - stride

    def _context_places(self, question: str, encoded: Mapping[str, np.ndarray]) -> np.ndarray:
        """Places of the context's tokens: real ones after the question's."""
        ids, offsets = encoded["input_ids"][0], encoded["offset_mapping"][0]
        special = np.isin(
            ids,
            [
                self.tokenizer.roles[role]
                for role in ("cls", "sep", "bos", "eos", "pad")
                if role in self.tokenizer.roles
            ],
        )
        real = np.flatnonzero((offsets[:, 1] > offsets[:, 0]) & ~special)
        asked = self.tokenizer(question, add_special_tokens=False)["input_ids"].shape[1]
        return real[asked:]

    def _search(
        self, context: str, windows: list[dict[str, Any]], top_k: int, longest: int, may_be_none: bool
    ) -> list[dict[str, Any]]:
        found: dict[tuple[int, int], float] = {}
        none = 1.0
        for window in windows:
            outputs = self.forward(window["encoded"])
            places = window["places"]
            allowed = np.concatenate([[0], places]) if may_be_none else places
            start, end = (_shares(outputs[f"{side}_logits"][0], allowed) for side in ("start", "end"))
            none = min(none, float(start[0] * end[0]))
            pairs = np.triu(start[places][:, None] * end[places][None, :])
            pairs = np.tril(pairs, longest - 1)
            best = np.argsort(-pairs, axis=None, kind="stable")[: 4 * top_k]
            for a, b in zip(*np.unravel_index(best, pairs.shape), strict=True):
                first, last = int(window["offsets"][places[a]][0]), int(window["offsets"][places[b]][1])
                while first < last and context[first].isspace():
                    first += 1
                found[first, last] = max(found.get((first, last), 0.0), float(pairs[a, b]))
        answers = [{"score": score, "start": a, "end": b, "answer": context[a:b]} for (a, b), score in found.items()]
        if may_be_none:
            answers.append({"score": none, "start": 0, "end": 0, "answer": ""})
        return sorted(answers, key=lambda answer: -answer["score"])[:top_k]


def _shares(logits_L: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Softmax over some positions, 0 elsewhere."""
    shares = np.zeros(len(logits_L))
    shares[allowed] = softmax(logits_L[allowed].astype(np.float64))
    return shares
