"""Tasks that read texts: fill-mask, text-classification, zero-shot-classification, feature-extraction, sentence-similarity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import Any, Literal

import numpy as np

from lm_research.common.texts import replace_surrogates
from lm_research.decoding.generate import score
from lm_research.decoding.generation_request import encode
from lm_research.errors import UserError
from lm_research.pipelines.base import Pipeline, flaw, label_names, sigmoid, softmax


class FillMask(Pipeline):
    """What stands behind the mask token of a text.

    Options: `top_k` (5) answers a mask; `targets`, a word or a list of words to choose from.
    An answer is a list of {"score", "token", "token_str", "sequence"}; of a text with several masks a list of such lists.
    """

    heads = ("masked_lm", "pretraining")

    def run(self, batch: list[str], top_k: int = 5, targets: str | Sequence[str] | None = None) -> Iterator[list[Any]]:
        encoded = self.encode(batch)
        outputs = self.forward(encoded)
        logits = outputs["prediction_logits"] if self.lm.head == "pretraining" else outputs["logits"]
        allowed = None if targets is None else self._ids(targets)
        for row, (text, ids, real) in enumerate(
            zip(batch, encoded["input_ids"], encoded["attention_mask"], strict=True)
        ):
            places = np.flatnonzero(ids == self.tokenizer.mask_id)
            if not len(places):
                mask = self.tokenizer.pieces([self.tokenizer.mask_id])[0]
                raise UserError(
                    f"{text!r} has no {mask} in it (within {self.longest} tokens): put one where a word is wanted."
                )
            found = [
                self._best(softmax(logits[row, place]), ids[real > 0], place, top_k, allowed, len(places) == 1)
                for place in places.tolist()
            ]
            yield found[0] if len(found) == 1 else found

    def _ids(self, targets: str | Sequence[str]) -> np.ndarray:
        ids = []
        for word in [targets] if isinstance(targets, str) else targets:
            (pieces,) = self.tokenizer.encode_after([f" {word}"])
            if len(pieces) != 1:
                raise UserError(
                    f"The target {word!r} is {len(pieces)} tokens for this model, and a mask stands for one."
                )
            ids.append(pieces[0])
        return np.array(ids)

    def _best(
        self, shares_V: np.ndarray, row: np.ndarray, place: int, top_k: int, allowed: np.ndarray | None, alone: bool
    ) -> list[dict[str, Any]]:
        shares_V = shares_V[: self.tokenizer.size]
        candidates = np.arange(len(shares_V)) if allowed is None else allowed
        best = candidates[np.argsort(-shares_V[candidates], kind="stable")[:top_k]]
        answers = []
        for token in best.tolist():
            filled = np.where(np.arange(len(row)) == place, token, row).tolist()
            answers.append(
                {
                    "score": float(shares_V[token]),
                    "token": token,
                    "token_str": self.tokenizer.decode([token]).strip() or self.tokenizer.pieces([token])[0],
                    # Other masks stay to be seen, and so do all special tokens then, as they used to.
                    "sequence": self.tokenizer.decode(filled, skip_special_tokens=alone),
                }
            )
        return answers


class TextClassification(Pipeline):
    """The class of a text, or of a pair {"text": ..., "text_pair": ...}.

    Options: `top_k` answers instead of one, None for all; `return_all_scores`: all, in the order of the labels;
    `function_to_apply`: softmax, sigmoid or none; by default what problem_type in config.json or the number of labels says.
    An answer is {"label", "score"}, with top_k or return_all_scores a list of them. As in Hugging Face's pipeline, the answer to
    one text (no pair, no list) is in a list too, unless the call has top_k.
    """

    heads = ("classification", "next_sentence")

    @classmethod
    def wrong(cls, one: Any) -> str | None:
        if isinstance(one, str):
            return None
        texts = ("text", "text_pair") if isinstance(one, Mapping) and one.get("text_pair") is not None else ("text",)
        return flaw(one, texts, 'a text or {"text": TEXT, "text_pair": TEXT}')

    def __call__(self, inputs: Any, **options: Any) -> Any:
        answers = super().__call__(inputs, **options)
        return [answers] if isinstance(inputs, str) and "top_k" not in options else answers

    def run(
        self,
        batch: list[Any],
        top_k: int | Literal["one"] | None = "one",
        function_to_apply: str | None = None,
        return_all_scores: bool = False,
    ) -> Iterator[Any]:
        names = label_names(self.lm)
        for scores in self._scores(batch, function_to_apply):
            in_order = return_all_scores and top_k == "one"
            order = range(len(scores)) if in_order else np.argsort(-scores, kind="stable").tolist()
            answers = [{"label": names[i], "score": float(scores[i])} for i in order]
            yield answers if in_order else answers[0] if top_k == "one" else answers[:top_k]

    def _scores(self, batch: list[Any], function: str | None) -> np.ndarray:
        logits = self.logits(batch)
        if function is None:
            problem = self.lm.config.to_dict().get("problem_type")
            usual = {
                "multi_label_classification": "sigmoid",
                "single_label_classification": "softmax",
                "regression": "none",
            }
            function = usual.get(problem, "sigmoid" if logits.shape[1] == 1 else "softmax")
        functions = {"softmax": softmax, "sigmoid": sigmoid, "none": lambda x: x}
        if function not in functions:
            raise UserError(f"function_to_apply is {function!r}; it is softmax, sigmoid or none.")
        return functions[function](logits)

    def logits(self, batch: list[Any]) -> np.ndarray:
        """[B, C] of texts and pairs."""
        texts = [self._texts(one) for one in batch]
        pairs = [second is not None for _, second in texts]
        if any(pairs) and not all(pairs):
            return np.concatenate([self.logits([one]) for one in batch])
        seconds = [second for _, second in texts if second is not None]
        return self.forward(self.encode([first for first, _ in texts], seconds or None))["logits"]

    def _texts(self, one: Any) -> tuple[str, str | None]:
        return (one, None) if isinstance(one, str) else (one["text"], one.get("text_pair"))


class ZeroShotClassification(Pipeline):
    """Which of some labels fits a text, by a model that was never trained on them.

    A model of natural language inference (its classes name an entailment) judges whether the text entails "This example is
    LABEL." (Yin et al. 2019). A causal model weighs how likely the label is after the text, per token. Texts are cut at the model's
    length.

    Options: `candidate_labels`, a list or one text with commas, in a call also right after the inputs; `hypothesis_template`;
    `multi_label`: judge each label by itself (inference models only). An answer is {"sequence", "labels", "scores"}, best first.
    """

    heads = ("classification", "causal_lm")

    def __call__(self, inputs: Any, candidate_labels: Sequence[str] | str | None = None, **options: Any) -> Any:
        given = {} if candidate_labels is None else {"candidate_labels": candidate_labels}
        return super().__call__(inputs, **given, **options)

    def run(
        self,
        batch: list[str],
        candidate_labels: Sequence[str] | str = (),
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = False,
    ) -> Iterator[dict[str, Any]]:
        if isinstance(candidate_labels, str):
            candidate_labels = [label.strip() for label in candidate_labels.split(",") if label.strip()]
        candidate_labels = replace_surrogates(list(candidate_labels))
        if not candidate_labels or "{}" not in hypothesis_template:
            raise UserError("Give candidate_labels=[...], and a hypothesis_template with {} where the label goes.")
        try:
            # Widths of fields could take any memory, and names of fields any value of Python's.
            plain = all(not (name or spec or how) for _, name, spec, how in Formatter().parse(hypothesis_template))
            hypotheses = [hypothesis_template.format(label) for label in candidate_labels] if plain else []
        except (LookupError, ValueError):
            hypotheses = []
        if not hypotheses:
            raise UserError(
                f"hypothesis_template={hypothesis_template!r:.80} cannot be filled in. Write {{}} once, where the label goes, and other "
                "braces twice."
            )
        for text in batch:
            if self.lm.head == "causal_lm":
                scores = self._by_likelihood(text, hypotheses, multi_label)
            else:
                scores = self._by_inference(text, hypotheses, multi_label)
            order = np.argsort(-scores, kind="stable").tolist()
            labels = [candidate_labels[i] for i in order]
            yield {"sequence": text, "labels": labels, "scores": [float(scores[i]) for i in order]}

    def _by_inference(self, text: str, hypotheses: list[str], multi_label: bool) -> np.ndarray:
        names = [name.lower() for name in label_names(self.lm)]
        entailing = next((i for i, name in enumerate(names) if name.startswith("entail")), None)
        if entailing is None:
            raise UserError(
                f"This model's classes are {', '.join(names)}: none is an entailment. zero-shot-classification needs a model of "
                "natural language inference, or a causal one."
            )
        against = next(
            (i for i, name in enumerate(names) if name.startswith("contra")), 0 if entailing else len(names) - 1
        )
        logits = self.forward(self.encode([text] * len(hypotheses), hypotheses))["logits"]
        if multi_label or len(hypotheses) == 1:
            return softmax(logits[:, [against, entailing]])[:, 1]
        return softmax(logits[:, entailing])

    def _by_likelihood(self, text: str, hypotheses: list[str], multi_label: bool) -> np.ndarray:
        if multi_label:
            raise UserError(
                "multi_label needs a model of natural language inference; a causal one only compares labels."
            )
        continuations = self.own.encode_after([f" {one}" for one in hypotheses])
        most, (ids,) = max(map(len, continuations)), encode(self.own, [text])
        room = self.longest + 1 - most if self.longest else len(ids)  # a continuation's last token is not read
        if room < 1:
            raise UserError(
                f"A candidate label in its template has {most} tokens, and the model reads {self.longest}, which leaves none for "
                "the text. Shorten it."
            )
        given = (
            {"prompts": [text] * len(hypotheses)} if len(ids) <= room else {"input_ids": [ids[:room]] * len(hypotheses)}
        )
        found = score(self.lm, **given, continuations=continuations)
        return softmax(np.array([one.mean() for one in found]))


class FeatureExtraction(Pipeline):
    """States of a text's tokens, [1, tokens, D] as nested lists; with `return_tensors=True` as an array."""

    heads = ("none",)

    def run(self, batch: list[str], return_tensors: bool = False) -> Iterator[Any]:
        encoded = self.encode(batch)
        states = self.forward(encoded)["last_hidden_state"]
        for row, mask in zip(states, encoded["attention_mask"], strict=True):
            found = row[mask > 0][None]
            yield found if return_tensors else found.tolist()


class SentenceSimilarity(Pipeline):
    """Similarity of {"source_sentence": ...} to each of its "sentences" (a list; one text is a list of one), by `lm.embed`.

    It is the cosine, unless the model's directory specifies another.

    Options: `pooling`, `prompt_name` and `prompt`, see LanguageModel.embed; without them the model's own.
    """

    heads = ("none",)

    @classmethod
    def wrong(cls, one: Any) -> str | None:
        form = '{"source_sentence": TEXT, "sentences": [TEXT, ...]}'
        if problem := flaw(one, ["source_sentence"], form):
            return problem
        others = one.get("sentences")
        if isinstance(others, str) or isinstance(others, Sequence) and all(isinstance(text, str) for text in others):
            return None
        return flaw(one, ["sentences"], form)

    def run(
        self,
        batch: list[Mapping[str, Any]],
        pooling: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Iterator[list[float]]:
        for one in batch:
            others = [one["sentences"]] if isinstance(one["sentences"], str) else one["sentences"]
            texts = [one["source_sentence"], *others]
            vectors = self.lm.embed(texts, pooling=pooling, prompt_name=prompt_name, prompt=prompt)
            yield self.lm.similarity(vectors[:1], vectors[1:])[0].tolist()
