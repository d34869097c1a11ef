"""The companion minitrace_record: cassettes, and budgets over threads, tasks and one another."""

import asyncio
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from conftest import BARE, COMPANIONS, ROOT
from llm_server import KEY, Server
from minitrace_record import Budget, BudgetError, Replay

from minitrace import (
    LLM,
    LanguageModel,
    LLMError,
    MinitraceError,
    Reply,
    Script,
    around_calls,
    ask_until_usable,
)

tags = count()


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in list(os.environ):
        if re.search(r"(?i)_proxy$|API_KEY|AUTH_TOKEN|BASE_URL|CUSTOM_HEADERS|OPENAI", name):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def shared():
    with Server() as server:
        yield server


@pytest.fixture
def server(shared):
    shared.requests.clear()
    return shared


def connect(server, mode="ok", **settings):
    """A language model of the test server."""
    settings = {"api_key": KEY, "base_url": server.url + "/v1", "timeout": 20, **settings}
    name = mode if mode == "ok" else f"{mode}#{next(tags)}"
    return LLM(f"openai/{name}", sleep=lambda seconds: None, **settings)


def fails(server, mode, **settings):
    with pytest.raises(LLMError):
        connect(server, mode, **settings)("hello")


def test_alone_it_says_which_file_to_copy(tmp_path):
    shutil.copy(COMPANIONS / "minitrace_record.py", tmp_path)
    command = [sys.executable, "-c", "import minitrace_record"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    words = "ImportError: minitrace_record.py needs minitrace.py: copy it beside this file"
    assert done.stderr.splitlines()[-1] == words


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
        LLMError, match=r"no record 3 of this call; the closest is\nthe same"
    ) as caught:
        again("a")
    assert caught.value.kind == "miss"


def test_a_record_is_a_line_that_a_person_can_read(tmp_path, server):
    llm = connect(server)
    Replay(tmp_path / "c.jsonl", live=llm)("¿qué? \ud800", temperature=0)
    text = (tmp_path / "c.jsonl").read_text("utf-8")
    record = json.loads(text)
    assert text.count("\n") == 1 and "¿qué?" in text
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record.pop("time"))
    assert record == {
        "asked": "openai/ok",
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
    with pytest.raises(LLMError, match="of this call; there is no file: pass live= to record it$"):
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
    llm = connect(server)
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


def test_no_key_in_a_recording(server, tmp_path):
    llm = connect(server, "echoes_key")
    Replay(tmp_path / "c.jsonl", live=llm)("hello")
    assert (
        KEY not in (tmp_path / "c.jsonl").read_text()
        and "[key]" in (tmp_path / "c.jsonl").read_text()
    )


@pytest.mark.parametrize("text", ["Dear diary", "one\ntwo", "[1, 2"])
def test_a_file_that_is_no_cassette_is_left_as_it_is(tmp_path, text):
    path = tmp_path / "diary.txt"
    path.write_text(text)
    with pytest.raises(LLMError, match="line 1: not the record of a call"):
        Replay(path, live=Script(["hm"]))("Hello?")
    assert path.read_text() == text


CASSETTES = sorted((ROOT / "tutorial").rglob("*.jsonl"))


@pytest.mark.parametrize("path", CASSETTES, ids=lambda path: path.name)
def test_the_tutorial_finds_every_reply_it_recorded(path):
    again = Replay(path)
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        reply = again(record["messages"], **record["options"])
        assert reply == record["reply"] and vars(reply).items() <= record.items()


def test_a_cassette_is_a_language_model_that_can_be_pickled(tmp_path):
    live = Replay(tmp_path / "c.jsonl", live=Script(["one"]))
    assert isinstance(live, LanguageModel) and live.model == "script"
    live("a")
    again = pickle.loads(pickle.dumps(Replay(tmp_path / "c.jsonl")))
    assert again.model == "replay" and again("a") == "one"


@pytest.mark.parametrize("kind", ["named", "functions"])
def test_a_cassette_knows_which_model_was_asked(tmp_path, kind):
    def big(messages, **options):
        return "big words"

    def small(messages, **options):
        return "small words"

    if kind == "named":
        big.model, small.model = "vendor/big", "vendor/small"
    path = tmp_path / "c.jsonl"
    assert Replay(path, live=big)("Who?") == "big words"
    assert Replay(path, live=small)("Who?") == "small words"
    assert len(path.read_text().splitlines()) == 2
    for live in big, small:
        assert Replay(path, live=live)("Who?") == live([])
    assert len(path.read_text().splitlines()) == 2  # each was found
    anybody = Replay(path)
    assert [anybody("Who?"), anybody("Who?")] == ["big words", "small words"]
    if kind == "named":
        assert Replay(path, model="vendor/small")("Who?") == "small words"
        with pytest.raises(LLMError, match="has no record 1 .* there is none of vendor/o") as caught:
            Replay(path, model="vendor/other")("Who?")
        assert caught.value.kind == "miss"


def test_a_record_that_names_no_model_answers_for_any(tmp_path):
    path = tmp_path / "c.jsonl"
    messages = [{"role": "user", "content": "Who?"}]
    path.write_text(json.dumps({"messages": messages, "options": {}, "reply": "me"}) + "\n")
    assert Replay(path, live=Script([]))("Who?") == Replay(path)("Who?") == "me"


def test_the_model_that_the_environment_names_is_the_one_asked(tmp_path, monkeypatch):
    class Echo(LanguageModel):
        def complete(self, messages, options):
            return Reply(f"this is {os.environ['MINITRACE_MODEL']}")

    for name in "openai/one", "openai/two":
        monkeypatch.setenv("MINITRACE_MODEL", name)
        assert Replay(tmp_path / "c.jsonl", live=Echo())("Who?") == f"this is {name}"


# ---- Budget


def test_calls_are_counted_exactly_over_threads(monkeypatch):
    check = Budget._check
    slow = lambda self, cost: (check(self, cost), time.sleep(0.002))[0]  # noqa: E731
    monkeypatch.setattr(Budget, "_check", slow)  # a gap for other threads to slip into
    with (
        Budget(calls=30) as budget,
        pytest.raises(
            BudgetError, match=r"would exceed 30 calls; spent so far: 30 calls of 30, [\d,]+ tokens"
        ),
    ):
        Script(["x"] * 99).map(["a"] * 99, workers=20)
    assert budget.spent["calls"] == 30


def test_a_stopped_call_is_never_made(server):
    llm = connect(server)
    with Budget(calls=2):
        llm("a"), llm("b")
        with pytest.raises(BudgetError):
            llm("c")
    assert len(server.requests) == 2
    assert llm("d") == "echo: d"  # outside, nothing stops it


def test_a_budget_reaches_acall(server):
    llm = connect(server)

    async def story():
        with Budget(calls=3) as budget:
            done = await asyncio.gather(*(llm.acall("x") for _ in range(5)), return_exceptions=True)
        return budget, done

    budget, done = asyncio.run(story())
    assert budget.spent["calls"] == 3 and sum(isinstance(d, BudgetError) for d in done) == 2


def test_tokens_and_money_are_corrected_after_each_call(server):
    llm = connect(server)
    words = r"would exceed 1 usd; spent so far: 0 calls"
    money = Budget(tokens=2000, usd=1, prices={"openai/ok": (1e6, 2e6)})
    with money, pytest.raises(BudgetError, match=words):
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
    with Budget(tokens=100) as budget, pytest.raises(BudgetError, match="would exceed 100 tokens"):
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
            BudgetError, match=r"would exceed 0.05 seconds; spent so far: 1 calls, \d tokens, 0.1 s"
        ):
            ask("b")


def test_budgets_nest_and_none_counts_a_refused_call():
    ask = Script(["x"] * 9)
    with Budget(calls=5) as outer:
        with Budget(calls=2) as inner:
            ask("a"), ask("b")
            with pytest.raises(BudgetError, match="would exceed 2 calls"):
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


# ---- Budget and what stands around a call beside it


def test_a_budget_entered_twice_counts_once():
    ask = Script(["x"] * 9)
    with Budget(calls=2) as budget:
        with budget:
            ask("a")
        ask("b")  # the outer block is still open
        with pytest.raises(BudgetError):
            ask("c")
    ask("d")
    assert budget.spent["calls"] == 2


def test_an_outer_budget_never_holds_what_an_inner_one_refuses():
    """While one thread is refused by an inner budget, another gets every call of the outer one."""
    outer, refused, stop = Budget(calls=300), [], threading.Event()

    def be_refused():
        with outer, Budget(calls=0):
            while not stop.is_set():
                with pytest.raises(BudgetError):
                    Script(["never"])("x")
                refused.append(1)

    thread = threading.Thread(target=be_refused)
    thread.start()
    try:
        with outer:
            for _ in range(300):
                Script(["yes"])("x")
            with pytest.raises(BudgetError, match="would exceed 300 calls"):
                Script(["no"])("x")
    finally:
        stop.set()
        thread.join()
    assert outer.spent["calls"] == 300 and refused


def test_one_budget_is_entered_in_many_threads_at_a_time():
    budget, ask, together = Budget(calls=40), Script(["x"] * 99), threading.Barrier(8)

    def work(_):
        done = 0
        with budget:
            together.wait(10)
            while True:
                try:
                    ask("a")
                except BudgetError:
                    return done
                done += 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 40
    assert budget.spent["calls"] == len(ask.asked) == 40
    ask("outside")
    assert budget.spent["calls"] == 40


def test_tasks_inherit_a_budget_and_siblings_do_not():
    ask = Script(["x"] * 99)

    async def spend(budget, calls):
        with budget:
            for _ in range(calls):
                await ask.acall("a")
                await asyncio.to_thread(ask, "b")

    async def story():
        one, two, whole = Budget(), Budget(), Budget()
        with whole:
            await asyncio.gather(spend(one, 2), spend(two, 3))
        return [each.spent["calls"] for each in (one, two, whole)]

    assert asyncio.run(story()) == [4, 6, 10]


@BARE
def test_a_thread_without_a_context_counts_in_every_open_budget(bare):
    ask = Script(["x"] * 9)
    with Budget() as outer, Budget(calls=2) as inner:
        bare(lambda: ask("a"))
        bare(lambda: ask("b"))
        with pytest.raises(BudgetError, match="would exceed 2 calls; spent so far: 2 calls of 2"):
            bare(lambda: ask("c"))
    bare(lambda: ask("d"))
    assert outer.spent["calls"] == inner.spent["calls"] == 2 and len(ask.asked) == 3


def test_a_thread_that_had_a_budget_of_its_own_counts_in_others_again():
    ask = Script(["x"] * 9)

    def spend():
        with Budget() as own:
            ask("a")
        ask("b")
        return own.spent["calls"]

    with Budget() as budget, ThreadPoolExecutor(1) as pool:
        assert [pool.submit(spend).result() for _ in range(2)] == [1, 1]
    assert budget.spent["calls"] == 2  # what stood in a budget of its own did not count here


def test_the_main_thread_and_threads_with_a_context_count_where_they_are():
    """A budget that another thread has opened is none of their business."""
    ask, opened, done = Script(["x"] * 9), threading.Event(), threading.Event()

    def hold(budget):
        with budget:
            opened.set()
            done.wait(20)

    budget = Budget()
    thread = threading.Thread(target=hold, args=(budget,))
    thread.start()
    try:
        assert opened.wait(20)
        ask("main")
        with Budget() as own:
            ask.map(["a", "b"])
    finally:
        done.set()
        thread.join()
    assert (budget.spent["calls"], own.spent["calls"]) == (0, 2)


def test_a_task_without_a_budget_counts_in_none():
    ask, gate = Script(["x"] * 9), asyncio.Event

    async def spends(opened, left):
        with Budget() as budget:
            opened.set()
            await left.wait()
            return budget.spent["calls"]

    async def beside(opened, left):
        await opened.wait()
        ask("a")
        left.set()

    async def story():
        opened, left = gate(), gate()
        spent, _ = await asyncio.gather(spends(opened, left), beside(opened, left))
        return spent

    assert asyncio.run(story()) == 0


def test_any_callable_counts():
    def ask(messages, **options):
        return "fine"

    with Budget(calls=1) as budget:
        ask_until_usable(ask, [{"role": "user", "content": "x"}], lambda text: (text, []))
        with pytest.raises(BudgetError):
            ask_until_usable(ask, [{"role": "user", "content": "x"}], lambda text: (text, []))
    assert budget.report() == "1 calls of 1, 3 tokens"


def test_a_reply_that_another_hook_gives_counts_too():
    def remembered(llm, messages, options, ask):
        return Reply("as before", usage={"input_tokens": 30, "output_tokens": 10})

    for outer, inner in (Budget(), around_calls(remembered)), (around_calls(remembered), Budget()):
        with outer, inner:
            Script([])("never asked")
    with Budget() as budget, around_calls(remembered):
        Script([])("never asked")
    assert budget.report() == "1 calls, 40 tokens"


def test_a_budget_spent_inside_a_call_is_the_business_of_that_call():
    class Careful(LanguageModel):
        def complete(self, messages, options):
            with Budget(calls=0):
                return Script(["x"])(messages)

    with Budget() as budget, pytest.raises(BudgetError):
        Careful()("hello")
    assert budget.spent["calls"] == 1  # it was made, whatever became of it


def test_a_call_that_dies_keeps_its_estimate_and_leaves_the_budget_in_order():
    class Dying(LanguageModel):
        def complete(self, messages, options):
            raise KeyboardInterrupt

    with Budget() as budget:
        with pytest.raises(KeyboardInterrupt):
            Dying()("hello", max_tokens=100)
        assert budget.report() == "1 calls, 102 tokens"
        Script(["x"])("hello")
    assert budget.report() == "2 calls, 105 tokens"
    Script(["x"])("hello")
    assert budget.spent["calls"] == 2


def test_a_prompt_is_measured_by_its_texts():
    picture = {"type": "image_url", "image_url": {"url": "data:" + "A" * 9_000}}
    content = [{"type": "text", "text": "What is this?"}, picture, "odd"]
    turns = [{"role": "assistant", "content": None}, {"role": "user", "content": content}]
    with Budget() as budget:
        Script(["A cat."])(turns)
    assert budget.spent["tokens"] < 12


def test_a_budget_error_is_told_from_others_without_this_file():
    error = BudgetError("spent")
    assert isinstance(error, MinitraceError) and not isinstance(error, LLMError)
    assert error.kind == "budget"


def test_a_report_names_limits_and_what_has_a_price():
    assert Budget().report() == "0 calls, 0 tokens"
    assert Budget(prices={"*": (1, 2)}).report() == "0 calls, 0 tokens, $0.0000"
    limits = Budget(1_000, 20_000, 0.5, 60)
    assert limits.report() == ("0 calls of 1,000, 0 tokens of 20,000, $0.0000 of 0.5, 0.0 s of 60")


@pytest.mark.parametrize(
    "limits, words",
    [
        ({"calls": -1}, "calls= takes a number from 0, or None, not -1"),
        ({"tokens": "9"}, "tokens= takes a number from 0, or None, not '9'"),
        ({"usd": float("nan")}, "usd= takes a number from 0, or None, not nan"),
        ({"seconds": [60]}, "seconds= takes a number"),
        ({"prices": None}, r"prices= takes {model: \(input, output\)}, not None"),
        ({"prices": {"*": 3}}, r"prices= takes .*, not {'\*': 3}"),
    ],
)
def test_what_is_no_limit_is_refused_at_once(limits, words):
    with pytest.raises(ValueError, match=words):
        Budget(**limits)


def test_a_budget_shows_what_was_spent():
    assert repr(Budget(calls=0)) == "Budget(0 calls of 0, 0 tokens)"


@pytest.mark.parametrize("live", ["openai/gpt-4o", Script])
def test_what_is_no_language_model_is_not_asked_to_be_recorded(tmp_path, live):
    with pytest.raises(TypeError, match="live= takes a callable, such as LLM"):
        Replay(tmp_path / "c.jsonl", live=live)
