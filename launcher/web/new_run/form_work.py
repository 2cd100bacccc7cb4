"""Steps and hours beside the form. Counting records reads whole files, so each state of the files is counted once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec

from launcher.errors import ZlaunchError
from launcher.job.spec import JobSpec
from launcher.lifecycle import forecast
from launcher.machine.language.bilingual import both
from launcher.web.new_run.gpu_plan import own_gpus

MOST_BYTES = 1 << 30
"""Of data files; to count more would hold up the page for long."""
KEPT = 16
_counted: dict[tuple[Any, ...], forecast.Counted] = {}
_lock = threading.Lock()


def work_of(wanted: JobSpec, backend: str, gpu: str) -> dict[str, Any]:
    """{"steps", "hours", "remark"} of a job; `hours` is null where the speed is not planned. Empty: not known.

    `gpu`: as for plan_of. `remark` is [English, Chinese] or null.
    """
    try:
        counted = _count(wanted)
        if counted is None:
            return {}
        place = None
        if wanted.model.path and wanted.model.source != "random":
            place = forecast.situation_for(wanted, backend, gpu or None, own_gpus)
        if place is None:
            ranks = wanted.local.procs or 1 if backend == "local" else forecast.ranks_of(wanted, backend)
            steps = counted.steps(wanted, ranks)
            return {"steps": steps, "hours": None, "remark": None} if steps else {}
        planned = forecast.forecast(wanted, place[0], assumed=place[1], counted=counted)
    except ZlaunchError:  # the plan beside it says why
        return {}
    if isinstance(planned, forecast.Refused) or planned.work is None:
        return {}
    remark = planned.work["remark"]
    return {"steps": planned.work["steps"], "hours": planned.work["hours"], "remark": both(remark) if remark else None}


def _count(wanted: JobSpec) -> forecast.Counted | None:
    """None: the files are not here, or too large."""
    stats = []
    for source in wanted.data.train_sources:
        try:
            found = Path(source.path).expanduser().stat()
        except OSError:
            return forecast.Counted(0, 0.0, None)
        stats.append((found.st_mtime_ns, found.st_size))
    if sum(size for _, size in stats) > MOST_BYTES:
        return None
    key = (msgspec.json.encode(wanted.data), wanted.model.path, *stats)
    with _lock:  # a form that is typed into asks again and again
        if key not in _counted:
            while len(_counted) >= KEPT:
                del _counted[next(iter(_counted))]
            _counted[key] = forecast.count(wanted)
        return _counted[key]
