"""Training under attack: stopped at every call, failing everywhere, odd journals, odd scores."""

import asyncio
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_train import DATASET, Shift, Steps, near

import minitrace
from minitrace import (
    OPRO,
    Budget,
    Judge,
    LLMError,
    MinitraceError,
    Module,
    Optimizer,
    OptoPrime,
    Proposal,
    Replay,
    Reply,
    ReplyError,
    Script,
    StubLLM,
    TextGrad,
    bundle,
    evaluate,
    node,
    operators,
    train,
)


def records(path):
    return [json.loads(line) for line in Path(path).read_bytes().split(b"\n") if line]


def calls(path):
    return [record for record in records(path) if record["event"] == "call"]


def timeless(path):
    found = [{k: v for k, v in r.items() if k not in ("time", "seconds")} for r in records(path)]
    return sorted(json.dumps(record, sort_keys=True) for record in found)


# ---- Stopped at every call of a language model and of a guide


class Stop(BaseException):
    """What stops a run, as a signal would."""


class Pure:
    """A language model that is a pure function of the prompt; `tick` may stop a call."""

    def __init__(self, tick, served):
        self.tick, self.served = tick, served

    def __call__(self, messages, **options):
        self.tick()
        text = json.dumps(messages)
        self.served.append(text)
        rng = random.Random(hashlib.sha256(text.encode()).hexdigest())
        if '"score": from 0' in text.replace("\\", ""):
            return json.dumps({"score": rng.random(), "feedback": f"make it {rng.choice('abc')}"})
        if "# Instruction" not in text:
            return f"said {rng.randint(0, 99)}"
        if rng.random() < 0.2:
            return "I refuse."
        values = {"tone0": rng.choice(["dry", "warm", "odd"]), "mark0": rng.choice("!?.")}
        return json.dumps({"suggestion": values})


class Asks(Module):
    def __init__(self, llm):
        self.llm = llm
        self.tone = node("loud", name="tone", trainable=True)
        self.mark = node("-", name="mark", trainable=True)

    def forward(self, question):
        return operators.call_llm(self.llm, self.tone, question) + self.mark


class AsksLater(Asks):
    async def forward(self, question):
        await asyncio.sleep(0)
        return super().forward(question)


@pytest.mark.parametrize(
    "kind, optimizer, judged, options",
    [
        (Asks, OptoPrime, False, {"workers": 4, "candidates": 2, "shuffle": True}),
        (Asks, TextGrad, True, {"workers": 3}),
        (AsksLater, OPRO, True, {"gate": False, "patience": 2}),
    ],
    ids=["optoprime", "textgrad", "opro"],
)
def test_a_run_stopped_at_any_call_goes_on_to_the_same_end(
    tmp_path, kind, optimizer, judged, options
):
    def run(path, tick, served):
        minitrace.GRAPH.clear()
        llm = Pure(tick, served)
        model = kind(llm)

        def length(query, response, info):
            tick()
            return len(response) % 3, f"length {len(response)}"

        done = train(
            model, [(f"q{n}", None) for n in range(4)], Judge("good", llm) if judged else length,
            optimizer(model, llm=llm, memory_size=2), batch_size=2, epochs=2,
            validation=[("v", None)], journal=path, **options,
        )  # fmt: skip
        return done.values, done.score, done.scores, done.reason

    ticks = []
    whole = run(tmp_path / "whole", lambda: ticks.append(1), [])
    wanted = timeless(tmp_path / "whole")
    for stop in range(1, len(ticks) + 1, 6):
        path, served, left = tmp_path / str(stop), [], iter(range(stop - 1))

        def tick(left=left):
            if next(left, None) is None:
                raise Stop

        with pytest.raises(Stop):
            run(path, tick, served)
        assert run(path, lambda: None, served) == whole
        assert timeless(path) == wanted
        assert len(served) == len(calls(path)), "a recorded reply was paid for twice"


PLACES = [
    "model",
    "guide",
    "held_out",
    "llm",
    "propose",
    "backward",
    "update",
    "progress",
    "redact",
]


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_an_exception_anywhere_leaves_the_best_and_the_run_goes_on(tmp_path, place, gate):
    class Boom(Exception):
        pass

    def run(path, stop, workers=1):
        minitrace.GRAPH.clear()
        left = iter(range(stop))

        def tick(here):
            if here == place and next(left, None) is None:
                raise Boom(here)

        class Model(Shift):
            def forward(self, x):
                tick("model")
                return super().forward(x)

        class Told(OptoPrime):
            def propose(self, n=None):
                tick("propose")
                return super().propose(n)

            def backward(self, *args, **kwargs):
                tick("backward")
                super().backward(*args, **kwargs)

            def update(self, update):
                tick("update")
                return super().update(update)

        def llm(messages, **options):
            tick("llm")
            return str(StubLLM()(messages))

        def guide(query, response, info):
            tick("guide" if query < 100 else "held_out")
            return near(query, response, info)

        def redact(record):
            if record["event"] in ("proposal", "step"):
                tick("redact")
            return record

        model = Model()
        optimizer = Told(model, llm=llm)
        error = None
        try:
            train(
                model, DATASET, guide, optimizer, epochs=5, batch_size=2, candidates=2, gate=gate,
                validation=[(100, 107)], workers=workers, journal=path, redact=redact,
                progress=lambda state: tick("progress"),
            )  # fmt: skip
        except (Boom, MinitraceError) as caught:
            error = caught.__cause__ or caught
        assert optimizer.on_refusal == "raise"
        return model.offset.data, error

    for stop, workers in (0, 1), (1, 3), (2, 1), (4, 3):
        path = tmp_path / str(stop)
        value, error = run(path, stop, workers)
        assert isinstance(error, Boom)
        steps = [record for record in records(path) if record["event"] == "step"]
        if gate and place != "redact":
            assert value == (steps[-1]["values"]["offset0"] if steps else 0)
        assert run(path, 10**6) == (7, None)


# ---- What a failure is


def failing(error):
    @bundle()
    def fail(x):
        raise error

    return fail


@pytest.mark.parametrize("kind", ["refused", "filtered", "empty", "cut off"])
def test_what_a_language_model_would_not_say_is_feedback(kind):
    def llm(messages):
        raise LLMError("I would rather not", kind=kind)

    found = evaluate(
        lambda x: operators.call_llm(llm, "Answer.", "x"), DATASET[:1], near, failed_score=-3.0
    )
    assert found.scores == [-3.0] and "I would rather not" in found.failures[0]


@pytest.mark.parametrize("kind", ["setup", "network", "timeout", "status", "unreadable", "miss"])
def test_what_a_network_would_not_carry_ends_the_run(kind):
    def llm(messages):
        raise LLMError("no", kind=kind)

    with pytest.raises(LLMError, match="no"):
        evaluate(lambda x: operators.call_llm(llm, "Answer.", "x"), DATASET[:1], near)


def test_what_limits_stop_is_feedback():
    from minitrace import CodeError, LimitError

    for error in LimitError("too slow"), CodeError("ValueError", "bad", 1, "x", ""):
        assert evaluate(failing(error), DATASET[:1], near).failures[0]


def test_the_source_of_what_failed_is_in_the_feedback():
    @bundle()
    def divide(x):
        return x / 0

    (words,) = evaluate(divide, DATASET[:1], near).feedback
    assert "return x / 0   <-- ZeroDivisionError" in words


def test_failing_examples_of_a_validation_count_by_their_score():
    class Divide(Shift):
        def forward(self, x):
            return x / self.offset

    divide = Divide(1)
    run = train(
        divide, [(8, 4)], lambda q, r, i: float(r == i), Steps(divide, [0, 2]), epochs=2,
        validation=[(2, 1), (4, 2)], failed_score=-1.0,
    )  # fmt: skip
    assert divide.offset.data == 2 and run.score == 1 and run.scores == [0, 0]


# ---- Scores, words, judges


@pytest.mark.parametrize(
    "said, score",
    [
        (Fraction(1, 4), 0.25),
        (Decimal("0.5"), 0.5),
        ((Fraction(1, 4), ["a list", {"of": "things"}]), 0.25),
        (node(0.5), 0.5),
        ((node(1), node("words")), 1.0),
        (True, 1.0),
    ],
)
def test_scores_of_other_types_are_floats(said, score):
    found = evaluate(lambda x: x, [(1, 2)], lambda *_: said)
    assert found.scores == [score] and type(found.scores[0]) is float
    assert not isinstance(found.feedback[0], minitrace.Node)


@pytest.mark.parametrize("said", [Decimal("NaN"), 1j, b"bytes", range(2), object(), [1, 2, 3]])
def test_scores_that_are_none(said):
    with pytest.raises(TypeError, match="a guide gives"):
        evaluate(lambda x: x, [(1, 2)], lambda *_: said)


def test_scores_of_numpy():
    numpy = pytest.importorskip("numpy")
    for said in numpy.float32(0.5), numpy.float64(0.5), numpy.array(0.5), (numpy.float64(0.5), ""):
        assert evaluate(lambda x: x, [(1, 2)], lambda *_, said=said: said).scores == [0.5]
    assert evaluate(lambda x: x, [(1, 2)], lambda *_: numpy.bool_(True)).scores == [1.0]
    with pytest.raises(TypeError, match="a guide gives"):
        evaluate(lambda x: x, [(1, 2)], lambda *_: numpy.zeros(2))


def test_arrays_are_parameters_and_data(tmp_path):
    numpy = pytest.importorskip("numpy")

    def guide(query, response, info):
        return -float(abs(response - info).sum()), "no"

    for _ in range(2):  # the second time the run is read from the journal
        minitrace.GRAPH.clear()
        weights = node(numpy.zeros(3), name="weights", trainable=True)
        run = train(
            lambda x, weights=weights: weights + x, [(numpy.ones(3), numpy.ones(3) * 3)], guide,
            Steps([weights], [numpy.ones(3), numpy.ones(3) * 2, numpy.ones(3)]),
            epochs=3, journal=tmp_path / "run",
        )  # fmt: skip
        assert weights.data.tolist() == [2, 2, 2] and run.score == 0
    assert len([r for r in records(tmp_path / "run") if r["event"] == "step"]) == 3


def test_a_judge_takes_the_whole_range_and_shows_what_was_refused():
    for score in 0, 0.5, 1, "0.25":
        script = Script([json.dumps({"score": score, "feedback": "x"})])
        assert Judge(llm=script)(1, 2, None) == (float(score), "x")
        assert "# Expected" not in script.asked[0][1]["content"]
    script = Script(['{"score": -0.1}', '{"score": 1.1}', '{"score": 0.5, "feedback": ["a"]}'])
    assert Judge(llm=script)(1, 2, 3) == (0.5, "['a']")
    roles = [message["role"] for message in script.asked[-1]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert script.asked[-1][2]["content"] == '{"score": -0.1}'
    with pytest.raises(ReplyError):
        Judge(llm=Script(["?"]), retries=0)(1, 2, 3)
    long = Script(["x" * 30_000, '{"score": 1}'])
    assert Judge(llm=long)(1, 2, 3) == (1.0, "")
    assert len(long.asked[1][2]["content"]) <= 12_000


def test_an_evaluation_records_no_graph():
    shift, found = Shift(3), []

    def look(x):
        found.append(shift(x))
        return found[-1]

    evaluate(look, DATASET, near)
    assert [output.parents for output in found] == [()] * 4


def test_inputs_and_infos_must_be_as_many():
    with pytest.raises(TypeError, match="2 inputs and 1 infos"):
        train(Shift(), {"inputs": [1, 2], "infos": [1]}, near)


def test_the_mean_leaves_out_words_without_scores():
    said = iter([(1, "a"), "words", (0, "b"), "words"])
    found = evaluate(lambda x: x, DATASET, lambda *_: next(said))
    assert found.mean == 0.5 and found.scores == [1, None, 0, None] and found.failures == {}


# ---- The journal


def journaled(path, **options):
    """A small run in which each reply is another, for the same prompt too; the texts that came."""
    minitrace.GRAPH.clear()
    word, seen, count = node("a", name="word", trainable=True), [], options.pop("count")

    def llm(messages, **kwargs):
        count.append(messages)
        return f"reply {len(count)}"

    def ask(question):
        again = [operators.call_llm(llm, "Answer.", text) for text in (question, "b", question)]
        return operators.format("{} {} {} {}", word, *again)

    def guide(query, response, info):
        seen.append(response)
        return len(seen) % 3, response

    run = train(
        ask, [("x", 1), ("y", 1)], guide, Steps([word], ["b", "c", "d", "e"]), epochs=2,
        batch_size=2, candidates=2, validation=[("x", 1), ("y", 1)], journal=path, **options,
    )  # fmt: skip
    return seen, run.values, run.score, run.scores


def test_a_call_is_found_by_its_words_its_turn_and_its_place(tmp_path):
    count = []
    first = journaled(tmp_path / "run", count=count)
    assert len(count) == len(calls(tmp_path / "run")) == 3 * len(first[0])
    text = (tmp_path / "run").read_bytes()
    assert journaled(tmp_path / "run", count=count) == first
    assert len(count) == 3 * len(first[0]) and (tmp_path / "run").read_bytes() == text


class Live(StubLLM):
    """A language model of ours that says something else at each call."""

    def __init__(self, **facts):
        self.facts, self.asked = facts, []

    def _ask(self, messages, options):
        self.asked.append(options)
        return Reply(f"{len(self.asked)}: {sorted(options)}", **self.facts)


def test_words_and_options_tell_calls_apart_in_whatever_order_they_come(tmp_path):
    path, live = tmp_path / "run", Live()
    questions = [(text, {"top_p": 1}) for text in ("Good?", "Bad?")]
    questions += [("Good?", {"max_tokens": 5, "top_p": 1})]

    def once(turned):
        minitrace.GRAPH.clear()
        word, seen = node("a", name="word", trainable=True), []

        def guide(query, response, info):
            said = {}
            for text, options in questions[::-1] if turned else questions:
                given = dict(reversed(options.items())) if turned else options
                said[text, len(options)] = live(text, **given)
            seen.append(said)
            return 1

        train(lambda x: word + x, [("b", 1)], guide, Steps([word], ["c"]), journal=path)
        return seen

    assert once(False) == once(True) and len(live.asked) == 6


def test_a_language_model_inside_another_is_recorded_once(tmp_path):
    word = node("a", name="word", trainable=True)
    replay = Replay(tmp_path / "cassette", live=Script(["one", "two"]))
    train(
        lambda x: operators.call_llm(replay, word, x), [("b", 1)], lambda *_: 1,
        Steps([word], ["c"]), journal=tmp_path / "run",
    )  # fmt: skip
    assert [call["reply"] for call in calls(tmp_path / "run")] == ["one", "two"]


def test_what_is_known_of_a_reply_comes_back_with_it(tmp_path):
    usage, seen = {"input_tokens": 900, "output_tokens": 90}, []
    live = Live(usage=usage, model="m", finish_reason="length")

    def once():
        minitrace.GRAPH.clear()
        word = node("a", name="word", trainable=True)

        def guide(query, response, info):
            reply = live("Is it good?")
            seen.append((reply.usage, reply.model, reply.finish_reason))
            return 1

        with Budget() as budget:
            train(
                lambda x: word + x, [("b", 1)], guide,
                OptoPrime([word], llm=Script(['{"suggestion": {"word0": "c"}}'] * 2)),
                journal=tmp_path / "run",
            )  # fmt: skip
        return budget.spent["calls"], budget.spent["tokens"]

    first = once()
    assert once() == first and first[0] == 3 and first[1] > 2 * 990  # replayed calls count too
    assert len(live.asked) == 2 and seen == [(usage, "m", "length")] * 4
    known = [(c["usage"], c["model"], c["finish_reason"]) for c in calls(tmp_path / "run")]
    assert known.count((usage, "m", "length")) == 2


def test_answers_of_other_clients_are_recorded_as_text(tmp_path):
    class Completion:
        def __init__(self, text):
            self.choices = [SimpleNamespace(message=SimpleNamespace(content=text))]
            self.usage, self.model = SimpleNamespace(total_tokens=7, details=object()), object()

    def once(llm):
        minitrace.GRAPH.clear()
        word = node("a", name="word", trainable=True)
        run = train(
            lambda x: operators.call_llm(llm, word, x), [("b", 1)], lambda q, r, i: (r == "d", r),
            OptoPrime([word], llm=llm), journal=tmp_path / "run",
        )  # fmt: skip
        return run.values, run.score

    def llm(messages):
        asked = "# Instruction" in messages[-1]["content"]
        return Completion('{"suggestion": {"word0": "c"}}' if asked else "d")

    def nobody(messages):
        raise AssertionError("this reply was recorded")

    assert once(llm) == once(nobody)
    assert " at 0x" not in (tmp_path / "run").read_text()
    assert calls(tmp_path / "run")[0]["usage"] == {"total_tokens": 7}


def test_a_reply_is_on_the_disk_before_anything_else_happens(tmp_path):
    path = tmp_path / "run"
    word = node("a", name="word", trainable=True)

    def guide(query, response, info):
        assert calls(path)[-1]["reply"] == response
        return 1

    script = Script(["one", "two"])
    train(
        lambda x: operators.call_llm(script, word, x), [("b", 1)], guide,
        Steps([word], ["c"]), journal=path,
    )  # fmt: skip


def test_long_texts_are_cut_and_odd_ones_kept(tmp_path):
    word = node("a", name="word", trainable=True)
    train(
        lambda x: word * 50_000, [("q" * 50_000, 1)], lambda *_: (1, "f" * 50_000 + "\udfff"),
        Steps([word], ["b"]), journal=tmp_path / "run", gate=False,
    )  # fmt: skip
    (example,) = [r for r in records(tmp_path / "run") if r["event"] == "example"]
    assert 1900 < len(example["query"]) <= 2050 and 1900 < len(example["response"]) <= 2050
    assert 7900 < len(example["feedback"]) <= 8050 and example["feedback"].endswith("\udfff")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [line[:-1] + b"\r\n" for line in lines],
        lambda lines: [b"\xef\xbb\xbf" + lines[0], *lines[1:]],
        lambda lines: [lines[0], *reversed(lines[1:])],
        lambda lines: [*lines, *lines[1:]],
        lambda lines: [*lines[:-1], lines[-1][:-1]],
        lambda lines: [*lines, b"\x00" * 512],
        lambda lines: [*lines, lines[5][:60]],
        lambda lines: [line.replace(b'"event"', b' "note": [1],  "event"', 1) for line in lines],
    ],
    ids=["crlf", "bom", "reversed", "doubled", "unended", "nul", "torn", "spaced"],
)
def test_a_journal_that_an_editor_or_a_crash_has_changed_is_still_read(tmp_path, change):
    path, count = tmp_path / "run", []
    first = journaled(path, count=count)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(True))))
    paid = len(count)
    assert journaled(path, count=count) == first and len(count) == paid
    assert path.read_bytes().endswith(b"\n") and b"\x00" not in path.read_bytes()


def test_a_call_whose_line_was_whole_but_for_its_end_is_kept(tmp_path):
    path, count = tmp_path / "run", []
    first = journaled(path, count=count)
    lines, paid = path.read_bytes().splitlines(True), len(count)
    place = max(n for n, line in enumerate(lines) if b'"event": "call"' in line)
    path.write_bytes(b"".join(lines[: place + 1])[:-1])
    assert journaled(path, count=count) == first and len(count) == paid
    assert len(path.read_bytes().splitlines()) == len(lines)


def test_lines_that_were_taken_out_are_asked_for_again_and_no_others(tmp_path):
    path, served = tmp_path / "run", []

    def run():
        minitrace.GRAPH.clear()
        model = Asks(Pure(lambda: None, served))
        return train(
            model, [("q0", 1), ("q1", 2)], lambda q, r, i: (len(r) % 3, r),
            OptoPrime(model, llm=model.llm), epochs=3, batch_size=2, journal=path,
        )[:4]  # fmt: skip

    first, lines = run(), path.read_bytes().splitlines(True)
    rng = random.Random(3)
    for _ in range(5):
        kept = lines[:1] + [line for line in lines[1:] if rng.random() < 0.6]
        path.write_bytes(b"".join(kept))
        gone = sum(b'"event": "call"' in line for line in lines if line not in kept)
        paid = len(served)
        assert run() == first and len(served) == paid + gone
        assert len(path.read_bytes().splitlines()) == len(lines)


@pytest.mark.parametrize("place", [1, 5])
@pytest.mark.parametrize("line", [b"\n", b'{"event": "call", "st\n', b'{"event": []}\n', b"7\n"])
def test_a_line_that_is_none_is_named_and_nothing_is_lost(tmp_path, place, line):
    path, count = tmp_path / "run", []
    first = journaled(path, count=count)
    lines, paid = path.read_bytes().splitlines(True), len(count)
    broken = b"".join([*lines[:place], line, *lines[place:]])
    path.write_bytes(broken)
    with pytest.raises(MinitraceError, match=f"line {place + 1}: not a record") as caught:
        journaled(path, count=count)
    assert path.read_bytes() == broken
    path.write_bytes(b"".join(lines))  # while the error lives, nothing of it holds the file
    assert journaled(path, count=count) == first and len(count) == paid and caught


def test_a_finished_run_without_a_gate_is_read_again_in_the_same_program(tmp_path):
    shift, path = Shift(), tmp_path / "run"
    for _ in range(2):
        run = train(
            shift, DATASET, near, Steps(shift, [5, 1, 2]), epochs=3, batch_size=4, gate=False,
            validation=DATASET, journal=path,
        )  # fmt: skip
        assert shift.offset.data == 5 and run.score == -2 and run.scores == [-7, -2, -6]
    assert sum(record["event"] == "step" for record in records(path)) == 3


def test_what_differs_is_told_for_everything_that_counts(tmp_path):
    path = tmp_path / "run"
    usual = {"epochs": 2, "batch_size": 4, "candidates": 1, "patience": 3, "seed": 1}
    usual |= {"validation": [(1, 8)], "gate": True, "shuffle": False}

    def run(kind=Steps, **changes):
        minitrace.GRAPH.clear()
        shift = Shift()
        train(shift, DATASET, near, kind(shift, [1] * 9), journal=path, **{**usual, **changes})

    run()
    text = path.read_bytes()
    changes = {"epochs": 3, "batch_size": 2, "candidates": 2, "patience": None, "seed": 2}
    changes |= {"validation": [(1, 9)], "gate": False, "shuffle": True}
    for name, value in changes.items():
        with pytest.raises(MinitraceError, match=f"run is the journal of another run: {name} was"):
            run(**{name: value})
    with pytest.raises(MinitraceError, match="optimizer was 'Steps', now 'Others'"):
        run(kind=type("Others", (Steps,), {}))
    run(workers=4, progress=lambda state: None, redact=lambda record: record)  # these do not count
    assert path.read_bytes() == text


def test_a_killed_writer_gives_the_journal_free(tmp_path):
    path = tmp_path / "run"
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from minitrace import *\n"
        "def guide(query, response, info):\n"
        "    print('here', flush=True); time.sleep(60)\n"
        "train(node(0, name='offset', trainable=True), [(1, 8)], guide, journal=sys.argv[2])\n"
    )
    root = str(Path(minitrace.__file__).parent)
    command = [sys.executable, "-W", "ignore", "-c", code, root, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        offset = node(0, name="offset", trainable=True)
        optimizer = OptoPrime([offset], llm=StubLLM())
        with pytest.raises(MinitraceError, match="is being written by another run"):
            train(offset, [(1, 8)], lambda *_: 1, optimizer, journal=path)
        process.send_signal(signal.SIGKILL)
    train(offset, [(1, 8)], lambda *_: 1, optimizer, journal=path)
    assert records(path)[-1]["event"] == "end"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits on files are of Unix")
def test_a_full_disk_ends_the_run_with_the_system_s_words(tmp_path):
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from minitrace import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "size = int(sys.argv[3])\n"
        "if size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "word = node('a', name='word', trainable=True)\n"
        "class Next(Optimizer):\n"
        "    def propose(self, n=None): return Proposal({word: word.data + 'a'})\n"
        "try: train(word, [('x', 1)] * 4, lambda q, r, i: len(r), Next([word]), journal=sys.argv[2])\n"
        "except (OSError, MinitraceError) as error: print('File too large' in str(error), end=' ')\n"
        "print(word.data)\n"
    )
    root = str(Path(minitrace.__file__).parent)

    def run(name, size):
        command = [sys.executable, "-c", code, root, str(tmp_path / name), str(size)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    whole = run("whole", 0)
    size = (tmp_path / "whole").stat().st_size
    for part in 0.2, 0.7:
        assert run(str(part), int(size * part)).startswith("True a")
        assert run(str(part), 0) == whole
        assert timeless(tmp_path / str(part)) == timeless(tmp_path / "whole")


# ---- Executors


class Inline(Executor):
    """The simplest executor there is."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Divide(Shift):
    def forward(self, x):
        return x / self.offset


class Deep(Shift):
    def forward(self, x):
        total = self.offset + x
        for _ in range(300):
            total = total + 1
        return total


class Later(Shift):
    async def forward(self, x):
        await asyncio.sleep(0)
        return x + self.offset


class Words(Module):
    def __init__(self):
        self.word = node("dry", name="word", trainable=True)

    def forward(self, x):
        return [self.word + str(x), {"again": self.word}]


def critic(messages, **options):
    asked = "# Instruction" in messages[-1]["content"]
    return '{"suggestion": {"word0": "warm"}}' if asked else "Warmer."


def told(query, response, info):
    return float("warm" in response[0]), "be warm"


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("kind", [Shift, Divide, Deep, Later, Words])
def test_every_executor_gives_the_same_run(kind, processes):
    def run(executor):
        minitrace.GRAPH.clear()
        model = kind()
        words = kind is Words
        optimizer = TextGrad(model, llm=critic) if words else OptoPrime(model, llm=StubLLM())
        found = train(
            model, DATASET, told if words else near, optimizer, batch_size=3, epochs=2,
            candidates=2, executor=executor, validation=DATASET[:2],
        )  # fmt: skip
        return found.values, found.score, found.scores, found.reason

    with ThreadPoolExecutor(3) as threads:
        assert run(None) == run(Inline()) == run(threads) == run(processes)


class Quits(Shift):
    def forward(self, x):
        if self.offset.data:
            os._exit(3)
        return super().forward(x)


def test_a_worker_process_that_dies_ends_the_run_and_the_best_stays():
    shift = Quits()
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(Exception, match="terminated abruptly"),
    ):
        train(shift, DATASET, near, Steps(shift, [1]), executor=pool, batch_size=4)
    assert shift.offset.data == 0


class Asking(Module):
    """Notes on a file every call that reaches its language model."""

    def __init__(self, path):
        self.word, self.path = node("a", name="word", trainable=True), path

    def llm(self, messages):
        with open(self.path, "a") as file:
            file.write("asked\n")
        return f"reply {len(messages)}"

    def forward(self, x):
        return operators.call_llm(self.llm, self.word, x)


def length(query, response, info):
    return len(response), response


def test_another_process_pays_for_no_recorded_reply_again(tmp_path, processes):
    path, served = tmp_path / "run", tmp_path / "served"
    for _ in range(2):
        minitrace.GRAPH.clear()
        model = Asking(str(served))
        train(
            model, [("b", 1), ("c", 1)], length, Steps(model, ["d"]), batch_size=2,
            executor=processes, journal=path,
        )  # fmt: skip
        assert len(served.read_text().splitlines()) == len(calls(path)) == 4


def scolds(query, response, info):
    raise ReplyError("no", ["said"], ["wrong"])


def gives_up(query, response, info):
    raise LLMError("down", kind="status", status=500)


def test_exceptions_come_back_from_another_process_as_they_were(processes):
    found = evaluate(Shift(), DATASET, scolds, executor=processes)
    assert found.mean is None and found.feedback == ["(not judged: no)"] * 4
    with pytest.raises(LLMError, match="down") as caught:
        evaluate(Shift(), DATASET, gives_up, executor=processes)
    assert (caught.value.kind, caught.value.status) == ("status", 500)


# ---- Order


def test_the_examples_of_a_shuffled_batch_run_in_its_order():
    seen, shift = [], Shift()

    def look(x):
        seen.append(x)
        return shift(x)

    train(
        look, DATASET, lambda *_: "ok", Steps(shift, [None] * 9), batch_size=4, epochs=3,
        shuffle=True, gate=False,
    )  # fmt: skip
    epochs = [seen[:4], seen[4:8], seen[8:]]
    assert all(sorted(each) == [1, 2, 3, 4] for each in epochs)
    assert [1, 2, 3, 4] not in epochs and len({tuple(each) for each in epochs}) > 1


def test_the_prompt_is_the_same_however_the_threads_run():
    def prompts(workers):
        minitrace.GRAPH.clear()
        shift, turn = Shift(), threading.Barrier(4, timeout=20)

        class Crossed(Shift):
            def forward(self, x):
                first = shift.offset * x
                if workers > 1:
                    turn.wait()
                return first + operators.format("{}", x).call("__len__") + shift.offset

        script = Script(['{"suggestion": {}}'])
        optimizer = OptoPrime(shift, llm=script)
        train(Crossed(), DATASET, near, optimizer, batch_size=4, workers=workers)
        return script.asked

    assert prompts(1) == prompts(4) == prompts(4)


def test_a_node_that_examples_share_stands_before_all_of_them():
    class Shares(Shift):
        def forward(self, x):
            if x == 1:
                self.shared = self.offset * 2
            return self.shared + x

    shares = Shares()
    script = Script(['{"suggestion": {"offset0": 3}}'])
    run = train(shares, DATASET, near, OptoPrime(shares, llm=script), batch_size=4)
    code = script.asked[0][-1]["content"]
    assert run.score == -1 and code.count("offset0 * 2") == 1


def test_nodes_from_before_the_run_keep_their_order():
    class Kept(Shift):
        def __init__(self):
            super().__init__()
            self.first = self.offset * 2
            self.second = self.first + 1

        def forward(self, x):
            return (self.second if x % 2 else self.first) + x

    kept = Kept()
    run = train(kept, DATASET, near, Steps(kept, [None] * 9), batch_size=1, epochs=2)
    assert run.reason == "epochs" and kept.first._number < kept.second._number


# ---- Candidates, the gate, and how it ends


def test_patience_counts_in_steps_and_not_in_candidates():
    shift = Shift(5)
    values = [6, 4, 1, 2, 6, 0, 3, 4, 7, 7]
    run = train(
        shift, DATASET, near, Steps(shift, values), epochs=9, batch_size=4, candidates=2, patience=3
    )
    assert (run.reason, run.steps, shift.offset.data) == ("patience", 4, 6)


def test_the_step_that_found_the_best_is_told(tmp_path):
    shift, path = Shift(0), tmp_path / "run"
    train(shift, DATASET, near, Steps(shift, [1, 5, 2, None]), epochs=4, batch_size=4, journal=path)
    steps = [record for record in records(path) if record["event"] == "step"]
    told = [(s["accepted"], s["reason"], s["best"]["step"], s["best"]["score"]) for s in steps]
    assert told == [
        (1, "better", 1, -6.0),
        (1, "better", 2, -2.0),
        (0, "worse", 2, -2.0),
        (0, "no change", 2, -2.0),
    ]
    assert [step["epoch"] for step in steps] == [1, 2, 3, 4]
    assert records(path)[-1]["best"] == {"step": 2, "score": -2.0}


def test_of_what_was_tried_in_vain_the_whole_setting_and_four_words_are_remembered():
    model = Module()
    model.a, model.b = (node(n, name=name, trainable=True) for n, name in ((5, "a"), (3, "b")))
    model.forward = lambda x: model.a + model.b + x

    class Low(Optimizer):
        def propose(self, n=None):
            return [Proposal({model.a: 0}), Proposal({model.a: 1})]

    def guide(query, response, info):
        return response, f"words {query}"

    optimizer = Low(model)
    train(model, [(n, 0) for n in range(6)], guide, optimizer, batch_size=6, candidates=2)
    assert [attempt.values for attempt in optimizer.history] == [
        {"a0": 0, "b0": 3},
        {"a0": 1, "b0": 3},
    ]
    assert optimizer.history[0].feedback == [f"words {n}" for n in range(4)]
    assert optimizer.history[1].score == 6.5


def test_a_projection_is_tried_as_it_will_be_set():
    rate = node(3.0, name="rate", trainable=True, projections=[lambda value: round(value)])
    seen = []

    def look(x):
        seen.append(rate.data)
        return rate + x

    train(look, [(0, 0)], lambda q, r, i: float(r), Steps([rate], [4.4]))
    assert seen == [3.0, 4.0] and rate.data == 4.0


def test_code_of_a_bundle_that_fails_is_not_kept():
    @bundle(trainable=True)
    def double(x):
        return x

    bodies = ["return x +", "return nothing", "return 1 / 0", "return 2 * x"]
    replies = [json.dumps({"suggestion": {"__code0": f"def double(x):\n    {b}"}}) for b in bodies]
    run = train(
        double, [(2, 4)], lambda q, r, i: r == i,
        OptoPrime(double, llm=Script(replies), retries=0), epochs=4, failed_score=-1.0,
    )  # fmt: skip
    assert run.score == 1 and double(5).data == 10 and run.scores == [0.0] * 4


def test_many_runs_at_once_do_not_meet(tmp_path):
    ends = {}

    def one(goal):
        shift = Shift()
        optimizer = OptoPrime(shift, llm=StubLLM())
        data = [(n, n + goal) for n in range(4)]
        train(
            shift, data, near, optimizer, epochs=8, batch_size=4, workers=2, candidates=2,
            journal=tmp_path / str(goal),
        )  # fmt: skip
        ends[goal] = shift.offset.data

    threads = [threading.Thread(target=one, args=(goal,)) for goal in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == {goal: goal for goal in range(2, 8)}


def test_a_run_inside_a_guide_leaves_the_one_around_it_alone():
    shift, learned = Shift(), []

    def guide(query, response, info):
        inner = Shift()
        optimizer = OptoPrime(inner, llm=StubLLM())
        train(inner, [(0, 2)], near, optimizer, epochs=6)
        learned.append(inner.offset.data)
        return near(query, response, info)

    with Budget() as around:
        run = train(
            shift, DATASET, guide, Steps(shift, [5, 6, 7]), epochs=3, batch_size=4, workers=2,
            gate=False,
        )  # fmt: skip
    assert run.scores == [-7, -2, -1] and learned == [2] * 12
    assert around.spent["calls"] == run.spent["calls"] == 6 * 12


def test_the_line_of_progress_is_written_over_and_ended_once(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen, shift = Terminal(), Shift()
    monkeypatch.setattr(sys, "stderr", screen)
    train(shift, DATASET, near, Steps(shift, [1] * 9), batch_size=2, epochs=2)
    assert screen.getvalue().count("\n") == 1 and screen.getvalue().count("\r") == 4
    screen.truncate(0)
    train(shift, DATASET, near, Steps(shift, [1] * 9), progress=False)
    assert screen.getvalue().strip("\x00") == ""


def test_ten_thousand_examples_are_no_matter():
    shift = Shift()
    data = [(n, n + 7) for n in range(10_000)]
    assert evaluate(shift, data, near, workers=4).mean == -7
    optimizer = Steps(shift, [7])
    run = train(shift, data[:2_000], near, optimizer, batch_size=2_000, workers=4)
    assert run.score == 0 and len(shift.offset.feedback) == 1


def test_what_was_refused_before_an_interruption_is_forgotten_with_it(tmp_path):
    shift, asked = Shift(), []

    def llm(messages, **options):
        asked.append(messages)
        value = '"x"' if len(messages) == 2 else len(asked)
        return f'{{"suggestion": {{"offset0": {value}}}}}'

    optimizer = OptoPrime(shift, llm=llm, memory_size=2)

    def run(stop):
        left = iter(range(stop))

        def guide(query, response, info):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return near(query, response, info)

        train(shift, DATASET, guide, optimizer, epochs=3, batch_size=4, journal=tmp_path / "run")

    with pytest.raises(KeyboardInterrupt):
        run(18)
    assert len(asked) == 4
    run(10**6)
    assert len(asked) == 6 == len(calls(tmp_path / "run"))


def test_values_that_json_lacks_are_put_back(tmp_path):
    for start, then in ((1, 2), (3, 4)), ({1, 2}, {3}), ({1: "a"}, {2: "b"}), (b"a", b"b"):
        minitrace.GRAPH.clear()
        value = node(start, name="value", trainable=True)
        for _ in range(2):
            run = train(
                value, [(0, then)], lambda q, r, i: r == i, Steps([value], [then]),
                journal=tmp_path / str(start),
            )  # fmt: skip
            assert value.data == then and run.scores == [0] and run.score == 1


def test_every_output_has_its_own_score_in_the_prompt():
    shift = Shift()
    script = Script(['{"suggestion": {}}'])
    data = [(1, 8), (2, 3)]
    train(shift, data, near, OptoPrime(shift, llm=script), batch_size=2)
    prompt = script.asked[0][-1]["content"]
    assert prompt.count("(score: -7)") == prompt.count("(score: -1)") == 1


def test_a_large_graph_is_left_out_of_the_journal(tmp_path):
    for kind, held in (Shift, True), (Deep, False):
        model = kind()
        data = DATASET[:2]
        train(model, data, near, Steps(model, [1]), batch_size=2, journal=tmp_path / kind.__name__)
        (step,) = [r for r in records(tmp_path / kind.__name__) if r["event"] == "step"]
        assert (step["graph"] is not None) is held
        minitrace.GRAPH.clear()


def test_of_candidates_without_a_gate_the_best_is_kept():
    shift = Shift()
    train(shift, DATASET, near, Steps(shift, [1, 3, 2]), batch_size=4, gate=False, candidates=3)
    assert shift.offset.data == 3


def test_what_is_as_good_is_kept_too_and_told_apart(tmp_path):
    shift = Shift(6)
    run = train(
        shift, DATASET, near, Steps(shift, [8, 6, 8]), epochs=3, batch_size=4,
        journal=tmp_path / "run",
    )  # fmt: skip
    steps = [record for record in records(tmp_path / "run") if record["event"] == "step"]
    assert shift.offset.data == 8 and run.score == -1
    assert [(step["accepted"], step["reason"]) for step in steps] == [(1, "as good")] * 3


def test_only_what_was_not_kept_is_remembered_as_that():
    shift = Shift()
    optimizer = Steps(shift, [3, 5, None])
    train(shift, DATASET, near, optimizer, batch_size=4, candidates=3)
    assert [(attempt.values, attempt.reason) for attempt in optimizer.history] == [
        ({"offset0": 3}, "not kept"),
        ({"offset0": 0}, ""),
    ]


def test_validation_compares_with_the_values_that_were_kept_last():
    shift = Shift()
    steps, held_out = Steps(shift, [5, 3, 4]), [(1, 9), (2, 10)]
    run = train(shift, [(1, 8)], near, steps, epochs=3, validation=held_out)
    assert shift.offset.data == 5 and run.score == -3 and run.scores == [-7, -2, -2]


def test_a_harder_batch_does_not_undo_what_was_learned():
    shift = Shift()
    train(shift, [(0, 5), (0, 90)], near, Steps(shift, [5, 6]))
    assert shift.offset.data == 6


def test_the_time_left_is_that_of_the_steps_left(monkeypatch):
    clock, states, shift = [100.0], [], Shift()
    monkeypatch.setattr(minitrace.time, "monotonic", lambda: clock[0])

    def guide(query, response, info):
        clock[0] += 10
        return near(query, response, info)

    train(shift, DATASET, guide, Steps(shift, [None] * 4), progress=states.append)
    assert [(state["step"], state["seconds_left"]) for state in states] == [
        (1, 30), (2, 20), (3, 10), (4, 0),
    ]  # fmt: skip


def test_after_a_failure_no_other_example_is_begun():
    begun, ended = [], threading.Event()

    def model(x):
        begun.append(x)
        if x == 0:
            raise KeyError("mine")
        ended.wait(0.05)

    with pytest.raises(KeyError, match="mine"):
        evaluate(model, range(60), workers=2)
    assert len(begun) < 30
