"""What is on a hub: from its cache, at once, where the hub does not answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from scoreopt_defense._optional import optional

__all__ = ["hub_or_cache"]

_PATIENCE = 5.0  # seconds, where huggingface_hub tries for 60


@contextmanager
def hub_or_cache(what: str) -> Iterator[None]:
    """Hugging Face's library goes by its cache alone within, if its host cannot be reached.

    Raises:
        ConnectionError: where it cannot, and ``what`` is not in the cache.
    """
    constants = optional("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE or _is_reached(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        host = urlsplit(constants.ENDPOINT).hostname
        raise ConnectionError(
            f"{host} cannot be reached, and {what} is not in the cache, or not whole"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = False


def _is_reached(endpoint: str) -> bool:
    """Whether the host answers, or the proxy that stands before it."""
    to = urlsplit(endpoint)
    proxy = getproxies().get(to.scheme)
    if proxy and not proxy_bypass(to.hostname or ""):
        to = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = to.port or (443 if to.scheme == "https" else 80)
    try:
        socket.create_connection((to.hostname or "", port), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True
