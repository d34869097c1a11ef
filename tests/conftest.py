"""What every test starts from: names that count from zero, and the project's root on the path."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import minitrace  # noqa: E402


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No name is taken, and no variable of this machine configures a language model."""
    minitrace.GRAPH.clear()
    for variable in ("MINITRACE_MODEL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def offline(monkeypatch):
    """A network that answers nothing."""
    import socket

    def refuse(*args, **kwargs):
        raise OSError("this test is offline")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
