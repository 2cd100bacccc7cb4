"""Mixed precision: the contexts of forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from train.dist import World

Autocast = Callable[[], AbstractContextManager[None]]
"""Makes the context of one forward pass."""


def autocast_for(world: World, dtype: torch.dtype) -> Autocast:
    """Autocast to half precision; nothing for float32."""
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(world.device.partition(":")[0], dtype=dtype)


@contextmanager
def inference(autocast: Autocast) -> Iterator[None]:
    """No gradients, and the precision of training."""
    with torch.no_grad(), autocast():
        yield
