"""Pyodide, the Python of web browsers, under Node.js: no thread and no process can start there.

Wanted are Node.js and the npm package `pyodide`, in a folder `node_modules` that the environment
variable MINITRACE_NODE_MODULES names.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

MODULES = Path(os.environ.get("MINITRACE_NODE_MODULES", "/nowhere"))
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    not (NODE and (MODULES / "pyodide").exists()), reason="Node.js or Pyodide is not here"
)


def flags():
    """What lets `asyncio.run` wait inside WebAssembly, for a Node.js that does not by itself."""
    known = subprocess.run([NODE, "--v8-options"], capture_output=True, text=True).stdout
    flag = "--experimental-wasm-stack-switching"
    return [flag] if flag in known else []


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What one run of all the doctests says: starting Pyodide takes longer than they do."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(ROOT / "minitrace.py", home)
    shutil.copytree(ROOT / "tutorial", home / "tutorial")
    here = Path(__file__).parent
    files = map(str, (here / "in_pyodide.mjs", MODULES, home, here / "pyodide_doctests.py"))
    done = subprocess.run([NODE, *flags(), *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_it_is_the_python_of_browsers(told):
    assert told["platform"] == "emscripten"


def test_every_doctest_passes(told):
    """Those of minitrace.py, and chapters 0 to 12."""
    names = [name for name, *_ in told["outcomes"]]
    assert names[-13].startswith("00_") and names[-1].startswith("12_") and len(names) > 60
    assert all(examples for _, examples, *_ in told["outcomes"])
    failed = {name: report for name, _, failures, report in told["outcomes"] if failures}
    assert not failed, "\n".join(failed.values())


def test_limits_says_that_it_cannot(told):
    run, report = told["limits"]
    assert run.startswith("no process: Limits runs code in a child process, and none can be started")
    assert report == run
