"""Section 8, Command line: the demo, `suggest`, `llm`; and what the file is as a whole."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import ROOT

import minitrace
from minitrace import node


def run(*arguments, stdin="", cwd=None, file=ROOT / "minitrace.py", **environment):
    """The file as a program, with nothing in its environment but what is given."""
    measured = {key: value for key, value in os.environ.items() if key.startswith("COVERAGE_")}
    environment = {"PATH": os.defpath, "PYTHONIOENCODING": "utf-8", **measured, **environment}
    command = [sys.executable, str(file), *arguments]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env=environment,
    )


# ---- the demo


def test_the_demo_runs_alone_in_an_empty_directory(tmp_path):
    shutil.copy(ROOT / "minitrace.py", tmp_path)
    told = run(cwd=tmp_path, file=tmp_path / "minitrace.py")
    assert (told.returncode, told.stderr) == (0, "")
    assert "23 degrees: just right" in told.stdout and "answered: Hola, Juan!" in told.stdout
    assert "canned" in told.stdout
    assert len(told.stdout.splitlines()) <= 96 and max(map(len, told.stdout.splitlines())) <= 120
    assert sorted(p.name for p in tmp_path.iterdir()) == ["minitrace.py"]
    assert run("demo", cwd=tmp_path).stdout == told.stdout


def test_the_file_alone_can_be_imported(tmp_path):
    shutil.copy(ROOT / "minitrace.py", tmp_path)
    code = "import minitrace as t; print((t.node(1) + 2).data, t.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == ["3", str(tmp_path / "minitrace.py")], done.stderr


def test_live_without_a_language_model_says_what_to_set():
    told = run("demo", "--live", OPENAI_API_KEY="sk-not-enough-alone")
    assert told.returncode == 2 and told.stdout == ""
    assert "MINITRACE_MODEL" in told.stderr and "OPENAI_BASE_URL" in told.stderr


def test_version():
    assert run("--version").stdout == f"minitrace {minitrace.__version__}\n"


# What a language model would say in the demo: as an agent, by what its system prompt asks ...
SPOKEN = [
    ("en or es only", "es"),
    ("name only", "Juan"),
    ("Decide the language", "This message is in Spanish."),
    ("Extract the name", "The name is Juan."),
]
# ... and as an optimizer, by what a variable is now.
IMPROVED = [
    ("Decide the language", "In which language is this? Answer with en or es only."),
    ("Extract the name", "What is the customer's name? Answer with the name only."),
    (
        "def language",
        'def language(self, reply):\n    return "es" if "es" in reply.lower() else "en"',
    ),
    (
        "def greet",
        "def greet(self, language, name):\n"
        "    return {'en': 'Hello', 'es': 'Hola'}[language] + f', {name}!'",
    ),
]


def played(text):
    """The part of a language model in the demo."""
    if "degrees" in text:
        return '{"reasoning": "", "answer": "", "suggestion": {"degrees0": 23}}'
    if "# Variables" not in text:
        return next((reply for pattern, reply in SPOKEN if pattern in text), None)
    listed = re.split(r"\n# ", text.split("# Variables\n")[1])[0]
    variables = re.findall(r"^\(\w+\) (\w+)(.*?)(?=^\(\w+\) |\Z)", listed, re.M | re.S)
    suggestion = {
        name: next(new for pattern, new in IMPROVED if pattern in shown)
        for name, shown in variables
    }
    return json.dumps({"reasoning": "", "answer": "", "suggestion": suggestion})


SEEN = []  # the path, the key and the body of each request


class Handler(BaseHTTPRequestHandler):
    """A language model that plays both of its parts in the demo."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        SEEN.append((self.path, self.headers["Authorization"], body))
        words = played("\n".join(message["content"] for message in body["messages"]))
        choice = {"message": {"content": words}, "finish_reason": "stop"}
        data = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    SEEN.clear()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_the_demo_on_a_real_server(server):
    told = run(
        "demo",
        "--live",
        MINITRACE_MODEL="openai/m",
        OPENAI_API_KEY="sk-secret-1",
        OPENAI_BASE_URL=server,
    )
    assert told.returncode == 0, told.stderr
    assert "answered: Hola, Juan!" in told.stdout and "canned" not in told.stdout
    path, key, body = SEEN[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer sk-secret-1", "m")


# ---- suggest


def a_graph(feedback="too low"):
    x = node(3, name="x", trainable=True, bounds=(0, 100))
    (x * 2).backward(feedback)
    return x.feedback[0].to_json()


WRITER = """
import json
print(json.dumps({"format": "minitrace-graph", "version": "1.0", "nodes": [
    {"id": "speed", "value": 10, "trainable": True, "bounds": [0, 50]},
    {"id": 7, "name": "distance", "inputs": {"v": "speed"}, "operator": "drive", "value": 100}],
    "operators": {"drive": "how far it gets in 10 s"}, "outputs": [{"id": 7, "feedback": "too far: lower"}]}))
"""


def test_suggest_answers_a_graph_that_another_process_wrote():
    graph = subprocess.run([sys.executable, "-c", WRITER], capture_output=True, text=True).stdout
    told = run("suggest", "-", stdin=graph)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == {"speed": 0}
    assert "StubLLM" in told.stderr and "MINITRACE_MODEL" in told.stderr


def test_suggest_reads_a_file_and_asks_the_language_model_that_is_configured(server, tmp_path):
    path = tmp_path / "graph.json"
    graph = a_graph().replace('"x0"', '"degrees0"').replace('"name": "x"', '"name": "degrees"')
    path.write_text(graph)
    told = run("suggest", str(path), MINITRACE_MODEL="m", OPENAI_BASE_URL=server)
    assert (json.loads(told.stdout), told.stderr) == ({"degrees0": 23}, "")
    assert "multiply0 = degrees0 * 2  # 6" in SEEN[0][2]["messages"][1]["content"]


NODES = '{"format": "minitrace-graph", "version": "1.0", "outputs": [{"id": "a"}], "nodes": [%s]}'


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1, 2]", "not a trace graph"),
        ('{"nodes": 3}', "not a trace graph"),
        ("[" * 100_000, "not JSON"),
        ('{"format": "minitrace-graph", "version": "2.0", "nodes": []}', "newer"),
        (NODES % '{"id": "a", "inputs": {"x": "b"}}', "nodes[0] (a): its input 'b' is no node"),
        (
            NODES % '{"id": "a", "inputs": {"x": "b"}}, {"id": "b"}',
            "nodes[0] (a): its input 'b' is no node before it",
        ),
        (NODES % '{"id": "a"}, {"id": "a"}', "nodes[1] (a): the id is used twice"),
        (NODES % '{"id": "a"}', "nothing to suggest"),
        (NODES % "7", "nodes[0]: it must be an object with"),
        (
            NODES % '{"id": "a", "value": 1, "trainable": true, "bounds": [5, 9]}',
            "must be between 5 and 9",
        ),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(text, words, tmp_path, capsys):
    path = tmp_path / "graph.json"
    path.write_text(text)
    assert minitrace.main(["suggest", str(path)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and words in told.err and told.err.startswith(f"suggest: {path}: ")
    assert len(told.err.splitlines()) == 1


def test_bad_input_on_standard_input_is_called_that():
    told = run("suggest", "-", stdin="{")
    assert (told.returncode, told.stdout) == (2, "") and len(told.stderr.splitlines()) == 1
    assert told.stderr.startswith("suggest: standard input: not JSON")


def test_a_missing_file_is_named(tmp_path):
    told = run("suggest", str(tmp_path / "none.json"))
    assert told.returncode == 2 and "none.json" in told.stderr and "No such file" in told.stderr


# ---- llm


def test_llm_tries_the_connection(server):
    told = run(
        "llm", "instruct: Decide the language", MINITRACE_MODEL="openai/m", OPENAI_BASE_URL=server
    )
    assert told.returncode == 0, told.stderr
    first, second = told.stdout.splitlines()
    assert first.startswith("openai, m, ") and "usage not reported" in first
    assert second == "This message is in Spanish."


def test_llm_says_what_is_wrong():
    told = run("llm", "hi")
    assert told.returncode == 2 and "MINITRACE_MODEL" in told.stderr
    told = run("llm", "hi", MINITRACE_MODEL="openai/m")
    assert told.returncode == 1 and "OPENAI_API_KEY" in told.stderr


def test_what_nobody_listens_to_is_no_error():
    words = map(shlex.quote, [sys.executable, str(ROOT / "minitrace.py"), "demo"])
    program = f"{' '.join(words)} | head -n 1"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("options", ["-O", "-W error", "-I", "-bb", "-X dev", "-OO"])
def test_the_demo_runs_whatever_python_is_told(options):
    command = [sys.executable, *options.split(), str(ROOT / "minitrace.py")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    words = "demo: it runs docstrings, which python -OO leaves out\n" if options == "-OO" else ""
    assert (done.returncode, done.stderr) == (2 if words else 0, words)
    assert ("answered: Hola, Juan!" in done.stdout) == (options != "-OO")


def test_a_closed_standard_output_is_no_error():
    words = shlex.join([sys.executable, str(ROOT / "minitrace.py"), "demo"])
    done = subprocess.run(["sh", "-c", f"{words} >&-"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---- the file as a whole


def test_importing_is_quiet_and_light():
    """Nothing is printed, and of what is heavy nothing is imported before it is needed.

    From Python 3.14 on any named tuple takes `ast`: what that brings is not minitrace's.
    """
    heavy = "urllib.request http.client ssl logging asyncio concurrent.futures difflib ast"
    heavy += " email.utils zlib dataclasses inspect"
    code = f"""
    import sys, typing
    typing.NamedTuple("Pair", [("left", "int")])
    before = set(sys.modules)
    import minitrace
    print(sorted(set({heavy!r}.split()) & (set(sys.modules) - before)))
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


MOVED = {
    "minitrace_train": "train evaluate Guide Judge Run Evaluation",
    "minitrace_record": "Replay Budget BudgetError",
    "minitrace_limits": "Limits LimitError CodeError",
    "minitrace_pictures": "to_svg to_mermaid to_dot",
}


@pytest.mark.parametrize(
    "companion, name", [(file, name) for file, names in MOVED.items() for name in names.split()]
)
def test_a_name_that_is_in_a_companion_says_in_which(companion, name):
    words = rf"{name} is in the companion {companion}: copy .*{companion}\.py beside minitrace\.py"
    with pytest.raises(ImportError, match=words):
        exec(f"from minitrace import {name}")
    with pytest.raises(ImportError, match=words):
        getattr(minitrace, name)


def test_the_companions_have_what_is_said_to_be_in_them():
    for companion, names in MOVED.items():
        module = importlib.import_module(companion)
        assert all(hasattr(module, name) for name in names.split())


def test_any_other_name_is_unknown_as_in_every_module():
    with pytest.raises(AttributeError, match="module 'minitrace' has no attribute 'trane'"):
        minitrace.trane  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'trane'"):
        from minitrace import trane  # noqa: F401
