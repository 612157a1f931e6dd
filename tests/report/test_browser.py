from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest

from cruxtune.report.html import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: none of chromium, chromium-browser, google-chrome"),
]


def dump(page: Path, profile: Path) -> tuple[str, str]:
    """Return the document after its script ran, and what the browser logged of the page's console."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=3000"
    done = subprocess.run(
        [str(CHROMIUM), *flags.split(), f"--user-data-dir={profile}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)


def test_script_runs_without_console_errors(tmp_path, summary, annotations, pieces) -> None:
    """The page comes up under its own policy: script run, tokens reachable by keyboard, nothing logged."""
    page = write_report(tmp_path / "report.html", summary, annotations, pieces)
    document, console = dump(page, tmp_path / "profile")
    assert console == ""
    assert 'data-ready="1"' in document
    assert document.count('role="listbox"') == 10
    assert document.count('aria-selected="true"') == sum(sum(annotation.critical) for annotation in annotations[:10])
    assert len(re.findall(r'<span class="tok[^>]*tabindex="0"', document)) == 10


def test_details_open_by_click_and_move_by_keys(tmp_path, summary, annotations, pieces) -> None:
    """A click opens a token's details, an arrow key goes to the next token, Escape closes."""
    page = write_report(tmp_path / "report.html", summary, annotations, pieces)
    script = """<script>
      const log = [], panel = document.getElementById("details"), tokens = document.querySelectorAll(".response .tok");
      const key = (name) => document.activeElement.dispatchEvent(
        new KeyboardEvent("keydown", {key: name, bubbles: true})
      );
      tokens[2].click(); log.push(panel.hidden, panel.innerText);
      key("ArrowRight"); log.push(panel.innerText);
      key("Escape"); log.push(panel.hidden);
      document.body.dataset.log = JSON.stringify(log);
    </script></body>"""
    # The page's policy would not let a test's script run: this copy has none.
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    page.write_text(source.replace("</body>", script), encoding="utf-8")
    document, console = dump(page, tmp_path / "profile")
    assert console == ""
    match = re.search(r'data-log="(.*?)"', document)
    assert match is not None
    log = match[1]
    assert log.startswith("[false,")
    assert "Position 2 " in log
    assert "Position 3 " in log
    assert log.endswith("true]")


def test_policy_stops_a_script_that_is_not_the_pages(tmp_path, summary, annotations, pieces) -> None:
    """Even markup that got into the page could run nothing and ask for nothing."""
    page = write_report(tmp_path / "report.html", summary, annotations, pieces)
    intruder = '<script>document.body.dataset.intruder = "1"</script>'
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", intruder + "</body>"), encoding="utf-8")
    document, console = dump(page, tmp_path / "profile")
    assert 'data-intruder="1"' not in document
    assert "Content Security Policy" in console


def test_hostile_text_stays_text(tmp_path, annotate, pieces) -> None:
    """Markup in a response is shown letter by letter by a real parser."""
    attack = "<script>document.body.dataset.intruder = 1</script><b>"
    page = write_report(tmp_path / "report.html", {}, [annotate(attack, question=attack)], pieces)
    document, console = dump(page, tmp_path / "profile")
    assert console == ""
    assert "data-intruder" not in document
    assert escape(attack, quote=False) in document
