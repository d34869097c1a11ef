"""Language models over HTTP, cassettes, scripts, budgets, and a server that misbehaves."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import json
import os
import pickle
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import warnings
from itertools import count

import pytest

import minitrace
from llm_server import KEY, MODES, Server, answer_anthropic, answer_openai
from minitrace import (
    LLM,
    PROTOCOLS,
    PROVIDERS,
    Budget,
    BudgetError,
    LLMError,
    Replay,
    Reply,
    Script,
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
    options = dict(temperature=0.5, top_p=0.9, max_tokens=99, stop="END")
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
        try:
            LLM(name, base_url=base, api_key=KEY, retries=0)("x")
        except LLMError:
            pass  # the server has no language model of this name
        assert server.requests[-1]["body"]["model"] == sent


# ---- Who is asked, and with which key: the environment


def test_nothing_is_read_or_sent_before_the_first_call(server, monkeypatch):
    llm = LLM()
    monkeypatch.setenv("MINITRACE_MODEL", "openai/ok")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/v1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-One: 1\nX-Two: a: b\nrubbish")
    assert server.requests == []
    assert llm("x") == "echo: x"
    headers = server.requests[-1]["headers"]
    assert headers["openai-organization"] == "org-1" and headers["openai-project"] == "proj-1"
    assert headers["x-one"] == "1" and headers["x-two"] == "a: b"


def test_no_language_model_says_what_to_set():
    with pytest.raises(
        LLMError, match=r"pass LLM\('provider/name'\), or set MINITRACE_MODEL.*openai, anthropic"
    ):
        LLM()("x")
    with pytest.raises(LLMError, match="there is no key: pass api_key= or set ANTHROPIC_API_KEY"):
        LLM("anthropic/x")("x")
    with pytest.raises(LLMError, match="base_url=: http"):
        LLM("just-a-name")("x")


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_each_row_of_the_table_is_honoured(server, monkeypatch, provider):
    row = minitrace._Provider(*PROVIDERS[provider])
    route = {"anthropic": "/v1/messages"}.get(row.protocol, "/chat/completions")
    for variable in reversed(row.keys.split()):  # the first that is set wins
        monkeypatch.setenv(variable, f"key-in-{variable}")
        llm = LLM(f"{provider}/m", base_url=row.base_url or "https://h/v1")
        found = llm._route()
        assert found.headers["authorization"] == f"Bearer key-in-{variable}"
        assert found.url.endswith(route) and found.url.count("//") == 1
    if row.variable:
        monkeypatch.setenv(row.variable, server.url + ("/v1" if row.adapt is str else ""))
        expected = server.url + {"gemini": "/v1beta/openai", "ollama": "/v1", "anthropic": ""}.get(
            provider, "/v1"
        )
        assert LLM(f"{provider}/m")._route().url == expected + route


def test_anthropic_takes_a_token_too(server, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    assert LLM("anthropic/ok")("x") == "echo: x"
    old = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    LLM("anthropic/ok", headers=old)("x")
    assert "authorization" not in server.requests[-1]["headers"]
    assert server.requests[-1]["headers"]["anthropic-version"] == "2023-06-01"


@pytest.mark.parametrize(
    "host, base",
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":5678", "http://127.0.0.1:5678"),
        ("http://h", "http://h:80"),
        ("https://h", "https://h:443"),
        ("https://h:1/p/", "https://h:1/p"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("[::1]:99", "http://[::1]:99"),
        ("h:12", "http://h:12"),
    ],
)
def test_ollama_host_in_its_forms(monkeypatch, host, base):
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert LLM("ollama/m")._route().url == base + "/v1/chat/completions"


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
    "packed_cut",
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
    "mode", ["chunked", "packed", "packed_unasked", "bom", "no_finish", "no_usage", "parts"]
)
def test_odd_answers_are_understood(server, mode):
    llm, _ = connect(server, mode)
    reply = llm("hello")
    assert reply in ("echo: hello", "in parts") and reply.finish_reason == "stop"
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
        ("status503", "try later"),
        ("page", "Welcome to nginx!"),
        ("page", "see that base_url= points at the API"),
        ("huge_error", "xxxxx"),
        ("other_shape", "hello"),
        ("deep", "unreadable"),
        ("a_list", "unreadable"),
        ("wrong_types", "unreadable"),
    ],
)
def test_errors_say_what_to_do_in_the_servers_words(server, mode, words):
    error, _ = fails(server, mode, retries=0)
    assert words in " ".join(str(error).split()) and len(str(error)) < 1200


@pytest.mark.parametrize(
    "mode", ["quota", "page", "endless", "packed_bomb", "empty", "refused", "never"]
)
def test_hopeless_cases_are_asked_once(server, mode):
    _, pauses = fails(server, mode)
    assert pauses == [] and len(server.requests) == 1


def test_an_error_inside_a_success_is_an_error(server):
    error, pauses = fails(server, "error_in_200")
    assert (error.kind, error.status, len(pauses)) == ("status", 502, 4)
    error, pauses = fails(server, "error_text_in_200")
    assert (error.kind, error.status, pauses) == ("status", 200, [])


def test_a_server_may_order_another_try(server):
    llm, pauses = connect(server, "again*1")
    assert llm("hello") == "echo: hello" and len(pauses) == 1


@pytest.mark.parametrize(
    "mode, low, high",
    [
        ("asks_seconds", 2.5, 2.5),
        ("asks_ms", 1.5, 1.5),
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
    error, pauses = fails(server, "asks_hour")
    assert error.status == 429 and pauses == []


def test_retries_are_counted(server):
    for retries in (0, 2):
        server.requests.clear()
        fails(server, "status500", retries=retries)
        assert len(server.requests) == retries + 1


@pytest.mark.parametrize("mode", ["silent", "dripping_line", "dripping_headers", "dripping_body"])
def test_the_deadline_ends_the_call(server, mode):
    before = time.monotonic()
    error, _ = fails(server, mode, timeout=0.4)
    assert 0.3 < time.monotonic() - before < 1.0
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
    assert time.monotonic() - before < 1.3


def test_a_hanging_name_look_up_is_left_behind(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(5))
    before = time.monotonic()
    with pytest.raises(LLMError, match="no whole answer in time"):
        LLM("m", base_url="https://slow.example/v1", api_key=KEY, timeout=0.3)("x")
    assert time.monotonic() - before < 1


def test_nothing_is_sent_after_the_deadline(server, monkeypatch):
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: time.sleep(0.5) or look_up(*a))
    assert fails(server, "ok", timeout=0.2)[0].kind == "timeout"
    time.sleep(0.6)
    assert server.requests == []


def test_nobody_there(server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        error, pauses = fails(server, "ok", base_url=url, retries=1)
    assert error.kind == "network" and "see that the server runs" in str(error) and len(pauses) == 1


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


@pytest.mark.parametrize("mode", ["endless", "packed_bomb"])
def test_bodies_are_bounded(server, mode):
    before = time.monotonic()
    error, _ = fails(server, mode)
    assert error.kind == "unreadable" and "larger than 16,777,216 bytes" in str(error)
    assert time.monotonic() - before < 3


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


@pytest.mark.parametrize("mode, option", [("no_temperature", "temperature"), ("no_seed", "seed")])
def test_a_refused_parameter_is_left_out_with_a_warning(server, mode, option):
    llm, _ = connect(server, mode, retries=0, **{option: 1})
    with pytest.warns(UserWarning, match=f"refuses '{option}': it is left out from now on"):
        llm("a")
    llm("b")
    assert [option in r["body"] for r in server.requests] == [True, False, False]


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


def test_openai_itself_is_never_sent_max_tokens(monkeypatch):
    llm = LLM("openai/m", api_key=KEY, max_tokens=5)
    route = llm._route()
    sent = llm._request(route, [{"role": "user", "content": "x"}], llm.options | {"extra": {}})
    assert "max_tokens" not in sent and sent["max_completion_tokens"] == 5


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
    error, _ = fails(server, mode, timeout=0.5, retries=1)
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


def test_no_key_in_a_recording(server, tmp_path):
    llm, _ = connect(server, "echoes_key")
    Replay(tmp_path / "c.jsonl", live=llm)("hello")
    assert (
        KEY not in (tmp_path / "c.jsonl").read_text()
        and "[key]" in (tmp_path / "c.jsonl").read_text()
    )


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(server, code):
    with Server() as other:
        server.elsewhere = other.url
        error, _ = fails(server, f"redirect{code}")
        assert other.requests == [] and error.status == code
        assert other.url in str(error) and "set base_url=" in str(error)


def test_a_key_does_not_travel_over_plain_http(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("a name was looked up"))
    for host in (
        "example.org",
        "0.0.0.0",
        "127.1",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[::2]",
        "localhost.evil.example",
    ):
        with pytest.raises(LLMError, match="plain http would.*allow_http=True"):
            LLM("m", base_url=f"http://{host}/v1", api_key=KEY)("x")
        with pytest.raises(LLMError, match="plain http"):
            LLM("m", base_url=f"http://{host}/v1", headers={"Api-Key": KEY})("x")
        assert LLM("m", base_url=f"http://{host}/v1", api_key=KEY, allow_http=True)._route()
        assert LLM("m", base_url=f"http://{host}/v1")._route()  # no key, no secret
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"):
        assert LLM("m", base_url=f"http://{host}/v1", api_key=KEY)._route()


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
        far = dict(base_url="http://far.example/v1", allow_http=True)
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
        assert "a proxy must have an http:// address, not socks5://" in str(
            error
        ) and "topsecretpw" not in str(error)


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
        "subjectAltName=DNS:far.example,IP:127.0.0.1",
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


# ---- Concurrency


def test_a_thousand_calls_from_forty_threads(server):
    llm, _ = connect(server)
    prompts = [f"prompt {n}" for n in range(1000)]
    assert llm.map(iter(prompts), workers=40) == [f"echo: {prompt}" for prompt in prompts]
    assert len(server.requests) == 1000


def test_map_stops_at_the_first_failure():
    asked = Script([("bad", ""), ("good", "ok")]).asked
    ask = Script(["ok"] * 3)
    with pytest.raises(LLMError, match="no reply for call 4"):
        ask.map(["x"] * 100, workers=1)
    assert len(ask.asked) == 4 and asked == []
    assert ask.map([]) == []

    class Fails(minitrace._LanguageModel):
        calls = 0

        def _ask(self, messages, options):
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

    class Looks(minitrace._LanguageModel):
        def _ask(self, messages, options):
            return Reply(str(seen.get()))

    seen.set("here")
    assert Looks().map(["x"] * 3, workers=2) == ["here"] * 3
    assert asyncio.run(Looks().acall("x")) == "here"


def test_acall_leaves_the_loop_free_and_can_be_cancelled(server, monkeypatch):
    crashes = []
    monkeypatch.setattr(threading, "excepthook", crashes.append)
    llm, _ = connect(server, "silent", timeout=0.8)
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
    assert time.monotonic() - before < 0.7
    time.sleep(1)
    assert crashes == []  # the call that nobody waits for has ended, in peace


def test_a_call_in_flight_does_not_keep_a_program_from_ending(server):
    program = f"""
import threading, time, sys
sys.path.insert(0, {os.path.dirname(minitrace.__file__)!r})
from {minitrace.__name__} import LLM
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
    assert done.stdout == "ended\n" and done.stderr == "" and time.monotonic() - before < 8


def test_importing_is_light():
    heavy = "urllib.request http.client ssl logging asyncio concurrent.futures difflib"
    heavy += " email.utils zlib dataclasses inspect"
    program = f"""
import sys; sys.path.insert(0, {os.path.dirname(minitrace.__file__)!r})
before = set(sys.modules)
import {minitrace.__name__}
print(sorted(set({heavy!r}.split()) & (set(sys.modules) - before)))
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=20
    )
    assert done.stdout == "[]\n", done.stderr


# ---- Replay


def test_a_cassette_replays_offline_by_messages_options_and_turn(tmp_path):
    path = tmp_path / "c.jsonl"
    live = Replay(path, live=Script(["one", "two", "three", "four"]))
    said = [live("a"), live("a"), live("b"), live("a", temperature=1)]
    assert said == ["one", "two", "three", "four"]
    again = Replay(path)
    with pytest.raises(LLMError):
        again("a", temperature=2)
    assert [again("a", temperature=1), again("b"), again("a"), again("a")] == [
        "four",
        "three",
        "one",
        "two",
    ]
    with pytest.raises(
        LLMError, match=r"no record 3 of this call; closest to it is\nthe same"
    ) as caught:
        again("a")
    assert caught.value.kind == "miss"


def test_a_record_is_a_line_that_a_person_can_read(tmp_path, server):
    llm, _ = connect(server)
    Replay(tmp_path / "c.jsonl", live=llm)("¿qué? \ud800", temperature=0)
    text = (tmp_path / "c.jsonl").read_text("utf-8")
    record = json.loads(text)
    assert text.count("\n") == 1 and "¿qué?" in text
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record.pop("time"))
    assert record == {
        "messages": [{"role": "user", "content": "¿qué? \ud800"}],
        "options": {"temperature": 0},
        "reply": "echo: ¿qué? \\ud800",
        "model": "served-model",
        "usage": {"input_tokens": 11, "output_tokens": 7},
        "finish_reason": "stop",
    }
    reply = Replay(tmp_path / "c.jsonl")("¿qué? \ud800", temperature=0)
    assert (reply.model, reply.finish_reason, reply.usage["output_tokens"]) == (
        "served-model",
        "stop",
        7,
    )


def test_a_miss_shows_the_closest_prompt_as_a_diff(tmp_path):
    path = tmp_path / "c.jsonl"
    live = Replay(path, live=Script(["x"] * 3))
    live("Translate\nthe word cat\nto French"), live("What is love?"), live("Translate")
    with pytest.raises(LLMError) as caught:
        Replay(path)("Translate\nthe word dog\nto French")
    assert "-the word cat" in str(caught.value) and "+the word dog" in str(caught.value)
    assert "love" not in str(caught.value)
    with pytest.raises(LLMError, match="nothing, for it is empty"):
        Replay(tmp_path / "none.jsonl")("x")
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("cut", [1, 2, 7, 40, 90])
def test_a_torn_last_line_is_repaired(tmp_path, cut):
    path = tmp_path / "c.jsonl"
    Replay(path, live=Script(["one", "twö"])).map(["a", "b"], workers=1)
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    torn = Replay(path)
    assert torn("a") == "one" and path.read_bytes() == data[:-cut]  # reading changes nothing
    live = Replay(path, live=Script(["three"] * 2))
    live.map(["b", "c"], workers=1)
    lines = path.read_bytes().splitlines()
    replies = [json.loads(line)["reply"] for line in lines]
    assert replies == (["one", "twö", "three"] if cut == 1 else ["one", "three", "three"])


def test_a_broken_line_inside_is_named(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"messages": [], "options": {}, "reply": "x"}\nrubbish\n')
    with pytest.raises(LLMError, match=r"c\.jsonl, line 2: not the record of a call"):
        Replay(tmp_path / "c.jsonl")("x")


def test_many_threads_record_and_replay_the_same(tmp_path, server):
    llm, _ = connect(server)
    path = tmp_path / "c.jsonl"
    prompts = [f"p{n % 100}" for n in range(200)]
    one, two = Replay(path, live=llm), Replay(path, live=llm)
    one.map(prompts, workers=20)  # it looks into the file at its first call ...
    two.map(prompts, workers=20)  # ... and this one finds all of it recorded
    assert len(server.requests) == len(path.read_bytes().splitlines()) == 200
    again = Replay(path)
    assert again.map(prompts, workers=20) == [f"echo: {p}" for p in prompts]


def test_each_repeat_gets_its_own_record_from_threads(tmp_path):
    path = tmp_path / "c.jsonl"
    Replay(path, live=Script([str(n) for n in range(100)])).map(["same"] * 100, workers=16)
    assert len(path.read_text().splitlines()) == 100
    replies = Replay(path).map(["same"] * 100, workers=16)
    assert sorted(map(int, replies)) == list(range(100))
    with pytest.raises(LLMError, match="no record 101"):
        again = Replay(path)
        again.map(["same"] * 101, workers=4)


def test_a_failure_is_not_recorded(tmp_path):
    live = Replay(tmp_path / "c.jsonl", live=Script([]))
    with pytest.raises(LLMError):
        live("x")
    assert not (tmp_path / "c.jsonl").exists()
    plain = Replay(tmp_path / "c.jsonl", live=lambda messages, **options: "any callable will do")
    assert plain("x") == "any callable will do" == Replay(tmp_path / "c.jsonl")("x")


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


def test_a_script_gives_each_reply_once_to_many_threads():
    ask = Script([str(n) for n in range(500)])
    assert sorted(ask.map(["x"] * 500, workers=40), key=int) == [str(n) for n in range(500)]


# ---- Budget


def test_calls_are_counted_exactly_over_threads(monkeypatch):
    check = Budget._check
    slow = lambda self, cost: (check(self, cost), time.sleep(0.002))[0]  # noqa: E731
    monkeypatch.setattr(Budget, "_check", slow)  # a gap for other threads to slip into
    with Budget(calls=30) as budget:
        with pytest.raises(
            BudgetError, match=r"would pass 30 calls; spent so far: 30 calls of 30, [\d,]+ tokens"
        ):
            Script(["x"] * 99).map(["a"] * 99, workers=20)
    assert budget.spent["calls"] == 30


def test_a_stopped_call_is_never_made(server):
    llm, _ = connect(server)
    with Budget(calls=2):
        llm("a"), llm("b")
        with pytest.raises(BudgetError):
            llm("c")
    assert len(server.requests) == 2
    assert llm("d") == "echo: d"  # outside, nothing stops it


def test_a_budget_reaches_acall(server):
    llm, _ = connect(server)

    async def story():
        with Budget(calls=3) as budget:
            done = await asyncio.gather(*(llm.acall("x") for _ in range(5)), return_exceptions=True)
        return budget, done

    budget, done = asyncio.run(story())
    assert budget.spent["calls"] == 3 and sum(isinstance(d, BudgetError) for d in done) == 2


def test_tokens_and_money_are_corrected_after_each_call(server):
    llm, _ = connect(server)
    with Budget(tokens=2000, usd=1, prices={"openai/ok": (1e6, 2e6)}) as money:
        with pytest.raises(BudgetError, match=r"would pass 1 usd; spent so far: 0 calls"):
            llm("a")
    with Budget(tokens=9000, usd=1000, prices={"*": (10, 20)}) as budget:
        llm.map(["x"] * 10)
    assert money.spent["calls"] == 0
    assert (
        budget.spent["tokens"] == 180
        and abs(budget.spent["usd"] - (110 * 10 + 70 * 20) / 1e6) < 1e-12
    )
    assert budget.report() == "10 calls, 180 tokens of 9,000, $0.0025 of 1,000"


def test_tokens_pass_the_limit_by_the_calls_in_flight_at_most():
    ask = Script(["word " * 4000] * 99)  # 5,000 tokens a reply, far above any guess
    with Budget(tokens=20_000) as budget, pytest.raises(BudgetError):
        ask.map(["x"] * 99, workers=4)
    assert budget.spent["tokens"] <= 20_000 + 4 * 5_003
    with Budget(tokens=100) as budget, pytest.raises(BudgetError, match="would pass 100 tokens"):
        ask("x")  # the guess alone passes it
    assert budget.spent == {"calls": 0, "tokens": 0, "usd": 0, "seconds": budget.spent["seconds"]}


def test_a_missing_price_is_an_error_before_the_call():
    with (
        Budget(usd=1, prices={"openai/x": (1, 1)}),
        pytest.raises(BudgetError, match="no price for 'script'"),
    ):
        Script(["x"])("a")


def test_seconds_are_a_limit():
    ask = Script(["x"] * 3)
    with Budget(seconds=0.05):
        ask("a")
        time.sleep(0.06)
        with pytest.raises(
            BudgetError, match=r"would pass 0.05 seconds; spent so far: 1 calls, \d tokens, 0.1 s"
        ):
            ask("b")


def test_budgets_nest_and_none_counts_a_refused_call():
    ask = Script(["x"] * 9)
    with Budget(calls=5) as outer:
        with Budget(calls=2) as inner:
            ask("a"), ask("b")
            with pytest.raises(BudgetError, match="would pass 2 calls"):
                ask("c")
        ask("d")
    ask("e")
    assert (outer.spent["calls"], inner.spent["calls"]) == (3, 2)
    with outer:
        ask("f")
    assert outer.spent["calls"] == 4  # entered again, it goes on


def test_a_replay_that_asks_is_one_call(tmp_path):
    live = Replay(tmp_path / "c.jsonl", live=Script(["x"]))
    with Budget() as first:
        live("a")
    with Budget() as second:
        Replay(tmp_path / "c.jsonl")("a")
    assert first.spent["calls"] == second.spent["calls"] == 1
    assert first.spent["tokens"] == second.spent["tokens"]


def test_failed_calls_count_and_refused_ones_cost_nothing(server):
    with Budget() as budget:
        fails(server, "status400")
    assert (budget.spent["calls"], budget.spent["tokens"]) == (1, 0)
    with Budget() as budget:
        fails(server, "silent", timeout=0.2)
    assert budget.spent["calls"] == 1 and budget.spent["tokens"] > 400


# ---- The official clients' types accept both sides


def test_the_openai_package_accepts_both_sides(server):
    types = pytest.importorskip("openai.types.chat")
    pydantic = pytest.importorskip("pydantic")
    from openai.types.chat.completion_create_params import (
        CompletionCreateParamsNonStreaming as Params,
    )

    options = dict(temperature=0, top_p=1, max_tokens=9, stop=["x"], seed=1, reasoning_effort="low")
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
    url = server.url + "/v1/chat/completions"

    def post(url, body, headers):
        data = json.dumps(body).encode()
        route = (
            LLM("openai/x", api_key=KEY)
            ._route()
            ._replace(url=url, headers={"content-type": "application/json", **headers})
        )
        return minitrace._post(route, data, 5).status

    key = {"authorization": f"Bearer {KEY}"}
    assert [post(url, body, key) for body in wrong] == [400] * len(wrong)
    assert (post(url, base, key), post(url, base, {}), post(server.url + "/v1/v1", base, key)) == (
        200,
        401,
        404,
    )
    url, version = server.url + "/v1/messages", {"anthropic-version": "2026-10-21"}
    good = {**base, "max_tokens": 5}
    system = [{"role": "system", "content": "x"}, *base["messages"]]
    assert post(url, good, key | version) == 200 and post(url, good, key) == 400
    wrong = [
        base,
        {**good, "stop": ["x"]},
        {**good, "messages": system},
        {**good, "messages": [{"role": "assistant", "content": "x"}]},
    ]
    assert [post(url, body, key | version) for body in wrong] == [400] * 4
    assert set(PROTOCOLS) == {"openai", "anthropic"}


@pytest.mark.parametrize("text", ["Dear diary", "one\ntwo", "[1, 2"])
def test_a_file_that_is_no_cassette_is_left_as_it_is(tmp_path, text):
    path = tmp_path / "diary.txt"
    path.write_text(text)
    with pytest.raises(LLMError, match="line 1: not the record of a call"):
        Replay(path, live=Script(["hm"]))("Hello?")
    assert path.read_text() == text
