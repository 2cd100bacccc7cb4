"""Which packages the fused layers leave out of their imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.beds.places import ROOT

PROGRAM = """
import importlib.util, sys
from train.config import Model
from train.model.choose import EngineChoice, import_first
import_first(EngineChoice("fused", ""), Model(path="x", quantization=sys.argv[1]))
from peft.import_utils import is_bnb_available
import transformers.models.llama.modeling_llama
print(is_bnb_available(), *(name for name in ("bitsandbytes", "sklearn", "torchvision") if name in sys.modules))
print(*(importlib.util.find_spec(name) is not None for name in ("bitsandbytes", "sklearn", "torchvision")))
"""


@pytest.mark.train
@pytest.mark.parametrize(("quantization", "seen"), [("none", ["False"]), ("nf4", ["True", "bitsandbytes"])])
def test_packages_of_no_use_stay_out(tmp_path: Path, quantization: str, seen: list[str]) -> None:
    for name in ("sklearn", "torchvision"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, quantization], env=env, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.split() == seen
    assert second.split() == ["True", "True", "True"]  # whoever needs them later finds them
