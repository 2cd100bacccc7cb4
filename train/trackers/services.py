"""The trackers: each starts or continues its run, takes points, and ends. All of them may raise, hang and crash."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.trackers.points import Point, flat

PROJECT = "zlaunch"
"""Where the tracker's own variable names none."""


@dataclass(frozen=True)
class About:
    """What a tracker needs to know of a run to show it."""

    run_id: str
    name: str
    """Of the job; the runs of a resumed or repeated job share it."""
    run_dir: Path
    settings: dict[str, Any]

    def key(self, length: int) -> str:
        """Letters and digits that only this run has, for trackers whose ids are restricted."""
        return hashlib.sha256(self.run_id.encode()).hexdigest()[:length]


class Service(ABC):
    """A tracker's run. `url`: where people see it; None: nowhere, or only after an upload."""

    url: str | None = None

    @abstractmethod
    def open(self, about: About) -> None:
        """Start the run, or continue that of an earlier start."""

    @abstractmethod
    def log(self, points: Sequence[Point]) -> None:
        """Take points, in the order of their steps."""

    @abstractmethod
    def close(self, state: str, step: int, scores: Mapping[str, float]) -> None:
        """Take the scores and send everything. `state`: SUCCEEDED, FAILED, STOPPED or CANCELLED; `step`: the last."""


class TensorBoard(Service):
    """Event files in `tensorboard/` of the run directory; needs no torch."""

    def open(self, about: About) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text import metadata
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.summary = Summary
        self.writer = EventFileWriter(str(about.run_dir / "tensorboard"))
        rows = (f"|{key}|{str(value).replace('|', '/')}|" for key, value in flat(about.settings).items())
        table = "\n".join(["|setting|value|", "|-|-|", *rows])
        text = Summary.Value(
            tag="settings",
            tensor=TensorProto(dtype=DT_STRING, string_val=[table.encode()]),
            metadata=metadata.create_summary_metadata("settings", ""),
        )
        self._add(Summary(value=[text]), 0, 0.0)

    def _add(self, summary: Any, step: int, moment: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=moment or None, step=step, summary=summary))

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            values = [self.summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._add(self.summary(value=values), point.step, point.time)
        self.writer.flush()

    def close(self, state: str, step: int, scores: Mapping[str, float]) -> None:
        if scores:
            self._add(
                self.summary(value=[self.summary.Value(tag=n, simple_value=v) for n, v in scores.items()]), step, 0
            )
        self.writer.close()


class Wandb(Service):
    def open(self, about: About) -> None:
        import wandb

        os.environ.setdefault("WANDB_DIR", str(about.run_dir))
        os.environ.setdefault("WANDB_SILENT", "true")
        plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", about.run_id)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=about.run_id,
            group=os.environ.get("WANDB_RUN_GROUP") or about.name,
            id=about.run_id if plain else about.key(32),
            resume="allow",
            config=about.settings,
            allow_val_change=True,
            save_code=False,
            settings=wandb.Settings(console="off", disable_git=True),
        )
        self.run.config.update(about.settings, allow_val_change=True)  # those of this start
        self.url = self.run.url

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self.run.log(point.values, step=point.step)

    def close(self, state: str, step: int, scores: Mapping[str, float]) -> None:
        self.run.summary.update(dict(scores))
        self.run.finish(exit_code=0 if state in ("SUCCEEDED", "STOPPED") else 1)


class SwanLab(Service):
    def open(self, about: About) -> None:
        import swanlab

        folder = os.environ.get("SWANLAB_LOG_DIR") or os.environ.get("SWANLAB_LOGDIR") or str(about.run_dir / "swanlab")
        named = (
            {"id": about.key(21), "resume": "allow"}
            if os.environ.get("SWANLAB_MODE") in (None, "", "cloud", "online")
            else {}
        )
        self.swanlab = swanlab
        self.run = swanlab.init(
            project=os.environ.get("SWANLAB_PROJECT") or os.environ.get("SWANLAB_PROJ_NAME") or PROJECT,
            workspace=os.environ.get("SWANLAB_WORKSPACE"),
            name=about.run_id,
            group=about.name,
            config=about.settings,
            log_dir=folder,
            mode=os.environ.get("SWANLAB_MODE") or None,
            reinit=True,
            **named,
        )
        self.url = self.run.url if self.run.mode == "online" else None

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self.run.log(point.values, step=point.step)

    def close(self, state: str, step: int, scores: Mapping[str, float]) -> None:
        if scores:
            self.run.log(dict(scores), step=step)
        ends = {"SUCCEEDED": "success", "FAILED": "crashed"}
        self.swanlab.finish(ends.get(state, "aborted"), **({"error": "the run failed"} if state == "FAILED" else {}))


class MLflow(Service):
    """A server of MLFLOW_TRACKING_URI, else files in `mlflow/` of the run directory."""

    MOST_METRICS, MOST_PARAMS, LONGEST = 1000, 100, 500
    """Limits of MLflow's own interface, of its oldest version that is still in use."""

    def open(self, about: About) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.Metric = Metric
        place = os.environ.get("MLFLOW_TRACKING_URI") or (about.run_dir / "mlflow").as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self.client = MlflowClient(tracking_uri=place)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        tag = about.key(32)  # of the run id, which may hold a quote
        earlier = self.client.search_runs([experiment], filter_string=f"tags.`zlaunch.key` = '{tag}'", max_results=1)
        tags = {"zlaunch.key": tag, "zlaunch.run": about.run_id, "zlaunch.name": about.name}
        if earlier:
            self.run_id = earlier[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            self.run_id = self.client.create_run(experiment, run_name=about.run_id, tags=tags).info.run_id
            values = [Param(_key(key), str(value)[: self.LONGEST]) for key, value in flat(about.settings).items()]
            for start in range(0, len(values), self.MOST_PARAMS):
                self.client.log_batch(self.run_id, params=values[start : start + self.MOST_PARAMS])
        self.client.set_tag(self.run_id, "mlflow.note.content", json.dumps(about.settings, ensure_ascii=False)[:5000])
        if place.startswith("http"):
            self.url = f"{place.rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"

    def _send(self, found: Sequence[tuple[str, float, float, int]]) -> None:
        metrics = [self.Metric(_key(name), value, int(moment * 1000), step) for name, value, moment, step in found]
        for start in range(0, len(metrics), self.MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + self.MOST_METRICS])

    def log(self, points: Sequence[Point]) -> None:
        self._send([(name, value, p.time, p.step) for p in points for name, value in p.values.items()])

    def close(self, state: str, step: int, scores: Mapping[str, float]) -> None:
        self._send([(name, value, time.time(), step) for name, value in scores.items()])
        ends = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED"}
        self.client.set_terminated(self.run_id, ends.get(state, "KILLED"))


def _key(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)


class Trackio(Service):
    def open(self, about: About) -> None:
        import trackio

        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
            name=about.run_id,
            group=about.name,
            space_id=os.environ.get("TRACKIO_SPACE_ID") or None,
            config=flat(about.settings),
            resume="allow",
            embed=False,
        )
        self.trackio = trackio
        if space := os.environ.get("TRACKIO_SPACE_ID"):
            self.url = f"https://huggingface.co/spaces/{space}"
        elif server := os.environ.get("TRACKIO_SERVER_URL"):
            self.url = server.partition("?")[0]  # behind it stands the token that may write

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self.trackio.log(point.values, step=point.step)

    def close(self, state: str, step: int, scores: Mapping[str, float]) -> None:
        if scores:
            self.trackio.log(dict(scores), step=step)
        self.trackio.finish()


SERVICES: dict[str, type[Service]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "swanlab": SwanLab,
    "mlflow": MLflow,
    "trackio": Trackio,
}
