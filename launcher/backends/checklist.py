"""What `zlaunch doctor` shows: a row per place, a cell per check, with advice where something blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from launcher.backends.ssh.requirements import found_on, needed_packages
from launcher.job.spec import JobSpec
from launcher.machine import cuda_wheel
from launcher.machine.facts import Gpus

Level = Literal["ok", "warn", "bad"]
LITTLE_MEMORY = 2 << 30


@dataclass(frozen=True)
class Cell:
    text: str
    level: Level = "ok"
    advice: str = ""


@dataclass
class Row:
    host: str
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def blocks(self) -> bool:
        return any(cell.level == "bad" for cell in self.cells.values())


def machine_cells(job: JobSpec, found: Mapping[str, Any], ranks: int | None, in_image: bool) -> dict[str, Cell]:
    """Return the checks of one machine's facts. `ranks`: GPUs that the run needs there, if it says so."""
    gpus = found_on(found)
    needed = job.device == "cuda" or bool(ranks)
    return {
        "python": Cell(f"{'.'.join(map(str, found['version']))} ({found['python']})"),
        "environment": environment_cell(job, found, in_image, gpus),
        "gpus": Cell("not asked: --device cpu") if job.device == "cpu" else gpu_cell(gpus, ranks, needed),
        "driver": driver_cell(gpus, found["packages"], in_image),
        "memory": memory_cell(found["memory_bytes"]),
        "model": _model(job, found),
    }


def _model(job: JobSpec, found: Mapping[str, Any]) -> Cell:
    if found["missing"]:
        return Cell("missing", "bad", f"no {', '.join(found['missing'])}: copy the model, or name a hub id")
    return Cell("there" if job.model.path.startswith(("/", "~", ".")) else "hub" if job.model.path else "-")


def gpu_cell(found: Gpus, wanted: int | None, needed: bool) -> Cell:
    """The GPUs of a place. `wanted`: ranks that need one each; `needed`: the run cannot do without."""
    if found.error:
        return Cell("?", "bad", f"{found.error}: mend the driver, or use --device cpu")
    names = list(dict.fromkeys(gpu.name for gpu in found.seen))
    text = f"{len(found.seen)} ({', '.join(names)})" if found.seen else "none"
    notes = "; ".join(found.notes)
    if needed and len(found.seen) < (wanted or 1):
        return Cell(
            text, "bad", f"{wanted or 1} needed: ask for fewer, or use --device cpu{f' ({notes})' if notes else ''}"
        )
    return Cell(text, "warn", notes) if notes else Cell(text)


def environment_cell(job: JobSpec, found: Mapping[str, Any], in_image: bool, gpus: Gpus) -> Cell:
    """The training environment of a machine: torch, and what else a training needs."""
    packages = found["packages"]
    if in_image or job.program:
        return Cell("in the image" if in_image else "the program's own")
    absent = [package for package in needed_packages(job) if package not in packages]
    text = f"torch {packages['torch']}" if "torch" in packages else "no torch"
    if absent:
        advice = f"{', '.join(absent)} not installed for {found['python']}: name the environment with --python"
        if "torch" in absent and gpus.seen:
            advice += f", or make one for driver {gpus.driver}: {cuda_wheel.remedy(gpus.driver, gpus.seen)}"
        return Cell(text, "bad", advice)
    wrong = cuda_wheel.cpu_build(packages, gpus.driver, gpus.seen) if gpus.seen else ""
    return Cell(text, "bad" if wrong else "ok", wrong)


def driver_cell(found: Gpus, packages: Mapping[str, str], in_image: bool) -> Cell:
    """The driver, against the CUDA of the environment and the cards."""
    if not found.seen:
        return Cell("-")
    cuda = cuda_wheel.cuda_of(packages)
    text = ", ".join(filter(None, (found.driver or "?", f"CUDA {cuda}" if cuda else "")))
    told = cuda_wheel.problems({} if in_image else packages, found.driver, found.seen, in_image=in_image)
    if not told:
        return Cell(text)
    # What is in an image nobody has looked at; those that zlaunch builds have the locked CUDA.
    return Cell(text, "bad" if cuda and not in_image else "warn", "; ".join(told))


def memory_cell(free: int | None) -> Cell:
    if free is None:
        return Cell("?")
    return Cell(size(free), "warn", "little memory is free") if free < LITTLE_MEMORY else Cell(size(free))


def size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def fit_columns(rows: Sequence[Row], columns: Sequence[str], width: int) -> list[list[str]]:
    """Split the columns into groups that fit a terminal of this width beside the hosts' names."""
    groups: list[list[str]] = []
    left = 0
    for column in columns:
        needed = 3 + max(len(column), *(len(row.cells[column].text) for row in rows if column in row.cells), 0)
        if not groups or needed > left:
            groups.append([])
            left = width - 4 - max(len(row.host) for row in rows)
        groups[-1].append(column)
        left -= needed
    return groups
