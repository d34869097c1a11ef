"""Replay and Budget. RAW: cut out of the old file, to be rewritten."""
class BudgetError(MinitraceError):
    """A call was stopped before it was made, because it would pass a limit of a `Budget`.

    >>> with Budget(calls=2):
    ...     Script(["yes"] * 3).map(["a", "b", "c"], workers=1)
    Traceback (most recent call last):
        ...
    minitrace.BudgetError: this call would pass 2 calls; spent so far: 2 calls of 2, 4 tokens
    """


def _dig(data: Any, *path: str | int) -> Any:
# ---- Budgets: a call reserves what it may cost, and settles when it is known what it did cost.

_budgets: contextvars.ContextVar[tuple[Budget, ...]] = contextvars.ContextVar("budgets", default=())
_ledger = threading.Lock()


class Budget:
    """A `with` block that stops the call that would pass a limit, before it is made.

    Every call to a language model of ours counts once in each budget around it, in threads and
    tasks too, live, replayed or scripted; a `Replay` that asks a live one is one call.
    Calls are exact. Tokens and money are reserved before a call by an estimate (the prompt by its
    length, the reply as 500 tokens or, if less, `max_tokens`) and corrected after it: they pass a
    limit by the calls in flight at most. A call that the server refused costs no tokens; one that
    ended without an answer keeps its estimate.

    Args:
        calls, tokens, usd, seconds: the limits; seconds count from the first `with`.
        prices: US dollars per million tokens, `{model: (input, output)}`, with `"*"` for any other.

    Raises:
        BudgetError: from the call that would pass a limit, or has no price under a limit in `usd`.

    >>> with Budget(calls=5, usd=0.01, prices={"script": (3, 15)}) as budget:
    ...     replies = Script(["Paris."] * 9).map(["Capital of France?"] * 2)
    >>> print(budget.report())
    2 calls of 5, 14 tokens, $0.0001 of 0.01
    >>> budget.spent["calls"]
    2
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
        self.prices, self._started = prices, 0.0
        self.spent: dict[str, float] = dict.fromkeys(self.limits, 0)

    def __enter__(self) -> Budget:
        self._started = self._started or time.monotonic()
        _budgets.set((*_budgets.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _budgets.set(_budgets.get()[:-1])

    def report(self) -> str:
        """What was spent, of which limits, in one line; calls in flight count by their estimate."""
        self.spent["seconds"] = time.monotonic() - self._started if self._started else 0
        forms = ("{:,} calls", "{:,} tokens", "${:.4f}", "{:.1f} s")
        return ", ".join(
            form.format(self.spent[kind]) + ("" if limit is None else f" of {limit:,}")
            for (kind, limit), form in zip(self.limits.items(), forms, strict=True)
            if limit is not None or kind in ("calls", "tokens") or (kind == "usd" and self.prices)
        )

    def _cost(self, model: str, tokens_in: int, tokens_out: int) -> dict[str, float]:
        price = self.prices.get(model, self.prices.get("*"))
        if price is None and self.limits["usd"] is not None:
            raise BudgetError(f"no price for {model!r}: add it, or '*' for any, to prices=")
        rate_in, rate_out = price or (0, 0)
        usd = (tokens_in * rate_in + tokens_out * rate_out) / 1e6
        return {"calls": 1, "tokens": tokens_in + tokens_out, "usd": usd}

    def _check(self, cost: dict[str, float]) -> dict[str, float]:
        report = self.report()
        for kind, limit in self.limits.items():
            if limit is not None and self.spent[kind] + cost.get(kind, 0) > limit + 1e-12:
                raise BudgetError(f"this call would pass {limit:,} {kind}; spent so far: {report}")
        return cost

    def _add(self, cost: dict[str, float], instead_of: Mapping[str, float] = {}) -> None:
        for kind, amount in cost.items():
            self.spent[kind] += amount - instead_of.get(kind, 0)


def _counted(llm: _LanguageModel, messages: _Messages, options: dict[str, Any]) -> Reply:
    """Make one call, counted in every budget around it, with the calls that it makes in turn."""
    name, budgets = llm.model or os.environ.get("MINITRACE_MODEL", ""), {*_budgets.get()}
    guess = _tokens(_prompt(messages)), min(500, options.get("max_tokens", 500))
    with _ledger:  # one lock for all budgets: each of them lets a call pass, or none counts it
        costs = [(budget, budget._check(budget._cost(name, *guess))) for budget in budgets]
        for budget, cost in costs:
            budget._add(cost)
    used, scope = guess, _budgets.set(())
    try:
        tape, ask = _tape.get(), functools.partial(llm._ask, messages, options)
        reply = cast(Reply, tape(messages, options, ask) if tape else ask())
        usage = reply.usage or {}
        used = usage.get("input_tokens", guess[0]), usage.get("output_tokens", _tokens(reply))
        return reply
    except LLMError as error:
        used = (0, 0) if error.status >= 400 else guess
        raise
    finally:
        _budgets.reset(scope)
        with _ledger:
            for budget, cost in costs:
                budget._add(budget._cost(name, *used), instead_of=cost)


class _Foreign(_LanguageModel):
class Replay(_LanguageModel):
    """A cassette: replies in a file, one JSON line each, that a person can read and commit.

    A reply is found by the messages and the options of the call; the n-th time the same is asked,
    its n-th record answers. What was never recorded is asked of `live` and added to the file or,
    without one, raises with a diff to the closest recorded prompt. Safe for many threads of one
    process. A last line torn by a crash is passed over, and cut off when the next is written.

    Args:
        path: the file; it may not exist yet if there is a `live`.
        live: any callable from messages to text, such as an `LLM`.

    Raises:
        LLMError: nothing recorded (`kind` is `miss`), or a line that is no record.

    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "lesson.jsonl")
    ...     first = Replay(path, live=Script(["Paris.", "Still Paris."]))
    ...     print(first("Capital of France?"), first("Capital of France?"))
    ...     again = Replay(path)
    ...     print(again("Capital of France?"), again("Capital of France?"))
    Paris. Still Paris.
    Paris. Still Paris.
    """

    def __init__(self, path: str | os.PathLike[str], live: Callable[..., str] | None = None):
        self.path, self.live = os.fspath(path), live
        self.model = getattr(live, "model", None) or "replay"
        self._records: dict[str, list[Reply]] | None = None
        self._turns = Counter[str]()

    def _ask(self, messages: _Messages, options: dict[str, Any]) -> Reply:
        key = _call_key(messages, options)
        with _cassettes:
            if self._records is None:
                self._records = _read_cassette(self.path)
            self._turns[key] += 1
            turn, recorded = self._turns[key], self._records.get(key, [])
        if turn <= len(recorded):
            return recorded[turn - 1]
        if self.live is None:
            closest = _closest(key, self._records)
            words = f"{self.path} has no record {turn} of this call; closest to it is\n{closest}"
            raise LLMError(words, kind="miss")
        said = self.live(messages, **options)
        reply = said if isinstance(said, Reply) else Reply(said)
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"time": when, "messages": messages, "options": options, "reply": reply}
        _append(self.path, {**record, **vars(reply)})
        return reply


_cassettes = threading.Lock()


def _read_cassette(path: str) -> dict[str, list[Reply]]:
    """The replies of a cassette, by what was asked; no file is an empty one."""
    data, replies = b"", defaultdict[str, list[Reply]](list)
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        data = file.read()
    for number, line in enumerate(_whole_lines(data), 1):
        try:
            record = json.loads(line)
            replies[_call_key(record["messages"], record["options"])].append(_reply_in(record))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise LLMError(f"{path}, line {number}: not the record of a call") from None
    return replies


def _append(path: str, record: dict[str, Any]) -> None:
    """Add a line of JSON to a file, in one write, after cutting off a line torn by a crash."""
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    with _cassettes, open(path, "a+b", buffering=0) as file:
        _mend(file)
        file.write(line)


def _closest(key: str, keys: Iterable[str]) -> str:
    """How a call differs from the recorded one that is most like it."""
    from difflib import unified_diff

    words = set(key.split())
    unlike = {other: len(words.symmetric_difference(other.split())) for other in keys}
    likest = min(unlike, key=unlike.__getitem__, default="nothing, for it is empty")
    old, new = (text.replace("\\n", "\n").splitlines() for text in (likest, key))
    lines = list(unified_diff(old, new, "recorded", "asked", lineterm="", n=1))
    return "\n".join(lines[:40]) or "the same, recorded fewer times"


class Script(_LanguageModel):
