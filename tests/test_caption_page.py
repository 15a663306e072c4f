"""The report of a run, opened in a real browser: its numbers are the output's, its pictures are seen, it runs nothing.

Needs Chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, find_browser
from tests.caption_rows import rows_of
from tests.conftest import write_clip
from tests.test_caption_served import caption

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = '<img src=x onerror="document.title=1">&amp; "quoted" ünï 给.mp4'
PROMPT = "Tell <script>document.title='owned'</script> </blockquote> all."

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no browser: apt-get install chromium")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine clips captioned by the seeing server: a twin, two broken ones and a hostile name among them."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(5):
        write_clip(folder / f"clip{number}.mp4", [k / 25 for k in range(20 + 5 * number)])
    write_clip(folder / HOSTILE, [k / 25 for k in range(33)])
    (folder / "twin.mp4").write_bytes((folder / "clip1.mp4").read_bytes())
    (folder / "text.mp4").write_bytes(b"no video at all")
    (folder / "empty.mp4").write_bytes(b"")
    out = folder.parent / "report" / "captions.jsonl"
    out.parent.mkdir()
    command = [sys.executable, "-m", "tests.caption_server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        done = caption(folder, out, url, "--prompt", PROMPT, "--report", str(out.with_suffix(".html")))
        server.kill()
    assert out.with_suffix(".html").exists(), done.stderr
    return out


@pytest.fixture(scope="module")
def page(output: Path) -> Iterator[Browser]:
    with Browser() as browser:
        yield browser.open(output.with_suffix(".html").as_uri())


def test_the_counts_are_the_outputs(page: Browser, output: Path) -> None:
    cells = page.evaluate(
        "[...document.querySelectorAll('#statuses tr')].slice(1)"
        ".map(row => [...row.cells].slice(0, 2).map(cell => cell.innerText.trim()))"
    )
    shown = {status: int(count) for status, count in cells}
    counted = Counter(row["status"] for row in rows_of(output))
    assert shown == {status: counted.get(status, 0) for status in shown}
    assert sum(shown.values()) == 9
    assert (shown["ok"], shown["duplicate"], shown["undecodable"]) == (6, 1, 2)


def test_bars_are_as_long_as_their_share(page: Browser) -> None:
    widths = page.evaluate(
        "[...document.querySelectorAll('#statuses .bar')].map(bar => bar.getBoundingClientRect().width)"
    )
    assert widths[0] == max(widths)
    assert widths[0] > 100


def test_contact_sheets_are_really_seen(page: Browser, output: Path) -> None:
    sizes = page.evaluate("[...document.images].map(one => [one.complete, one.naturalWidth, one.naturalHeight])")
    assert len(sizes) == 6, "one for each clip that was captioned for itself"
    assert all(complete and width > 100 and height > 50 for complete, width, height in sizes)
    beside = page.evaluate("[...document.querySelectorAll('figure')].map(one => one.innerText)")
    for row in rows_of(output):
        if row["status"] == "ok":
            found = [text for text in beside if row["video"] in text]
            assert len(found) == 1
            assert json.loads(row["caption"])["codes"] == json.loads(found[0][found[0].index("{") :])["codes"]


def test_causes_and_failures_are_named(page: Browser) -> None:
    assert "empty.mp4" in page.evaluate("document.getElementById('failures').innerText")
    assert page.evaluate("document.getElementById('causes').rows.length") >= 2
    assert page.evaluate("document.getElementById('slowest').rows.length") == 10


def test_what_a_file_is_called_and_a_model_says_is_only_text(page: Browser, output: Path) -> None:
    assert page.evaluate("document.title") == str(output)
    assert page.evaluate("document.scripts.length") == 0
    assert "<script>document.title='owned'</script>" in page.evaluate("document.body.innerText")
    assert HOSTILE in page.evaluate("document.body.innerText")


def test_the_page_asks_for_nothing_and_complains_of_nothing(page: Browser) -> None:
    wanted = [e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in wanted if not url.startswith(("file://", "data:"))] == []
    assert [e for e in page.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")] == []


@pytest.mark.parametrize("width", [1200, 400])
def test_nothing_runs_out_of_the_window(output: Path, width: int, tmp_path: Path) -> None:
    with Browser(width=max(width, 500)) as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        browser.open(output.with_suffix(".html").as_uri())
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.screenshot(tmp_path / "page.png").stat().st_size > 10_000
