"""Conversations as the text that a model was trained on: its chat template, a Jinja program in its tokenizer's files.

Jinja runs in a sandbox, with the settings and extras that transformers' `apply_chat_template` gives templates: blocks take
their line with them, `break` and `continue`, `tojson` that keeps letters as they are, `raise_exception`, `strftime_now`.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lm_research.errors import UserError

TEMPLATE = "chat_template.jinja"
Message = Mapping[str, str]

# What a conversation becomes that no template was made for: "User: TEXT", a blank line, "Assistant: TEXT" and the end token, and so on.
# Line breaks are written as texts, because those of a template's own lines are taken away.
PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def chat_template(tokenizer: Any) -> str | None:
    """The template in a tokenizer's files: chat_template.jinja, or of tokenizer_config.json; None without one.

    Where there are several by name, "default" counts.
    """
    files: Mapping[str, bytes] = getattr(tokenizer, "files", {})
    if TEMPLATE in files:
        return files[TEMPLATE].decode("utf-8", errors="replace")
    template = _settings(files).get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def end_token(tokenizer: Any) -> str:
    """The end token as templates write it; "" of a tokenizer that no text can name its tokens to."""
    backend = getattr(tokenizer, "backend", None)
    return backend.id_to_token(tokenizer.roles["eos"]) if backend is not None and "eos" in tokenizer.roles else ""


def chat_text(
    tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = True, template: str | None = None
) -> str:
    """The text of a conversation.

    Args:
      tokenizer: with `files`, see data/hf_tokenizer.py.
      messages: {"role", "content"} each.
      add_generation_prompt: end with what stands before an answer.
      template: instead of the tokenizer's own.

    Raises:
      UserError: there is no template, or it does not take these messages.
    """
    template = template or chat_template(tokenizer)
    if template is None:
        raise UserError(
            "This model has no chat_template, neither chat_template.jinja nor one in tokenizer_config.json, so it was not "
            "made for messages. Give a text as the prompt, or put its template there."
        )
    settings = _settings(tokenizer.files)
    tokens = {name: value for name, value in settings.items() if name.endswith("_token") and isinstance(value, str)}
    tokens.setdefault("eos_token", end_token(tokenizer))
    values = dict(messages=[dict(one) for one in messages], add_generation_prompt=add_generation_prompt)
    try:
        return _compiled(template).render(**tokens, **values, tools=None, documents=None)
    except Exception as error:  # a template is a program: it may fail in any way
        raise UserError(f"The model's chat_template does not take these messages: {error}") from error


def chat_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to where the answer begins.

    Special tokens stand where the template puts them; the tokenizer adds none, so none is there twice. Raises a UserError as
    `chat_text` does.
    """
    text = chat_text(tokenizer, messages)
    return tokenizer(text, add_special_tokens=False)["input_ids"][0].tolist()


def _settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    return json.loads(files.get("tokenizer_config.json", b"{}"))


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    return environment.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own would write < > & ' as escapes, which are for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
