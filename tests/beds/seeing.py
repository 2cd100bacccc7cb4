"""Pages of a `zlaunch ui` of its own process in a browser: a run is started, watched, fetched and resumed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from rich.cells import cell_len

from launcher.rundir.directory import RunDir
from tests.beds.terminal import Terminal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SLOW = 200_000
"""Milliseconds for a training, on a machine that others use as well."""
SIZES = ((80, 24), (160, 50))


@contextmanager
def opened(chromium: Browser, environ: Mapping[str, str], home: Path) -> Iterator[Page]:
    """The pages of `zlaunch ui` with these variables; at the end, no script has failed."""
    words = [sys.executable, "-m", "launcher", "ui", "--no-browser"]
    server = subprocess.Popen(words, cwd=home, env=dict(environ), stdout=subprocess.PIPE, text=True)
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    context.set_default_timeout(SLOW)
    try:
        page, problems = context.new_page(), []
        page.on("pageerror", lambda error: problems.append(str(error)))
        assert server.stdout is not None
        page.goto(server.stdout.readline().strip())
        page.wait_for_selector("html[data-live='1']")
        yield page
        assert problems == []
    finally:
        context.close()
        server.terminate()
        server.wait(20)


def started(page: Page, runs: Path, backend: str, values: Mapping[str, str]) -> RunDir:
    """Fill in the form of a smoke run and start it."""
    page.goto(page.url.partition("/run")[0].rstrip("/") + "/new?example=smoke")
    page.wait_for_selector("#new[data-checked]")
    page.check(f"[name='where'][value='{backend}']", force=True)
    for details in page.locator("details.more").all():
        details.locator("summary").first.click()
    for key, text in values.items():
        field = page.locator(f"[name='{key}']")
        is_choice = field.evaluate("field => field.tagName === 'SELECT'")
        field.select_option(text) if is_choice else field.fill(text)
    page.click("#start")
    page.wait_for_url("**/run/*")
    return RunDir(runs / unquote(page.url.rpartition("/")[2]))


def watched(folder: Path, environ: Mapping[str, str], run: RunDir, *texts: str) -> None:
    """Watch a living run at both sizes at once until each text was seen, then leave it."""
    terminals = [Terminal(folder, *size, environ) for size in SIZES]
    try:
        for terminal in terminals:
            terminal.zlaunch("watch", run.run_id)
        for terminal in terminals:
            for text in texts:
                shown = terminal.wait_for(text, SLOW / 1000)
                lines = shown.splitlines()
                assert run.run_id in lines[0]
                assert max(map(cell_len, lines)) <= terminal.size[0]
                assert len(lines) <= terminal.size[1]
            terminal.press("q")
            assert "goes on" in terminal.wait_for("exit code 0")
    finally:
        for terminal in terminals:
            terminal.close()


def done(page: Page, name: str) -> None:
    """Wait until the newest command of the page's run has succeeded."""
    page.wait_for_selector(f".act:first-child:has-text('{name}') .chip:has-text('done')")


def stopped(page: Page, run: RunDir) -> None:
    page.goto(f"{page.url.partition('/run')[0]}/run/{quote(run.run_id)}")
    page.click("[data-ask=stop]")
    page.click("#ask-stop [type=submit]")
    page.wait_for_selector(".eyebrow .chip:has-text('Stopped')")
    done(page, "Stop")


def resumed(page: Page, run: RunDir) -> None:
    """Have the page resume a run that has ended, until it lives again."""
    page.goto(f"{page.url.partition('/run')[0]}/run/{quote(run.run_id)}")
    page.click("[data-ask=resume]")
    page.click("#ask-resume [type=submit]")
    page.wait_for_selector("[data-ask=stop]")
    done(page, "Resume")
