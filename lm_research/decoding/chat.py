"""Messages as one text: by a tokenizer's chat_template, which is Jinja and runs in a sandbox, or by a plain one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lm_research.errors import UserError

Message = Mapping[str, str]

# "User: TEXT", a blank line, "Assistant: TEXT" and the end token, a blank line, and so on.
PLAIN = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def settings_of(tokenizer: Any) -> dict[str, Any]:
    """tokenizer_config.json; {} where there is none."""
    return json.loads(tokenizer.files.get("tokenizer_config.json", b"{}"))


def template_of(tokenizer: Any) -> str | None:
    """The template that a model was trained with, None if its files hold none."""
    template = settings_of(tokenizer).get("chat_template")
    return template if isinstance(template, str) else None


def end_of(tokenizer: Any) -> str:
    """The end token as templates write it; "" of a tokenizer that no text can name its tokens to."""
    backend = getattr(tokenizer, "backend", None)
    if backend is None or "eos" not in tokenizer.roles:
        return ""
    return backend.id_to_token(tokenizer.roles["eos"])


def render(tokenizer: Any, template: str, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """Messages as a text; with `add_generation_prompt` up to where the assistant's next answer begins.

    Raises:
      UserError: the template does not take these messages.
    """

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    # A template's own line breaks are its layout; those within its texts count.
    environment = ImmutableSandboxedEnvironment(trim_blocks=template != PLAIN, lstrip_blocks=template != PLAIN)
    environment.globals["raise_exception"] = refuse
    settings = settings_of(tokenizer)
    tokens = {name: value for name, value in settings.items() if name.endswith("_token") and isinstance(value, str)}
    tokens.setdefault("eos_token", end_of(tokenizer))
    try:
        text = environment.from_string(template)
        return text.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **tokens)
    except jinja2.TemplateError as error:
        raise UserError(f"The model's chat_template does not take these messages: {error}.") from error
