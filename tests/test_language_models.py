"""Section 6, Language models: hooks around every call, HTTP and its misfortunes, scripts, the stub."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import contextvars
import copy
import http.client
import json
import os
import pickle
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import warnings
from functools import partial
from itertools import count
from types import SimpleNamespace

import pytest
from conftest import ROOT, patient
from llm_server import KEY, MODES, OVERFLOWS, Server, answer_anthropic, answer_openai

import minitrace
from minitrace import (
    LLM,
    PROTOCOLS,
    PROVIDERS,
    LanguageModel,
    LLMError,
    OptoPrime,
    Reply,
    Script,
    StubLLM,
    TextGrad,
    around_calls,
    ask_until_usable,
    node,
    operators,
)

tags = count()


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in list(os.environ):
        if re.search(
            r"(?i)_proxy$|API_KEY|AUTH_TOKEN|BASE_URL|CUSTOM_HEADERS|OLLAMA|OPENAI|MINITRACE", name
        ):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def shared():
    with Server() as server:
        yield server


@pytest.fixture
def server(shared):
    shared.requests.clear()
    return shared


def connect(server, mode="ok", protocol="openai", **settings):
    """A language model of the test server, and the pauses that it makes."""
    pauses = []
    base = server.url + ("/v1" if protocol == "openai" else "")
    settings = {"api_key": KEY, "base_url": base, "sleep": pauses.append, "timeout": 20, **settings}
    return LLM(
        f"{protocol}/{mode}#{next(tags)}" if mode != "ok" else f"{protocol}/ok", **settings
    ), pauses


def fails(server, mode, protocol="openai", **settings):
    llm, pauses = connect(server, mode, protocol, **settings)
    with pytest.raises(LLMError) as caught:
        llm("hello")
    return caught.value, pauses


def user(text):
    return [{"role": "user", "content": text}]


# ---- A language model of one's own


class Echo(LanguageModel):
    """Answers with the last message, and keeps what it was asked."""

    model = "echo"

    def __init__(self, **options):
        self.options, self.asked = options, []

    def complete(self, messages, options):
        self.asked.append((messages, options))
        return Reply(messages[-1]["content"])


def test_one_method_makes_a_language_model():
    llm = Echo()
    assert llm("hi") == "hi" and isinstance(llm("hi"), Reply) and llm.asked[0] == (user("hi"), {})
    assert llm.map(["a", "b", "c"]) == ["a", "b", "c"] and asyncio.run(llm.acall("d")) == "d"
    with pytest.raises(NotImplementedError):
        LanguageModel()("hi")


def test_options_of_the_call_go_over_those_of_the_object_and_none_takes_one_away():
    llm = Echo(temperature=0, top_p=1)
    llm("hi"), llm("hi", temperature=1, seed=3), llm("hi", top_p=None)
    assert [options for _, options in llm.asked] == [
        {"temperature": 0, "top_p": 1},
        {"temperature": 1, "top_p": 1, "seed": 3},
        {"temperature": 0},
    ]


def test_messages_are_checked_and_the_callers_own_are_never_touched():
    class Careless(Echo):
        def complete(self, messages, options):
            messages[0]["content"] = "changed"
            return Reply("")

    given = user("hi")
    Careless()(given)
    assert given == user("hi")
    for wrong in ([], [{"role": "user"}], {"role": "user", "content": "x"}, ["hello"]):
        with pytest.raises(TypeError, match="not a text, nor messages"):
            Careless()(wrong)


def test_a_copy_of_its_owner_shares_a_language_model():
    llm = Echo()
    assert copy.deepcopy([llm])[0] is llm


def test_a_reply_is_a_text_with_facts():
    reply = Reply("4", usage={"input_tokens": 9}, model="m")
    assert reply + "2" == "42" and (reply.usage, reply.model) == ({"input_tokens": 9}, "m")
    assert (Reply().usage, Reply().finish_reason, Reply().model) == (None, "stop", "")


def completion(text="hi", end="stop", **usage):
    """What OpenAI's client returns, as a dict."""
    message = {"role": "assistant", "content": text}
    choice = {"message": message, "finish_reason": end}
    return {"choices": [choice], "usage": usage or None, "model": "m-1"}


def turn(text="hi", end="end_turn", **usage):
    """What Anthropic's client returns, as a dict."""
    content = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]
    return {"content": content, "stop_reason": end, "usage": usage or None, "model": "m-1"}


def as_objects(data):
    """The same with attributes for keys, as clients have it."""
    if isinstance(data, dict):
        return SimpleNamespace(**{key: as_objects(value) for key, value in data.items()})
    return [as_objects(each) for each in data] if isinstance(data, list) else data


TOLD = [
    (completion(prompt_tokens=9, completion_tokens=2), {"input_tokens": 9, "output_tokens": 2}),
    (completion(input_tokens=9, output_tokens=2), {"input_tokens": 9, "output_tokens": 2}),
    (
        completion(prompt_tokens=9, completion_tokens=2, cache_read_input_tokens=8, total_tokens=11),
        {"input_tokens": 9, "output_tokens": 2},
    ),
    (
        turn(input_tokens=9, output_tokens=2, cache_read_input_tokens=None),
        {"input_tokens": 9, "output_tokens": 2},
    ),
    (
        turn(input_tokens=9, output_tokens=2, cache_creation_input_tokens=30),
        {"input_tokens": 39, "output_tokens": 2},
    ),
    (completion(prompt_tokens=9), {"input_tokens": 9}),
    (completion(total_tokens=9), None),
    (completion(prompt_tokens="9", completion_tokens=float("nan")), None),
    (completion(), None),
]


@pytest.mark.parametrize("convert", [dict, as_objects], ids=["dicts", "objects"])
@pytest.mark.parametrize("answer, usage", TOLD)
def test_what_a_client_returned_is_read_the_same_way_everywhere(answer, usage, convert):
    answer = convert(answer)
    reply = Reply(answer)
    assert (reply, reply.usage, reply.model, reply.finish_reason) == ("hi", usage, "m-1", "stop")
    seen, x = [], node(1, "x", trainable=True)

    def hook(llm, messages, options, ask):
        seen.append(ask())
        return seen[-1]

    class Mine(LanguageModel):
        def complete(self, messages, options):
            return answer

    optimizer = OptoPrime([x], llm=lambda messages: Reply('{"suggestion": {}}', usage=reply.usage))
    optimizer.backward(x + 1, "low")
    with around_calls(hook):
        operators.call_llm(lambda messages: answer, "hello")
        ask_until_usable(lambda messages: answer, user("x"), lambda text: (text, []))
        Mine()("hello")
        proposal = optimizer.propose()
    assert [each.usage for each in seen] == [usage] * 4 and seen[:3] == ["hi"] * 3
    assert all(isinstance(each, Reply) for each in seen) and proposal.usage == usage


def test_the_usage_that_somebody_gives_a_reply_is_read_too():
    for told in ({"prompt_tokens": 9, "completion_tokens": 2}, as_objects({"input_tokens": 9})):
        assert Reply("hi", usage=told).usage["input_tokens"] == 9
    assert Reply("hi", usage=None).usage is None and vars(Reply("hi")) == {}
    same = Reply("hi", model="m")
    assert Reply(same) is same and pickle.loads(pickle.dumps(same)).model == "m"


@pytest.mark.parametrize(
    "answer, text, end",
    [
        (completion("half", "length"), "half", "length"),
        (turn("half", "max_tokens"), "half", "length"),
        (completion(None, "tool_calls"), "", "tool_calls"),
        (completion([{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}], "eos"),
         "in parts", "stop"),
        (completion("", "content_filter"), "", "filtered"),
        ({"choices": [{"message": {"content": None, "refusal": "No."}}]}, "", "refused"),
    ],
)  # fmt: skip
def test_why_a_text_of_another_client_ended_is_known(answer, text, end):
    for each in answer, as_objects(answer):
        assert (Reply(each), Reply(each).finish_reason) == (text, end)


@pytest.mark.parametrize("wrong", [7, None, {}, {"choices": 7}, {"text": "hi"}, object(), ["hi"]])
def test_what_is_no_answer_is_none(wrong):
    with pytest.raises(TypeError, match="a language model must return text, not "):
        Reply(wrong)


# ---- A language model of one's own that fails


class TooMany(Exception):
    """What a client raises for status 429."""


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def raises(error):
    def llm(messages, **options):
        raise error

    return llm


def asks_for_a_proposal(llm):
    x = node(1, "x", trainable=True)
    optimizer = OptoPrime([x], llm=llm)
    optimizer.backward(x + 1, "low")
    optimizer.step()


def asks_for_a_criticism(llm):
    a = node("a", "a", trainable=True)
    TextGrad([a], llm=llm).backward(a + "b", "bad")


ASKS = [
    lambda llm: operators.call_llm(llm, "hi"),
    lambda llm: operators.call_llm(llm, "hi", node("x", trainable=True)),
    lambda llm: ask_until_usable(llm, user("hi"), lambda text: (text, [])),
    asks_for_a_proposal,
    asks_for_a_criticism,
]
ERRORS = [TooMany("429"), KeyError("API_KEY"), TypeError("no"), StopIteration(), Speechless()]


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_callable_that_raises_is_a_language_model_that_failed(ask, error):
    class Mine(LanguageModel):
        model = "mine"

        def complete(self, messages, options):
            raise error

    for llm, name in (raises(error), "callable"), (Mine(), "mine"):
        with pytest.raises(LLMError) as caught:
            ask(llm)
        assert caught.value.kind == "raised" and caught.value.__cause__ is error
        words = f"the language model {name} raised {type(error).__name__}("
        assert words in str(caught.value) or isinstance(error, Speechless)
        assert str(caught.value).endswith(", the cause of this")


def test_a_language_model_that_fails_is_no_feedback(server):
    """Neither as an operator nor inside a function does it become an exception node."""

    @minitrace.bundle()
    def answer(question):
        return Script([])(str(question))

    question = node("hi", trainable=True)
    minitrace.GRAPH.clear()
    for ask in answer, lambda x: operators.call_llm(Script([]), x):
        with pytest.raises(LLMError, match="the script has no reply"):
            ask(question)
    llm, _ = connect(server, "status400")
    with pytest.raises(LLMError, match="status 400"):
        operators.call_llm(llm, question)
    for mode in "refused", "filtered", "empty", "cut_off":  # another prompt might do better
        llm, _ = connect(server, mode)
        inside = minitrace.bundle()(lambda x, llm=llm: llm(str(x)))
        for ask in inside, partial(operators.call_llm, llm):
            with pytest.raises(minitrace.ExecutionError, match="LLMError") as caught:
                ask(question)
            assert caught.value.__cause__.kind == mode.replace("_", " ")
    with pytest.raises(KeyboardInterrupt):
        operators.call_llm(raises(KeyboardInterrupt()), question)


def test_an_error_of_ours_and_a_wrong_option_stay_what_they_are(server):
    mine = LLMError("no line", kind="network")
    with pytest.raises(LLMError) as caught:
        operators.call_llm(raises(mine), "hi")
    assert caught.value is mine
    llm, _ = connect(server)
    with pytest.raises(TypeError, match="no option 'heat'"):
        llm("hi", heat=1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        llm("hi", temperature=float("nan"))


# ---- Where no thread can be started


@pytest.fixture
def no_threads(monkeypatch, server):
    """As in WebAssembly; the test server's threads run on."""

    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_without_threads_what_runs_side_by_side_runs_one_after_the_other(no_threads):
    seen = contextvars.ContextVar("seen", default=None)
    seen.set("here")

    class Looks(Echo):
        def complete(self, messages, options):
            self.asked.append(messages[0]["content"])
            return Reply(f"{messages[0]['content']} {seen.get()}")

    llm = Looks()
    assert llm.map("abc", workers=3) == ["a here", "b here", "c here"]
    assert llm.asked == ["a", "b", "c"] and asyncio.run(llm.acall("d")) == "d here"
    with pytest.raises(LLMError, match="no reply for call 2"):
        Script(["one"]).map("abc")
    x = node(1, "x", trainable=True)
    optimizer = OptoPrime([x], llm=lambda messages: '{"suggestion": {"x0": 2}}')
    optimizer.backward(x + 1, "low")
    assert [proposal[x] for proposal in optimizer.propose(n=3)] == [2, 2, 2]
    a, b = node("a", "a", trainable=True), node("b", "b", trainable=True)
    critic = TextGrad([a, b], llm=Script(["more", "less"]))
    critic.backward(a + b, "bad")
    assert (a.feedback, b.feedback) == (["more"], ["less"])


def test_without_threads_an_async_call_can_be_rerun(no_threads):
    @minitrace.bundle()
    async def double(x):
        await asyncio.sleep(0)
        return x * 2

    x = node(2, "x")
    y = asyncio.run(double(x))
    assert y.rerun({x: 3}).data == 6


def test_without_threads_http_works(monkeypatch):
    start = threading.Thread.start

    def refuses(self):
        if "minitrace" in sys._getframe(1).f_code.co_filename:
            raise RuntimeError("can't start new thread")
        start(self)

    with Server() as server:
        monkeypatch.setattr(threading.Thread, "start", refuses)
        llm, pauses = connect(server, "status500*1")
        assert llm("hello") == "echo: hello" and len(pauses) == 1
        assert fails(server, "silent", timeout=0.2)[0].kind in ("network", "timeout")


# ---- What stands around every call


def noting(story, name="hook"):
    """A hook that writes into a story when a call begins, and what it gave."""

    def hook(llm, messages, options, ask):
        story.append(f"{name} before")
        reply = ask()
        story.append(f"{name} after {reply}")
        return reply

    return hook


def test_hooks_run_around_a_call_the_outer_one_first():
    story, llm = [], Echo()
    with around_calls(noting(story, "outer")), around_calls(noting(story, "inner")):
        assert llm("hi") == "hi"
    assert story == ["outer before", "inner before", "inner after hi", "outer after hi"]
    story.clear()
    llm("hi")
    assert story == []  # outside, there is none


def test_a_hook_is_told_who_is_asked_and_what():
    seen, llm = [], Echo(temperature=0)

    def hook(*told):
        seen.append(told[:3])
        return told[3]()

    with around_calls(hook):
        llm("hi", seed=1)
    assert seen == [(llm, user("hi"), {"temperature": 0, "seed": 1})]


def test_what_a_hook_returns_is_the_reply():
    llm = Echo()
    with around_calls(lambda llm, messages, options, ask: Reply(ask().upper())):
        assert llm("hi") == "HI"
    with around_calls(lambda llm, messages, options, ask: Reply("not asked")):
        assert llm("hi") == "not asked"
    assert len(llm.asked) == 1


def test_a_hook_may_ask_again():
    llm = Script(["one", "two"])
    with around_calls(lambda llm, messages, options, ask: Reply(f"{ask()}, {ask()}")):
        assert llm("hi") == "one, two"


def test_exceptions_pass_through_hooks_which_may_look_and_replace_them():
    seen, llm = [], Script([])

    def looks(llm, messages, options, ask):
        try:
            return ask()
        except LLMError as error:
            seen.append(error.kind)
            raise

    with around_calls(looks), pytest.raises(LLMError, match="the script has no reply"):
        llm("hi")
    assert seen == ["miss"]

    def helps(llm, messages, options, ask):
        try:
            return ask()
        except LLMError:
            return Reply("there it is")

    with around_calls(helps), around_calls(looks):
        assert llm("hi") == "there it is"
    assert seen == ["miss", "miss"]

    def stops(llm, messages, options, ask):
        raise RuntimeError("enough")

    with around_calls(stops), pytest.raises(RuntimeError, match="enough"):
        llm("hi")
    assert len(llm.asked) == 2  # what was stopped was never asked


def test_hooks_are_as_they_were_after_an_exception():
    story, llm = [], Script([])
    with around_calls(noting(story)):
        for _ in range(2):
            with pytest.raises(LLMError):
                llm("hi")
        with pytest.raises(KeyError), around_calls(noting(story, "inner")):
            raise KeyError
        with pytest.raises(LLMError):
            llm("hi")
    assert story == ["hook before"] * 3
    with pytest.raises(KeyError), around_calls(noting(story)):
        raise KeyError
    Echo()("hi")
    assert len(story) == 3


def test_the_same_hook_is_called_once_however_often_it_was_entered():
    story, llm = [], Echo()
    hook = noting(story)
    with around_calls(hook):
        with around_calls(hook), around_calls(noting(story, "other")):
            llm("hi")
        assert [each for each in story if "before" in each] == ["hook before", "other before"]
        llm("hi")  # and leaving the inner block does not end the outer one
        assert story.count("hook before") == 2
    llm("hi")
    assert story.count("hook before") == 2


def test_a_call_that_a_language_model_makes_in_turn_is_part_of_the_outer_one():
    class Asks(LanguageModel):
        def complete(self, messages, options):
            return Reply(f"{Echo()(messages)} {''.join(Echo().map(['b', 'c']))}")

    story = []
    with around_calls(noting(story)):
        assert Asks()("a") == "a bc"
    assert story == ["hook before", "hook after a bc"]


def test_what_a_hook_asks_itself_is_not_seen_by_hooks():
    def second_opinion(llm, messages, options, ask):
        return Reply(f"{ask()} {Echo()('and')}")

    with around_calls(second_opinion):
        assert Echo()("hi") == "hi and"


def test_threads_and_tasks_inherit_hooks():
    llm, story = Echo(), []
    with around_calls(noting(story)):
        llm.map(["a", "b", "c"], workers=3)
        asyncio.run(llm.acall("d"))

        async def many():
            async def one(n):
                return await asyncio.to_thread(llm, f"{n}")

            return await asyncio.gather(*map(one, range(5)))

        assert asyncio.run(many()) == [*"01234"]
        thread = threading.Thread(target=contextvars.copy_context().run, args=(llm, "e"))
        thread.start()
        thread.join()
    assert story.count("hook before") == 10


def test_a_task_has_hooks_of_its_own():
    """Tasks that run by turns, each in a block of its own: none sees the calls of another."""

    async def task(n):
        story = []
        with around_calls(noting(story, f"{n}")):
            for _ in range(3):
                await asyncio.sleep(0)
                Echo()("hi")
        return story

    async def main():
        return await asyncio.gather(*map(task, range(5)))

    for n, story in enumerate(asyncio.run(main())):
        assert story == [f"{n} before", f"{n} after hi"] * 3


def test_optimizers_threads_inherit_hooks():
    x, story = node(1, "x", trainable=True), []
    a, b = node("a", "a", trainable=True), node("b", "b", trainable=True)
    optimizer = OptoPrime([x], llm=lambda messages: '{"suggestion": {"x0": 2}}')
    optimizer.backward(x + 1, "low")
    critic = TextGrad([a, b], llm=lambda messages: "hm")
    with around_calls(noting(story)):
        optimizer.propose(n=3)
        critic.backward(a + b, "bad")
    assert len(story) == 2 * (3 + 2)


@pytest.mark.parametrize(
    "asks",
    [
        lambda llm: ask_until_usable(llm, user("hi"), lambda text: (text, [])),
        lambda llm: operators.call_llm(llm, "hi"),
    ],
)
def test_any_other_callable_is_seen_too(asks):
    seen = []

    def stranger(messages, **options):
        return {"choices": [{"message": {"content": "yes"}}], "usage": {"prompt_tokens": 5}}

    def hook(llm, messages, options, ask):
        reply = ask()
        seen.append((llm.model, messages[0]["content"], reply))
        return reply

    with around_calls(hook):
        asks(stranger)
        stranger.model = "stranger-7"
        asks(stranger)
    assert seen == [("callable", "hi", "yes"), ("stranger-7", "hi", "yes")]
    assert all(isinstance(reply, Reply) for _, _, reply in seen)


# ---- The two protocols


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_a_text_and_messages_are_answered(server, protocol):
    llm, _ = connect(server, protocol=protocol)
    reply = llm("hello")
    assert reply == "echo: hello" and isinstance(reply, Reply) and isinstance(reply, str)
    assert reply.usage == {"input_tokens": 11 if protocol == "openai" else 111, "output_tokens": 7}
    assert (reply.finish_reason, reply.model) == ("stop", "served-model")
    turns = [
        ("system", "Be brief."),
        ("developer", "Really."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    assert llm([{"role": role, "content": text} for role, text in turns]) == "echo: c"
    body = server.requests[-1]["body"]
    if protocol == "anthropic":
        assert body["system"] == "Be brief.\n\nReally." and len(body["messages"]) == 3
    else:
        assert len(body["messages"]) == 5


def test_every_option_reaches_the_wire(server):
    options = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 99, "stop": "END"}
    llm, _ = connect(
        server, **options, seed=3, reasoning_effort="low", response_format={"type": "text"}
    )
    llm("hello", extra={"n": 1})
    sent = server.requests[-1]["body"]
    assert (
        sent.items()
        >= {"temperature": 0.5, "top_p": 0.9, "max_tokens": 99, "stop": ["END"], "n": 1}.items()
    )
    assert sent["seed"] == 3 and sent["reasoning_effort"] == "low"
    llm("hello", temperature=None, max_tokens=5)
    assert (
        "temperature" not in server.requests[-1]["body"]
        and server.requests[-1]["body"]["max_tokens"] == 5
    )
    llm, _ = connect(
        server, "ok", "anthropic", **options, top_k=4, extra={"metadata": {"user_id": "u"}}
    )
    llm("hello")
    assert (
        server.requests[-1]["body"].items()
        >= {"stop_sequences": ["END"], "max_tokens": 99, "top_k": 4}.items()
    )


def test_unknown_options_and_messages_are_refused(server):
    with pytest.raises(TypeError, match=r"no option 'heat': known are max_tokens.*top_k.*extra="):
        LLM("openai/ok", heat=1)
    llm, _ = connect(server, protocol="anthropic")
    with pytest.raises(TypeError, match=r"no option 'seed': known are max_tokens, stop"):
        llm("hello", seed=1)
    for wrong in ([], [{"role": "user"}], {"role": "user", "content": "x"}, ["hello"]):
        with pytest.raises(TypeError, match="not a text, nor messages"):
            llm(wrong)
    for timeout in (0, -1, float("nan"), float("inf"), 1e10):
        with pytest.raises(ValueError, match="timeout is in seconds"):
            LLM("openai/ok", timeout=timeout)
    assert server.requests == []


def test_addresses_are_joined_by_one_slash(server):
    for base in ("/v1", "/v1/", "/v1/chat/completions"):
        assert LLM("openai/ok", base_url=server.url + base, api_key=KEY)("x") == "echo: x"
    for base in ("", "/", "/v1", "/v1/messages"):
        assert LLM("anthropic/ok", base_url=server.url + base, api_key=KEY)("x") == "echo: x"
    LLM("ok", base_url=server.url + "/v1?api-version=7", headers={"Api-Key": "k"}, api_key=KEY)("x")
    assert server.requests[-1]["path"] == "/v1/chat/completions?api-version=7"
    error, _ = fails(server, "status400", base_url=server.url + "/v1?code=query-secret")
    assert "query-secret" not in str(error) + error.url
    for base in (
        "localhost:1/v1",
        "file:///etc/passwd",
        "ftp://h/",
        "http://u:secretpw@h/",
        "http://",
        "http://h:x/",
        "http://a b/",
        "http://h/\n",
        "http://[::1/",
    ):
        with pytest.raises(LLMError, match="base_url=: http") as caught:
            LLM("ok", base_url=base, api_key=KEY)("x")
        assert "secretpw" not in str(caught.value) and caught.value.kind == "setup"


def test_names_split_at_a_known_first_part_only(server):
    base = server.url + "/v1"
    for name, sent in [
        ("openai/ok", "ok"),
        ("ok", "ok"),
        ("groq/a/b", "a/b"),
        ("meta/ok", "meta/ok"),
    ]:
        with contextlib.suppress(LLMError):  # the server has no language model of this name
            LLM(name, base_url=base, api_key=KEY, retries=0)("x")
        assert server.requests[-1]["body"]["model"] == sent


# ---- Who is asked, and with which key: the environment


def test_nothing_is_read_or_sent_before_the_first_call(server, monkeypatch):
    llm = LLM()
    monkeypatch.setenv("MINITRACE_MODEL", "openai/ok")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
    assert server.requests == []
    assert llm("x") == "echo: x"


def test_no_language_model_says_what_to_set():
    with pytest.raises(
        LLMError, match=r"pass LLM\('provider/name'\), or set MINITRACE_MODEL.*openai, anthropic"
    ):
        LLM()("x")
    with pytest.raises(LLMError, match="there is no key: pass api_key= or set ANTHROPIC_API_KEY"):
        LLM("anthropic/x")("x")
    with pytest.raises(LLMError, match="base_url=: http"):
        LLM("just-a-name")("x")


def row(provider):
    """A row of the table with all its fields: protocol, address, keys, variable, path behind it."""
    return (*PROVIDERS[provider], "", "", "")[:5]


def path_of(provider):
    return {"anthropic": "/v1/messages"}.get(provider, "/v1/chat/completions")


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_each_providers_keys_are_found_and_the_first_that_is_set_wins(
    server, monkeypatch, provider
):
    _, _, keys, variable, path = row(provider)
    base = server.url + ("" if provider == "anthropic" else "/v1")
    for key in reversed(keys.split()):
        monkeypatch.setenv(key, f"key-in-{key}")
        with pytest.raises(LLMError, match="status 401"):  # the server wants another
            LLM(f"{provider}/ok", base_url=base, retries=0)("x")
        assert server.requests[-1]["headers"]["authorization"] == f"Bearer key-in-{key}"
        assert server.requests[-1]["path"] == path_of(provider)
    if variable:
        monkeypatch.setenv(variable, server.url if path else base)
        with pytest.raises(LLMError):
            LLM(f"{provider}/ok", retries=0)("x")
        wanted = path + "/chat/completions" if path else path_of(provider)
        assert server.requests[-1]["path"] == wanted


def asked_at(name, **settings):
    """The address that a language model is asked at, found where no network is."""
    with pytest.raises(LLMError) as caught:
        LLM(name, retries=0, **settings)("x")
    assert caught.value.kind == "network"
    return caught.value.url


@pytest.mark.parametrize("provider", sorted(PROVIDERS.keys() - {"compatible"}))
def test_each_providers_address_is_that_of_the_table(offline, provider):
    protocol, base, *_ = row(provider)
    ending = "/v1/messages" if protocol == "anthropic" else "/chat/completions"
    assert asked_at(f"{provider}/m", api_key=KEY) == base + ending


@pytest.mark.parametrize(
    "host, base",
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("http://h", "http://h"),
        ("https://h", "https://h"),
        ("https://h:1/p/", "https://h:1/p"),
        ("http://h:1/v1", "http://h:1"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("[::1]:99", "http://[::1]:99"),
        ("http://0.0.0.0:99", "http://127.0.0.1:99"),
        (" http://h/ \r", "http://h"),
        ("h:12", "http://h:12"),
    ],
)
def test_ollama_host_in_its_forms(monkeypatch, offline, host, base):
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert asked_at("ollama/m") == base + "/v1/chat/completions"


def test_an_address_without_a_scheme_is_no_address_but_for_ollama(monkeypatch, offline):
    monkeypatch.setenv("OPENAI_BASE_URL", "example.org")
    with pytest.raises(LLMError, match=r"give base_url=: http\(s\)://"):
        LLM("openai/m", api_key=KEY)("x")


def test_the_variable_of_groq_is_read_as_its_own_client_does_and_with_the_path_too(
    monkeypatch, offline
):
    for said in ("https://h.example", "https://h.example/", "https://h.example/openai/v1"):
        monkeypatch.setenv("GROQ_BASE_URL", said)
        asked = asked_at("groq/m", api_key=KEY)
        assert asked == "https://h.example/openai/v1/chat/completions"


def test_a_conversation_of_the_system_alone_is_the_users_turn_where_one_is_needed(server):
    system = {"role": "system", "content": "Say hi."}
    llm, _ = connect(server, protocol="anthropic")
    assert llm([system]) == "echo: Say hi."
    assert server.requests[-1]["body"]["messages"] == user("Say hi.")
    assert "system" not in server.requests[-1]["body"]
    assert operators.call_llm(llm, "Say hi.").data == "echo: Say hi."
    assert operators.call_llm(llm, "Be brief.", "Hello").data == "echo: Hello"
    assert server.requests[-1]["body"]["system"] == "Be brief."
    llm, _ = connect(server)
    llm([system])
    assert server.requests[-1]["body"]["messages"] == [system]  # as it is, where that is allowed


def test_anthropic_takes_a_token_too(server, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    assert LLM("anthropic/ok")("x") == "echo: x"
    old = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    LLM("anthropic/ok", headers=old)("x")
    assert "authorization" not in server.requests[-1]["headers"]
    assert server.requests[-1]["headers"]["anthropic-version"] == "2023-06-01"


def test_a_provider_is_added_at_run_time(server, monkeypatch):
    monkeypatch.setitem(PROVIDERS, "mine", ("openai", server.url + "/v1", "MY_KEY"))
    monkeypatch.setenv("MY_KEY", KEY)
    assert LLM("mine/ok")("x") == "echo: x"


def test_an_environment_key_gives_way_to_headers(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    fails(
        server, "ok", api_key=None, headers={"api-key": "azure-key-1234"}
    )  # the server wants another
    assert "authorization" not in server.requests[-1]["headers"]
    llm, _ = connect(server, api_key="sk-another-key", headers={"Authorization": f"Bearer {KEY}"})
    assert llm("x") == "echo: x"  # what is said in full goes before what is built
    fails(server, "ok", api_key="")
    assert "authorization" not in server.requests[-1]["headers"]


# ---- It survives


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_may_heal_is_asked_again(server, code):
    llm, pauses = connect(server, f"status{code}*2")
    assert llm("hello") == "echo: hello"
    assert len(server.requests) == 3
    assert 0.37 <= pauses[0] < 0.5 and 0.75 <= pauses[1] < 1  # and hardly ever twice the same


BROKEN = [
    "reset",
    "hang_up",
    "no_http",
    "cut_body",
    "cut_without_length",
    "cut_chunks",
    "nothing",
    "error_in_200",
    "many_headers",
    "not_utf8",
    "error_page",
]


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
@pytest.mark.parametrize("mode", BROKEN)
def test_broken_answers_are_asked_for_again(server, mode, protocol):
    llm, pauses = connect(server, mode + "*2", protocol)
    assert llm("hello") == "echo: hello" and len(pauses) == 2


@pytest.mark.parametrize(
    "mode", ["chunked", "bom", "no_finish", "no_usage", "parts", "latin_1", "raw_newline"]
)
def test_odd_answers_are_understood(server, mode):
    llm, _ = connect(server, mode)
    reply = llm("hello")
    assert reply in ("echo: hello", "in parts", "caf\ufffd", "a\nb") and reply.finish_reason == "stop"
    assert (reply.usage is None) == (mode == "no_usage")


@pytest.mark.parametrize("code", [400, 402, 403, 404, 405, 413, 418, 422])
def test_what_never_heals_is_not_asked_again(server, code):
    error, pauses = fails(server, f"status{code}")
    assert (error.kind, error.status, pauses, len(server.requests)) == ("status", code, [], 1)
    assert error.provider == "openai" and error.url == server.url + "/v1/chat/completions"
    assert f"openai/{error.model} at {error.url}: status {code} it did not work" in str(error)


def test_a_wrong_key_names_its_variable(server):
    error, pauses = fails(server, "ok", api_key="sk-wrong-key-1234")
    assert (
        error.status == 401
        and "check the key: api_key= or OPENAI_API_KEY" in str(error)
        and not pauses
    )


@pytest.mark.parametrize(
    "mode, words",
    [
        ("quota", "the account has nothing left"),
        ("context", "shorten the prompt"),
        ("status413", "shorten"),
        ("unknown_model", "check the language model's name"),
        ("error_list", "check the key"),
        ("error_text", "just words"),
        ("error_detail", "detailed words"),
        ("error_message", "plain words"),
        ("error_page", "Bad gateway"),
        ("error_text_in_200", "no such thing"),
        ("status503", "try again later"),
        ("xai_balance", "the account has nothing left"),
        ("hot", "see the server's words"),
        ("flagged", "filtered 400 Invalid prompt"),
        ("busy_anthropic", "[x-should-retry: true]; try again later, or raise retries= and timeout="),
        ("never", "[x-should-retry: false]; it says that another try cannot help"),
        ("nothing", "network 200 no whole JSON"),
        ("just_text", "unreadable 200"),
        *[(f"overflow_{name}", "shorten the prompt") for name in OVERFLOWS],
        ("raw", "Provider returned error [some_error] [the real reason]"),
        ("litellm_key", "check the key: api_key= or OPENAI_API_KEY"),
        ("litellm_model", "check the language model's name"),
        ("openrouter_model", "check the language model's name"),
        ("deepseek_balance", "the account has nothing left"),
        ("balance_429", "the account has nothing left"),
        ("wants_x_api_key", 'headers={"x-api-key": ..., "anthropic-version": "2023-06-01"}'),
        ("nginx", "status 502 502 Bad Gateway 502 Bad Gateway nginx/1.27.0; try again later"),
        ("azure", "filtered 400 The response was filtered"),
        ("ends_model_context_window_exceeded", "shorten the prompt"),
        ("ends_network_error", "failed 200 half a th (finish reason: network_error); try again"),
        ("thought", "all is in its reasoning (finish reason: stop); raise max_tokens="),
        ("thought_null", "all is in its reasoning (finish reason: stop); raise max_tokens="),
        ("thought_blank", "all is in its reasoning (finish reason: stop); raise max_tokens="),
        ("cut_off", "(finish reason: length); raise max_tokens="),
        ("ends_eos_empty", "empty 200 (finish reason: eos); change the prompt"),
        ("choice_error", "status 502 Upstream died"),
        ("packed", "[content-encoding: gzip]; check that base_url= points to the API"),
        ("odd_code", "status 200 odd [\u00b2]; see the server's words"),
        ("other_code", "status 200 odd; see the server's words"),
        ("odd_refusal", "refused 200 {'why': 'xxxxx"),
        ("long_filtered", "xxxxx (finish reason: content_filter); change the prompt"),
        ("page", "Welcome to nginx!"),
        ("page", "check that base_url= points to the API"),
        ("huge_error", "xxxxx"),
        ("other_shape", "hello"),
        ("deep", "unreadable"),
        ("a_list", "unreadable"),
        ("wrong_types", "unreadable"),
    ],
)
def test_errors_say_what_to_do_in_the_servers_words(server, mode, words):
    error, _ = fails(server, mode, retries=0)
    assert words in str(error) and len(str(error)) < 1200
    assert str(error).isprintable()


@pytest.mark.parametrize(
    "mode",
    ["quota", "page", "other_shape", "endless", "packed", "packed_bomb", "empty", "refused", "never", "azure"]
    + [f"overflow_{name}" for name in OVERFLOWS]
    + ["balance_429", "deepseek_balance", "choice_refusal", "thought", "wants_x_api_key"]
    + ["ends_sensitive", "ends_SAFETY", "ends_model_context_window_exceeded"],
)
def test_hopeless_cases_are_asked_once(server, mode):
    _, pauses = fails(server, mode)
    assert pauses == [] and len(server.requests) == 1


WORDS = (
    "choices message content error code type metadata raw detail usage prompt_tokens finish_reason "
    "stop_reason refusal reasoning_content text model output_tokens input_tokens"
).split()
VALUES = [
    None, True, False, 0, 1, -1, 502, 10**400, 0.5, float("nan"), float("inf"), "", " ", "502", "stop",
    "error", "length", "content_filter", "half a text", "\ud800", "\u00b2", "text", "x" * 3000,
]  # fmt: skip


def some_json(rng, depth=0):
    """Data of the kind that servers send, put together without sense."""
    kind = rng.random()
    if depth > 4 or kind < 0.3:
        return rng.choice(VALUES)
    if kind < 0.55:
        return [some_json(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(WORDS): some_json(rng, depth + 1) for _ in range(rng.randrange(5))}


def test_whatever_a_server_sends_is_a_reply_or_an_error_of_ours(server, slow):
    rng, seen = random.Random(5), set()
    llm, _ = connect(server, "parrot", retries=0)
    for _ in range(20_000 if slow else 800):
        code = rng.choice([200, 200, 200, 400, 429, 500])
        body = json.dumps(some_json(rng) if rng.random() < 0.3 else shaped(rng))
        try:
            reply = llm(f"{code} {body}")
            assert reply.strip() and isinstance(reply.finish_reason, str)
            assert set(reply.usage or {}) <= {"input_tokens", "output_tokens"}
            json.dumps(vars(reply)).encode()
            seen.add("reply")
        except LLMError as error:
            assert len(str(error)) < 3000
            str(error).encode()
            seen.add(error.kind)
    assert seen >= {"reply", "status", "unreadable", "empty", "failed", "filtered"}


def shaped(rng):
    """Data in the form of an answer, some of whose values are wrong."""
    message = {"content": rng.choice([*VALUES, some_json(rng)]), "refusal": rng.choice([None, None, "no", 7])}
    choice = {"message": message, "finish_reason": rng.choice(VALUES)}
    if rng.random() < 0.2:
        choice["error"] = some_json(rng)
    return {"choices": [choice], "usage": some_json(rng), "model": rng.choice(VALUES)}


def test_an_error_inside_a_success_is_an_error(server):
    error, pauses = fails(server, "error_in_200")
    assert (error.kind, error.status, len(pauses)) == ("status", 502, 4)
    error, pauses = fails(server, "error_text_in_200")
    assert (error.kind, error.status, pauses) == ("status", 200, [])


FAILED = ["ends_error", "ends_network_error", "ends_insufficient_system_resource", "ends_abort"]


@pytest.mark.parametrize("mode", [*FAILED, "choice_error", "choice_error_plain"])
def test_an_answer_that_failed_on_the_way_is_none_and_is_asked_for_again(server, mode):
    llm, pauses = connect(server, mode + "*2")
    assert llm("hello") == "echo: hello" and len(pauses) == 2
    error, pauses = fails(server, mode, retries=1)
    wanted = ("status", 502) if mode == "choice_error" else ("failed", 200)
    assert (error.kind, error.status) == wanted and len(pauses) == 1 and not error.hopeless
    if mode in FAILED[1:]:
        assert fails(server, mode, "anthropic", retries=0)[0].kind == "failed"


def test_a_server_may_order_another_try(server):
    llm, pauses = connect(server, "again*1")
    assert llm("hello") == "echo: hello" and len(pauses) == 1


@pytest.mark.parametrize(
    "mode, low, high",
    [
        ("asks_seconds", 2.5, 2.5),
        ("asks_ms", 1.5, 1.5),
        ("asks_blank", 2, 2),
        ("asks_date", 1.5, 3.1),
        ("asks_info", 17, 17),
        ("asks_negative", 0.37, 0.5),
        ("asks_nan", 0.37, 0.5),
        ("asks_inf", 0.37, 0.5),
        ("asks_past", 0.37, 0.5),
        ("asks_rubbish", 0.37, 0.5),
    ],
)
def test_retry_after_in_all_its_forms(server, mode, low, high):
    llm, pauses = connect(server, mode + "*1")
    llm("hello")
    assert len(pauses) == 1 and low <= pauses[0] <= high


def test_a_pause_beyond_the_deadline_is_not_begun(server):
    for mode in "asks_for_ever", "asks_ms_for_ever":
        error, pauses = fails(server, mode)
        assert error.status == 429 and pauses == []
    error, pauses = fails(server, "asks_hour")
    assert error.status == 429 and pauses == []
    words = "[it asks to wait 3600 s]; try again later, or raise retries= and timeout=."
    assert str(error).endswith(words) and error.wait == 3600


def test_retries_are_counted(server):
    for retries in (0, 2):
        server.requests.clear()
        fails(server, "status500", retries=retries)
        assert len(server.requests) == retries + 1


@pytest.mark.parametrize("mode", ["silent", "dripping_line", "dripping_headers", "dripping_body"])
def test_the_deadline_ends_the_call(server, mode):
    before = time.monotonic()
    error, _ = fails(server, mode, timeout=0.25)
    took = time.monotonic() - before
    assert 0.2 < took < patient(0.85)
    assert error.kind == "timeout" and "raise timeout=" in str(error)


def test_the_deadline_shuts_the_socket_so_that_no_thread_stays(server):
    before = threading.active_count()
    fails(server, "dripping_headers", timeout=0.3)
    end = time.monotonic() + 3
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_the_deadline_covers_retries(server):
    before = time.monotonic()
    fails(server, "status500", timeout=1, retries=99, sleep=time.sleep)
    took = time.monotonic() - before
    assert took < patient(1.3)


def test_a_hanging_name_look_up_is_left_behind(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(5))
    before = time.monotonic()
    with pytest.raises(LLMError, match="no whole answer in time"):
        LLM("m", base_url="https://slow.example/v1", api_key=KEY, timeout=0.3)("x")
    took = time.monotonic() - before
    assert took < patient(1)


def test_nothing_is_sent_after_the_deadline(server, monkeypatch):
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: time.sleep(0.3) or look_up(*a))
    assert fails(server, "ok", timeout=0.1)[0].kind == "timeout"
    time.sleep(0.4)
    assert server.requests == []


def test_nobody_there(server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        error, pauses = fails(server, "ok", base_url=url, retries=1)
    assert error.kind == "network" and "check that the server runs" in str(error) and len(pauses) == 1


def test_a_host_that_swallows_packets_says_that_there_is_no_connection(server, monkeypatch):
    monkeypatch.setattr(minitrace, "_CONNECT", 0.2)
    with socket.socket() as deaf, contextlib.ExitStack() as stack:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):  # who waits in its queue; the next one gets no answer at all
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        error, pauses = fails(server, "ok", base_url=url, retries=1, timeout=60)
    assert error.kind == "network" and len(pauses) == 1
    assert "no connection: TimeoutError('timed out')" in str(error)


def test_a_slow_answer_is_not_taken_for_no_connection(server, monkeypatch):
    monkeypatch.setattr(minitrace, "_CONNECT", 0.05)
    assert connect(server, "slow")[0]("x") == "echo: x"


def test_the_connection_is_kept_alive_while_the_server_thinks(server, monkeypatch):
    found, shut = [], socket.socket.shutdown

    def shutdown(self, how):
        if peer(self) == server.port:  # the server's own sockets are shut in this process too
            found.append(self.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            if hasattr(socket, "TCP_KEEPIDLE"):  # the default of two hours is of no use
                found.append(self.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
        return shut(self, how)

    def peer(connection):
        with contextlib.suppress(OSError):
            return connection.getpeername()[1]

    monkeypatch.setattr(socket.socket, "shutdown", shutdown)
    fails(server, "silent", timeout=0.3)
    assert found[:1] == [1] and found[1:] in ([60], [])


SERVE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from llm_server import MODES, Server
if sys.argv[2] != "0":
    MODES["dripping_body"] = lambda handler, request: handler.send(200, handler.good(request))
with Server(port=int(sys.argv[2])) as server:
    print(server.port, flush=True)
    time.sleep(60)
"""


def serve(port=0):
    """A server in a process of its own: the first one drips, one on a known port answers."""
    command = [sys.executable, "-c", SERVE, str(ROOT / "tests"), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_a_server_killed_in_the_middle_of_an_answer_heals():
    process, port = serve()
    processes, pauses = [process], []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:  # at the first repetition nobody was there
            processes.append(serve(port)[0])

    killer = threading.Timer(0.5, process.kill)
    killer.start()
    try:
        base = f"http://127.0.0.1:{port}/v1"
        llm = LLM("openai/dripping_body", base_url=base, api_key=KEY, sleep=pause, timeout=30)
        assert llm("hello") == "echo: hello" and len(pauses) == 2
    finally:
        killer.cancel()
        for each in processes:
            each.kill()
            each.communicate()


@pytest.mark.parametrize(
    "mode, kind",
    [
        ("empty", "empty"),
        ("blank", "empty"),
        ("no_choices", "empty"),
        ("tool", "empty"),
        ("refused", "refused"),
        ("filtered", "filtered"),
        ("cut_off", "cut off"),
        ("ends_model_context_window_exceeded", "cut off"),
        ("ends_sensitive", "filtered"),
        ("ends_SAFETY", "filtered"),
    ],
)
def test_empty_refused_filtered_and_cut_off_are_told_apart(server, mode, kind):
    assert fails(server, mode)[0].kind == kind
    if mode not in ("filtered",):
        assert fails(server, mode, "anthropic")[0].kind == kind


def test_a_text_cut_short_is_given_and_says_so(server):
    for protocol in ("openai", "anthropic"):
        llm, _ = connect(server, "cut_short", protocol)
        reply = llm("hello")
        assert reply == "half a th" and reply.finish_reason == "length"


def test_each_servers_word_for_a_whole_text_is_stop(server):
    llm, _ = connect(server, "ends_eos")
    assert llm("hello").finish_reason == "stop"


def test_bodies_are_bounded(server):
    before = time.monotonic()
    error, _ = fails(server, "endless")
    took = time.monotonic() - before
    assert error.kind == "unreadable" and "larger than 16,777,216 bytes" in str(error)
    assert took < patient(3)


@pytest.mark.parametrize("mode", ["packed", "packed_unasked", "packed_cut", "packed_bomb"])
def test_an_answer_that_is_compressed_unasked_is_not_unpacked(server, mode):
    error, _ = fails(server, mode)
    assert error.kind == "unreadable" and str(error).isprintable() and len(server.requests) == 1


def test_a_lone_surrogate_cannot_break_a_file(server):
    llm, _ = connect(server, "surrogate")
    assert llm("hello").encode() == b"lone \\ud800 surrogate"


# ---- Parameters refused by name


def test_a_refused_name_is_replaced_once_and_remembered(server):
    llm, pauses = connect(server, "only_max_completion_tokens", max_tokens=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm("a"), llm("b")
    sent = [set(r["body"]) & {"max_tokens", "max_completion_tokens"} for r in server.requests]
    assert (
        sent == [{"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"}]
        and not pauses
    )


@pytest.mark.parametrize(
    "mode, option",
    [
        ("no_temperature", "temperature"),
        ("no_seed", "random_seed"),
        ("no_heat_any_more", "temperature"),
        ("no_top_p_any_more", "top_p"),
        ("no_effort", "reasoning_effort"),
    ],
)
def test_a_refused_parameter_is_left_out_with_a_warning(server, mode, option):
    given = option.removeprefix("random_")
    llm, _ = connect(server, mode, retries=0, **{given: "1" if "_effort" in given else 1})
    with pytest.warns(UserWarning, match=f"refuses '{option}': it is left out from now on"):
        llm("a")
    llm("b")
    sent = [{given, option} & r["body"].keys() for r in server.requests]
    assert [*map(len, sent)] == [1] * len({given, option}) + [0, 0]


def test_a_deprecated_parameter_is_left_out_on_anthropic_too(server):
    llm, _ = connect(server, "no_heat_any_more", "anthropic", retries=0, temperature=0)
    words = r"refuses 'temperature': .* \(`temperature` is deprecated for this model"
    with pytest.warns(UserWarning, match=words) as caught:
        llm("a")
    assert caught[0].filename == __file__  # the line that asked
    llm("b")
    assert ["temperature" in r["body"] for r in server.requests] == [True, False, False]


def test_mistral_calls_the_seed_by_another_name(server):
    llm, _ = connect(server, "mistral_seed", seed=7)
    llm("x"), llm("x")
    sent = [r["body"].get("random_seed", r["body"].get("seed")) for r in server.requests]
    assert sent == [7] * 3 and "seed" not in server.requests[-1]["body"]
    with pytest.raises(TypeError, match="no option 'random_seed': known are max_tokens, .*, seed,"):
        LLM("mistral/ok", random_seed=7)


def test_both_names_refused_leaves_none(server):
    llm, _ = connect(server, "no_max", max_tokens=9)
    with pytest.warns(UserWarning, match="max_completion_tokens"):
        llm("a")
    assert len(server.requests) == 3 and "max_completion_tokens" not in server.requests[-1]["body"]


def test_a_refused_value_or_extra_is_an_error(server):
    error, _ = fails(server, "cool", temperature=2)
    assert "must be at most 1" in str(error) and len(server.requests) == 1
    server.requests.clear()
    error, _ = fails(server, "ok", extra={"top_k": 3})
    assert (
        "Unrecognized request argument supplied: top_k" in str(error) and len(server.requests) == 1
    )


def test_learning_from_many_threads(server):
    llm, _ = connect(server, "only_max_completion_tokens", max_tokens=9)
    assert len(llm.map(["x"] * 50, workers=20)) == 50


# ---- It is safe


def leaks(thing, key=KEY):
    return key in repr(thing) or key in str(thing)


def everything_about(error):
    """What a crash reporter could print: frames and their variables, chained errors, attributes."""
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(whole.format()) + repr(vars(error)) + repr(error.args) + repr(error.__context__)


@pytest.mark.parametrize(
    "mode",
    [
        "echoes_key_in_error",
        "echoes_key_in_html",
        "echoes_key_in_address",
        "reset",
        "no_http",
        "page",
        "silent",
        "redirect302",
        "quota",
        "dripping_body",
        "cut_body",
        "endless",
    ],
)
def test_no_key_in_any_traceback(server, mode):
    error, _ = fails(server, mode, timeout=0.25, retries=1)
    assert KEY not in everything_about(error)
    assert error.__context__ is None


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": KEY, "heat": 1},
        {"api_key": KEY, "timeout": -1},
        {"headers": {"api-key": KEY}, "heat": 1},
    ],
)
def test_no_key_in_the_traceback_of_the_constructor(settings):
    with pytest.raises((TypeError, ValueError)) as caught:
        LLM("openai/ok", **settings)
    frames = list(traceback.walk_tb(caught.value.__traceback__))[1:]  # but the caller's own frame
    assert frames and not any(KEY in repr(frame.f_locals) for frame, _ in frames)


def frames_of(error):
    return [
        frame
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == minitrace.__file__
    ]


@pytest.mark.parametrize("bad", ["{}\nX: y", "{}\r\n z", "{}\0", "{}\u00e9", "{}\u20ac", "{}\n x"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(server, bad):
    error, _ = fails(server, "ok", api_key=bad.format(KEY))
    assert "holds a line break" in str(error) and error.kind == "setup" and server.requests == []
    assert not leaks(error) and not any(KEY in repr(frame.f_locals) for frame in frames_of(error))
    fails(server, "ok", headers={"X-Bad": "a\nb"})
    fails(server, "ok", headers={"X Bad": "a"})
    assert server.requests == []
    llm, _ = connect(server, api_key=f"  {KEY}\n")
    assert llm("x") == "echo: x"  # a line break around a key is only how files end


def test_no_key_in_repr_vars_pickle_or_copy(server, monkeypatch):
    llm, _ = connect(
        server, temperature=0, headers={"X-Secret-Token": "tok-" + KEY}, sleep=time.sleep
    )
    llm("x")
    assert repr(llm) == "LLM('openai/ok', temperature=0)"
    data = pickle.dumps(llm)
    assert not leaks(vars(llm)) and KEY.encode() not in data
    assert copy.deepcopy({"llm": llm})["llm"] is llm
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert pickle.loads(data)("x") == "echo: x"  # it reads the key from the environment again


def test_an_answer_that_echoes_the_key_is_redacted(server):
    for protocol in ("openai", "anthropic"):
        llm, _ = connect(server, "echoes_key", protocol)
        assert llm("hello") == "your key is Bearer [key]!"
    llm, _ = connect(server, "echoes_key")
    assert llm("slash") == "key Bearer [key]"  # written with escapes in JSON
    error, _ = fails(server, "echoes_key_in_error")
    assert "provided: Bearer [key]" in str(error)
    llm, _ = connect(server, "ok", headers={"X-Title": "hello world of tests"})
    assert llm("hello world of tests") == "echo: hello world of tests"  # no secret, no redaction


def test_a_key_does_not_travel_over_plain_http(monkeypatch):
    looked_up = []

    def look_up(*args):
        looked_up.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    far = "example.org 0.0.0.0.evil.example 127.1 127.0.0.1.evil.example 10.0.0.1 [::2] localhost.evil.example"
    for host in far.split():
        base = f"http://{host}/v1"
        with pytest.raises(LLMError, match=r"plain http would.*allow_http=True"):
            LLM("m", base_url=base, api_key=KEY)("x")
        with pytest.raises(LLMError, match="plain http"):
            LLM("m", base_url=base, headers={"Api-Key": KEY})("x")
        assert looked_up == []
        assert asked_at("m", base_url=base, api_key=KEY, allow_http=True).startswith(base)
        assert asked_at("m", base_url=base).startswith(base)  # no key, no secret
        looked_up.clear()
    assert "//127.0.0.1:4000/" in asked_at("m", base_url="http://0.0.0.0:4000", api_key=KEY)
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"):
        assert asked_at("m", base_url=f"http://{host}/v1", api_key=KEY)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(server, code):
    with Server() as other:
        server.elsewhere = other.url
        error, _ = fails(server, f"redirect{code}")
        assert other.requests == [] and error.status == code
        assert other.url in str(error) and "set base_url=" in str(error)


def test_no_proxy_before_the_loopback(server, monkeypatch):
    with Server(proxying=True) as proxy:
        for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        llm, _ = connect(server)
        assert llm("x") == "echo: x" and proxy.requests == []
        llm, _ = connect(server, base_url=server.url.replace("127.0.0.1", "localhost") + "/v1")
        assert llm("x") == "echo: x" and proxy.requests == []


def test_a_proxy_of_the_environment_is_used(server, monkeypatch):
    with Server(proxying=True) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//me:p%40ss@"))
        far = {"base_url": "http://far.example/v1", "allow_http": True}
        llm, _ = connect(server, **far)
        assert llm("x") == "echo: x"
        assert proxy.requests[-1]["path"] == "http://far.example/v1/chat/completions"
        assert proxy.requests[-1]["headers"]["proxy-authorization"] == "Basic bWU6cEBzcw=="
        monkeypatch.setenv("no_proxy", "far.example")
        assert (
            fails(server, "ok", **far, retries=0)[0].kind == "network" and len(proxy.requests) == 1
        )
        monkeypatch.setenv("http_proxy", "socks5://me:topsecretpw@127.0.0.1:9")
        monkeypatch.delenv("no_proxy")
        error, _ = fails(server, "ok", **far, retries=0)
        words = "the proxy 127.0.0.1:9: no connection: 'unknown url type: socks5'; see the proxy: "
        assert words + "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names it" in str(error)
        assert "topsecretpw" not in str(error)


def test_one_variable_may_name_the_proxy_for_every_scheme(server, monkeypatch):
    far = {"base_url": "http://far.example/v1", "allow_http": True}
    for name in ("ALL_PROXY", "all_proxy"):
        with Server(proxying=True) as proxy, Server(proxying=True) as nearer:
            monkeypatch.setenv(name, proxy.url)
            assert connect(server, **far)[0]("x") == "echo: x"
            assert proxy.requests[-1]["path"] == "http://far.example/v1/chat/completions"
            monkeypatch.setenv("no_proxy", "far.example")
            fails(server, "ok", **far, retries=0)
            monkeypatch.delenv("no_proxy")
            monkeypatch.setenv("http_proxy", nearer.url)  # the one of the scheme goes first
            assert connect(server, **far)[0]("x") == "echo: x"
            assert len(proxy.requests) == len(nearer.requests) == 1
            monkeypatch.delenv("http_proxy")
        monkeypatch.delenv(name)


PROXIES = {"closed": "no connection", "guarded": "407", "socks": "unknown url type: socks5"}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("fault", PROXIES)
def test_a_proxy_that_fails_is_named_and_not_asked_again(server, monkeypatch, fault, scheme):
    with Server(proxying="guarded") as proxy:
        place = f"127.0.0.1:{proxy.port}"
        monkeypatch.setenv("ALL_PROXY", f"{'socks5' if fault == 'socks' else 'http'}://{place}")
        if fault == "closed":
            proxy.__exit__()
        far = {"base_url": f"{scheme}://far.example/v1", "allow_http": True}
        error, pauses = fails(server, "ok", **far)
    assert (error.kind, pauses) == ("network", []) and f"the proxy {place}: " in str(error)
    assert "see the proxy: HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names it" in str(error)
    if (fault, scheme) != ("socks", "https"):  # there it is taken for one that speaks HTTP
        assert PROXIES[fault] in str(error)


def test_an_answer_that_breaks_off_behind_a_proxy_is_asked_for_again(server, monkeypatch):
    with Server(proxying=True) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        far = {"base_url": "http://far.example/v1", "allow_http": True}
        llm, pauses = connect(server, "cut_chunks*2", **far)
        assert llm("x") == "echo: x" and len(pauses) == 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=far.example",
        "-addext",
        "subjectAltName=DNS:far.example,DNS:api.openai.com,IP:127.0.0.1",
        "-keyout",
        str(folder / "key.pem"),
        "-out",
        str(folder / "cert.pem"),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return str(folder / "cert.pem"), context


def test_https_directly_and_through_a_tunnel(certificate, monkeypatch):
    path, context = certificate
    with Server(tls=context) as server, Server(proxying=True) as proxy:
        error, pauses = fails(server, "ok")
        assert (
            "CERTIFICATE_VERIFY_FAILED" in str(error)
            and "SSL_CERT_FILE" in str(error)
            and pauses == []
        )
        monkeypatch.setenv("SSL_CERT_FILE", path)
        llm, _ = connect(server)
        assert llm("x") == "echo: x"
        error, _ = fails(server, "dripping_headers", timeout=0.4)
        assert error.kind == "timeout"
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//me:pw@"))
        llm, _ = connect(server, base_url=f"https://far.example:{server.port}/v1")
        assert llm("through") == "echo: through"
        assert proxy.requests[-1]["method"] == "CONNECT" and not leaks(proxy.requests)
        assert proxy.requests[-1]["headers"]["proxy-authorization"] == "Basic bWU6cHc="
        assert "proxy-authorization" not in server.requests[-1]["headers"]


def test_no_certificates_are_loaded_where_nothing_is_encrypted(server, monkeypatch):
    loaded = []
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: loaded.append(1))
    llm, _ = connect(server)
    assert llm("x") == "echo: x" and loaded == []
    with Server(proxying=True) as proxy:
        monkeypatch.setenv("all_proxy", proxy.url)
        llm, _ = connect(server, base_url="http://far.example/v1", allow_http=True)
        assert llm("x") == "echo: x" and loaded == []


def test_openai_itself_is_never_sent_max_tokens(certificate, monkeypatch):
    path, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", path)
    with Server(tls=context) as server, Server(proxying=True, goal=server.port) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        assert LLM("openai/ok", api_key=KEY, max_tokens=5)("x") == "echo: x"
        (asked,) = server.requests
        assert proxy.requests[0]["path"] == "api.openai.com:443"
    assert asked["body"]["max_completion_tokens"] == 5 and "max_tokens" not in asked["body"]


# ---- Concurrency


def test_hundreds_of_calls_from_forty_threads(server, slow):
    llm, _ = connect(server)
    prompts = [f"prompt {n}" for n in range(1000 if slow else 200)]
    assert llm.map(iter(prompts), workers=40) == [f"echo: {prompt}" for prompt in prompts]
    assert len(server.requests) == len(prompts)


def test_map_stops_at_the_first_failure():
    ask = Script(["ok"] * 3)
    with pytest.raises(LLMError, match="no reply for call 4"):
        ask.map(["x"] * 100, workers=1)
    assert len(ask.asked) == 4 and ask.map([]) == []

    class Fails(LanguageModel):
        calls = 0

        def complete(self, messages, options):
            self.calls += 1
            if messages[0]["content"] == "0":
                raise LLMError("no")
            time.sleep(0.05)
            return Reply("late")

    llm = Fails()
    with pytest.raises(LLMError, match="no"):
        llm.map(map(str, range(100)), workers=4)
    assert llm.calls <= 8


def test_map_and_acall_carry_the_context():
    seen = contextvars.ContextVar("seen", default=None)

    class Looks(LanguageModel):
        def complete(self, messages, options):
            return Reply(str(seen.get()))

    seen.set("here")
    assert Looks().map(["x"] * 3, workers=2) == ["here"] * 3
    assert asyncio.run(Looks().acall("x")) == "here"


def test_acall_leaves_the_loop_free_and_can_be_cancelled(server, monkeypatch):
    crashes = []
    monkeypatch.setattr(threading, "excepthook", crashes.append)
    seconds = patient(1.8)
    llm, _ = connect(server, "silent", timeout=seconds)
    good, _ = connect(server)

    async def story():
        late = asyncio.ensure_future(llm.acall("x"))
        replies = await asyncio.gather(*(good.acall(str(n)) for n in range(20)))
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        return replies

    before = time.monotonic()
    assert asyncio.run(story()) == [f"echo: {n}" for n in range(20)]
    assert time.monotonic() - before < seconds - 0.1
    time.sleep(max(0, before + seconds + 0.2 - time.monotonic()))
    assert crashes == []  # the call that nobody waits for has ended, in peace


def test_a_call_in_flight_does_not_keep_a_program_from_ending(server):
    program = f"""
import threading, time, sys
sys.path.insert(0, {os.path.dirname(minitrace.__file__)!r})
from minitrace import LLM
llm = LLM("openai/silent", base_url={server.url + "/v1"!r}, api_key={KEY!r})
async def main():
    import asyncio
    asyncio.ensure_future(llm.acall("x"))
    await asyncio.sleep(0.3)
import asyncio; asyncio.run(main()); print("ended")
"""
    before = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20
    )
    took = time.monotonic() - before
    assert done.stdout == "ended\n" and done.stderr == "" and took < patient(8)


# ---- Script


def test_a_script_answers_in_order_or_by_pattern():
    ask = Script(["first", (r"\bsum\b", "42"), "second", ("sum|product", "never"), ("nothing", "")])
    assert [ask("hi"), ask("a sum"), ask("ho"), ask("sum again"), ask("a product")] == [
        "first",
        "42",
        "second",
        "42",
        "never",
    ]
    assert ask("nothing") == ""
    with pytest.raises(LLMError, match=r"the script has no reply for call 7: 'more'") as caught:
        ask("more")
    assert caught.value.kind == "miss" and len(ask.asked) == 7
    assert ask([{"role": "system", "content": "sum"}, {"role": "user", "content": "x"}]) == "42"


def test_a_script_of_one_text_gives_the_whole_of_it():
    assert Script("yes")("Well?") == "yes"


def test_a_script_gives_each_reply_once_to_many_threads():
    ask = Script([str(n) for n in range(500)])
    assert sorted(ask.map(["x"] * 500, workers=40), key=int) == [str(n) for n in range(500)]


# ---- The stub


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


def test_feedback_that_does_not_say_which_way_changes_no_number():
    x = node(3, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=StubLLM())
    optimizer.backward(x + 0, "hm")
    proposal = optimizer.propose()
    assert proposal == {} and "the feedback does not say which way" in proposal.reasoning


def test_choices_and_booleans_that_were_not_tried():
    flag = node(False, name="flag", trainable=True)
    color = node("red", name="color", trainable=True, choices=["red", "green", "blue"])
    optimizer, seen = OptoPrime([flag, color], llm=StubLLM()), [(False, "red")]
    for _ in range(2):
        optimizer.zero_feedback()
        optimizer.backward(operators.make_list(flag, color), "wrong")
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


def test_the_environment_names_the_language_model(monkeypatch, server):
    monkeypatch.setenv("MINITRACE_MODEL", "openai/suggests")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    x = node(3, "x", trainable=True)
    optimizer = OptoPrime([x])
    optimizer.backward(x + 1, "too low")
    assert optimizer.step() == {x: 23}


UNCONFIGURED = """
import warnings
from minitrace import OptoPrime, node
x = node(3, name="x", trainable=True)
optimizer = OptoPrime([x])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        optimizer.zero_feedback()
        optimizer.backward(x + 1, "too low")
        optimizer.step()
print(x.data, [str(each.message) for each in caught])
"""


def test_without_a_language_model_the_stub_answers_and_one_warning_says_so():
    environment = {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-never-spend-this"}
    done = subprocess.run(
        [sys.executable, "-c", UNCONFIGURED], capture_output=True, text=True, env=environment
    )
    value, _, told = done.stdout.partition(" ")
    assert int(value) > 3 and "MINITRACE_MODEL" in told, done.stderr
    assert told.count("no language model is configured") == 1


def test_only_urllib_speaks_http():
    tree = ast.parse((ROOT / "minitrace.py").read_text(encoding="utf-8"))
    named = [each.names for each in ast.walk(tree) if isinstance(each, ast.Import)]
    named += [[ast.alias(each.module)] for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)]
    assert not [alias.name for each in named for alias in each if alias.name.startswith("http")]


# ---- The official clients' types accept both sides


def test_the_openai_package_accepts_both_sides(server):
    types = pytest.importorskip("openai.types.chat")
    pydantic = pytest.importorskip("pydantic")
    from openai.types.chat.completion_create_params import (
        CompletionCreateParamsNonStreaming as Params,
    )

    options = {
        "temperature": 0,
        "top_p": 1,
        "max_tokens": 9,
        "stop": ["x"],
        "seed": 1,
        "reasoning_effort": "low",
    }
    llm, _ = connect(server, **options, response_format={"type": "json_object"})
    llm([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    sent = server.requests[-1]["body"]
    accepted = pydantic.TypeAdapter(Params).validate_python(sent)
    assert set(accepted) == set(sent)
    types.ChatCompletion.model_validate(answer_openai(sent), strict=True)
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key=KEY, base_url=server.url + "/v1", max_retries=0)
    answer = client.chat.completions.create(**sent)
    assert answer.choices[0].message.content == "echo: u" == llm("u")


def test_the_anthropic_package_accepts_both_sides(server):
    anthropic = pytest.importorskip("anthropic")
    pydantic = pytest.importorskip("pydantic")
    from anthropic.types import Message
    from anthropic.types.message_create_params import MessageCreateParamsNonStreaming as Params

    llm, _ = connect(server, protocol="anthropic", max_tokens=9, stop="x")
    llm([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    sent = server.requests[-1]["body"]
    accepted = pydantic.TypeAdapter(Params).validate_python(sent)
    assert set(accepted) == set(sent)
    Message.model_validate(answer_anthropic(sent))
    client = anthropic.Anthropic(api_key=KEY, base_url=server.url, max_retries=0)
    answer = client.messages.create(**sent)
    ours, theirs = server.requests[-2]["headers"], server.requests[-1]["headers"]
    assert "".join(b.text for b in answer.content if b.type == "text") == "echo: u"
    assert ours["anthropic-version"] == theirs["anthropic-version"]
    assert ours["authorization"] == theirs["authorization"]


# ---- The test server itself


def test_the_server_misbehaves_in_many_ways_and_is_strict(server):
    assert len(MODES) >= 25
    base = {"model": "ok", "messages": [{"role": "user", "content": "x"}]}
    wrong = [
        {**base, "frobnicate": 1},
        {**base, "max_tokens": "9"},
        {**base, "messages": []},
        {"model": "ok"},
        {**base, "max_tokens": 1, "max_completion_tokens": 1},
        {**base, "temperature": 3},
        {**base, "messages": [{"role": "robot", "content": "x"}]},
        {**base, "messages": [{"role": "user", "content": ""}]},
    ]

    def post(path, body, headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        with contextlib.closing(connection):
            headers = {"content-type": "application/json", **headers}
            connection.request("POST", path, json.dumps(body).encode(), headers)
            return connection.getresponse().status

    chat, messages = "/v1/chat/completions", "/v1/messages"
    key = {"authorization": f"Bearer {KEY}"}
    assert [post(chat, body, key) for body in wrong] == [400] * len(wrong)
    assert [post(chat, base, key), post(chat, base, {}), post("/v1/v1", base, key)] == [
        200,
        401,
        404,
    ]
    version, good = {"anthropic-version": "2026-10-21"}, {**base, "max_tokens": 5}
    assert post(messages, good, key | version) == 200 and post(messages, good, key) == 400
    wrong = [
        base,
        {**good, "stop": ["x"]},
        {**good, "messages": [{"role": "system", "content": "x"}, *base["messages"]]},
        {**good, "messages": [{"role": "assistant", "content": "x"}]},
    ]
    assert [post(messages, body, key | version) for body in wrong] == [400] * 4
    assert set(PROTOCOLS) == {"openai", "anthropic"}
