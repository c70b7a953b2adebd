"""Pipelines that write texts: text-generation, text2text-generation, summarization, translation, conversational."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typing_extensions import override

from lm_research.decoding.generation_config import NAMES
from lm_research.decoding.generation_request import encode, resolve_options
from lm_research.pipelines.base import Pipeline
from lm_research.tokenizers.chat_template import chat_ids

_ARGUMENTS = (*(name for name in NAMES if name != "return_dict_in_generate"), "assistant_model")  # of `lm.generate`


class TextGeneration(Pipeline):
    """Continue a text, or reply to the last of several messages [{"role", "content"}, ...].

        write = lm_research.pipeline("text-generation", "gpt2")
        write("The king", max_new_tokens=5)  # [{"generated_text": "The king of the north and the"}]
        write([{"role": "user", "content": "Hello!"}], return_full_text=False)  # [{"generated_text": "Hello! How ..."}]

    Options:
      return_full_text: include the prompt in the text (default True).
      prefix: a text that is put before each prompt and left out of the output; max_length counts its tokens.
      stop_sequence: one or several texts after which generation stops, as `stop_strings` of `lm.generate`.
      return_tensors: return {"generated_token_ids"}, a list that includes the prompt's, in place of texts.
      return_text: accepted for compatibility; it has no effect.
      Every argument of `lm.generate`.

    The output is a list of num_return_sequences {"generated_text"}.
    """

    heads = ("causal_lm",)
    forwarded_options = _ARGUMENTS

    @override
    @classmethod
    def input_error(cls, item: Any) -> str | None:
        if isinstance(item, str) or is_chat(item):
            return None
        return f'is {item!r:.80}, not a text or messages [{{"role": "user", "content": TEXT}}, ...].'

    @override
    def is_single(self, inputs: Any) -> bool:
        return super().is_single(inputs) or is_chat(inputs)

    @override
    def run(
        self,
        batch: list[Any],
        return_full_text: bool = True,
        prefix: str = "",
        stop_sequence: str | Sequence[str] | None = None,
        return_tensors: bool = False,
        return_text: bool | None = None,
        **options: Any,
    ) -> Iterator[list[dict[str, Any]]]:
        def prompt_ids(prompt: Any) -> Any:
            if is_chat(prompt):
                return chat_ids(self.base_tokenizer, prompt)
            return encode(self.base_tokenizer, [prefix + prompt])[0]

        prompts: dict[str, Any]
        if any(map(is_chat, batch)):
            rows = [prompt_ids(prompt) for prompt in batch]
            # An explicit mask, because a chat template may contain the padding token, which must be read.
            prompts = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        else:
            prompts = {"prompts": [prefix + text for text in batch]}
        options = _with_stop_strings(options, stop_sequence)
        output = self.lm.generate(**prompts, return_dict_in_generate=True, **options)
        per_prompt = len(output.texts) // len(batch)
        for number, prompt in enumerate(batch):
            rows_of_prompt = slice(number * per_prompt, (number + 1) * per_prompt)
            texts = output.texts[rows_of_prompt]
            if return_tensors:
                yield [
                    {"generated_token_ids": [*prompt_ids(prompt), *new]} for new in output.new_tokens[rows_of_prompt]
                ]
            elif not return_full_text:
                yield [{"generated_text": text} for text in texts]
            elif is_chat(prompt):
                yield [{"generated_text": [*prompt, {"role": "assistant", "content": text}]} for text in texts]
            else:
                yield [{"generated_text": prompt + text} for text in texts]


class TextToText(Pipeline):
    """Map a text to a text with an encoder-decoder: text2text-generation, summarization and translation.

        translate = lm_research.pipeline("translation_en_to_de", "t5-small")
        translate("A good book.")  # [{"translation_text": "Ein gutes Buch."}]

    Options:
      prefix: a text that is put before each input; the default is that of the task in task_specific_params of config.json.
      truncation: True truncates texts to the model's maximum length; without it, longer texts are refused.
      src_lang, tgt_lang: codes such as en_XX of a tokenizer that marks texts with their language (mBART, NLLB); the
        defaults come from the task's name (translation_en_XX_to_ro_RO) or the model's files.
      stop_sequence, return_text: as for text-generation.
      return_tensors: return the decoder's tokens in place of texts.
      Every argument of `lm.generate`.

    The output is a list of num_return_sequences {"generated_text"}, {"summary_text"} or {"translation_text"}; with
    return_tensors, {"generated_token_ids"} and so on. As in Hugging Face's pipeline, a list of texts with one sequence each
    maps to a list of dicts, not of lists.
    """

    heads = ("seq2seq_lm",)
    forwarded_options = (*_ARGUMENTS, "decoder_input_ids", "decoder_attention_mask")
    key = "generated"

    @override
    def __call__(self, inputs: Any, **options: Any) -> Any:
        outputs = super().__call__(inputs, **options)
        if isinstance(inputs, list) and all(len(sequences) == 1 for sequences in outputs):
            return [sequence for (sequence,) in outputs]
        return outputs

    @override
    def run(
        self,
        batch: list[str],
        prefix: str | None = None,
        truncation: bool | str = False,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        stop_sequence: str | Sequence[str] | None = None,
        return_tensors: bool = False,
        return_text: bool | None = None,
        **options: Any,
    ) -> Iterator[list[dict[str, Any]]]:
        task_params = (self.lm.config.to_dict().get("task_specific_params") or {}).get(self.task) or {}
        prefix = task_params.get("prefix", "") if prefix is None else prefix
        names = ("max_length", "min_length", "num_beams", "length_penalty", "no_repeat_ngram_size", "early_stopping")
        defaults = {name: task_params[name] for name in names if name in task_params}
        texts = [prefix + text for text in batch]
        inputs: dict[str, Any] = {"prompts": texts}
        source, target = self._task_languages()
        languages = {"src_lang": src_lang or source, "tgt_lang": tgt_lang or target}
        options = defaults | languages | _with_stop_strings(options, stop_sequence)
        if truncation not in (False, "do_not_truncate") and self.max_length:
            resolved = resolve_options(self.lm, options, texts=True)
            inputs = {"input_ids": self._truncated(texts, resolved.src_lang)}
            options |= {name: getattr(resolved, name) for name in ("decoder_start_token_id", "forced_bos_token_id")}
        output = self.lm.generate(**inputs, return_dict_in_generate=True, **options)
        per_text = len(output.texts) // len(batch)
        prompt_length = output.sequences.shape[1] - max(map(len, output.new_tokens))  # the decoder's
        for number in range(len(batch)):
            rows = range(number * per_text, (number + 1) * per_text)
            if return_tensors:
                prompts = output.sequences[:, :prompt_length].tolist()
                yield [{f"{self.key}_token_ids": [*prompts[row], *output.new_tokens[row]]} for row in rows]
            else:
                yield [{f"{self.key}_text": output.texts[row]} for row in rows]

    def _truncated(self, texts: Sequence[str], language: str | None) -> list[list[int]]:
        """Tokenize texts for the encoder, truncated to its maximum length with their special tokens kept."""
        rows = encode(self.tokenizer, texts, True, language)
        languages = self.tokenizer.languages
        head, tail = languages.frame_ids(language, self.tokenizer.eos_id) if language and languages else ((), ())
        for number, ids in enumerate(rows):
            if len(ids) > self.max_length:
                encoded = self.tokenizer(texts[number], truncation=True, max_length=self.max_length)
                cut = encoded["input_ids"][0].tolist()
                rows[number] = [*head, *cut[len(head) : len(cut) - len(tail)], *tail]
        return rows

    def _task_languages(self) -> tuple[str | None, str | None]:
        """Return the languages of a task translation_XX_to_YY, or None if the tokenizer does not have them."""
        match = re.fullmatch("translation_(.+)_to_(.+)", self.task)
        languages = self.tokenizer.languages
        if match and languages and set(match.groups()) <= languages.ids.keys():
            return match[1], match[2]
        return None, None


def _with_stop_strings(options: dict[str, Any], stop_sequence: str | Sequence[str] | None) -> dict[str, Any]:
    """Add `stop_sequence`, the name in Hugging Face's pipelines, to options as `stop_strings`."""
    return options if stop_sequence is None else {"stop_strings": stop_sequence} | options


class Summarization(TextToText):
    """Summarize a text; for options and outputs see TextToText."""

    key = "summary"


class Translation(TextToText):
    """Translate a text; for options and outputs see TextToText. The task may be written translation_XX_to_YY."""

    key = "translation"


class Conversational(TextGeneration):
    """Reply to messages [{"role", "content"}, ...]; the output is the messages followed by the assistant's reply."""

    @override
    @classmethod
    def input_error(cls, item: Any) -> str | None:
        return None if is_chat(item) else f'is {item!r:.80}, not messages [{{"role": "user", "content": TEXT}}, ...].'

    @override
    def is_single(self, inputs: Any) -> bool:
        return is_chat(inputs)

    @override
    def run(self, *batch: Any, **options: Any) -> Iterator[Any]:
        for replies in super().run(*batch, **options):
            (conversation,) = replies[0].values()
            yield conversation


def is_chat(inputs: Any) -> bool:
    """Return whether an input is a list of messages {"role", "content"}."""
    return (
        isinstance(inputs, Sequence)
        and not isinstance(inputs, str)
        and bool(inputs)
        and all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in inputs)
    )
