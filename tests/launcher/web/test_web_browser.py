"""`zlaunch ui` in a real browser: pages follow their runs by themselves."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from launcher.web.server import Site
from tests.launcher.web.conftest import talking_run
from tests.launcher.web.test_actions import program

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=window.hit=1></script><script>window.hit=1</script>"


class Bed:
    """Two runs, whose states the test sets, and their server."""

    def __init__(self, folder: Path) -> None:
        self.states: dict[str, RunState] = {}
        self.runs = [self.add(folder, "first"), self.add(folder, HOSTILE, "second")]
        self.site = Site("127.0.0.1", 0, lambda: self.runs, lambda run: self.states[run.run_id])

    def add(self, folder: Path, name: str, short: str | None = None) -> RunDir:
        run = RunDir(folder / f"{short or name}-20260101-000000-aaaa")
        run.write({"plan.json": '{"train": {"train": {}}}', "logs/node-0/rank-0.log": f"{HOSTILE}\n"})
        run.save_record(RunRecord(run_id=run.run_id, name=name, backend="local", created=1.0, submitted=2.0))
        node = {"node_rank": 0, "host": "here", "boot_id": "b", "pid": 7, "start_time": 5, "state": "RUNNING",
                "heartbeat": 1.0, "ranks": [{"rank": 0, "pid": 8, "start_time": 6}]}  # fmt: skip
        run.write({"nodes/node-0.json": json.dumps(node)})
        now = time.time()
        events = {"time": now, "event": "ranks_started", "node": 0}, {"time": now, "event": "phase", "name": "train"}
        run.write({"events.jsonl": "".join(json.dumps({**event, "total_steps": 100}) + "\n" for event in events)})
        self.states[run.run_id] = RunState.RUNNING
        return run

    def step(self, step: int, loss: float) -> None:
        with self.runs[0].metrics.open("a") as file:
            line = {"step": step, "loss": loss, "tokens_per_second": 120.0, "time": time.time()}
            file.write(json.dumps(line) + "\n")


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path)
    threading.Thread(target=made.site.serve, daemon=True).start()
    yield made
    made.site.end()


@pytest.fixture
def page(chromium: Browser, bed: Bed, request: pytest.FixtureRequest) -> Iterator[Page]:
    with opened(chromium, bed.site.url, getattr(request, "param", 1280)) as found:
        yield found


@pytest.fixture
def acting(chromium: Browser, live_site: Site, tmp_path: Path) -> Iterator[Page]:
    """The same over the runs of $ZLAUNCH_RUNS, of which one talks."""
    talking_run(tmp_path / "runs", "one-")
    with opened(chromium, live_site.url, 375) as found:
        yield found


@contextmanager
def opened(chromium: Browser, url: str, width: int) -> Iterator[Page]:
    """The list of runs, opened by the address that the command prints; at the end, no script has failed."""
    viewport: Any = {"width": width, "height": 900}
    context = chromium.new_context(viewport=viewport, locale="en-US")
    context.set_default_timeout(90_000)  # zlaunch commands are started meanwhile, on a machine that others use as well
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url)
    page.wait_for_selector("html[data-live='1']")
    page.wait_for_selector("#all-runs a")
    yield page
    page.wait_for_function("window.hit === undefined", timeout=10_000)  # the page may be loading itself again
    assert problems == []
    context.close()


def test_a_loss_is_on_the_page_within_two_seconds_and_the_end_is_seen(bed: Bed, page: Page) -> None:
    bed.step(1, 3.0)
    page.click("text=first >> nth=0")
    page.wait_for_selector("html[data-live='1']")
    page.wait_for_selector("figure")
    bed.step(2, 2.4321)
    page.wait_for_selector("#progress:has-text('2.432')", timeout=2000)
    assert "2 / 100" in page.locator("#progress").inner_text()
    assert "120 tokens/s" in page.locator("#progress").inner_text()
    assert page.evaluate("document.querySelector('.plot').ariaLabel").startswith("Loss: training 3 → 2.432")
    page.click("#language")
    page.reload()
    page.wait_for_selector("#progress:has-text('损失')")
    bed.states[bed.runs[0].run_id] = RunState.SUCCEEDED
    page.wait_for_selector("h1:has-text('没有留出数据，无法判断')")


def test_use_and_memory_of_each_gpu_are_followed_and_what_is_not_known_says_so(bed: Bed, page: Page) -> None:
    file = bed.runs[0].path / "nodes/node-0.json"
    record = json.loads(file.read_text())
    page.goto(f"http://127.0.0.1:{bed.site.port}/run/{bed.runs[0].run_id}")
    page.wait_for_selector("#ranks:has-text('not known')")
    record["ranks"] = [{"rank": rank, "pid": 8 + rank, "local_rank": rank} for rank in (0, 1)]
    gpu = {"used_bytes": 12 << 30, "total_bytes": 80 << 30}
    record["gpus"] = [{"local_rank": 0, "use": 87, **gpu}, {"local_rank": 1, "use": None, **gpu}]
    file.write_text(json.dumps(record))
    page.wait_for_selector("#rank-rows:has-text('87%')")
    assert page.locator("#rank-rows tr").nth(1).inner_text().split() == [
        "1",
        "here",
        "not",
        "known",
        "12.0",
        "of",
        "80.0",
        "GiB",
    ]
    file.write_text(json.dumps({**record, "gpus": [], "gpu_trouble": f"no NVML {HOSTILE}"}))
    page.wait_for_selector("#rank-note:has-text('here: no NVML')")


def test_an_end_between_the_page_and_its_stream_is_seen(bed: Bed, page: Page) -> None:
    run = bed.runs[0]

    def end(route: Any) -> None:
        bed.states[run.run_id] = RunState.SUCCEEDED
        route.continue_()

    page.route("**/run/*/stream", end)
    page.goto(f"http://127.0.0.1:{bed.site.port}/run/{run.run_id}")
    page.wait_for_selector("h1:has-text('Too few held-out records to judge')")


def test_a_log_is_followed_and_stays_text(bed: Bed, page: Page) -> None:
    page.goto(f"http://127.0.0.1:{bed.site.port}/run/{bed.runs[1].run_id}")
    page.click("#logs summary")
    page.wait_for_selector("#log:has-text('window.hit')")
    assert page.locator("#log").inner_text().strip() == HOSTILE


def test_a_hidden_page_gives_up_its_stream_and_takes_it_up_again(bed: Bed, page: Page) -> None:
    """A browser has six connections to a server, over all its tabs."""
    hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/stream")):
        page.evaluate(hide + "document.dispatchEvent(new Event('visibilitychange')); }", True)
    with page.expect_request("**/stream"):
        page.evaluate(hide + "document.dispatchEvent(new Event('visibilitychange')); }", False)


@pytest.mark.parametrize("page", [375], indirect=True)
def test_runs_are_filtered_and_compared_with_the_keyboard_on_a_narrow_screen(bed: Bed, page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.focus("#filter")
    page.keyboard.type("second")
    page.wait_for_selector("#all-runs tr:only-child")
    page.fill("#filter", "")
    for number in range(2):
        page.locator("#all-runs input").nth(number).focus()
        page.keyboard.press("Space")
    page.focus("#do-compare")
    page.keyboard.press("Enter")
    page.wait_for_selector("h2:has-text('Runs')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def press(page: Page, selector: str) -> None:
    """Press a button with the keyboard alone."""
    page.focus(selector)
    page.keyboard.press("Enter")


def test_a_run_is_stopped_with_the_keyboard_after_a_question_and_a_reload_keeps_all(acting: Page) -> None:
    run = program("sleep", "600")
    while "ranks_started" not in run.events.read_text():  # each phase loads the page again
        time.sleep(0.1)
    acting.goto(f"{acting.url.rstrip('/')}/run/{run.run_id}")
    acting.wait_for_selector("html[data-live='1']")
    press(acting, "[data-ask=stop]")
    acting.wait_for_selector("#ask-stop[open]")
    acting.keyboard.press("Escape")
    acting.wait_for_selector("#ask-stop", state="hidden")
    press(acting, "[data-ask=stop]")
    acting.focus("#ask-stop input")
    acting.keyboard.press("Space")
    press(acting, "#ask-stop [type=submit]")
    acting.wait_for_selector(".eyebrow .chip:has-text('Stopped')")
    acting.wait_for_selector(".act .chip:has-text('done')")
    acting.reload()
    acting.wait_for_selector(f".act code:has-text('zlaunch cancel {run.run_id} --now')")
    assert run.record.state == "CANCELLED"
    assert acting.evaluate("document.documentElement.scrollWidth") <= 375
    press(acting, "[data-ask=resume]")
    press(acting, "#ask-resume [type=submit]")
    acting.wait_for_selector("[data-ask=stop]")
    subprocess.run([sys.executable, "-m", "launcher", "cancel", "--now", run.run_id], check=True, capture_output=True)


def test_a_run_and_its_base_answer_side_by_side_as_text_and_a_reload_keeps_the_talk(acting: Page) -> None:
    acting.goto(f"{acting.url.rstrip('/')}/chat?run=one--20260101-000000-aaaa&with=base")
    acting.wait_for_selector("[data-model='1'] .chip:has-text('ready')")
    acting.wait_for_selector("#send:enabled")
    acting.keyboard.type(HOSTILE)  # the question has the focus
    acting.keyboard.press("Enter")
    answers = acting.locator("#talk .pair p")
    for number, name in enumerate(("one-", "base")):
        acting.wait_for_selector(f"#talk .pair > div:nth-child({number + 1}) span:has-text(' s')")
        assert answers.nth(number).inner_text().startswith(f"{name}: {HOSTILE}")
    acting.reload()
    acting.wait_for_selector("#talk .pair p")
    acting.wait_for_selector("#send:enabled")
    acting.keyboard.type("slow")
    acting.keyboard.press("Enter")
    acting.wait_for_selector("#talk article:nth-child(2) p:has-text('3 ')")
    press(acting, "#cut")
    acting.wait_for_selector("#talk article:nth-child(2) span:has-text('cut short')")
    last, question = answers.last.bounding_box(), acting.locator("#say").bounding_box()
    assert last is not None
    assert question is not None
    assert last["y"] + last["height"] <= question["y"]  # the newest answer is in sight
    acting.click("#language")
    acting.wait_for_selector("h1:has-text('对话')")
    assert answers.count() == 4
    assert acting.evaluate("document.documentElement.scrollWidth") <= 375
