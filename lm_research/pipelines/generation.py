"""Tasks that write texts: text-generation, text2text-generation, summarization, translation, conversational."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_research.decoding.generation_config import NAMES
from lm_research.decoding.generation_request import encode, resolve_options
from lm_research.pipelines.base import Pipeline
from lm_research.tokenizers.chat_template import chat_ids

Message = dict[str, str]
_ARGUMENTS = (*(name for name in NAMES if name != "return_dict_in_generate"), "assistant_model")  # of lm.generate


class TextGeneration(Pipeline):
    """Goes on with a text, or answers the last of some messages [{"role", "content"}, ...].

    Options: `return_full_text` (True); `prefix` before each text, which the answer does not show (max_length counts it);
    `stop_sequence`, a text or several that end an answer behind them, as stop_strings; `return_tensors`: {"generated_token_ids"}, a
    list with those of the prompt, instead of texts (`return_text`, which changes nothing); and every argument of `lm.generate`.
    An answer is a list of {"generated_text"}, one for each of num_return_sequences.
    """

    heads = ("causal_lm",)
    passed_on = _ARGUMENTS

    @classmethod
    def wrong(cls, one: Any) -> str | None:
        if isinstance(one, str) or is_chat(one):
            return None
        return f'is {one!r:.80}, not a text or messages [{{"role": "user", "content": TEXT}}, ...].'

    def is_one(self, inputs: Any) -> bool:
        return super().is_one(inputs) or is_chat(inputs)

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
        tokenizer = self.own

        def read(one: Any) -> Any:
            return chat_ids(tokenizer, one) if is_chat(one) else encode(tokenizer, [prefix + one])[0]

        if any(map(is_chat, batch)):
            rows = [read(one) for one in batch]  # all of their tokens are read, padding among them if a template has it
            given: dict[str, Any] = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        else:
            given = {"prompts": [prefix + one for one in batch]}
        options = _stopping(options, stop_sequence)
        output = self.lm.generate(**given, return_dict_in_generate=True, **options)
        copies = len(output.texts) // len(batch)
        for row, one in enumerate(batch):
            own = slice(row * copies, (row + 1) * copies)
            texts = output.texts[own]
            if return_tensors:
                yield [{"generated_token_ids": [*read(one), *new]} for new in output.new_tokens[own]]
            elif is_chat(one):

                def reply(text: str, one: Any = one) -> list[dict[str, str]]:
                    return [*one, {"role": "assistant", "content": text}]

                yield [{"generated_text": reply(text) if return_full_text else text} for text in texts]
            else:
                yield [{"generated_text": one + text if return_full_text else text} for text in texts]


class TextToText(Pipeline):
    """Answers a text with a text, by an encoder-decoder.

    Options: `prefix` before each text (by default the one that task_specific_params in config.json names for the task);
    `truncation=True` cuts texts at the model's length, which are refused otherwise; `src_lang` and `tgt_lang`, codes such as en_XX
    of a tokenizer that marks texts with their language (mBART's, NLLB's), as the task's name (translation_en_XX_to_ro_RO) or the files
    say where they are not given; `stop_sequence`, `return_tensors` (the decoder's tokens) and
    `return_text` as of text-generation; and every argument of `lm.generate`. An answer is a list of {"generated_text"},
    {"summary_text"} or {"translation_text"}, with return_tensors {"generated_token_ids"} and so on. As in Hugging Face's pipeline, those to
    a list of texts are no lists themselves where there is one sequence for each.
    """

    heads = ("seq2seq_lm",)
    passed_on = (*_ARGUMENTS, "decoder_input_ids", "decoder_attention_mask")
    key = "generated"

    def __call__(self, inputs: Any, **options: Any) -> Any:
        answers = super().__call__(inputs, **options)
        if isinstance(inputs, list) and all(len(found) == 1 for found in answers):
            return [one for (one,) in answers]
        return answers

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
        own = (self.lm.config.to_dict().get("task_specific_params") or {}).get(self.task) or {}
        prefix = own.get("prefix", "") if prefix is None else prefix
        known = ("max_length", "min_length", "num_beams", "length_penalty", "no_repeat_ngram_size", "early_stopping")
        usual = {name: own[name] for name in known if name in own}
        texts, cut = [prefix + text for text in batch], truncation not in (False, "do_not_truncate")
        given: dict[str, Any] = {"prompts": texts}
        source, target = self._named()
        options = (
            usual | {"src_lang": src_lang or source, "tgt_lang": tgt_lang or target} | _stopping(options, stop_sequence)
        )
        if cut and self.longest:
            settled = resolve_options(self.lm, options, texts=True)
            given = {"input_ids": self._cut(texts, settled.src_lang)}
            options |= {name: getattr(settled, name) for name in ("decoder_start_token_id", "forced_bos_token_id")}
        output = self.lm.generate(**given, return_dict_in_generate=True, **options)
        copies = len(output.texts) // len(batch)
        begun = output.sequences.shape[1] - max(map(len, output.new_tokens))  # tokens that the decoder was given
        for row in range(len(batch)):
            rows = range(row * copies, (row + 1) * copies)
            if return_tensors:
                start = output.sequences[:, :begun].tolist()
                yield [{f"{self.key}_token_ids": [*start[one], *output.new_tokens[one]]} for one in rows]
            else:
                yield [{f"{self.key}_text": output.texts[one]} for one in rows]

    def _cut(self, texts: Sequence[str], language: str | None) -> list[list[int]]:
        """Tokens of texts for the encoder, at most as many as it reads."""
        rows = encode(self.tokenizer, texts, True, language)
        known = self.tokenizer.languages
        head, tail = known.frame_ids(language, self.tokenizer.eos_id) if language and known else ((), ())
        for number, ids in enumerate(rows):
            if len(ids) > self.longest:
                cut = self.tokenizer(texts[number], truncation=True, max_length=self.longest)["input_ids"][0].tolist()
                rows[number] = [*head, *cut[len(head) : len(cut) - len(tail)], *tail]
        return rows

    def _named(self) -> tuple[str | None, str | None]:
        """Languages of a task translation_XX_to_YY, None where the tokenizer knows no such ones."""
        found = re.fullmatch("translation_(.+)_to_(.+)", self.task)
        languages = self.tokenizer.languages
        if found and languages and set(found.groups()) <= languages.ids.keys():
            return found[1], found[2]
        return None, None


def _stopping(options: dict[str, Any], stop_sequence: str | Sequence[str] | None) -> dict[str, Any]:
    """Options with what Hugging Face's pipelines call stop_sequence."""
    return options if stop_sequence is None else {"stop_strings": stop_sequence} | options


class Summarization(TextToText):
    """See TextToText."""

    key = "summary"


class Translation(TextToText):
    """See TextToText; the task may be written translation_XX_to_YY."""

    key = "translation"


class Conversational(TextGeneration):
    """Messages [{"role", "content"}, ...] with the assistant's answer at their end."""

    @classmethod
    def wrong(cls, one: Any) -> str | None:
        return None if is_chat(one) else f'is {one!r:.80}, not messages [{{"role": "user", "content": TEXT}}, ...].'

    def is_one(self, inputs: Any) -> bool:
        return is_chat(inputs)

    def run(self, *batch: Any, **options: Any) -> Iterator[Any]:
        for answers in super().run(*batch, **options):
            (found,) = answers[0].values()
            yield found


def is_chat(inputs: Any) -> bool:
    """Whether an input is a list of messages."""
    return (
        isinstance(inputs, Sequence)
        and not isinstance(inputs, str)
        and bool(inputs)
        and all(isinstance(one, Mapping) and {"role", "content"} <= set(one) for one in inputs)
    )
