"""Download a model with the hub's own client into its own cache: the checkpoint, or only its tokenizer's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from train.config import Model
from train.errors import UserError

OTHER_FORMS = (
    "*.gguf",
    "*.pth",
    "*.onnx*",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.tflite",
    "original/*",
    "openvino/*",
    "coreml/*",
)
"""Weights in formats that transformers does not load PyTorch models from."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


Fetched = Callable[[float, float | None], None]
"""Called with (bytes fetched, bytes in all; None: unknown)."""


def download(model: Model, *, weights: bool = True, fetched: Fetched | None = None) -> Path:
    """Return the local directory of `model` (source `huggingface` or `modelscope`). Raises UserError if that fails."""
    if model.path.startswith(("/", ".", "~")) or model.path.count("/") > 1:
        raise UserError(
            f"model.path: there is no directory {model.path}",
            "give a hub id (owner/name) or a local directory",
            code="ZL-MODEL-01",
        )
    return _HUBS[model.source](model, weights, fetched or (lambda done, total: None))


def _from_huggingface(model: Model, weights: bool, fetched: Fetched) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    def names() -> list[str]:
        return list(HfApi().list_repo_files(model.path, revision=model.revision))

    class Bar(tqdm):
        """The hub's own bars: that of the bytes of all files together is counted, none is shown."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self.counts_bytes = options.get("unit") == "B" and "transfer" not in str(options.get("name"))
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self.fetched = 0.0

        def update(self, n: float | None = 1) -> None:
            self.fetched += n or 0
            if self.counts_bytes:
                fetched(self.fetched, self.total)

    skipped = _skipped(names, weights)
    try:
        return Path(snapshot_download(model.path, revision=model.revision, ignore_patterns=skipped, tqdm_class=Bar))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"model.path: the hub has no {model.path}{f' at {model.revision}' if model.revision else ''}",
            "check the spelling; a private or gated model needs HF_TOKEN in `secrets`",
            code="ZL-MODEL-01",
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"model.path: {model.path} is neither a local directory nor in the cache, and the hub cannot be reached",
            "set HF_ENDPOINT to a mirror, use model.source=modelscope, or give a local directory",
            code="ZL-MODEL-09",
        ) from error


def _from_modelscope(model: Model, weights: bool, fetched: Fetched) -> Path:
    try:
        from modelscope import HubApi, snapshot_download
    except ImportError:
        raise UserError(
            "model.source=modelscope needs the package `modelscope`", "pip install modelscope", code="ZL-MACHINE-02"
        ) from None

    def names() -> list[str]:
        return [file["Path"] for file in HubApi().get_model_files(model.path, revision=model.revision)]

    try:
        skipped = _skipped(names, weights)
        options = _counting_bytes(fetched)
        return Path(snapshot_download(model.path, revision=model.revision, ignore_patterns=skipped, **options))
    except Exception as error:  # its errors have no common base class
        raise UserError(
            f"model.path: ModelScope could not provide {model.path}: {error}", code="ZL-MODEL-09"
        ) from error


def _counting_bytes(fetched: Fetched) -> dict[str, Any]:
    """The option with which ModelScope reports what it fetches; an early version has none."""
    try:
        from modelscope.hub.callback import ProgressCallback
    except ImportError:
        return {}
    done = 0

    class File(ProgressCallback):  # type: ignore[misc]
        def update(self, size: int) -> None:
            nonlocal done
            done += size
            fetched(done, None)

    return {"progress_callbacks": [File]}


_HUBS: dict[str, Callable[[Model, bool, Fetched], Path]] = {
    "huggingface": _from_huggingface,
    "modelscope": _from_modelscope,
}


def _skipped(names: Callable[[], Iterable[str]], weights: bool) -> list[str]:
    """Patterns of the files to skip. Repositories with safetensors often hold the same weights as pickles, which
    transformers does not load then."""
    if not weights:
        return [*OTHER_FORMS, *WEIGHTS]
    try:
        twice = not {"model.safetensors", "model.safetensors.index.json"}.isdisjoint(names())
    except Exception:  # offline, or a mistake that the download reports itself
        twice = False
    return [*OTHER_FORMS, *(["pytorch_model*"] if twice else [])]
