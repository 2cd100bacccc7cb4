"""The notice of an end that no agent saw: all processes of a Slurm step were killed, or none of them came up."""

from __future__ import annotations

import getopt
import json
import os
import sys

from .. import run_files
from ..agent.launch import DEFAULTS, Names
from ..files import read_json
from .notifier import Notifier, claim_end

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import List

    from ..files import Json


def main(argv: List[str]) -> int:
    given = dict(getopt.getopt(argv, "", ["run-dir=", "kind=", "reason="])[0])
    names = Names(os.path.abspath(given["--run-dir"]), 0)
    launch: Json = {**DEFAULTS, **(read_json(names.plan) or {})["launch"]}
    secrets = json.loads(sys.stdin.buffer.read().decode() or "{}")
    if not launch["notify"] or not claim_end(launch, names.root):
        return 0
    notifier = Notifier(launch, names, 0, secrets)
    record = read_json(names.record) or {}
    notifier.started = float(record.get("started") or notifier.started)
    cancelled = os.path.exists(os.path.join(names.control, run_files.CANCELLED))
    kind = "end" if cancelled else given["--kind"]
    failure = {"cause": None if cancelled else "killed", "message": given["--reason"]}
    notifier.send(notifier.about(kind, "FAILED" if kind == "failure" else "CANCELLED", failure, final=True))
    return 0
