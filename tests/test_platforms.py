"""Other places to run in: a C locale, consoles without Unicode, files with CRLF, folders of all kinds.

What only another operating system can show is not here: chapter 16 lists it.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

from minitrace import bundle

COMPANIONS = sorted((ROOT / "tutorial" / "companions").glob("*.py"))
PLACES = {
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII console": {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "Western Windows console": {"PYTHONIOENCODING": "cp1252"},
    "no environment": {},
}
each_place = pytest.mark.parametrize("place", PLACES)


def run(*arguments, cwd=ROOT, before=(), **environment):
    """Python with these arguments, and nothing in its environment but what is given."""
    kept = {key: os.environ[key] for key in ("SYSTEMROOT", "TMPDIR") if key in os.environ}
    kept |= {key: value for key, value in os.environ.items() if key.startswith("COVERAGE_")}
    return subprocess.run(
        [*before, sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={"PATH": os.defpath, **kept, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="backslashreplace",
    )


def silent(done):
    return (done.returncode, done.stdout, done.stderr) == (0, "", "")


def doctests_failing(*files, **options):
    """What the standard tool says about each, in a process of its own; nothing if all is well."""
    said = [run("-m", "doctest", file, **options) for file in files]
    return "".join(each.stdout + each.stderr for each in said)


def shows_the_demo(done):
    last = "Hola, soy Juan. is answered: Hola, Juan!"
    return (done.returncode, done.stderr) == (0, "") and done.stdout.splitlines()[-1] == last


def beside(folder):
    """A folder with minitrace.py, its companions and the pages, as somebody may have it."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "minitrace.py", ROOT / "README.md", *COMPANIONS):
        shutil.copy(path, folder)
    cached = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tutorial", folder / "tutorial", ignore=cached)
    return folder


# ---- Locales and consoles


@each_place
def test_the_demo_runs(place):
    assert shows_the_demo(run("minitrace.py", **PLACES[place]))


@each_place
def test_the_doctests_pass(place):
    assert doctests_failing("minitrace.py", "README.md", **PLACES[place]) == ""


@pytest.mark.slow
@each_place
def test_the_doctests_of_pages_and_companions_pass(place, tmp_path):
    home = beside(tmp_path / "home")
    pages = sorted(path.relative_to(ROOT) for path in (ROOT / "tutorial").glob("**/*.md"))
    companions = [path.name for path in COMPANIONS]
    assert doctests_failing(*companions, *pages, cwd=home, **PLACES[place]) == ""


FRUIT = "¿Una piña? \U0001f34d"


class Answer(BaseHTTPRequestHandler):
    """A language model that answers every question with a pineapple."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"message": {"content": FRUIT}, "finish_reason": "stop"}
        data = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def address():
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@each_place
def test_what_a_language_model_says_is_printed_whatever_the_console(place, address):
    """What the console cannot show stands as an escape; it is no reason to fail."""
    model = {"MINITRACE_MODEL": "openai/any", "OPENAI_BASE_URL": address, "OPENAI_API_KEY": "sk"}
    done = run("minitrace.py", "llm", "Which fruit?", **model, **PLACES[place])
    assert (done.returncode, done.stderr) == (0, "")
    escaped = FRUIT.encode("ascii", "backslashreplace").decode()
    western = FRUIT.encode("cp1252", "backslashreplace").decode("utf-8", "backslashreplace")
    assert done.stdout.splitlines()[-1] in (FRUIT, escaped, western)


# ---- Line ends


def with_crlf(home):
    """The same files as an editor on Windows may leave them."""
    for path in home.glob("**/*"):
        if path.suffix in (".py", ".md", ".json", ".jsonl"):
            data = path.read_bytes().replace(b"\r\n", b"\n")
            path.write_bytes(data.replace(b"\n", b"\r\n"))
    return home


@pytest.mark.slow
def test_files_with_crlf_are_the_same_program(tmp_path):
    home = with_crlf(beside(tmp_path / "home"))
    assert b"\r\n" in (home / "minitrace.py").read_bytes()
    assert shows_the_demo(run("minitrace.py", cwd=home))
    pages = "README.md", "tutorial/04_errors.md", "tutorial/16_limits.md"
    assert doctests_failing("minitrace.py", "minitrace_limits.py", *pages, cwd=home) == ""


@pytest.mark.slow
def test_every_page_with_crlf_is_the_same_page(tmp_path):
    home = with_crlf(beside(tmp_path / "home"))
    pages = sorted(path.relative_to(home) for path in (home / "tutorial").glob("**/*.md"))
    companions = [path.name for path in COMPANIONS]
    assert doctests_failing(*companions, *pages, cwd=home) == ""


def test_code_in_a_file_with_crlf_is_shown_with_plain_line_ends(tmp_path):
    home = beside(tmp_path / "home")
    program = [
        "from minitrace import bundle",
        "@bundle(trainable=True)",
        "def greet(name):",
        "    return 'Hi ' + name",
        "print(repr(greet.parameter.data))",
        r"greet.parameter.set('def greet(name):\r\n    return name\r\n')",
        "print(greet('Ada').data)",
    ]
    (home / "program.py").write_bytes("\r\n".join(program).encode())
    done = run("program.py", cwd=home)
    assert done.stdout == "\"def greet(name):\\n    return 'Hi ' + name\"\nAda\n", done.stderr


# ---- Files that another program wrote


def test_a_byte_order_mark_does_not_hide_what_a_file_says(tmp_path):
    """Editors and shells on Windows put one before UTF-8."""
    from minitrace import Module, node

    class Greeter(Module):
        def __init__(self):
            self.word = node("Hola", name="word", trainable=True)

    file, greeter = tmp_path / "greeter.json", Greeter()
    greeter.save(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"Hola", "¿Qué tal?".encode()))
    greeter.load(file)
    assert greeter.word.data == "¿Qué tal?"
    graph = tmp_path / "graph.json"
    words = '{"nodes": [{"id": "x", "value": 1, "trainable": true}], '
    graph.write_text(words + '"outputs": [{"id": "x", "feedback": "too low"}]}', "utf-8-sig")
    assert '"x": 2' in run("minitrace.py", "suggest", graph).stdout


# ---- Folders


def test_a_path_may_have_any_name(tmp_path):
    home = beside(tmp_path / "mine & yours" / "it's a né%20w one")
    assert shows_the_demo(run("minitrace.py", cwd=home))
    files = "minitrace.py", "minitrace_limits.py", "README.md", "tutorial/16_limits.md"
    assert doctests_failing(*files, cwd=home) == ""


def read_only(home):
    """Make a folder read-only; returns what to run before a program that shall find it so.

    Root writes where others may not, so for root the folder is mounted, for that program alone.
    """
    if getattr(os, "geteuid", int)():
        for path in (*home.glob("**/*"), home):
            path.chmod(path.stat().st_mode & ~0o222)
        return []
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0" && exec "$@"'
    before = ["unshare", "--mount", "sh", "-c", mount, str(home)]
    if not shutil.which("unshare") or subprocess.run([*before, "true"], stderr=-3).returncode:
        pytest.skip("root writes everywhere, and nothing can be mounted here")
    return before


@pytest.mark.slow
def test_a_folder_may_be_read_only(tmp_path):
    home = beside(tmp_path / "home")
    before = read_only(home)
    done = run("-c", "open('new', 'w')", cwd=home, before=before)
    assert "Read-only" in done.stderr or "Permission" in done.stderr
    assert shows_the_demo(run("minitrace.py", cwd=home, before=before))
    pages = "README.md", "tutorial/05_modules.md", "tutorial/16_limits.md"
    names = "minitrace.py", *(path.name for path in COMPANIONS)
    assert doctests_failing(*names, *pages, cwd=home, before=before) == ""
    assert not list(Path(home).glob("**/__pycache__"))


def test_saving_into_a_folder_that_is_read_only_says_so_and_loses_nothing(tmp_path):
    home = beside(tmp_path / "home")
    save = "from minitrace import *; m = Module(); m.x = node({}, trainable=True); m.save('it.json')"
    assert silent(run("-c", save.format(1), cwd=home))
    kept = (home / "it.json").read_bytes()
    done = run("-c", save.format(2), cwd=home, before=read_only(home))
    assert done.returncode == 1 and str(home) in done.stderr.splitlines()[-1]
    assert (home / "it.json").read_bytes() == kept


# ---- What newer Pythons brought (their syntax stands in texts, which older ones do not read)


def program(tmp_path, text, *flags):
    """What a program says that has minitrace.py beside it."""
    home = beside(tmp_path / "home")
    (home / "program.py").write_text(text, encoding="utf-8")
    done = run(*flags, "program.py", cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.version_info < (3, 15), reason="no lazy imports")
@pytest.mark.parametrize("flags", [(), ("-X", "lazy_imports=all")])
def test_a_lazy_import_is_an_import(tmp_path, flags):
    text = """
lazy import minitrace
lazy from minitrace_limits import Limits
lazy from minitrace_train import train
import sys
print("minitrace" in sys.modules)

@minitrace.bundle(trainable=True, limits=Limits(seconds=5))
def half(x):
    return x / 2

print(half(minitrace.node(6)).data)
half.parameter.set("def half(x):\\n    return x / 3")
print(half(minitrace.node(6)).data, train.__name__)
"""
    assert program(tmp_path, text, *flags) == ["False", "3.0", "2.0 train"]


@pytest.mark.skipif(sys.version_info < (3, 15), reason="no lazy imports")
@pytest.mark.parametrize("line", ["lazy import json", "lazy from json import dumps"])
def test_new_code_may_import_lazily(line):
    @bundle(trainable=True)
    def written(x):
        return str(x)

    dumps = "json.dumps" if line.endswith("json") else "dumps"
    written.parameter.set(f"{line}\ndef written(x):\n    return {dumps}(x)")
    assert written([1, None]).data == "[1, null]"


@pytest.mark.skipif(sys.version_info < (3, 15), reason="no lazy imports")
def test_the_demo_and_the_doctests_pass_when_every_import_is_lazy():
    lazy = "-X", "lazy_imports=all"
    assert shows_the_demo(run(*lazy, "minitrace.py"))
    assert silent(run(*lazy, "-m", "doctest", "minitrace.py"))


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated at once")
def test_annotations_may_name_what_comes_later(tmp_path):
    text = """
from minitrace import bundle, node

@bundle()
def area(shape: Shape) -> Later:
    return shape["side"] ** 2

class Shape(dict):
    @bundle()
    def twice(self, other: Shape) -> Shape:
        return Shape(side=other["side"] * 2)

shape = Shape(side=3)
print(area(node(shape)).data, Shape.twice(shape, shape).data)
"""
    assert program(tmp_path, text) == ["9 {'side': 6}"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated at once")
def test_annotations_of_trainable_code_may_name_what_comes_later(tmp_path):
    text = """
from minitrace import bundle, node

class Shape(dict):
    @bundle(trainable=True)
    def twice(self, other: Shape) -> Shape:
        return Shape(side=other["side"] * 2)

shape = Shape(side=3)
print(shape.twice(shape).data)
shape.twice.parameter.set(shape.twice.parameter.data.replace("* 2", "* 3"))
print(shape.twice(shape).data)
"""
    assert program(tmp_path, text) == ["{'side': 6}", "{'side': 9}"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="subinterpreters have no module")
def test_a_subinterpreter_has_threads_and_child_processes(tmp_path):
    """No daemons may run there: what is a daemon elsewhere is a thread that ends by itself."""
    text = """
from concurrent.interpreters import create
inside = create()
inside.exec('''
import os, sys
sys.path.insert(0, os.getcwd())
from minitrace import Script, run_coroutine
from minitrace_limits import Limits
from minitrace_train import evaluate

async def double(x):
    return 2 * x

print(*Script(["a", "b"]).map(["?", "?"], workers=2), run_coroutine(double(4)))
print(Limits(seconds=5).run("def f(x): return x + 1", "f", [1]))
print(*evaluate(double, [1, 2], workers=2).responses)
''')
inside.close()
"""
    assert program(tmp_path, text) == ["a b 8", "2", "2 4"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="what is typed is not kept")
def test_trainable_code_may_be_typed_at_a_prompt():
    typed = """from minitrace import bundle
@bundle(trainable=True)
def half(x):
    return x / 2

half(6).data, half.parameter.data
"""
    done = subprocess.run(
        [sys.executable, "-i", "-q"], input=typed, cwd=ROOT, capture_output=True, text=True
    )
    assert r"(3.0, 'def half(x):\n    return x / 2')" in done.stdout, done.stderr
