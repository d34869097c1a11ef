"""Training: the same steps over a whole dataset, in a run that can be resumed.

A companion of `minitrace.py`: copy both files into one folder. `train` improves the parameters of a
program on examples that a guide judges; `evaluate` only measures. Each step of a run is

    run a batch -> send back what was said of each example -> ask for candidates
                -> try each of them -> keep the best, unless it is worse than what is there

Examples run side by side, in threads or in other processes. A journal keeps every reply of a
language model, so that a run that was stopped goes on without paying for any of them twice.

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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

try:
    from minitrace import (
        Attempt,
        ExecutionError,
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


# ---- Guides: how good is a response? -------------------------------------------------------------


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


# ---- One example: the program runs, and the guide judges -----------------------------------------


@dataclass
class _Result:
    """An example that was run: its output, as a node and as plain data, and the judgement."""

    output: Node[Any]
    response: Any
    score: float | None
    feedback: Any
    failed: bool = False


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
            output = self.output()
        except ExecutionError as error:
            _raise_unless_about_values(error)
            failure = error.exception_node
            return _Result(failure, failure.data, None, failure.create_feedback("full"), True)
        if self.guide is None:
            return _Result(output, output.data, None, "")
        try:
            said = _awaited(self.guide(self.query, output.data, self.info))
        except ReplyError as error:  # of a judge that asks a language model
            said = f"(not judged: {error})"
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
        return {
            "event": "example",
            **self.place,
            **texts,
            "score": result.score,
            "feedback": _in_words(result.feedback, 8000),
            "failed": result.failed,
        }


def _raise_unless_about_values(error: ExecutionError) -> None:
    """Raise what no other values would avoid, such as a network that is down."""
    cause = error.__cause__
    unspoken = getattr(cause, "kind", "") in ("refused", "filtered", "empty", "cut off")
    of_program = isinstance(cause, TraceMissingInputsError) or hasattr(cause, "failure")
    if isinstance(cause, MinitraceError) and not (unspoken or of_program):
        raise cause


def _awaited(value: Any) -> Any:
    """The value or, if it is awaitable, what it gives.

    It gets a loop of its own in another thread, since one may be running in this thread.
    """
    if not inspect.isawaitable(value):
        return value
    import asyncio

    async def whole() -> Any:
        return await value

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, asyncio.run, whole()).result()


# ---- Side by side: examples in threads, or in other processes ------------------------------------


@dataclass
class _Workers:
    """Run examples: in threads, or by an executor of the user's choice."""

    model: Any
    guide: Any
    threads: int
    executor: Any
    failed_score: float
    journal: _Journal

    @property
    def here(self) -> bool:
        """Do the examples run in this process?"""
        return self.executor is None or isinstance(self.executor, ThreadPoolExecutor)

    def check_carries(self, parameters: Iterable[ParameterNode[Any]]) -> None:
        """Raise if the model would not carry one of these parameters to another process."""
        if self.here:
            return
        missing = set(parameters).difference(_parameters_of(self.model))
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
        results = self.run_here(jobs) if self.here else self.run_elsewhere(jobs)
        # A failure is never better than what was judged.
        scores = [result.score for result in results if result.score is not None]
        self.failed_score = min([self.failed_score, *scores])
        for job, result in zip(jobs, results, strict=True):
            if result.failed:
                result.score = self.failed_score
            self.journal.write(job.record(result))
        return results

    def run_here(self, jobs: Sequence[_Job]) -> list[_Result]:
        """Run jobs in this process."""
        if self.executor is not None:
            return self.run_in_threads(self.executor, jobs)
        threads = min(self.threads, len(jobs))
        if threads < 2:
            return [self.run_job(job) for job in jobs]
        with ThreadPoolExecutor(threads) as pool:
            return self.run_in_threads(pool, jobs)

    def run_job(self, job: _Job) -> _Result:
        with self.journal.recording(job.place):
            return job.run()

    def run_in_threads(self, pool: Any, jobs: Sequence[_Job]) -> list[_Result]:
        """Run each job in a thread of a pool, in a copy of this context."""
        calls = [(copy_context().run, self.run_job, job) for job in jobs]
        with _submitted(pool, calls) as futures:
            return [future.result() for future in futures]

    def run_elsewhere(self, jobs: Sequence[_Job]) -> list[_Result]:
        """Run jobs where no memory is shared: values go there, nodes and records come back."""
        parameters = _parameters_of(self.model)
        values = [parameter.data for parameter in parameters]
        calls = [(_run_packed, self.packed(job, values)) for job in jobs]
        futures: list[Future[bytes]] = []
        results: dict[Future[bytes], _Result] = {}
        try:
            with _submitted(self.executor, calls) as futures:
                for future in as_completed(futures):
                    results[future] = self.received(future.result(), parameters)
        finally:  # the replies of what ended after a failure are paid for too
            for future in set(futures).difference(results):
                with suppress(Exception):
                    self.received(future.result(), parameters)
        return [results[future] for future in futures]

    def packed(self, job: _Job, values: list[Any]) -> bytes:
        """A job for another process, with the parameters' values and the replies on record."""
        try:
            return _packed((job, values, self.journal.replies_at(job.place)))
        except Exception as error:
            words = "model, guide and data must be picklable for an executor of other processes"
            raise TypeError(f"{words}: {error}") from error

    def received(self, packed: bytes, parameters: Sequence[Any]) -> _Result:
        """The result of a job in another process, after its calls are written down."""
        result: _Result
        result, records, error = _unpacked(packed, parameters)
        for record in records:
            self.journal.write(record)
        if error is not None:
            raise error
        return result


@contextmanager
def _submitted(pool: Any, calls: Iterable[tuple[Any, ...]]) -> Iterator[list[Future[Any]]]:
    """Make calls in a pool; at the end what has not begun is called off, the rest waited for."""
    futures: list[Future[Any]] = []
    try:
        for call in calls:
            futures.append(pool.submit(*call))
        yield futures
    finally:
        wait([future for future in futures if not future.cancel()])


def _run_packed(packed: bytes) -> bytes:
    """Run a job that came from another process; its result, the calls it made, and its error."""
    job, values, replies = pickle.loads(packed)
    parameters = _parameters_of(job.model)
    _restore(dict(zip(parameters, values, strict=True)))
    result, records, error = None, list[_Record](), None
    try:
        with _recording(job.place, replies, records.append):
            result = job.run()
    except Exception as caught:
        error = caught
    return _packed((result, records, error), parameters)


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


# ---- The journal: all that happens, line by line, and every reply, so that a run can go on -------


def _recording(
    place: _Record, replies: Mapping[Any, Reply], write: Callable[[_Record], None]
) -> AbstractContextManager[None]:
    """A block in which replies on record are given again, and calls that are new are written down.

    A call is found by what is asked and how often it was asked here before, so that neither other
    threads nor other parts of the run change what it gets.
    """
    turns = Counter[str]()
    lock = threading.Lock()

    def hook(llm: Any, messages: Any, options: Any, ask: Callable[[], Reply]) -> Reply:
        key = _call_key(messages, options)
        with lock:
            turns[key] += 1
            turn = turns[key]
        if (turn, key) in replies:
            return replies[turn, key]
        began = time.monotonic()
        try:
            reply = ask()
        except BaseException:
            with lock:  # a call that failed is none, and its turn is free again
                if turns[key] == turn:
                    turns[key] -= 1
            raise
        record = {"event": "call", **place, "turn": turn, "key": key, "messages": messages}
        record |= {"options": options, "reply": reply}
        record |= {name: getattr(reply, name) for name in _FACTS}
        write({**record, "seconds": round(time.monotonic() - began, 3)})
        return reply

    return around_calls(hook)


_FACTS = "usage", "model", "finish_reason"


def _call_key(messages: Any, options: Any) -> str:
    """What tells calls apart."""
    text = json.dumps([messages, options], sort_keys=True, ensure_ascii=False, default=to_text)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _place(record: _Record) -> tuple[Any, ...]:
    """Where in a run a record belongs."""
    return tuple(record.get(name) for name in ("step", "part", "candidate", "example"))


def _mark(record: _Record) -> tuple[Any, ...]:
    """What tells records apart: a run that was resumed may have had several ends."""
    event = record["event"]
    reason = record["reason"] if event == "end" else ""
    return event, *_place(record), reason, record.get("turn"), record.get("key")


def _content(record: _Record) -> str:
    """What a record says, but not when it was nor how long it took."""
    timeless = {key: value for key, value in record.items() if key not in ("time", "seconds")}
    return json.dumps(timeless, sort_keys=True)


_open_journals = weakref.WeakSet[Any]()
if hasattr(os, "register_at_fork"):  # or a child would keep the lock when the run is gone
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _open_journals])


class _Journal:
    """An append-only file of JSON lines that tells all that happened in a run, and resumes it.

    To resume is to run again on the replies recorded here; a record that is there already is not
    written again. Without a path nothing is kept.
    """

    def __init__(self, path: Any, redact: Callable[[_Record], Any] | None = None) -> None:
        self.path = path and os.fspath(path)
        self.redact = redact
        self.known: dict[Any, str] = {}  # what each record says, by its mark
        self.replies: dict[Any, dict[Any, Reply]] = {}  # by place, then by turn and key
        self.configuration: _Record = {}  # the first record's
        self.passed: list[Any] = []  # the values after each step
        self.lock = threading.Lock()
        self.agrees = True

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
            yield self

    def read(self) -> None:
        """Read what an earlier run wrote, and mend what a crash tore at its end."""
        self.file.seek(0)
        data = self.file.read()
        lines = _whole_lines(data)
        for number, line in enumerate(lines, 1):
            try:
                self.read_record(json.loads(line), first=number == 1)
            except (ValueError, LookupError, TypeError, AttributeError):
                words = "not a record of a journal; name another file"
                raise MinitraceError(f"{self.path}, line {number}: {words}") from None
        whole = b"".join(line + b"\n" for line in lines)
        self.file.truncate(min(len(whole), len(data)))
        self.file.write(whole[len(data) :])

    def read_record(self, record: _Record, first: bool) -> None:
        """Take in a record of an earlier run."""
        self.known[_mark(record)] = _content(record)
        if first:
            self.configuration = record["configuration"]
        if record["event"] == "call" and isinstance(record.get("reply"), str):
            facts = {name: record[name] for name in _FACTS if name in record}
            replies = self.replies.setdefault(_place(record), {})
            replies[record["turn"], record["key"]] = Reply(record["reply"], **facts)
        if record["event"] in ("step", "end"):
            self.passed.append(record["values"])

    def replies_at(self, place: _Record) -> Mapping[Any, Reply]:
        """The replies on record for this place of the run, by turn and key."""
        return self.replies.get(_place(place), {})

    def recording(self, place: _Record) -> AbstractContextManager[None]:
        """A block in which calls to language models are recorded, or answered from the record."""
        if not self.path:
            return nullcontext()
        return _recording(place, self.replies_at(place), self.write)

    def write(self, record: _Record) -> None:
        """Add a record, in one write, unless it is there."""
        if not self.path:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        try:
            # A copy as it can be read again, for `redact` may change what it is shown.
            text = json.dumps({"event": record["event"], "time": now, **record}, default=to_text)
            record = json.loads(text)
            kept = self.redacted(json.loads(text))
            known = self.known.get(_mark(record))
            if known is not None:
                self.compare(known, _content(kept or {}))
            elif kept is not None:
                self.append(kept)
        except Exception as error:  # of ours, or it would pass for a failure of the program
            raise MinitraceError(f"{self.path}: a record could not be written: {error}") from error

    def redacted(self, record: _Record) -> Any:
        """A record as the user's function wants it to be kept."""
        if self.redact is None:
            return record
        event = record["event"]
        kept = self.redact(record)
        if isinstance(kept, dict) or (kept is None and event != "run"):
            return kept
        raise TypeError(f"redact= gave {to_text(kept, 60)} for the record of a {event}")

    def append(self, record: _Record) -> None:
        """Add a line, all of it or nothing."""
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with self.lock:
            end = os.fstat(self.file.fileno()).st_size
            try:
                while line:
                    written = self.file.write(line)
                    line = line[written:]
            except BaseException:
                self.file.truncate(end)
                raise

    def compare(self, old: str, new: str) -> None:
        """Warn, once, when what happens again is not what is recorded."""
        if self.agrees and old != new:
            self.agrees = False
            warnings.warn(
                f"{self.path}: the run differs from the one on record: something that is not "
                f"recorded, such as chance or the time, has a part in it. Now {new:.200}",
                stacklevel=2,
            )

    def begin(self, configuration: _Record) -> Any:
        """Note what is run or, if that was noted before, check that it is the same.

        Returns: the values that the run began with; the present ones may also be its last.
        """
        now = json.loads(json.dumps(configuration))
        if not self.configuration:
            self.write({"event": "run", "version": 1, "configuration": now})
        first = self.configuration or now
        differ = [key for key in now if now[key] != first.get(key)]
        if now["parameters"] in self.passed:
            differ = [key for key in differ if key != "parameters"]
        if differ:
            told = [f"{key} was {first.get(key)!r:.300}, now {now[key]!r:.300}" for key in differ]
            raise MinitraceError(f"{self.path} is the journal of another run: {'; '.join(told)}")
        return first["parameters"]


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


# ---- The loop: a step for each batch, and the best values at the end -----------------------------


class Run(NamedTuple):
    """How a training run ended.

    Attributes:
        reason: why it ended: `"epochs"`, `"patience"`, or `"budget: ..."`.
        steps: how many it took.
        score: of the best values: the mean on the validation set or, without one, on the batch of
            the step that found them. None if the guide gave words only.
        values: the best values, by name.
        scores: the mean of each batch before its step.
        spent: the calls and tokens, or what the budget says.

    >>> from minitrace import OptoPrime, StubLLM, node
    >>> size = node(1, name="size", trainable=True)
    >>> def guide(query, response, info):
    ...     return -abs(response - info), "too small" if response < info else "too large"
    >>> run = train(size, [(None, 3)], guide, OptoPrime(size, llm=StubLLM()), epochs=3)
    >>> run.reason, run.steps, run.score, run.values, run.scores, run.spent["calls"]
    ('epochs', 3, 0.0, {'size0': 3}, [-2.0, -1.0, -1.0], 3)
    """

    reason: str
    steps: int
    score: float | None
    values: _Record
    scores: list[float | None]
    spent: Mapping[str, float]


@dataclass
class _Candidate:
    """A proposal and how its values did: on the validation set, and on the batch.

    The values in force are candidate 0 of a step.
    """

    number: int
    proposal: Proposal
    validation: float | None = None
    score: float | None = None
    feedback: Sequence[Any] = ()

    @property
    def rank(self) -> tuple[float, float]:
        """What candidates are compared by."""
        validation = -math.inf if self.validation is None else self.validation
        return validation, -math.inf if self.score is None else self.score


_UNSCORED = -math.inf, -math.inf


class _Meter:
    """A hook that counts calls and tokens."""

    def __init__(self) -> None:
        self.spent = {"calls": 0, "tokens": 0}
        self.lock = threading.Lock()

    def __call__(self, llm: Any, messages: Any, options: Any, ask: Callable[[], Reply]) -> Reply:
        with self.lock:
            self.spent["calls"] += 1
        reply = ask()
        usage = reply.usage or {}
        tokens = usage.get("input_tokens", len(str(messages)) // 4)
        tokens += usage.get("output_tokens", len(reply) // 4)
        with self.lock:
            self.spent["tokens"] += tokens
        return reply


@dataclass
class _Training:
    """One run of `train`: its parts, and where it stands."""

    optimizer: Optimizer
    workers: _Workers
    examples: _Examples
    held_out: _Examples
    options: SimpleNamespace
    progress: Any
    meter: _Meter

    def __post_init__(self) -> None:
        if self.progress is None and sys.stderr is not None and sys.stderr.isatty():
            self.progress = _show_progress
        self.journal = self.workers.journal
        self.compares = bool(self.options.gate or self.held_out or self.options.candidates > 1)
        self.began = time.monotonic()
        self.number = 0  # of the present step
        self.stale = 0  # steps in a row that brought nothing better
        self.scores: list[float | None] = []
        self.now = _Candidate(0, Proposal())
        self.kept_step = 0  # the step that found the values in force
        self.note_best(self.now)

    def note_best(self, now: _Candidate) -> None:
        """The values in force are the best so far."""
        self.best = now
        self.best_step = self.kept_step
        self.best_values = self.values()

    def values(self) -> _Values:
        """The values in force."""
        return {parameter: parameter.data for parameter in self.optimizer.parameters}

    def begin(self, facts: _Record) -> None:
        """Note what is run, or go back to where the run in the journal began."""
        optimizer = self.optimizer
        now = _encoded(self.values())
        past = [len(optimizer.history), len(optimizer.refused)]
        past = self.journal.configuration.get("history", past)
        began = self.journal.begin({"parameters": now, "history": past, **facts})
        del optimizer.history[past[0] :]
        for words in list(optimizer.refused)[past[1] :]:
            del optimizer.refused[words]
        if began != now:
            values = {name: decode(value) for name, value in began.items()}
            _restore(optimizer.checked(values))
            self.note_best(self.now)

    def run(self) -> str:
        """Take all steps, leave the best values in the model in any case, and say why it ended."""
        try:
            reason = self.take_steps()
        except MinitraceError as error:
            if getattr(error, "kind", "") != "budget":
                raise
            reason = f"budget: {error}"
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.how_to_go_on()) from None
        finally:
            _restore(self.best_values)
            if self.progress is _show_progress:
                print(file=sys.stderr)
        values = _encoded(self.best_values)
        self.record("end", reason=reason, values=values, best=self.best_as_dict())
        return reason

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

    def best_as_dict(self) -> _Record:
        """The best so far: the step that found it, and its score."""
        score = self.best.validation if self.held_out else self.best.score
        return {"step": self.best_step, "score": score}

    def take_steps(self) -> str:
        """Take all steps; say why there are no more."""
        if self.held_out:
            results = self.workers.run(self.held_out, self.place("validate"))
            self.now = replace(self.now, validation=_evaluation(results).mean)
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
        now = replace(self.now, score=_evaluation(results).mean)
        graph = self.send_back(results)
        candidates: list[_Candidate] = []
        if len(graph) or graph.outputs:
            for proposal in self.propose():
                candidates.append(self.tried(proposal, batch, candidates))
        chosen, reason = self.choose(now, candidates)
        self.keep(now, candidates, chosen, reason)
        self.scores.append(now.score)
        self.stale = 0 if reason in ("better", "no scores", "not compared") else self.stale + 1
        self.record(
            "step",
            epoch=epoch,
            score=now.score,
            validation=now.validation,
            accepted=chosen.number,
            reason=reason,
            values=_encoded(self.values()),
            best=self.best_as_dict(),
            graph=self.graph_as_dict(graph),
        )

    def send_back(self, results: Sequence[_Result]) -> TraceGraph:
        """Send each example's feedback back in one backward; the graph that the optimizer sees."""
        outputs = [result.output for result in results]
        feedback = [result.feedback for result in results]
        scores = [result.score for result in results]
        with self.journal.recording(self.place("backward")):
            self.optimizer.backward(outputs, feedback, score=scores)
        return self.optimizer.graph()

    def graph_as_dict(self, graph: TraceGraph) -> Any:
        """A graph as the journal keeps it, if it is not too large."""
        if self.journal.path and 0 < len(graph) <= 500:
            return json.loads(graph.to_json())
        return None

    def propose(self) -> list[Proposal]:
        """The proposals; a reply that cannot be used is one that changes nothing."""
        optimizer, count = self.optimizer, self.options.candidates
        on_refusal = optimizer.on_refusal
        optimizer.on_refusal = "keep"
        try:
            with self.journal.recording(self.place("propose")):
                found = optimizer.propose() if count == 1 else optimizer.propose(count)
        finally:
            optimizer.on_refusal = on_refusal
        several = [found] if isinstance(found, Mapping) else found or []
        checked = optimizer.checked
        return [each if isinstance(each, Proposal) else Proposal(checked(each)) for each in several]

    def tried(
        self, proposal: Proposal, batch: _Examples, before: Sequence[_Candidate]
    ) -> _Candidate:
        """A candidate, measured unless one before it had the same values."""
        candidate = _Candidate(len(before) + 1, proposal)
        values = _encoded(proposal)
        same = [each for each in before if _encoded(each.proposal) == values]
        if same:
            candidate = replace(same[0], number=candidate.number, proposal=proposal)
        elif proposal and self.compares:
            candidate = self.measured(candidate, batch)
        self.record(
            "proposal",
            candidate=candidate.number,
            values=values,
            reasoning=proposal.reasoning,
            answer=proposal.answer,
            refused=proposal.refused,
            usage=proposal.usage and dict(proposal.usage),
            diff=proposal.diff(),
            score=candidate.score,
            validation=candidate.validation,
            seconds=round(proposal.seconds, 3),
        )
        return candidate

    def measured(self, candidate: _Candidate, batch: _Examples) -> _Candidate:
        """A candidate with its scores, on the batch and on what was held out; it does not stay."""
        number, before = candidate.number, self.values()
        try:
            _restore(self.optimizer.checked(candidate.proposal))
            results = self.workers.run(batch, self.place("check", number))
            others = self.workers.run(self.held_out, self.place("validate", number))
        finally:
            _restore(before)
        validation, found = _evaluation(others).mean, _evaluation(results)
        return replace(candidate, validation=validation, score=found.mean, feedback=found.feedback)

    def choose(self, now: _Candidate, candidates: Sequence[_Candidate]) -> tuple[_Candidate, str]:
        """The candidate to keep, which may be the values in force, and why."""
        changing = [each for each in candidates if each.proposal]
        if not changing:
            return now, "no change" if candidates else "no feedback"
        best = max(changing, key=lambda each: each.rank)  # the first of equals
        if not self.compares:
            return best, "not compared"
        if best.rank == now.rank == _UNSCORED:
            return best, "no scores"
        if best.rank < now.rank:
            return now if self.options.gate else best, "worse"
        return best, "better" if best.rank > now.rank else "as good"

    def keep(
        self, now: _Candidate, candidates: Sequence[_Candidate], chosen: _Candidate, reason: str
    ) -> None:
        """Set the chosen values, and let the optimizer remember what was not chosen."""
        gate = self.options.gate
        if self.compares and not gate and now.rank > self.best.rank:
            self.note_best(now)
        for candidate in candidates:
            if candidate.proposal and candidate is not chosen:
                self.remember(candidate, now)
        if reason == "no change":
            self.optimizer.update(candidates[0].proposal)  # which writes the history, no more
        if chosen.proposal:
            self.optimizer.update(chosen.proposal)
            self.kept_step = self.number
        self.now = replace(chosen, number=0, proposal=Proposal())
        latest_is_best = gate or not self.compares or reason == "no scores"
        if latest_is_best or chosen.rank >= self.best.rank:
            self.note_best(chosen)

    def remember(self, candidate: _Candidate, now: _Candidate) -> None:
        """Put what was tried in vain into the history, so that it is not proposed again."""
        said = dict.fromkeys(_in_words(each, 300) for each in candidate.feedback)
        feedback = [words for words in said if words][:4]
        if now.validation is not None and candidate.validation is not None:
            told = f"on other examples {candidate.validation:g}, not {now.validation:g} as before"
            feedback.append(told)
        values = _by_name({**self.values(), **candidate.proposal})
        self.optimizer.remember(Attempt(values, feedback, candidate.score, reason="not kept"))

    def show(self) -> None:
        """Tell how far it got: to a function of the user's, or on a terminal."""
        if not self.progress:
            return
        steps = self.options.epochs * math.ceil(len(self.examples) / self.options.batch_size)
        best = self.best_as_dict()["score"]
        state = {"step": self.number, "steps": steps, "score": self.scores[-1], "best": best}
        pace = (time.monotonic() - self.began) / self.number
        left = round(pace * (steps - self.number))
        self.progress({**state, **self.meter.spent, "seconds_left": left})


def _by_name(values: _Values) -> _Record:
    return {parameter.py_name: value for parameter, value in values.items()}


def _encoded(values: _Values) -> _Record:
    """Values as the journal keeps them."""
    return {name: encode(value, as_text=True) for name, value in _by_name(values).items()}


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
    failed_score: float = 0.0, redact: Any = None,
) -> Run:  # fmt: skip
    """Optimize the parameters of a model on a dataset, and leave the best values in it.

    A step runs a batch, sends each example's own feedback back in one backward, asks for
    candidates, tries them, and keeps the best of them if it is not worse than what is there.

    Args:
        model: a module, a bundle, a parameter, or any callable if the optimizer has its parameters.
            It is called with an input; async ones are awaited. If it fails with an
            `ExecutionError`, the error is the feedback, and the score is `failed_score` or the
            lowest that the guide gave so far, whichever is less.
        dataset: pairs `(input, info)`, or `{"inputs": [...], "infos": [...]}`.
        guide: a function of `(query, response, info)`: see `Guide`. What it raises ends the run,
            except a `ReplyError`, which leaves that example without a score.
        optimizer: an `OptoPrime` of the model by default.
        epochs, batch_size: how often to go through the dataset, and how many examples at a time.
        candidates: how many proposals to ask for in a step, side by side.
        validation: a second dataset, whose mean score then decides.
        patience: end after so many steps in a row without a better score.
        workers: how many examples run at a time, in threads.
        executor: a `concurrent.futures.Executor` to run them instead: of threads, or of processes
            (then model, guide and data are pickled, and budgets see the optimizer's calls only).
        journal: a file of JSON lines that keeps all that happens, the data too. The same call with
            the same file resumes the run after a crash, and pays for no recorded reply again.
        budget: a context manager with a mapping `spent`, such as `minitrace_record.Budget`. The run
            ends when it is spent.
        progress: a function of a dict, called after each step; False for none. By default a line
            on standard error, if that is a terminal.
        seed, shuffle: shuffle the examples of each epoch, by this seed.
        gate: False keeps the best candidate even if it is worse.
        redact: a function that sees a copy of every record before it is written, and returns it,
            changed or not, or None to leave it out (any but the first). What it takes away from a
            reply is missing when the run is resumed; a reply that is gone is asked for again.

    Returns: a `Run`.

    Raises:
        MinitraceError: the journal belongs to another run, or another process is writing it.

    >>> from minitrace import OptoPrime, StubLLM, node
    >>> answer = node(1, name="answer", trainable=True)
    >>> def guide(query, response, info):
    ...     return -abs(response - info), "too low" if response < info else "too high"
    >>> run = train(answer, [("3 + 4?", 7)], guide, OptoPrime(answer, llm=StubLLM()), epochs=6)
    >>> answer.data, run.scores
    (7, [-6.0, -5.0, -3.0, -1.0, -1.0, 0.0])
    """
    optimizer = optimizer or OptoPrime(model)
    examples = _pairs(dataset, "dataset")
    held_out = _pairs(() if validation is None else validation, "validation")
    counts = {"epochs": epochs, "batch_size": batch_size, "candidates": candidates}
    _check_counts(**counts, workers=workers, patience=1 if patience is None else patience)
    if not callable(guide) or isinstance(guide, type):
        raise TypeError(f"guide= takes a function or a Guide(), not {to_text(guide, 60)}")
    if budget is not None and not hasattr(budget, "spent"):
        raise TypeError(f"budget= takes a Budget, not {to_text(budget, 60)}")
    options = SimpleNamespace(**counts, patience=patience, gate=gate, shuffle=shuffle, seed=seed)
    options.failed_score = failed_score
    limit, meter = budget or nullcontext(), _Meter()
    with limit, around_calls(meter), _Journal(journal, redact).opened() as opened:
        runner = _Workers(model, guide, workers, executor, failed_score, opened)
        runner.check_carries(optimizer.parameters)
        training = _Training(optimizer, runner, examples, held_out, options, progress, meter)
        facts = {"examples": _digest(examples), "validation": _digest(held_out)}
        training.begin({"optimizer": type(optimizer).__name__, **facts, **vars(options)})
        reason = training.run()
    score, values = training.best_as_dict()["score"], _by_name(training.best_values)
    spent = meter.spent if budget is None else budget.spent
    return Run(reason, training.number, score, values, training.scores, spent)


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
    return f"{len(pairs)}, {hashlib.sha256(text.encode()).hexdigest()[:12]}"


# ---- Measuring alone -----------------------------------------------------------------------------


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
        dataset = [(each, None) for each in inputs]
    _check_counts(workers=workers)
    runner = _Workers(model, guide, workers, executor, failed_score, _Journal(None))
    return _evaluation(runner.run(_pairs(dataset, "dataset"), {}))


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
