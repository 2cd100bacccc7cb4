"""The memory plan beside the form: what `zlaunch plan` computes, for this machine's GPUs or for one that is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from launcher.errors import ZlaunchError
from launcher.job.spec import JobSpec
from launcher.lifecycle import forecast
from launcher.machine import facts
from launcher.machine.language.bilingual import both

FRESH_SECONDS = 60.0
"""How long the GPUs of this machine count as known; nvidia-smi may take seconds to list them."""
_known: dict[tuple[tuple[str, str], ...], tuple[float, facts.Gpus]] = {}
_lock = threading.Lock()


def own_gpus(env: Mapping[str, str]) -> facts.Gpus:
    """The GPUs that a run here with these variables would see, looked up at most once in a while."""
    key = tuple(sorted((name, value) for name, value in env.items() if name.startswith("CUDA")))
    with _lock:
        when, found = _known.get(key, (0.0, None))
        if found is None or time.monotonic() - when > FRESH_SECONDS:
            found = facts.find_gpus(env)
            _known[key] = time.monotonic(), found
        return found


def plan_of(wanted: JobSpec, backend: str, gpu: str) -> dict[str, Any]:
    """The plan as the page shows it.

    {"kind": "plan", ...forecast.report}, {"kind": "cpu"} for a run without a GPU, {"kind": "tiny"} for a random model,
    {"kind": "none"} as long as there is no model, {"kind": "error", "message", "hint"} for what cannot be planned.
    Texts for people are [English, Chinese]. `gpu`: a name or a size; empty: the GPUs that the run would find.
    """
    if wanted.model.source == "random":
        return {"kind": "tiny"}
    if not wanted.model.path:
        return {"kind": "none"}
    try:
        place = forecast.situation_for(wanted, backend, gpu or None, own_gpus)
        if place is None:
            return {"kind": "cpu"}
        there, assumed = place
        planned = forecast.forecast(wanted, there, assumed=assumed, with_work=False)
    except ZlaunchError as error:
        return {"kind": "error", "message": both(str(error)), "hint": both(error.hint or "")}
    found = forecast.report(planned)
    for item in found.get("settings", {}).values():
        item["reason"] = both(item["reason"])
    for change in found.get("changes", ()):
        change["change"] = both(change["change"])
    return {"kind": "plan", **found}
