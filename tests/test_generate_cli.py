"""The command: prompts from flags, files and lines; streamed texts or records; errors."""

from __future__ import annotations

import io
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from helpers import toys
from lm_research import generate, pretrained


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that every path resolves to."""
    lm = MODEL
    monkeypatch.setattr(pretrained, "from_pretrained", lambda path, dtype=None, mesh=None: lm)
    return lm


MODEL = toys.language_model(vocab=257, scale=0.3, tokenizer=toys.ByteTokenizer())
NEW = ["--max_new_tokens", "6"]


def test_a_prompt_streams(lm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--model=m", "--prompt", "ab", *NEW]) == 0
    assert capsys.readouterr().out == lm.generate(prompts="ab", max_new_tokens=6)[0] + "\n"


def test_files_become_records(lm: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "in.txt").write_text("ab\n\nxyz\nq\n")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("ab", "xyz", "q")))
    options = ["--do-sample", "--seed=3", "--num_return_sequences=2", "--batch_size=2", *NEW]
    found = []
    for name in ("in.txt", "in.jsonl"):
        output = tmp_path / f"{name}.out"
        assert generate.main(["--model=m", "--input", str(tmp_path / name), "--output", str(output), *options]) == 0
        found.append([json.loads(line) for line in output.read_text().splitlines()])
    assert found[0] == found[1]
    texts = lm.generate(prompts=["ab", "xyz", "q"], do_sample=True, seed=3, num_return_sequences=2, max_new_tokens=6)
    assert [record["text"] for record in found[0]] == texts
    assert [record["prompt"] for record in found[0]] == ["ab", "ab", "xyz", "xyz", "q", "q"]


def test_lines_end_at_line_feeds_only(lm: Any, tmp_path: pathlib.Path) -> None:
    """Other characters at which Python ends lines belong to texts, and JSON may contain them unescaped."""
    texts = ["a\u2028b", "c\x85d", "e\x1cf", "g\x0ch"]
    (tmp_path / "in.txt").write_bytes("\r\n".join(texts).encode())
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "in.jsonl").write_bytes(("\n".join(lines) + "\n").encode())
    for name in ("in.txt", "in.jsonl"):
        assert generate.read_prompts(str(tmp_path / name)) == texts


def test_nothing_is_loaded_or_written_after_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrained, "from_pretrained", lambda path, dtype=None, mesh=None: pytest.fail("loaded"))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": 5}\n')
    (tmp_path / "empty.jsonl").write_text("")
    mistakes = {
        f"--output={tmp_path}/none/x.jsonl": "there is no directory",
        f"--output={tmp_path}": "it is a directory",
        f"--input={tmp_path}/bad.jsonl": "line 2: the prompt 5 is not a string",
        f"--input={tmp_path}/empty.jsonl": "contains no prompts",
        "--top_k=2.5": "an integer",
    }
    for flag, message in mistakes.items():
        prompt = [] if "--input" in flag else ["--prompt=a"]
        assert generate.main(["--model=m", flag, *prompt]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "empty.jsonl"]


def test_ctrl_c_ends_a_conversation_quietly(lm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def lines() -> Iterator[str]:
        yield "a"
        raise KeyboardInterrupt

    generate.talk(lm, {"max_new_tokens": 4}, lines())
    said = capsys.readouterr()
    assert said.out == lm.generate(prompts="a", max_new_tokens=4)[0] + "\n" and said.err.endswith("> \n")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_pipe_that_is_not_text_is_refused(
    lm: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, errors: str
) -> None:
    pipe = io.TextIOWrapper(io.BytesIO(b"ab\n\xff\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr(sys, "stdin", pipe)
    assert generate.main(["--model=m", *NEW]) == 2
    assert "not valid UTF-8" in capsys.readouterr().err


def test_a_conversation_continues_until_an_empty_line(lm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    generate.talk(lm, {"max_new_tokens": 4}, iter(["a", "b", "", "b"]))
    first = lm.generate(prompts="a", max_new_tokens=4)[0]
    second = lm.generate(prompts=f"a{first}\nb", max_new_tokens=4)[0]
    fresh = lm.generate(prompts="b", max_new_tokens=4)[0]
    assert capsys.readouterr().out == f"{first}\n{second}\n{fresh}\n"


class ChatTokenizer(toys.ByteTokenizer):
    """With a template for messages, and a tokenizer that puts a token before a text."""

    files = {
        "tokenizer_config.json": b'{"chat_template": "{% for m in messages %}{{ m.role[0] }}:{{ m.content }} {% endfor %}"}'
    }

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, Any]:
        return super().__call__(("!" if add_special_tokens else "") + text)


def test_a_conversation_goes_through_the_template(capsys: pytest.CaptureFixture[str]) -> None:
    """Each prompt is exactly the template's text with the earlier turns, without tokens that the tokenizer would add."""
    lm = toys.language_model(vocab=257, scale=0.3, tokenizer=ChatTokenizer())
    generate.talk(lm, {"max_new_tokens": 2}, iter(["a", "b", "", "b"]), system="x")

    def answer(text):
        return MODEL.generate(prompts=text, max_new_tokens=2)[0]

    first = answer("s:x u:a ")
    second, fresh = answer(f"s:x u:a a:{first} u:b "), answer("s:x u:b ")
    assert capsys.readouterr().out == f"{first}\n{second}\n{fresh}\n"


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (
            ["--num_beams=4", "--num_beam_groups=2", "--diversity_penalty=0.5", "--num_return_sequences=2"],
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 2},
        ),
        (["--num_beams=4", '--force_words=["xy"]'], {"num_beams": 4, "force_words_ids": [[120, 121]]}),
        (["--penalty_alpha=0.6", "--top_k=4"], {"penalty_alpha": 0.6, "top_k": 4}),
        (["--assistant_model=m", "--num_assistant_tokens=2"], {"num_assistant_tokens": 2, "assistant_model": MODEL}),
    ],
)
def test_every_strategy_can_be_selected(
    lm: Any, capsys: pytest.CaptureFixture[str], argv: list[str], options: dict[str, Any]
) -> None:
    assert generate.main(["--model=m", "--prompt=ab", *NEW, *argv]) == 0
    expected = lm.generate(prompts="ab", max_new_tokens=6, **options)
    assert capsys.readouterr().out == "".join(text + "\n" for text in expected)


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    from lm_research.decoding.generation_config import NAMES

    with pytest.raises(SystemExit):
        generate.main(["--help"])
    said = capsys.readouterr().out
    assert [name for name in (*NAMES, "assistant_model", "mesh", "force_words") if name not in said] == []


def test_lines_of_a_pipe_are_prompts(
    lm: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("ab\nxyz\n"))
    assert generate.main(["--model=m", *NEW]) == 0
    texts = lm.generate(prompts=["ab", "xyz"], max_new_tokens=6)
    assert capsys.readouterr().out == "".join(text + "\n" for text in texts)


def test_flags_are_read_as_json() -> None:
    words = ["--do-sample", "--top_p=0.5", "--stop_strings", '["a", "b"]', "--early_stopping", "never", "--seed", "-3"]
    assert generate.flags(words) == {
        "do_sample": True,
        "top_p": 0.5,
        "stop_strings": ["a", "b"],
        "early_stopping": "never",
        "seed": -3,
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prompt", "a", "--max_new_token=3"], "Did you mean 'max_new_tokens'"),
        (["--prompt", "a", "--input=b"], "Keep one"),
        (["--input=/nowhere/x.txt"], "cannot be read"),
        (["--prompt", "a", "stray"], "quotes"),
        (["--prompt", "a", "--force_words=river"], "JSON list of texts"),
        (["--prompt", "a", "--temperature=0", "--do_sample"], "above 0"),
        (["--prompt", "a", "--batch_size=0"], "from 1 to"),
        (["--prompt", "a", "--eos_token_id", "abc"], "--eos_token_id='abc'"),
        (["--prompt", "a", "--do_sample", "--seed", "abc"], "an integer, or a list"),
        (["--prompt", "a", "--bad_words_ids", '[["a"]]'], "a list of lists"),
        (["--prompt", "a", "--bad_words_ids", "[[257]]"], "tokens are 0 to 256"),
        (["--prompt", "a", "--suppress_tokens", '"x"'], "a list of token ids"),
        (["--prompt", "a", "--stop_strings", "5"], "a text or a list"),
        (["--prompt", "a", "--exponential_decay_length_penalty", "5"], "a pair"),
        (["--prompt", "a", "--top_logprobs", "9999"], "more than the model's 257 tokens"),
        (["--prompt", "a", "--sequence_bias", '{"500": 3.0}'], "[[[500], 3.0]"),
        (["--prompt", "a", "--num_beams"], "--num_beams=True"),
        (["--prompt", "\udcff"], "not valid UTF-8"),
    ],
)
def test_errors_end_with_code_2(lm: Any, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--model=m", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_model_without_tokenizer_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = toys.language_model()
    monkeypatch.setattr(pretrained, "from_pretrained", lambda path, dtype=None, mesh=None: bare)
    assert generate.main(["--model=m", "--prompt=a"]) == 2
    assert "tokenizer" in capsys.readouterr().err
