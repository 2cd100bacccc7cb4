"""Files of data sets, fetched by the hubs' own clients into their own caches."""

from __future__ import annotations

from pathlib import Path

from train.errors import DataError
from train.hub.cache_places import fetching_counted
from train.rundir.counter import doing

_ADVICE = "check the spelling; a private one needs the token of your account in `secrets`"


def file_of_huggingface(path: str, name: str, file: str) -> str:
    """The place of one file of a data set; `path`: what messages call it. Raises DataError."""
    from huggingface_hub import hf_hub_download

    try:
        with fetching_counted(name):
            return hf_hub_download(name, file, repo_type="dataset")
    except Exception as error:  # its errors have no common base class
        raise DataError(
            f"{path}: cannot load the file: {str(error).partition(chr(10))[0]}", _ADVICE, code="ZL-DATA-07"
        ) from None


def from_modelscope(path: str, name: str, wanted: list[str]) -> str:
    """A directory with the files of a data set that match one of `wanted`. Raises DataError."""
    try:
        from modelscope.hub.snapshot_download import dataset_snapshot_download
    except ImportError:
        raise DataError(
            f"{path} needs the package `modelscope`", "pip install modelscope", code="ZL-MACHINE-02"
        ) from None
    doing(f"fetching {path}")
    try:
        place = Path(dataset_snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # its errors have no common base class
        said = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: ModelScope could not provide the data set: {said}", _ADVICE, code="ZL-DATA-07"
        ) from None
    missing = [file for file in wanted if "*" not in file and not (place / file).is_file()]
    if missing:
        raise DataError(f"{path}: the data set has no file {missing[0]}", code="ZL-DATA-07")
    return str(place)
