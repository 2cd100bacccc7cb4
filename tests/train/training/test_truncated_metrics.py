"""The metrics of steps that a resume does again are dropped, whatever else stands in the file."""

from pathlib import Path

from train.rundir.run_files import RunDir
from train.training.start import truncate_metrics


def test_damaged_lines_of_metrics_are_dropped_and_end_no_resume(tmp_path: Path) -> None:
    good = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n'
    bad = (
        b'\xff\xfe\n[[[\n5\nnull\n"x"\n{"step": "x", "loss": []}\n{"step": null}\n{"loss": 1}\n' + b"[" * 99_999 + b"\n"
    )
    (tmp_path / "metrics.jsonl").write_bytes(
        bad + good.encode() + b'{"step": 3, "loss": 1.0}\n' + bad + b'{"step": 4, "lo'
    )
    truncate_metrics(RunDir(tmp_path), 2)
    assert (tmp_path / "metrics.jsonl").read_text() == good
