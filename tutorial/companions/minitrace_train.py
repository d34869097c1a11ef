"""Training: the same steps over a whole dataset, in a run that can be resumed.

A companion of `minitrace.py`: copy both files into one folder. `train` improves the parameters of a
program on examples that a guide judges; `evaluate` only measures. Each step of a run is

    run a batch -> send back what was said of each example -> ask for candidates
                -> try each of them -> keep the best, unless it is worse than what is there

Examples run side by side: in threads, as tasks of one event loop, or in other processes. A journal
keeps every reply of a language model, so that a run that was stopped goes on without paying for any
of them twice.

>>> from minitrace import Module, OptoPrime, StubLLM, node
>>> class Shift(Module):
...     def __init__(self):
...         self.offset = node(0, name="offset", trainable=True)
...     def forward(self, x):
...         return x + self.offset
>>> def guide(query, response, info):
...     return -abs(response - info), "too low" if response < info else "too high"
>>> shift, dataset = Shift(), [(1, 8), (2, 9)]
>>> run = train(shift, dataset, guide, OptoPrime(shift, llm=StubLLM()), epochs=9, batch_size=2)
>>> shift.offset.data, run.score, run.scores[:5]
(7, 0.0, [-7.0, -6.0, -5.0, -3.0, -1.0])
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
import os
import pickle
import random
import re
import sys
import threading
import time
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, nullcontext, suppress
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field, replace
from types import CodeType, SimpleNamespace
from typing import Any, NamedTuple

try:
    import minitrace
    from minitrace import (
        Attempt,
        ExecutionError,
        LLMError,
        MinitraceError,
        Node,
        Optimizer,
        OptoPrime,
        ParameterNode,
        Proposal,
        Reply,
        ReplyError,
        TraceGraph,
        TraceMissingInputsError,
        around_calls,
        ask_until_usable,
        coerce_value,
        decode,
        encode,
        operators,
        read_reply,
        stop_tracing,
        to_data,
        to_text,
    )
except ModuleNotFoundError as error:
    raise ImportError("minitrace_train.py needs minitrace.py: copy it beside this file") from error

__all__ = ["Evaluation", "Guide", "Judge", "Run", "evaluate", "train"]

_Examples = Sequence[tuple[int, Any]]  # index and (input, info)
_Values = Mapping[ParameterNode[Any], Any]
_Record = dict[str, Any]
_Scores = Mapping[int, float]  # by the number of the example


# ---- How good is a response? Guides --------------------------------------------------------------


class Guide:
    """Says how good a response is. A subclass defines `get_feedback`; a function will do as well.

    A guide is called with the query, the response and what the dataset knows of the query, all of
    them plain data. It returns `(score, feedback)`, or only a score (higher is better), or only
    words.

    >>> class Close(Guide):
    ...     def get_feedback(self, query, response, info):
    ...         return -abs(response - info), "too low" if response < info else "too high"
    >>> Close()("how many?", 5, 7)
    (-2, 'too low')
    """

    def get_feedback(self, query: Any, response: Any, info: Any) -> Any:
        """The judgement: yours to write."""
        raise NotImplementedError(f"{type(self).__name__} has no get_feedback()")

    def __call__(self, query: Any, response: Any, info: Any) -> Any:
        return self.get_feedback(query, response, info)


_JUDGE = """\
You judge a response. Criteria: {}
Answer with one JSON object and nothing else: {{"score": from 0 for useless to 1 for perfect, \
"feedback": "what would make the response better"}}"""


class Judge(Guide):
    """A guide that asks a language model.

    Args:
        criteria: what makes a response good, in words.
        llm: any callable from messages to text; by default what `MINITRACE_MODEL` names, or else
            a `StubLLM`.
        retries: how often it is asked again after a reply that cannot be used.

    Raises:
        ReplyError: no reply could be used.

    >>> from minitrace import Script
    >>> judge = Judge("polite", llm=Script(['{"score": 0.5, "feedback": "Say hello first."}']))
    >>> judge("Greet Ada.", "Ada!", None)
    (0.5, 'Say hello first.')
    """

    def __init__(
        self, criteria: str = "correct and complete", llm: Any = None, retries: int = 2
    ) -> None:
        self.criteria = criteria
        self.llm = llm
        self.retries = retries

    def get_feedback(self, query: Any, response: Any, info: Any) -> tuple[float, str]:
        """The score, from 0 to 1, and the feedback."""
        page = f"# Query\n{_in_words(query)}\n# Response\n{_in_words(response)}"
        if info is not None:
            page += f"\n# Expected\n{_in_words(info)}"
        prompt = [
            {"role": "system", "content": _JUDGE.format(self.criteria)},
            {"role": "user", "content": page},
        ]
        judgement, replies, refused = ask_until_usable(self.llm, prompt, self.read, self.retries)
        if len(refused) == len(replies):
            problems = refused[-1]
            raise ReplyError(f"no usable judgement: {problems[-1]}", replies, problems)
        return judgement

    def read(self, text: str) -> tuple[tuple[float, str], list[str]]:
        """The judgement in a reply, and what is wrong with it."""
        reply = read_reply(text, ["score", "feedback"])
        given = reply.values.get("score")
        problems = list(reply.problems)
        score = -1.0
        with suppress(ValueError):
            score = coerce_value(given, 0.0)
        if not problems and not 0 <= score <= 1:
            problems.append(f"the score must be a number from 0 to 1, not {to_text(given, 80)}")
        return (score, _in_words(reply.values.get("feedback", ""))), problems


def _in_words(value: Any, limit: int = 0) -> str:
    """A value as text without memory addresses; of what is longer than the limit, both ends."""
    text = re.sub(r" at 0x[0-9a-fA-F]{1,16}", "", str(value))
    if not limit or len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ...({len(text):,} characters)... {text[-half:]}"


def _score_and_feedback(said: Any) -> tuple[float | None, Any]:
    """What a guide returned, as a pair."""
    if isinstance(said, str):
        return None, said
    pair = isinstance(said, (tuple, list)) and len(said) == 2
    score: Any
    score, feedback = said if pair else (said, "")
    feedback = "" if feedback is None else feedback
    if pair and score is None:
        return None, feedback
    with suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(score):
            return float(score), feedback
    words = "a guide gives (score, feedback), a finite score, or words"
    raise TypeError(f"{words}, not {to_text(said, 80)}")


# ---- What comes of one example? The program runs, and the guide judges ---------------------------


@dataclass
class _Result:
    """An example that was run: its output, as a node and as plain data, and the judgement."""

    output: Node[Any]
    response: Any
    score: float | None
    feedback: Any
    failed: bool = False
    unjudged: str = ""  # why a judge gave no judgement


class _Job(NamedTuple):
    """An example to run, with all that takes, so that it can go to another process."""

    model: Any
    guide: Any
    traced: bool
    query: Any
    info: Any
    place: _Record

    def run(self) -> _Result:
        """Run the program and let the guide judge. A failure of the program is a result too."""
        try:
            return self.judged()
        except Exception as error:
            ends = _what_ends_a_run(error) or error
        raise ends

    def judged(self) -> _Result:
        """What `run` returns."""
        try:
            output = self.output()
        except ExecutionError as error:
            _raise_unless_about_values(error)
            failure = error.exception_node
            return _Result(failure, failure.data, None, failure.create_feedback("full"), True)
        try:
            said = _awaited(self.guide(self.query, output.data, self.info))
        except (ReplyError, LLMError) as error:  # of a judge that asks a language model
            if _what_ends_a_run(error):
                raise
            words = f"(not judged: {error})"
            return _Result(output, output.data, None, words, unjudged=str(error))
        return _Result(output, output.data, *_score_and_feedback(to_data(said)))

    def output(self) -> Node[Any]:
        """The output of the program; a parameter is a program that gives its own value."""
        if isinstance(self.model, ParameterNode):
            return self.model
        with nullcontext() if self.traced else stop_tracing():
            output = _awaited(self.model(self.query))
            return output if isinstance(output, Node) else operators.identity(output)

    def record(self, result: _Result) -> _Record:
        """The example as the journal keeps it."""
        texts = {"query": self.query, "response": result.response}
        for name, value in texts.items():
            texts[name] = _in_words(value if isinstance(value, str) else to_text(value), 2000)
        told = {"score": result.score, "feedback": _in_words(result.feedback, 8000)}
        return {"event": "example", **self.place, **texts, **told, "failed": result.failed}


_UNSPOKEN = "refused", "filtered", "empty", "cut off"  # the kinds of an LLMError that is an answer
_OF_VALUES = TraceMissingInputsError, ExecutionError, ReplyError, LLMError


def _raise_unless_about_values(error: ExecutionError) -> None:
    """Raise what no other values would avoid."""
    cause = error.__cause__
    about_values = isinstance(cause, _OF_VALUES) or hasattr(cause, "failure")
    ends = _what_ends_a_run(error)
    if isinstance(cause, MinitraceError) and not about_values:
        ends = cause
    if ends:
        raise ends


def _what_ends_a_run(error: BaseException) -> MinitraceError | None:
    """The error of a network or a budget that is this one, or in its group, or led to it."""
    seen, left = set[int](), [error]
    while left:
        each = left.pop(0)
        kind = getattr(each, "kind", "")
        lost = isinstance(each, LLMError) and kind not in _UNSPOKEN
        if isinstance(each, MinitraceError) and (lost or kind == "budget"):
            return each
        seen.add(id(each))
        context = None if each.__suppress_context__ else each.__context__
        led = [*getattr(each, "exceptions", ()), each.__cause__, context]
        left += [one for one in led if one is not None and id(one) not in seen]
    return None


# ---- Where is async code awaited? On one event loop, so that clients and locks serve every run ---


def _awaited(value: Any) -> Any:
    """The value or, if it is awaitable, what it gives."""
    if not inspect.isawaitable(value):
        return value
    from asyncio import run_coroutine_threadsafe

    async def whole() -> Any:
        _waiting.set(depth + 1)
        return await value

    depth = _waiting.get()
    loop, runs = _event_loop(os.getpid(), depth)
    if not runs:
        return loop.run_until_complete(whole())
    future = run_coroutine_threadsafe(whole(), loop)
    try:
        return future.result()
    finally:
        future.cancel()  # after an interruption; what has ended stays as it is


# How many loops wait for what runs here? A run inside an async guide waits for a loop of its own.
_waiting: ContextVar[int] = ContextVar("minitrace_train_waiting", default=0)
_loops: dict[tuple[int, int], tuple[Any, threading.Thread]] = {}
_starting = threading.Lock()


def _event_loop(process: int, depth: int) -> tuple[Any, bool]:
    """The loop of a process at this depth, and whether a thread of its own runs it.

    Where no thread can be started, whoever waits runs the loop.
    """
    from asyncio import new_event_loop

    def run() -> None:
        while True:
            with suppress(KeyboardInterrupt, SystemExit):  # of a task: whoever awaits it is told
                loop.run_forever()

    with _starting:
        loop, thread = _loops.get((process, depth)) or (new_event_loop(), threading.Thread())
        if not thread.is_alive():
            with suppress(RuntimeError):
                thread = threading.Thread(target=run, daemon=True)
                thread.start()
        _loops[process, depth] = loop, thread
    return loop, thread.is_alive()


setattr(minitrace, "_on_shared_loop", _awaited)  # for `run_coroutine`


# ---- How do examples run side by side? In threads, or in other processes -------------------------


class _Watch:
    """A hook that counts calls and tokens, and knows what has to end before a run can stop."""

    def __init__(self, journal: _Journal) -> None:
        self.journal = journal
        self.spent = {"calls": 0, "tokens": 0}
        self.in_flight: list[tuple[str, int]] = []  # each with its thread
        self.stopped = False
        self.changed = threading.Condition()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """A block in which it is the hook; an interruption waits here for what is in flight."""
        token = _in_run.set(True)
        _open_watches.append(self)
        try:
            with around_calls(self):
                yield
        except KeyboardInterrupt as stop:
            try:
                self.settle()
            finally:
                raise stop
        finally:
            _open_watches.remove(self)
            _in_run.reset(token)

    def __call__(self, llm: Any, messages: Any, options: Any, ask: Callable[[], Reply]) -> Reply:
        running = [each for each in _open_watches if not each.stopped]
        if self.stopped and running and not _in_run.get():
            return ask()  # of a plain thread, that of a run which goes on
        with self.flight("calls"):
            with self.changed:
                self.spent["calls"] += 1
            reply = self.journal.answer(llm, messages, options, ask)
        with self.changed:
            self.spent["tokens"] += _tokens(messages, reply)
        return reply

    @contextmanager
    def flight(self, kind: str) -> Iterator[None]:
        """A block that is waited for when the run is stopped, and not entered after that."""
        entry = kind, threading.get_ident()
        with self.changed:
            if self.stopped:
                raise KeyboardInterrupt("the run was stopped")
            self.in_flight.append(entry)
        try:
            yield
        finally:
            with self.changed:
                self.in_flight.remove(entry)
                self.changed.notify_all()

    def settle(self) -> None:
        """Let nothing new begin and wait for what is in flight, so that its replies are kept."""
        here = threading.get_ident()

        def others() -> list[str]:
            return sorted(kind for kind, thread in self.in_flight if thread != here)

        with self.changed:
            self.stopped = True
            kinds = others()
            if kinds:  # calls, if there are any, and else examples
                _say(_STOPPING.format(kinds.count(kinds[0]), kinds[0]))
            self.changed.wait_for(lambda: not others())


_in_run: ContextVar[bool] = ContextVar("minitrace_train_in_run", default=False)
_open_watches: list[_Watch] = []
_STOPPING = "stopping: waiting for {} {} in flight; Ctrl-C again does not wait"


def _tokens(messages: Any, reply: Reply) -> int:
    """What a call took: as it was told or else by the length of the texts."""
    usage = reply.usage or {}
    asked: int = usage.get("input_tokens", len(str(messages)) // 4)
    return asked + usage.get("output_tokens", len(reply) // 4)


def _say(words: str) -> None:
    """Tell a person who has just pressed Ctrl-C."""
    if sys.stderr is not None:
        print(f"\n{words}", file=sys.stderr, flush=True)


def _side_by_side(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """Call a function in threads, each time in a copy of this context; the results, in order.

    After a failure no other call begins, and it is raised when those in flight have ended. Ctrl-C
    does not wait, nor does the end of the program: these are daemon threads. Where none can be
    started, the calls are made here, one after the other.
    """
    context, left = copy_context(), deque(enumerate(items))
    results: dict[int, Any] = {}
    errors: dict[int, BaseException] = {}

    def work() -> None:
        with suppress(IndexError):  # nothing is left
            while True:
                place, item = left.popleft()
                try:
                    results[place] = context.copy().run(function, item)
                except BaseException as error:
                    errors[place] = error
                    left.clear()

    try:
        workers = _started(work, min(threads, len(items)))
        if not workers:
            work()
        for thread in workers:
            thread.join()
    finally:
        left.clear()
    if errors:
        raise errors[min(errors)]
    return [results[place] for place in range(len(items))]


def _started(work: Callable[[], None], count: int) -> list[threading.Thread]:
    """Threads that work, as many of them as can be started."""
    started: list[threading.Thread] = []
    with suppress(RuntimeError):
        for _ in range(count):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            started.append(thread)
    return started


@dataclass
class _Workers:
    """Run examples: in threads, or by an executor of the user's choice."""

    model: Any
    guide: Any
    threads: int
    executor: Any
    failed_score: float
    journal: _Journal
    watch: _Watch
    unjudged: int = 0  # examples, so far
    warned: set[str] = field(default_factory=set)  # about what

    @property
    def here(self) -> bool:
        """Do the examples run in this process?"""
        return self.executor is None or isinstance(self.executor, ThreadPoolExecutor)

    def check_carries(self, parameters: Iterable[ParameterNode[Any]]) -> None:
        """Raise if the model would not carry one of these parameters to another process."""
        missing = () if self.here else set(parameters).difference(_parameters_of(self.model))
        if missing:
            names = ", ".join(sorted(parameter.name for parameter in missing))
            raise ValueError(
                f"{names}: no parameter of the model, so no other process would see it"
            )

    def run(self, examples: _Examples, place: _Record, traced: bool = False) -> list[_Result]:
        """Run examples; the results come in their order."""
        jobs = []
        for index, (query, info) in examples:
            where = {**place, "example": index}
            jobs.append(_Job(self.model, self.guide, traced, query, info, where))
        with self.journal.recording(place, shared=True):
            results = self.results(jobs)
        # A failure is never better than what was judged.
        scores = [result.score for result in results if result.score is not None]
        self.failed_score = min([self.failed_score, *scores])
        for job, result in zip(jobs, results, strict=True):
            if result.failed:
                result.score = self.failed_score
            self.journal.write(job.record(result))
        self.count_unjudged(results)
        return results

    def count_unjudged(self, results: Sequence[_Result]) -> None:
        """Count the examples without a judgement; warn if none has one."""
        reasons = [result.unjudged for result in results if result.unjudged]
        self.unjudged += len(reasons)
        if reasons and len(reasons) == len(results):
            self.warn_once(
                f"the guide judged none of {_several(len(results), 'example')}, and an example "
                f"without a judgement has no score and teaches nothing: {reasons[-1]}"
            )

    def warn_once(self, words: str) -> None:
        """Warn, if nothing that begins so was said in this run."""
        if words[:20] not in self.warned:
            self.warned.add(words[:20])
            _warn(words)

    def results(self, jobs: Sequence[_Job]) -> list[_Result]:
        """The results of jobs, which run wherever they should."""
        if self.executor is not None:
            return self.run_in(self.executor, jobs)
        if min(self.threads, len(jobs)) < 2:
            return [self.run_job(job) for job in jobs]
        return _side_by_side(self.run_job, jobs, self.threads)

    def run_job(self, job: _Job) -> _Result:
        with self.watch.flight("examples"), self.journal.recording(job.place):
            return job.run()

    def run_in(self, pool: Any, jobs: Sequence[_Job]) -> list[_Result]:
        """Run jobs in a pool; at the end those not begun are called off, the others awaited."""
        parameters = [] if self.here else _parameters_of(self.model)
        calls = [self.call(job, [parameter.data for parameter in parameters]) for job in jobs]
        futures: list[Future[Any]] = []
        results: dict[Future[Any], Any] = {}
        try:
            for call in calls:
                futures.append(pool.submit(*call))
            for future in as_completed(futures):
                results[future] = None  # taken, whatever comes
                results[future] = self.received(future.result(), parameters)
        except KeyboardInterrupt:
            self.watch.stopped = True
            begun = [future for future in futures if not (future.cancel() or future.done())]
            if begun:
                _say(_STOPPING.format(len(begun), "examples"))
            raise
        finally:
            begun = [future for future in futures if not future.cancel()]
            wait(begun)
            for future in set(begun).difference(results):  # its replies are paid for too
                with suppress(Exception):
                    self.received(future.result(), parameters)
        return [results[future] for future in futures]

    def call(self, job: _Job, values: list[Any]) -> tuple[Any, ...]:
        """What a pool has to call: in a copy of this context or, packed, where there is none.

        To another process go the parameters' values and the replies on record.
        """
        if self.here:
            return copy_context().run, self.run_job, job
        try:
            return _run_packed, _packed((job, values, self.journal.replies_at(job.place)))
        except Exception as error:
            words = "model, guide and data must be picklable for an executor of other processes"
            raise TypeError(f"{words}: {error}") from error

    def received(self, given: Any, parameters: Sequence[Any]) -> _Result:
        """The result of a job; if it comes from another process, its calls are written down."""
        if isinstance(given, _Result):
            return given
        result: _Result
        result, records, error = _unpacked(given, parameters)
        for record in records:
            self.journal.write(record)
        if error is not None:
            raise error
        return result


def _run_packed(packed: bytes) -> bytes:
    """Run a job that came from another process; its result, the calls it made, and its error."""
    job, values, replies = pickle.loads(packed)
    parameters = _parameters_of(job.model)
    _restore(dict(zip(parameters, values, strict=True)))
    result, records, error = None, list[_Record](), None

    def run() -> Any:
        with around_calls(_Spot(job.place, replies, records.append)):
            return job.run()

    try:
        result = Context().run(run)  # a forked process has the hooks of the run in its own
    except Exception as caught:
        error = caught
    return _packed((result, records, error), parameters)


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def _restore(values: _Values) -> None:
    """Put back values that the parameters accepted before."""
    for parameter, value in values.items():
        parameter.restore(value)


def _packed(value: Any, parameters: Sequence[Any] = ()) -> bytes:
    """A pickle that names parameters by their place, so that it can meet the living ones."""
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    # The module that Dask or loky brought knows the classes of a script too.
    module: Any = sys.modules.get("cloudpickle") or pickle

    class Pickler(module.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> Any:
            return places.get(id(value))

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _unpacked(data: bytes, parameters: Sequence[Any]) -> Any:
    """The value in such a pickle, made of the living parameters."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, place: Any) -> Any:
            return parameters[place]

    return Unpickler(io.BytesIO(data)).load()


def _parameters_of(model: Any) -> list[ParameterNode[Any]]:
    """The parameters that a model carries along to another process."""
    if isinstance(model, ParameterNode):
        return [model]
    if hasattr(model, "parameters"):
        return list(model.parameters())
    words = "carries no parameters to another process: make it a module or a bundle"
    raise TypeError(f"{to_text(model, 60)} {words}")


# ---- How does a run go on after a crash? By its journal, with every reply in it ------------------


_FACTS = "usage", "model", "finish_reason"


class _Spot:
    """A hook at one place of a run: it gives replies on record again, and records new ones.

    A call is found by what is asked, of which language model, and how often it was asked here
    before, so that neither other threads nor other parts of the run change what it gets.
    """

    def __init__(
        self, place: _Record, replies: Mapping[Any, Any], write: Callable[[_Record], None]
    ) -> None:
        self.place, self.replies, self.write = place, replies, write
        self.turns = Counter[str]()
        self.lock = threading.Lock()

    def __call__(self, llm: Any, messages: Any, options: Any, ask: Callable[[], Reply]) -> Reply:
        key = _call_key(_asked(llm), messages, options)
        with self.lock:
            self.turns[key] += 1
            turn = self.turns[key]
        given = self.replies.get((turn, key))
        if given is None:
            record = {"event": "call", **self.place, "turn": turn, "key": key}
            given = self.new({**record, "messages": messages, "options": options}, ask)
        if isinstance(given, LLMError):
            raise given
        return given

    def new(self, record: _Record, ask: Callable[[], Reply]) -> Reply | LLMError:
        """Ask, and record what comes: a reply, or the error that says there is none."""
        began = time.monotonic()
        given: Reply | LLMError
        try:
            given = ask()
            told = {name: getattr(given, name) for name in _FACTS}
            told |= {"reply": str(given), "tokens": _tokens(record["messages"], given)}
        except BaseException as error:
            if not (isinstance(error, LLMError) and error.kind in _UNSPOKEN):
                self.take_back(record)
                raise
            given, told = error, {"reply": None, "error": {"words": str(error), **vars(error)}}
        self.write({**record, **told, "seconds": round(time.monotonic() - began, 3)})
        return given

    def take_back(self, record: _Record) -> None:
        """A call that failed is none, and its turn is free again."""
        with self.lock:
            if self.turns[record["key"]] == record["turn"]:
                self.turns[record["key"]] -= 1


def _call_key(llm: str, messages: Any, options: Any) -> str:
    """What tells calls apart."""
    text = json.dumps([llm, messages, options], sort_keys=True, ensure_ascii=False, default=to_text)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _asked(llm: Any) -> str:
    """What tells language models apart: the name of the model or, without one, of the function."""
    function = getattr(llm, "function", llm)
    model = getattr(function, "model", None)
    if not model and function is llm:
        model = os.environ.get("MINITRACE_MODEL")
    return str(model or getattr(function, "__qualname__", type(function).__qualname__))


def _given(record: _Record) -> Reply | LLMError | None:
    """What a call on record gave, if that was kept."""
    if isinstance(record.get("reply"), str):
        return Reply(record["reply"], **{name: record[name] for name in _FACTS if name in record})
    error = record.get("error")
    return LLMError(str(error["words"]), **error) if error else None


def _place(record: _Record) -> tuple[Any, ...]:
    """Where in a run a record belongs."""
    return tuple(record.get(name) for name in ("step", "part", "candidate", "example"))


def _mark(record: _Record) -> tuple[Any, ...]:
    """What tells records apart: a run that was resumed may have had several ends."""
    event = record["event"]
    reason = record.get("reason") if event == "end" else ""
    return event, *_place(record), reason, record.get("turn"), record.get("key")


def _content(record: _Record) -> str:
    """What a record says, but not when it was nor how long it took."""
    timeless = {key: value for key, value in record.items() if key not in ("time", "seconds")}
    return json.dumps(timeless, sort_keys=True)


_STEP = {"event": "step"}
_open_journals = weakref.WeakSet[Any]()
if hasattr(os, "register_at_fork"):  # or a child would keep the lock when the run is gone
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _open_journals])


class _Journal:
    """An append-only file of JSON lines that tells all that happened in a run, and resumes it.

    To resume is to run again on the replies recorded here; a record that is there already is not
    written again. That a language model would not speak is written when the run has got past it,
    so that what ended a run is asked for again. Without a path nothing is kept.
    """

    def __init__(self, path: Any, redact: Callable[[_Record], Any] | None = None) -> None:
        self.path = path and os.fspath(path)
        self.redact = redact
        self.first: _Record = {}  # the first record
        self.known: dict[Any, str] = {}  # what each record says, by its mark
        self.replies: dict[Any, dict[Any, Any]] = {}  # by place, then by turn and key
        self.passed: list[Any] = []  # the values after each step
        self.finished = False  # Is the whole of this run on record, as far as we know?
        self.unspoken: list[_Record] = []  # of calls that the run may not get past
        self.here = ContextVar[_Spot]("minitrace_train_spot")
        self.shared: _Spot | None = None  # for calls from threads that do not know their place
        self.changed: list[str] = []  # what is not as it was, but may be
        self.lock = threading.Lock()
        self.agrees = True
        self.closed = False  # A plain thread of another run may still be in a call.

    @contextmanager
    def opened(self) -> Iterator[_Journal]:
        """The journal, with all that an earlier run wrote, for this run alone to write."""
        if not self.path:
            yield self
            return
        with open(self.path, "a+b", buffering=0) as self.file:
            _lock(self.file, self.path)
            _open_journals.add(self.file)
            self.read()
            try:
                yield self
            finally:
                with self.lock:
                    self.closed = True

    def answer(self, llm: Any, messages: Any, options: Any, ask: Callable[[], Reply]) -> Reply:
        """The reply to a call, by the spot that it comes from."""
        spot = self.here.get(self.shared)
        return spot(llm, messages, options, ask) if spot else ask()

    def read(self) -> None:
        """Read what an earlier run wrote, and mend what a crash tore at its end."""
        self.file.seek(0)
        data = self.file.read()
        lines = _whole_lines(data)
        for number, line in enumerate(lines, 1):
            try:
                self.read_record(json.loads(line))
            except (ValueError, LookupError, TypeError, AttributeError):
                words = "not a record of a journal; name another file"
                raise MinitraceError(f"{self.path}, line {number}: {words}") from None
        whole = b"".join(line + b"\n" for line in lines)
        self.file.truncate(min(len(whole), len(data)))
        self.file.write(whole[len(data) :])

    def read_record(self, record: _Record) -> None:
        """Take in a record of an earlier run."""
        self.known[_mark(record)] = _content(record)
        if not self.first:
            begun = {"names": {}, "made_of": {}, "configuration": record["configuration"]}
            self.first = {**begun, **record}
        if record["event"] == "call":
            replies = self.replies.setdefault(_place(record), {})
            replies[record["turn"], record["key"]] = _given(record)
        elif record["event"] in ("step", "end"):
            self.passed.append(record.get("values"))
            self.finished |= not record.get("reason", "budget").startswith("budget")

    def replies_at(self, place: _Record) -> Mapping[Any, Any]:
        """The replies on record for this place of the run, by turn and key."""
        return self.replies.get(_place(place), {})

    @contextmanager
    def recording(self, place: _Record, shared: bool = False) -> Iterator[None]:
        """A block in which calls to language models are recorded, or answered from the record.

        A shared place is also that of the calls from plain threads.
        """
        spot, outer = _Spot(place, self.replies_at(place), self.write), self.shared
        token = self.here.set(spot)
        if shared:
            self.shared = spot
        try:
            yield
        finally:
            self.here.reset(token)
            self.shared = outer if shared else self.shared

    def write(self, record: _Record) -> None:
        """Add a record, unless it is there; before it those of silence that the run got past."""
        if not self.path or self.closed:
            return
        if record.get("error"):
            self.unspoken.append(record)
            return
        while self.unspoken and record["event"] in ("example", "step"):
            self.write_now(self.unspoken.pop(0))
        self.write_now(record)

    def write_now(self, record: _Record) -> None:
        """Add a record, in one write, unless it is there."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            text = json.dumps({"event": record["event"], "time": now, **record}, default=to_text)
            kept = self.redacted(json.loads(text))  # a copy as it can be read again
            if kept is None:
                return
            known, content = self.known.get(_mark(record)), _content(kept)
            if known is None:
                self.append(kept)
                again = record["event"] == "call" and _mark({**_STEP, "step": record["step"]})
                known = "" if again in self.known else content  # it was not asked there before
            self.compare(known, content)
        except Exception as error:  # of ours, or it would pass for a failure of the program
            raise MinitraceError(f"{self.path}: a record could not be written: {error}") from error

    def redacted(self, record: _Record) -> Any:
        """A record as the user's function wants it to be kept."""
        event = record["event"]
        kept = self.redact(record) if self.redact else record
        told = isinstance(kept, dict) and kept.get("event") == event
        if told or (kept is None and event != "run"):
            return kept
        raise TypeError(f"redact= gave {to_text(kept, 60)} for a record of the event {event!r}")

    def append(self, record: _Record) -> None:
        """Add a line, all of it or nothing."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with self.lock:
            if self.closed:
                return
            self.finished = False
            end = os.fstat(self.file.fileno()).st_size
            try:
                while line:
                    line = line[self.file.write(line) :]
            except BaseException:
                self.file.truncate(end)
                raise

    def compare(self, old: str, new: str) -> None:
        """Warn, once, when what happens again is not what is recorded."""
        if self.agrees and old != new:
            self.agrees = self.finished = False
            why = "something that is not recorded, such as chance or the time, has a part in it"
            if self.changed:
                why = f"{' and '.join(self.changed)} changed since; to start over name another file"
            _warn(f"{self.path}: the run differs from the one on record: {why}. Now {new:.200}")

    def begin(self, configuration: _Record, made_of: _Record, names: _Record) -> _Record:
        """Note what is run or, if that was noted before, check that it is the same.

        Returns: the record of that. The values may be those that the run began or ended with.
        """
        now = json.loads(json.dumps(configuration))
        if not self.first:
            self.first = {"configuration": now, "names": names, "made_of": made_of}
            self.write({"event": "run", "version": 2, **self.first})
        then, goes_on = self.first["configuration"], {"history"}
        if now["parameters"] in self.passed:
            goes_on.add("parameters")
        if now["epochs"] > then["epochs"]:
            goes_on.add("epochs")
        differ = [key for key in now if now[key] != then.get(key) and key not in goes_on]
        if differ:
            told = [f"{key} was {then.get(key)!r:.300}, now {now[key]!r:.300}" for key in differ]
            raise MinitraceError(
                f"{self.path} is the journal of another run: {'; '.join(told)}; name another file"
            )
        made_then = self.first["made_of"]
        self.changed = [key for key in made_of if made_of[key] != made_then.get(key)]
        return self.first

    def tell_if_finished(self) -> None:
        """Say so if the whole run was on record."""
        if self.finished:
            _warn(
                f"{self.path} holds the whole of this run, so nothing was asked. To start over, "
                "name another file or delete this one; to go on, raise epochs"
            )


def _warn(words: str) -> None:
    """Warn about the line outside these files that is at work."""
    ours = {function.__code__.co_filename for function in (train, to_text, contextmanager)}
    level, frame = 1, sys._getframe(1)
    while frame.f_code.co_filename in ours and frame.f_back:
        level, frame = level + 1, frame.f_back
    warnings.warn(words, stacklevel=level + 1)


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines of a file, without a record at its end that a crash cut short."""
    *lines, last = data.split(b"\n")
    try:
        json.loads(last)
    except ValueError:
        if last[:1] in (b"", b"{", b"\0"):
            return lines
    return [*lines, last]


def _lock(file: Any, path: str) -> None:
    """Keep other processes from writing a file for as long as it is open here."""
    try:
        if os.name == "nt":  # what is locked there cannot be read: a byte far beyond the end
            import msvcrt

            file.seek(1 << 40)
            getattr(msvcrt, "locking")(file.fileno(), getattr(msvcrt, "LK_NBLCK"), 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise MinitraceError(f"{path} is being written by another run: name another file") from None


# ---- What is a run? A step for each batch, and the best values at the end ------------------------


class Run(NamedTuple):
    """How a training run ended.

    Attributes:
        reason: why it ended: `"epochs"`, `"patience"`, or `"budget: ..."`.
        steps: how many it took.
        score: of the best values, the mean of `examples` examples of the set that `scored_on`
            names. None if the guide gave words only.
        values: the best values, by name.
        scores: the mean of each batch before its step.
        spent: the calls and tokens, or what the budget says.
        refused: how many replies to the optimizer could not be used.
        examples: how many examples `score` is the mean of.
        scored_on: `"validation"`; without that `"dataset"`, the whole of it; or `"batch"`, that of
            the step which found the values, if the dataset was not measured at the end.
        unjudged: how many times an example got no judgement, because no reply to the guide's
            language model could be used. A step in which that holds for all of them asks for
            nothing and changes nothing.

    >>> from minitrace import OptoPrime, StubLLM, node
    >>> size = node(1, name="size", trainable=True)
    >>> def guide(query, response, info):
    ...     return -abs(response - info), "too small" if response < info else "too large"
    >>> run = train(size, [(None, 3)], guide, OptoPrime(size, llm=StubLLM()), epochs=3)
    >>> run.reason, run.steps, run.score, run.values, run.scores, run.spent["calls"]
    ('epochs', 3, 0.0, {'size0': 3}, [-2.0, -1.0, -1.0], 3)
    >>> run.examples, run.scored_on, run.refused
    (1, 'dataset', 0)
    """

    reason: str
    steps: int
    score: float | None
    values: _Record
    scores: list[float | None]
    spent: Mapping[str, float]
    refused: int = 0
    examples: int = 0
    scored_on: str = ""
    unjudged: int = 0

    def __repr__(self) -> str:
        score = "None"
        if self.score is not None:
            kind = " set" * (self.scored_on == "validation")
            of = f"{_several(self.examples, 'example')} of the {self.scored_on}{kind}"
            score = f"{self.score:g} (the mean of {of})"
        unjudged = f"unjudged={self.unjudged}, " if self.unjudged else ""
        return (
            f"Run(reason={self.reason!r}, steps={self.steps}, score={score}, "
            f"refused={self.refused}, {unjudged}values={self.values!r}, scores={self.scores!r}, "
            f"spent={dict(self.spent)!r})"
        )


@dataclass
class _Candidate:
    """A proposal and how its values did: on the batch, and on the validation set.

    The values in force are candidate 0 of a step.
    """

    number: int
    proposal: Proposal
    scores: _Scores = field(default_factory=dict)
    held_out: _Scores = field(default_factory=dict)
    feedback: Sequence[Any] = ()
    whole: bool = False  # Was the batch the whole dataset?
    values: _Values = field(default_factory=dict)  # once they are in force
    step: int = 0  # that found these

    @property
    def score(self) -> float | None:
        return _mean(self.scores)

    @property
    def validation(self) -> float | None:
        return _mean(self.held_out)

    def gain(self, other: _Candidate, same: bool = True) -> list[float]:
        """By how much it is better, by validation and then on the batch; on the same examples.

        It is better than another one if this is more than what that gains on itself.

        Args:
            same: whether both were measured on the same batch.
        """
        pairs = _means(self.held_out, other.held_out), _means(self.scores, other.scores, same)
        return [own if others == -math.inf else own - others for own, others in pairs]


def _means(one: _Scores, other: _Scores, same: bool = True) -> tuple[float, float]:
    """Two means over the examples that have both scores; the lowest of all if there are none.

    Where nothing says that they are of the same examples, each is the mean of its own.
    """
    common = [index for index in one if index in other]
    if common:
        one, other = ({index: each[index] for index in common} for each in (one, other))
    elif same and other:
        one = {}
    mine, others = (-math.inf if mean is None else mean for mean in map(_mean, (one, other)))
    return mine, others


def _mean(scores: _Scores) -> float | None:
    return sum(scores.values()) / len(scores) if scores else None


def _by_example(examples: _Examples, results: Sequence[_Result]) -> _Scores:
    """The scores that there are, by the number of the example."""
    pairs = zip(examples, results, strict=True)
    return {index: each.score for (index, _), each in pairs if each.score is not None}


@dataclass
class _Training:
    """One run of `train`: its parts, and where it stands."""

    optimizer: Optimizer
    workers: _Workers
    examples: _Examples
    held_out: _Examples
    options: SimpleNamespace
    progress: Any

    def __post_init__(self) -> None:
        if self.progress is None and sys.stderr is not None and sys.stderr.isatty():
            self.progress = _show_progress
        self.journal, self.watch = self.workers.journal, self.workers.watch
        self.paths = _paths(self.workers.model, self.optimizer.parameters)
        self.names = {each: each.name for each in self.paths}  # in this process
        self.refused = 0  # replies
        self.compares = bool(self.options.gate or self.held_out or self.options.candidates > 1)
        self.began = time.monotonic()
        self.number = 0  # of the present step
        self.stale = 0  # steps in a row that brought nothing better
        self.scores: list[float | None] = []
        self.now = self.best = _Candidate(0, Proposal(), values=self.values())

    def values(self) -> _Values:
        """The values in force."""
        return {parameter: parameter.data for parameter in self.optimizer.parameters}

    def by_name(self, values: _Values) -> _Record:
        """Values as the optimizer calls them, which tells functions of one name apart."""
        named = zip(self.optimizer.names, self.optimizer.parameters, strict=True)
        return {name: values[parameter] for name, parameter in named}

    def encoded(self, values: _Values) -> _Record:
        """Values as the journal keeps them, by path."""
        return {self.paths[each]: encode(value, as_text=True) for each, value in values.items()}

    def begin(self, facts: _Record, made_of: _Record) -> None:
        """Note what is run, or go back to where the run in the journal began."""
        optimizer = self.optimizer
        facts["parameters"] = now = self.encoded(self.values())
        facts["history"] = [len(optimizer.history), len(optimizer.refused)]
        names = {path: [each.name, each.py_name] for each, path in self.paths.items()}
        first = self.journal.begin(facts, made_of, names)
        began, names = first["configuration"], first["names"] or names
        attempts, rules = began["history"]
        del optimizer.history[attempts:]
        for words in list(optimizer.refused)[rules:]:
            del optimizer.refused[words]
        if began["parameters"] != now:
            values = {each: decode(began["parameters"][path]) for each, path in self.paths.items()}
            _restore(optimizer.checked(values))
        self.now = self.best = replace(self.now, values=self.values())
        self.rename({each: names[path][0] for each, path in self.paths.items()})

    def rename(self, names: Mapping[ParameterNode[Any], str]) -> None:
        """Call the parameters by other names, also in what the optimizer remembers."""
        optimizer, old = self.optimizer, list(self.optimizer.names)
        optimizer.rename(names)
        new = dict(zip(old, optimizer.names, strict=True))
        for place, attempt in enumerate(optimizer.history):
            values = {new.get(name, name): value for name, value in attempt.values.items()}
            optimizer.history[place] = Attempt(values, *attempt[1:])

    def run(self) -> Run:
        """Take all steps, leave the best values in the model in any case, and say how it ended."""
        try:
            reason = self.until_spent(self.take_steps)
            _restore(self.best.values)
            self.until_spent(self.measure)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.how_to_go_on()) from None
        finally:
            _restore(self.best.values)
            self.rename(self.names)
            if self.progress is _show_progress:
                print(file=sys.stderr)
        run = self.outcome(reason)
        self.record(
            "end", reason=reason, best=self.best_as_dict(), score=run.score, examples=run.examples,
            scored_on=run.scored_on, refusals=run.refused, values=self.encoded(self.best.values),
        )  # fmt: skip
        self.journal.tell_if_finished()
        return run

    def until_spent(self, function: Callable[[], str]) -> str:
        """What a function says or, if a budget ended before it, what that says."""
        try:
            return function()
        except Exception as error:
            ends = _what_ends_a_run(error)
            if getattr(ends, "kind", "") != "budget":
                raise
            return f"budget: {ends}"

    def outcome(self, reason: str) -> Run:
        """How the run ended."""
        best, values = self.best, self.by_name(self.best.values)
        examples = len(best.held_out if self.held_out else best.scores)
        where = "validation" if self.held_out else "dataset" if best.whole else "batch"
        facts = self.watch.spent, self.refused, examples, where, self.workers.unjudged
        return Run(reason, self.number, self.best_score(), values, self.scores, *facts)

    def measure(self) -> str:
        """Measure the best values on the whole dataset, where that tells something new."""
        known = self.held_out or (self.best.whole and self.best.scores)
        scored = any(score is not None for score in self.scores)
        if self.options.measure and scored and not known:
            results = self.workers.run(self.examples, self.place("measure"))
            self.best = self.scored(self.best, self.examples, results)
        return ""

    def how_to_go_on(self) -> str:
        """What somebody who stopped the run wants to know."""
        again = "with journal= it could be resumed"
        if self.journal.path:
            again = f"the same call resumes it from {self.journal.path}"
        return f"stopped in step {self.number}; the best values so far are in the model; {again}"

    def place(self, part: str, candidate: int = 0) -> _Record:
        """A place in the run: what tells its records and calls from those elsewhere."""
        return {"step": self.number, "part": part, "candidate": candidate}

    def record(self, event: str, **facts: Any) -> None:
        self.journal.write({"event": event, "step": self.number, **facts})

    def best_score(self) -> float | None:
        """The score of the best so far."""
        return self.best.validation if self.held_out else self.best.score

    def best_as_dict(self) -> _Record:
        """The best so far: the step that found it, and its score."""
        return {"step": self.best.step, "score": self.best_score()}

    def take_steps(self) -> str:
        """Take all steps; say why there are no more."""
        if self.held_out:
            self.now = replace(self.now, held_out=self.validated())
        for epoch, batch in self.batches():
            self.number += 1
            self.step(epoch, batch)
            self.show()
            if self.stale == self.options.patience:
                return "patience"
        return "epochs"

    def batches(self) -> Iterator[tuple[int, _Examples]]:
        """All batches, each with the number of its epoch, from 1."""
        size = self.options.batch_size
        for epoch in range(self.options.epochs):
            examples = list(self.examples)
            if self.options.shuffle:
                random.Random(f"{self.options.seed} {epoch}").shuffle(examples)
            for start in range(0, len(examples), size):
                yield epoch + 1, examples[start : start + size]

    def step(self, epoch: int, batch: _Examples) -> None:
        """One batch: run it, send back what was said, ask for candidates, keep the best of them."""
        self.optimizer.zero_feedback()
        results = self.workers.run(batch, self.place("forward"), traced=True)
        now = self.scored(self.now, batch, results)
        candidates: list[_Candidate] = []
        for proposal in self.proposals(results):
            candidates.append(self.tried(proposal, batch, candidates))
        chosen, reason = self.choose(now, candidates)
        self.keep(now, candidates, chosen, reason)
        self.scores.append(now.score)
        self.stale = 0 if reason in ("better", "no scores", "not compared") else self.stale + 1
        self.record(
            "step", epoch=epoch, score=now.score, validation=now.validation, accepted=chosen.number,
            reason=reason, best=self.best_as_dict(), values=self.encoded(self.values()),
            graph=self.graph_as_dict(),
        )  # fmt: skip

    def validated(self, candidate: int = 0) -> _Scores:
        """The scores of the values in force, on what was held out."""
        results = self.workers.run(self.held_out, self.place("validate", candidate))
        return _by_example(self.held_out, results)

    def scored(
        self, candidate: _Candidate, batch: _Examples, results: Sequence[_Result]
    ) -> _Candidate:
        """A candidate with its scores on a batch."""
        scores, whole = _by_example(batch, results), len(batch) == len(self.examples)
        return replace(candidate, scores=scores, whole=whole)

    def graph_as_dict(self) -> Any:
        """The graph of the feedback as the journal keeps it, if it is not too large."""
        graph = self.optimizer.graph()
        if self.journal.path and 0 < len(graph) <= 500:
            return json.loads(graph.to_json())
        return None

    def proposals(self, results: Sequence[_Result]) -> list[Proposal]:
        """Send back what was said, and ask for proposals; a refusal is one that changes nothing."""
        optimizer, on_refusal = self.optimizer, self.optimizer.on_refusal
        try:
            optimizer.on_refusal = on_refusal or "keep"
            proposals = self.propose() if self.send_back(results) else []
        except (ReplyError, LLMError) as error:
            if on_refusal == "raise" or _what_ends_a_run(error):
                raise
            proposals = [Proposal()]
            proposals[0].refused = [str(error)]
        finally:
            optimizer.on_refusal = on_refusal
        self.refused += sum(len(proposal.refused) for proposal in proposals)
        return proposals

    def send_back(self, results: Sequence[_Result]) -> bool:
        """Send each example's feedback back in one backward. Has the optimizer heard of it?"""
        if all(result.unjudged for result in results):
            return False
        optimizer, outputs = self.optimizer, [result.output for result in results]
        feedback = [result.feedback for result in results]
        scores = [result.score for result in results]
        with self.journal.recording(self.place("backward"), shared=True):
            optimizer.backward(outputs, feedback, score=scores)
        if any(parameter.feedback for parameter in optimizer.parameters):
            return True
        others = ", ".join(each.name for each in TraceGraph.of(*outputs).parameters)
        if others:
            own = ", ".join(parameter.name for parameter in optimizer.parameters)
            self.workers.warn_once(
                f"the feedback reaches {others}, and none of the optimizer's parameters, which are "
                f"{own}: an optimizer of another model, or of another instance, trains nothing here"
            )
        return False

    def propose(self) -> list[Proposal]:
        """The proposals, checked, which no later check repeats."""
        optimizer, count = self.optimizer, self.options.candidates
        with self.journal.recording(self.place("propose"), shared=True):
            if count == 1:
                found = optimizer.propose()
            else:  # in a thread, since Ctrl-C stops this one
                (found,) = _side_by_side(optimizer.propose, [count], 1)
        several = [found] if isinstance(found, Mapping) else found or []
        return list(map(optimizer.as_proposal, several))

    def tried(
        self, proposal: Proposal, batch: _Examples, before: Sequence[_Candidate]
    ) -> _Candidate:
        """A candidate, measured unless one before it had the same values."""
        candidate, values = _Candidate(len(before) + 1, proposal), self.encoded(proposal)
        same = [each for each in before if self.encoded(each.proposal) == values]
        if same:
            candidate = replace(same[0], number=candidate.number, proposal=proposal)
        elif proposal and self.compares:
            candidate = self.measured(candidate, batch)
        self.record(
            "proposal", values=values, reasoning=proposal.reasoning, answer=proposal.answer,
            refused=proposal.refused, usage=proposal.usage and dict(proposal.usage),
            diff=proposal.diff(), score=candidate.score, validation=candidate.validation,
            candidate=candidate.number, seconds=round(proposal.seconds, 3),
        )  # fmt: skip
        return candidate

    def measured(self, candidate: _Candidate, batch: _Examples) -> _Candidate:
        """A candidate with its scores, on the batch and on what was held out; it does not stay."""
        before = self.values()
        try:
            _restore(candidate.proposal)
            results = self.workers.run(batch, self.place("check", candidate.number))
            held_out = self.validated(candidate.number)
        finally:
            _restore(before)
        feedback = [result.feedback for result in results]
        known = replace(candidate, held_out=held_out, feedback=feedback)
        return self.scored(known, batch, results)

    def choose(self, now: _Candidate, candidates: Sequence[_Candidate]) -> tuple[_Candidate, str]:
        """The candidate to keep, which may be the values in force, and why."""
        changing = [each for each in candidates if each.proposal]
        if not changing:
            return now, self.why_unchanged([each.proposal for each in candidates])
        best = max(changing, key=lambda each: each.gain(now))  # the first of equals
        if not self.compares:
            return best, "not compared"
        if not (best.scores or best.held_out or now.scores or now.held_out):
            return best, "no scores"
        gain, even = best.gain(now), now.gain(now)
        if gain < even:
            return now if self.options.gate else best, "worse"
        return best, "better" if gain > even else "as good"

    def why_unchanged(self, proposals: Sequence[Proposal]) -> str:
        """Why no proposal has a value; the first refusal of a run is told."""
        if not proposals:
            return "no feedback"
        if not all(each.refused and len(each.refused) >= len(each.replies) for each in proposals):
            return "no change"
        self.workers.warn_once(
            "no reply to the optimizer could be used, so nothing changed: "
            f"{proposals[0].refused[-1]} (step {self.number}; Run.refused counts such replies)"
        )
        return "refused"

    def keep(
        self, now: _Candidate, candidates: Sequence[_Candidate], chosen: _Candidate, reason: str
    ) -> None:
        """Set the chosen values, and let the optimizer remember what was not chosen."""
        latest_is_best = self.options.gate or not self.compares
        if not latest_is_best and now.gain(self.best, same=False) > self.best.gain(self.best):
            self.best = now
        for candidate in candidates:
            if candidate.proposal and candidate is not chosen:
                self.remember(candidate, now)
        if reason in ("no change", "refused"):
            self.optimizer.update(candidates[0].proposal)  # which writes the history, no more
        if chosen.proposal:
            self.optimizer.update(chosen.proposal)
        step = self.number if chosen.proposal else now.step
        self.now = replace(chosen, number=0, proposal=Proposal(), values=self.values(), step=step)
        even = self.best.gain(self.best)
        if latest_is_best or reason == "no scores" or chosen.gain(self.best, same=False) >= even:
            self.best = self.now

    def remember(self, candidate: _Candidate, now: _Candidate) -> None:
        """Put what was tried in vain into the history, so that it is not proposed again."""
        said = dict.fromkeys(_in_words(each, 300) for each in candidate.feedback)
        feedback = [words for words in said if words][:4]
        if now.validation is not None and candidate.validation is not None:
            told = f"on other examples {candidate.validation:g}, not {now.validation:g} as before"
            feedback.append(told)
        values = self.by_name({**self.values(), **candidate.proposal})
        self.optimizer.remember(Attempt(values, feedback, candidate.score, reason="not kept"))

    def show(self) -> None:
        """Tell how far it got: to a function of the user's, or on a terminal."""
        if not self.progress:
            return
        steps = self.options.epochs * math.ceil(len(self.examples) / self.options.batch_size)
        state = {"step": self.number, "steps": steps, "score": self.scores[-1]}
        pace = (time.monotonic() - self.began) / self.number
        left = round(pace * (steps - self.number))
        self.progress(
            {**state, "best": self.best_score(), **self.watch.spent, "seconds_left": left}
        )


def _paths(model: Any, parameters: Iterable[ParameterNode[Any]]) -> dict[ParameterNode[Any], str]:
    """What the journal calls parameters: their paths in the model, as `save` has them.

    One that is not in the model is called by its name, without the number.
    """
    inside = model.parameters_dict() if hasattr(model, "parameters_dict") else {}
    found = {parameter: path for path, parameter in inside.items()}
    for parameter in parameters:
        path = parameter.name.partition(":")[0]
        while path in found.values():
            path += "_"
        found.setdefault(parameter, path)
    return {parameter: found[parameter] for parameter in parameters}


def _show_progress(state: _Record) -> None:
    """One line on standard error, written over and over."""
    score, best = ("-" if n is None else f"{n:.3g}" for n in (state["score"], state["best"]))
    line = f"step {state['step']}/{state['steps']}  score {score}  best {best}  "
    line += "{calls:,} calls  {tokens:,} tokens  {seconds_left:,} s left".format(**state)
    print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)


def train(
    model: Any, dataset: Any, guide: Any, optimizer: Optimizer | None = None, *, epochs: int = 1,
    batch_size: int = 1, candidates: int = 1, validation: Any = None, patience: int | None = None,
    workers: int = 1, executor: Any = None, journal: Any = None, budget: Any = None,
    progress: Any = None, seed: int = 0, shuffle: bool = False, gate: bool = True,
    failed_score: float = 0.0, redact: Any = None, measure: bool = True,
) -> Run:  # fmt: skip
    """Optimize the parameters of a model on a dataset, and leave the best values in it.

    A step runs a batch, sends each example's own feedback back in one backward, asks for
    candidates, tries them, and keeps the best of them if it is not worse than what is there. At the
    end the values kept are measured on the whole dataset, unless a validation set did it better.

    Args:
        model: a module, a bundle, a parameter, or any callable if the optimizer has its parameters.
            It is called with an input. An async one is awaited, all of them on one event loop. With
            several workers its calls overlap: what it keeps on `self` is shared by all of them. If
            it fails with an `ExecutionError`, the error is the feedback, and the score is
            `failed_score` or the lowest that the guide gave so far, whichever is less.
        dataset: pairs `(input, info)`, or `{"inputs": [...], "infos": [...]}`.
        guide: a function of `(query, response, info)`: see `Guide`. What it raises ends the run,
            except a `ReplyError`, or an `LLMError` because the language model refused, was
            filtered, was cut off or said nothing: these leave that example without a score.
        optimizer: an `OptoPrime` of the model by default. A reply to it that cannot be used changes
            nothing at that step, and is counted; with its `on_refusal="raise"` it ends the run.
        epochs, batch_size: how often to go through the dataset, and how many examples at a time.
            A batch should be large enough that its mean tells a better value from a worse one.
        candidates: how many proposals to ask for in a step, side by side.
        validation: a second dataset, whose mean score then decides.
        patience: end after so many steps in a row without a better score.
        workers: how many examples run at a time, in threads or, async ones, as tasks of the loop;
            one after the other where no thread can be started.
        executor: a `concurrent.futures.Executor` to run them instead: of threads, or of processes
            (then model, guide and data are pickled, and budgets see the optimizer's calls only).
        journal: a file of JSON lines that keeps all that happens, the data too. The same call with
            the same file, in this process or another, resumes the run after a crash and pays for no
            recorded reply again; with more epochs it goes on from where it ended. Prompts go on to
            call the parameters as they did when it began. Language models are told apart by their
            `model` or, without one, by the name of the function or class: two that share it, such
            as two lambdas, need a `model` each, or one may be given what the other said.
        budget: a context manager with a mapping `spent`, such as `minitrace_record.Budget`. The run
            ends when it is spent.
        progress: a function of a dict, called after each step; False for none. By default a line
            on standard error, if that is a terminal.
        seed, shuffle: shuffle the examples of each epoch, by this seed.
        gate: False keeps the best candidate even if it is worse.
        redact: a function that sees a copy of every record before it is written, and returns it,
            changed or not, or None to leave it out (any but the first). What it takes away from a
            reply is missing when the run is resumed; a reply that is gone is asked for again.
        measure: False leaves out the measurement at the end; the score is that of a batch then.

    Ctrl-C ends the run when the calls in flight in other threads have ended, and a second one at
    once. A call in the main thread (of plain code with one worker, or of the optimizer for a single
    candidate) is cut off by the first: its reply is lost, and asked for again on resuming.

    Returns: a `Run`.

    Raises:
        MinitraceError: the journal belongs to another run, or another process is writing it; or
            what no other values would avoid, such as a network that is down. It can be resumed.

    >>> from minitrace import OptoPrime, StubLLM, node
    >>> answer = node(1, name="answer", trainable=True)
    >>> def guide(query, response, info):
    ...     return -abs(response - info), "too low" if response < info else "too high"
    >>> run = train(answer, [("3 + 4?", 7)], guide, OptoPrime(answer, llm=StubLLM()), epochs=6)
    >>> answer.data, run.scores
    (7, [-6.0, -5.0, -3.0, -1.0, -1.0, 0.0])
    """
    if optimizer is None:
        optimizer = OptoPrime(model)
    examples = _pairs(dataset, "dataset")
    held_out = [] if validation is None else _pairs(validation, "validation")
    counts = {"epochs": epochs, "batch_size": batch_size, "candidates": candidates}
    _check_counts(**counts, workers=workers, patience=1 if patience is None else patience)
    _check_kinds(examples, optimizer, budget, failed_score)
    _check_program(model, guide, progress)
    facts: _Record = {**counts, "patience": patience, "gate": gate, "shuffle": shuffle}
    facts |= {"seed": seed, "failed_score": failed_score}
    options = SimpleNamespace(**facts, measure=measure)
    facts |= {"optimizer": type(optimizer).__name__, "dataset": _digest(examples)}
    facts["validation"] = _digest(held_out)
    with _Journal(journal, redact).opened() as opened, budget or nullcontext():
        watch = _Watch(opened)
        runner = _Workers(model, guide, workers, executor, failed_score, opened, watch)
        runner.check_carries(optimizer.parameters)
        training = _Training(optimizer, runner, examples, held_out, options, progress)
        training.begin(facts, _made_of(model, guide, optimizer) if journal else {})
        with watch.opened():
            run = training.run()
    return run if budget is None else Run(*run[:5], budget.spent, *run[6:])


def _check_kinds(examples: _Examples, optimizer: Any, budget: Any, failed_score: Any) -> None:
    if not examples:
        raise ValueError("dataset has no examples: there is nothing to learn from")
    if not isinstance(optimizer, Optimizer):
        told = to_text(optimizer, 60)
        raise TypeError(f"optimizer= takes an Optimizer, such as OptoPrime(model), not {told}")
    if budget is not None and not hasattr(budget, "spent"):
        raise TypeError(f"budget= takes a Budget, not {to_text(budget, 60)}")
    if not isinstance(failed_score, (int, float)) or not math.isfinite(failed_score):
        raise ValueError(f"failed_score= takes a finite number, not {to_text(failed_score, 60)}")


def _check_program(model: Any, guide: Any, progress: Any = None) -> None:
    """Refuse, before anything is paid, what cannot be called as it will be."""
    _check_takes("model", model, "the input")
    _check_takes("guide", guide, "query", "response", "info")
    if progress:
        _check_takes("progress", progress, "a dict")


def _check_takes(name: str, function: Any, *wanted: str) -> None:
    """Raise unless this is a function that can be called with so many arguments."""
    words = f"{name}= takes a function of {', '.join(wanted)}"
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"{words}, not {to_text(function, 60)}")
    with suppress(ValueError):  # it does not say what it takes
        try:
            inspect.signature(function).bind(*wanted)
        except TypeError as error:
            raise TypeError(f"{words}: {to_text(function, 60)} has {error}") from None


def _check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}= takes a whole number from 1, not {count!r}")


def _pairs(dataset: Any, name: str) -> list[tuple[int, Any]]:
    """The examples of a dataset, numbered."""
    if isinstance(dataset, Mapping):
        inputs, infos = list(dataset.get("inputs", ())), list(dataset.get("infos", ()))
        if dataset.keys() != {"inputs", "infos"} or len(inputs) != len(infos):
            words = f"{len(inputs)} inputs and {len(infos)} infos"
            raise TypeError(f"{name} as a mapping has inputs and as many infos, not {words}")
        dataset = zip(inputs, infos, strict=True)
    if not isinstance(dataset, Iterable):
        raise TypeError(f"{name} is a list of pairs (input, info), not {to_text(dataset, 60)}")
    examples = list(enumerate(dataset))
    for index, pair in examples:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                f"{name}[{index}] must be a pair (input, info), not {to_text(pair, 60)}"
            )
    return examples


def _digest(examples: Iterable[tuple[int, Any]]) -> str:
    """How many examples there are, and what tells them from others."""
    pairs = [list(pair) for _, pair in examples]
    text = json.dumps(encode(pairs, as_text=True))
    return f"{_several(len(pairs), 'example')}, {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _made_of(model: Any, guide: Any, optimizer: Optimizer) -> dict[str, str]:
    """What may change between two calls that share a journal, but makes another run of it."""
    settings = "objective", "memory_size", "max_tokens", "max_chars", "retries", "on_refusal"
    told = [_asked(optimizer.llm), *(getattr(optimizer, name, None) for name in settings)]
    return {
        "the guide": _fingerprint(guide),
        "the program": _fingerprint(model),
        "the optimizer": _in_words(told, 2000),
    }


def _fingerprint(thing: Any) -> str:
    """What tells a function from another, or an object: its code, and the plain values it holds."""
    thing = inspect.unwrap(thing) if callable(thing) else thing
    held = [thing if hasattr(thing, "__code__") else type(thing)]
    held += [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, "__defaults__", ()) or ())]
    with suppress(ValueError):  # a cell is empty
        held += [cell.cell_contents for cell in getattr(thing, "__closure__", ()) or ()]
    told = [held[0], *(each for each in held if isinstance(each, (str, int, float)))]
    text = " ".join(words for each in told for words in _in_code(each))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]


def _in_code(value: Any) -> Iterator[str]:
    """The code of a function, or of each function of a class, in words that stay the same."""
    code = getattr(value, "__code__", value)
    if isinstance(code, CodeType):
        yield f"{code.co_name} {code.co_code.hex()} {code.co_names}"
        for each in code.co_consts:
            yield from _in_code(each)
    elif isinstance(value, type):
        for name, each in vars(value).items():
            if callable(each) or not name.startswith("__"):
                yield from _in_code(inspect.unwrap(each))
    elif isinstance(value, (str, int, float)):
        yield repr(value)


# ---- How good is a program as it is? Measuring alone ---------------------------------------------


class Evaluation(NamedTuple):
    """How a model did on a dataset.

    Attributes:
        scores: one for each example; None where the guide gave words only.
        mean: of the scores that there are.
        failures: what was said of the examples that failed, by index.
        responses: one for each example, as plain data.
        feedback: one for each example.

    >>> from minitrace import node
    >>> found = evaluate(lambda x: 6 / node(x), [(2, 3), (0, 1)], lambda q, r, info: r == info)
    >>> found.scores, found.mean, found.responses
    ([1.0, 0.0], 0.5, [3.0, '(ZeroDivisionError) division by zero'])
    >>> list(found.failures)
    [1]
    """

    scores: list[float | None]
    mean: float | None
    failures: dict[int, str]
    responses: list[Any]
    feedback: list[Any]


def evaluate(
    model: Any,
    dataset: Any,
    guide: Any = None,
    *,
    workers: int = 1,
    executor: Any = None,
    failed_score: float = 0.0,
) -> Evaluation:
    """Run a model on every example of a dataset, side by side, and judge the responses.

    Nothing is traced and nothing changes. Without a guide the dataset is an iterable of inputs.

    Args: those of `train`.

    >>> from minitrace import node
    >>> rate = node(2, name="rate", trainable=True)
    >>> def price(amount):
    ...     return rate * amount
    >>> evaluate(price, [1, 2, 3], workers=3).responses
    [2, 4, 6]
    >>> evaluate(price, [(1, 2), (2, 5)], lambda query, response, info: response == info).mean
    0.5
    """
    if guide is None:
        inputs = dataset.get("inputs", ()) if isinstance(dataset, Mapping) else dataset
        dataset, guide = [(each, None) for each in inputs], _say_nothing
    _check_counts(workers=workers)
    _check_program(model, guide)
    journal = _Journal(None)
    watch = _Watch(journal)
    runner = _Workers(model, guide, workers, executor, failed_score, journal, watch)
    with watch.opened():
        return _evaluation(runner.run(_pairs(dataset, "dataset"), {}))


def _say_nothing(query: Any, response: Any, info: Any) -> str:
    """The guide of a measurement without one."""
    return ""


def _evaluation(results: Sequence[_Result]) -> Evaluation:
    """The results of examples, field by field."""
    scores = [result.score for result in results]
    known = [score for score in scores if score is not None]
    return Evaluation(
        scores=scores,
        mean=sum(known) / len(known) if known else None,
        failures={i: str(each.feedback) for i, each in enumerate(results) if each.failed},
        responses=[result.response for result in results],
        feedback=[result.feedback for result in results],
    )
