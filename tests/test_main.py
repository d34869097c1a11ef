"""The main job: the demo, the suggestion for a graph in JSON, and what stands in for a language model."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import ROOT

import minitrace
from minitrace import OptoPrime, StubLLM, node


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
    assert "23 degrees: just right" in told.stdout and "'Hola, Juan!'" in told.stdout
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


class Server(BaseHTTPRequestHandler):
    """A language model that plays both of its parts in the demo."""

    seen = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers["Authorization"], body))
        text = "\n".join(message["content"] for message in body["messages"])
        words = next((reply for pattern, reply in minitrace._AGENT_SCRIPT if pattern in text), None)
        if "degrees" in text:
            words = '{"reasoning": "", "answer": "", "suggestion": {"degrees0": 23}}'
        elif "# Variables" in text:
            names = dict(zip(minitrace._SUGGESTION, re.findall(r"^\(\w+\) (\w+)", text, re.M)))
            suggestion = {names[path]: value for path, value in minitrace._SUGGESTION.items()}
            words = json.dumps({"reasoning": "", "answer": "", "suggestion": suggestion})
        data = json.dumps(
            {"choices": [{"message": {"content": words}, "finish_reason": "stop"}]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Server.seen.clear()
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
    assert "'Hola, Juan!'" in told.stdout and "canned" not in told.stdout
    path, key, body = Server.seen[0]
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
    assert "multiply0 = degrees0 * 2  # 6" in Server.seen[0][2]["messages"][1]["content"]


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
            NODES % '{"id": "a", "inputs": {"x": "b"}}, {"id": "b", "inputs": {"x": "a"}}',
            "a cycle: ",
        ),
        (NODES % '{"id": "a"}, {"id": "a"}', "nodes[1]: the id 'a' is used twice"),
        (NODES % '{"id": "a"}', "nothing to suggest"),
        (NODES % "7", "nodes[0]: it must be an object with an id"),
        (
            NODES % '{"id": "a", "value": 1, "trainable": true, "bounds": [5, 9]}',
            "must be between 5 and 9",
        ),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(text, words):
    told = run("suggest", "-", stdin=text)
    assert told.returncode == 2 and told.stdout == ""
    assert words in told.stderr and told.stderr.startswith("suggest: standard input: ")
    assert len(told.stderr.splitlines()) == 1


def test_a_missing_file_is_named(tmp_path):
    told = run("suggest", str(tmp_path / "none.json"))
    assert told.returncode == 2 and "none.json" in told.stderr and "No such file" in told.stderr


# ---- StubLLM


def solve(start, target, seed=0, steps=40, words=("too low", "too high"), **checks):
    x = node(start, name="x", trainable=True, **checks)
    optimizer = OptoPrime([x], llm=StubLLM(seed))
    tolerance = 0 if isinstance(start, int) else 1e-3 * max(1, abs(target))
    for step in range(steps):
        if abs(x.data - target) <= tolerance:
            return step
        optimizer.zero_feedback()
        optimizer.backward(x + 0, words[x.data > target])
        optimizer.step()
    raise AssertionError(f"{x.data} after {steps} steps, {target} is wanted")


@pytest.mark.parametrize("start, target", [(3, 977), (0, -40), (5.0, 0.125), (-2.0, 3.7e3), (1, 0)])
def test_numbers_are_found_by_direction_words(start, target):
    solve(start, target)
    solve(start, target, words=("Please raise it!", "a smaller one, please"))


def test_numbers_stay_inside_their_bounds():
    x = node(3, name="x", trainable=True, bounds=(0, 10))
    optimizer = OptoPrime([x], llm=StubLLM())
    for _ in range(6):
        optimizer.zero_feedback()
        optimizer.backward(x + 0, "too low")
        optimizer.step()
    assert x.data == 10


def climb(start, score, steps=40):
    xs = [node(value, name=f"v{n}_", trainable=True) for n, value in enumerate(start)]
    optimizer = OptoPrime(xs, llm=StubLLM())
    best = -1e99
    for _ in range(steps):
        now = score(*(x.data for x in xs))
        best = max(best, now)
        optimizer.zero_feedback()
        optimizer.backward(sum(xs[1:], xs[0]), "noted", score=now)
        optimizer.step()
    return best


def test_scores_are_climbed():
    assert climb([0.0], lambda x: -((x - 7) ** 2)) > -0.1
    assert climb([0.0, 5.0], lambda x, y: -((x - 3) ** 2) - (y + 2) ** 2, steps=80) > -1.0


def test_choices_and_booleans_that_were_not_tried():
    flag = node(False, name="flag", trainable=True)
    color = node("red", name="color", trainable=True, choices=["red", "green", "blue"])
    optimizer, seen = OptoPrime([flag, color], llm=StubLLM()), [(False, "red")]
    for _ in range(2):
        optimizer.zero_feedback()
        optimizer.backward(minitrace.operators.make_list(flag, color), "wrong")
        optimizer.step()
        seen.append((flag.data, color.data))
    assert {c for _, c in seen} == {"red", "green", "blue"} and seen[1][0] is True


def test_the_stub_says_that_it_cannot_write_and_is_a_function_of_the_prompt():
    text = node("hello", name="text", trainable=True)
    optimizer = OptoPrime([text], llm=StubLLM())
    optimizer.backward(text + "!", "rewrite it")
    proposal = optimizer.propose()
    assert proposal == {} and "a stub cannot write" in proposal.reasoning
    prompt = optimizer.prompt()
    assert StubLLM(3)(prompt) == StubLLM(3)(prompt)


def test_without_a_language_model_the_stub_answers_and_one_warning_says_so(monkeypatch):
    monkeypatch.setattr(minitrace, "_warned_of_stub", False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-spend-this")
    x = node(3, name="x", trainable=True)
    optimizer = OptoPrime([x])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.zero_feedback()
            optimizer.backward(x + 1, "too low")
            optimizer.step()
    assert len(caught) == 1 and "MINITRACE_MODEL" in str(caught[0].message)
    assert x.data > 3


def test_the_environment_names_the_language_model(monkeypatch, server):
    monkeypatch.setenv("MINITRACE_MODEL", "m")
    monkeypatch.setenv("OPENAI_BASE_URL", server)
    degrees = node(3, name="degrees", trainable=True)
    optimizer = OptoPrime([degrees])
    optimizer.backward(degrees + 1, "degrees too low")
    assert optimizer.step() == {degrees: 23}


def test_llm_tries_the_connection(server):
    told = run(
        "llm", "instruct: Decide the language", MINITRACE_MODEL="openai/m", OPENAI_BASE_URL=server
    )
    assert told.returncode == 0, told.stderr
    first, second = told.stdout.splitlines()
    assert first.startswith("openai, m, ") and "usage not told" in first
    assert second == "This message is in Spanish."


def test_llm_says_what_is_wrong():
    told = run("llm", "hi")
    assert told.returncode == 2 and "MINITRACE_MODEL" in told.stderr
    told = run("llm", "hi", MINITRACE_MODEL="openai/m")
    assert told.returncode == 1 and "OPENAI_API_KEY" in told.stderr
