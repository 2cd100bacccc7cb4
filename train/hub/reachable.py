"""Whether the hub answers, asked before its own clients do: without a network they try again for a minute."""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable

from train.errors import UserError
from train.hub.cache_places import places_of

SECONDS = 5.0
"""For one request. A hub behind a slow proxy answers in two."""
ENDPOINT = "https://huggingface.co"


def stay_offline_unless_reachable(models: Iterable[str], data_sets: Iterable[str]) -> str | None:
    """Let the clients of Hugging Face's hub read only their caches if the hub does not answer; return the reason.

    Call it before they are imported: they read the variable then. Not for a training, which may wait for a network.
    Raises UserError for a model or data set that is not in the caches either.
    """
    wanted = [*(("models", name) for name in models), *(("datasets", name) for name in data_sets)]
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if not wanted or offline or "all" in urllib.request.getproxies():
        return None  # a proxy for all protocols is one that urllib cannot use
    address = os.environ.get("HF_ENDPOINT") or ENDPOINT
    reason = why_unreachable(address)
    if reason is None:
        return None
    for kind, name in wanted:
        if not _may_be_cached(kind, name):
            raise UserError(
                f"{'hub:' if kind == 'datasets' else 'model.path: '}{name} is not in the cache, and {address} does not "
                f"answer: {reason}",
                "set HF_ENDPOINT to a mirror, or give files and directories of this machine",
                code="ZL-MODEL-09",
            )
    os.environ["HF_HUB_OFFLINE"] = "1"
    return f"{address} does not answer ({reason}), so only what is in the cache can be used"


def _may_be_cached(kind: str, name: str) -> bool:
    """Whether there is anything of a model or data set in the caches of Hugging Face's libraries."""
    return any(place.exists() for place in places_of(kind, name))


def why_unreachable(address: str, seconds: float = SECONDS) -> str | None:
    """None: it answers, with whatever status."""
    found: list[str | None] = [f"no answer within {seconds:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - the user's own HF_ENDPOINT
            with urllib.request.urlopen(request, timeout=seconds):  # noqa: S310 - the same
                found[0] = None
        except urllib.error.HTTPError:
            found[0] = None
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = getattr(error, "reason", error)
            # The hub's clients have certificates of their own.
            found[0] = None if isinstance(why, ssl.SSLError) else str(why)

    asking = threading.Thread(target=ask, daemon=True)  # the time-out does not hold for the name server's answer
    asking.start()
    asking.join(seconds)
    return found[0]
