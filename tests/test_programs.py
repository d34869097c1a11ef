"""The tutorial's programs: a relay to any chat window, and a trained class as plain Python."""

import io
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from minitrace import Module, OptoPrime, Replay, Script, bundle, model, node, operators

sys.path.insert(0, str(ROOT / "tutorial"))
from export import export  # noqa: E402
from relay import Relay  # noqa: E402

# ---- relay


def answer(folder, count, words):
    """Play the language model: answer each prompt file as it appears."""
    for number in range(1, count + 1):
        prompt = folder / f"{number:04}.prompt.md"
        while not prompt.exists():
            time.sleep(0.01)
        (folder / f"{number:04}.reply.md").write_text(words(prompt.read_text()))


def test_a_relay_through_files_drives_an_optimizer_and_can_be_recorded(tmp_path):
    x = node(1, name="x", trainable=True)
    replay = Replay(tmp_path / "cassette.jsonl", live=Relay(tmp_path / "talk", pause=0.01))
    optimizer = OptoPrime([x], llm=replay)
    optimizer.backward(x + 1, "too low")
    seen = []

    def words(prompt):
        seen.append(prompt)
        return '{"suggestion": {"x0": 5}}'

    player = threading.Thread(target=answer, args=(tmp_path / "talk", 1, words))
    player.start()
    assert optimizer.step() == {x: 5}
    player.join()
    assert "## system" in seen[0] and "(int) x0 = 1" in seen[0]
    x.set(1)
    again = OptoPrime([x], llm=Replay(tmp_path / "cassette.jsonl"))
    assert again.step() == {x: 5}


def test_a_relay_gives_up_in_time(tmp_path):
    with pytest.raises(TimeoutError, match="0001.reply.md"):
        Relay(tmp_path, seconds=0.05, pause=0.01)("hello?")


def test_a_relay_on_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("first line\nsecond line\n.\nnot read\n"))
    assert Relay()("Well?") == "first line\nsecond line"
    assert "## user\n\nWell?" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["Paris\n.\n", "Paris", "Paris\n."])
def test_the_relay_as_a_program(typed):
    command = [sys.executable, str(ROOT / "tutorial" / "relay.py"), "Capital of France?"]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=20)
    assert done.stdout == "Paris\n" and "Capital of France?" in done.stderr


# ---- export


@model
class Greeter:
    """It greets."""

    def __init__(self):
        self.word = node("Hello", name="word", trainable=True)
        self.times = 1

    def forward(self, name):
        return self.greet(self.word, name)

    @bundle(trainable=True)
    def greet(self, word, name):
        return word + " " + name

    @bundle()
    def shout(self, text):
        return text.upper() * self.times


def test_a_trained_class_becomes_plain_python():
    greeter = Greeter()
    greeter.word.set("Hi")
    greeter.greet.parameter.set("def greet(self, word, name):\n    return f'{word}, {name}!'")
    source, problems = export(greeter)
    assert problems == []
    assert "minitrace" not in source and "bundle" not in source and "node" not in source
    space = {}
    exec(source, space)
    plain = space["Greeter"]()
    assert plain.forward("Ada") == greeter.forward("Ada").data == "Hi, Ada!"
    assert plain.shout("x") == "X"


class Asker(Module):
    def __init__(self):
        self.prompt = node("Be brief.", name="prompt", trainable=True)

    def forward(self, question):
        return operators.call_llm(Script(["ok"]), self.prompt, question)


def test_what_cannot_be_plain_is_said_with_its_line():
    source, problems = export(Asker())
    (line, words), *_ = problems
    assert "operators" in source.splitlines()[line - 1] and "operators" in words
