"""The GPUs that a program started here would see: the driver's list, narrowed by CUDA_VISIBLE_DEVICES.

The same code counts them on this machine, on an SSH host (the far end) and on a node of a Slurm job (the agent).
A probe that fails is an error with the driver's own words, never "no GPU".
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False  # importing typing costs every host milliseconds
if TYPE_CHECKING:
    from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

    Json = Dict[str, Any]

SECONDS = 30.0
"""For one answer of nvidia-smi. A machine with eight GPUs and no persistence mode needs half of it."""
FOLDERS = (
    "/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/lib/wsl/lib", "/usr/local/nvidia/bin", "/opt/bin",
    "/opt/*/bin", "/usr/lib/nvidia*/bin", "/run/current-system/sw/bin", "/run/nvidia/driver/usr/bin",
)  # fmt: skip
"""Where nvidia-smi lies if not on the PATH, which a non-interactive login often has short."""
SIGNS = ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/proc/driver/nvidia/version")
"""What is there only where a driver is, or was meant to be."""
COLUMNS = ("index", "uuid", "name", "memory.total", "compute_cap", "driver_version", "mig.mode.current")
"""Questions to nvidia-smi. Old drivers do not know the last ones."""
UNREPORTED = ("", "[n/a]", "n/a", "[not supported]", "[insufficient permissions]")
"""Answers of a driver that works but does not report this: memory of a GPU that shares the system's (Grace, Jetson)."""
CORRUPTED_INFOROM = 14
"""Exit status of nvidia-smi where all GPUs answer, and one has a damaged information ROM."""
TROUBLE = r"(?i)unable|fail|error|lost|no devices|not found|reset"
HIDDEN = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide all GPUs on purpose; the last is Slurm's."""


class ProbeError(Exception):
    """Nobody knows which GPUs there are; the text says why, in the driver's own words where it has some."""


def census(environ: Mapping[str, str], seconds: float = SECONDS) -> Json:
    """{"gpus", "driver", "visible", "error", "notes"}.

    `gpus` has one object per visible GPU, in CUDA's order: `index` (the driver's), `entry` (what stands for it in
    CUDA_VISIBLE_DEVICES), `name`, `memory_bytes` (0: not reported) and `compute_capability` (None: not reported).
    `visible` is CUDA_VISIBLE_DEVICES, or None. `error` is empty unless the probe failed. `notes` are for people.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    found: Json = {"gpus": [], "driver": "", "visible": visible, "error": "", "notes": []}
    if visible is not None and visible.strip() in HIDDEN:
        found["notes"].append("CUDA_VISIBLE_DEVICES=%s hides all GPUs" % visible.strip())
        return found
    try:
        tool = find_tool(environ)
        if tool is None:
            refuse_signs()
            return found
        found.update(look(tool, visible, seconds))
    except ProbeError as error:
        found["error"] = str(error)
    return found


def shortage(environ: Mapping[str, str], ranks: int) -> str:
    """Why `ranks` ranks cannot have a GPU each here; empty: they can, or there is no nvidia-smi to ask."""
    if find_tool(environ) is None:  # a container may have the driver's libraries without its tools
        return ""
    found = census(environ)
    count = len(found["gpus"])
    if found["error"] or count >= ranks:
        return str(found["error"])
    told = ["CUDA_VISIBLE_DEVICES=%s" % found["visible"]] if found["visible"] is not None else []
    return "%d ranks, but %d GPUs visible (%s)" % (ranks, count, "; ".join(told + found["notes"]) or "nvidia-smi")


def find_tool(environ: Mapping[str, str]) -> Optional[str]:
    """The path of nvidia-smi; None: it is neither on the PATH nor where drivers put it."""
    folders = [*filter(None, os.get_exec_path(environ)), *existing(FOLDERS)]
    paths = [os.path.join(folder, "nvidia-smi") for folder in folders]
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def refuse_signs() -> None:
    """Raise ProbeError if this machine seems to have a GPU, which without nvidia-smi nobody can count."""
    signs = existing(SIGNS)
    if signs:
        raise ProbeError("there is %s, but no nvidia-smi to ask" % signs[0])


def existing(patterns: Sequence[str]) -> List[str]:
    import glob

    return [path for pattern in patterns for path in sorted(glob.glob(pattern))]


def look(tool: str, visible: Optional[str], seconds: float) -> Json:
    """The fields `gpus`, `driver` and `notes` of a census, from nvidia-smi. Raises ProbeError."""
    rows, notes = rows_of(tool, seconds)
    gpus = [gpu_of(row) for row in rows]
    if any(gpu["mig"] for gpu in gpus) or (visible or "").strip().startswith("MIG-"):
        slices = parse_list(ask(tool, ["-L"], seconds)[1])
        gpus = [part for gpu in gpus for part in (with_slices(gpu, slices) if gpu["mig"] or slices else [gpu])]
    if not gpus:
        raise ProbeError("MIG is on, and no GPU has a slice: make one with `nvidia-smi mig`, or switch MIG off")
    named, cut = narrow(gpus, visible)
    if not named:
        raise ProbeError("CUDA_VISIBLE_DEVICES=%s leaves none of the %d GPUs: %s" % (visible, len(rows), cut))
    seen, told = as_one_process_sees(named, gpus)
    notes += told
    if cut:
        notes.append("CUDA_VISIBLE_DEVICES=%s: %s" % (visible, cut))
    unreported = sorted({gpu["name"] for gpu in seen if not gpu["memory_bytes"]})
    notes += ["the driver does not report how much memory %s has" % name for name in unreported]
    driver = next((row["driver_version"] for row in rows if row.get("driver_version")), "")
    return {"gpus": seen, "driver": driver, "notes": notes}


def rows_of(tool: str, seconds: float) -> Tuple[List[Dict[str, str]], List[str]]:
    """(one row of COLUMNS per GPU, warnings that nvidia-smi printed). Raises ProbeError."""
    columns = list(COLUMNS)
    while True:
        query = ["--query-gpu=" + ",".join(columns), "--format=csv,noheader,nounits"]
        code, output, complaint = ask(tool, query, seconds)
        unknown = re.findall(r'Field "([^"]+)" is not a valid field', output + complaint)
        if not set(unknown) & set(columns[1:]):
            break
        columns = [column for column in columns if column not in unknown]
    rows, others = [], []
    for line in filter(str.strip, output.splitlines()):
        fields = [field.strip() for field in line.split(",")]
        if len(fields) >= min(5, len(columns)) and fields[0].isdigit():
            rows.append(dict(zip(columns, fields)))
        else:
            others.append(line.strip())
    words = "; ".join((others or [line.strip() for line in complaint.splitlines() if line.strip()])[-3:])
    if code not in (0, CORRUPTED_INFOROM) or not rows or any(re.search(TROUBLE, line) for line in others):
        raise ProbeError("%s: %s" % (tool, words or "it lists no GPU (exit status %d)" % code))
    return rows, others


def ask(tool: str, arguments: Sequence[str], seconds: float) -> Tuple[int, str, str]:
    """(exit status, standard output, standard error) of nvidia-smi. Raises ProbeError."""
    import subprocess

    try:
        process = subprocess.Popen(
            [tool, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ProbeError("%s: %s" % (tool, error.strerror)) from error
    try:
        output, complaint = process.communicate(timeout=seconds)
    except BaseException as error:
        try:
            os.killpg(process.pid, 9)
        except OSError:
            pass
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        # Nobody waits for the process: one that hangs in the driver cannot be killed.
        text = "%s does not answer within %g s: the driver hangs, or a GPU (look for NVRM in dmesg)"
        raise ProbeError(text % (tool, seconds)) from None
    return process.returncode, output.decode("utf-8", "replace"), complaint.decode("utf-8", "replace")


def gpu_of(row: Mapping[str, str]) -> Json:
    """One GPU of a census. Raises ProbeError for a GPU that answers with an error."""
    for value in row.values():
        if value.startswith("[") and value.lower() not in UNREPORTED:
            raise ProbeError("GPU %s (%s): %s" % (row["index"], row["name"], value.strip("[]")))
    memory, capability = row.get("memory.total", ""), row.get("compute_cap", "")
    return {
        "index": int(row["index"]),
        "uuid": row["uuid"],
        "card": row["uuid"],
        "entry": row["index"],
        "name": row["name"],
        "memory_bytes": round(float(memory) * 2**20) if is_number(memory) else 0,
        "compute_capability": float(capability) if is_number(capability) else None,
        "mig": row.get("mig.mode.current") == "Enabled",
    }


def is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None


def parse_list(text: str) -> List[Tuple[int, str, str]]:
    """(index of the GPU, name, UUID) of the MIG slices in the output of `nvidia-smi -L`."""
    slices, index = [], 0
    for line in text.splitlines():
        gpu = re.match(r"GPU (\d+):", line)
        part = re.match(r"\s+(MIG \S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)", line)
        if gpu:
            index = int(gpu[1])
        elif part:
            slices.append((index, part[1], part[2]))
    return slices


def with_slices(gpu: Json, slices: Sequence[Tuple[int, str, str]]) -> List[Json]:
    """The MIG slices of a GPU, or the GPU itself if it has none and MIG is off."""
    parts = [(name, uuid) for index, name, uuid in slices if index == gpu["index"]]
    if not parts and not gpu["mig"]:
        return [gpu]
    found = []
    for name, uuid in parts:
        size = re.search(r"\.(\d+)gb", name)
        # The driver rounds the size up: `3g.20gb` has 19.5 GiB, which is a little more than 20e9 bytes.
        memory = int(size[1]) * 10**9 if size else 0
        title = "%s %s" % (gpu["name"], name)
        found.append(dict(gpu, uuid=uuid, entry=uuid, name=title, memory_bytes=memory, mig=True))
    return found


def narrow(gpus: Sequence[Json], visible: Optional[str]) -> Tuple[List[Json], str]:
    """(the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; why it names fewer than it seems to, or nothing)."""
    if visible is None:
        return list(gpus), ""
    wanted, cut = parse_visible(visible)
    found: List[Json] = []
    for item in wanted:
        key = "index" if isinstance(item, int) else "card" if item.startswith("GPU-") else "uuid"
        named = [gpu for gpu in gpus if gpu[key] == item or (key != "index" and gpu[key].startswith(item))]
        if len({gpu[key] for gpu in named}) != 1:
            many = "more than one GPU" if named else "no GPU"
            return found, "%s stands for %s here, and CUDA ignores it and what follows" % (item, many)
        if any(gpu["uuid"] == named[0]["uuid"] for gpu in found):
            return [], "%s comes twice, and then CUDA shows no GPU" % item
        found += [gpu if gpu["mig"] else dict(gpu, entry=str(item)) for gpu in named]
    return found, cut


def parse_visible(visible: str) -> Tuple[List[Union[int, str]], str]:
    """(indices or UUIDs in CUDA_VISIBLE_DEVICES, why the list was cut).

    As CUDA and torch.cuda read it: the first entry decides between numbers and UUIDs, which may be abbreviated, and the
    list ends before the first entry of another kind. An entry that comes twice leaves no GPU at all.
    """
    kind = re.match(r"GPU-|MIG-", visible)
    wanted: List[Union[int, str]] = []
    for text in visible.split(","):
        number = re.match(r"\+?\d+", text.strip())  # strtoul: `1st` is 1
        if not (text.startswith(kind[0]) if kind else number):
            on_purpose = text.strip().startswith("-") or not text.strip()
            return wanted, "" if on_purpose and wanted else "%r is not a GPU, and CUDA ignores what follows" % text
        value = text if kind or number is None else int(number[0])
        if value in wanted:
            return [], "%s comes twice, and then CUDA shows no GPU" % text
        wanted.append(value)
    return wanted, ""


def as_one_process_sees(seen: Sequence[Json], gpus: Sequence[Json]) -> Tuple[List[Json], List[str]]:
    """(the GPUs that one process can use, notes): of MIG slices CUDA shows one, and then no whole GPU."""
    slices = [gpu for gpu in seen if gpu["mig"]]
    if not slices:
        return list(seen), []
    note = "MIG: a process sees one slice and no whole GPU, so there is one rank, on %s" % slices[0]["name"]
    whole = [gpu["entry"] for gpu in gpus if not gpu["mig"]]
    if whole:
        note += "; CUDA_VISIBLE_DEVICES=%s uses the whole GPUs instead" % ",".join(whole)
    return slices[:1], [note]
