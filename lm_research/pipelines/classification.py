"""Pipelines that score texts.

fill-mask, text-classification, zero-shot-classification, feature-extraction and sentence-similarity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from lm_research.common.texts import replace_surrogates
from lm_research.decoding.generate import score
from lm_research.decoding.generation_request import encode
from lm_research.errors import UserError
from lm_research.pipelines.base import Pipeline, dict_error, label_names, sigmoid, softmax


class FillMask(Pipeline):
    """Predict the tokens behind the mask tokens of a text.

        fill = lm_research.pipeline("fill-mask", "bert-base-uncased")
        fill("Paris is the [MASK] of France.", top_k=1)  # [{"score": 0.9, "token_str": "capital", ...}]

    Options:
      top_k: number of candidates per mask (default 5).
      targets: a word or a list of words; only these are candidates.

    The output is a list of {"score", "token", "token_str", "sequence"}, best first. If a text has several masks, it is a
    list of such lists.
    """

    heads = ("masked_lm", "pretraining")

    @override
    def run(self, batch: list[str], top_k: int = 5, targets: str | Sequence[str] | None = None) -> Iterator[list[Any]]:
        encoded = self.encode(batch)
        outputs = self.forward(encoded)
        logits = outputs["prediction_logits"] if self.lm.head == "pretraining" else outputs["logits"]
        candidates = None if targets is None else self._target_ids(targets)
        for row, (text, ids, mask) in enumerate(
            zip(batch, encoded["input_ids"], encoded["attention_mask"], strict=True)
        ):
            positions = np.flatnonzero(ids == self.tokenizer.mask_id)
            if not len(positions):
                token = self.tokenizer.pieces([self.tokenizer.mask_id])[0]
                raise UserError(
                    f"{text!r} has no {token} in its first {self.max_length} tokens. Write {token} in place of the word to predict."
                )
            outputs_per_mask = [
                self._top(softmax(logits[row, at]), ids[mask > 0], at, top_k, candidates, len(positions) == 1)
                for at in positions.tolist()
            ]
            yield outputs_per_mask[0] if len(outputs_per_mask) == 1 else outputs_per_mask

    def _target_ids(self, targets: str | Sequence[str]) -> np.ndarray:
        ids = []
        for word in [targets] if isinstance(targets, str) else targets:
            (pieces,) = self.tokenizer.encode_after([f" {word}"])
            if len(pieces) != 1:
                raise UserError(
                    f"The target {word!r} is {len(pieces)} tokens for this model, but a mask represents one token. Choose targets "
                    "that are in the model's vocabulary."
                )
            ids.append(pieces[0])
        return np.array(ids)

    def _top(
        self,
        probs_V: np.ndarray,
        ids: np.ndarray,
        position: int,
        top_k: int,
        candidates: np.ndarray | None,
        only_mask: bool,
    ) -> list[dict[str, Any]]:
        """Return the `top_k` likeliest fillings of one mask, best first."""
        probs_V = probs_V[: self.tokenizer.size]
        candidates = np.arange(len(probs_V)) if candidates is None else candidates
        best = candidates[np.argsort(-probs_V[candidates], kind="stable")[:top_k]]
        fillings = []
        for token in best.tolist():
            filled = np.where(np.arange(len(ids)) == position, token, ids).tolist()
            fillings.append(
                {
                    "score": float(probs_V[token]),
                    "token": token,
                    "token_str": self.tokenizer.decode([token]).strip() or self.tokenizer.pieces([token])[0],
                    # With several masks, the other masks remain visible, and therefore all special tokens do.
                    "sequence": self.tokenizer.decode(filled, skip_special_tokens=only_mask),
                }
            )
        return fillings


class TextClassification(Pipeline):
    """Classify a text, or a pair {"text": ..., "text_pair": ...}.

        classify = lm_research.pipeline("text-classification", "runs/sst2")
        classify("A good film.")  # [{"label": "positive", "score": 0.99}]
        classify({"text": "A man sleeps.", "text_pair": "A person rests."})  # {"label": ..., "score": ...}

    Options:
      top_k: return a list of this many classes, best first; None returns all.
      return_all_scores: return all classes in the order of the model's labels.
      function_to_apply: "softmax", "sigmoid" or "none"; the default depends on problem_type in config.json, or on the
        number of labels.

    The output is {"label", "score"}, or a list of them with top_k or return_all_scores. As in Hugging Face's pipeline, the
    output for one text (not a pair or a list) is in a list too, unless the call sets top_k.
    """

    heads = ("classification", "next_sentence")

    @override
    @classmethod
    def input_error(cls, item: Any) -> str | None:
        if isinstance(item, str):
            return None
        is_pair = isinstance(item, Mapping) and item.get("text_pair") is not None
        return dict_error(
            item, ("text", "text_pair") if is_pair else ("text",), 'a text or {"text": TEXT, "text_pair": TEXT}'
        )

    @override
    def __call__(self, inputs: Any, **options: Any) -> Any:
        outputs = super().__call__(inputs, **options)
        return [outputs] if isinstance(inputs, str) and "top_k" not in options else outputs

    @override
    def run(
        self,
        batch: list[Any],
        top_k: int | Literal["one"] | None = "one",
        function_to_apply: str | None = None,
        return_all_scores: bool = False,
    ) -> Iterator[Any]:
        names = label_names(self.lm)
        for scores in self._scores(batch, function_to_apply):
            in_label_order = return_all_scores and top_k == "one"
            order = range(len(scores)) if in_label_order else np.argsort(-scores, kind="stable").tolist()
            outputs = [{"label": names[i], "score": float(scores[i])} for i in order]
            yield outputs if in_label_order else outputs[0] if top_k == "one" else outputs[:top_k]

    def _scores(self, batch: list[Any], function: str | None) -> np.ndarray:
        logits = self.logits(batch)
        if function is None:
            problem_type = self.lm.config.to_dict().get("problem_type")
            defaults = {
                "multi_label_classification": "sigmoid",
                "single_label_classification": "softmax",
                "regression": "none",
            }
            function = defaults.get(problem_type, "sigmoid" if logits.shape[1] == 1 else "softmax")
        functions = {"softmax": softmax, "sigmoid": sigmoid, "none": lambda x: x}
        if function not in functions:
            raise UserError(f"function_to_apply={function!r} must be softmax, sigmoid or none.")
        return functions[function](logits)

    def logits(self, batch: list[Any]) -> np.ndarray:
        """Return the logits [B, C] of texts and pairs."""
        texts = [(item, None) if isinstance(item, str) else (item["text"], item.get("text_pair")) for item in batch]
        pairs = [second is not None for _, second in texts]
        if any(pairs) and not all(pairs):
            return np.concatenate([self.logits([item]) for item in batch])
        seconds = [second for _, second in texts if second is not None]
        return self.forward(self.encode([first for first, _ in texts], seconds or None))["logits"]


class ZeroShotClassification(Pipeline):
    """Rank labels by how well they fit a text, with a model that was not trained on these labels.

        sort = lm_research.pipeline("zero-shot-classification", "bart-large-mnli")
        sort("The match ended 2:1.", ["sports", "politics"])  # {"sequence": ..., "labels": ["sports", ...], "scores": ...}

    A natural language inference model (one of its classes is an entailment) scores whether the text entails "This example
    is LABEL." (Yin et al. 2019). A causal model scores the mean log-probability of the label's tokens after the text. Texts
    are truncated to the model's maximum length.

    Options:
      candidate_labels: a list, or one text with commas; a call also accepts it as the second positional argument.
      hypothesis_template: the sentence, with {} in place of the label (default "This example is {}.").
      multi_label: score each label independently (inference models only).

    The output is {"sequence", "labels", "scores"}, best label first.
    """

    heads = ("classification", "causal_lm")

    @override
    def __call__(self, inputs: Any, candidate_labels: Sequence[str] | str | None = None, **options: Any) -> Any:
        labels = {} if candidate_labels is None else {"candidate_labels": candidate_labels}
        return super().__call__(inputs, **labels, **options)

    @override
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
            # Only plain {} fields: a width could allocate any amount of memory, a field name could read any attribute.
            plain = all(
                not (name or spec or conversion) for _, name, spec, conversion in Formatter().parse(hypothesis_template)
            )
            hypotheses = [hypothesis_template.format(label) for label in candidate_labels] if plain else []
        except (LookupError, ValueError):
            hypotheses = []
        if not hypotheses:
            raise UserError(
                f"hypothesis_template={hypothesis_template!r:.80} cannot be filled in. Write {{}} once in place of the label, and "
                "double all other braces."
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
                f"This model's classes are {', '.join(names)}: none is an entailment. zero-shot-classification needs a natural "
                "language inference model or a causal model."
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
                "multi_label needs a natural language inference model; a causal model can only compare labels. Leave it out."
            )
        continuations = self.base_tokenizer.encode_after([f" {hypothesis}" for hypothesis in hypotheses])
        longest, (ids,) = max(map(len, continuations)), encode(self.base_tokenizer, [text])
        # The last token of a continuation is predicted but not read.
        available = self.max_length + 1 - longest if self.max_length else len(ids)
        if available < 1:
            raise UserError(
                f"A candidate label in its template has {longest} tokens, but the model reads {self.max_length}, which leaves none "
                "for the text. Shorten the label or hypothesis_template."
            )
        texts: dict[str, Any] = (
            {"prompts": [text] * len(hypotheses)}
            if len(ids) <= available
            else {"input_ids": [ids[:available]] * len(hypotheses)}
        )
        log_probs = score(self.lm, **texts, continuations=continuations)
        return softmax(np.array([x.mean() for x in log_probs]))


class FeatureExtraction(Pipeline):
    """Return the last hidden states of a text's tokens.

        extract = lm_research.pipeline("feature-extraction", "bert-base-uncased")
        extract("A king.", return_tensors=True).shape  # (1, 5, 768)

    The output is [1, L, D] as nested lists, or as an array with the option `return_tensors=True`.
    """

    heads = ("none",)

    @override
    def run(self, batch: list[str], return_tensors: bool = False) -> Iterator[Any]:
        encoded = self.encode(batch)
        states = self.forward(encoded)["last_hidden_state"]
        for states_LD, mask_L in zip(states, encoded["attention_mask"], strict=True):
            features = states_LD[mask_L > 0][None]
            yield features if return_tensors else features.tolist()


class SentenceSimilarity(Pipeline):
    """Compare a sentence with others: {"source_sentence": TEXT, "sentences": [TEXT, ...]}.

        compare = lm_research.pipeline("sentence-similarity", "all-MiniLM-L6-v2")
        compare({"source_sentence": "A king.", "sentences": ["A queen.", "A car."]})  # [0.7, 0.1]

    Options: `pooling`, `prompt_name` and `prompt` of `LanguageModel.embed`; the model's directory sets their defaults.

    The output is a list with the similarity to each sentence: the cosine, unless the model's directory specifies another.
    """

    heads = ("none",)

    @override
    @classmethod
    def input_error(cls, item: Any) -> str | None:
        form = '{"source_sentence": TEXT, "sentences": [TEXT, ...]}'
        if error := dict_error(item, ["source_sentence"], form):
            return error
        sentences = item.get("sentences")
        if isinstance(sentences, Sequence) and all(isinstance(text, str) for text in sentences):
            return None  # also a text, which counts as one sentence
        return dict_error(item, ["sentences"], form)

    @override
    def run(
        self,
        batch: list[Mapping[str, Any]],
        pooling: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Iterator[list[float]]:
        for item in batch:
            sentences = [item["sentences"]] if isinstance(item["sentences"], str) else item["sentences"]
            texts = [item["source_sentence"], *sentences]
            vectors = self.lm.embed(texts, pooling=pooling, prompt_name=prompt_name, prompt=prompt)
            yield self.lm.similarity(vectors[:1], vectors[1:])[0].tolist()
