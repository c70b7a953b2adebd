"""Tasks that write texts: text-generation, text2text-generation, summarization, translation, conversational."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_research.decoding.chat import render, template_of
from lm_research.errors import UserError
from lm_research.pipelines.base import Pipeline

Message = dict[str, str]


class TextGeneration(Pipeline):
    """Goes on with a text, or answers the last of some messages [{"role", "content"}, ...].

    Options: `return_full_text` (True), and every argument of `lm.generate`.
    An answer is a list of {"generated_text"}, one for each of num_return_sequences.
    """

    heads = ("causal_lm",)

    def is_one(self, inputs: Any) -> bool:
        return super().is_one(inputs) or is_chat(inputs)

    def run(self, batch: list[Any], return_full_text: bool = True, **options: Any) -> Iterator[list[dict[str, Any]]]:
        prompts = [chat_text(self.lm, one) if is_chat(one) else one for one in batch]
        output = self.lm.generate(prompts=prompts, return_dict_in_generate=True, **options)
        copies = len(output.texts) // len(batch)
        for row, one in enumerate(batch):
            texts = output.texts[row * copies : (row + 1) * copies]
            if is_chat(one):
                reply = lambda text, one=one: [*one, {"role": "assistant", "content": text}]  # noqa: E731
                yield [{"generated_text": reply(text) if return_full_text else text} for text in texts]
            else:
                yield [{"generated_text": one + text if return_full_text else text} for text in texts]


class TextToText(Pipeline):
    """Answers a text with a text, by an encoder-decoder.

    Options: `prefix` before each text (by default the one that task_specific_params in config.json names for the task), and
    every argument of `lm.generate`. An answer is a list of {"generated_text"}, {"summary_text"} or {"translation_text"}.
    """

    heads = ("seq2seq_lm",)
    key = "generated_text"

    def run(self, batch: list[str], prefix: str | None = None, **options: Any) -> Iterator[list[dict[str, str]]]:
        own = (self.lm.config.to_dict().get("task_specific_params") or {}).get(self.task) or {}
        prefix = own.get("prefix", "") if prefix is None else prefix
        known = ("max_length", "min_length", "num_beams", "length_penalty", "no_repeat_ngram_size", "early_stopping")
        usual = {name: own[name] for name in known if name in own}
        output = self.lm.generate(
            prompts=[prefix + text for text in batch], return_dict_in_generate=True, **(usual | options)
        )
        copies = len(output.texts) // len(batch)
        for row in range(len(batch)):
            yield [{self.key: text} for text in output.texts[row * copies : (row + 1) * copies]]


class Summarization(TextToText):
    """See TextToText."""

    key = "summary_text"


class Translation(TextToText):
    """See TextToText; the task may be written translation_XX_to_YY."""

    key = "translation_text"


class Conversational(TextGeneration):
    """Messages [{"role", "content"}, ...] with the assistant's answer at their end."""

    def is_one(self, inputs: Any) -> bool:
        return is_chat(inputs)

    def run(self, batch: list[Any], **options: Any) -> Iterator[list[Message]]:
        for one in batch:
            if not is_chat(one):
                raise UserError('conversational takes messages: [{"role": "user", "content": TEXT}, ...].')
        for answers in super().run(batch, **options):
            yield answers[0]["generated_text"]


def is_chat(inputs: Any) -> bool:
    """Whether an input is a list of messages."""
    return (
        isinstance(inputs, Sequence)
        and not isinstance(inputs, str)
        and bool(inputs)
        and all(isinstance(one, Mapping) and {"role", "content"} <= set(one) for one in inputs)
    )


def chat_text(lm: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as the prompt that the model was trained on: its directory's chat_template (Jinja, run in a sandbox).

    Raises:
      UserError: there is none, or it does not take these messages.
    """
    template = template_of(lm.tokenizer)
    if template is None:
        raise UserError(
            "This model has no chat_template in tokenizer_config.json: give a text as the prompt, not messages."
        )
    return render(lm.tokenizer, template, messages)
