"""Make chats.json: conversations as ids, and which of them the model is to write, by transformers.

    pip install transformers==5.24.0 tokenizers==0.23.3 jinja2
    python tests/tokenizers/chat_goldens/make_goldens.py

Templates are in the styles of well-known models, with generation blocks around all that the model writes, the end token included.
The vocabularies are those of ../goldens/hf_tokenizers.json.
"""

from __future__ import annotations

import base64
import json
import pathlib
import tempfile

import transformers

HERE = pathlib.Path(__file__).parent
OPEN, CLOSE = "{% generation %}", "{% endgeneration %}"

# Turns between marks.
MARKS = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}\
{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
# The system's message folded into the first turn, pairs of turns in brackets.
BRACKETS = """{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}\
{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}
{% for turn in turns %}
{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% if turn.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + turn.content | trim + ' [/INST]' }}\
{% else %}{% generation %}{{ ' ' + turn.content | trim + ' ' + eos_token }}{% endgeneration %}{% endif %}
{% endfor %}"""
# Headers, and white space around contents removed.
HEADERS = """{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_end|>\\n\\n' }}{% if m.role == 'assistant' %}\
{% generation %}{{ m.content | trim + eos_token }}{% endgeneration %}{% else %}{{ m.content | trim + eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\\n\\n' }}{% endif %}"""
# The assistant by another name, and the system's message before the first one's.
RENAMED = """{{ bos_token }}{% set head = namespace(text='') %}{% for m in messages %}{% if m.role == 'system' %}\
{% set head.text = m.content + '\\n\\n' %}{% else %}{% if m.role == 'assistant' %}{{ '<|im_start|>model\\n' }}{% generation %}\
{{ m.content | trim }}{{ eos_token }}{% endgeneration %}{{ '\\n' }}{% else %}{{ '<|im_start|>' + m.role + '\\n' + head.text + m.content | trim }}\
{{ eos_token + '\\n' }}{% set head.text = '' %}{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"""
# Thinking is dropped from answers before the last question; later answers have at least an empty one.
THINKS = """{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% set said = m.content %}{% set thought = '' %}\
{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}{% elif '</think>' in said %}\
{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}\
{% generation %}{% if loop.index0 > last.user %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}{{ said }}<|im_end|>{% endgeneration %}\
{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
# Thinking is dropped from every answer, and the prompt of one begins it.
FORGETS = """{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>' }}{% generation %}{{ m.content.split('</think>')[-1] }}\
{{ eos_token }}{% endgeneration %}{% else %}{{ '<|im_end|>' + m.content }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|><think>\\n' }}{% endif %}"""
# Tools in the header, calls of them in answers, and their results.
TOOLS = """{% if tools %}{{ '<|im_start|>tools\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}{% for m in messages %}\
{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content or '' }}{% for call in m.tool_calls or [] %}\
{{ call | tojson }}{% endfor %}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

TEMPLATES = {
    "marks": MARKS,
    "brackets": BRACKETS,
    "headers": HEADERS,
    "renamed": RENAMED,
    "thinks": THINKS,
    "forgets": FORGETS,
}


def turns(*texts: str, system: str = "") -> list[dict[str, object]]:
    roles = ("user", "assistant") * len(texts)
    said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return [{"role": "system", "content": system}, *said] if system else said


TALKS = [
    turns("God said", " Let there be light. "),
    turns("In the beginning?", "God created the heavens", "And?", "the earth.\n", system="And God said"),
    turns("light?", "<think>\nthe deep\n</think>\n\nlight", "void?", "<think>\nthe earth\n</think>\n\nvoid, café"),
    turns("light?", "light", "light?", "light", "light?", "light<|im_end|>light"),
]
SPLIT = [
    *turns("light?", "void"),
    {"role": "user", "content": "void?"},
    {"role": "assistant", "content": "light", "reasoning_content": "the deep"},
]
CALL = {"name": "light", "arguments": {"of": "the earth"}}
CALLS = [
    {"role": "user", "content": "light?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "void"},
    {"role": "assistant", "content": "void."},
]
TOOL = {"type": "function", "function": {"name": "light", "description": "God said", "parameters": {}}}
SPECIAL = {"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"}
VOCABULARIES = {
    "gpt2": {**SPECIAL, "bos_token": "<|endoftext|>"},
    "llama": {**SPECIAL, "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "legacy": False},
}


def main() -> None:
    families = json.loads((HERE.parent / "goldens" / "hf_tokenizers.json").read_text(encoding="utf-8"))["families"]
    cases = [(name, talk, None) for name in TEMPLATES for talk in TALKS]
    cases += [("thinks", SPLIT, None), ("tools", CALLS, [TOOL]), ("tools", TALKS[0], None)]
    made = []
    for family, settings in VOCABULARIES.items():
        with tempfile.TemporaryDirectory() as folder:
            for name, text in families[family]["files"].items():
                (pathlib.Path(folder) / name).write_bytes(base64.b64decode(text))
            (pathlib.Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        for name, messages, tools in cases:
            found = tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=(TEMPLATES | {"tools": TOOLS})[name],
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            made.append(
                {
                    "family": family,
                    "template": name,
                    "messages": messages,
                    "tools": tools,
                    "ids": found["input_ids"],
                    "learned": "".join(map(str, found["assistant_masks"])),
                }
            )
    written = {
        "transformers": transformers.__version__,
        "settings": VOCABULARIES,
        "templates": TEMPLATES | {"tools": TOOLS},
        "cases": made,
    }
    (HERE / "chats.json").write_text(json.dumps(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
