"""Ask a machine for the far end's facts by one command: this machine, or the nodes that srun reaches."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher import node
from launcher.errors import TargetError
from launcher.remote.host_answers import AnswerError, decode_report

MARK = "zlaunch-report "
"""Begins the line of the answer: setup lines and site prologs may print others."""
_MODULES = (
    *("node", "node.files", "node.processes", "node.write_errors", "node.census"),
    *("node.farend", "node.farend.common", "node.farend.host"),
)
_START = """
import json, sys, types
def load(modules):
    for name, text in modules:
        module = sys.modules[name] = types.ModuleType(name)
        module.__package__ = name if name in ("node", "node.farend") else name.rpartition(".")[0]
        exec(compile(text, name, "exec"), module.__dict__)
sys.path[:] = [folder for folder in sys.path if folder]
load(%r)
facts = sys.modules["node.farend.host"].report(**json.loads(%r))
facts["node"] = sys.modules["os"].environ.get("SLURMD_NODENAME") or facts["host"]
print("\\n" + %r + json.dumps(facts), flush=True)
"""


def command(
    python: str, packages: Sequence[str], *, gpus: bool, paths: Sequence[str], env: Mapping[str, str]
) -> list[str]:
    """Return the command that prints the facts. It is one line without quotes that a shell could take for its own."""
    root = Path(node.__file__).parent
    files = [root.joinpath(*name.split(".")[1:]) for name in _MODULES]
    texts = [(file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text("utf-8") for file in files]
    asked = json.dumps({"packages": list(packages), "gpus": gpus, "paths": list(paths), "env": dict(env)})
    program = _START % (list(zip(_MODULES, texts, strict=True)), asked, MARK)
    packed = base64.b64encode(zlib.compress(program.encode(), 9)).decode()
    return [python, "-S", "-c", f'import base64,zlib;exec(zlib.decompress(base64.b64decode("{packed}")))']


def parse(output: str) -> list[dict[str, Any]]:
    """Return the facts of each machine that answered. Raises TargetError for one that answers something else."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    try:
        return [decode_report(line.removeprefix(MARK)) for line in lines]
    except AnswerError as error:
        raise TargetError(f"a machine reports what is no report: {error}", code="ZL-SSH-06") from error
