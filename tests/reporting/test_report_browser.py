"""The page in a real browser, without a network: everything is drawn, and nothing is wider than a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.reporting_runs import final, write_run, write_study
from lm_research import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
    "--virtual-time-budget=20000",
)
# Report to the enclosing page the width reached and any errors.
WITNESS = """<script>
const wrong = [];
addEventListener("error", event => wrong.push(event.message));
addEventListener("securitypolicyviolation", event => wrong.push("refused " + event.blockedURI));
addEventListener("load", () => setTimeout(() => parent.postMessage([document.documentElement.scrollWidth, innerWidth,
  document.documentElement.dataset.drawn, document.querySelectorAll(".js-plotly-plot").length,
  document.querySelectorAll(".scatterlayer .trace").length, getComputedStyle(document.body).backgroundColor, ...wrong].join("|"), "*"), 500));
</script>"""
AROUND = """<!doctype html><body style="margin:0"><iframe src="witness.html" style="border:0;width:{width}px;height:2000px"></iframe>
<output></output><script>addEventListener("message", event => document.querySelector("output").textContent = event.data)</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a study, and runs of five sizes for a law."""
    pytest.importorskip("plotly")
    folder = tmp_path_factory.mktemp("browser")
    trials = [
        {
            "number": i,
            "params": {"lr": 10.0**-i, "kind": "ab"[i % 2]},
            "value": 5.0 - i,
            "state": "complete",
            "run": f"t/{i}",
        }
        for i in range(4)
    ]
    study = write_study(folder / "sweep", trials)
    runs = [write_run(folder / f"n{n}", final(2 + 30 / n**0.5), parameters=n) for n in (10**3, 10**4, 10**5, 10**6)]
    assert report.main([*map(str, runs), str(study), "--output", str(folder / "page.html")]) == 0
    page = (folder / "page.html").read_text()
    (folder / "witness.html").write_text(page.replace("<script", WITNESS + "<script", 1))
    return folder


def look(folder: Path, width: int, *flags: str) -> list[str]:
    """The report about the page in a window of that width, and a screenshot."""
    (folder / "around.html").write_text(AROUND.format(width=width))
    done = subprocess.run(
        [
            str(BROWSER),
            *FLAGS,
            *flags,
            f"--window-size={max(width, 500)},2000",  # the minimum width of a window
            f"--screenshot={folder}/{width}.png",
            "--dump-dom",
            f"file://{folder}/around.html",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (said,) = re.findall(r"<output>(.*?)</output>", done.stdout)
    return said.split("|")


@pytest.mark.parametrize(
    ("width", "flags", "paper"),
    [
        (390, (), "rgb(255, 255, 255)"),
        (1600, ("--blink-settings=preferredColorScheme=0",), "rgb(20, 24, 28)"),  # dark
    ],
)
def test_everything_is_drawn_and_fits(folder: Path, width: int, flags: tuple[str, ...], paper: str) -> None:
    scroll, inner, drawn, charts, curves, background, *wrong = look(folder, width, *flags)
    assert wrong == [] and drawn == "yes"
    assert int(inner) == width and int(scroll) <= width
    # 7 curves and any metric, time, scaling; of the study best so far, importance, two parameters, parallel coordinates
    assert int(charts) == 8 + 1 + 1 + 5
    assert int(curves) > 4 * 8  # at least a curve of each of the four runs in each chart
    assert background == paper
    picture = (folder / f"{width}.png").read_bytes()
    assert picture[:4] == b"\x89PNG" and len(picture) > 30_000  # an even surface would compress to nothing
