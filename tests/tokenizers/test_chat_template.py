"""Rendering of conversations: templates in the style of well-known models, with expected texts written by hand."""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

import tokenizers
from lm_research.errors import UserError
from lm_research.tokenizers import template_sandbox
from lm_research.tokenizers.chat_template import chat_ids, chat_template, chat_text
from lm_research.tokenizers.hf_tokenizer import HFTokenizer
from lm_research.tokenizers.loading import load_tokenizer

# Each message between markers, as in ChatML. Blocks are on lines of their own, which must leave no line breaks.
MARKED = """{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<|im_start|>system
Be brief.<|im_end|>
    {% endif %}
<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""
# Turns in brackets, each pair begun and ended, and the system's message inside the first, as Llama 2 has it.
BRACKETS = """{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}\
{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}
{%- for turn in turns -%}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Roles must alternate user/assistant') }}
    {%- endif -%}
    {%- if turn.role == 'user' -%}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + turn.content + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + turn.content + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}"""
# Only the last turns, with loop controls and JSON, and another name for the assistant, as in newer templates.
NEWER = """{{ bos_token }}{% for m in messages[::-1] %}{% if loop.index > 2 %}{% break %}{% endif %}\
{{ {'assistant': 'model'}.get(m.role, m.role) }}:{{ m.content | tojson }};{% endfor %}{% if tools is none %}end{% endif %}"""

TALK = [
    {"role": "user", "content": " Hi <there>"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
]
SYSTEM = {"role": "system", "content": "You help."}
WORDS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "Hi",
    "Hello",
    "Why?",
    "<there>",
    "<<SYS>>",
    "<</SYS>>",
    "You",
    "help.",
)


def tokenizer(folder: pathlib.Path, **config: Any) -> HFTokenizer:
    """Words are tokens, and <s> is put before a text that is read on its own."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(plain | config))
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (
            MARKED,
            TALK,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <there><|im_end|>\n<|im_start|>assistant\n"
            "Hello<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            MARKED,
            [SYSTEM, TALK[2]],
            "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            BRACKETS,
            [SYSTEM, *TALK],
            "<s>[INST] <<SYS>>\nYou help.\n<</SYS>>\n\n Hi <there> [/INST] Hello </s><s>[INST] Why? [/INST]",
        ),
        (BRACKETS, TALK, "<s>[INST]  Hi <there> [/INST] Hello </s><s>[INST] Why? [/INST]"),
        (NEWER, TALK, '<s>user:"Why?";model:"Hello";end'),
        (NEWER, TALK[:1], '<s>user:" Hi <there>";end'),
    ],
)
def test_messages_become_the_text_of_the_template(
    tmp_path: pathlib.Path, template: str, messages: list[dict[str, str]], expected: str
) -> None:
    assert chat_text(tokenizer(tmp_path, chat_template=template), messages) == expected


def test_without_the_prompt_of_an_answer(tmp_path: pathlib.Path) -> None:
    text = chat_text(tokenizer(tmp_path, chat_template=MARKED), [SYSTEM], add_generation_prompt=False)
    assert text == "<|im_start|>system\nYou help.<|im_end|>\n"


def test_special_tokens_appear_once(tmp_path: pathlib.Path) -> None:
    """<s> is where the template puts it, once a turn; the tokenizer on its own would put another before it."""
    found = tokenizer(tmp_path, chat_template=BRACKETS)
    # <s> [INST] Hi <there> [/INST] Hello </s> <s> [INST] Why? [/INST]
    assert chat_ids(found, TALK) == [1, 3, 5, 8, 4, 6, 2, 1, 3, 7, 4]
    assert found(chat_text(found, TALK))["input_ids"][0].tolist()[:3] == [1, 1, 3]


def test_where_a_template_is_searched(tmp_path: pathlib.Path) -> None:
    """A separate file before the settings; of several the one called default; it is saved with the tokenizer."""
    assert chat_template(tokenizer(tmp_path / "none")) is None
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "several"}]
    assert chat_text(tokenizer(tmp_path / "several", chat_template=several), TALK) == "several"
    folder = tmp_path / "file"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text("{{ messages | length }} é")
    found = tokenizer(folder, chat_template="settings")
    found.save_files(tmp_path / "copy")
    assert chat_text(found, TALK) == chat_text(load_tokenizer(tmp_path / "copy"), TALK) == "3 é"
    assert chat_text(load_tokenizer(folder / "tokenizer.json"), TALK) == "3 é"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (BRACKETS, "Roles must alternate"),
        ("{% for", "unexpected|Expected|expected"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "append"),
    ],
)
def test_what_a_template_rejects_is_explained(tmp_path: pathlib.Path, template: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"chat_template does not take these messages: .*({reason})"):
        chat_text(tokenizer(tmp_path, chat_template=template), [TALK[1]])


def test_models_not_made_for_messages_refuse_them(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no chat_template"):
        chat_ids(tokenizer(tmp_path), TALK)


def test_a_content_of_none_counts_as_missing(tmp_path: pathlib.Path) -> None:
    """As in tool calls: `apply_chat_template` of transformers 5.24.0 renders these strings; it drops fields that are None."""
    calls = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": None, "tool_calls": [{}]}]
    asks = "{% for m in messages %}{{ 'content' in m }}:{{ m.content is none }}:{{ m.name is defined }};{% endfor %}"
    assert chat_text(tokenizer(tmp_path, chat_template=asks), calls) == "True:False:False;False:False:False;"
    trims = "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}"
    assert chat_text(tokenizer(tmp_path, chat_template=trims), calls) == "[a][]"


TWICE = "{% set ns = namespace(x=['a'], y=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
GROWS = "{%% set ns = namespace(x='ab', y=[1]) %%}{%% for i in range(60) %%}%s{%% endfor %%}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**9 }}",
        "{{ (1,) * 10**9 }}",
        "{{ 10 ** (10**9) }}",
        "{{ '%1000000000s' % 'x' }}",
        "{{ '%*d' % (10**9, 5) }}",
        "{{ '{:>1000000000}'.format('x') }}",
        "{{ '{:>{w}}'.format('x', w=10**9) }}",
        "{{ ('{0}' * 100000).format('x' * 100000) }}",
        "{{ ['{:>1000000000}']|map('format')|list }}{{ '%1000000000s'|format('x') }}",
        "{{ 'x'.center(10**9) }}",
        "{{ 'x'|center(width=10**9) }}",
        "{{ ['x']|map('center', 10**9)|list }}",
        "{{ '\\t'.expandtabs(10**9) }}",
        "{{ 'x'.zfill(10**9) }}",
        "{{ 'x'.encode().rjust(10**9) }}",
        "{{ (5).to_bytes(length=10**9) }}",
        "{{ 'x'|indent(10**9) }}",
        "{{ [1]|tojson(indent=10**9) }}",
        "{{ [1, 2]|tojson(separators=('x' * 10**6, ':')) }}",
        "{{ [1]|batch(10**9, 'x')|list }}",
        "{{ 1.5|round(10**8, 'ceil') }}",
        "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
        "{{ ('a' * 10**5).encode().replace('a'.encode(), ('b' * 10**5).encode()) }}",
        "{{ ('a' * 100000)|replace(old='a', new='b' * 100000) }}",
        "{{ ('x' * 10**6).join('y' * 10**6) }}",
        "{{ range(100000)|join('x' * 10**6) }}",
        "{{ ('a' * 100000).translate({97: 'b' * 10**6}) }}",
        "{{ ([[1] * 1000] * 20000)|sum(start=[]) }}",
        "{{ range(10**9) }}",
        "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**5) recursive %}{{ loop(range(10**5)) }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set a = f(n - 1) %}{% endif %}{% endmacro %}{{ f(100) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(10**5) %}" + "x" * 10**5 + "{% endfor %}",
        GROWS % "{% set ns.x = ns.x + ns.x %}",
        GROWS % "{% set ns.x = ns.x ~ ns.x %}",
        GROWS % "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
        GROWS % "{% set ns.x = ns.x|tojson %}",
        GROWS % "{% set ns.y = ns.y + ns.y %}",
        TWICE + "{{ ns.x }}",
        TWICE + "{{ ns.x|tojson }}",
        TWICE + "{{ ns.x == ns.y }}",
        TWICE + "{{ [ns.x]|select('eq', ns.y)|list }}",
        TWICE + "{{ [ns.x].count(ns.y) }}",
        TWICE + "{{ '%s' % [ns.x] }}",
        TWICE + "{{ raise_exception(ns.x) }}",
        "{{ strftime_now('%Y' * 10**6) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception.__globals__.json }}",
        "{{ '{0.__class__.__mro__}'.format(1) + 1 }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "x" * 10**6,
    ],
)
def test_templates_are_bounded_in_time_and_size_in_any_thread(
    template: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Each of these would take hours or gigabytes, or leave the sandbox; the limits are lowered to make the test quick."""
    monkeypatch.setattr(template_sandbox, "SECONDS", 0.2)
    monkeypatch.setattr(template_sandbox, "MAX_CHARACTERS", 2**22)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, pytest.raises(UserError) as caught:
        pool.submit(chat_text, tokenizer(tmp_path), TALK, template=template).result()
    message = str(caught.value)
    assert "chat_template does not take these messages" in message and "\n" not in message and len(message) < 1000


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ '\\ud800' }}", "?"),  # half of a surrogate pair, which no valid text has
        ("{{ '%5s|%-4d|%s' % ('ab', 3, [1, 'é']) }}", "   ab|3   |[1, 'é']"),
        ("{{ '{:>4}|{a[k]}|{!r}'.format(5, 'b', a={'k': 1}) }}", "   5|1|'b'"),
        ("{{ 'ab' * 3 + 'c' ~ 1 ~ none }}{{ 2 ** 10 }}", "ababab" + "c1None1024"),
        (
            "{% for x in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}",
            "1/3,2/3,3/3",
        ),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}{{ 'a-b'.split('-')[-1][::-1] }}", "a=1b"),
        ("{{ messages|map(attribute='role')|unique|join(', ') }}{{ 'x'|indent(2, true) }}", "user, assistant  x"),
        (
            "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ 'a' in 'cat' }}{{ 3 is divisibleby 3 }}",
            "2TrueTrue",
        ),
        ("{{ {'a': ['é<', 1]}|tojson(indent=1) }}", '{\n "a": [\n  "é<",\n  1\n ]\n}'),
        ("{% macro f(a) %}<{{ a }}{{ caller() }}>{% endmacro %}{% call f(1) %}c{% endcall %}", "<1c>"),
        (
            "{% for x in [[1, [2]], 3] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}",
            "(1(2))3",
        ),
        ("{{ 'ab'.replace('a', 'c').center(6)|trim|upper|replace('B', 'd')|title }}{{ [3, 1]|sort|sum }}", "Cd4"),
    ],
)
def test_bounds_change_nothing_else(template: str, text: str, tmp_path: pathlib.Path) -> None:
    """The texts are those of Jinja's own sandbox, worked out by its documentation's rules."""
    assert chat_text(tokenizer(tmp_path), TALK, template=template) == text


def test_a_template_file_that_is_not_text(tmp_path: pathlib.Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="chat_template.jinja is not UTF-8 text"):
        chat_text(tokenizer(tmp_path), TALK)
