"""The page in a real browser: nothing is requested, no text of a run is code, and every control works."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher.rundir.directory import RunDir
from launcher.rundir.state import RunState
from launcher.show.page import gather, write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
FIXTURE = Path(__file__).parents[3] / "fixtures/run-0.1.0"
HOSTILE = '</script><script>window.hit=1</script><!--<img src=x onerror="window.hit=1">\u2028\u202e"\'&amp;{{ 7*7 }}'
CASES = [("light", "en-US", 1280), ("dark", "zh-CN", 1280), ("dark", "en-US", 375), ("light", "zh-CN", 375)]


def answer(number: int, **changed: Any) -> dict[str, Any]:
    right = number % 3 != 0
    given = f"answer {number}" if right else f"another {number}"
    task = "sums" if number % 2 else "翻译"
    line = {"prompt": f"question {number}", "expected": f"answer {number}", "given": given, "task": task}
    return {**line, "right": right, "before": "eh", **changed}


def copy_of(folder: Path, name: str, **record: Any) -> RunDir:
    run = RunDir(folder / f"{name}-20260101-000000-aaaa")
    kept = shutil.ignore_patterns("adapter_model*", "checkpoints", "base_model", "code*", "cache")
    shutil.copytree(FIXTURE, run.path, ignore=kept)
    run.update_record(run_id=run.run_id, name=name, **record)
    return run


def change(file: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    alter(content)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a failed run, where every text that a stranger may have written is hostile."""
    run = copy_of(tmp_path_factory.mktemp("runs"), "hostile")
    run.update_record(name=HOSTILE)
    rows = [answer(n) for n in range(1, 100)]
    rows.append(answer(100, prompt=HOSTILE, expected=HOSTILE, given=HOSTILE + "x", task=HOSTILE, right=False))
    run.predictions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run.job_yaml.write_text(f"name: {HOSTILE}\n", encoding="utf-8")
    run.event("warning", text=HOSTILE)
    run.event(HOSTILE, lines=[HOSTILE, HOSTILE])
    group = {"ranks": [0], "hosts": [HOSTILE], "doing": HOSTILE, "state": HOSTILE, "frames": [HOSTILE] * 3, "odd": True}
    run.event("hang", message=HOSTILE, stacks=[group, {**group, "ranks": [1], "odd": False}])
    failure = {**dict.fromkeys(("cause", "message", "host"), HOSTILE), "rank": 0, "advice": [HOSTILE]}
    failure["log_tail"] = [HOSTILE] * 20
    reasons = [dict.fromkeys(("setting", "value", "reason"), HOSTILE)]
    tasks = {HOSTILE: {"records": 4, "accuracy": 0.5}}
    change(run.node_record(0), lambda node: node.update(host=HOSTILE, state="FAILED", failure=failure))
    change(run.plan_json, lambda plan: plan.update(notes=[HOSTILE], reasons=reasons))
    change(run.result_json, lambda result: result["eval"]["after"].update(tasks=tasks))
    return write.write_report(run, RunState.FAILED)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    points = [{"lora.r": rank, "train.learning_rate": rate} for rank in (8, 16) for rate in (1e-4, 5e-4, 2e-3)]
    pages = []
    for number, point in enumerate(points):
        run = copy_of(folder, f"point-{number}")
        plan = run.read_plan()
        plan["train"]["lora"]["r"], plan["train"]["train"]["learning_rate"] = point.values()
        result = run.read_json(run.result_json) or {}
        result["eval"]["after"].update(records=64, accuracy=number / 8)
        run.write({"plan.json": json.dumps(plan), "result.json": json.dumps(result)})
        pages.append(gather.run_page(run, RunState.SUCCEEDED))
    return write.write_comparison("points", pages, points, [f"{HOSTILE}: not started"], folder / "all.html")


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Open a file; at the end, nothing was requested, no script failed and no text of a run was executed."""
    opened: list[tuple[Page, list[str]]] = []

    def make(file: Path, *, scheme: str = "light", locale: str = "en-US", width: int = 1280) -> Page:
        viewport: Any = {"width": width, "height": 900}
        scheme_: Any = scheme
        context = chromium.new_context(viewport=viewport, color_scheme=scheme_, locale=locale, offline=True)
        page, problems = context.new_page(), []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url == file.as_uri() or problems.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]")
        opened.append((page, problems))
        return page

    yield make
    for page, problems in opened:
        assert page.evaluate("window.hit") is None
        assert problems == []
        page.context.close()


@pytest.mark.parametrize(("scheme", "locale", "width"), CASES)
def test_no_text_of_a_run_is_code_and_nothing_scrolls_sideways(
    hostile: Path, comparison: Path, visit: Callable[..., Page], scheme: str, locale: str, width: int
) -> None:
    for file in (hostile, comparison):
        page = visit(file, scheme=scheme, locale=locale, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(250, 249, 247)", "dark": "rgb(19, 20, 22)"}[scheme]
        assert page.locator("h2").first.inner_text()
        assert HOSTILE.replace("\u2028", "") in page.content().replace("&lt;", "<").replace("&gt;", ">").replace(
            "&amp;", "&"
        ).replace("&#34;", '"').replace("&#39;", "'").replace("\u2028", "")


def test_answers_are_searched_filtered_and_their_differences_marked(hostile: Path, visit: Callable[..., Page]) -> None:
    page = visit(hostile)
    cards, count = page.locator(".answer"), page.locator("#count")
    assert cards.count() == 30
    page.click("#more")
    assert cards.count() == 100
    page.check("#wrong")
    assert cards.count() == 30
    assert count.inner_text() == "34 of 100 answers, 66 right in all"
    page.select_option("#task", "sums")
    assert count.inner_text().startswith("17 of 100")
    page.fill("#search", "ANOTHER 33")
    page.wait_for_selector(".answer:only-child")
    assert page.locator(".answer del").inner_text() == "answer"
    assert page.locator(".answer ins").inner_text() == "another"
    assert page.locator(".answer .pair > div").nth(2).inner_text().split() == ["before", "training", "eh"]
    page.fill("#search", "no such answer")
    page.wait_for_selector(".empty")


def test_the_language_and_the_theme_are_switched_and_remembered(hostile: Path, visit: Callable[..., Page]) -> None:
    page = visit(hostile)
    assert (page.locator("h2").nth(1).inner_text(), page.locator("html").get_attribute("lang")) == ("Curves", "en")
    page.click("#language")
    assert (page.locator("h2").nth(1).inner_text(), page.locator("html").get_attribute("lang")) == ("曲线", "zh-CN")
    assert page.get_attribute("#search", "placeholder") == "搜索问题与回答"
    assert "条回答中的" in page.locator("#count").inner_text()
    assert page.locator("figcaption").first.inner_text().startswith("损失")
    page.click("#theme")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    assert page.locator("html").get_attribute("data-theme") == "dark"


def test_the_keyboard_alone_zooms_reads_and_filters(hostile: Path, visit: Callable[..., Page]) -> None:
    page = visit(hostile)
    plot = page.locator(".plot").first
    plot.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "step 1" in page.locator("figcaption .now").first.inner_text()
    page.keyboard.press("+")
    page.keyboard.press("0")
    page.focus("#wrong")
    page.keyboard.press("Space")
    assert page.locator("#count").inner_text().startswith("34 of")
    page.focus("#language")
    page.keyboard.press("Enter")
    assert page.locator("html").get_attribute("lang") == "zh-CN"


def test_several_runs_are_overlaid_hidden_and_mapped(comparison: Path, visit: Callable[..., Page]) -> None:
    page = visit(comparison)
    assert page.locator("h1").inner_text() == "Best: point-5"
    assert page.locator("figure").first.locator(".key").count() == 6
    page.uncheck("[data-run='0']")
    assert page.locator("figure").first.locator(".key").count() == 5
    assert page.locator(".heat td").all_inner_texts() == ["0", "0.125", "0.25", "0.375", "0.5", "0.625"]
    assert page.locator(".heat td.best").inner_text() == "0.625"
    page.select_option("#heat-x", "lora.r")
    page.select_option("#heat-y", "train.learning_rate")
    assert page.locator(".heat td").all_inner_texts() == ["0", "0.375", "0.125", "0.5", "0.25", "0.625"]


def test_a_heat_map_leaves_out_runs_that_were_scored_on_other_records(
    tmp_path: Path, visit: Callable[..., Page]
) -> None:
    points = [{"lora.r": rank, "train.seed": seed} for rank in (8, 16) for seed in (1, 2)]
    pages = []
    for number, point in enumerate(points):
        run = copy_of(tmp_path, f"point-{number}")
        plan = run.read_plan()
        plan["train"]["lora"]["r"], plan["train"]["train"]["seed"] = point.values()
        plan["train"]["data"]["eval"] = "/data/held_out.jsonl" if number else "/data/other.jsonl"
        result = run.read_json(run.result_json) or {}
        result["eval"]["after"].update(records=64, accuracy=0.0, loss=2.0 - number / 4 if number else 0.01)
        run.write({"plan.json": json.dumps(plan), "result.json": json.dumps(result)})
        run.predictions.write_text("")
        pages.append(gather.run_page(run, RunState.SUCCEEDED))
    page = visit(write.write_comparison("points", pages, points, [], tmp_path / "all.html"))
    page.select_option("#heat-metric", "loss")
    assert page.locator(".heat td").all_inner_texts() == ["–", "1.75", "1.5", "1.25"]
    assert page.locator("#heat-others").inner_text() == "Scored on other records, so left out: point-0"
    assert page.locator("h1").inner_text() == "Best: point-3"
    page.evaluate("document.getElementById('language').click()")
    assert page.locator("#heat-others").inner_text() == "评估数据不同，未列入：point-0"


def test_a_million_steps_open_within_two_seconds_and_keep_their_extremes(
    tmp_path: Path, visit: Callable[..., Page]
) -> None:
    run = copy_of(tmp_path, "long")
    with run.metrics.open("w") as file:
        for step in range(1, 1_000_001):
            loss = 9.75 if step == 654_321 else 1 + 2 / math.sqrt(step)
            file.write(f'{{"step": {step}, "loss": {loss:.5f}, "grad_norm": 0.5, "learning_rate": 1e-4}}\n')
    report = write.write_report(run, RunState.SUCCEEDED)
    assert report.stat().st_size < 400_000 + 250_000
    page = visit(report)
    opened = page.evaluate("performance.getEntriesByName('ready')[0].startTime")
    assert opened < 2000
    shown = json.loads(page.locator("#data").text_content() or "")["curves"]["loss"]
    assert max(shown["value"]) == 9.75
    assert len(shown["step"]) <= 4100
    assert (shown["step"][0], shown["step"][-1]) == (1, 1_000_000)
