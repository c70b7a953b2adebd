"""Answers are located in a conversation's text. Expected ids and masks are those of transformers, see chat_goldens/make_goldens.py."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest

from helpers.hf_folders import files_of, write_folder
from lm_research.errors import UserError
from lm_research.tokenizers.chat_answers import answer_ids, find_answers
from lm_research.tokenizers.chat_template import chat_spans, chat_text
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lm_research.tokenizers.special_tokens import continuation_ids, text_ids

GOLDEN = json.loads((pathlib.Path(__file__).parent / "chat_goldens" / "chats.json").read_text(encoding="utf-8"))
TALK = [
    {"role": "user", "content": "light?"},
    {"role": "assistant", "content": "void"},
    {"role": "user", "content": "void?"},
    {"role": "assistant", "content": "light"},
]


def load(folder: pathlib.Path, template: str, family: str = "gpt2", **settings: Any) -> Any:
    given = {**GOLDEN["settings"][family], **settings, "chat_template": template}
    return load_tokenizer(write_folder(folder, family, tokenizer_config__json=given))


def unmarked(template: str) -> str:
    return re.sub(r"{% (end)?generation %}", "", template)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("number", range(len(GOLDEN["cases"])))
def test_ids_and_assistant_masks_match_transformers(number: int, marked: bool, tmp_path: pathlib.Path) -> None:
    """return_assistant_tokens_mask of a template with generation blocks; without the blocks the same is found by proof."""
    case = GOLDEN["cases"][number]
    template = GOLDEN["templates"][case["template"]]
    tokenizer = load(tmp_path, template if marked else unmarked(template), case["family"])
    answers = find_answers(tokenizer, case["messages"], case["tools"])
    parts = answer_ids(tokenizer, answers)
    end = case["learned"].rindex("1") + 1  # what follows the last answer is left out
    assert answers.marked == marked
    assert [token for part in parts for token in part] == case["ids"][:end]
    assert "".join(str(place % 2) * len(part) for place, part in enumerate(parts)) == case["learned"][:end]


UNPROVED = {
    "only the last": "{{ messages[-1].content }}",
    "an answer twice": "{% for m in messages %}{{ loop.index ~ '/' ~ messages | length ~ m.content ~ messages[1].content }}{% endfor %}",
    "later turns depend on earlier answers": (
        "{% for m in messages %}{{ loop.revindex ~ m.content }}{% endfor %}{{ messages[1].content | length }}"
    ),
    "the text begins with the length of the answer": (
        "{{ messages[1].content | length }}: {% for m in messages %}{{ m.content }}{% endfor %}"
    ),
    "the last first": "{% for m in messages | reverse %}{{ m.content }};{% endfor %}",
}


@pytest.mark.parametrize("case", UNPROVED)
def test_templates_that_leave_no_proof_are_refused(case: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="changes the text before an answer.*{% generation %}"):
        find_answers(load(tmp_path, UNPROVED[case]), TALK)


def test_an_answer_that_opens_a_conversation(tmp_path: pathlib.Path) -> None:
    """Templates are never rendered without messages."""
    template = "{% if not messages %}{{ raise_exception('none') }}{% endif %}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    answers = find_answers(load(tmp_path, template), TALK[1:])
    assert answers.text == "[void][void?][light]"
    assert [answers.text[start:end] for start, end in answers.spans] == ["void]", "[light]"]


def test_blocks_are_invisible_elsewhere(tmp_path: pathlib.Path) -> None:
    """They write their content, remove their own line like other blocks, and have their own scope of variables."""
    template = (
        "{% set x = 'a' %}\n{% for m in messages %}\n{% if m.role == 'assistant' %}\n    {%- generation -%}\n  {% set x = 'b' %}"
        "{{ m.content }}\n  {%- endgeneration %}\n{{ x }}{% else %}\n<{{ m.content }}>\n{% endif %}\n{% endfor %}"
    )
    tokenizer = load(tmp_path, template)
    text, spans = chat_spans(tokenizer, TALK[:2])
    assert text == chat_text(tokenizer, TALK[:2], False) == "<light?>\nvoida" and spans == [(9, 13)]
    with pytest.raises(UserError, match=r"contains U\+FDD0"):
        chat_spans(tokenizer, [{"role": "user", "content": "\ufdd0"}])


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_thinking_has_several_names(name: str, tmp_path: pathlib.Path) -> None:
    """As transformers: reasoning_content and thinking hold the value of any of the three fields; fields that are None are missing."""
    template = (
        "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.tool_calls is defined }}{% endfor %}"
    )
    message = {"role": "assistant", "content": "a", name: "why", "tool_calls": None}
    assert chat_text(load(tmp_path, template), [message], False) == "why|why|False"


def test_a_model_that_only_has_ids(tmp_path: pathlib.Path) -> None:
    """By the plain template, its parts together the ids of the whole text: Llama's sentencepiece puts one space before all."""
    tokenizer = SentencePieceTokenizer.parse(files_of("llama")["tokenizer.model"], "llama")
    answers = find_answers(tokenizer, TALK)
    text = "User: light?\n\nAssistant: void\n\nUser: void?\n\nAssistant: light"
    assert answers.text.strip() == text
    assert [answers.text[start:end] for start, end in answers.spans] == [" void", " light"]
    assert sum(answer_ids(tokenizer, answers), []) == tokenizer.encode(text)


@pytest.mark.parametrize("legacy", [True, False])
def test_an_answer_continues_its_prompt(legacy: bool, tmp_path: pathlib.Path) -> None:
    """Together the ids of both as one text: Llama's kind adds no space before the answer."""
    tokenizer = load(tmp_path, "", "llama", legacy=legacy)
    for prompt, answer in (("God said", " light</s>"), ("God said:\n", "light"), ("", "light")):
        both = text_ids(tokenizer, prompt) + continuation_ids(tokenizer, prompt, answer)
        assert both == text_ids(tokenizer, prompt + answer)
    # A token of both together would cross the boundary.
    assert text_ids(tokenizer, "the ear") + continuation_ids(tokenizer, "the ear", "th") != text_ids(
        tokenizer, "the earth"
    )
    assert tokenizer.decode(continuation_ids(tokenizer, "the ear", "th")) == "th"
