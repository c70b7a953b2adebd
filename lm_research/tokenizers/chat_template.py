"""Chat templates: Jinja programs in a tokenizer's files that render a conversation as the text a model was trained on.

Templates run in a sandbox that bounds time and size, with the settings and extras of transformers' `apply_chat_template`: trimmed
blocks, `break` and `continue`, a `tojson` that does not escape letters, `raise_exception`, `strftime_now`, and
`{% generation %}` ... `{% endgeneration %}` around the text that the model generates.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from typing_extensions import override

from lm_research.common.documents import json_value
from lm_research.common.texts import replace_surrogates
from lm_research.errors import UserError
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.template_sandbox import BoundedSandbox, bounded, charge

TEMPLATE = "chat_template.jinja"
Message = Mapping[str, Any]
_MAX_CHARACTERS = 2**18  # of a template
_MAX_INDENT = 100  # characters of indentation, or of a separator, in a template's JSON
Spans = list[tuple[int, int]]
_REASONING = (
    "reasoning_content",
    "thinking",
    "reasoning",
)  # the field names under which templates read a message's reasoning
_BEGIN, _END = "\ufdd0", "\ufdd1"  # mark a generation block during rendering; Unicode reserves both as noncharacters

# The default template: "User: TEXT", a blank line, "Assistant: TEXT" and the end token, and so on.
# Line breaks are string literals because `trim_blocks` removes those of the template's lines.
PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def chat_template(tokenizer: Tokenizer) -> str | None:
    """The template in a tokenizer's files, from chat_template.jinja or else tokenizer_config.json; None if there is none.

    Of several named templates, "default" is used.
    """
    files = tokenizer.files
    if TEMPLATE in files:
        try:
            return files[TEMPLATE].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{tokenizer.name}: {TEMPLATE} is not UTF-8 text ({error}). Copy it again.") from error
    template = _settings(files).get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def end_token(tokenizer: Tokenizer) -> str:
    """The text of the end token, for templates; "" if the tokenizer does not recognize special tokens in text."""
    if not tokenizer.adds_special_tokens or "eos" not in tokenizer.roles:
        return ""
    return tokenizer.token_name(tokenizer.roles["eos"]) or ""


def chat_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    template: str | None = None,
    tools: Sequence[Any] | None = None,
) -> str:
    """Render a conversation as text.

    Args:
      tokenizer: its `files` may contain the template.
      messages: dicts with "role", "content" and any other fields that the template reads. Fields that are None count as missing; a
        message's reasoning is passed under each of its common field names.
      add_generation_prompt: whether to end with the header of the assistant's next answer.
      template: overrides the tokenizer's own template.
      tools: JSON schemas that are passed to the template.

    Raises:
      UserError: there is no template, or it does not take these messages.
    """
    return chat_spans(tokenizer, messages, add_generation_prompt, template, tools)[0]


def chat_spans(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    template: str | None = None,
    tools: Sequence[Any] | None = None,
) -> tuple[str, Spans]:
    """Render a conversation as chat_text does, and return the characters [start, end) of its generation blocks too, in order."""
    template = template or chat_template(tokenizer)
    if template is None:
        raise UserError(
            "This model has no chat_template, neither chat_template.jinja nor in tokenizer_config.json, so it cannot take "
            "messages. Give a text as the prompt, or add the model's template to these files."
        )
    settings = _settings(tokenizer.files)
    tokens = {name: value for name, value in settings.items() if name.endswith("_token") and isinstance(value, str)}
    tokens.setdefault("eos_token", end_token(tokenizer))
    values = dict(messages=[_with_reasoning(one) for one in messages], add_generation_prompt=add_generation_prompt)
    if any(mark in json.dumps(values, ensure_ascii=False, default=str) for mark in (_BEGIN, _END)):
        raise UserError("A message contains U+FDD0 or U+FDD1, which Unicode reserves as noncharacters. Remove them.")
    try:
        with bounded():
            written = _compiled(template).render(**tokens, **values, tools=tools or None, documents=None)
    except Exception as error:  # a template is a program: it may fail in any way
        reason = " ".join(str(error)[:500].split()) or type(error).__name__
        raise UserError(
            f"The model's chat_template does not take these messages: {reason.rstrip('.')}. Fix the messages, or the template in "
            f"{TEMPLATE} or tokenizer_config.json."
        ) from error
    return _unmarked(replace_surrogates(written))


def _with_reasoning(message: Message) -> dict[str, Any]:
    fields = {name: value for name, value in message.items() if value is not None}
    reasoning = [fields[name] for name in _REASONING if name in fields][:1]
    return {"thinking": reasoning[0], **fields, "reasoning_content": reasoning[0]} if reasoning else fields


def _unmarked(written: str) -> tuple[str, Spans]:
    """Remove the marks of generation blocks from a text, and return the spans that they enclosed."""
    text, spans, start = "", [], 0
    for part in re.split(f"([{_BEGIN}{_END}])", written):
        if part == _BEGIN:
            start = len(text)
        elif part == _END:
            spans.append((start, len(text)))
        else:
            text += part
    return text, spans


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Encode a conversation up to where the answer begins; raises as `chat_text` does.

    The template writes the special tokens; the tokenizer adds none, so that none occurs twice.
    """
    text = chat_text(tokenizer, messages)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"][0].tolist()
    return ids


def _settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    settings: dict[str, Any] = json_value(files.get("tokenizer_config.json", b"{}"))
    return settings


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    if len(template) > _MAX_CHARACTERS:
        raise ValueError(f"it has more than {_MAX_CHARACTERS:,} characters")
    environment = BoundedSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.add_filter("tojson", _to_json)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment.from_string(template)


class _Generation(Extension):
    """The `{% generation %}` block, whose output is enclosed in marks."""

    tags = {"generation"}

    @override
    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)]) for mark in (_BEGIN, _END))
        return nodes.Scope([begin, *body, end]).set_lineno(line)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Serialize to JSON without escaping < > & ', which Jinja's own filter escapes for web pages."""
    widths = [indent if isinstance(indent, int) else len(indent or ""), *map(len, separators or ())]
    if max(widths) > _MAX_INDENT:
        raise ValueError(f"tojson indents or separates by more than {_MAX_INDENT} characters")
    charge(value, max(widths))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    if len(form) > 1000:
        raise ValueError("strftime_now has a form of more than 1,000 characters")
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> NoReturn:
    charge(message, 0)
    raise jinja2.TemplateError(message)
