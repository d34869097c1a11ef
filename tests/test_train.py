"""Training: batches side by side, the gate, the journal, and what a killed run comes to."""

import asyncio
import contextlib
import gc
import io
import json
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import train_program

import minitrace
from minitrace import (
    OPRO,
    Budget,
    BudgetError,
    Guide,
    Judge,
    MinitraceError,
    Module,
    Optimizer,
    OptoPrime,
    Proposal,
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

HERE = Path(__file__).resolve().parent


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
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


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


def test_the_default_optimizer_is_an_optoprime_of_the_model(monkeypatch):
    monkeypatch.setattr(minitrace, "_default_llm", StubLLM)
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

    script = Script([json.dumps({"suggestion": {"__code0": "def double(x):\n    return 2 * x"}})])
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


# ---- Failures


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
    assert shift.offset.data == 7 and run.steps == 2 and optimizer.on_refusal == "raise"


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


@pytest.mark.parametrize(
    "options, words",
    [
        ({"guide": None}, r"guide= takes a function or a Guide\(\), not None"),
        ({"guide": Guide}, r"guide= takes a function or a Guide\(\), not <class"),
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


# ---- Candidates and the gate


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
        asked = messages[-1]["content"]
        return (
            '{"suggestion": {"%s": "warm"}}' % word.py_name
            if "# Instruction" in asked
            else "Warmer."
        )

    run = train(lambda x: word + x, [("!", "warm!")], exact, kind([word], llm=llm), candidates=2)
    assert word.data == "warm" and run.score == 1


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


# ---- Evaluation


def test_evaluate_changes_nothing_and_traces_nothing():
    shift = Shift(3)
    found = evaluate(shift, DATASET, near, workers=2)
    assert found.mean == -4 and found.responses == [4, 5, 6, 7] and found.failures == {}
    assert found.feedback == ["too low"] * 4 and shift.offset.feedback == []
    assert evaluate(shift, []).mean is None
    assert evaluate(shift, [5, 6]).responses == [8, 9]


# ---- Stopping: budgets, Ctrl-C


def test_a_spent_budget_ends_the_run_with_the_best_values():
    shift = Shift()
    budget = Budget(calls=3)
    run = train(
        shift, DATASET, near, OptoPrime(shift, llm=StubLLM()), epochs=9, batch_size=4, budget=budget
    )
    assert run.reason.startswith("budget: this call would pass 3 calls") and run.spent["calls"] == 3
    assert run.steps == 4 and shift.offset.data == run.values["offset0"] > 0


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
        "stopped in step 3; the best values so far are in the model; with journal= a run can be gone on with"
    )
    path = tmp_path / "run.jsonl"
    assert interrupted(path).endswith(f"the same call goes on from {path}")


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
    key = lambda r: json.dumps([r.get("step", -1), r.get("example"), r], sort_keys=True)  # noqa: E731
    assert sorted(found, key=key) == whole
    lines = (tmp_path / "again").read_text().splitlines()
    assert len(lines) == sum(r["event"] == "call" for r in found)


# ---- The journal


def start(path, served, workers=3):
    command = [sys.executable, str(HERE / "train_program.py"), str(path), str(served), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_and_pays_for_nothing_twice(tmp_path):
    began = time.monotonic()
    whole, error = start(tmp_path / "whole", tmp_path / "served").communicate()
    seconds, rng = time.monotonic() - began, random.Random(11)
    assert whole and not error
    plain = records(tmp_path / "whole")
    for number in range(20):
        path, served, kills = tmp_path / f"run{number}", tmp_path / f"served{number}", 0
        for _ in range(rng.choice([1, 1, 2, 3])):
            process = start(path, served)
            time.sleep(rng.uniform(0.1 * seconds, 1.05 * seconds))
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.communicate()
        out, error = start(path, served).communicate()
        assert out == whole and not error
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
    with pytest.raises(MinitraceError, match=r"examples was '4, [0-9a-f]+', now '4, [0-9a-f]+'"):
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
    assert found[0]["event"] == "run" and found[0]["configuration"]["parameters"] == {"offset0": 0}
    assert found[-1]["event"] == "end" and found[-1]["values"] == run.values
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
    assert len(caught) == 1 and "the run goes another way than before" in str(caught[0].message)


def test_redact_sees_copies_and_keeps_the_first_record(tmp_path):
    script = Script(["?", '{"suggestion": {"offset0": 7}}'])
    shift = Shift()

    def spoil(record):
        for message in record.get("messages", ()):
            message["content"] = "XXX"
        return record

    train(shift, [(1, 8)], near, OptoPrime(shift, llm=script), journal=tmp_path / "a", redact=spoil)
    assert "XXX" not in json.dumps(script.asked) and "XXX" in (tmp_path / "a").read_text()
    for bad in (lambda record: None), (lambda record: "text"):
        with pytest.raises(MinitraceError, match=r"redact= gave .* for the record of a run"):
            train(Shift(), [(1, 8)], near, Steps(Shift(), [1]), journal=tmp_path / "b", redact=bad)


# ---- Growth


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


# ---- Progress


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
        train(Shift(), DATASET, near, Steps(Shift(), [1, 2]), batch_size=2, gate=False)
        assert ("\rstep 2/2  score -7  best -7" in screen.getvalue()) is shown
        assert screen.getvalue().endswith("\n") is shown
