"""Training: batches side by side, the gate, the journal, and what a stopped run comes to."""

import asyncio
import builtins
import contextlib
import gc
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import minitrace_train
import pytest
import train_program
from conftest import BARE, COMPANIONS, ROOT, by_thread
from minitrace_limits import CodeError, LimitError
from minitrace_record import Budget, BudgetError, Replay
from minitrace_train import Guide, Judge, evaluate, train

import minitrace
from minitrace import (
    OPRO,
    LanguageModel,
    LLMError,
    MinitraceError,
    Module,
    Optimizer,
    OptoPrime,
    Proposal,
    Reply,
    ReplyError,
    Script,
    StubLLM,
    TextGrad,
    bundle,
    node,
    operators,
)

HERE = Path(__file__).resolve().parent

# Said on purpose, and asked for where a test is about it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*holds the whole of this run"),
    pytest.mark.filterwarnings("ignore:no reply to the optimizer could be used"),
    pytest.mark.filterwarnings("ignore:.*the run differs from the one on record"),
]


class Shift(Module):
    """Adds a number that it has to learn."""

    def __init__(self, start=0):
        self.offset = node(start, name="offset", trainable=True)

    def forward(self, x):
        return x + self.offset


def near(query, response, info):
    """Minus the distance, and words."""
    return -abs(response - info), "too low" if response < info else "too high"


def exact(query, response, info):
    return response == info


DATASET = [(1, 8), (2, 9), (3, 10), (4, 11)]


class Steps(Optimizer):
    """Proposes values from a list, whatever was said; None is no change."""

    def __init__(self, parameters, values):
        super().__init__(parameters)
        self.values = iter(values)

    def propose(self, n=None):
        values = [next(self.values) for _ in range(n or 1)]
        made = [Proposal({} if v is None else {self.parameters[0]: v}) for v in values]
        return made if n else made[0]


def records(path):
    return [json.loads(line) for line in Path(path).read_bytes().split(b"\n") if line]


def calls(path):
    return [record for record in records(path) if record["event"] == "call"]


def timeless(path):
    found = [{k: v for k, v in r.items() if k not in ("time", "seconds")} for r in records(path)]
    return sorted(json.dumps(record, sort_keys=True) for record in found)


# ---- What a run does


def test_a_number_is_learned_from_words():
    shift = Shift()
    run = train(shift, DATASET, near, OptoPrime(shift, llm=StubLLM()), epochs=4, batch_size=2)
    assert shift.offset.data == 7 and run.score == 0 and run.reason == "epochs" and run.steps == 8


def test_a_dataset_may_be_an_iterator_or_the_mapping_of_trace():
    for data in iter(DATASET), {"inputs": [1, 2, 3, 4], "infos": [8, 9, 10, 11]}:
        shift = Shift()
        train(shift, data, near, OptoPrime(shift, llm=StubLLM()), epochs=10, batch_size=4)
        assert shift.offset.data == 7


@pytest.mark.filterwarnings("ignore:no language model is configured")
def test_the_default_optimizer_is_an_optoprime_of_the_model():
    shift = Shift()
    train(shift, DATASET, near, epochs=10, batch_size=4)
    assert shift.offset.data == 7


def test_a_parameter_is_a_model():
    number = node(1, name="number", trainable=True)
    run = train(number, [(None, 5)], near, OptoPrime([number], llm=StubLLM()), epochs=8)
    assert number.data == 5 and run.values == {"number0": 5}


def test_a_bundle_is_a_model():
    @bundle(trainable=True)
    def double(x):
        return x

    script = Script(
        [json.dumps({"suggestion": {"double_code": "def double(x):\n    return 2 * x"}})]
    )
    train(double, [(2, 4)], exact, OptoPrime(double, llm=script))
    assert double(5).data == 10


def test_a_plain_function_is_a_model_if_the_optimizer_has_its_parameters():
    rate = node(1, name="rate", trainable=True)
    optimizer = OptoPrime([rate], llm=StubLLM())
    train(lambda x: rate * x, [(1, 4), (1, 4)], near, optimizer, epochs=6)
    assert rate.data == 4


def test_an_async_model_and_an_async_guide_are_awaited_also_where_a_loop_runs():
    class Slow(Shift):
        async def forward(self, x):
            await asyncio.sleep(0.001)
            return x + self.offset

    async def judge(query, response, info):
        await asyncio.sleep(0)
        return near(query, response, info)

    async def notebook():
        return train(slow, DATASET, judge, OptoPrime(slow, llm=StubLLM()), epochs=9, batch_size=4)

    slow = Slow()
    run = asyncio.run(notebook())
    assert slow.offset.data == 7 and run.score == 0


def test_a_container_of_nodes_is_an_output():
    class Two(Shift):
        def forward(self, x):
            return [x + self.offset, {"again": self.offset}]

    def guide(query, response, info):
        assert isinstance(response, list) and response[0] == query + response[1]["again"]
        return near(query, response[0], info)

    two = Two()
    train(two, DATASET, guide, OptoPrime(two, llm=StubLLM()), epochs=10, batch_size=4)
    assert two.offset.data == 7


def test_each_example_keeps_its_own_feedback_in_one_backward():
    shift, optimizer = Shift(), None
    optimizer = OptoPrime(shift, llm=Script(['{"suggestion": {}}']))
    script = optimizer.llm
    train(shift, DATASET, lambda q, r, i: (r - i, f"box {q}"), optimizer, batch_size=4)
    prompt = script.asked[0][-1]["content"]
    assert len(shift.offset.feedback) == 1
    assert [f"box {n}" in prompt for n in (1, 2, 3, 4)] == [True] * 4
    assert prompt.count("(score: -7)") == 4


@pytest.mark.parametrize(
    "said, score, words",
    [
        ((0.5, "so so"), 0.5, "so so"),
        ([1, "list"], 1.0, "list"),
        (True, 1.0, ""),
        (3, 3.0, ""),
        ("words", None, "words"),
        ((None, "words"), None, "words"),
    ],
)
def test_what_a_guide_may_give(said, score, words):
    found = evaluate(lambda x: x, [(1, 2)], lambda query, response, info: said)
    assert found.scores == [score] and found.feedback == [words] and found.mean == score


@pytest.mark.parametrize(
    "said", [None, {}, (1, 2, 3), float("nan"), (float("inf"), "x"), ("a", "b")]
)
def test_what_a_guide_may_not_give(said):
    with pytest.raises(
        TypeError, match=r"a guide gives \(score, feedback\), a finite score, or words"
    ):
        evaluate(lambda x: x, [(1, 2)], lambda query, response, info: said)


def test_guides_and_judges():
    class Exactly(Guide):
        def get_feedback(self, query, response, info):
            return response == info

    assert evaluate(lambda x: x, [(1, 1), (1, 2)], Exactly()).scores == [1.0, 0.0]
    with pytest.raises(NotImplementedError, match=r"Guide has no get_feedback\(\)"):
        Guide()(1, 2, 3)


def test_a_judge_asks_again_and_says_what_was_wrong():
    script = Script(["Great!", '{"score": 7, "feedback": "x"}', '{"score": 1, "feedback": "fine"}'])
    assert Judge("short", script)("Why?", "Because.", "a reason") == (1.0, "fine")
    first, second, third = script.asked
    assert "Criteria: short" in first[0]["content"]
    assert first[1]["content"] == "# Query\nWhy?\n# Response\nBecause.\n# Expected\na reason"
    assert "No answer was found" in second[-1]["content"]
    assert "the score must be a number from 0 to 1, not 7" in third[-1]["content"]
    with pytest.raises(ReplyError, match="no usable judgement: the score must be"):
        Judge(llm=Script(['{"feedback": "x"}'] * 3))(1, 2, 3)


# ---- What a failure is


def test_a_failing_program_is_an_example_with_its_error_as_feedback(tmp_path):
    class Divide(Module):
        def __init__(self):
            self.by = node(0, name="by", trainable=True)

        def forward(self, x):
            return x / self.by

    divide = Divide()
    script = Script(['{"suggestion": {"by0": 2}}'])
    run = train(divide, [(8, 4)], exact, OptoPrime(divide, llm=script), failed_score=-1.0)
    assert divide.by.data == 2 and run.scores == [-1.0] and run.score == 1.0
    assert "(ZeroDivisionError) division by zero" in script.asked[0][-1]["content"]
    found = evaluate(Divide(), [(8, 4), (1, 1)], exact)
    assert (
        set(found.failures) == {0, 1}
        and "ZeroDivisionError" in found.failures[0]
        and found.mean == 0
    )


def test_a_bug_in_the_guide_is_the_users_exception():
    class Bug(Exception):
        pass

    def guide(query, response, info):
        raise Bug("mine")

    shift = Shift()
    for workers in 1, 4:
        with pytest.raises(Bug, match="mine"):
            train(
                shift,
                DATASET,
                guide,
                OptoPrime(shift, llm=StubLLM()),
                batch_size=4,
                workers=workers,
            )


def test_an_exception_of_the_program_outside_every_operator_is_the_users_too():
    def broken(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        evaluate(broken, DATASET, near)


def test_a_call_without_a_budget_or_a_network_is_no_feedback_on_the_values():
    def ask(x):
        return operators.call_llm(Script([]), "Answer.", x)

    with pytest.raises(minitrace.LLMError, match="the script has no reply"):
        evaluate(ask, [("a", 1)], exact)
    with Budget(calls=0), pytest.raises(BudgetError):
        evaluate(lambda x: operators.call_llm(Script(["b"]), "Answer.", x), [("a", 1)], exact)


def test_a_reply_that_cannot_be_used_changes_nothing_and_the_run_goes_on():
    shift = Shift()
    optimizer = OptoPrime(shift, llm=Script(["?"] * 3 + ['{"suggestion": {"offset0": 7}}']))
    run = train(shift, DATASET, near, optimizer, epochs=2, batch_size=4)
    assert shift.offset.data == 7 and run.steps == 2 and optimizer.on_refusal is None


def test_a_batch_that_reaches_no_parameter_is_passed_over(tmp_path):
    shift = Shift()

    def sometimes(x):
        return shift(x) if x > 2 else node(x)

    optimizer = OptoPrime(shift, llm=StubLLM())
    with pytest.warns(UserWarning, match="reaches no parameter"):
        run = train(
            sometimes, DATASET, near, optimizer, epochs=8, batch_size=2, journal=tmp_path / "j"
        )
    assert shift.offset.data == 7 and run.steps == 16
    reasons = [r["reason"] for r in records(tmp_path / "j") if r["event"] == "step"]
    assert reasons[::2] == ["no feedback"] * 8


@pytest.mark.parametrize(
    "data, words",
    [
        ([1], r"dataset\[0\] must be a pair \(input, info\), not 1"),
        ([(1, 2), (1, 2, 3)], r"dataset\[1\] must be a pair"),
        (["ab", "cd"], r"dataset\[0\] must be a pair"),
    ],
)
def test_a_dataset_that_is_none(data, words):
    with pytest.raises(TypeError, match=words):
        train(Shift(), data, near)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "candidates", "patience", "workers"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_counts_that_are_none(name, value):
    with pytest.raises(ValueError, match=f"{name}= takes a whole number from 1, not {value!r}"):
        train(Shift(), DATASET, near, **{name: value})


def test_a_number_of_workers_that_is_none():
    with pytest.raises(ValueError, match="workers= takes a whole number from 1, not 0"):
        evaluate(Shift(), DATASET, near, workers=0)


def test_a_companion_without_minitrace_says_which_file_to_copy(tmp_path):
    path = tmp_path / "minitrace_train.py"
    path.write_bytes((COMPANIONS / path.name).read_bytes())
    command = [sys.executable, "-c", "import minitrace_train"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    words = "minitrace_train.py needs minitrace.py: copy it beside this file"
    assert done.stderr.splitlines()[-1] == f"ImportError: {words}"


def test_a_crash_is_no_better_than_the_worst_that_was_judged():
    class Times(Module):
        def __init__(self):
            self.by = node(2, name="by", trainable=True)

        def forward(self, x):
            return 12 // self.by if self.by >= 0 else 12 // (self.by - self.by)

    times = Times()
    run = train(times, [(1, 3), (2, 3)], near, Steps(times, [-1, 0, 4]), epochs=3, batch_size=2)
    assert times.by.data == 4 and run.scores == [-3, -3, -3] and run.score == 0
    mixed = evaluate(lambda x: 6 // node(x), [(0, 1), (1, 9)], near)
    assert mixed.scores == [-3, -3] and set(mixed.failures) == {0}


def test_a_judgement_that_cannot_be_used_is_no_score_and_no_end():
    shift = Shift()
    judge = Judge(llm=Script(["bad"] * 3 + ['{"score": 0.5, "feedback": "more"}'] * 9))
    run = train(shift, DATASET[:2], judge, Steps(shift, [1]), batch_size=2)
    assert (
        run.scores == [0.5]
        and "(not judged: no usable judgement" in shift.offset.feedback[0].feedback[0]
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_judge_that_never_judges_is_told_once_and_makes_no_step(tmp_path, size, workers):
    shift, asked = Shift(), []
    judge = Judge(llm=lambda messages: "bad", retries=0)

    def llm(messages):
        asked.append(messages)
        return '{"suggestion": {"offset0": 1}}'

    with pytest.warns(UserWarning, match="the guide judged none of.*no usable judgement") as told:
        run = train(
            shift, DATASET, judge, OptoPrime(shift, llm=llm), batch_size=size, workers=workers,
            epochs=2, journal=tmp_path / "j",
        )  # fmt: skip
    assert len(told) == 1 and f"none of {size} example{'s' * (size > 1)}," in str(told[0].message)
    assert told[0].filename == __file__
    assert run.unjudged == 8 and "unjudged=8" in repr(run)
    assert not asked and shift.offset.data == 0 and run.score is None
    reasons = {r["reason"] for r in records(tmp_path / "j") if r["event"] == "step"}
    assert reasons == {"no feedback"}


def test_what_a_judge_leaves_out_is_counted_without_a_warning():
    replies = iter(["bad", '{"score": 0.5, "feedback": "more"}'] * 20)
    judge = Judge(llm=lambda messages: next(replies), retries=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shift = Shift()
        run = train(shift, DATASET, judge, Steps(shift, [None] * 4), batch_size=4)
    assert run.unjudged == 2 and run.examples == 2


def test_an_evaluation_without_a_judgement_says_so():
    with pytest.warns(UserWarning, match="judged none of 4 examples"):
        found = evaluate(Shift(), DATASET, Judge(llm=lambda messages: "bad", retries=0))
    assert found.mean is None


@pytest.mark.parametrize(
    "options, words",
    [
        ({"guide": None}, r"guide= takes a function of query, response, info, not None"),
        ({"guide": Guide}, r"guide= takes a function of query, response, info, not <class"),
        ({"guide": lambda x, y: 1}, "of query, response, info: .*lambda.* has too many positional"),
        ({"guide": lambda a, b, c, d: 1}, "has missing a required argument: 'd'"),
        ({"guide": near, "model": 5, "optimizer": OptoPrime(Shift())}, "of the input, not 5"),
        ({"guide": near, "model": lambda: 1, "optimizer": OptoPrime(Shift())}, "has too many posit"),
        ({"guide": near, "optimizer": OptoPrime}, "optimizer= takes an Optimizer, such as Opto"),
        ({"guide": near, "optimizer": []}, r"optimizer= takes an Optimizer, .*, not \[\]"),
        ({"guide": near, "progress": True}, "progress= takes a function of a dict, not True"),
        ({"guide": near, "dataset": 5}, r"dataset is a list of pairs \(input, info\), not 5"),
        ({"guide": near, "budget": 5}, "budget= takes a Budget, not 5"),
        ({"guide": near, "model": len}, "has no parameters: pass optimizer="),
        (
            {"guide": near, "dataset": {"a": 1}},
            "dataset as a mapping has inputs and as many infos, not 0 inputs",
        ),
        ({"guide": near, "dataset": {"inputs": [1], "infos": []}}, "not 1 inputs and 0 infos"),
    ],
)
def test_arguments_that_are_none(options, words):
    with pytest.raises(TypeError, match=words):
        train(**{"model": Shift(), "dataset": DATASET, **options})


@pytest.mark.parametrize("score", [None, "0", float("nan"), float("inf")])
def test_the_score_of_a_failure_is_a_number(score):
    with pytest.raises(ValueError, match="failed_score= takes a finite number, not"):
        train(Shift(), DATASET, near, failed_score=score)


def test_a_measurement_checks_what_it_calls():
    with pytest.raises(TypeError, match="model= takes a function of the input, not None"):
        evaluate(None, DATASET, near)
    with pytest.raises(TypeError, match="guide= takes a function of query, response, info: .* has"):
        evaluate(Shift(), DATASET, lambda response: 1)


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


class Several(Exception):
    """A group of errors, which Python 3.10 has not."""

    def __init__(self, words, exceptions):
        super().__init__(words)
        self.exceptions = tuple(exceptions)


GROUP = getattr(builtins, "ExceptionGroup", Several)


def chained(error):
    try:
        raise error
    except Exception as cause:
        raise ValueError("the tool failed") from cause


def within(error):
    try:
        raise error
    except Exception:
        raise ValueError("the tool failed")  # noqa: B904


def grouped(error):
    raise GROUP("tasks", [KeyError("a"), GROUP("more", [error])])


def in_a_bundle(error):
    @bundle()
    def inner(x):
        raise error

    inner(node(1)).data  # noqa: B018


def both(error):
    try:
        grouped(error)
    except Exception as cause:
        raise ValueError("the tool failed") from cause


HIDING = pytest.mark.parametrize("hide", [chained, within, grouped, in_a_bundle, both])


def hidden(hide, make_error, where):
    """A model and a guide, one of which fails at its third call with an error inside another."""
    turn = iter(range(99))

    def fail(x):
        if next(turn) == 2:
            hide(make_error())
        return x

    @bundle()
    def operation(x):
        return fail(x)

    parameter = node(0, name="offset", trainable=True)
    body = {"operation": operation, "program": fail, "guide": lambda x: x}[where]

    def guide(query, response, info):
        return near(query, fail(response) if where == "guide" else response, info)

    return lambda x: parameter + body(x), guide, parameter


@HIDING
@pytest.mark.parametrize("where", ["operation", "program", "guide"])
@pytest.mark.parametrize("kind", ["setup", "network", "timeout", "status", "budget"])
def test_what_ends_a_run_ends_it_inside_other_errors_too(hide, where, kind):
    def make_error():
        return BudgetError("no") if kind == "budget" else LLMError("no", kind=kind)

    model, guide, parameter = hidden(hide, make_error, where)
    with pytest.raises((LLMError, BudgetError), match=r"^no$"):
        evaluate(model, DATASET, guide)
    model, guide, parameter = hidden(hide, make_error, where)
    if kind == "budget":
        run = train(model, DATASET, guide, Steps([parameter], [3] * 9))
        assert run.reason == "budget: no" and run.steps == 2 and parameter.data == 3
    else:
        with pytest.raises(LLMError, match=r"^no$"):
            train(model, DATASET, guide, Steps([parameter], [3] * 9))
        assert parameter.data == 3


@HIDING
@pytest.mark.parametrize("kind", ["refused", "filtered", "empty", "cut off"])
def test_what_other_values_may_avoid_is_feedback_inside_other_errors_too(hide, kind):
    model, guide, _ = hidden(hide, lambda: LLMError("I would rather not", kind=kind), "operation")
    found = evaluate(model, DATASET, guide, failed_score=-9.0)
    assert found.scores[2] == -9 and len(found.failures) == 1


def test_an_error_that_is_said_to_have_no_cause_has_none():
    @bundle()
    def fall_back(x):
        try:
            raise LLMError("no", kind="network")
        except LLMError:
            raise ValueError("x must be known without asking") from None

    assert "x must be known" in evaluate(fall_back, [(1, 1)], near).failures[0]


def test_what_limits_stop_is_feedback():
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


# ---- Candidates, the gate, and how it ends


def test_the_best_of_several_candidates_is_kept():
    shift = Shift()
    run = train(
        shift, DATASET, near, Steps(shift, [3, 8, 9, 5, 4, 2]), epochs=2, batch_size=4, candidates=3
    )
    assert shift.offset.data == 8 and run.score == -1
    shift = Shift()
    train(shift, DATASET, near, Steps(shift, [6, 8]), batch_size=4, candidates=2)
    assert shift.offset.data == 6  # of two that are as good the first


def test_the_gate_keeps_what_is_better_and_can_be_turned_off():
    for gate, left in (True, 5), (False, 1):
        minitrace.GRAPH.clear()
        shift = Shift(5)
        optimizer = Steps(shift, [1])
        run = train(shift, DATASET, near, optimizer, batch_size=4, gate=gate)
        assert shift.offset.data == left and run.values == {"offset0": left}, gate


def test_without_a_gate_the_best_of_all_steps_is_left_if_there_is_something_to_compare():
    shift = Shift(0)
    optimizer = Steps(shift, [5, 1, 2, 3])
    run = train(
        shift, DATASET, near, optimizer, epochs=4, batch_size=4, gate=False, validation=DATASET
    )
    assert shift.offset.data == 5 and run.score == -2


def test_validation_decides_over_the_batch():
    shift = Shift(0)
    train(shift, [(1, 8)], near, Steps(shift, [7]), validation=[(1, 1)])
    assert shift.offset.data == 0
    train(shift, [(1, 1)], near, Steps(shift, [7]), validation=[(1, 8)])
    assert shift.offset.data == 7


def test_words_without_scores_are_always_believed():
    shift = Shift()
    run = train(shift, [(1, 2)], lambda *_: "more", Steps(shift, [1, 2, 3]), epochs=3, patience=2)
    assert shift.offset.data == 3 and run.score is None and run.reason == "epochs"


def marked(table):
    """A guide that looks the score up by the value and the number of the example; - is none."""

    def guide(query, response, info):
        score = table[response - query][info]
        return None if score == "-" else int(score) / 9, "words"

    return guide


MARKED = [(10, 0), (20, 1), (30, 2), (40, 3)]


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize(
    "table, kept, reason",
    [
        (["5565", "---9"], 1, "better"),  # on the example that both have
        (["5569", "---8"], 0, "worse"),  # although 8 is more than the mean of the four
        (["9--1", "888-"], 0, "worse"),
        (["1--9", "333-"], 1, "better"),  # although the mean is lower
        (["55--", "--99"], 0, "worse"),  # none that both have
        (["5555", "----"], 0, "worse"),
        (["----", "1---"], 1, "better"),
        (["-5--", "95--"], 1, "as good"),
        (["5555", "---9", "6666"], 1, "better"),
        (["5555", "---4", "6666"], 2, "better"),
        (["55--", "--99", "66--", "77--"], 3, "better"),
    ],
)
def test_the_gate_compares_over_the_examples_that_both_have_a_score_of(
    tmp_path, table, kept, reason, held_out
):
    shift, values = Shift(), list(range(1, len(table)))
    options = {"validation": MARKED} if held_out else {}
    train(
        shift, MARKED, marked(table), Steps(shift, values), batch_size=4,
        candidates=len(values), measure=False, journal=tmp_path / "j", **options,
    )  # fmt: skip
    step = next(record for record in records(tmp_path / "j") if record["event"] == "step")
    assert (shift.offset.data, step["reason"]) == (kept, reason)


@pytest.mark.parametrize("table, kept", [(["5565", "---6", "4444"], 1), (["5565", "---4"], 0)])
def test_without_a_gate_the_best_is_found_over_the_same_examples_too(table, kept):
    shift, values = Shift(), range(1, len(table))
    train(
        shift, MARKED, marked(table), Steps(shift, values), batch_size=4, epochs=len(values),
        gate=False, validation=MARKED,
    )  # fmt: skip
    assert shift.offset.data == kept


def test_patience_counts_steps_without_a_better_score():
    shift = Shift(5)
    run = train(
        shift, DATASET, near, Steps(shift, [6, 1, 6, 0, 7]), epochs=5, batch_size=4, patience=3
    )
    assert run.reason == "patience" and run.steps == 4 and shift.offset.data == 6


def test_what_was_tried_in_vain_is_in_the_next_prompt():
    shift = Shift(5)
    script = Script(['{"suggestion": {"offset0": 1}}', '{"suggestion": {"offset0": 7}}'])
    train(shift, DATASET, near, OptoPrime(shift, llm=script), epochs=2, batch_size=4)
    past = script.asked[1][-1]["content"].partition("# Past attempts")[2]
    assert "offset0 = 1" in past and "score: -6" in past and shift.offset.data == 7


def test_what_validation_refused_is_told_so_and_is_not_the_best():
    shift = Shift(5)
    script = Script(['{"suggestion": {"offset0": 7}}', '{"suggestion": {}}'])
    optimizer = OptoPrime(shift, llm=script)
    train(shift, [(1, 8)], near, optimizer, epochs=2, validation=[(1, 6)])
    past = script.asked[1][-1]["content"].partition("# Past attempts")[2]
    assert "on other examples -2, not 0 as before" in past
    assert optimizer.best.values == {"offset0": 5} and optimizer.history[-1].reason == "no change"


def test_equal_candidates_are_measured_once():
    shift, seen = Shift(), []

    def look(query, response, info):
        seen.append(response)
        return near(query, response, info)

    train(shift, [(1, 8)], look, Steps(shift, [3, 3, 3]), candidates=3)
    assert seen == [1, 4] and shift.offset.data == 3


@pytest.mark.parametrize("given", ["one", "named", "nothing"])
def test_what_an_optimizer_of_ones_own_may_propose(given):
    class Own(Optimizer):
        def propose(self, n=None):
            kinds = {"one": {self.parameters[0]: 7}, "named": {"offset0": 7}, "nothing": None}
            return kinds[given]

    for candidates in 1, 2:
        minitrace.GRAPH.clear()
        shift = Shift()
        train(shift, DATASET, near, Own(shift), candidates=candidates, batch_size=4)
        assert shift.offset.data == (0 if given == "nothing" else 7)


def test_a_value_that_a_parameter_refuses_is_never_tried():
    shift = Shift()
    shift.offset = node(0, name="offset", trainable=True, bounds=(0, 3))
    with pytest.raises(ValueError, match="it must be between 0 and 3"):
        train(shift, DATASET, near, Steps(shift, [9]))
    assert shift.offset.data == 0


@pytest.mark.parametrize("kind", [OPRO, TextGrad])
def test_other_optimizers(kind):
    word = node("stiff", name="word", trainable=True)

    def llm(messages, **options):
        if "# Instruction" in messages[-1]["content"]:
            return json.dumps({"suggestion": {word.py_name: "warm"}})
        return "Warmer."

    run = train(lambda x: word + x, [("!", "warm!")], exact, kind([word], llm=llm), candidates=2)
    assert word.data == "warm" and run.score == 1


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


def test_functions_of_one_name_are_told_apart_in_what_a_run_remembers_and_returns():
    def made(step):
        @bundle(trainable=True)
        def f(x):
            return x + step

        return f

    model = Module()
    model.a, model.b = made(1), made(2)
    model.forward = lambda x: model.a(model.b(x))
    worse = "def f(x):\n    return x - 9"
    llm = Script([json.dumps({"suggestion": {"f_code": worse}})])
    optimizer = OptoPrime(model, llm=llm)
    run = train(model, [(1, 5)], near, optimizer)
    assert [*run.values] == optimizer.names and len(optimizer.names) == 2
    assert optimizer.history[-1].values.keys() == run.values.keys()
    assert optimizer.history[-1].values["f_code"] == worse


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
    replies = [
        json.dumps({"suggestion": {"double_code": f"def double(x):\n    {b}"}}) for b in bodies
    ]
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
    assert run.scores == [-7, -2, -1] and learned == [2] * 16  # four to measure the last values
    assert around.spent["calls"] == run.spent["calls"] == 6 * 16


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
    monkeypatch.setattr(minitrace_train.time, "monotonic", lambda: clock[0])

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


# ---- Order: shuffling, workers, executors


def order(**options):
    seen, shift = [], Shift()

    def look(x):
        seen.append(x)
        return shift(x)

    train(look, DATASET, lambda *_: "ok", Steps(shift, [0] * 20), gate=False, epochs=2, **options)
    return seen


def test_no_shuffling_unless_asked_and_then_by_seed():
    assert order() == [1, 2, 3, 4] * 2
    first, again, other = order(shuffle=True), order(shuffle=True), order(shuffle=True, seed=1)
    assert first == again != other and sorted(first[:4]) == [1, 2, 3, 4] and first[:4] != first[4:]


def test_examples_run_side_by_side_with_their_context():
    together = threading.Barrier(4, timeout=20)

    def meet(x):
        together.wait()
        return operators.call_llm(Script(["hm"]), "Answer.", str(x))

    with Budget() as budget:
        found = evaluate(meet, [1, 2, 3, 4], workers=4)
    assert found.responses == ["hm"] * 4 and budget.spent["calls"] == 4


def journal_of(folder, workers, **options):
    path = folder / f"run{workers}{len(options)}.jsonl"
    train_program.run(path, folder / "served", workers, **options)
    found = [{k: v for k, v in r.items() if k not in ("time", "seconds")} for r in records(path)]
    return sorted(
        found, key=lambda r: json.dumps([r.get("step", -1), r.get("example"), r], sort_keys=True)
    )


def test_the_journal_is_the_same_for_any_number_of_workers(tmp_path):
    one, four, many = (journal_of(tmp_path, workers) for workers in (1, 4, 16))
    assert one == four == many and len(one) > 100


def test_threads_as_executor_are_as_good(tmp_path):
    with ThreadPoolExecutor(5) as pool:
        assert journal_of(tmp_path, 1, executor=pool) == journal_of(tmp_path, 1)


def test_processes_as_executor_give_the_same_journal(tmp_path):
    import multiprocessing

    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert journal_of(tmp_path, 1, executor=pool) == journal_of(tmp_path, 1)


def test_values_reach_processes_and_nodes_come_back():
    with ProcessPoolExecutor(2) as pool:
        shift = Shift(2)
        assert evaluate(shift, DATASET, near, executor=pool).scores == [-5.0] * 4
        optimizer = OptoPrime(shift, llm=StubLLM())
        run = train(shift, DATASET, near, optimizer, epochs=8, batch_size=4, executor=pool)
        assert shift.offset.data == 7 and run.score == 0
        assert optimizer.graph().parameters == [shift.offset]


def test_a_bundle_in_a_process_runs_the_code_it_has_here():
    with ProcessPoolExecutor(1) as pool:
        assert evaluate(LATER, [3], executor=pool).responses == [3]
        LATER.parameter.set("def later(x):\n    return 10 * x")
        assert evaluate(LATER, [3], executor=pool).responses == [30]


@bundle(trainable=True)
def later(x):
    return x


LATER = later


def test_processes_want_the_parameters_that_are_optimized_in_the_model():
    stray, shift = node(1, name="stray", trainable=True), Shift()
    words = "stray:0: no parameter of the model, so no other process would see it"
    with ProcessPoolExecutor(1) as pool, pytest.raises(ValueError, match=words):
        train(shift, DATASET, near, Steps([shift.offset, stray], [1]), executor=pool)


def test_processes_want_a_model_that_carries_its_parameters_and_can_be_pickled():
    with ProcessPoolExecutor(1) as pool:
        with pytest.raises(TypeError, match="make it a module or a bundle"):
            evaluate(len, ["ab"], executor=pool)
        shift = Shift()
        shift.extra = lambda: None
        with pytest.raises(TypeError, match="must be picklable for an executor of other processes"):
            evaluate(shift, [1], executor=pool)


def test_a_cluster_of_dask_on_the_loopback():
    distributed = pytest.importorskip("distributed")
    with distributed.Client(n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        shift = Shift()
        run = train(
            shift, DATASET, near, OptoPrime(shift, llm=StubLLM()), epochs=8, batch_size=4,
            executor=client.get_executor(),
        )  # fmt: skip
    assert shift.offset.data == 7 and run.score == 0


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
    names = [each.name for each in minitrace.TraceGraph.of(kept.first, kept.second)]
    assert run.reason == "epochs" and names.index(kept.first.name) < names.index(kept.second.name)


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


NO_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("start", [pytest.param("fork", marks=NO_FORK), "spawn"])
def test_another_process_pays_for_no_recorded_reply_again(tmp_path, processes, start):
    path, served = tmp_path / "run", tmp_path / "served"
    for _ in range(2):
        minitrace.GRAPH.clear()
        model = Asking(str(served))
        forked = ProcessPoolExecutor(1, get_context(start)) if start == "fork" else None
        with forked or contextlib.nullcontext():  # begun in the run, with all that it has open
            train(
                model, [("b", 1), ("c", 1)], length, Steps(model, ["d"]), batch_size=2,
                executor=forked or processes, journal=path,
            )  # fmt: skip
        assert len(served.read_text().splitlines()) == len(calls(path)) == 4


class Silent(Asking):
    """Has a language model that would not speak."""

    def llm(self, messages):
        raise LLMError("I would rather not", kind="refused")


def test_silence_in_another_process_is_feedback_with_or_without_a_journal(tmp_path, processes):
    for journal in None, tmp_path / "j":
        model = Silent(str(tmp_path / "served"))
        run = train(model, [("b", 1)], length, Steps(model, ["d"]), executor=processes, journal=journal)
        assert run.score == 0
    assert [call["error"]["kind"] for call in calls(tmp_path / "j")] == ["refused"] * 2


def scolds(query, response, info):
    raise ReplyError("no", ["said"], ["wrong"])


def gives_up(query, response, info):
    raise LLMError("down", kind="status", status=500)


def test_what_ends_after_a_failure_in_another_process_is_on_record_once(tmp_path, processes):
    path, served = tmp_path / "run", tmp_path / "served"
    model = Asking(str(served))
    for _ in range(2):
        with pytest.raises(LLMError, match="down"):
            train(
                model, [(each, 1) for each in "bcd"], gives_up, Steps(model, ["d"]), batch_size=3,
                executor=processes, journal=path,
            )  # fmt: skip
        marks = [(call["example"], call["key"]) for call in calls(path)]
        assert len(marks) == len(set(marks)) == len(served.read_text().splitlines())


def test_exceptions_come_back_from_another_process_as_they_were(processes):
    with pytest.warns(UserWarning, match="judged none of 4 examples"):
        found = evaluate(Shift(), DATASET, scolds, executor=processes)
    assert found.mean is None and found.feedback == ["(not judged: no)"] * 4
    with pytest.raises(LLMError, match="down") as caught:
        evaluate(Shift(), DATASET, gives_up, executor=processes)
    assert (caught.value.kind, caught.value.status) == ("status", 500)


# ---- Evaluation: scores, words, judges


def test_evaluate_changes_nothing_and_traces_nothing():
    shift = Shift(3)
    found = evaluate(shift, DATASET, near, workers=2)
    assert found.mean == -4 and found.responses == [4, 5, 6, 7] and found.failures == {}
    assert found.feedback == ["too low"] * 4 and shift.offset.feedback == []
    assert evaluate(shift, []).mean is None
    assert evaluate(shift, [5, 6]).responses == [8, 9]


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


# ---- Stopped by budgets and by Ctrl-C, at every call and anywhere else


def test_a_spent_budget_ends_the_run_with_the_best_values():
    shift = Shift()
    budget = Budget(calls=3)
    run = train(
        shift, DATASET, near, OptoPrime(shift, llm=StubLLM()), epochs=9, batch_size=4, budget=budget
    )
    assert run.reason.startswith("budget: this call would exceed 3 calls")
    assert run.spent["calls"] == 3
    assert run.steps == 4 and shift.offset.data == run.values["offset0"] > 0


class Allowance:
    """A budget of one's own: it lets so many calls pass."""

    def __init__(self, calls):
        self.spent = {"calls": calls, "left": calls}

    def __enter__(self):
        self.block = minitrace.around_calls(self.count)
        self.block.__enter__()

    def __exit__(self, *error):
        self.block.__exit__(*error)

    def count(self, llm, messages, options, ask):
        if not self.spent["left"]:
            error = MinitraceError("nothing is left")
            error.kind = "budget"
            raise error
        self.spent["left"] -= 1
        return ask()


def test_whatever_counts_calls_is_a_budget():
    shift = Shift()
    optimizer = OptoPrime(shift, llm=StubLLM())
    run = train(shift, DATASET, near, optimizer, epochs=9, batch_size=4, budget=Allowance(2))
    assert run.reason == "budget: nothing is left" and run.steps == 3
    assert run.spent == {"calls": 2, "left": 0} and shift.offset.data == run.values["offset0"] > 0


def test_a_budget_around_the_run_ends_it_too():
    shift = Shift()
    with Budget(calls=2) as budget:
        run = train(shift, DATASET, near, OptoPrime(shift, llm=StubLLM()), epochs=9, batch_size=4)
    assert run.reason.startswith("budget: this call would exceed 2 calls") and run.steps == 3
    assert run.spent["calls"] == budget.spent["calls"] == 2


def test_an_error_that_is_not_of_a_budget_is_raised():
    class Odd(MinitraceError):
        kind = "odd"

    def llm(messages):
        raise Odd("no")

    shift = Shift(3)
    with pytest.raises(Odd, match="no"):
        train(shift, DATASET, near, OptoPrime(shift, llm=llm), batch_size=4)
    assert shift.offset.data == 3


def test_calls_and_tokens_are_counted_as_they_are_told_or_else_by_length():
    def spent(**usage):
        minitrace.GRAPH.clear()
        live, shift = Live(**usage), Shift()
        guide = lambda *_: (1, live("a" * 400))  # noqa: E731
        return train(shift, DATASET, guide, Steps(shift, [None]), batch_size=4, workers=2).spent

    assert spent(usage={"input_tokens": 9, "output_tokens": 2}) == {"calls": 4, "tokens": 44}
    assert 400 < spent()["tokens"] < 600


def test_a_guide_that_fails_to_score_what_was_held_out_ends_nothing():
    shift = Shift(5)

    def guide(query, response, info):
        return "no score" if response == 17 else near(query, response, info)

    optimizer = Steps(shift, [7, 6])
    run = train(shift, [(1, 9)], guide, optimizer, epochs=2, validation=[(10, 15)])
    assert shift.offset.data == 5 and run.score == 0
    assert optimizer.history[0].feedback == ["too low"]
    assert optimizer.history[1].feedback == ["too low", "on other examples -1, not 0 as before"]


def test_ctrl_c_leaves_the_best_and_says_how_to_go_on(tmp_path):
    def interrupted(journal):
        shift, times = Shift(), iter(range(100))

        def guide(query, response, info):
            if next(times) == 21:
                raise KeyboardInterrupt
            return near(query, response, info)

        with pytest.raises(KeyboardInterrupt) as caught:
            train(
                shift,
                DATASET,
                guide,
                Steps(shift, [3, 1, 6]),
                epochs=3,
                batch_size=4,
                journal=journal,
            )
        assert shift.offset.data == 3
        return str(caught.value)

    assert interrupted(None) == (
        "stopped in step 3; the best values so far are in the model; with journal= it could be resumed"
    )
    path = tmp_path / "run.jsonl"
    assert interrupted(path).endswith(f"the same call resumes it from {path}")


def test_a_run_interrupted_in_a_notebook_goes_on_with_the_same_objects(tmp_path):
    whole = journal_of(tmp_path, 3)
    minitrace.GRAPH.clear()
    llm = train_program.Noted(tmp_path / "again", seconds=0)
    model, path = train_program.Counter(llm), tmp_path / "run.jsonl"
    dataset = [(f"How many in box {n}?", 14 + n % 5) for n in range(6)]
    held_out = [(f"How many in bag {n}?", 17 + n) for n in range(3)]
    optimizer = OptoPrime(model, llm=llm, memory_size=3)
    settings = {"epochs": 2, "batch_size": 3, "candidates": 2, "seed": 7, "shuffle": True}
    for calls in (7, 20, 33, 50, 999):
        times = iter(range(calls))

        def guide(query, response, info, times=times):
            if next(times, None) is None:
                raise KeyboardInterrupt
            return train_program.guide(query, response, info)

        with contextlib.suppress(KeyboardInterrupt):
            train(model, dataset, guide, optimizer, validation=held_out, journal=path, **settings)
    found = [{k: v for k, v in r.items() if k not in ("time", "seconds")} for r in records(path)]
    whole[0]["made_of"]["the guide"] = found[0]["made_of"]["the guide"]  # which stops here
    key = lambda r: json.dumps([r.get("step", -1), r.get("example"), r], sort_keys=True)  # noqa: E731
    assert sorted(found, key=key) == whole
    lines = (tmp_path / "again").read_text().splitlines()
    assert len(lines) == sum(r["event"] == "call" for r in found)


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
    tmp_path, kind, optimizer, judged, options, slow
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
    for stop in range(1, len(ticks) + 1, 6 if slow else 13):
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
def test_an_exception_anywhere_leaves_the_best_and_the_run_goes_on(tmp_path, place, gate, slow):
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
        assert optimizer.on_refusal is None
        return model.offset.data, error

    for stop, workers in ((0, 1), (1, 3), (2, 1), (4, 3)) if slow else ((0, 1), (4, 3)):
        path = tmp_path / str(stop)
        value, error = run(path, stop, workers)
        assert isinstance(error, Boom)
        steps = [record for record in records(path) if record["event"] == "step"]
        if gate and place != "redact":
            assert value == (steps[-1]["values"]["offset"] if steps else 0)
        assert run(path, 10**6) == (7, None)


# ---- The journal


def start(path, served, workers=3):
    command = [sys.executable, str(HERE / "train_program.py"), str(path), str(served), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_and_pays_for_nothing_twice(tmp_path, slow):
    began = time.monotonic()
    whole, error = start(tmp_path / "whole", tmp_path / "served").communicate()
    seconds, rng = time.monotonic() - began, random.Random(11)
    assert whole and not error
    plain = records(tmp_path / "whole")
    for number in range(20 if slow else 2):
        path, served, kills = tmp_path / f"run{number}", tmp_path / f"served{number}", 0
        for _ in range(rng.choice([1, 1, 2, 3])):
            process = start(path, served)
            time.sleep(rng.uniform(0.1 * seconds, 1.05 * seconds))
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.communicate()
        out, error = start(path, served).communicate()
        assert out == whole and (not error or "holds the whole of this run" in error)
        found = records(path)
        calls = [record for record in found if record["event"] == "call"]
        asked = len(served.read_text().splitlines())
        assert len(calls) <= asked <= len(calls) + 3 * kills  # three were in flight at most
        assert len(found) == len(plain)


def test_a_torn_last_line_is_cut_off(tmp_path):
    path, served = tmp_path / "run", tmp_path / "served"
    train_program.run(path, served, 1)
    whole = path.read_bytes()
    lines = whole.splitlines(True)
    for end in (
        len(b"".join(lines[:40])) - 1,
        len(b"".join(lines[:40])) + 25,
        len(lines[0]) // 2,
        0,
    ):
        path.write_bytes(whole[:end])
        train_program.run(path, served, 1)
        assert len(path.read_bytes().splitlines()) == len(lines)
        assert [json.loads(line)["event"] for line in path.read_bytes().splitlines()] == [
            json.loads(line)["event"] for line in lines
        ]


def test_a_journal_of_another_run_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "run.jsonl"
    shift = Shift()
    train(shift, DATASET, near, Steps(shift, [1]), journal=path, gate=False, batch_size=4)
    before = path.read_bytes()
    with pytest.raises(
        MinitraceError, match=r"run.jsonl is the journal of another run: batch_size was 4, now 2"
    ):
        train(shift, DATASET, near, Steps(shift, [1]), journal=path, gate=False, batch_size=2)
    with pytest.raises(
        MinitraceError, match=r"dataset was '4 examples, [0-9a-f]+', now '4 examples, [0-9a-f]+'"
    ):
        train(shift, [(1, 9)] * 4, near, Steps(shift, [1]), journal=path, gate=False, batch_size=4)
    minitrace.GRAPH.clear()
    other = Shift(9)
    with pytest.raises(MinitraceError, match=r"parameters was .*offset.*: 0.*, now .*: 9"):
        train(other, DATASET, near, Steps(other, [1]), journal=path, gate=False, batch_size=4)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        "hello\nworld\n",
        "hello",
        '{"a": 1}\n{"b": 2}\n',
        '{"a": 1}',
        "[]\n[]\n",
        "[]",
        "\n\n",
        "{\n",
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(
        MinitraceError, match="line 1: not a record of a journal; name another file"
    ):
        train(Shift(), DATASET, near, journal=path)
    assert path.read_text() == text


def test_a_journal_that_another_run_writes_is_refused(tmp_path):
    path, shift = tmp_path / "run.jsonl", Shift()

    def guide(query, response, info):
        with pytest.raises(MinitraceError, match=r"run.jsonl is being written by another run"):
            train(Shift(), DATASET, near, journal=path)
        return near(query, response, info)

    train(shift, [(1, 8)], guide, OptoPrime(shift, llm=StubLLM()), journal=path)


def test_the_journal_tells_the_story(tmp_path):
    path, shift = tmp_path / "run.jsonl", Shift()
    run = train(
        shift, DATASET, near, OptoPrime(shift, llm=StubLLM()), epochs=5, batch_size=4, journal=path
    )
    found = records(path)
    assert found[0]["event"] == "run" and found[0]["configuration"]["parameters"] == {"offset": 0}
    assert found[-1]["event"] == "end" and found[-1]["values"] == {"offset": run.values["offset0"]}
    steps = [record for record in found if record["event"] == "step"]
    assert [record["score"] for record in steps] == run.scores
    graph = minitrace.TraceGraph.from_json(json.dumps(steps[0]["graph"]))
    assert len(graph.outputs) == 4 and graph.score == -7
    call = next(record for record in found if record["event"] == "call")
    assert call["part"] == "propose" and "offset0" in call["reply"] and len(call["messages"]) == 2
    proposal = next(record for record in found if record["event"] == "proposal")
    assert "+1" in proposal["diff"] and proposal["score"] == -6
    example = next(record for record in found if record["event"] == "example")
    assert (example["query"], example["response"], example["feedback"]) == ("1", "1", "too low")


def test_redact_sees_every_record_before_it_is_written(tmp_path):
    path, served = tmp_path / "run.jsonl", tmp_path / "served"

    def redact(record):
        if record["event"] == "example":
            return None
        return {**record, "messages": "gone"} if "messages" in record else record

    first = train_program.run(path, served, 2, redact=redact)
    text, asked = path.read_text(), len(served.read_text().splitlines())
    assert "How many" not in text.replace("How many in", "How many in", 0) or '"messages"' in text
    assert all(record["event"] != "example" for record in records(path))
    again = train_program.run(path, served, 2, redact=redact)
    assert again.values == first.values and len(served.read_text().splitlines()) == asked

    def silent(record):
        return {**record, "reply": None} if record["event"] == "call" else record

    other = tmp_path / "other.jsonl"
    train_program.run(other, served, 2, redact=silent)
    train_program.run(other, served, 2, redact=silent)
    assert len(served.read_text().splitlines()) == 3 * asked


def test_text_that_no_encoding_knows_is_kept(tmp_path):
    word = node("a", name="word", trainable=True)
    path = tmp_path / "run.jsonl"
    optimizer = Steps([word], ["\ud800 \x00 \u202e </script>"])
    train(word, [("\ud800", "x")], lambda *_: (0, "\udfff"), optimizer, journal=path)
    assert records(path)[-1]["event"] == "end"


def test_the_same_call_again_pays_nothing_and_gives_the_same(tmp_path):
    shift = Shift()
    script = Script([json.dumps({"suggestion": {"offset0": n}}) for n in (3, 1, 6)])
    optimizer = OptoPrime(shift, llm=script)
    runs = [
        train(shift, DATASET, near, optimizer, batch_size=4, epochs=3, journal=tmp_path / "j")
        for _ in range(3)
    ]
    assert runs[0][:5] == runs[1][:5] == runs[2][:5] and len(script.asked) == 3
    assert len(optimizer.history) == 3


def test_a_larger_budget_goes_on_where_a_smaller_one_ended(tmp_path):
    shift = Shift()
    script = Script([json.dumps({"suggestion": {"offset0": n}}) for n in (3, 1, 6)])
    optimizer = OptoPrime(shift, llm=script)
    options = {"batch_size": 4, "epochs": 3, "journal": tmp_path / "j"}
    first = train(shift, DATASET, near, optimizer, budget=Budget(calls=2), **options)
    assert first.reason.startswith("budget") and shift.offset.data == 3
    last = train(shift, DATASET, near, optimizer, budget=Budget(calls=3), **options)
    assert last.reason == "epochs" and shift.offset.data == 6 and len(script.asked) == 3
    ends = [record["reason"] for record in records(tmp_path / "j") if record["event"] == "end"]
    assert ends[-1] == "epochs"


def test_a_run_that_goes_another_way_than_its_journal_says_so(tmp_path):
    noise = iter([0.1, 0.2, 0.3, 0.4])

    def guide(query, response, info):
        return next(noise)

    for _ in range(2):
        minitrace.GRAPH.clear()
        shift = Shift()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(shift, [(1, 2)], guide, Steps(shift, [1]), journal=tmp_path / "j")
    assert len(caught) == 1 and "the run differs from the one on record" in str(caught[0].message)


def test_redact_sees_copies_and_keeps_the_first_record(tmp_path):
    script = Script(["?", '{"suggestion": {"offset0": 7}}'])
    shift = Shift()

    def spoil(record):
        for message in record.get("messages", ()):
            message["content"] = "XXX"
        return record

    train(shift, [(1, 8)], near, OptoPrime(shift, llm=script), journal=tmp_path / "a", redact=spoil)
    assert "XXX" not in json.dumps(script.asked) and "XXX" in (tmp_path / "a").read_text()
    for bad in (lambda record: None), (lambda record: "text"), (lambda record: {}):
        with pytest.raises(MinitraceError, match=r"redact= gave .* for a record of the event 'run'"):
            train(Shift(), [(1, 8)], near, Steps(Shift(), [1]), journal=tmp_path / "b", redact=bad)


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


class Live(LanguageModel):
    """A language model that says something else at each call."""

    def __init__(self, **facts):
        self.facts, self.asked = facts, []

    def complete(self, messages, options):
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
            self.usage, self.model = SimpleNamespace(prompt_tokens=7, details=object()), object()

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

    first = once(llm)

    def llm(messages):
        raise AssertionError("this reply was recorded")

    assert first == once(llm)
    assert " at 0x" not in (tmp_path / "run").read_text()
    assert calls(tmp_path / "run")[0]["usage"] == {"input_tokens": 7}


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
    example, _ = [r for r in records(tmp_path / "run") if r["event"] == "example"]
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
@pytest.mark.filterwarnings("ignore:.*the run differs")
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
    usual = {"epochs": 3, "batch_size": 4, "candidates": 1, "patience": 3, "seed": 1}
    usual |= {"validation": [(1, 8)], "gate": True, "shuffle": False}

    def run(kind=Steps, **changes):
        minitrace.GRAPH.clear()
        shift = Shift()
        train(shift, DATASET, near, kind(shift, [1] * 9), journal=path, **{**usual, **changes})

    run()
    text = path.read_bytes()
    changes = {"epochs": 2, "batch_size": 2, "candidates": 2, "patience": None, "seed": 2}
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
        "import sys, time; sys.path[:0] = sys.argv[1].split()\n"
        "from minitrace import *; from minitrace_train import *\n"
        "def guide(query, response, info):\n"
        "    print('here', flush=True); time.sleep(60)\n"
        "train(node(0, name='offset', trainable=True), [(1, 8)], guide, journal=sys.argv[2])\n"
    )
    folders = f"{ROOT} {COMPANIONS}"
    command = [sys.executable, "-W", "ignore", "-c", code, folders, str(path)]
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
        "import resource, signal, sys; sys.path[:0] = sys.argv[1].split()\n"
        "from minitrace import *; from minitrace_train import *\n"
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
    folders = f"{ROOT} {COMPANIONS}"

    def run(name, size):
        command = [sys.executable, "-c", code, folders, str(tmp_path / name), str(size)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    whole = run("whole", 0)
    size = (tmp_path / "whole").stat().st_size
    for part in 0.2, 0.7:
        assert run(str(part), int(size * part)).startswith("True a")
        assert run(str(part), 0) == whole
        assert timeless(tmp_path / str(part)) == timeless(tmp_path / "whole")


# ---- Growth and progress


@pytest.mark.slow
def test_memory_does_not_grow_over_a_thousand_steps(tmp_path):
    shift, sizes = Shift(), []

    class Up(Optimizer):
        def propose(self, n=None):
            return Proposal({self.parameters[0]: self.parameters[0].data % 50 + 1})

    def look(state):
        if state["step"] in (400, 1000):
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        train(
            shift, [(1, 8)], near, Up(shift), epochs=1000, gate=False, progress=look,
            journal=tmp_path / "run.jsonl",
        )  # fmt: skip
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 600 * 2000  # history keeps a light record of an old attempt
    assert len(records(tmp_path / "run.jsonl")) > 3000


def test_progress_goes_to_a_function_a_terminal_or_nowhere(monkeypatch):
    states, shift = [], Shift()
    train(
        shift,
        DATASET,
        near,
        OptoPrime(shift, llm=StubLLM()),
        epochs=3,
        batch_size=2,
        progress=states.append,
    )
    assert [state["step"] for state in states] == [1, 2, 3, 4, 5, 6]
    assert states[-1].keys() == {
        "step",
        "steps",
        "score",
        "best",
        "calls",
        "tokens",
        "seconds_left",
    }
    assert states[-1]["calls"] == 6 and states[-1]["steps"] == 6

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for screen, shown in (io.StringIO(), False), (Terminal(), True):
        monkeypatch.setattr(sys, "stderr", screen)
        shift = Shift()
        train(shift, DATASET, near, Steps(shift, [None, None]), batch_size=2, gate=False)
        assert ("\rstep 2/2  score -7  best -7" in screen.getvalue()) is shown
        assert screen.getvalue().endswith("\n") is shown


def test_what_was_tried_in_vain_long_ago_is_kept_without_a_proposal():
    class Down(Optimizer):
        def propose(self, n=None):
            return Proposal({p: p.data - 1 for p in self.parameters})

    x = node(0, "x", trainable=True)
    optimizer = Down(x)
    train(x, [(None, 0)], lambda query, response, info: response, optimizer, epochs=110)
    first, last = optimizer.history[0], optimizer.history[-1]
    assert (len(optimizer.history), first.reason, first.score) == (110, "not kept", -1)
    assert first.proposal is last.proposal is None and not first.feedback


# ---- One event loop for all that is awaited


class Loop(Module):
    """Async, with a client that belongs to the first loop that it is used in."""

    def __init__(self):
        self.offset = node(7, name="offset", trainable=True)
        self.loops = set()

    async def forward(self, x):
        await asyncio.sleep(0.001)
        self.loops.add(asyncio.get_running_loop())
        assert len(self.loops) == 1, "Event loop is closed"
        return x + self.offset


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_a_client_that_belongs_to_its_loop_serves_every_example_and_every_run(workers):
    model = Loop()
    for _ in range(2):
        assert evaluate(model, DATASET, near, workers=workers).scores == [0.0] * 4
    run = train(model, DATASET, near, Steps(model, [7] * 9), workers=workers, batch_size=2)
    assert run.score == 0 and len(model.loops) == 1


def test_what_is_shared_between_tasks_holds_nobody_up():
    class Shares(Loop):
        def __init__(self):
            super().__init__()
            self.two, self.lock, self.queue = asyncio.Semaphore(2), asyncio.Lock(), asyncio.Queue()
            self.now = self.most = 0

        async def forward(self, x):
            async with self.two:
                self.now += 1
                self.most = max(self.most, self.now)
                await asyncio.sleep(0.005)
                async with self.lock:
                    await self.queue.put(x)
                self.now -= 1
            return (await self.queue.get()) * 0 + x + self.offset

    model = Shares()
    data = [(n, n + 7) for n in range(12)]
    for _ in range(2):
        assert evaluate(model, data, near, workers=6).mean == 0
    assert model.most == 2


def test_as_many_tasks_as_workers_run_at_a_time():
    now, most = [0], [0]

    async def model(x):
        now[0] += 1
        most[0] = max(most[0], now[0])
        for _ in range(1000):  # until all are here, and a moment for one too many
            await asyncio.sleep(0.01)
            if most[0] >= workers:
                break
        now[0] -= 1
        return x

    for workers in 1, 3:
        most[0] = 0
        evaluate(model, range(9), workers=workers)
        assert most == [workers]


def test_async_guides_and_reruns_of_async_bundles_share_the_loop():
    loops = set()

    @bundle()
    async def shifted(x, y):
        await asyncio.sleep(0)
        loops.add(asyncio.get_running_loop())
        return x + y

    async def guide(query, response, info):
        await asyncio.sleep(0)
        loops.add(asyncio.get_running_loop())
        return near(query, response, info)

    offset, kept = node(1, name="offset", trainable=True), []

    async def model(x):
        kept.append(await shifted(offset, x))
        return kept[-1]

    train(model, DATASET, guide, Steps([offset], [7]), batch_size=4, workers=2)
    assert offset.data == 7 and kept[0].rerun({offset: 5}).data in (6, 7, 8, 9)
    assert len(loops) == 1


@pytest.mark.parametrize("first", ["minitrace", "minitrace_train"])
def test_run_coroutine_shares_the_loop_in_whatever_order_things_are_imported(first):
    program = """
import sys
sys.path[:0] = sys.argv[1].split()
if sys.argv[2] == "minitrace_train":
    import minitrace_train
from minitrace import run_coroutine
import asyncio, minitrace, minitrace_train

async def loop():
    return asyncio.get_running_loop()

async def model(x):
    return await loop() is shared

shared = run_coroutine(loop())
assert run_coroutine is minitrace.run_coroutine and run_coroutine(loop()) is shared
print(minitrace_train.evaluate(model, [1, 2]).responses)
"""
    command = [sys.executable, "-c", program, f"{ROOT} {COMPANIONS}", first]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "[True, True]\n", done.stderr


def test_a_notebook_s_running_loop_is_no_obstacle():
    model = Loop()

    async def cell():
        return evaluate(model, DATASET, near, workers=3).mean

    assert [asyncio.run(cell()) for _ in range(2)] == [0, 0]
    assert evaluate(model, DATASET, near).mean == 0 and len(model.loops) == 1


@pytest.mark.parametrize("inner_workers", [1, 3])
def test_a_run_inside_async_code_waits_for_a_loop_of_its_own(inner_workers):
    inner = Loop()

    async def guide(query, response, info):
        return evaluate(inner, DATASET, near, workers=inner_workers).mean

    model = Loop()
    for _ in range(2):
        assert evaluate(model, DATASET, guide, workers=3).mean == 0
    assert model.loops != inner.loops and len(inner.loops) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("child", [False, True])
def test_a_task_that_ends_the_program_does_not_end_the_loop(stop, child):
    async def raises():
        raise stop("now")

    async def model(x):
        await (asyncio.create_task(raises()) if child else raises())

    for _ in range(2):
        for workers in 1, 3:
            with pytest.raises(stop):
                evaluate(model, range(5), workers=workers)
    assert evaluate(Loop(), DATASET, near, workers=2).mean == 0


def test_what_is_not_a_coroutine_is_awaited_too():
    class Later:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return 8

    assert evaluate(lambda x: Later(), [1]).responses == [8]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="it is about fork")
def test_a_forked_process_has_a_loop_of_its_own():
    assert evaluate(Later(), DATASET, near).mean == -7
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        assert evaluate(Later(), DATASET, near, executor=pool).mean == -7


@pytest.fixture
def threadless(monkeypatch):
    """A platform such as WebAssembly."""

    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(minitrace_train, "_loops", {})  # none was started before
    monkeypatch.setattr(threading.Thread, "start", start)
    yield
    for loop, _ in minitrace_train._loops.values():
        loop.close()


def test_where_no_thread_can_be_started_examples_run_one_after_the_other(threadless, tmp_path):
    seen = []

    def model(x):
        seen.append(x)
        return shift(x)

    shift = Shift()
    assert evaluate(model, DATASET, near, workers=4).mean == -7 and seen == [1, 2, 3, 4]
    run = train(
        shift, DATASET, near, Steps(shift, [3, 7]), batch_size=2, workers=4, journal=tmp_path / "j"
    )
    assert run.score == 0 and shift.offset.data == 7
    loop = Loop()
    assert evaluate(loop, DATASET, near, workers=4).mean == evaluate(loop, DATASET, near).mean == 0
    with pytest.raises(KeyError, match="mine"):
        evaluate(lambda x: {}["mine"], DATASET, near, workers=4)


def test_a_loop_without_a_thread_gets_one_when_there_is_one_again(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    model = Loop()
    with monkeypatch.context() as patched:
        patched.setattr(minitrace_train, "_loops", loops := {})
        patched.setattr(threading.Thread, "start", start)
        assert evaluate(model, DATASET, near).mean == 0
    monkeypatch.setattr(minitrace_train, "_loops", loops)

    async def cell():
        return evaluate(model, DATASET, near, workers=2).mean

    assert asyncio.run(cell()) == 0 and len(model.loops) == 1


def openai_run(workers):
    """Train a prompt with the real client against a server on this machine; scores and prompts."""
    openai = pytest.importorskip("openai")
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            tone, question = (message["content"] for message in asked["messages"])
            message = {"role": "assistant", "content": f"{tone} {question}"}
            answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = json.dumps({**answer, "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Agent(Module):
        def __init__(self, client):
            self.client = client
            self.tone = node("dry", name="tone", trainable=True)

        @bundle()
        async def ask(self, tone, question):
            messages = [{"role": "system", "content": tone}, {"role": "user", "content": question}]
            got = await self.client.chat.completions.create(model="m", messages=messages)
            return got.choices[0].message.content

        async def forward(self, question):
            return await self.ask(self.tone, question)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        agent = Agent(openai.AsyncOpenAI(base_url=url, api_key="none"))
        data = [(f"question {n}", f"warm question {n}") for n in range(12)]
        before = evaluate(agent, data, exact, workers=workers).scores
        script = Script(['{"suggestion": {"tone0": "warm"}}', '{"suggestion": {}}'])
        run = train(agent, data, exact, OptoPrime(agent, llm=script), batch_size=6, workers=workers)
        return before, run.scores, evaluate(agent, data, exact, workers=workers).scores
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("workers", [1, 8])
def test_the_client_of_openai_is_right_about_every_example(workers, monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    assert openai_run(workers) == ([0.0] * 12, [0.0, 1.0], [1.0] * 12)


# ---- Refusals are seen


WRONG_NAME = '{"suggestion": {"number": 7}}'


def test_a_model_that_always_answers_with_a_wrong_name_is_told(tmp_path):
    shift, path = Shift(), tmp_path / "run"
    optimizer = OptoPrime(shift, llm=lambda messages: WRONG_NAME, retries=1)
    with pytest.warns(UserWarning) as caught:
        run = train(shift, DATASET, near, optimizer, epochs=3, batch_size=4, journal=path)
    (told,) = [str(each.message) for each in caught if each.category is UserWarning]
    assert told.startswith("no reply to the optimizer could be used, so nothing changed: ")
    assert "number" in told and "step 1" in told and caught[0].filename == __file__
    assert run.refused == 6 and run.reason == "epochs" and "refused=6" in repr(run)
    steps = [record for record in records(path) if record["event"] == "step"]
    assert [step["reason"] for step in steps] == ["refused"] * 3
    assert records(path)[-1]["refusals"] == 6


def test_a_reply_that_a_retry_mends_is_counted_and_not_a_refused_step(tmp_path):
    shift, path = Shift(), tmp_path / "run"
    replies = ["?", WRONG_NAME, '{"suggestion": {"offset0": 7}}', "?", '{"suggestion": {}}']
    optimizer = OptoPrime(shift, llm=Script(replies))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(shift, DATASET, near, optimizer, epochs=2, batch_size=4, journal=path)
    assert run.refused == 3 and run.score == 0
    reasons = [record["reason"] for record in records(path) if record["event"] == "step"]
    assert reasons == ["better", "no change"]


def test_of_several_candidates_those_that_can_be_used_count(tmp_path):
    shift = Shift()

    def llm(messages):
        first = "candidate 1 of" in messages[1]["content"]
        return WRONG_NAME if first else '{"suggestion": {"offset0": 7}}'

    optimizer = OptoPrime(shift, llm=llm, retries=0)
    run = train(shift, DATASET, near, optimizer, candidates=3, batch_size=4)
    assert run.refused == 1 and shift.offset.data == 7


@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("given", [None, "keep", "raise"])
def test_on_refusal_holds_in_train_and_in_step(given, candidates):
    shift = Shift()
    optimizer = OptoPrime(shift, llm=lambda messages: "?", retries=0, on_refusal=given)
    raises = pytest.raises(ReplyError, match="no usable reply in 1 attempt")
    options = {"candidates": candidates, "batch_size": 4}
    with raises if given == "raise" else pytest.warns(UserWarning, match="could be used"):
        assert train(shift, DATASET, near, optimizer, **options).refused == candidates
    assert optimizer.on_refusal == given
    optimizer.backward(shift(1), "too low")
    with contextlib.nullcontext() if given == "keep" else raises:
        assert optimizer.step() == {}


def test_an_optimizer_of_one_s_own_may_refuse_too():
    class Own(Optimizer):
        def propose(self, n=None):
            raise ReplyError("I cannot read this", ["?"], ["unreadable"])

    shift = Shift()
    with pytest.warns(UserWarning, match="I cannot read this"):
        assert train(shift, DATASET, near, Own(shift), batch_size=2).refused == 2
    with pytest.raises(ReplyError, match="I cannot read this"):
        train(shift, DATASET, near, Own(shift, on_refusal="raise"))


# ---- The wrong object


@pytest.mark.parametrize("kind", [OptoPrime, OPRO, TextGrad])
def test_an_optimizer_of_another_instance_is_named(kind, tmp_path):
    mine, other = Shift(), Shift()
    with pytest.warns(UserWarning) as caught:
        run = train(
            mine,
            DATASET,
            near,
            kind(other, llm=critic),
            epochs=2,
            batch_size=2,
            journal=tmp_path / "j",
        )
    (told,) = [str(each.message) for each in caught if each.category is UserWarning]
    assert "the feedback reaches offset:0, and none of the optimizer's parameters" in told
    assert "which are offset:1" in told and run.steps == 4
    steps = [record for record in records(tmp_path / "j") if record["event"] == "step"]
    assert {step["reason"] for step in steps} == {"no feedback"}


def test_an_optimizer_that_has_one_of_the_parameters_is_none_of_them():
    shift, stray = Shift(), node(1, name="stray", trainable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(shift, DATASET, near, Steps([shift.offset, stray], [7]), batch_size=4)
    assert shift.offset.data == 7


# ---- A score says of what


class Constant(Module):
    """Says the same whatever it is asked."""

    def __init__(self):
        self.answer = node("a", name="answer", trainable=True)

    def forward(self, x):
        return self.answer + ""


FOUR = [(1, "b"), (2, "c"), (3, "d"), (4, "a")]


def test_a_constant_answer_has_the_score_of_the_whole_dataset():
    model = Constant()
    values = ["b", "c", "d", "a"]
    run = train(model, FOUR, exact, Steps(model, values))
    assert run.score == evaluate(model, FOUR, exact).mean == 0.25
    assert (run.examples, run.scored_on) == (4, "dataset")
    assert "score=0.25 (the mean of 4 examples of the dataset)" in repr(run)
    model.answer.set("a")
    run = train(model, FOUR, exact, Steps(model, values), measure=False)
    assert (run.score, run.examples, run.scored_on) == (1.0, 1, "batch")
    assert "score=1 (the mean of 1 example of the batch)" in repr(run)


def test_a_validation_set_is_what_the_score_is_of():
    model = Constant()
    run = train(model, FOUR, exact, Steps(model, list("bcda")), validation=FOUR[:2])
    assert (run.score, run.examples, run.scored_on) == (0.5, 2, "validation")
    assert "score=0.5 (the mean of 2 examples of the validation set)" in repr(run)


@pytest.mark.parametrize(
    "options, extra",
    [
        ({"batch_size": 4}, 0),  # the batch was the dataset
        ({"batch_size": 3}, 4),
        ({"batch_size": 2}, 4),
        ({"batch_size": 2, "measure": False}, 0),
        ({"batch_size": 2, "validation": DATASET}, 0),
        ({"batch_size": 4, "gate": False}, 4),  # what was kept was never run
        ({"batch_size": 4, "gate": False, "candidates": 2}, 0),
    ],
)
def test_the_dataset_is_measured_once_and_only_where_that_is_new(tmp_path, options, extra):
    shift = Shift()
    train(shift, DATASET, near, Steps(shift, [3, 7] * 4), journal=tmp_path / "j", **options)
    told = [r for r in records(tmp_path / "j") if r["event"] == "example"]
    assert sum(record["part"] == "measure" for record in told) == extra


def test_words_without_scores_are_not_measured():
    shift = Shift()
    seen = []

    def guide(query, response, info):
        seen.append(query)
        return "more"

    run = train(shift, DATASET, guide, Steps(shift, [1, 2, 3, 4]), gate=False)
    assert len(seen) == 4 and (run.score, run.examples) == (None, 0) and "score=None" in repr(run)


def test_examples_without_a_score_are_not_counted():
    shift = Shift()
    guide = lambda q, r, info: near(q, r, info) if q % 2 else "words only"  # noqa: E731
    run = train(shift, DATASET, guide, Steps(shift, [7] * 4))
    assert (run.score, run.examples) == (0, 2)


def test_a_spent_budget_leaves_the_score_of_the_batch_and_says_so():
    def asks(x):
        return word + operators.call_llm(Script([("", "!")]), "Say.", str(x))

    word = node("a", name="word", trainable=True)
    data = [(1, "b!"), (2, "c!"), (3, "b!")]
    run = train(asks, data, exact, Steps([word], ["b", "c", "d"]), budget=Budget(calls=5))
    assert run.reason.startswith("budget") and (run.examples, run.scored_on) == (1, "batch")
    word.set("a")
    run = train(asks, data, exact, Steps([word], ["b", "c", "d"]), budget=Budget(calls=99))
    assert run.reason == "epochs" and (run.examples, run.scored_on) == (3, "dataset")


# ---- A reply that was refused, filtered, empty or cut off


UNSPOKEN = pytest.mark.parametrize("kind", ["refused", "filtered", "empty", "cut off"])
BROKEN = pytest.mark.parametrize("kind", ["setup", "network", "timeout", "status", "unreadable"])


class Moody(LanguageModel):
    """Fails at some calls, by their numbers; else it gives the next reply."""

    model = "moody"

    def __init__(self, replies, fails, kind):
        self.replies, self.fails, self.kind, self.asked = iter(replies), fails, kind, 0

    def complete(self, messages, options):
        self.asked += 1
        if self.asked in self.fails:
            raise LLMError("I would rather not", kind=self.kind)
        return Reply(next(self.replies))


SEVEN = '{"suggestion": {"offset0": 7}}'


@UNSPOKEN
def test_an_optimizer_that_gets_no_word_changes_nothing_at_that_step(tmp_path, kind):
    def run(llm):
        minitrace.GRAPH.clear()
        shift = Shift()
        with pytest.warns(UserWarning, match=r"could be used.*: I would rather not \(step 1"):
            return train(
                shift, DATASET, near, OptoPrime(shift, llm=llm), epochs=2, batch_size=4,
                journal=tmp_path / "j",
            )  # fmt: skip

    first = run(Moody([SEVEN], {1}, kind))
    assert first.reason == "epochs" and first.scores == [-7, -7] and first.score == 0
    assert first.refused == 1 and first.values == {"offset0": 7}
    reasons = [r["reason"] for r in records(tmp_path / "j") if r["event"] == "step"]
    assert reasons == ["refused", "better"]
    again = Moody([], {}, kind)  # resuming passes it, and asks nothing
    assert run(again)[:5] == first[:5] and again.asked == 0


@UNSPOKEN
def test_a_run_killed_after_such_a_reply_goes_on_behind_it(tmp_path, kind):
    def run(llm, stop):
        minitrace.GRAPH.clear()
        shift, left = Shift(), iter(range(stop))

        def guide(query, response, info):
            if next(left, None) is None:
                raise Stop
            return near(query, response, info)

        with pytest.warns(UserWarning, match="could be used"):
            return train(
                shift, DATASET, guide, OptoPrime(shift, llm=llm), epochs=3, batch_size=4,
                journal=tmp_path / "j",
            )  # fmt: skip

    with pytest.raises(Stop):
        run(Moody([], {1}, kind), 6)
    later = Moody([SEVEN, '{"suggestion": {}}'], {}, kind)
    assert run(later, 99).score == 0 and later.asked == 2


@UNSPOKEN
def test_of_several_candidates_only_the_silent_one_is_lost(tmp_path, kind):
    shift = Shift()

    def llm(messages):
        if "candidate 2 of" in messages[1]["content"]:
            raise LLMError("I would rather not", kind=kind)
        return SEVEN

    for _ in range(2):  # the second time it is resumed
        run = train(
            shift, DATASET, near, OptoPrime(shift, llm=llm), candidates=3, batch_size=4,
            journal=tmp_path / "j",
        )  # fmt: skip
        assert run.score == 0 and run.refused == 1 and shift.offset.data == 7
        silent = [call["error"]["words"] for call in calls(tmp_path / "j") if "error" in call]
        assert silent == ["I would rather not"] and len(calls(tmp_path / "j")) == 3


@UNSPOKEN
def test_an_optimizer_that_adds_to_propose_loses_no_more(kind):
    class Logged(OptoPrime):
        def propose(self, n=None):
            return super().propose(n)

    def llm(messages):
        if "candidate 2 of" in messages[1]["content"]:
            raise LLMError("I would rather not", kind=kind)
        return SEVEN

    shift = Shift()
    optimizer = Logged(shift, llm=llm)
    run = train(shift, DATASET, near, optimizer, candidates=3, batch_size=4)
    assert run.score == 0 and run.refused == 1 and shift.offset.data == 7
    assert not optimizer.refused  # which is what a prompt repeats


def test_silence_is_told_of_the_candidate_that_it_befell(tmp_path):
    def llm(messages):
        if "candidate 2 of" in messages[1]["content"]:
            raise LLMError("I would rather not", kind="refused")
        return '{"suggestion": {}}'

    shift = Shift()
    optimizer = OptoPrime(shift, llm=llm)
    train(shift, DATASET, near, optimizer, candidates=2, batch_size=4, journal=tmp_path / "j")
    refused = [each["refused"] for each in records(tmp_path / "j") if each["event"] == "proposal"]
    assert refused == [[], ["I would rather not"]]


@UNSPOKEN
def test_a_critic_that_gets_no_word_changes_nothing_at_that_step(kind):
    word = node("dry", name="word", trainable=True)
    llm = Moody(["Warmer.", '{"suggestion": {"word0": "warm"}}'], {1}, kind)
    data = [("!", "warm!")]
    with pytest.warns(UserWarning, match="I would rather not"):
        run = train(lambda x: word + x, data, exact, TextGrad([word], llm=llm), epochs=2)
    assert run.scores == [0, 0] and run.score == 1 and run.refused == 1


@UNSPOKEN
def test_a_silent_reply_ends_a_run_that_was_told_to_raise(kind):
    for candidates in 1, 2:
        shift = Shift()
        optimizer = OptoPrime(shift, llm=Moody([], {1, 2}, kind), on_refusal="raise")
        with pytest.raises(LLMError, match="I would rather not"):
            train(shift, DATASET, near, optimizer, candidates=candidates, batch_size=4)


@UNSPOKEN
@pytest.mark.parametrize("workers", [1, 3])
def test_a_judge_that_gets_no_word_leaves_its_example_without_a_score(tmp_path, kind, workers):
    def judge_of(fails):
        return Judge("good", Moody(['{"score": 0.5, "feedback": "hm"}'] * 9, fails, kind))

    found = evaluate(Shift(), DATASET, judge_of({2}), workers=workers)
    assert sorted(map(str, found.scores)) == ["0.5", "0.5", "0.5", "None"] and found.mean == 0.5
    assert sum("(not judged: I would rather not)" in words for words in found.feedback) == 1
    for judge in judge_of({2}), judge_of({1, 2, 3, 4, 5}):  # the second is asked nothing
        minitrace.GRAPH.clear()
        shift = Shift()
        run = train(
            shift, DATASET, judge, Steps(shift, [None]), batch_size=4, workers=workers,
            journal=tmp_path / "j",
        )  # fmt: skip
        assert run.score == 0.5 and run.examples == 3
    assert judge.llm.asked == 0


@UNSPOKEN
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("fails", [1, 2, 4, 5, 8, 9, 12])
@pytest.mark.parametrize("bare", [lambda work: work(), lambda work: by_thread(work)])
def test_a_silent_reply_that_ended_a_run_is_asked_for_again(tmp_path, kind, workers, fails, bare):
    llm = Moody(["x"] * 99, {fails, fails + 1}, kind)  # twice: resuming may fail as well
    word = node("a", name="word", trainable=True)
    if workers > 1:
        llm.fails = {fails}

    def run():
        word.set("a")
        return train(
            lambda x: word + bare(lambda: llm(f"{x} {word.data}?")), DATASET, lambda *_: 1,
            Steps([word], ["b"]), batch_size=4, workers=workers, journal=tmp_path / "j",
            validation=DATASET,
        )  # fmt: skip

    for _ in llm.fails:
        with pytest.raises(LLMError, match="I would rather not"):
            run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = run()
    assert first.reason == "epochs" and word.data == "b"
    assert llm.asked == 16 + len(llm.fails)
    assert run()[:5] == first[:5] and llm.asked == 16 + len(llm.fails)


@UNSPOKEN
@pytest.mark.parametrize("candidates", [1, 3])
def test_a_refusal_that_ended_a_run_is_asked_for_again(tmp_path, kind, candidates):
    shift, llm = Shift(), Moody([SEVEN] * 9, {1}, kind)

    def run():
        optimizer = OptoPrime(shift, llm=llm, on_refusal="raise")
        return train(
            shift, DATASET, near, optimizer, batch_size=4, candidates=candidates,
            journal=tmp_path / "j",
        )  # fmt: skip

    with pytest.raises(LLMError, match="I would rather not"):
        run()
    asked = llm.asked
    assert run().score == 0 and shift.offset.data == 7 and llm.asked > asked


@UNSPOKEN
@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("unusable", [0, 1, 2])
def test_unusable_replies_before_a_silent_one_are_counted(tmp_path, kind, candidates, unusable):
    def llm(messages):
        if len(messages) > 2 * unusable + 1:
            raise LLMError("I would rather not", kind=kind)
        return '{"suggestion": {"wrong": 1}}'

    for _ in range(2):  # the second time it is resumed
        minitrace.GRAPH.clear()
        shift = Shift()
        with pytest.warns(UserWarning, match=r"could be used.*: I would rather not \(step 1"):
            run = train(
                shift, DATASET, near, OptoPrime(shift, llm=llm, retries=3), batch_size=4,
                candidates=candidates, journal=tmp_path / "j",
            )  # fmt: skip
        assert run.refused == candidates * (unusable + 1) and run.values == {"offset0": 0}
        assert run.reason == "epochs" and len(calls(tmp_path / "j")) == run.refused
    refused = [r["refused"] for r in records(tmp_path / "j") if r["event"] == "proposal"]
    assert all(each[-1] == "I would rather not" for each in refused)


@pytest.mark.parametrize("data", [[], (), iter([]), {"inputs": [], "infos": []}])
def test_a_dataset_without_examples_is_an_error(data, tmp_path):
    with pytest.raises(ValueError, match="dataset has no examples: there is nothing to learn"):
        train(Shift(), data, near, journal=tmp_path / "j")
    assert not (tmp_path / "j").exists()
    assert evaluate(Shift(), [], near).mean is None


def test_a_guide_that_is_a_function_may_ask_as_well():
    llm = Moody(["1", "1", "1"], {2}, "filtered")
    found = evaluate(Shift(), DATASET, lambda *_: float(llm("Good?")))
    assert found.scores == [1, None, 1, 1]


@BROKEN
@pytest.mark.parametrize("where", ["optimizer", "judge"])
def test_what_no_other_value_would_avoid_ends_the_run_and_it_is_resumed(tmp_path, kind, where):
    judged = ['{"score": 0.1, "feedback": "low"}'] * 4 + ['{"score": 0.9, "feedback": "x"}'] * 4
    fails = {2} if where == "judge" else {}
    judge = Judge("good", Moody(judged, fails, kind))
    llm = Moody([SEVEN], {1} if where == "optimizer" else {}, kind)
    shift = Shift()

    def run():
        return train(
            shift, DATASET, judge, OptoPrime(shift, llm=llm), batch_size=4, journal=tmp_path / "j"
        )

    with pytest.raises(LLMError, match="I would rather not"):
        run()
    assert run().score == 0.9 and shift.offset.data == 7
    assert len(calls(tmp_path / "j")) == 9 == judge.llm.asked + llm.asked - 1


# ---- The journal is about the run and not about names


STORY = """
import json, sys
sys.path[:0] = sys.argv[1].split()
from minitrace import *
from minitrace_train import *
for _ in range(int(sys.argv[4])):
    node(0, name="offset"), node("", name="tone"), node(0, name="x")
served = open(sys.argv[3], "a")

class Model(Module):
    def __init__(self):
        self.parts = [node(0, name="offset", trainable=True)]
        self.tone = node("dry", name="tone", trainable=True)
    def forward(self, x):
        return self.rule(x + self.parts[0]) + " " + self.tone
    @bundle(trainable=True)
    def rule(self, x):
        return str(x)

def llm(messages):
    text = " ".join(message["content"] for message in messages)
    served.write("asked\\n")
    served.flush()
    import re
    name = re.search(r"\\boffset\\d+", text)[0]
    tone = re.search(r"\\btone\\d+", text)[0]
    value = int(re.search(name + r" = (-?\\d+)", text)[1])
    if value == 2 and "No answer" not in text:
        return json.dumps({"suggestion": {name: "many"}})
    told = {"reasoning": f"{name} is too small", "suggestion": {name: value + 1, tone: "warm"}}
    return json.dumps(told)

def guide(query, response, info):
    number = int(response.split()[0])
    return -abs(number - info), "too low" if number < info else "too high"

model = Model()
run = train(model, [(1, 8), (2, 9)], guide, OptoPrime(model, llm=llm, retries=3, memory_size=3),
            epochs=int(sys.argv[5]), batch_size=2, candidates=int(sys.argv[6]), journal=sys.argv[2])
print(json.dumps([run.score, run.scores, run.refused, sorted(map(str, run.values.values()))]))
"""


def story(folder, others, epochs, candidates=1):
    """A run in a process of its own, in which other nodes had the names before."""
    served, program = folder / "served", folder / "story.py"
    program.write_text(STORY)
    command = [sys.executable, program, f"{ROOT} {COMPANIONS}", folder / "j", served]
    command += [others, epochs, candidates]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), len(served.read_text().splitlines()), done.stderr


@pytest.mark.parametrize("candidates", [1, 2])
def test_a_journal_is_carried_to_another_process_and_extended(tmp_path, candidates):
    for name in "whole", "parts":
        (tmp_path / name).mkdir()
    whole, paid, _ = story(tmp_path / "whole", 0, 4, candidates)
    first, asked, _ = story(tmp_path / "parts", 3, 2, candidates)
    assert first[1] == whole[1][:2] and asked < paid
    again, asked_again, said = story(tmp_path / "parts", 0, 2, candidates)
    assert again == first and asked_again == asked
    assert "holds the whole of this run, so nothing was asked. To start over, name another" in said
    last, asked_last, said = story(tmp_path / "parts", 11, 4, candidates)
    assert last == whole and asked_last == paid and "differs" not in said
    begun = records(tmp_path / "parts" / "j")[0]
    assert begun["configuration"]["parameters"].keys() == {"parts.0", "tone", "rule"}
    values = [
        record["values"] for record in records(tmp_path / "parts" / "j") if "values" in record
    ]
    assert all(each.keys() <= {"parts.0", "tone", "rule"} for each in values)
    replies = " ".join(call["reply"] for call in calls(tmp_path / "parts" / "j"))
    assert "offset3" in replies and "offset0" not in replies  # the words of its first run


def test_the_same_cell_run_again_resumes(tmp_path):
    script = Script([json.dumps({"suggestion": {"offset0": n}}) for n in (3, 5)])

    def cell(epochs):
        shift = Shift()  # offset:0, then offset:1, and so on
        optimizer = OptoPrime(shift, llm=script)
        run = train(
            shift, DATASET, near, optimizer, epochs=epochs, batch_size=4, journal=tmp_path / "j"
        )
        return run.score, shift.offset.data, len(script.asked)

    assert cell(1) == (-4, 3, 1)
    with pytest.warns(UserWarning, match="holds the whole of this run"):
        assert cell(1) == (-4, 3, 1)
    assert cell(2) == (-2, 5, 2)  # offset:2, which is asked about as the run began: as offset0
    assert "offset0 = 3" in script.asked[1][-1]["content"]


def test_a_run_that_goes_on_leaves_names_as_they_were(tmp_path):
    models = Shift(), Shift()
    for shift in models:
        optimizer = OptoPrime(shift, llm=Script([SEVEN]))
        optimizer.history.append(minitrace.Attempt({optimizer.names[0]: -1}, ["low"], None))
        run = train(shift, [(1, 8)], near, optimizer, journal=tmp_path / "j")
        assert run.values == {shift.offset.py_name: 7}
        assert [each.values for each in optimizer.history] == [
            {optimizer.names[0]: value} for value in (-1, 0)
        ]
        assert calls(tmp_path / "j")[0]["messages"][1]["content"].count("offset0 = -1") == 1
    assert OptoPrime(models, llm=StubLLM()).names == ["offset0", "offset1"]


def test_names_that_have_changed_places_are_told_apart(tmp_path):
    def run(swapped):
        minitrace.GRAPH.clear()
        if swapped:
            node(0, name="x")
        a = node(1, name="x", trainable=True)
        if swapped:
            minitrace.GRAPH.clear()
        b = node(5, name="x", trainable=True)
        assert (a.name, b.name) == (("x:1", "x:0") if swapped else ("x:0", "x:1"))
        model = Module()
        model.a, model.b = a, b
        model.forward = lambda x: model.a * 10 + model.b + x
        replies = [json.dumps({"suggestion": {a.py_name: 2, b.py_name: 6}})]
        llm = Script(replies)
        train(model, [(0, 26)], near, OptoPrime(model, llm=llm), journal=tmp_path / "j")
        return a.data, b.data, len(llm.asked)

    assert run(False) == (2, 6, 1)
    with pytest.warns(UserWarning, match="holds the whole"):
        assert run(True) == (2, 6, 0)


def overlapping(tmp_path, names, order, epochs, text=""):
    """A run whose parameters get their names in this order; what they are and what was asked."""
    minitrace.GRAPH.clear()
    for _ in range(names):
        node("", name="w")
    made = {}
    for attribute in order:
        start = f"{text}{attribute}" if text else {"a": 0, "b": 10, "c": 20}[attribute]
        made[attribute] = node(start, name="w", trainable=True)
    model = Module()
    for attribute in sorted(made):
        setattr(model, attribute, made[attribute])
    asked = []

    def forward(x):
        return operators.identity([made[name] for name in sorted(made)])

    def llm(messages):
        asked.append(messages)
        after = {name: each.data + ("!" if text else 1) for name, each in made.items()}
        values = {made[name].py_name: value for name, value in after.items()}
        return json.dumps({"reasoning": f"{made['a'].py_name} first", "suggestion": values})

    model.forward = forward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(
            model, [(0, 1)], lambda *_: (0, "more"), OptoPrime(model, llm=llm), epochs=epochs,
            gate=False, measure=False, journal=tmp_path / "j",
        )  # fmt: skip
    return [made[name].data for name in sorted(made)], len(asked)


@pytest.mark.parametrize("names", [0, 1, 2])
@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_replies_reach_their_parameters_whatever_their_names_were(tmp_path, names, order):
    assert overlapping(tmp_path, 0, "abc", 1) == ([1, 11, 21], 1)
    values, asked = overlapping(tmp_path, names, order, 3)
    assert values == [3, 13, 23] and asked <= 3
    if order == "abc":  # the words are the same, but for the names
        assert asked == 2
    values, _ = overlapping(tmp_path, 1 - min(names, 1), "abc", 4)
    assert values == [4, 14, 24]


@pytest.mark.parametrize("text", ["w0, w1 and w:2 ", '"w0": 3 \\ é w2\n', "<w0> w1 w3 "])
@pytest.mark.parametrize("names", [0, 1, 2, 7])
def test_texts_in_values_keep_the_names_that_they_mention(tmp_path, text, names):
    def run(names, epochs):
        return overlapping(tmp_path, names, "abc", epochs, text)

    def values(marks):
        return [text + name + "!" * marks for name in "abc"]

    assert run(0, 1) == (values(1), 1)
    assert run(names, 1) == (values(1), 0)
    assert run(names, 3) == (values(3), 2)
    assert run(3, 3) == (values(3), 0)
    kept = [record["values"] for record in records(tmp_path / "j") if record["event"] == "step"]
    assert [list(each.values()) for each in kept] == [values(1), values(2), values(3)]


@pytest.mark.parametrize(
    "form",
    [
        '{{"reasoning": "{a} is it", "suggestion": {{"{a}": "w1", "{b}": {{"w0": ["w1"]}}}}}}',
        '<variable name="{a}">w1</variable><variable name="{b}">{{"w0": ["w1"]}}</variable>',
    ],
)
@pytest.mark.parametrize("names", [1, 2])
def test_values_that_are_names_are_values(tmp_path, form, names):
    def run(names):
        minitrace.GRAPH.clear()
        for _ in range(names):
            node("", name="w")
        model = Module()
        model.a, model.b = (node(v, name="w", trainable=True) for v in ("x", {"y": [""]}))
        model.forward = lambda x: operators.identity([model.a, model.b])
        llm = Script([form.format(a=model.a.py_name, b=model.b.py_name)])
        train(
            model, [(0, 1)], lambda *_: (0, "more"), OptoPrime(model, llm=llm), gate=False,
            measure=False, journal=tmp_path / "j",
        )  # fmt: skip
        return model.a.data, model.b.data, len(llm.asked)

    assert run(0) == ("w1", {"w0": ["w1"]}, 1)
    assert run(names) == ("w1", {"w0": ["w1"]}, 0)


def two_models(kind):
    """Two language models that answer differently to the same question."""
    if kind == "functions":

        def big(messages):
            return f"big {next(turn)}"

        def small(messages):
            return f"small {next(turn)}"

        turn = iter(range(99))
        return big, small

    class Named(Live):
        def complete(self, messages, options):
            return Reply(f"{self.model} {len(self.asked)}")

    big, small = Named(), Named()
    big.model, small.model = "big", "small"
    return big, small


@pytest.mark.parametrize("kind", ["named", "functions"])
def test_two_models_that_are_asked_the_same_keep_their_replies(tmp_path, kind):
    big, small = two_models(kind)
    word, told = node("a", name="word", trainable=True), []

    def run(order):
        word.set("a")

        def ask(x):
            said = {each: operators.call_llm(each, "Answer.", "x").data for each in order}
            told.append((said[big], said[small]))
            return word + x

        train(ask, [("b", 1)], lambda *_: 1, Steps([word], [None]), journal=tmp_path / "j")

    run([big, small])
    with pytest.warns(UserWarning, match="holds the whole"):
        run([small, big])
    assert told[0] == told[1] and told[0][0].startswith("big")
    assert told[0][1].startswith("small")


def test_fewer_epochs_are_another_run_and_a_finished_one_says_how_to_start_over(tmp_path):
    def run(epochs):
        shift = Shift()
        values = iter([3, 5, 6, 8, 9])
        optimizer = Steps(shift, values)
        return train(
            shift, DATASET, near, optimizer, epochs=epochs, batch_size=4, journal=tmp_path / "j"
        )

    assert run(2).scores == [-7, -4]
    assert run(4).scores == [-7, -4, -2, -1]
    with pytest.warns(UserWarning) as caught:
        assert run(4).scores == [-7, -4, -2, -1]
    assert "To start over, name another file or delete this one" in str(caught[0].message)
    with pytest.raises(MinitraceError, match="epochs was 2, now 1; name another file"):
        run(1)


def test_a_changed_guide_program_or_optimizer_is_named(tmp_path):
    def run(name, program="x + offset", strict=False, **options):
        minitrace.GRAPH.clear()
        offset = node(0, name="offset", trainable=True)
        model = {"x + offset": lambda x: x + offset, "offset * 2": lambda x: x + offset * 2}[
            program
        ]

        def guide(query, response, info):
            return -abs(response - info), "too low"

        def stern(query, response, info):
            return -2 * abs(response - info), "far too low"

        llm = Script(['{"suggestion": {"offset0": 3}}', '{"suggestion": {"offset0": 4}}'])
        optimizer = OptoPrime([offset], llm=llm, **options)
        train(
            model, DATASET, stern if strict else guide, optimizer, epochs=2, batch_size=4,
            journal=tmp_path / name,
        )  # fmt: skip

    changes = {
        "the guide": {"strict": True},
        "the program": {"program": "offset * 2"},
        "the optimizer": {"objective": "Be quick."},
    }
    for name, change in changes.items():
        run(name)
        with pytest.warns(UserWarning, match=f"the run differs .*: {name} changed since"):
            run(name, **change)


def test_another_language_model_is_a_changed_optimizer_and_told_at_the_users_line(tmp_path):
    for model in "big", "small":
        minitrace.GRAPH.clear()
        shift, llm = Shift(), Moody([SEVEN], {}, "")
        llm.model = model
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(shift, [(1, 8)], near, OptoPrime(shift, llm=llm), journal=tmp_path / "j")
    assert "the optimizer changed since; to start over" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_a_guide_whose_class_says_something_else_is_a_changed_one(tmp_path):
    for name in "low", "lower":
        minitrace.GRAPH.clear()
        shift = Shift()

        class Fixed(Guide):
            words = name

            def get_feedback(self, query, response, info):
                return len(self.words), self.words

        changed = pytest.warns(UserWarning, match="the guide changed since")
        with changed if name == "lower" else contextlib.nullcontext():
            train(shift, [(1, 8)], Fixed(), Steps(shift, [None]), journal=tmp_path / "j")


def test_a_guide_with_other_criteria_is_a_changed_one(tmp_path):
    for criteria in "polite", "short":
        minitrace.GRAPH.clear()
        shift = Shift()
        llm = Script([json.dumps({"score": len(criteria) / 10, "feedback": criteria})] * 9)
        judge = Judge(criteria, llm)
        differs = pytest.warns(UserWarning, match="the guide changed since")
        with differs if criteria == "short" else contextlib.nullcontext():
            train(shift, DATASET, judge, Steps(shift, [None]), batch_size=4, journal=tmp_path / "j")


# ---- Threads that have no context of their own


@BARE
@pytest.mark.parametrize("workers", [1, 4])
def test_calls_from_plain_threads_are_counted_recorded_and_not_paid_again(tmp_path, bare, workers):
    live = Live()

    def run(word):
        minitrace.GRAPH.clear()
        parameter = node("a", name="word", trainable=True)

        def model(x):
            said = [bare(lambda: live(f"{x}?"))[:1], bare(lambda: live("all?"))[-2:]]
            return parameter + x + " ".join(said)

        return train(
            model, [("b", 1), ("c", 1)], lambda q, r, i: len(r), Steps([parameter], [word]),
            batch_size=2, workers=workers, journal=tmp_path / "j",
        )  # fmt: skip

    run("long")
    assert len(live.asked) == len(calls(tmp_path / "j")) == 8
    with pytest.warns(UserWarning, match="holds the whole"):
        again = run("long")
    assert len(live.asked) == 8 and again.spent["calls"] == 8


@BARE
@pytest.mark.parametrize("redact", [None, lambda record: record])
def test_a_call_from_a_plain_thread_outlives_another_run(tmp_path, bare, redact):
    """While it is in flight, the other run ends and closes its journal."""
    begun, other_is_over = threading.Event(), threading.Event()

    def slow(messages):
        begun.set()
        assert other_is_over.wait(60)
        return "slow"

    def run(name, model):
        parameter = node("a", name="word", trainable=True)
        guide, steps = (lambda q, r, i: len(r)), Steps([parameter], [None])
        return train(
            lambda x: parameter + model(x), [("b", 1)], guide, steps,
            journal=tmp_path / name, redact=redact,
        )  # fmt: skip

    def answer(x):
        return bare(lambda: str(minitrace.operators.call_llm(slow, "Answer.", x).data))

    def other(x):
        thread.start()
        assert begun.wait(60)
        return x

    found = []
    thread = threading.Thread(target=lambda: found.append(run("first", answer)))
    assert run("other", other).reason == "epochs"
    other_is_over.set()
    thread.join(60)
    assert [each.reason for each in found] == ["epochs"] and found[0].score == 5
    assert [call["reply"] for call in calls(tmp_path / "first")] == ["slow"]
    assert records(tmp_path / "other")[-1]["event"] == "end"


def test_a_call_from_a_plain_thread_is_not_stopped_with_another_run(monkeypatch):
    class Told(io.StringIO):
        def write(self, words):
            stopping.set()
            return len(words)

    begun, stopping, done = threading.Event(), threading.Event(), threading.Event()

    def llm(messages):
        if "hold" in messages[-1]["content"]:
            begun.set()
            assert done.wait(60)
        return "fine"

    def ask(words):
        return str(operators.call_llm(llm, "Answer.", words).data)

    def goes_on(x):
        with ThreadPoolExecutor(2) as pool:
            held = pool.submit(ask, "hold")
            assert stopping.wait(60)
            try:
                return pool.submit(ask, "go").result()
            finally:
                done.set()
                held.result()

    def interrupted(x):
        thread.start()
        assert begun.wait(60)
        raise KeyboardInterrupt

    found = []
    thread = threading.Thread(target=lambda: found.append(evaluate(goes_on, [1])))
    monkeypatch.setattr(sys, "stderr", Told())
    with pytest.raises(KeyboardInterrupt):
        evaluate(interrupted, [1])
    thread.join(60)
    assert [each.responses for each in found] == [["fine"]]


@BARE
def test_a_budget_stops_calls_from_plain_threads(bare):
    live = Live()
    parameter = node("a", name="word", trainable=True)

    def model(x):
        return parameter + bare(lambda: live(x))

    run = train(
        model, [("b", 1)] * 5, lambda *_: 1, Steps([parameter], ["b"] * 9), budget=Budget(calls=2)
    )
    assert run.reason.startswith("budget") and len(live.asked) == 2 == run.spent["calls"]


@BARE
@pytest.mark.parametrize("read", [lambda n: n.data, lambda n: (n + 1).data, int, str])
def test_outside_nodes_read_in_a_plain_thread_are_noticed(bare, read):
    outside = node(5, name="outside")

    @bundle()
    def strict(x):
        return x, bare(lambda: read(outside))

    @bundle(allow_external_dependencies=True)
    def open_minded(x):
        return x, bare(lambda: read(outside))

    with pytest.raises(minitrace.TraceMissingInputsError, match=r"strict\(\) used outside:0"):
        strict(node(1))
    assert outside in list(open_minded(node(1)).parents)
    other = node(0, name="other", trainable=True)
    with pytest.raises(minitrace.TraceMissingInputsError, match="outside:0"):
        train(strict, DATASET, near, Steps([other], [None]), batch_size=4, workers=4)


def test_plain_threads_outside_every_body_read_what_they_like():
    """Threads that a module starts to run bundles side by side: no body waits for those."""
    shared, stop = node(5, name="shared"), threading.Event()

    @bundle()
    def slow(x):
        for _ in range(2000):
            x = x + 1
        return x

    class Fan(Shift):
        def forward(self, x):
            def part(n):
                return slow(self.offset + n).data + shared.data + (shared + n).data

            with ThreadPoolExecutor(4) as pool:
                return operators.identity(self.offset) + sum(pool.map(part, range(8)))

    found = evaluate(Fan(), range(6), workers=3)
    assert not stop.is_set() and len(set(found.responses)) == 1


# ---- Ctrl-C


CTRL_C = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
sys.path[:0] = sys.argv[1].split()
from minitrace import *
from minitrace_train import *
begun, ended = [], []

def llm(messages, **options):
    begun.append(1)
    if len(begun) == 3:
        print("flying", flush=True)
    time.sleep(float(sys.argv[3]))
    ended.append(1)
    return '{"suggestion": {}}'

word = node("a", name="word", trainable=True)

def ask(x):
    for n in range(50):
        operators.call_llm(llm, word, f"{x} {n}")
    return word + x

data = [(str(n), 1) for n in range(9)]
candidates = 3 if sys.argv[4] == "propose" else 1
model = (lambda x: word + x) if candidates == 3 else ask
try:
    if sys.argv[4] == "evaluate":
        evaluate(model, data, lambda *_: 1, workers=3)
    else:
        train(model, data, lambda *_: 1, OptoPrime([word], llm=llm), journal=sys.argv[2] or None,
              workers=1 if sys.argv[4] == "alone" else 3, batch_size=9, candidates=candidates)
except KeyboardInterrupt as stop:
    print(len(begun), len(ended), stop, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are of Unix")
def test_ctrl_c_cuts_off_a_call_in_the_main_thread_which_is_made_again(tmp_path):
    path = tmp_path / "j"
    for _ in range(2):  # the second run is answered twice from the journal
        command = [sys.executable, "-c", CTRL_C, f"{ROOT} {COMPANIONS}", str(path), "0.7", "alone"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            assert process.stdout.readline() == "flying\n"
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=60)
        assert out.split()[:2] == ["3", "2"], out + error
        assert "stopping: waiting" not in error and "the same call resumes it" in out
    assert len(calls(path)) == 4


@pytest.mark.skipif(os.name == "nt", reason="signals are of Unix")
@pytest.mark.parametrize("where", ["train", "evaluate", "propose"])
def test_ctrl_c_waits_for_the_calls_in_flight_and_no_others(tmp_path, where):
    path = tmp_path / "j" if where == "train" else ""
    command = [sys.executable, "-c", CTRL_C, f"{ROOT} {COMPANIONS}", str(path), "0.7", where]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "flying\n"
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    begun, ended, *words = out.split()
    assert (begun, ended) == ("3", "3"), out + error
    assert "stopping: waiting for 3 calls in flight; Ctrl-C again does not wait" in error
    if path:
        assert len(calls(path)) == 3 and "the same call resumes it" in " ".join(words)


@pytest.mark.skipif(os.name == "nt", reason="signals are of Unix")
def test_a_second_ctrl_c_does_not_wait(tmp_path):
    command = [sys.executable, "-c", CTRL_C, f"{ROOT} {COMPANIONS}", "", "60", "train"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "flying\n"
        process.send_signal(signal.SIGINT)
        assert any("waiting for 3 calls" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)  # its calls would take a minute
    assert out.startswith("3 0 stopped in step 1")


def test_after_an_interruption_no_worker_begins_a_call():
    live, gate = Live(), threading.Barrier(2, timeout=20)

    def model(x):
        if x == 0:
            gate.wait()
            raise KeyboardInterrupt
        gate.wait()
        time.sleep(0.05)
        return live("a").upper() + live("b")

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, range(40), workers=2)
    assert len(live.asked) <= 2


# ---- A check runs once


@pytest.mark.parametrize("kind", ["optoprime", "own", "named", "several", "textgrad"])
def test_a_check_runs_once_for_each_candidate(kind, tmp_path):
    checked, projected = [], []

    def project(value):
        projected.append(value)
        return value + 1

    offset = node(
        0, name="offset", trainable=True, check=checked.append, projections=[project],
    )  # fmt: skip
    checked.clear()
    projected.clear()
    replies = ['{"suggestion": {"offset0": 5}}', '{"suggestion": {"offset0": 6}}']
    count = 2 if kind == "several" else 1
    if kind in ("own", "named"):
        key = offset if kind == "own" else offset.py_name

        class Own(Optimizer):
            def propose(self, n=None):
                return Proposal({key: 5}) if kind == "own" else {key: 5}

        optimizer = Own([offset])
    elif kind == "textgrad":
        optimizer = TextGrad([offset], llm=Script(["Higher.", *replies]))
    else:
        optimizer = OptoPrime([offset], llm=Script(replies))
    train(
        lambda x: offset + x, [(1, 9)], near, optimizer, candidates=count, validation=[(2, 10)],
        journal=tmp_path / "j",
    )  # fmt: skip
    assert len(checked) == len(projected) == count and offset.data == 5 + count


def test_a_value_changed_after_its_check_is_checked_again():
    class Meddles(OptoPrime):
        def propose(self, n=None):
            proposal = super().propose(n)
            proposal[self.parameters[0]] = 99
            return proposal

    shift = Shift()
    shift.offset = node(0, name="offset", trainable=True, bounds=(0, 9))
    optimizer = Meddles(
        shift, llm=Script([f'{{"suggestion": {{"{shift.offset.py_name}": 5}}}}'] * 2)
    )
    with pytest.raises(ValueError, match="it must be between 0 and 9"):
        train(shift, DATASET, near, optimizer)
    optimizer.backward(shift(1), "low")
    with pytest.raises(ValueError, match="it must be between 0 and 9"):
        optimizer.step()
    assert shift.offset.data == 0
