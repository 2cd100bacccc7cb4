from __future__ import annotations

import errno
import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from train.config import Data, Lora, Model, TrainConfig, Training
from train.errors import DataError, UserError, account, memory_advice, report
from train.rundir.run_files import RunDir


def config(**train: object) -> TrainConfig:
    numbers = {"global_batch_size": 32, "micro_batch_size": 8, "gradient_accumulation_steps": 4, **train}
    return TrainConfig(
        run_id="r",
        device="cuda",
        model=Model(),
        data=Data(),
        lora=Lora(),
        train=Training(**numbers),  # type: ignore[arg-type]
    )


def test_out_of_memory_names_three_settings_with_the_numbers_of_this_run() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    found = account(OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), config())
    assert found.cause == "out_of_memory"
    assert "micro batch 8 x up to 2048 tokens" in found.message
    assert len(found.advice) == 3
    assert found.advice[0].startswith("train.micro_batch_size=4 (now 8; accumulation becomes 8, the global batch of 32")


def test_advice_leaves_out_what_is_already_set() -> None:
    advice = memory_advice(config(micro_batch_size=1, gradient_accumulation_steps=32, gradient_checkpointing=True))
    assert [line.partition("=")[0] for line in advice] == ["model.quantization", "data.max_length", "lora.r"]


@pytest.mark.parametrize(
    ("error", "cause", "status"),
    [
        (UserError("no"), "bad_configuration", 2),
        (DataError("no"), "data", 2),
        (OSError(errno.ENOSPC, "No space left on device", "/x/state"), "disk_full", 1),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk_full", 1),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), "disk_full", 1),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "nccl", 1),
        (KeyError("x"), "bug", 1),
    ],
)
def test_every_end_has_a_cause_and_an_exit_status(
    error: Exception, cause: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error, RunDir(tmp_path), None, 3) == status
    written = json.loads((tmp_path / "errors" / "rank-3.json").read_text())
    assert written["cause"] == cause
    assert written["rank"] == 3
    assert ("KeyError" in capsys.readouterr().err) == (cause == "bug")


def test_advice_stands_behind_an_arrow(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(UserError("no", "do this", "or that", code="ZL-GPU-02"), None, None, 0) == 2
    assert capsys.readouterr().err == "error[ZL-GPU-02]: no\n  -> do this\n  -> or that\n"


def test_a_log_on_a_full_disk_takes_away_neither_the_status_nor_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert report(UserError("no"), RunDir(tmp_path), None, 0) == 2
        (tmp_path / "errors").rename(tmp_path / "a")
        (tmp_path / "errors").touch()  # and the account cannot be written either
        assert report(KeyError("x"), RunDir(tmp_path), None, 0) == 1
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
    assert json.loads((tmp_path / "a" / "rank-0.json").read_text())["message"] == "no"
