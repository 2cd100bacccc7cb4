"""Trackers are fed from the files of a run, and whatever they do stays in their own process.

TensorBoard is in the test environment. wandb, SwanLab, MLflow and Trackio are not, because they would bring fifty more
packages; their tests run where somebody has installed them. What a package can do wrong is tried with fake ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.beds.agent_bed import bed, free_port, wait_for
from tests.beds.places import ROOT
from train.trackers import points, services

DRIVER = """
import sys
from pathlib import Path
from train.trackers import feed
feed.POLL, feed.PAUSE = 0.05, 0.2
if sys.argv[3] == "impatient":
    feed.STALLED, feed.LAST_SECONDS, feed.LAST_SECONDS_STOPPED = 0.5, {"SUCCEEDED": 20.0}, 1.0
code = feed.Feed(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[2], "record.json")).run()
feed.os._exit(code)
"""
RECORDING = """
import json, os, types
print("imported")
Settings = dict
def init(**told):
    assert told["resume"] == "allow" and told["config"]["train"]["learning_rate"]
    return Run(told)
class Run:
    url = "https://user:pass@wandb.example/run"
    def __init__(self, told):
        self.config = types.SimpleNamespace(update=lambda *_, **__: None)
        self.summary = self
        self.put("init", told["id"], told["name"], told["group"])
    def put(self, *what):
        with open(os.environ["TOLD"], "a") as file:
            file.write(json.dumps(what) + "\\n")
    def log(self, values, step):
        self.put("log", step, values)
    def update(self, values):
        self.put("scores", values)
    def finish(self, exit_code):
        self.put("finish", exit_code)
"""


class Fed:
    """A run directory and the process of a tracker."""

    def __init__(self, root: Path, tracker: str, package: str | None = None, **environ: str) -> None:
        self.root, self.tracker = root, tracker
        self.patience = "impatient" if package else "patient"
        for name in ("plan.json", "train.json"):
            (root / name).write_bytes((ROOT / "tests/golden/run/local-zero2" / name).read_bytes())
        path = [str(ROOT)]
        if package is not None:
            (root / "packages").mkdir()
            (root / "packages" / f"{tracker}.py").write_text(package)
            path.insert(0, str(root / "packages"))
        self.environ = {**os.environ, "HOME": str(root), "PYTHONPATH": ":".join(path), "TOLD": str(root / "told")}
        self.environ |= environ

    def start(self) -> None:
        self.state("RUNNING")
        argv = [sys.executable, "-c", DRIVER, self.tracker, str(self.root), self.patience]
        self.process = subprocess.Popen(argv, cwd=self.root, env=self.environ, stdin=subprocess.PIPE)

    def state(self, state: str) -> None:
        (self.root / "record.json").write_text(json.dumps({"state": state}))

    def line(self, **values: Any) -> None:
        with (self.root / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({**values, "time": time.time()}) + "\n")

    def finish(self, state: str) -> int:
        self.state(state)
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(40)

    def told(self) -> list[Any]:
        file = self.root / "told"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def events(self) -> list[Any]:
        file = self.root / "events.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def result(self) -> None:
        scores = {"before": {"accuracy": 0.25}, "after": {"accuracy": 0.75, "note": "no number"}}
        (self.root / "result.json").write_text(json.dumps({"eval": scores, "loss_last": 0.5, "tokens": 9}))


def test_a_resumed_run_continues_the_trackers_run_with_no_point_twice(tmp_path: Path) -> None:
    fed = Fed(tmp_path, "wandb", RECORDING)
    fed.start()
    fed.line(step=0, eval_loss=3.0, seconds=1)
    for step in (1, 2, 3):
        fed.line(step=step, loss=3.0 / step, grad_norm=None)
    wait_for(lambda: len(fed.told()) == 5)
    assert fed.finish("STOPPED") == 0
    (tmp_path / "metrics.jsonl").unlink()  # the steps after the checkpoint of step 1 happen again
    fed.line(step=0, eval_loss=3.0)
    for step in (1, 2, 3, 4):
        fed.line(step=step, loss=3.0 / step)
    fed.start()
    wait_for(lambda: len(fed.told()) == 9)
    fed.result()
    assert fed.finish("SUCCEEDED") == 0
    told = fed.told()
    run_id = json.loads((tmp_path / "train.json").read_text())["run_id"]
    assert [line for line in told if line[0] == "init"] == [["init", run_id, run_id, "run"]] * 2
    assert [line[1:] for line in told if line[0] == "log"] == [
        [0, {"eval/loss": 3.0}],
        *([step, {"train/loss": 3.0 / step}] for step in (1, 2, 3, 4)),
    ]
    scores = {"before/accuracy": 0.25, "final/accuracy": 0.75, "result/loss_last": 0.5, "result/tokens": 9.0}
    assert [line[1] for line in told if line[0] == "scores"] == [{}, scores]
    assert [line[1] for line in told if line[0] == "finish"] == [0, 0]
    links = [event["url"] for event in fed.events() if event["event"] == "tracker"]
    assert links == ["https://***@wandb.example/run"] * 2


def test_what_a_tracker_raises_is_reported_once_without_secrets_and_tried_again(tmp_path: Path) -> None:
    failing = RECORDING.replace(
        "def init(**told):",
        "def init(**told):\n    if not os.path.exists('ready'):\n"
        "        raise RuntimeError('no login with ' + os.environ['WANDB_API_KEY'])",
    )
    fed = Fed(tmp_path, "wandb", failing, WANDB_API_KEY="k3y-of-the-user")
    fed.start()
    fed.line(step=1, loss=1.0)
    wait_for(lambda: fed.events())
    time.sleep(0.6)
    assert [event["text"] for event in fed.events()] == [
        "wandb: RuntimeError: no login with ***; the run goes on without it"
    ]
    (tmp_path / "ready").touch()
    wait_for(lambda: len(fed.told()) == 2)
    assert fed.finish("SUCCEEDED") == 0
    assert [event["event"] for event in fed.events()] == ["warning", "tracker", "note"]


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (
            "raise ImportError('no module named wandb')",
            "no module named wandb; install it: pip install 'zlaunch[wandb]'",
        ),
        ("raise SystemExit(9)", "SystemExit: 9"),
        ("import no_such_thing_at_all", "install it"),
        (RECORDING.replace("def finish(self, exit_code):", "def finish(self):"), "TypeError"),
    ],
    ids=["missing", "exits", "broken", "another interface"],
)
def test_a_tracker_that_cannot_work_is_reported_with_its_reason(tmp_path: Path, package: str, reason: str) -> None:
    fed = Fed(tmp_path, "wandb", package)
    fed.start()
    assert fed.finish("SUCCEEDED") == 3
    (event,) = [event for event in fed.events() if event["event"] == "warning"]
    assert reason in event["text"]


@pytest.mark.parametrize("where", ["def init(**told):", "def log(self, values, step):", "def finish(self, exit_code):"])
def test_a_tracker_that_hangs_ends_in_bounded_time(tmp_path: Path, where: str) -> None:
    indent = "        " if "self" in where else "    "
    fed = Fed(tmp_path, "wandb", RECORDING.replace(where, f"{where}\n{indent}import time; time.sleep(600)"))
    fed.start()
    fed.line(step=1, loss=1.0)
    if "finish" not in where:
        wait_for(lambda: [event for event in fed.events() if "no answer for 0.5 s" in event.get("text", "")])
    begun = time.monotonic()
    assert fed.finish("STOPPED") == 3
    assert time.monotonic() - begun < 10
    assert "did not end within 1 s after the run" in fed.events()[-1]["text"]


def test_a_crash_of_a_tracker_is_an_event_and_the_run_succeeds(tmp_path: Path) -> None:
    crash = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/wandb.py").write_text(crash)
    env = {"PYTHONPATH": f"{tmp_path / 'packages'}:{ROOT}"}
    with bed(tmp_path) as make:
        run = make([sys.executable, "-S", "-c", "import time; time.sleep(1)"], trackers=["wandb"], env=env)
        assert run.go() == 0
        assert run.record()["state"] == "SUCCEEDED"
        texts = [event["text"] for event in run.events("warning")]
        assert len(texts) == 1
        assert texts[0].startswith("wandb: its process was ended by signal 11")
        assert run.left() == []


def test_a_run_on_a_node_ends_its_trackers_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/wandb.py").write_text(RECORDING)
    env = {"PYTHONPATH": f"{tmp_path / 'packages'}:{ROOT}", "TOLD": str(tmp_path / "told")}
    program = "open('metrics.jsonl', 'w').write('{\"step\": 1, \"loss\": 2}\\n')"
    with bed(tmp_path) as make:
        run = make([sys.executable, "-S", "-c", program], trackers=["wandb", "tensorboard"], env=env)
        for name in ("plan.json", "train.json"):
            content = json.loads((ROOT / "tests/golden/run/local-zero2" / name).read_text())
            run.write(run.path, name, {**content, **({"launch": run.launch} if name == "plan.json" else {})})
        assert run.go() == 0
        told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
        assert [line[0] for line in told] == ["init", "log", "scores", "finish"]
        assert list((run.path / "tensorboard").iterdir())
        assert run.events("warning") == []
        assert run.left() == []


def test_tensorboard_reads_the_points_settings_and_scores(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    service = services.TensorBoard()
    service.open(services.About("r", "n", tmp_path, {"train": {"epochs": 2}}))
    service.log([points.Point(step, 5.0, {"train/loss": 1.0 / step}) for step in (1, 2)])
    service.close("SUCCEEDED", 2, {"final/accuracy": 0.5})
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value, event.wall_time) for event in found.Scalars("train/loss")] == [
        (1, 1, 5),
        (2, 0.5, 5),
    ]
    assert [event.value for event in found.Scalars("final/accuracy")] == [0.5]
    assert b"|train.epochs|2|" in found.Tensors("settings")[0].tensor_proto.string_val[0]


def real(tmp_path: Path, tracker: str, **environ: str) -> Fed:
    pytest.importorskip(
        tracker, reason=f"{tracker} is not part of the test environment: pip install 'zlaunch[{tracker}]'"
    )
    fed = Fed(tmp_path, tracker, **environ)
    for state, steps in (("STOPPED", (1, 2)), ("SUCCEEDED", (2, 3))):
        fed.start()
        for step in steps:
            fed.line(step=step, loss=1.0 / step)
        wait_for(lambda last=steps[-1]: f'"train": {last}' in _text(tmp_path / f"trackers/{tracker}.json"), 60)
        fed.result()
        assert fed.finish(state) == 0
    assert [event for event in fed.events() if event["event"] == "warning"] == []
    return fed


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def test_mlflow_has_one_run_with_the_points_of_both_starts(tmp_path: Path) -> None:
    place = (tmp_path / "mlflow").as_uri()
    real(tmp_path, "mlflow", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=place)
    experiment = client.get_experiment_by_name("zlaunch")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert (run.info.status, run.data.metrics["final/accuracy"]) == ("FINISHED", 0.75)
    assert run.data.params["train.learning_rate"]


def serving(command: list[str], place: Path, url: str, **environ: str) -> subprocess.Popen[bytes]:
    """A tracker's own server on loopback, once it answers."""
    with (place / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=place, env={**os.environ, **environ}, stdout=log, stderr=log, start_new_session=True
        )

    def answers() -> bool:
        assert server.poll() is None, (place / "server.log").read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except OSError:
            return False

    wait_for(answers, 90)
    return server


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def test_the_server_of_tensorboard_shows_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    real(tmp_path, "tensorboard")
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "tensorboard"), "--port", str(port)]
    server = serving(command, tmp_path, f"{url}/data/environment")
    try:
        wait_for(lambda: ask(f"{url}/data/plugin/scalars/tags") != {}, 60)
        (run,) = ask(f"{url}/data/plugin/scalars/tags")
        points = ask(f"{url}/data/plugin/scalars/scalars?run={run}&tag=train%2Floss")
        assert [(step, round(value, 3)) for _, step, value in points] == [(1, 1.0), (2, 0.5), (3, 0.333)]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_server_of_mlflow_gets_one_run_with_the_points_of_both_starts(tmp_path: Path) -> None:
    """The whole package: `mlflow-skinny`, which a training needs, has no server."""
    pytest.importorskip("mlflow.server", reason="needs the server: pip install mlflow")
    url = f"http://127.0.0.1:{(port := free_port())}"
    place = tmp_path / "server"
    place.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{place}/mlflow.db", "--default-artifact-root", str(place / "files")]
    server = serving(command, place, f"{url}/health", MLFLOW_DISABLE_TELEMETRY="true")
    try:
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        fed = real(tmp_path, "mlflow", MLFLOW_TRACKING_URI=url, MLFLOW_EXPERIMENT_NAME="mine", **quiet)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=url)
        experiment = client.get_experiment_by_name("mine")
        (run,) = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
        assert (run.info.status, run.data.metrics["final/accuracy"]) == ("FINISHED", 0.75)
        links = {event["url"] for event in fed.events() if event["event"] == "tracker"}
        assert links == {f"{url}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"}
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_wandb_keeps_an_offline_run_in_the_run_directory(tmp_path: Path) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    real(tmp_path, "wandb", WANDB_MODE="offline", WANDB_API_KEY=key)
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert all(b"train/loss" in file.read_bytes() for file in files)
    assert b"final/accuracy" in files[-1].read_bytes()
    assert [file for file in tmp_path.rglob("*") if file.is_file() and key.encode() in file.read_bytes()] == []


def test_swanlab_keeps_an_offline_run_in_the_run_directory(tmp_path: Path) -> None:
    real(tmp_path, "swanlab", SWANLAB_MODE="offline")
    assert len(list(tmp_path.glob("swanlab/run-*/*.swanlab"))) == 2


def test_trackio_keeps_its_run(tmp_path: Path) -> None:
    real(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    assert list((tmp_path / "trackio").glob("*.db"))
