"""Where the caches of Hugging Face and ModelScope are on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

HOME, HUB, MODELSCOPE = "HF_HOME", "HF_HUB_CACHE", "MODELSCOPE_CACHE"


def hf_home(environ: Mapping[str, str]) -> Path:
    return expand(environ.get(HOME) or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface")


def hf_hub(environ: Mapping[str, str]) -> Path:
    """The directory of the `models--...`: HF_HUB_CACHE, or its older name, wins over HF_HOME."""
    return expand(hub_override(environ) or f"{hf_home(environ)}/hub")


def model_folder(repo: str, environ: Mapping[str, str]) -> Path:
    """Where the cache keeps a model of that id; the files are in `snapshots/*`."""
    return hf_hub(environ) / f"models--{repo.replace('/', '--')}"


def hub_override(environ: Mapping[str, str]) -> str:
    """The directory that a variable names instead of HF_HOME/hub; empty: no variable does."""
    return environ.get(HUB) or environ.get("HUGGINGFACE_HUB_CACHE") or ""


def expand(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()
