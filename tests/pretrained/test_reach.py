"""A hub that does not answer: what is in the cache, or an error, at once."""

from __future__ import annotations

import socket

import pytest

from scoreopt_defense.pretrained.reach import hub_or_cache

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("by", ["itself", "a proxy"])
def test_a_host_that_answers_is_asked(by, listening, monkeypatch):
    own = f"http://127.0.0.1:{listening}"
    monkeypatch.setattr(constants, "ENDPOINT", own if by == "itself" else "http://nowhere.invalid")
    if by == "a proxy":
        monkeypatch.setenv("http_proxy", own)
    with hub_or_cache("it"):
        assert not constants.HF_HUB_OFFLINE
    with pytest.raises(OSError, match=r"^theirs$"), hub_or_cache("it"):
        raise OSError("theirs")


def test_of_one_that_does_not_there_is_the_cache_alone(listening, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # where nobody listens any more
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with hub_or_cache("it"):
        assert constants.HF_HUB_OFFLINE
    said = r"127\.0\.0\.1 cannot be reached, and timm:x is not in the cache"
    with pytest.raises(ConnectionError, match=said), hub_or_cache("timm:x"):
        raise OSError("theirs")
    assert not constants.HF_HUB_OFFLINE
