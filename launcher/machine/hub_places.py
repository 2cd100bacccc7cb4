"""Where the caches of Hugging Face and ModelScope lie on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

HOME, HUB, MODELSCOPE = "HF_HOME", "HF_HUB_CACHE", "MODELSCOPE_CACHE"


def hf_home(environ: Mapping[str, str]) -> Path:
    return expanded(environ.get(HOME) or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface")


def hf_hub(environ: Mapping[str, str]) -> Path:
    """The directory of the `models--...`: HF_HUB_CACHE, or its older name, wins over HF_HOME."""
    return expanded(hub_named(environ) or f"{hf_home(environ)}/hub")


def model_folder(repo: str, environ: Mapping[str, str]) -> Path:
    """Where a model of that id lies once it is held; its files are in `snapshots/*`."""
    return hf_hub(environ) / f"models--{repo.replace('/', '--')}"


def hub_named(environ: Mapping[str, str]) -> str:
    return environ.get(HUB) or environ.get("HUGGINGFACE_HUB_CACHE") or ""


def expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()
