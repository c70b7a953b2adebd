"""The page in a real browser: every kind of task is used as by hand, nothing is wider than a phone, and all fields have names."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import queue
import shutil
import subprocess
from typing import Any

import pytest
from serving_clients import Running
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from helpers import tiny, toys
from lm_research.pretrained import LanguageModel
from lm_research.serving import app

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
)
TEMPLATE = b'{"chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"}'


class ChatTokenizer(toys.ByteTokenizer):
    """With a template for messages."""

    roles: dict[str, int] = {}  # no text ends by itself
    files = {"tokenizer_config.json": TEMPLATE}


MODEL = toys.definition(257, max_length=128)
LM = LanguageModel(MODEL, tiny.random_params(MODEL, 0, 0.3), "gpt2", {}, tokenizer=ChatTokenizer())
# A user's actions, as the page's own script would see them, then the resulting page.
HANDS = """<script>
const wrong = [];
addEventListener("error", event => wrong.push(event.message));
addEventListener("load", async () => {
  const wait = async done => { for (let i = 0; i < 600 && !done(); i++) await new Promise(go => setTimeout(go, 50)); };
  await wait(() => document.querySelectorAll("#task option").length);
  const unnamed = [...document.querySelectorAll("input, select, textarea")].filter(one => !one.labels.length).length;
  const set = (id, value) => { const node = document.getElementById(id); node.value = value; node.dispatchEvent(new Event("change")); };
  for (const [id, value] of STEPS) {
    set(id, value);
    if (id !== "text") continue;
    document.getElementById(id).dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", ctrlKey: true, bubbles: true}));
    await wait(() => document.getElementById("out").getAttribute("aria-busy") === "false");
  }
  document.querySelector(".token")?.focus();
  const out = document.getElementById("out"), dots = [document.documentElement.scrollWidth, innerWidth, unnamed,
    getComputedStyle(document.body).backgroundColor, document.querySelectorAll(".token").length,
    document.querySelectorAll(".bars i").length, document.querySelectorAll("td[title]").length,
    [...document.querySelectorAll(".said")].map(node => node.textContent).join("/"), out.querySelector(".wrong")?.textContent || "", ...wrong];
  await fetch("seen", {method: "POST", body: JSON.stringify(dots)});
});
</script>"""
AROUND = '<!doctype html><body style="margin:0"><iframe src="/" style="border:0;width:{width}px;height:900px"></iframe>'


@dataclasses.dataclass
class Seen:
    """What the page reported about itself."""

    scroll: int
    inner: int
    unnamed: int
    paper: str
    tokens: int
    bars: int
    cells: int
    said: str
    mistake: str


def look(
    lm: Any,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[list[str]],
    width: int = 390,
    *flags: str,
) -> Seen:
    """Serve the page with scripted actions, and show it in a browser of that width."""
    page = app.PAGE.read_text()
    hands = HANDS.replace("STEPS", json.dumps(steps))
    (tmp_path / "page.html").write_text(page.replace("<style>", hands + "<style>", 1))
    monkeypatch.setattr(app, "PAGE", tmp_path / "page.html")
    served, told = app.make_app(lm, "toy", app.Limits(slots=2, length=128, max_tokens=64)), queue.Queue()

    async def hear(request: Request) -> HTMLResponse:
        told.put(json.loads(await request.body()))
        return HTMLResponse()

    served.routes.append(Route("/around", lambda request: HTMLResponse(AROUND.format(width=width))))
    served.routes.append(Route("/seen", hear, methods=["POST"]))
    running = Running(served)
    window = f"--window-size={max(width, 500)},900"  # the minimum width of a window
    browser = subprocess.Popen(
        [str(BROWSER), *FLAGS, *flags, f"--user-data-dir={tmp_path}/profile", window, f"{running.url}/around"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        values = told.get(timeout=90)
    finally:
        browser.kill()
        browser.wait()
        running.stop()
    assert values[9:] == []
    return Seen(*values[:9])


def test_a_text_is_continued(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a phone, in the dark: no part is wider, each of the tokens has its button, and the first shows its alternatives."""
    steps = [["task", "completion"], ["max_tokens", "40"], ["text", "hello there"]]
    seen = look(LM, tmp_path, monkeypatch, steps, 390, "--blink-settings=preferredColorScheme=0")
    assert seen.inner == 390 and seen.scroll <= 390 and seen.unnamed == 0 and seen.mistake == ""
    assert seen.paper == "rgb(20, 24, 28)"
    assert seen.tokens == 40 and seen.bars == 5
    assert seen.said == "hello there" + LM.generate(prompts="hello there", max_new_tokens=40)[0]


def test_a_conversation_continues(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [["task", "chat"], ["max_tokens", "5"], ["text", "a"], ["text", "b"]]
    seen = look(LM, tmp_path, monkeypatch, steps, 1280)
    first = LM.generate(prompts="user: a ", max_new_tokens=5)[0]
    second = LM.generate(prompts=f"user: a assistant: {first} user: b ", max_new_tokens=5)[0]
    assert seen.said == f"usera/assistant{first}/userb/assistant{second}"
    assert seen.scroll <= seen.inner == 1280 and seen.paper == "rgb(255, 255, 255)"


def test_attentions_and_errors_are_shown(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of 40 tokens: the table scrolls by itself, not with the page. An empty text has none to show."""
    seen = look(LM, tmp_path, monkeypatch, [["task", "attention"], ["text", "x" * 40]])
    assert seen.cells == 40 * 40 and seen.scroll <= 390 and seen.mistake == ""
    monkeypatch.undo()
    seen = look(LM, tmp_path, monkeypatch, [["task", "attention"], ["text", ""]])
    assert seen.mistake == "text has no tokens." and seen.cells == 0
