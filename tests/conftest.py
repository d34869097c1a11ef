"""What every test starts from: the project on the path, names from zero, and slow tests on request.

`python3 -m pytest -q` leaves out what is marked `slow`, which `--slow` runs too.
"""

import asyncio
import sys
import threading
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPANIONS = ROOT / "tutorial" / "companions"
sys.path[:0] = [str(ROOT), str(COMPANIONS)]

import minitrace  # noqa: E402


def reaches(output, parameter):
    """Does feedback on the output reach the parameter?"""
    parameter.zero_feedback()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output.backward("feedback")
    return len(parameter.feedback) == 1


def patient(seconds):
    """How long to wait for what takes so many seconds on a machine that does nothing else.

    A little work and a few naps are timed: on a busy machine they take longer by the clock than
    they need. A test that says how long something may take asks this after it, not a constant.
    """
    began, worked = time.monotonic(), time.thread_time()
    for _ in range(20):
        sum(range(20_000))
        time.sleep(0.001)
    needed = time.thread_time() - worked + 20 * 0.0015
    return seconds * max(1, (time.monotonic() - began) / needed)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than about two seconds; run with --slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture
def slow(request):
    """Was `--slow` given? For tests that try more seeds then."""
    return request.config.getoption("--slow")


# The classes that the companion `opto` gives more names.
EXTENDED = minitrace.Node, minitrace.ExecutionError, minitrace.TraceGraph


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No name is taken, no variable of this machine configures a language model, and what a test
    that imported `opto` leaves to others is minitrace as it was."""
    minitrace.GRAPH.clear()
    for variable in ("MINITRACE_MODEL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    before = {kind: dict(vars(kind)) for kind in EXTENDED}  # other companions give them names too
    yield
    if "opto" in sys.modules:
        for kind, own in before.items():
            for name, value in dict(vars(kind)).items():
                if value is not own.get(name):
                    setattr(kind, name, own[name]) if name in own else delattr(kind, name)
        for name in [name for name in sys.modules if name.partition(".")[0] == "opto"]:
            del sys.modules[name]


@pytest.fixture
def offline(monkeypatch):
    """A network that answers nothing."""
    import socket

    def refuse(*args, **kwargs):
        raise OSError("this test is offline")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def by_thread(work):
    """What some work gives, done in a thread that has no context of its own."""
    future = Future()

    def run():
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return future.result()


def by_pool(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def by_loop(work):
    async def main():
        return await asyncio.get_running_loop().run_in_executor(None, work)

    return asyncio.run(main())


BARE = pytest.mark.parametrize("bare", [by_thread, by_pool, by_loop])
