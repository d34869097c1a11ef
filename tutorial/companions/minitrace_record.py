"""What goes around a language model: a budget that stops it, a cassette that replays it.

A companion of `minitrace.py`: copy both files into one folder.

>>> from minitrace import Script
>>> with Budget(calls=9) as budget:
...     replies = Script(["Paris.", "Rome."]).map(["Capital of France?", "Capital of Italy?"])
>>> print(budget.report())
2 calls of 9, 14 tokens
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from typing import Any

try:
    from minitrace import LanguageModel, LLMError, MinitraceError, Reply, around_calls
except ImportError as error:
    raise ImportError("minitrace_record.py needs minitrace.py: copy it beside this file") from error

__all__ = ["Budget", "BudgetError", "Replay"]

_Messages = list[dict[str, Any]]
_Amounts = dict[str, float]


# ---- Budget: a call reserves what it may cost, and settles when it is known what it did cost.


class BudgetError(MinitraceError):
    """A call was stopped before it was made, because it would exceed a limit of a `Budget`.

    >>> from minitrace import Script
    >>> with Budget(calls=2):
    ...     Script(["yes"] * 3).map(["a", "b", "c"], workers=1)
    Traceback (most recent call last):
        ...
    minitrace_record.BudgetError: this call would exceed 2 calls; spent so far: 2 calls of 2, \
4 tokens
    """

    kind = "budget"


_FORMS = {"calls": "{:,} calls", "tokens": "{:,} tokens", "usd": "${:.4f}", "seconds": "{:.1f} s"}
_ledger = threading.Lock()  # one for all budgets: each lets a call pass, or none counts it
_entered: ContextVar[tuple[Budget, ...] | None] = ContextVar("minitrace_budgets", default=None)
_open: list[Budget] = []  # whoever entered them


class Budget:
    """A `with` block that stops the call that would exceed a limit, before it is made.

    Every call of a language model counts once in each budget around it, in threads and tasks too,
    whether live, replayed or scripted; a `Replay` that asks a live one is one call. A plain thread
    does not know in which block it was started, so it counts toward every budget that is open.
    Calls are counted exactly. Tokens and money are estimated before a call (the prompt by its
    length, the reply as 500 tokens or, if less, `max_tokens`) and corrected after it: they exceed
    a limit by the calls in flight at most. A call that the server refused costs no tokens; one that
    ended without an answer keeps its estimate.

    Args:
        calls, tokens, usd, seconds: the limits; seconds count from the first `with`.
        prices: US dollars per million tokens, `{model: (input, output)}`, with `"*"` for any other.

    Raises:
        BudgetError: a call would exceed a limit, or has no price under a limit in `usd`.
        ValueError: a limit that is no number from 0, or prices that are not as above.

    >>> from minitrace import Script
    >>> with Budget(calls=5, usd=0.02, prices={"script": (3, 15)}) as budget:
    ...     replies = Script(["Paris."] * 9).map(["Capital of France?"] * 2)
    >>> print(budget.report())
    2 calls of 5, 14 tokens, $0.0001 of 0.02
    >>> budget, budget.spent["calls"]
    (Budget(2 calls of 5, 14 tokens, $0.0001 of 0.02), 2)
    """

    def __init__(
        self,
        calls: int | None = None,
        tokens: int | None = None,
        usd: float | None = None,
        seconds: float | None = None,
        *,
        prices: Mapping[str, tuple[float, float]] = {},
    ) -> None:
        self.limits = {"calls": calls, "tokens": tokens, "usd": usd, "seconds": seconds}
        for kind, limit in self.limits.items():
            if limit is not None and not (isinstance(limit, (int, float)) and limit >= 0):
                raise ValueError(f"{kind}= takes a number from 0, or None, not {limit!r:.60}")
        pairs = prices.values() if isinstance(prices, Mapping) else [prices]
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"prices= takes {{model: (input, output)}}, not {prices!r:.60}")
        self.prices = prices
        self.spent: _Amounts = dict.fromkeys(self.limits, 0)
        self._started = 0.0
        self._blocks: list[AbstractContextManager[None]] = []

    def __repr__(self) -> str:
        return f"Budget({self.report()})"

    def __enter__(self) -> Budget:
        self._started = self._started or time.monotonic()
        block = around_calls(_count)
        block.__enter__()
        self._blocks.append(block)
        _entered.set((*(_entered.get() or ()), self))
        _open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _open.remove(self)
        budgets = list(_entered.get() or ())
        budgets.remove(self)
        _entered.set(tuple(budgets) or None)
        self._blocks.pop().__exit__(None, None, None)

    def report(self) -> str:
        """What was spent, of which limits, in one line; calls in flight count by their estimate.

        >>> Budget(calls=1000, usd=2.5).report()
        '0 calls of 1,000, 0 tokens, $0.0000 of 2.5'
        """
        self.spent["seconds"] = time.monotonic() - self._started if self._started else 0
        words = []
        for kind, limit in self.limits.items():
            spent = _FORMS[kind].format(self.spent[kind])
            if limit is not None:
                words.append(f"{spent} of {limit:,}")
            elif kind in ("calls", "tokens") or (kind == "usd" and self.prices):
                words.append(spent)
        return ", ".join(words)

    def _cost(self, model: str, tokens_in: int, tokens_out: int) -> _Amounts:
        price = self.prices.get(model, self.prices.get("*"))
        if price is None and self.limits["usd"] is not None:
            raise BudgetError(f"no price for {model!r}: add it, or '*' for any, to prices=")
        rate_in, rate_out = price or (0, 0)
        usd = (tokens_in * rate_in + tokens_out * rate_out) / 1e6
        return {"calls": 1, "tokens": tokens_in + tokens_out, "usd": usd}

    def _check(self, cost: _Amounts) -> None:
        told = self.report()
        for kind, limit in self.limits.items():
            if limit is not None and self.spent[kind] + cost.get(kind, 0) > limit + 1e-12:
                raise BudgetError(f"this call would exceed {limit:,} {kind}; spent so far: {told}")

    def _add(self, cost: _Amounts, sign: int = 1) -> None:
        for kind, amount in cost.items():
            self.spent[kind] += sign * amount


def _count(
    llm: LanguageModel, messages: _Messages, options: dict[str, Any], ask: Callable[[], Reply]
) -> Reply:
    """Make one call, counted in every budget around it.

    All budgets share this hook: it runs once for each call, and sees all of them at once.
    """
    around = _entered.get()
    budgets = tuple(_open) if around is None else around  # all, if nobody knows what is around
    name = llm.model or os.environ.get("MINITRACE_MODEL", "")
    guess = _tokens(_prompt(messages)), min(500, options.get("max_tokens", 500))
    with _ledger:
        costs = {budget: budget._cost(name, *guess) for budget in budgets}
        for budget, cost in costs.items():
            budget._check(cost)
        for budget, cost in costs.items():
            budget._add(cost)
    used = guess
    try:
        reply = ask()
        usage = reply.usage or {}
        used = usage.get("input_tokens", guess[0]), usage.get("output_tokens", _tokens(reply))
        return reply
    except LLMError as error:
        if error.status >= 400:
            used = 0, 0
        raise
    finally:
        with _ledger:
            for budget, cost in costs.items():
                budget._add(cost, -1)
                budget._add(budget._cost(name, *used))


def _prompt(messages: _Messages) -> str:
    """The text of a conversation; pictures and the like are left out."""
    texts = []
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part]
    return "\n".join(texts)


def _tokens(text: str) -> int:
    """Tokens in a text, roughly: four bytes each."""
    return len(text.encode("utf-8", "replace")) // 4 + 1


# ---- Replay: a file of JSON lines, read at the first call and appended to after it.


_cassettes = threading.Lock()


class Replay(LanguageModel):
    """A cassette: replies in a file, one JSON line each, that a person can read and commit.

    A reply is found by the model, the messages and the options of the call; the n-th time that the
    same is asked, its n-th record is the reply. What was never recorded is asked of `live` and
    added to the file; without `live`, it is an error that shows the difference from the closest
    recorded prompt. Safe for many threads of one process. A last line that a crash left incomplete
    is skipped, and cut off when the next is written.

    Args:
        path: the file; it may not exist yet if there is a `live`.
        live: any callable from messages to text, such as an `LLM`.
        model: whose replies are wanted; by default those of `live` or, without one, of any model.

    Raises:
        LLMError: nothing recorded (`kind` is `miss`), or a line that is not a record.

    >>> import os, tempfile
    >>> from minitrace import Script
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "lesson.jsonl")
    ...     first = Replay(path, live=Script(["Paris.", "Still Paris."]))
    ...     print(first("Capital of France?"), first("Capital of France?"))
    ...     again = Replay(path)
    ...     print(again("Capital of France?"), again("Capital of France?"))
    Paris. Still Paris.
    Paris. Still Paris.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        live: Callable[..., str] | None = None,
        model: str | None = None,
    ) -> None:
        if live is not None and (isinstance(live, type) or not callable(live)):
            raise TypeError(
                f"live= takes a callable, such as LLM('openai/gpt-4o'), not {live!r:.60}"
            )
        self.path, self.live = os.fspath(path), live
        self.asked = model
        self.model = model or getattr(live, "model", None) or "replay"
        self._records: dict[str, list[tuple[str | None, Reply]]] | None = None
        self._turns = Counter[str]()

    def complete(self, messages: _Messages, options: dict[str, Any]) -> Reply:
        """The reply recorded for this call, or a new one of `live`, which is recorded."""
        key = _call_key(messages, options)
        with _cassettes:
            if self._records is None:
                self._records = _read_cassette(self.path)
            self._turns[key] += 1
            turn = self._turns[key]
        asked = self.asked or _name(self.live)
        recorded = self._replies(key, asked)
        if turn <= len(recorded):
            return recorded[turn - 1]
        if self.live is None:
            keys = [other for other in self._records if self._replies(other, asked)]
            words = f"{self.path} has no record {turn} of this call"
            if not keys:
                there = (
                    f"none of {asked or 'any other'}" if os.path.exists(self.path) else "no file"
                )
                raise LLMError(f"{words}; there is {there}: pass live= to record it", kind="miss")
            raise LLMError(f"{words}; the closest is\n{_closest(key, keys)}", kind="miss")
        said = self.live(messages, **options)
        reply = said if isinstance(said, Reply) else Reply(said)
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"time": when, "asked": asked, "messages": messages, "options": options}
        _append(self.path, {**record, "reply": reply, **vars(reply)})
        return reply

    def _replies(self, key: str, asked: str | None) -> list[Reply]:
        """What is recorded of a call to this model; a record without a model is for any."""
        recorded = (self._records or {}).get(key, [])
        return [reply for name, reply in recorded if name == asked or None in (name, asked)]


def _name(live: Any) -> str | None:
    """The model that a language model asks or, if it names none, the function."""
    if live is None:
        return None
    model = getattr(live, "model", None)
    if not model and isinstance(live, LanguageModel):
        model = os.environ.get("MINITRACE_MODEL")
    return str(model or getattr(live, "__qualname__", type(live).__qualname__))


def _call_key(messages: _Messages, options: dict[str, Any]) -> str:
    """What tells calls apart, and shows how they differ."""
    return json.dumps([messages, options], sort_keys=True, indent=0, ensure_ascii=False)


def _read_cassette(path: str) -> dict[str, list[tuple[str | None, Reply]]]:
    """The replies of a cassette, by what was asked; no file is an empty one."""
    data = b""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        data = file.read()
    replies: dict[str, list[tuple[str | None, Reply]]] = defaultdict(list)
    for number, line in enumerate(_whole(data).splitlines(), 1):
        try:
            record = json.loads(line)
            facts = {k: record[k] for k in ("usage", "finish_reason", "model") if k in record}
            reply = Reply(record["reply"], **facts)
            key = _call_key(record["messages"], record["options"])
            replies[key].append((record.get("asked"), reply))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise LLMError(f"{path}, line {number}: not the record of a call") from None
    return replies


def _whole(data: bytes) -> bytes:
    """What is in a file, each line with its end; a record that a crash cut short is left out."""
    start = data.rfind(b"\n") + 1
    last = data[start:]
    if last[:1] in (b"", b"{", b"\0"):  # anything else is no record, and is not ours to cut off
        try:
            json.loads(last)
        except ValueError:
            return data[:start]
    return data + b"\n"


def _append(path: str, record: dict[str, Any]) -> None:
    """Add a line of JSON to a file, in one write, after cutting off a line torn by a crash."""
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    with _cassettes, open(path, "a+b", buffering=0) as file:
        file.seek(0)
        data = file.read()
        whole = _whole(data)
        file.truncate(min(len(whole), len(data)))
        file.write(whole[len(data) :] + line)


def _closest(key: str, keys: Iterable[str]) -> str:
    """How a call differs from the recorded one that is most like it."""
    from difflib import unified_diff

    words = set(key.split())
    unlike = {other: len(words.symmetric_difference(other.split())) for other in keys}
    likest = min(unlike, key=unlike.__getitem__)
    old, new = (text.replace("\\n", "\n").splitlines() for text in (likest, key))
    lines = list(unified_diff(old, new, "recorded", "asked", lineterm="", n=1))
    return "\n".join(lines[:40]) or "the same, recorded fewer times"
