"""Section 5, Optimize: a prompt keeps within its budget, and a reply changes all or nothing."""

import copy
import datetime
import decimal
import enum
import fractions
import inspect
import json
import os
import pathlib
import pickle
import pydoc
import random
import re
import string
import subprocess
import sys
import threading
import types
import warnings
from collections import Counter, defaultdict, deque, namedtuple

import pytest
from conftest import ROOT

import minitrace
from minitrace import (
    OPRO,
    Attempt,
    ExecutionError,
    LLMError,
    LanguageModel,
    MinitraceError,
    Module,
    Optimizer,
    OptoPrime,
    Proposal,
    Reply,
    ReplyError,
    Script,
    StubLLM,
    SumPropagator,
    TextGrad,
    TraceGraph,
    ask,
    ask_until_usable,
    bundle,
    model,
    nearest_calls,
    node,
    operators,
)


def reply(**suggestion):
    return json.dumps({"reasoning": "so", "answer": "", "suggestion": suggestion})


def problem(*parameters, feedback="too low", score=None, llm=None, kind=OptoPrime, **options):
    optimizer = kind(parameters, llm=llm or StubLLM(), **options)
    output = operators.make_list(*parameters)
    optimizer.backward(output, feedback, score=score)
    return optimizer


def text(optimizer):
    return optimizer.prompt()[1]["content"]


# ---- the prompt


def characters(prompt):
    return sum(len(message["content"]) for message in prompt)


def test_the_fixed_part_is_short():
    optimizer = problem(node(1, name="x", trainable=True))
    fixed = characters(optimizer.prompt()) - sum(
        len(part)
        for part in ("x0 = 1", "make_list0 = make_list(x=x0)  # [1]", "make_list0: too low")
    )
    assert fixed < 1200


def test_the_prompt_is_deterministic_and_shows_no_address():
    class Thing:
        pass

    def once():
        x = node(1, name="x", trainable=True)
        noise = [node(n) for n in range(random.randrange(5))]
        output = operators.make_list(x, node(Thing()), node(print), node({"b", "a", "c"}))
        output.backward("fine")
        del noise
        return x.feedback[0]

    shown = set()
    for _ in range(3):
        minitrace.GRAPH.clear()
        graph = once()
        optimizer = OptoPrime(graph.parameters, llm=StubLLM())
        shown.add(text(optimizer))
    assert len(shown) == 1
    assert " at 0x" not in shown.pop()


def chain(length):
    x = node(1, name="x", trainable=True)
    y = x
    for _ in range(length):
        y = y + 1
    return x, y


def long_text():
    x = node("ab" * 10_000, name="long")
    p = node("c", name="p", trainable=True)
    y = p
    for _ in range(10):
        y = y + x
    return p, y


@pytest.mark.parametrize("make, most", [(lambda: chain(300), 3_000), (long_text, 12_000)])
def test_prompt_sizes(make, most):
    x, y = make()
    optimizer = OptoPrime([x], llm=StubLLM())
    optimizer.backward(y, "too low")
    prompt = optimizer.prompt()
    assert characters(prompt) < most


class Shy(int):
    """A number that notes how often it is asked for its text."""

    asked = 0

    def __add__(self, other):
        return Shy(int(self) + int(other))

    def __sub__(self, other):
        return Shy(int(self) - int(other))

    def __repr__(self):
        Shy.asked += 1
        return int.__repr__(self)


@pytest.mark.parametrize("budget", [3_000, 12_000])
def test_a_large_graph_obeys_the_budget_and_few_values_are_written(budget):
    rng = random.Random(1)
    xs = [node(Shy(n), name=f"x{n}_", trainable=True) for n in range(5)]
    ys = list(xs)
    for _ in range(20_000):
        ys.append(
            getattr(operators, rng.choice(["add", "subtract"]))(
                rng.choice(ys[-9:]), rng.choice(ys[-9:])
            )
        )
    optimizer = OptoPrime(xs, llm=StubLLM(), max_chars=budget)
    optimizer.backward(ys[-1], "too low")
    Shy.asked = 0
    prompt = optimizer.prompt()
    assert characters(prompt) <= budget and 0 < Shy.asked < budget / 10
    assert f"{optimizer.graph().names[ys[-1]]} = " in prompt[1]["content"]
    left = re.findall(r"^# (\d+) calls left out", prompt[1]["content"], re.M)
    assert sum(map(int, left)) > 10_000


def test_values_are_cut_in_the_middle_with_their_length_and_parameters_never():
    long = node("x" * 5_000, name="long")
    own = node("y" * 4_000, name="own", trainable=True)
    optimizer = OptoPrime([own], llm=StubLLM())
    optimizer.backward(operators.join(own, [long, long]), "shorter!")
    assert "y" * 4_000 in text(optimizer) and "x" * 1_000 not in text(optimizer)
    assert re.search(r"characters\)", text(optimizer))
    optimizer.max_chars = 4_500
    with pytest.raises(ValueError, match=r"take [\d,]+ characters, and max_chars is 4,500"):
        optimizer.prompt()


def test_what_a_reader_needs_to_know_is_there():
    @bundle()
    def parse(words):
        "Read a number from words."
        return int(words)

    words = node("", name="words", trainable=True, constraint="digits only")
    optimizer = OptoPrime([words], llm=StubLLM())
    with pytest.raises(ExecutionError) as caught:
        parse(words)
    optimizer.backward(caught.value.exception_node, caught.value.exception_node.create_feedback())
    shown = text(optimizer)
    assert "(str) words0 = ''  # digits only" in shown
    assert "parse: Read a number from words." in shown
    assert "raised (ValueError) invalid literal" in shown


def test_code_is_shown_whole_with_its_signature():
    @bundle(trainable=True)
    def shout(words):
        # louder
        return words.upper()

    optimizer = OptoPrime(shout, llm=StubLLM())
    optimizer.backward(shout("hi"), "louder")
    shown = text(optimizer)
    assert "```python\ndef shout(words):\n    # louder\n    return words.upper()\n```" in shown
    assert "shout0 = shout(words='hi')  # 'HI'\n" in shown and shown.count("def shout(words)") == 1
    assert "keep the name and the signature" in optimizer.prompt()[0]["content"]


def test_long_inputs_stand_in_the_order_of_their_use():
    b, a = node("B" * 50, name="b"), node("A" * 50, name="a")
    p = node("p", name="p", trainable=True)
    optimizer = OptoPrime([p], llm=StubLLM())
    optimizer.backward(p + a + b, "hm")
    inputs = text(optimizer).split("# Inputs\n")[1]
    assert inputs.index("a0 = ") < inputs.index("b0 = ")


# ---- the nearest calls


def test_failures_come_first_then_outputs_then_first_uses_then_outwards():
    @bundle("[fail]")
    def fail(y):
        raise ValueError("no")

    x, other = node(1, name="x", trainable=True), node(2, name="other", trainable=True)
    deep = -x
    deeper = deep + 1
    with pytest.raises(ExecutionError) as caught:
        fail(deeper * other)
    failure = caught.value.exception_node
    output = deeper - 5
    x.zero_feedback()
    optimizer = OptoPrime([x, other], llm=StubLLM())
    optimizer.backward([output, failure], ["low", "failed"])
    graph = optimizer.graph()
    calls = [*nearest_calls(graph)]
    product = failure.parents[0]
    assert calls == [failure, output, deep, product, deeper]


@pytest.mark.parametrize("seed", range(20))
def test_every_call_is_near_once_unless_it_repeats_its_neighbours(seed):
    rng = random.Random(seed)
    ys = [node(1, name="x", trainable=True)]
    for _ in range(60):
        a, b = rng.choice(ys[-5:]), rng.choice(ys)
        ys.append(rng.choice([lambda a, b: a + b, lambda a, b: a - b, lambda a, b: -a])(a, b))
    ys[-1].backward("hm")
    graph = ys[0].feedback[0]
    calls = [each for each in graph if graph.parents(each)]
    near = [*nearest_calls(graph)]
    assert len(near) == len({*near}) and {*near} == {*calls}  # no run here is as long as thirteen
    assert near[0] is ys[-1]


@pytest.mark.parametrize("length, given", [(12, 12), (13, 8), (300, 8)])
def test_the_middle_of_a_long_run_is_passed_over(length, given):
    x, y = chain(length)
    y.backward("hm")
    graph = x.feedback[0]
    calls = [each for each in graph if graph.parents(each)]
    near = [*nearest_calls(graph)]
    assert len(near) == given and {*near} == {*calls[:4], *calls[-4:], *calls * (given == 12)}


def test_the_nearest_calls_of_nothing():
    assert [*nearest_calls(TraceGraph())] == []
    x = node(1, name="x", trainable=True)
    x.backward("hm")
    assert [*nearest_calls(x.feedback[0])] == []


# ---- the reply


def test_nothing_changes_unless_all_is_good():
    x = node(1, name="x", trainable=True, bounds=(0, 9))
    y = node("a", name="y", trainable=True, choices=["a", "b"])
    optimizer = problem(x, y, llm=Script([reply(x0=5, y0="z"), reply(x0=6, y0="b")]))
    update = optimizer.step()
    assert update == {x: 6, y: "b"}
    asked = optimizer.llm.asked
    assert asked[1][:2] == asked[0] and "one of ['a', 'b']" in asked[1][-1]["content"]
    assert any("one of ['a', 'b']" in words for words in optimizer.history[-1].proposal.refused)


def test_refusals_end_in_an_error_or_by_choice_in_no_change():
    x = node(1, name="x", trainable=True)
    bad = reply(x0="banana")
    optimizer = problem(x, llm=Script([bad] * 3))
    with pytest.raises(ReplyError, match=r"no usable reply in 3 attempts: .*banana") as caught:
        optimizer.step()
    assert x.data == 1 and caught.value.replies == [bad] * 3
    optimizer = problem(x, llm=Script([bad]), retries=0, on_refusal="keep")
    assert optimizer.step() == {} and x.data == 1
    assert "banana" in optimizer.history[-1].proposal.refused[0]


def test_a_rule_that_was_broken_once_is_shown_in_every_later_prompt():
    x = node(1, name="x", trainable=True, bounds=(0, 5))
    optimizer = problem(x, llm=Script([reply(x0=7), reply(x0=2), reply(x0=3)]))
    optimizer.step()
    assert "at most 5" in text(optimizer)
    assert "Refused so far" in text(optimizer) and "cannot take 7" in text(optimizer)


def test_update_by_hand_checks_all_before_it_sets_any():
    x = node(1, name="x", trainable=True)
    y = node(1.5, name="y", trainable=True, bounds=(0, 2))
    optimizer = problem(x, y)
    with pytest.raises(ValueError, match="y:0 cannot take 3"):
        optimizer.update({x: 2, y: 3})
    assert (x.data, y.data) == (1, 1.5)
    optimizer.update({"x0": 2, y: 1})
    assert (x.data, y.data) == (2, 1.0)


@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes_back_parameters_stay_valid_and_change_together(seed, slow):
    rng = random.Random(seed)

    @bundle(trainable=True)
    def shout(words):
        return words.upper()

    def fresh():
        minitrace.GRAPH.clear()
        made = [
            node(3, name="i", trainable=True, bounds=(-100, 100)),
            node(0.5, name="f", trainable=True),
            node(True, name="b", trainable=True),
            node("red", name="s", trainable=True, choices=["red", "blue"]),
            node([1, 2], name="l", trainable=True),
            node({"a": 1}, name="d", trainable=True),
            node((1,), name="t", trainable=True),
        ]
        return rng.sample(made, rng.randrange(1, 8)) + [shout.parameter] * rng.randrange(2)

    values = [7, 7.5, "7", -3, "banana", True, "false", None, [], [1], {}, {"a": [1]}, "red", "blue", "NaN",
              1e400, "(1, 2)", "[3]", "TERMINATE", "def shout(words):\n    return words", "def f(): pass"]  # fmt: skip

    def garbage():
        body = "".join(rng.choice(string.printable) for _ in range(rng.randrange(60)))
        return rng.choice([body, '{"suggestion": {' + body, "<x0>" + body, body + '"}}'])

    for _ in range(1_000 if slow else 100):
        parameters = fresh()
        optimizer = OptoPrime(parameters, llm=lambda _: said, retries=0)  # noqa: B023
        before = [p.data for p in optimizer.parameters]
        names = [*optimizer.names, "nobody"]
        given = {name: rng.choice(values) for name in rng.sample(names, rng.randrange(len(names)))}
        said = garbage() if rng.random() < 0.3 else json.dumps({"suggestion": given})
        optimizer.zero_feedback()
        optimizer.backward(operators.make_list(*parameters), "hm")
        try:
            update = optimizer.step()
        except ReplyError:
            assert [p.data for p in optimizer.parameters] == before
            continue
        for parameter, old in zip(optimizer.parameters, before, strict=True):
            assert parameter.checked(parameter.data) == parameter.data
            assert type(parameter.data) is type(old)
            assert parameter in update or parameter.data == old
        assert "nobody" not in given


@pytest.mark.parametrize(
    "shape",
    [
        lambda words: words,
        lambda words: {"choices": [{"message": {"content": words}}]},
        lambda words: types.SimpleNamespace(
            choices=[types.SimpleNamespace(message=types.SimpleNamespace(content=words))]
        ),
    ],
)
def test_a_language_model_may_return_text_or_a_completion(shape):
    x = node(1, name="x", trainable=True)
    assert problem(x, llm=lambda messages: shape(reply(x0=4))).step() == {x: 4}


def test_anything_else_is_an_error_that_says_so():
    x = node(1, name="x", trainable=True)
    with pytest.raises(TypeError, match="a language model must return text, not 7"):
        problem(x, llm=lambda messages: 7).step()


def test_an_objective_a_bound_on_tokens_and_steps_that_only_look_or_tell(capsys):
    x = node(1, name="x", trainable=True)
    seen = []

    def llm(messages, max_tokens=None):
        seen.append(max_tokens)
        return reply(x0=2)

    optimizer = problem(x, llm=llm, objective="Go up.", max_tokens=99)
    assert optimizer.step(bypassing=True) == {x: 2} and x.data == 1
    assert optimizer.step(verbose=True) == {x: 2} and x.data == 2
    assert "Go up." in capsys.readouterr().out and seen == [99, 99]


def test_a_value_that_stays_as_it_is_is_no_change():
    x, y = node(1, "x", trainable=True), node("a", "y", trainable=True)
    answer = '{"suggestion": {"x0": "1", "y0": "b"}}'
    optimizer = OptoPrime([x, y], llm=lambda messages: answer)
    optimizer.backward([y + "!", x + 1], "hm")
    assert optimizer.propose() == {y: "b"}


def test_what_is_good_in_a_reply_is_not_kept_beside_what_is_refused():
    x, y = node(1, "x", trainable=True), node(2, "y", trainable=True, bounds=(0, 9))
    answer = '{"suggestion": {"x0": 5, "y0": 50}}'
    optimizer = OptoPrime([x, y], llm=lambda messages: answer, retries=0, on_refusal="keep")
    optimizer.backward(x + y, "low")
    assert optimizer.step() == {} and (x.data, y.data) == (1, 2)
    assert "y0: parameter y:0 cannot take 50" in optimizer.history[-1].proposal.refused[0]


# ---- asking until a reply can be used


def number(text):
    """The number in a text, and what is wrong if there is none."""
    try:
        return int(text), []
    except ValueError:
        return None, [f"{text!r} is no number.", "Write digits."]


def test_it_is_asked_again_with_what_was_wrong_until_a_reply_can_be_used():
    llm = Script(["four", "4"])
    result, replies, refused = ask_until_usable(
        llm, [{"role": "user", "content": "2 + 2?"}], number
    )
    assert (result, replies) == (4, ["four", "4"])
    assert refused == [["'four' is no number.", "Write digits."]] and len(refused) < len(replies)
    assert all(isinstance(reply, Reply) for reply in replies)
    first, second = llm.asked
    assert second[: len(first)] == first and second[1] == {"role": "assistant", "content": "four"}
    assert (
        "'four' is no number." in second[-1]["content"] and "Write digits." in second[-1]["content"]
    )


@pytest.mark.parametrize("retries", [0, 2])
def test_in_the_end_the_last_result_comes_with_every_refusal(retries):
    llm = Script(["four"] * 9)
    result, replies, refused = ask_until_usable(
        llm, [{"role": "user", "content": "2 + 2?"}], number, retries
    )
    assert result is None and len(replies) == len(refused) == len(llm.asked) == retries + 1


def test_the_prompt_given_is_left_as_it_is_and_options_go_to_every_call():
    seen, prompt = [], [{"role": "user", "content": "2 + 2?"}]

    def llm(messages, temperature=None):
        seen.append((len(messages), temperature))
        return "4" if len(seen) > 1 else "?"

    assert ask_until_usable(llm, prompt, number, temperature=0.5)[0] == 4
    assert seen == [(1, 0.5), (3, 0.5)] and prompt == [{"role": "user", "content": "2 + 2?"}]


def test_without_a_language_model_the_environment_decides(monkeypatch):
    prompt = "# Variables\n(int) x0 = 3\n# Feedback\nadd0: too low"
    messages = [{"role": "user", "content": prompt}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a stub answers
        result, replies, _ = ask_until_usable(None, messages, lambda text: (text, []))
    assert replies[0].model == "stub" and '"x0": 6' in result
    monkeypatch.setenv("MINITRACE_MODEL", "openai/nobody")
    with pytest.raises(LLMError, match="there is no key"):
        ask_until_usable(None, messages, lambda text: (text, []))


# ---- history


def test_an_optimizer_without_feedback_has_an_empty_graph():
    x = node(1, name="x", trainable=True)
    graph = OptoPrime([x], llm=StubLLM()).graph()
    assert isinstance(graph, TraceGraph) and len(graph) == 0 and graph.outputs == []


def test_values_are_checked_without_being_set():
    x = node(1, name="x", trainable=True, bounds=(0, 9))
    optimizer = OptoPrime([x], llm=StubLLM())
    assert optimizer.checked({"x0": 5.0}) == optimizer.checked({x: 5}) == {x: 5} and x.data == 1
    with pytest.raises(ValueError, match="x:0 cannot take 50"):
        optimizer.checked({x: 50})


def test_an_attempt_of_ones_own_is_remembered_and_shown():
    x = node(1, name="x", trainable=True)
    optimizer = problem(x)
    optimizer.remember(Attempt({"x0": 7}, ["too high"], 0.25))
    optimizer.remember(Attempt({"x0": 8}, ["no"], 0.75, reason="not kept"))
    assert "1. x0 = 7\n   feedback: too high\n   score: 0.25" in text(optimizer)
    assert optimizer.best.values == {"x0": 7}  # what was tried and not kept is not the best
    optimizer.restore(optimizer.best)
    assert x.data == 7


@pytest.mark.parametrize("size, shown", [(0, []), (1, [9]), (8, [2, 3, 4, 5, 6, 7, 8, 9])])
def test_a_prompt_shows_as_many_past_attempts_as_memory_size_says(size, shown):
    x = node(1, name="x", trainable=True)
    optimizer = problem(x, memory_size=size)
    for n in range(10):
        optimizer.remember(Attempt({"x0": n}, ["hm"], None))
    assert re.findall(r"^\d+\. x0 = (\d+)$", text(optimizer), re.M) == [*map(str, shown)]
    assert OptoPrime([x]).memory_size == 8


def test_what_was_refused_is_kept_once_each_in_order():
    x = node(1, name="x", trainable=True, bounds=(0, 5))
    script = Script([reply(x0=7), reply(x0=9), reply(x0=7), reply(x0=2)])
    optimizer = problem(x, llm=script, retries=3)
    optimizer.step()
    seven, nine = optimizer.refused
    assert "cannot take 7" in seven and "cannot take 9" in nine


def test_an_update_of_nothing_is_remembered_as_no_change():
    x = node(1, "x", trainable=True)
    optimizer = OptoPrime([x])
    assert optimizer.update({}) == {}
    assert [attempt.reason for attempt in optimizer.history] == ["no change"]
    optimizer.update({x: 2})
    assert optimizer.history[-1].reason == ""


def test_undo_restore_and_best():
    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=Script([reply(x0=5), reply(x0=9)]))
    for score in (0.1, 0.7):
        optimizer.zero_feedback()
        optimizer.backward(x + 1, "hm", score=score)
        optimizer.step()
    assert x.data == 9 and optimizer.best.values == {"x0": 5} and optimizer.best.score == 0.7
    optimizer.undo()
    assert x.data == 5
    optimizer.undo()
    assert x.data == 1
    with pytest.raises(MinitraceError, match="no update to undo"):
        optimizer.undo()
    optimizer.restore(optimizer.best)
    assert x.data == 5


def test_history_is_whole_for_a_hundred_steps_and_light_before():
    x = node(0, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=lambda messages: reply(x0=x.data + 1))
    for step in range(120):
        optimizer.zero_feedback()
        optimizer.backward(x + 1, "more", score=step)
        optimizer.step()
    whole, light = optimizer.history[-1], optimizer.history[0]
    assert whole.proposal.prompt and whole.feedback == ["more"] and "+120" in whole.diff
    assert light.score == 0 and light.proposal == {x: 1}
    assert not (light.proposal.prompt or light.feedback or light.diff)
    assert len(optimizer.history) == 120


def test_a_person_may_refuse_and_the_words_become_feedback(monkeypatch, capsys):
    x = node(1, name="x", trainable=True)
    optimizer = problem(x, llm=lambda messages: reply(x0=4))
    monkeypatch.setattr("builtins.input", lambda prompt: "four is unlucky")
    assert optimizer.step(approve=ask) == {} and x.data == 1
    assert "-1\n+4" in capsys.readouterr().err
    assert "four is unlucky" in text(optimizer)
    monkeypatch.setattr("builtins.input", lambda prompt: "")
    assert optimizer.step(approve=ask) == {x: 4} and x.data == 4


@pytest.mark.parametrize("words", ["", " ", "y", "Y", "yes", "Yes ", "ok", "OK"])
def test_a_person_may_accept_in_a_word(monkeypatch, words):
    monkeypatch.setattr("builtins.input", lambda prompt: words)
    assert ask("-1") is True


@pytest.mark.parametrize("words", ["n", "N", "no", " NO "])
def test_a_person_may_refuse_without_advice(monkeypatch, words):
    x = node(1, name="x", trainable=True)
    optimizer = problem(x, llm=lambda messages: reply(x0=4))
    monkeypatch.setattr("builtins.input", lambda prompt: words)
    assert ask("-1") is False
    assert optimizer.step(approve=ask) == {} and x.data == 1
    (told,) = optimizer.refused
    assert told == "x0 = 4: refused"


@pytest.mark.parametrize("words", ["yes, but smaller", "not four", "okay is not enough", "never"])
def test_what_begins_like_a_verdict_is_advice(monkeypatch, words):
    monkeypatch.setattr("builtins.input", lambda prompt: words)
    assert ask("-1") == words


# ---- candidates and other optimizers


def test_candidates_are_asked_for_side_by_side_and_each_knows_which_it_is():
    x = node(1, name="x", trainable=True)
    together = threading.Barrier(4, timeout=5)

    def llm(messages):
        together.wait()
        which = re.search(r"candidate (\d) of 4", messages[1]["content"])
        return reply(x0=10 + int(which[1]))

    proposals = problem(x, llm=llm).propose(n=4)
    assert [dict(p) for p in proposals] == [{x: 11}, {x: 12}, {x: 13}, {x: 14}]
    assert x.data == 1


def test_opro_shows_values_and_nothing_of_the_program():
    x = node(1, name="x", trainable=True)
    optimizer = problem(x, kind=OPRO, feedback="too low", score=0.25)
    optimizer.step()
    assert "make_list(" not in text(optimizer)
    assert "1. x0 = 1\n   feedback on [1]: too low\n   score: 0.25" in text(optimizer)


def test_textgrad_asks_per_edge_then_rewrites_each_parameter():
    a = node("a", name="a", trainable=True)
    b = node("b", name="b", trainable=True)
    replies = [
        (r"its input x should", "x: be longer"),
        (r"its input y should", "y: be shorter"),
        (r"\(str\) a0", reply(a0="aa")),
        (r"\(str\) b0", reply(b0="")),
    ]
    optimizer = TextGrad([a, b], llm=Script(replies))
    optimizer.backward(a + b, "bad")
    assert (a.feedback, b.feedback) == (["x: be longer"], ["y: be shorter"])
    assert optimizer.step() == {a: "aa", b: ""}


def test_an_optimizer_of_ones_own_takes_a_method():
    class Increment(Optimizer):
        def propose(self):
            return Proposal({p: p.data + 1 for p in self.parameters})

    x = node(1, name="x", trainable=True)
    assert Increment([x]).step() == {x: 2} and x.data == 2


@pytest.mark.parametrize("key", [lambda x: x, lambda x: "x0", lambda x: x.name])
@pytest.mark.parametrize("kind", [dict, Proposal])
def test_a_proposal_of_ones_own_may_be_any_dict(key, kind, capsys):
    class Ten(Optimizer):
        def propose(self):
            return kind({key(x): 10})

    x = node(1, name="x", trainable=True, projections=[lambda value: value // 2])
    assert Ten([x]).step(bypassing=True, verbose=True) == {x: 5} and x.data == 0
    assert Ten([x]).step(approve=lambda diff: "+5" not in diff) == {}
    assert Ten([x]).step() == {x: 5} and x.data == 5  # projected once


@pytest.mark.parametrize("verdict, accepted", [(1, True), (0, False), ("", False), ([5], False)])
def test_a_verdict_is_true_in_any_way_of_saying_so(verdict, accepted):
    optimizer = problem(node(1, name="x", trainable=True))
    assert bool(optimizer.step(approve=lambda diff: verdict)) is accepted


def test_scores_of_feedback_that_is_a_number_are_remembered():
    class Descent(Optimizer):
        def propose(self):
            return {each: each.data - sum(each.feedback) for each in self.parameters}

    x = node(4.0, name="x", trainable=True)
    optimizer = Descent([x], propagator=SumPropagator())
    for _ in range(3):
        optimizer.zero_feedback()
        optimizer.backward(x * 1.0, 1.0, score=-x.data)
        optimizer.step()
    scores = [(each.score, each.feedback, each.outputs) for each in optimizer.history]
    assert scores == [(-4, [1.0], ["4.0"]), (-3, [1.0], ["3.0"]), (-2, [1.0], ["2.0"])]
    optimizer.restore(optimizer.best)
    assert x.data == 2
    x.zero_feedback()  # by hand
    optimizer.backward(x * 1.0, 2.0, score=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.best.score == 7 and optimizer.history[-1].feedback == [2.0]


def test_a_language_model_that_says_nothing_may_be_forgiven():
    def silent(messages):
        if len(messages) > 1:
            raise LLMError("I would rather not", kind="refused")
        return "hm"

    asked = [{"role": "user", "content": "How many?"}]
    read = lambda text: (text, ["Only digits."])  # noqa: E731
    found = ask_until_usable(silent, asked, read, forgiving=True)
    assert found == ("", ["hm"], [["Only digits."], ["I would rather not"]])
    with pytest.raises(LLMError, match="I would rather not"):
        ask_until_usable(silent, asked, read)


def test_an_optimizer_that_neither_describes_nor_proposes_says_so():
    class Idle(Optimizer):
        pass

    with pytest.raises(NotImplementedError, match=r"Idle has neither describe\(\) nor propose\(\)"):
        problem(node(1, name="x", trainable=True), kind=Idle).step()


@pytest.mark.parametrize("seed", range(10))
def test_the_stub_solves_random_number_problems(seed):
    rng = random.Random(seed)
    start, target = rng.uniform(-10, 10), rng.uniform(-1000, 1000)
    x = node(start, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=StubLLM(seed))
    for _ in range(40):
        y = x * 2 - 3
        if abs(y.data - target) < 1e-2 * max(1, abs(target)):
            return
        optimizer.zero_feedback()
        optimizer.backward(y, "too low" if y.data < target else "too high")
        optimizer.step()
    raise AssertionError(f"{y.data} for {target}")


# ---- misuse


def test_parameters_that_are_renamed_are_called_so_in_prompts_and_replies():
    a, b = node(1, name="x", trainable=True), node(2, name="x", trainable=True, bounds=(0, 9))
    script = Script(['{"suggestion": {"x7": 99}}', '{"suggestion": {"rate": 3, "x7": 4}}'])
    optimizer = OptoPrime([a, b], llm=script)
    optimizer.rename({a: "rate", b: "x:7"})
    assert (a.name, b.name, optimizer.names) == ("rate", "x:7", ["rate", "x7"])
    optimizer.backward(a + b, "higher")
    assert optimizer.step() == {a: 3, b: 4}
    assert "(int) rate = 1\n(int) x7 = 2" in script.asked[0][1]["content"]
    assert "x7: parameter x:7 cannot take 99" in script.asked[1][-1]["content"]
    with pytest.raises(ValueError, match="two parameters are called x7"):
        optimizer.rename({a: "x:7"})


def test_names_must_differ_and_parameters_must_be_parameters():
    a, b = node(1, name="x", trainable=True), node(2, name="x0", trainable=True)
    minitrace.GRAPH.clear()
    c = node(1, name="x", trainable=True)
    with pytest.raises(ValueError, match="two parameters are called x0"):
        OptoPrime([a, c])
    with pytest.raises(TypeError, match="7 is none"):
        OptoPrime([b, 7])
    with pytest.raises(ValueError, match="at least one parameter"):
        OptoPrime([])


def test_a_step_without_feedback_says_what_to_call():
    with pytest.raises(MinitraceError, match="call backward"):
        OptoPrime([node(1, name="x", trainable=True)], llm=StubLLM()).step()


def test_a_bundle_says_where_its_code_runs():
    @bundle(trainable=True)
    def plain(x):
        return x

    class Fence:
        def check(self, source):
            pass

        def run(self, source, name, args, kwargs):
            space = {}
            exec(source, space)
            return space[name](*args, **kwargs)

        def __repr__(self):
            return "Fence(height=2)"

    @bundle(trainable=True, limits=Fence())
    def limited(x):
        return x

    codes = {
        "plain_code": "def plain(x):\n    return x + 1",
        "limited_code": "def limited(x):\n    return x + 2",
    }
    optimizer = OptoPrime([plain.parameter, limited.parameter], llm=Script([reply(**codes)]))
    optimizer.backward(plain(limited(1)), "more")
    optimizer.step()
    assert (plain.limits, repr(limited.limits)) == (None, "Fence(height=2)")
    assert plain(limited(1)).data == 4
    assert plain(limited(1)).data == 4


# ---- the budget, on any graph


def wide(count):
    return operators.make_list(*(node(n, name=f"p{n}_", trainable=True) for n in range(count)))


def many_outputs():
    x = y = node(1, name="x", trainable=True)
    outputs = []
    for n in range(600):
        y = (y + 1) * 2 if n % 2 else -y
        outputs.append(y)
    return outputs, ["too low, much too low"] * 600, [x]


def long_feedback():
    x = node(1, name="x", trainable=True)
    return [x + 1], ["no " * 50_000], [x]


def hundreds_of_inputs():
    x = node(1, name="x", trainable=True)
    others = [node("i" * (n % 90), name=f"input{n}_") for n in range(400)]
    return [operators.make_list(x, *others)], ["hm"], [x]


def many_operators():
    x = y = node(1, name="x", trainable=True)
    for n in range(80):
        y = bundle(f"[step_{n}] " + f"Step {n} does what follows. " * 90)(lambda y: y)(y)
    return [y], ["hm"], [x]


def long_failure():
    @bundle()
    def parse(words):
        """Read a number."""
        return int(words)

    words = node("x" * 90, name="words", trainable=True)
    with pytest.raises(ExecutionError) as caught:
        operators.identity(parse(words + "y" * 5_000))
    return [caught.value.exception_node], ["hm"], [words]


PROBLEMS = [many_outputs, long_feedback, hundreds_of_inputs, many_operators, long_failure]


@pytest.mark.parametrize("kind", [OptoPrime, OPRO])
@pytest.mark.parametrize("budget", [1_900, 3_000, 12_000])
@pytest.mark.parametrize("make", PROBLEMS)
def test_the_budget_is_obeyed_on_any_graph(make, budget, kind):
    outputs, feedback, parameters = make()
    optimizer = kind(parameters, llm=StubLLM(), max_chars=budget)
    optimizer.backward(outputs, feedback)
    prompt = optimizer.prompt(" Be quick.")
    assert characters(prompt) <= budget
    if kind is OptoPrime:
        graph, text = optimizer.graph(), prompt[1]["content"]
        calls = [each for each in graph if graph.parents(each)]
        left = sum(map(int, re.findall(r"^# (\d+) calls left out", text, re.M)))
        shown = [each for each in calls if f"\n{graph.names[each]} = " in text]
        assert len(shown) + left == len(calls)
    if make is long_failure and kind is OptoPrime:
        assert "raised (ValueError)" in prompt[1]["content"]
        assert "parse: Read a number." in prompt[1]["content"]
    if kind is OptoPrime and budget == 12_000:
        assert characters(prompt) > 600
        assert len(prompt[1]["content"].split("# Code\n")[1].splitlines()) > 3


def test_an_output_is_never_folded():
    outputs, feedback, parameters = chain_of_outputs()
    optimizer = OptoPrime(parameters, llm=StubLLM())
    optimizer.backward(outputs, feedback)
    for name in ("add30", "add60"):
        assert f"\n{name} = " in text(optimizer)


def chain_of_outputs():
    x = y = node(1, name="x", trainable=True)
    made = []
    for _ in range(90):
        y = y + 1
        made.append(y)
    return [made[30], made[60], made[89]], ["a", "b", "c"], [x]


def test_feedback_and_failures_show_no_address():
    class Thing:
        pass

    @bundle()
    def fail(x):
        raise ValueError(f"not {Thing()}")

    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=StubLLM())
    with pytest.raises(ExecutionError) as caught:
        fail(x)
    optimizer.backward(caught.value.exception_node, Thing())
    assert "raised (ValueError) not <" in text(optimizer) and " at 0x" not in text(optimizer)


def test_two_operators_of_one_name_are_both_documented():
    x = node(1, name="x", trainable=True)
    y = bundle("[step] Go up.")(lambda x: x + 1)(x)
    z = bundle("[step] Go down.")(lambda x: x - 1)(y)
    optimizer = OptoPrime([x], llm=StubLLM())
    optimizer.backward(z, "hm")
    assert "step: Go up.\nstep: Go down." in text(optimizer)


# ---- what is remembered


@pytest.mark.filterwarnings("ignore:some feedback is older")
def test_what_ended_in_an_error_is_shown_to_the_next_step_and_never_forgotten():
    x = node(0, name="x", trainable=True, bounds=(0, 500))
    optimizer = problem(x, llm=lambda messages: reply(x0=501), retries=0)
    with pytest.raises(ReplyError):
        optimizer.step()
    optimizer.llm = lambda messages: reply(x0=x.data + 1)
    for _ in range(120):
        optimizer.step()
    assert "cannot take 501" in text(optimizer)


@pytest.mark.filterwarnings("ignore:some feedback is older")
def test_what_was_bypassed_long_ago_cannot_be_undone():
    x = node(0, name="x", trainable=True)
    optimizer = problem(x, llm=lambda messages: reply(x0=x.data + 1))
    optimizer.step(bypassing=True)
    for _ in range(110):
        optimizer.step()
    for _ in range(110):
        optimizer.undo()
    with pytest.raises(MinitraceError, match="no update to undo"):
        optimizer.undo()


def test_a_refusal_says_what_was_refused():
    x = node(1, name="x", trainable=True)
    optimizer = problem(x, llm=lambda messages: reply(x0=4))
    assert optimizer.step(approve=lambda diff: False) == {}
    assert "- x0 = 4: refused" in text(optimizer)


def test_usage_is_summed_over_all_replies():
    x = node(1, name="x", trainable=True)
    replies = [Reply(text, usage={"input_tokens": 5}) for text in ("?", reply(x0=2))]
    optimizer = problem(x, llm=lambda messages: replies.pop(0))
    optimizer.step()
    assert optimizer.history[-1].proposal.usage == {"input_tokens": 10}


def test_usage_is_read_from_a_completion_object_too():
    x = node(1, name="x", trainable=True)
    space = types.SimpleNamespace
    choices = [space(message=space(content=reply(x0=2)))]
    usage = space(prompt_tokens=5, details=space(cached=1))
    optimizer = problem(x, llm=lambda messages: space(choices=choices, usage=usage))
    assert optimizer.propose().usage == {"input_tokens": 5}


# ---- TextGrad


def critic(a, b):
    def llm(messages):
        words = messages[-1]["content"]
        if "Say in a few sentences" in words:
            return "more"
        name = re.search(r"\(str\) (\w+)", words)[1]
        which = re.search(r"candidate (\d) of", words)
        return reply(**{name: name + (which[1] if which else "")})

    optimizer = TextGrad([a, b], llm=llm)
    optimizer.backward(a + b, "bad", score=0.5)
    return optimizer


def test_textgrad_shows_its_prompts_proposes_several_and_remembers():
    a, b = (node(name, name=name, trainable=True) for name in "ab")
    optimizer = critic(a, b)
    prompt = optimizer.prompt()
    assert [m["role"] for m in prompt] == ["system", "user"] * 2
    first, second = optimizer.propose(n=2)
    assert (dict(first), dict(second)) == ({a: "a01", b: "b01"}, {a: "a02", b: "b02"})
    optimizer.step()
    attempt = optimizer.history[-1]
    assert list(attempt.proposal.prompt) == list(prompt) and len(attempt.proposal.replies) == 2
    assert (attempt.feedback, attempt.score, attempt.proposal.reasoning) == (["bad"], 0.5, "so\nso")
    assert (
        "1. a0 = 'a'\n   feedback on 'ab': bad\n   score: 0.5" in optimizer.prompt()[1]["content"]
    )
    assert optimizer.best is attempt
    optimizer.undo()
    assert (a.data, b.data) == ("a", "b")


def test_textgrad_without_feedback_says_what_to_call():
    with pytest.raises(MinitraceError, match="call backward"):
        TextGrad([node("a", name="a", trainable=True)], llm=StubLLM()).step()


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda x: OptoPrime([x], llm="openai/gpt-4o"), "takes a callable, such as LLM"),
        (lambda x: OptoPrime([x]).backward(3, "low"), "starts from a node, not 3: was it read"),
        (lambda x: OptoPrime([x]).backward(x + 1, "low", score="high"), "a score is a number"),
        (lambda x: OptoPrime(7), "7 has no parameters"),
        (lambda x: OptoPrime([x], llm=5), "takes a callable, such as LLM"),
    ],
)
def test_mistakes_are_named_at_once(wrong, words):
    with pytest.raises(TypeError, match=words):
        wrong(node(1, name="x", trainable=True))


def test_where_no_attempt_has_a_score_there_is_no_best_to_restore():
    optimizer = problem(node(1, name="x", trainable=True))
    optimizer.step()
    with pytest.raises(MinitraceError, match="no attempt to restore: best is None without a score"):
        optimizer.restore(optimizer.best)


def test_one_parameter_needs_no_list_and_feedback_no_words():
    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime(x, llm=StubLLM())
    optimizer.backward(x + 1)
    assert "add0: (no words)" in text(optimizer)


def test_code_read_from_a_graph_can_be_proposed():
    @bundle(trainable=True)
    def shout(words):
        return words.upper()

    shout("hi").backward("louder")
    graph = TraceGraph.from_json(shout.parameter.feedback[0].to_json())
    graph.parameters[0].feedback.append(graph)
    new = "def shout(words):\n    return words.upper() + '!'"
    proposal = OptoPrime(graph.parameters, llm=Script([reply(shout_code=new)])).propose()
    assert proposal == {graph.parameters[0]: new}


def test_an_update_names_its_own_parameters_in_either_form_and_no_others():
    x, y = (node(1, name=name, trainable=True) for name in "xy")
    optimizer = OptoPrime([x], llm=StubLLM())
    for key in "x0", "x:0", x:
        optimizer.update({key: x.data + 1})
    assert x.data == 4
    for key, shown in ("nobody", "'nobody'"), (y, "y:0"), (5, "5"), (x + 1, "add:0"):
        with pytest.raises(ValueError, match=f"{shown}.*: no parameter of this optimizer, .* x0"):
            optimizer.update({x: 9, key: 3})
    assert (x.data, y.data) == (4, 1)


def test_feedback_is_stored_on_the_optimizers_own_parameters_only():
    x, y = (node(1, name=name, trainable=True) for name in "xy")
    OptoPrime([x], llm=StubLLM()).backward(x + y, "low")
    assert len(x.feedback) == 1 and y.feedback == []


def test_an_answer_of_nothing_but_zero_is_an_answer():
    reply = '{"answer": 0, "reasoning": false, "suggestion": {}}'
    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=Script([reply]))
    optimizer.backward(x + 1, "how many?")
    proposal = optimizer.propose()
    assert (proposal.answer, proposal.reasoning) == ("0", "False")


def test_the_warning_that_a_stub_answers_names_the_users_line():
    code = (
        "import warnings; warnings.simplefilter('always')\n"
        "from minitrace import OptoPrime, node\n"
        "x = node(1, 'x', trainable=True); optimizer = OptoPrime([x])\n"
        "optimizer.backward(x + 1, 'low')\noptimizer.step()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "<string>:5: UserWarning: no language model is configured" in done.stderr


def test_an_update_says_what_was_set():
    x = node(1, name="x", trainable=True, projections=[lambda value: min(value, 5)])
    assert OptoPrime([x], llm=StubLLM()).update(Proposal({x: 9})) == {x: 5}


# ---- Feedback from before a change


def test_a_forgotten_zero_feedback_warns_and_does_not_count():
    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=lambda messages: reply(x0=x.data + 1))
    optimizer.backward(x * 10, "bad", score=0.0)
    optimizer.step()
    optimizer.backward(x * 10, "good", score=1.0)
    with pytest.warns(
        UserWarning, match="older than the last change: call zero_feedback"
    ) as caught:
        optimizer.step()
    assert caught[0].filename == __file__
    assert optimizer.history[-1].score == optimizer.best.score == 1.0
    assert optimizer.history[-1].feedback == ["good"]


def test_a_second_step_on_the_same_feedback_warns():
    x = node("a", name="x", trainable=True)
    for kind in (OptoPrime, OPRO, TextGrad):
        optimizer = kind([x], llm=lambda messages: reply(x0=x.data + "b"))
        optimizer.zero_feedback()
        optimizer.backward(x + "!", "longer", score=0.5)
        optimizer.step()
        with pytest.warns(UserWarning, match="zero_feedback"):
            optimizer.step()
        assert [attempt.score for attempt in optimizer.history] == [0.5, None]


def test_a_step_after_another_optimizer_changed_its_own_parameters_is_no_mistake():
    x, y = node(1, name="x", trainable=True), node(2, name="y", trainable=True)
    first = OptoPrime([x], llm=lambda messages: reply(x0=5))
    second = OptoPrime([y], llm=lambda messages: reply(y0=6))
    out = x * y
    first.backward(out, "more")
    second.backward(out, "more")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.step(), second.step()
    assert (x.data, y.data) == (5, 6)


def test_a_value_that_came_back_is_not_another():
    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=lambda messages: reply(x0=5))
    optimizer.backward(x + 1, "more", score=1.0)
    optimizer.step()
    optimizer.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.history[-1].score == 1.0


# ---- Checked once


def test_a_value_is_projected_and_checked_once():
    seen = []

    def project(value):
        seen.append(value)
        return value * 2

    x = node(1, name="x", trainable=True)
    x.projections = (project,)
    optimizer = OptoPrime([x], llm=lambda messages: reply(x0=3))
    optimizer.backward(x + 1, "more")
    optimizer.step()
    assert x.data == 6 and seen == [3]
    (
        optimizer.undo(),
        copy.copy(x),
        copy.deepcopy(x),
        x.detach(),
        optimizer.restore(optimizer.best or optimizer.history[0]),
    )
    assert seen == [3]
    proposal = optimizer.propose()
    proposal[x] = 10  # by hand: it was not checked
    optimizer.update(proposal)
    assert x.data == 20 and seen == [3, 3, 10]


def test_a_value_that_somebody_put_into_a_proposal_is_checked():
    x = node(1, name="x", trainable=True, bounds=(0, 9))
    optimizer = OptoPrime([x], llm=lambda messages: reply(x0=3))
    optimizer.backward(x + 1, "more")
    proposal = optimizer.propose()
    proposal[x] = 10
    with pytest.raises(ValueError, match="between 0 and 9"):
        optimizer.update(proposal)
    assert x.data == 1


# ---- Which kinds of values a reply can change


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Tone(str, enum.Enum):
    WARM = "warm"
    COOL = "cool"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Words(str):
    pass


class Celsius(float):
    pass


class Bag(list):
    pass


Pair = namedtuple("Pair", "a b")

KINDS = {
    "Reply": (Reply("first", model="m"), '"second"', Reply("second"), "(str) x0 = 'first'"),
    "str": (Words("a"), '"b"', Words("b"), "(str) x0 = 'a'"),
    "float": (Celsius(1.5), "2", Celsius(2.0), "(float) x0 = 1.5"),
    "list": (Bag([1]), "[2, 3]", Bag([2, 3]), "(list) x0 = [1]"),
    "deque": (deque([1], 4), "[2, 3]", deque([2, 3], 4), "(list) x0 = [1]"),
    "named tuple": (Pair(1, 2), "[3, 4]", Pair(3, 4), "(tuple) x0 = (1, 2)"),
    "Counter": (Counter("aab"), '{"c": 1}', Counter("c"), "(dict) x0 = {'a': 2, 'b': 1}"),
    "defaultdict": (
        defaultdict(int, a=1),
        '{"c": 1}',
        defaultdict(int, c=1),
        "(dict) x0 = {'a': 1}",
    ),
    "Enum by value": (Color.RED, '"blue"', Color.BLUE, "x0 = 'red'  # one of ['red', 'blue']"),
    "Enum by name": (Color.RED, '"BLUE"', Color.BLUE, "(Color) x0 = 'red'"),
    "str and Enum": (Tone.WARM, '"cool"', Tone.COOL, "(str) x0 = 'warm'"),
    "IntEnum": (Size.SMALL, "2", Size.LARGE, "(int) x0 = 1  # one of [1, 2]"),
    "Decimal": (decimal.Decimal("0.1"), "0.25", decimal.Decimal("0.25"), "(Decimal) x0 = '0.1'"),
    "Decimal as text": (decimal.Decimal(1), '"0.25"', decimal.Decimal("0.25"), "x0 = '1'"),
    "Fraction": (fractions.Fraction(1, 3), '"2/7"', fractions.Fraction(2, 7), "x0 = '1/3'"),
    "date": (datetime.date(2020, 1, 2), '"2021-02-03"', datetime.date(2021, 2, 3), "'2020-01-02'"),
    "time": (datetime.time(1, 2), '"03:04:00"', datetime.time(3, 4), "(time) x0 = '01:02:00'"),
    "Path": (pathlib.PurePosixPath("a/b"), '"c"', pathlib.PurePosixPath("c"), "x0 = 'a/b'"),
}


def asked(value, raw, **rules):
    """An optimizer of one parameter, whose language model replies this raw value."""
    minitrace.GRAPH.clear()
    x = node(value, name="x", trainable=True, **rules)
    optimizer = OptoPrime([x], llm=lambda messages: f'{{"suggestion": {{"x0": {raw}}}}}', retries=0)
    optimizer.backward(x.eq(1), "no")
    return x, optimizer


@pytest.mark.parametrize("value, raw, wanted, shown", KINDS.values(), ids=KINDS)
def test_a_reply_changes_values_of_many_kinds(value, raw, wanted, shown):
    x, optimizer = asked(value, raw)
    assert shown in text(optimizer)
    optimizer.step()
    assert x.data == wanted and type(x.data) is type(value)
    assert getattr(x.data, "maxlen", 0) == getattr(value, "maxlen", 0)


@pytest.mark.parametrize("value, raw", [(Color.RED, '"green"'), (Size.SMALL, "3"), (Size.SMALL, "true"),
    (decimal.Decimal(1), '"one"'), (datetime.date(2020, 1, 2), '"tomorrow"'), (Pair(1, 2), "[1]"),
    (Celsius(1), '"warm"'), (Celsius(1), "1e999"), (decimal.Decimal(1), "1e999"),
    (decimal.Decimal(1), '"NaN"'), (fractions.Fraction(1), "1e999")])  # fmt: skip
def test_a_wrong_value_of_such_a_kind_is_refused(value, raw):
    x, optimizer = asked(value, raw)
    with pytest.raises(ReplyError):
        optimizer.step()
    assert x.data is value


NUMPY = [
    ("float64", "0.5", 0.5),
    ("float32", "0.5", 0.5),
    ("int64", "7", 7),
    ("bool_", "false", False),
]


@pytest.mark.parametrize("name, raw, wanted", NUMPY)
def test_a_number_of_numpy_is_a_number(name, raw, wanted):
    numpy = pytest.importorskip("numpy")
    x, optimizer = asked(getattr(numpy, name)(1), raw)
    optimizer.step()
    assert x.data == wanted and type(x.data) is getattr(numpy, name)


@pytest.mark.parametrize("value", [b"raw", bytearray(b"raw"), object(), range(3), 1j, len, int])
@pytest.mark.parametrize("kind", [OptoPrime, OPRO, TextGrad])
def test_a_value_that_no_reply_could_give_is_refused_before_anything_is_paid(value, kind):
    x = node(value, name="x", trainable=True)
    with pytest.raises(TypeError, match=r"no reply can give x:\d+ another .*: keep it as a text"):
        kind([x], llm=Script([]))

    class Own(Optimizer):
        def propose(self, n=None):
            return Proposal()

    Own([x])  # which asks nobody


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_number_that_is_too_large_for_its_kind_is_refused():
    numpy = pytest.importorskip("numpy")
    x, optimizer = asked(numpy.float32(1), "1e39")
    with pytest.raises(ReplyError, match="Expected float32, not 1e\\+39"):
        optimizer.step()
    assert x.data == 1


def test_choices_may_come_from_an_array():
    numpy = pytest.importorskip("numpy")
    for first, choices, raw in (0.5, numpy.linspace(0, 1, 3), "1"), (1, numpy.arange(3), "2"):
        x, optimizer = asked(first, raw, choices=choices)
        optimizer.step()
        assert x.data == int(raw)


def test_an_array_is_refused_with_advice():
    numpy = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match="another ndarray: keep it as a text, a number or a list"):
        OptoPrime([node(numpy.ones(3), trainable=True)])


def test_choices_of_any_kind_are_matched_by_their_text():
    x, optimizer = asked(len, '"<built-in function max>"', choices=[len, max, min])
    assert "one of ['<built-in function len>', '<built-in function max>'" in text(optimizer)
    optimizer.step()
    assert x.data is max
    y, optimizer = asked(1, '"auto"', choices=[1, 2, "auto"])
    optimizer.step()
    assert y.data == "auto"
    z, optimizer = asked(1, "true", choices=[1, 2])
    with pytest.raises(ReplyError):
        optimizer.step()


@pytest.mark.parametrize("choices, raw, wanted", [([1, 2, "2"], '"2"', "2"), (["a", " a"], '" a"', " a"),
    ([None, "None", "a"], "null", None), (["'b'", "b"], '"b"', "b")])  # fmt: skip
def test_the_choice_that_is_written_out_comes_before_one_that_reads_alike(choices, raw, wanted):
    x, optimizer = asked(choices[0], raw, choices=choices)
    optimizer.step()
    assert x.data == wanted


# ---- What a person types


def test_a_step_gives_the_proposal_with_its_story():
    x = node(3, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=lambda messages: '{"reasoning": "why", "suggestion": {"x0": 4}}')
    optimizer.backward(x + 1, "more")
    proposal = optimizer.step()
    assert proposal.reasoning == "why" and proposal.diff().splitlines()[-2:] == ["-3", "+4"]
    assert x.data == 4


def test_a_step_that_a_person_refused_tells_its_story_and_no_values():
    x = node(3, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=lambda messages: '{"reasoning": "why", "suggestion": {"x0": 4}}')
    optimizer.backward(x + 1, "more")
    proposal = optimizer.step(approve=lambda diff: "not four")
    assert proposal == {} and proposal.reasoning == "why" and x.data == 3
    assert optimizer.history[-1].proposal == {x: 4}


def test_parameters_in_many_forms():
    class Part(Module):
        def __init__(self, name):
            self.value = node(1, name=name, trainable=True)

    a, b = Part("a"), Part("b")
    every = [a.value, b.value]
    for given in ([a, b], (a, b), [a, b.value], {"x": a.value, "y": b.value}, iter([a, b]),
                  {"first": a, "second": b}, [a, b, a]):  # fmt: skip
        assert OptoPrime(given).parameters == every
    assert OptoPrime(a.parameters_dict()).parameters == OptoPrime(a.value).parameters == every[:1]
    with pytest.raises(TypeError, match="works on parameters; 5 is none"):
        OptoPrime([a, 5])
    with pytest.raises(TypeError, match="5 has no parameters"):
        OptoPrime(5)


# ---- What a prompt says


def prompted(optimizer):
    system, user = optimizer.prompt()
    return system["content"], user["content"]


def test_code_is_called_by_its_name_and_is_no_argument():
    @model
    class Greeter:
        @bundle(trainable=True)
        def opening(self, language):
            "How to begin."
            return {"en": "Hello"}[language]

    greeter = Greeter()
    said = greeter.opening("en")
    assert (said.op_name, said.name.partition(":")[0]) == ("opening", "opening")
    code = greeter.opening.parameter
    assert (code.name, code.py_name) == ("opening_code", "opening_code")
    optimizer = OptoPrime(greeter, llm=StubLLM())
    optimizer.backward(said, "more friendly")
    system, user = prompted(optimizer)
    assert "opening0 = opening(self=<Greeter>, language='en')  # 'Hello'" in user
    assert "(code) opening_code:\n```python\ndef opening" in user
    assert "Documentation" not in user and user.count("How to begin.") == 1
    assert "imports, constants and helper functions may stand beside it" in system
    graph = optimizer.graph()
    assert "opening_code = " in graph.tree() and '"opening_code"' in graph.to_json()
    assert greeter.state_dict().keys() == {"opening"}
    assert copy.deepcopy(greeter).opening.parameter.py_name == "opening_code_copy"
    assert pickle.loads(pickle.dumps(code)).py_name == "opening_code"


def test_two_functions_of_one_name_have_distinct_variables():
    def made(n):
        @bundle(trainable=True)
        def step(x):
            return x + 1

        return step

    one, two = made(1), made(2)
    optimizer = OptoPrime(
        [one, two], llm=Script(["<step_code_>def step(x):\n    return x + 5</step_code_>"])
    )
    optimizer.backward(two(one(1)), "more")
    _, user = prompted(optimizer)
    assert "(code) step_code:" in user and "(code) step_code_:" in user
    optimizer.step()
    assert two(one(1)).data == 7 and "+ 5" in two.parameter.data
    assert optimizer.history[-1].values.keys() == {"step_code", "step_code_"}
    again = OptoPrime([one, two, two, one.parameter])
    assert again.names == ["step_code", "step_code_"]


def test_the_system_text_says_what_the_variables_need():
    short = problem(node(1, name="x", trainable=True))
    system, _ = prompted(short)
    assert '{"reasoning": ' in system and '"suggestion": {"x0": value, ...}' in system
    assert "Code is Python" not in system and "answer" not in system and "<reasoning>" not in system
    long = problem(node("one\ntwo", name="story", trainable=True))
    system, user = prompted(long)
    assert "<story0>\nits new value as it is, without quotes or escapes\n</story0>" in system
    assert "(str) story0:\n```\none\ntwo\n```" in user
    assert "Code is Python" not in system and "JSON" not in system
    asks = problem(node(1, name="x", trainable=True), objective="Answer the question at the end.")
    assert '"answer": "the answer that the instruction asks for"' in prompted(asks)[0]
    asks = problem(node("a\nb", name="x", trainable=True), objective="What is best?")
    assert "<answer>" in prompted(asks)[0]
    for kind in (OPRO, TextGrad):
        none = problem(node(1, name="x", trainable=True), kind=kind, llm=Script(["hm", "hm"]))
        assert "Code has" not in prompted(none)[0] and "Instruction" not in prompted(none)[1]


def test_the_system_text_says_how_many_outputs_there_are():
    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=StubLLM())
    optimizer.backward(x + 1, "more")
    assert "led to the output, in order" in prompted(optimizer)[0]
    optimizer.zero_feedback()
    optimizer.backward([x + n for n in range(4)], "more")
    system, user = prompted(optimizer)
    assert "led to the 4 outputs, in order" in system
    assert user.endswith("# Feedback\nadd0, add1, add2, add3: more")


def test_an_answer_comes_back_from_tags():
    x = node("one\ntwo", name="x", trainable=True)
    optimizer = problem(
        x, llm=Script(["<reasoning>r</reasoning><answer>42</answer>\n<x0>\nthree\n</x0>"])
    )
    proposal = optimizer.step()
    assert (proposal.answer, proposal.reasoning, x.data) == ("42", "r", "three")


def test_only_what_the_feedback_reached_is_offered():
    a, b = node(1, name="a", trainable=True), node(2, name="b", trainable=True)
    optimizer = OptoPrime([a, b], llm=Script(['{"suggestion": {"b0": 5}}'] * 3))
    optimizer.backward(a + 1, "more")
    _, user = prompted(optimizer)
    assert "(int) a0" in user and "b0" not in user
    with pytest.raises(ReplyError, match="There is no variable 'b0', only a0."):
        optimizer.step()
    assert b.data == 2


def test_a_parameter_of_somebody_else_is_an_input_with_its_value():
    x, rate = node(0.25, name="x", trainable=True), node(0.25, name="rate", trainable=True)
    story = node("long " * 20, name="story", trainable=True)
    optimizer = OptoPrime([x], llm=StubLLM())
    optimizer.backward(operators.concat((rate * x).call("__str__"), story), "more")
    _, user = prompted(optimizer)
    assert "multiply0 = 0.25 * x0  # 0.0625" in user
    assert "# Inputs\nstory0 = 'long long" in user and user.count("(float)") == 1


def test_past_attempts_show_what_changed_in_code_and_what_was_given():
    @bundle(trainable=True)
    def twice(x):
        "Double it."
        return x

    replies = [
        f"<twice_code>\ndef twice(x):\n    return {rest}\n</twice_code>"
        for rest in ("x + 2", "x + x")
    ]
    optimizer = OptoPrime(twice, llm=Script(replies))
    for _ in replies:
        optimizer.zero_feedback()
        optimizer.backward(twice(5), "wrong:\n# Feedback\nten", score=0.0)
        optimizer.step()
    _, user = prompted(optimizer)
    past = user[user.index("# Past attempts") :]
    assert past.splitlines()[1:] == [
        "1. twice_code as it was then",
        "   feedback on 5: wrong:",
        "    # Feedback",
        "    ten",
        "   score: 0",
        "   then twice_code was changed:",
        '   -    "Double it."',
        "   -    return x",
        "   +    return x + 2",
        "2. twice_code as it was then",
        "   feedback on 7: wrong:",
        "    # Feedback",
        "    ten",
        "   score: 0",
        "   then twice_code was changed:",
        "   -    return x + 2",
        "   +    return x + x",
    ]
    assert len(re.findall(r"(?m)^# Feedback", user)) == 1


def test_changed_lines_that_begin_with_signs_are_told():
    query = node("-- of last year\nSELECT 1\n", name="query", trainable=True)
    new = "++ of this year\nSELECT 1\n"
    optimizer = OPRO([query], llm=lambda messages: f"<query0>\n{new}\n</query0>")
    optimizer.backward(query + "", "wrong year")
    optimizer.step()
    optimizer.zero_feedback()
    optimizer.backward(query + "", "right")
    assert "   then query0 was changed:\n   --- of last year\n   +++ of this year" in text(optimizer)


def test_documentation_has_no_empty_lines():
    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=StubLLM())
    optimizer.backward(bundle()(lambda x: x)(x), "more")
    assert "Documentation" not in prompted(optimizer)[1]


def test_code_that_holds_a_fence_or_a_heading_stays_code():
    x = node("```\n# Feedback\nx\n```", name="x", trainable=True)
    _, user = prompted(problem(x))
    assert "(str) x0:\n````\n```\n# Feedback\nx\n```\n````\n# Feedback\n" in user


PROGRAM = """
import sys; sys.path.insert(0, {root!r})
{before}
from minitrace import *
{noise}
x = node("a", name="x", trainable=True); y = node({{"u", "v", "w", "x1"}}, name="y", trainable=True)
@bundle(trainable=True)
def count(x, ys, options):
    "Count."
    return {{len(ys): [*map(str, ys)][:0], "o": options}}
o = OptoPrime([x, y, count], llm=StubLLM())
o.backward([count(x, y, object()), count(x, [y, x], {{"k": {{"a", "b"}}}})], "more")
print(o.prompt())
"""


def test_a_prompt_depends_on_nothing_but_the_program():
    said = set()
    for seed, noise in [
        ("1", ""),
        ("2", ""),
        ("3", "z = node(1, name='x') + 2; bundle()(len)([z])"),
    ]:
        noise += "; GRAPH.clear()" if noise else ""
        text = PROGRAM.format(root=str(ROOT), before="import random", noise=noise)
        ran = subprocess.run([sys.executable, "-c", text.replace("@bundle(trainable=True)\n", SOURCE)],
                             capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed})  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        said.add(ran.stdout)
    assert len(said) == 1


SOURCE = """@bundle(trainable=True, source="def count(x, ys, options):\\n    return {len(ys): [], 'o': options}")
"""


# ---- Replies that are no replies


def test_a_reply_that_a_limit_cut_off_is_not_applied():
    x = node(1, name="x", trainable=True)
    cut = Reply('{"suggestion": {"x0": 5}}', finish_reason="length")
    with pytest.raises(ReplyError, match="cut off by the limit on its length.*max_tokens"):
        problem(x, llm=lambda messages: cut, retries=1).step()
    optimizer = problem(x, llm=lambda messages: cut, on_refusal="keep", retries=0)
    assert optimizer.step() == {} and x.data == 1
    replies = iter([cut, '{"suggestion": {"x0": 6}}'])
    optimizer = problem(x, llm=lambda messages: next(replies))
    assert optimizer.step() == {x: 6} and "cut off" in optimizer.history[-1].proposal.refused[0]


def test_after_an_empty_reply_no_empty_turn_is_sent():
    x = node(1, name="x", trainable=True)
    script = Script(["", "  ", "nonsense", '{"suggestion": {"x0": 6}}'])
    problem(x, llm=script, retries=3).step()
    for asked in script.asked:
        roles = [message["role"] for message in asked]
        assert all(message["content"].strip() for message in asked)
        assert all(one != two for one, two in zip(roles, roles[1:]))
    assert "That reply was refused" in script.asked[1][-1]["content"]
    assert script.asked[1][-1]["content"].startswith("# Code")


def test_refused_replies_are_in_the_step_and_in_the_history():
    x = node(1, name="x", trainable=True)
    optimizer = problem(x, llm=lambda messages: "banana", on_refusal="keep", retries=1)
    proposal = optimizer.step()
    assert len(proposal.refused) == 2 and "No answer was found" in proposal.refused[0]
    assert optimizer.history[-1].reason.startswith("replies refused (2): No answer was found")
    optimizer.llm = Script(["banana", reply()])
    optimizer.step()
    assert optimizer.history[-1].reason.startswith("replies refused (1): No answer was found")


@pytest.mark.parametrize("kind", [Optimizer, OptoPrime, OPRO, TextGrad])
def test_help_tells_every_argument_of_an_optimizer(kind):
    told = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    names = inspect.signature(Optimizer).parameters
    assert len(names) == 9
    assert [name for name in names if not re.search(rf"(?m)^ \|\s+{name}: \w", told)] == []


# ---- Seen in replies and prompts


def test_graphs_whose_names_are_words_of_the_form():
    made = [
        node(n, name=name, trainable=True) for n, name in enumerate(("reasoning", "think", "k"))
    ]
    for each in made:
        each._index = None  # as those that are read from JSON
    optimizer = OptoPrime(
        made, llm=Script(['{"reasoning": "k is too low", "suggestion": {"k": 6}}'])
    )
    optimizer.backward(operators.make_list(*made), "more")
    assert optimizer.step() == {made[2]: 6} and "reasoning_ = 0" in text(optimizer)


@pytest.mark.parametrize("end", ["length", "max_tokens", "model_context_window_exceeded"])
def test_what_any_client_says_of_a_cut_reply_counts(end):
    x = node(1, name="x", trainable=True)
    said = {"content": [{"type": "text", "text": '{"suggestion": {"x0": 5}}'}], "stop_reason": end}
    with pytest.raises((ReplyError, LLMError)):
        problem(x, llm=lambda messages: said, retries=0).step()
    assert x.data == 1


def test_a_control_character_is_asked_about():
    x = node("a", name="x", trainable=True)
    llm = Script(['{"suggestion": {"x0": "\\\\frac{a}{b}"}}', '{"suggestion": {"x1": "\\frac"}}'])
    assert problem(x, llm=llm).step() == {x: "\\frac{a}{b}"}
    with pytest.raises(ReplyError, match="control character: write backslashes twice"):
        problem(node("a", name="x", trainable=True), llm=llm, retries=0).step()


def test_a_value_that_differs_only_in_an_address_is_a_change():
    x = node(["jump at 0x10 now"], name="x", trainable=True)
    optimizer = problem(x, llm=lambda messages: reply(x0=["jump at 0x20 now"]))
    assert optimizer.step() == {x: ["jump at 0x20 now"]}


def test_an_update_by_the_name_of_one_of_two_functions():
    def made():
        @bundle(trainable=True)
        def score(x):
            return x

        return score

    one, two = made(), made()
    optimizer = OptoPrime([one, two], llm=StubLLM())
    optimizer.update({"score_code": "def score(x):\n    return 1"})
    optimizer.update({"score_code_": "def score(x):\n    return 2"})
    assert (one(0).data, two(0).data) == (1, 2)
    optimizer.backward(two(one(3)), "more")
    shown = text(optimizer)
    assert (
        "score0 = score(x=3)  # 1" in shown
        and "score1 = score(x=score0, code=score_code_)" in shown
    )


def test_the_words_of_somebody_elses_function_are_documented():
    @bundle(trainable=True)
    def rate(x):
        "The rate of the day."
        return x * 2

    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=StubLLM())
    optimizer.backward(rate(x), "more")
    assert "# Documentation\nrate: The rate of the day." in text(optimizer)


def test_feedback_on_many_outputs_is_cut_by_whole_entries():
    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=StubLLM())
    outputs = [x + n for n in range(300)]
    optimizer.backward(outputs, [f"it should be {n:05}" for n in range(300)])
    rows = text(optimizer).split("# Feedback\n")[1].splitlines()
    assert all(re.fullmatch(r"add(\d+): it should be 0*\1|\.\.\. \d+ more", row) for row in rows)
    assert sum(row.startswith("...") for row in rows) == 1


def test_lines_of_any_kind_are_indented():
    x = node(1, name="x", description="one\n# Feedback\ntwo", trainable=True)

    class Table:
        def __repr__(self):
            return "a\n# Variables\nb"

    @bundle()
    def table(x):
        return Table()

    optimizer = OptoPrime([x], llm=StubLLM())
    optimizer.backward(table(x), "one\r# Code\u2028# Inputs\x85# Code\n# Feedback")
    shown = text(optimizer)
    assert re.findall(r"(?m)^# \w+", shown) == ["# Code", "# Variables", "# Feedback"]
    assert len(shown.splitlines()) == len(shown.split("\n"))


def test_what_the_program_gave_is_told_by_whole_words():
    x = node(3, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=lambda messages: reply(x0=x.data + 1))
    optimizer.backward(operators.identity(x), "it should be 13")
    optimizer.step()
    optimizer.zero_feedback()
    optimizer.backward(operators.identity(x), None, score=0.5)
    optimizer.step()
    past = text(optimizer).split("the oldest first\n")[1]
    assert "   feedback on 3: it should be 13\n" in past and "   gave 4\n   score: 0.5" in past


def test_an_answer_is_asked_for_only_where_the_objective_asks():
    x = node(1, name="x", trainable=True)
    system, _ = prompted(problem(x, objective="Make the agent's answers shorter."))
    assert "answer that" not in system


def test_what_an_own_describe_gives_is_kept_within_the_prompt():
    class Long(Optimizer):
        def describe(self, room):
            return "x" * 20_000

    assert characters(problem(node(1, trainable=True), kind=Long).prompt()) <= 12_000


@pytest.mark.parametrize("value, other", [(Reply("a"), "b"), (Color.RED, Color.BLUE), (decimal.Decimal("0.1"), decimal.Decimal(2)),
    (datetime.date(2020, 1, 2), datetime.date(2021, 1, 2)), (deque([1]), deque([2])), (Pair(1, 2), Pair(3, 4)),
    (pathlib.PurePosixPath("a"), pathlib.PurePosixPath("b"))], ids=repr)  # fmt: skip
def test_values_that_a_reply_can_change_are_saved(tmp_path, value, other):
    part = Module()
    part.value = node(value, trainable=True)
    part.save(tmp_path / "saved")
    part.value.set(other)
    part.load(tmp_path / "saved")
    assert part.value.data == value and type(part.value.data) is type(value)


def test_an_equal_value_that_was_loaded_keeps_the_feedback():
    x = node(["a", 1000], name="x", trainable=True)
    optimizer = problem(x, llm=lambda messages: reply(x0=["b"]), score=1.0)
    x.set(json.loads(json.dumps(x.data)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.history[-1].score == 1.0


def test_a_class_is_no_language_model():
    with pytest.raises(TypeError, match="llm= takes a callable"):
        OptoPrime([node(1, trainable=True)], StubLLM)


def test_what_is_falsy_is_not_replaced():
    class Rules(SumPropagator):
        def __len__(self):
            return 0

    class Mute(LanguageModel):
        def __bool__(self):
            return False

        def complete(self, messages, options):
            return Reply('{"suggestion": {"x0": 5}}')

    x = node(1, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=Mute(), propagator=Rules())
    optimizer.backward(x + 1, "too low")
    assert x.feedback == ["too low"]
    (x + 1).backward("too low", Rules())
    assert x.feedback == ["too low"] * 2
    optimizer = OptoPrime([x], llm=Mute())
    optimizer.zero_feedback()
    optimizer.backward(x + 1, "too low")
    assert optimizer.step() == {x: 5}
