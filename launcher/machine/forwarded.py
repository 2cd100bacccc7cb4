"""Variables that other machines need as well: this shell's about the network, and DeepSpeed's environment files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import UsageError

PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "UCX_", "FI_", "RDMAV_")
"""Settings of NCCL, Gloo, UCX, libfabric and verbs: without them ranks elsewhere would not meet, or meet slowly."""
FILE = ".deepspeed_env"
_SECRET = r"(?i)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY)"  # noqa: S105 - a pattern for names


def forwarded(environ: Mapping[str, str], *, shell: bool = True) -> dict[str, tuple[str, str]]:
    """Return {name: (value, where it comes from)}; the file of the working directory wins, then that of the home.

    `shell`: take variables of this shell as well. Raises UsageError for a line of a file that cannot be read.
    """
    found = {name: (value, "this shell") for name, value in environ.items() if shell and name.startswith(PREFIXES)}
    for file in environment_files(environ):
        for name, value in read_environment(file).items():
            found[name] = (value, str(file))
    return dict(sorted(found.items()))


def environment_files(environ: Mapping[str, str]) -> list[Path]:
    """Where DeepSpeed's launcher looks: DS_ENV_FILE is another name, or the path of the only file."""
    name = environ.get("DS_ENV_FILE") or FILE
    if name != FILE and Path(name).is_file():
        return [Path(name)]
    home = Path.home() / name
    here = Path(name)
    same = here.exists() and home.exists() and here.resolve() == home.resolve()
    return [path for path in ([home] if same else [home, here]) if path.is_file()]


def read_environment(file: Path) -> dict[str, str]:
    """Return {name: value} of lines NAME=VALUE. Raises UsageError with file and line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file}: cannot be read: {error}", hint="one NAME=VALUE per line", code="ZL-FILE-02"
        ) from error
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.strip().removeprefix("export ").strip()
        if not words or words.startswith("#"):
            continue
        name, equals, value = words.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError(
                f"{file}: line {number}: expected NAME=VALUE, got {line!r}",
                hint="comments begin with #",
                code="ZL-JOB-08",
            )
        if re.search(_SECRET, name):
            raise UsageError(
                f"{file}: line {number}: {name} looks like a secret, and the plan of a run is no place for one",
                hint=f"remove the line, export {name}, and add `secrets: [{name}]` to the job",
                code="ZL-JOB-04",
            )
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        found[name] = value[1:-1] if quoted else value
    return found
