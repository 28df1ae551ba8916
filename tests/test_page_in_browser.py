"""The page of `fastdl bench --html`, of the committed results, in a real browser where there is one."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fastdl.bench import page, report

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results" / "cpu" / "bench.json"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: What the page says of itself once it is laid out.
ASKED = """
addEventListener("error", e => faults.push(e.message || e.target.src), true);
addEventListener("load", () => {
  const found = {
    faults: faults,
    wide: document.documentElement.scrollWidth - innerWidth,
    pictures: [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().width, i.alt]),
    rows: [...document.querySelectorAll("table")].map(t => t.rows.length),
    red: [...document.querySelectorAll(".bad")].map(e => getComputedStyle(e).color),
    requests: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
  };
  document.body.innerHTML = "";
  document.body.dataset.found = JSON.stringify(found);
});
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH")
@pytest.mark.parametrize("width", [1280, 480], ids=["desk", "telephone"])
def test_laid_out(width, tmp_path):
    page.write(tmp_path / "page.html", [report.read(RESULTS)])
    text = (tmp_path / "page.html").read_text()
    asking = tmp_path / "asking.html"
    asking.write_text(text.replace("<head>", f"<head><script>const faults = [];{ASKED}</script>", 1))

    found = ask(asking, width, tmp_path)

    assert found["faults"] == [] and found["requests"] == []  # nothing from elsewhere
    assert found["wide"] <= 0  # tables scroll, the page does not
    assert found["pictures"], "pictures"
    for natural, shown, alt in found["pictures"]:
        assert natural > 400 and 0 < shown <= width and alt
    assert max(found["rows"]) > 20
    missed = text.count('class="n bad"') + text.count('class="bad"')
    assert len(found["red"]) == missed and set(found["red"]) <= {"rgb(196, 50, 10)"}


def ask(file: Path, width: int, folder: Path) -> dict:
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    run = subprocess.run(
        [BROWSER, *flags, f"--window-size={width},900", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'data-found="([^"]*)"', run.stdout)
    assert found, run.stderr[-2000:]
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))
