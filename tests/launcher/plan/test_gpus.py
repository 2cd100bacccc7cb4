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


@pytest.mark.parametrize(
    ("kind", "features", "key"),
    [
        ("h200", (), "h200"), ("NVIDIA_H200", (), "h200"), ("h200_141g", (), "h200"), ("gh200", (), None),
        ("nvidia_gh200_480gb", (), None), ("h20", (), "h20"), ("h100_nvl", (), "h100"), ("h100_64gb", (), None),
        ("a100", (), None), ("a100", ("a100_80gb",), "a100-80"), ("a100", ("gpu_mem_40",), "a100-40"),
        ("a100", ("192gb",), None), ("nvidia_a100_80gb_pcie", (), "a100-80"), ("a100-sxm4-40gb", (), "a100-40"),
        ("a100_3g.20gb", (), None), ("1g.10gb", (), None), ("tesla_v100-sxm2-32gb", (), "v100-32"), ("v100", (), None),
        ("rtx_4090", (), "4090"), ("rtx4090", (), "4090"), ("nvidia_geforce_rtx_4090_laptop_gpu", (), None),
        ("l40s", (), "l40s"), ("l40", (), None), ("a10g", (), None), ("a800_40gb", (), None), ("t4", (), "t4"),
        ("", ("gpu_h100", "nvlink"), "h100"), ("", ("h100", "h200"), None), ("", ("intel", "192gb"), None),
        ("", ("a100", "gpu_80gb"), "a100-80"), ("", (), None),
    ],
)  # fmt: skip
def test_names_of_sites_mean_a_gpu_only_where_they_mean_one(
    kind: str, features: tuple[str, ...], key: str | None
) -> None:
    found = gpus.of_gres(kind, features)
    assert (found.key if found else None) == key
