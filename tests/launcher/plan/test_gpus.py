"""GPUs by name and by size."""

from __future__ import annotations

import pytest

from launcher.errors import SpecError
from launcher.plan import gpus
from train.memory import GIB


def test_gpus_are_found_by_name_and_by_what_nvidia_smi_calls_them():
    assert gpus.find("A100").key == "a100-80"
    assert gpus.find("rtx4090").key == "4090"
    with pytest.raises(SpecError, match="not a GPU") as caught:
        gpus.find("h20o")
    assert "did you mean" in str(caught.value.hint)
    found = gpus.identify("NVIDIA A100-SXM4-40GB", 40 * GIB)
    assert found is not None
    assert found.key == "a100-40"
    assert gpus.identify("Graphics card", GIB) is None
    assert gpus.parse_memory("24GiB") == 24 * GIB
    assert gpus.parse_memory("80GB") == 80 * 10**9
    with pytest.raises(SpecError):
        gpus.parse_memory("much")


@pytest.mark.parametrize("size", ["0GiB", "0", "9" * 400])
def test_a_size_that_no_gpu_has_is_refused(size: str) -> None:
    with pytest.raises(SpecError) as caught:
        gpus.parse_memory(size)
    assert "24GiB" in str(caught.value.hint)
