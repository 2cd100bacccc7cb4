"""The form of a new run in a real browser, and a run that it starts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher.commands.ui import States
from launcher.lifecycle import records_report
from launcher.rundir import find
from launcher.rundir.directory import RunDir, RunRecord
from launcher.web.server import Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
HOSTILE = "</textarea><img src=x onerror=window.hit=1><script>window.hit=1</script>"
SLOW = 180_000
"""Milliseconds for what starts processes, on a slow machine."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("ZLAUNCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ZLAUNCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made = Site("127.0.0.1", 0, lambda: find.list_runs(find.runs_root()), States())
    threading.Thread(target=made.serve, daemon=True).start()
    yield made
    made.end()


@pytest.fixture
def page(chromium: Browser, site: Site, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A browser that has opened the printed address; at the end, no script has failed and no text has run."""
    viewport: Any = {"width": getattr(request, "param", 1280), "height": 900}
    context = chromium.new_context(viewport=viewport, locale="en-US")
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(site.url)
    page.wait_for_selector("html[data-live='1']")
    yield page
    assert page.evaluate("window.hit") is None
    assert problems == []
    context.close()


def address(site: Site, path: str) -> str:
    return f"http://127.0.0.1:{site.port}{path}"


def width(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth"))


def press_to(page: Page, selector: str) -> None:
    """Move the focus there with the Tab key."""
    for _ in range(200):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {selector}")


@pytest.mark.parametrize("page", [375], indirect=True)
def test_a_run_is_started_with_the_keyboard_alone_and_followed(site: Site, page: Page) -> None:
    press_to(page, "#new-run")
    page.keyboard.press("Enter")
    page.wait_for_selector("#new[data-checked]")
    press_to(page, "a[href='/new?example=smoke']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#job pre:has-text('source: random')")
    press_to(page, "[name='name']")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("from the form")
    page.wait_for_selector("#job pre:has-text('name: from the form')")
    assert width(page) <= 375
    press_to(page, "#start")
    page.keyboard.press("Enter")
    page.wait_for_url("**/run/from-the-form-*", timeout=SLOW)
    (run,) = find.list_runs(find.runs_root())
    assert run.record.name == "from the form"
    deadline = time.monotonic() + SLOW / 1000
    while not (run.metrics.exists() and run.metrics.stat().st_size) and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    written = time.monotonic()
    page.wait_for_selector("figure .plot", timeout=SLOW)
    assert time.monotonic() - written < 10  # 2 s on an idle machine; here the training itself takes the processors
    page.wait_for_selector("h1:not(:has-text('Running'))", timeout=SLOW)
    page.wait_for_selector(".chip.good", timeout=SLOW)
    assert width(page) <= 375


def test_errors_stand_at_their_fields_and_the_plan_follows_the_form(site: Site, page: Page) -> None:
    page.goto(address(site, "/new"))
    page.wait_for_selector("#new[data-checked]")
    assert page.locator(".error:visible").count() == 0  # nothing was typed yet
    page.fill("[name='model.path']", "Qwen/Qwen3-8B")
    page.wait_for_selector("#plan:has-text('No GPU here')")
    page.select_option("#gpu", "4090")
    page.wait_for_selector("#plan:has-text('nf4 would take')")
    before = page.locator("#plan .now").inner_text()
    page.click("#plan button:has-text('nf4')")
    page.wait_for_selector("#job pre:has-text('quantization: nf4')")
    page.wait_for_selector("#plan:not(.stale)")
    assert page.locator("#plan .now").inner_text() != before
    page.select_option("#gpu", "t4")
    page.select_option("[name='model.quantization']", "none")
    page.wait_for_selector("#plan:has-text('It does not fit')")
    page.fill("[name='lora.r']", "0")
    page.wait_for_selector("[id='e-lora.r']:has-text('expected at least 1, got 0')")
    assert page.get_attribute("[name='lora.r']", "aria-invalid") == "true"
    page.fill("[name='lora.r']", "")
    page.click("#step-train summary")
    page.fill("[name='env']", "A: [")
    page.wait_for_selector("[id='e-env']:has-text('not valid YAML')")
    page.click("#step-train summary")  # closed again: Start must open it
    page.click("#start")
    page.wait_for_selector("[id='e-env']:visible")
    assert page.evaluate("document.activeElement.name") == "env"
    page.click("#language")
    page.check("[name='where'][value='slurm']", force=True)
    page.wait_for_selector("label:has-text('每节点 GPU 数')")
    page.reload()
    page.wait_for_selector("#new[data-checked]")
    assert page.input_value("[name='env']") == "A: ["
    assert page.is_checked("[name='where'][value='slurm']")
    assert find.list_runs(find.runs_root()) == []


def test_texts_of_a_job_and_of_records_stay_text(
    site: Site, page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.jsonl").write_text("{}\n")
    run = RunDir(find.runs_root() / "hostile-20260101-000000-aaaa")
    data = {"train": str(tmp_path / "r.jsonl"), "system": HOSTILE}
    job = {"name": HOSTILE, "model": {"source": "random"}, "data": data}
    run.write({"plan.json": '{"train": {"train": {}}}', "job.yaml": json.dumps(job)})
    run.save_record(RunRecord(run_id=run.run_id, name="x", backend="local", created=1.0, submitted=2.0))
    tokens = [
        {"id": 1, "text": f"say {HOSTILE}\u202e", "loss": False},
        {"id": 2, "text": f"ok {HOSTILE}", "loss": True},
    ]
    record = {"file": HOSTILE, "line": 1, "honoured": ["output"], "ignored": [HOSTILE], "tokens": tokens}
    problem = f"{HOSTILE}; data.columns could be {{instruction: say, output: ok}}"
    found = {"records": [{**record, "tokens": [], "problem": problem}, record]}
    monkeypatch.setattr(records_report, "inspect", lambda *words, timeout: (0, found))
    page.goto(address(site, f"/new?from={run.run_id}"))
    page.wait_for_selector("#new[data-checked]")
    assert page.input_value("[name='data.system']") == HOSTILE
    page.click("#see-records")
    page.wait_for_selector("#new[data-records]")
    assert page.locator("#records .record").count() == 2
    assert page.locator("#records mark").inner_text() == f"ok {HOSTILE}"
    assert HOSTILE in page.locator("#records .bad").inner_text()
    page.click("#records button:has-text('data.columns')")  # what the error proposes
    page.wait_for_selector("#job pre:has-text('instruction: say')")
    assert width(page) <= 1280
