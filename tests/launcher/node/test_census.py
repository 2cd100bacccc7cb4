"""The census of GPUs with programs that answer as nvidia-smi does, well and badly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.node import census
from tests.beds.places import ROOT, python_of

A100 = "{i}, GPU-{u}, NVIDIA A100-SXM4-80GB, 81920, 8.0, 580.65, {mig}"
FOUR = [A100.format(i=i, u=u, mig="Disabled") for i, u in enumerate(("aa00", "ab11", "cc22", "dd33"))]
SLICES = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aa00)
  MIG 3g.40gb     Device  0: (UUID: MIG-11aa)
  MIG 1g.10gb     Device  1: (UUID: MIG-22bb)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-ab11)"""


def tool(folder: Path, rows: list[str], listed: str = "", code: int = 0, **variables: str) -> dict[str, str]:
    """Make an nvidia-smi and return an environment that finds it."""
    text = "\n".join(rows)
    script = (
        f"#!/bin/sh\ncase $1 in -L) cat <<'END'\n{listed}\nEND\n;; *) cat <<'END'\n{text}\nEND\nexit {code};; esac\n"
    )
    (folder / "nvidia-smi").write_text(script)
    (folder / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", **variables}


@pytest.fixture(autouse=True)
def no_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "FOLDERS", ())
    monkeypatch.setattr(census, "SIGNS", ())


def entries(found: dict[str, Any]) -> list[str]:
    assert found["error"] == ""
    return [gpu["entry"] for gpu in found["gpus"]]


def test_without_a_sign_of_a_gpu_there_is_none() -> None:
    found = census.census({"PATH": "/nowhere"})
    assert (found["gpus"], found["error"], found["notes"]) == ([], "", [])


def test_a_sign_without_a_tool_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(census, "SIGNS", (f"{tmp_path}/nvidia[0-9]*",))
    assert f"there is {tmp_path}/nvidia0, but no nvidia-smi" in census.census({"PATH": "/nowhere"})["error"]
    # What hides the GPUs on purpose hides the trouble as well.
    assert census.census({"PATH": "/nowhere", "CUDA_VISIBLE_DEVICES": ""})["error"] == ""


def test_the_tool_is_found_outside_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    tool(tmp_path / "lib", FOUR)
    monkeypatch.setattr(census, "FOLDERS", (f"{tmp_path}/l*b",))
    assert entries(census.census({"PATH": "/nowhere"})) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("2,3", ["2", "3"]), ("3,0", ["3", "0"]), ("0,", ["0"]), ("0,-1,1", ["0"]), ("1, 2", ["1", "2"]),
        ("1st,2nd", ["1", "2"]), ("0,7,1", ["0"]), ("GPU-cc,GPU-dd33", ["GPU-cc", "GPU-dd33"]),
        ("GPU-cc,0", ["GPU-cc"]), ("2,GPU-cc", ["2"]), ("GPU-cc,GPU-a", ["GPU-cc"]),
    ],
)  # fmt: skip
def test_gpus_are_those_that_cuda_would_see(tmp_path: Path, visible: str, expected: list[str]) -> None:
    assert entries(census.census(tool(tmp_path, FOUR, CUDA_VISIBLE_DEVICES=visible))) == expected


@pytest.mark.parametrize("visible", ["7", "7,1", ",1", "0,0", "GPU-zz", "GPU-a", "MIG-11", "none"])
def test_a_list_that_names_no_gpu_of_a_machine_with_gpus_is_an_error(tmp_path: Path, visible: str) -> None:
    found = census.census(tool(tmp_path, FOUR, CUDA_VISIBLE_DEVICES=visible))
    assert found["gpus"] == []
    assert f"CUDA_VISIBLE_DEVICES={visible} leaves none of the 4 GPUs: " in found["error"]


@pytest.mark.parametrize("visible", ["", "-1", " ", "NoDevFiles"])
def test_a_list_that_hides_all_gpus_does_so_even_before_a_broken_driver(tmp_path: Path, visible: str) -> None:
    found = census.census(tool(tmp_path, ["Failed to initialize NVML"], code=18, CUDA_VISIBLE_DEVICES=visible))
    assert (found["gpus"], found["error"]) == ([], "")
    assert "hides all GPUs" in found["notes"][0]


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.13"])
def test_every_python_that_hosts_may_have_counts_them(tmp_path: Path, version: str) -> None:
    code = "from node import census; import json; print(json.dumps(census.census(dict(PATH=%r))))"
    rows = [A100.format(i=0, u="aa00", mig="Enabled"), FOUR[1]]
    argv = [python_of(version), "-c", code % tool(tmp_path, rows, SLICES)["PATH"]]
    done = subprocess.run(argv, cwd=ROOT / "launcher", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert entries(json.loads(done.stdout)) == ["MIG-11aa"]


def test_a_cut_list_is_reported(tmp_path: Path) -> None:
    assert "7 stands for no GPU here" in census.census(tool(tmp_path, FOUR, CUDA_VISIBLE_DEVICES="0,7"))["notes"][0]
    assert census.census(tool(tmp_path, FOUR, CUDA_VISIBLE_DEVICES="0,-1"))["notes"] == []


def test_the_list_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    """Against torch's own reading of numbers and UUIDs, trimmed to the four GPUs as torch.cuda.device_count does."""
    pytest.importorskip("torch")
    lists = [
        f"{a}{b}{c}" for a in ("0", "3", "GPU-aa", "GPU-a", "9", "1x", "+1") for b in (",", ", ", ",,")
        for c in ("1", "2", "3 ", "GPU-ab", "GPU-aa00", "-1", "")
    ]  # fmt: skip
    code = (
        "import os, sys, torch.cuda as c\n"
        "uuids = ['GPU-aa00', 'GPU-ab11', 'GPU-cc22', 'GPU-dd33']\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    os.environ['CUDA_VISIBLE_DEVICES'] = line\n"
        "    found = c._parse_visible_devices()\n"
        "    if found and isinstance(found[0], str): found = c._transform_uuid_to_ordinals(found, uuids)\n"
        "    at = next((i for i, x in enumerate(found) if x > 3), len(found))\n"
        "    print(found[:at])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(lists), capture_output=True, text=True, check=True
    )
    gpus = [census.gpu_of(dict(zip(census.COLUMNS, row.split(", "), strict=True))) for row in FOUR]
    for text, theirs in zip(lists, done.stdout.splitlines(), strict=True):
        assert (text, str([gpu["index"] for gpu in census.narrow(gpus, text)[0]])) == (text, theirs)


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [
        (["Failed to initialize NVML: Driver/library version mismatch"], 18, "Driver/library version mismatch"),
        (["No devices were found"], 6, "No devices were found"),
        (["No devices were found"], 0, "No devices were found"),
        ([*FOUR[:1], "Unable to determine the device handle for GPU 0000:41:00.0: GPU is lost."], 15, "GPU is lost"),
        ([*FOUR[:1], "1, GPU-ab11, NVIDIA A100, [GPU requires reset], [Unknown Error], 580.65, [N/A]"], 0, "GPU 1"),
        ([""], 0, "lists no GPU"),
        ([""], 9, "exit status 9"),
        (["usage: nvidia-smi"], 2, "usage"),
    ],
)
def test_a_probe_that_failed_is_reported_in_the_drivers_words(
    tmp_path: Path, rows: list[str], code: int, words: str
) -> None:
    found = census.census(tool(tmp_path, rows, code=code))
    assert found["gpus"] == []
    assert words in found["error"]
    assert "nvidia-smi" in found["error"] or words == "GPU 1"


def test_a_tool_that_cannot_be_started_or_hangs_is_named(tmp_path: Path) -> None:
    environ = tool(tmp_path, FOUR)
    (tmp_path / "nvidia-smi").write_text("#!/no/such/program\n")
    assert "No such file" in census.census(environ)["error"]
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nsleep 60 & sleep 60\n")
    assert "does not answer within 0.3 s" in census.census(environ, 0.3)["error"]


def test_a_warning_of_a_driver_that_works_is_passed_on(tmp_path: Path) -> None:
    found = census.census(tool(tmp_path, [*FOUR, "WARNING: infoROM is corrupted at gpu 0000:0A:00.0"], code=14))
    assert entries(found) == ["0", "1", "2", "3"]
    assert found["notes"] == ["WARNING: infoROM is corrupted at gpu 0000:0A:00.0"]


def test_memory_that_a_card_does_not_report_is_reported(tmp_path: Path) -> None:
    found = census.census(tool(tmp_path, ["0, GPU-1, NVIDIA GB10, [N/A], 12.1, 580.95, [N/A]"]))
    assert found["gpus"][0]["memory_bytes"] == 0
    assert found["notes"] == ["the driver does not report how much memory NVIDIA GB10 has"]


def test_an_old_driver_is_asked_only_what_it_knows(tmp_path: Path) -> None:
    environ = tool(tmp_path, [])
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\ncase $1 in\n"
        "*compute_cap*) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2;;\n"
        "*mig.mode*) echo 'Field \"mig.mode.current\" is not a valid field to query.'; exit 2;;\n"
        "*) echo '0, GPU-1, Tesla V100-SXM2-32GB, 32510, 418.87';; esac\n"
    )
    found = census.census(environ)
    assert (found["driver"], found["gpus"][0]["memory_bytes"] >> 20) == ("418.87", 32510)
    assert found["gpus"][0]["compute_capability"] is None


def test_of_mig_slices_a_process_sees_one(tmp_path: Path) -> None:
    rows = [A100.format(i=0, u="aa00", mig="Enabled"), A100.format(i=1, u="ab11", mig="Disabled")]
    found = census.census(tool(tmp_path, rows, SLICES))
    assert entries(found) == ["MIG-11aa"]
    assert found["gpus"][0]["memory_bytes"] == 40 * 10**9
    assert "MIG 3g.40gb; CUDA_VISIBLE_DEVICES=1 uses the whole GPUs instead" in found["notes"][0]
    for visible, seen in (
        ("MIG-22bb", ["MIG-22bb"]), ("MIG-22bb,MIG-11aa", ["MIG-22bb"]), ("1", ["1"]), ("0", ["MIG-11aa"]),
        ("GPU-aa", ["MIG-11aa"]),
    ):  # fmt: skip
        assert entries(census.census(tool(tmp_path, rows, SLICES, CUDA_VISIBLE_DEVICES=visible))) == seen
    assert "MIG-99" in census.census(tool(tmp_path, rows, SLICES, CUDA_VISIBLE_DEVICES="MIG-99"))["error"]
    assert (
        "no GPU has a slice" in census.census(tool(tmp_path, rows[:1], "GPU 0: NVIDIA A100 (UUID: GPU-aa00)"))["error"]
    )


def test_a_mig_slice_is_found_where_the_driver_does_not_say_that_mig_is_on(tmp_path: Path) -> None:
    row = "0, GPU-aa00, NVIDIA A100-SXM4-80GB, 81920, 8.0, 450.80"
    assert entries(census.census(tool(tmp_path, [row], SLICES, CUDA_VISIBLE_DEVICES="MIG-22bb"))) == ["MIG-22bb"]


def test_ranks_beyond_the_visible_gpus_are_a_shortage(tmp_path: Path) -> None:
    environ = tool(tmp_path, FOUR, CUDA_VISIBLE_DEVICES="0,1")
    assert census.shortage(environ, 2) == ""
    assert census.shortage(environ, 4) == "4 ranks, but 2 GPUs visible (CUDA_VISIBLE_DEVICES=0,1)"
    assert "mismatch" in census.shortage(tool(tmp_path, ["NVML: version mismatch"], code=18), 1)
    assert census.shortage({"PATH": "/nowhere"}, 8) == ""
