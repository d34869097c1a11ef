"""Training. RAW: cut out of the old file, to be rewritten."""
# ---- Training: the same steps over a dataset, where a guide judges each response.


class Guide:
    """What says how good a response is; this is the class, and a function will do as well.

    A guide is called with the query, the response and what the dataset knows of the query, all
    plain data. It gives `(score, feedback)`, just a score (higher is better), or just words.

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
        llm: any callable from messages to text; what `MINITRACE_MODEL` names, or else a `StubLLM`.
        retries: how often it is asked again after a reply that cannot be used.

    Raises:
        ReplyError: no reply could be used.

    >>> judge = Judge("polite", llm=Script(['{"score": 0.5, "feedback": "Say hello first."}']))
    >>> judge("Greet Ada.", "Ada!", None)
    (0.5, 'Say hello first.')
    """

    def __init__(
        self, criteria: str = "correct and complete", llm: Any = None, retries: int = 2
    ) -> None:
        self.criteria, self.llm, self.retries = criteria, llm, retries

    def get_feedback(self, query: Any, response: Any, info: Any) -> tuple[float, str]:
        """The score, from 0 to 1, and the feedback."""
        expected = "" if info is None else _said(info)
        page = _page(Query=_said(query), Response=_said(response), Expected=expected)
        prompt = [_message("system", _JUDGE.format(self.criteria)), _message("user", page)]
        llm = self.llm or _default_llm()
        judgement, answers, refused = _until_usable(llm, prompt, {}, self.retries, self.read)
        if len(refused) == len(answers):
            problems, replies = refused[-1], [*map(_reply_text, answers)]
            raise ReplyError(f"no usable judgement: {problems[-1]}", replies, problems)
        return judgement

    def read(self, text: str) -> tuple[tuple[float, str], list[str]]:
        """The judgement in a reply, and what is wrong with it."""
        _, _, values, problems = read_reply(text, ["score", "feedback"])
        given, score = values.get("score"), -1.0
        with contextlib.suppress(ValueError):
            score = coerce_value(given, 0.0)
        if not problems and not 0 <= score <= 1:
            problems = [f"the score must be a number from 0 to 1, not {_text(given, 80)}"]
        return (score, _said(values.get("feedback", ""))), problems


def _judgement(said: Any) -> tuple[float | None, Any]:
    """Score and feedback from what a guide gave."""
    score, words = (None, said) if isinstance(said, str) else (said, "")
    if isinstance(said, (tuple, list)) and len(said) == 2:
        score, words = said
    words = "" if words is None else words
    with contextlib.suppress(TypeError, OverflowError):
        if said is not None and (score is None or math.isfinite(score)):
            return score if score is None else float(score), words
    told = f"a guide gives (score, feedback), a finite score, or words, not {_text(said, 80)}"
    raise TypeError(told)


# ---- One example: run, judged, and where it failed, a failure that may be feedback.


class Tried(NamedTuple):
    """An example that was run: its output as a node and as plain data, and what was said of it."""

    output: Node[Any]
    response: Any
    score: float | None
    feedback: Any
    failed: bool


class _Job(NamedTuple):
    """An example to be run: all that it takes, so that it can go to another process."""

    model: Any
    guide: Any
    tracing: bool
    query: Any
    info: Any
    place: dict[str, Any]

    def run(self, replies: Mapping[Any, Any], write: Any) -> Tried:
        """Run it, with the replies recorded here before; `write`, if any, takes down new ones."""
        with _on_tape(_Tape(self.place, replies, write)) if write else contextlib.nullcontext():
            return self.judged()

    def judged(self) -> Tried:
        """Run the model, and let the guide judge; a failure of the program is an example too."""
        try:
            with contextlib.nullcontext() if self.tracing else stop_tracing():
                model = self.model
                output = model if isinstance(model, ParameterNode) else _awaited(model(self.query))
        except ExecutionError as error:
            _raise_unless_about_values(error)
            failure = error.exception_node
            words = failure.create_feedback("full")
            return Tried(failure, failure.data, None, words, True)
        output = output if isinstance(output, Node) else operators.identity(output)
        if self.guide is None:
            return Tried(output, output._data, None, "", False)
        try:
            said = _awaited(self.guide(self.query, output._data, self.info))
        except ReplyError as error:  # of a judge that asks a language model
            said = None, f"(not judged: {error})"
        return Tried(output, output._data, *_judgement(to_data(said)), False)


def _awaited(value: Any) -> Any:
    """The value, or what it gives if it has to be awaited; a loop may be running in this thread."""
    import inspect

    return _finish(value) if inspect.isawaitable(value) else value


def _raise_unless_about_values(error: ExecutionError) -> None:
    """Raise what an error came from, such as a spent budget, if no other values would avoid it."""
    cause = error.__cause__
    spoken = getattr(cause, "kind", "") in ("refused", "filtered", "empty", "cut off")
    of_values = spoken or isinstance(cause, (LimitError, CodeError, TraceMissingInputsError))
    if isinstance(cause, MinitraceError) and not of_values:
        raise cause


# ---- Side by side: examples in threads, or in other processes.


def _check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}= takes a whole number from 1, not {count!r}")


class _Crew:
    """Who runs examples: threads, or an executor of the user's choice."""

    def __init__(
        self, model: Any, guide: Any, workers: int, executor: Any, failed_score: float, journal: Any
    ) -> None:
        _check_counts(workers=workers)
        self.model, self.guide, self.failed_score = model, guide, failed_score
        self.workers, self.executor, self.journal = workers, executor, journal

    @property
    def here(self) -> bool:
        """Do the examples run in this process?"""
        from concurrent.futures import ThreadPoolExecutor

        return isinstance(self.executor, (ThreadPoolExecutor, type(None)))

    def check_sees(self, parameters: Iterable[ParameterNode[Any]]) -> None:
        """Raise if the model would not carry one of these parameters to another process."""
        if not self.here and (strays := {*parameters}.difference(_parameters_of(self.model))):
            names = ", ".join(sorted(stray.name for stray in strays))
            raise ValueError(f"{names}: no parameter of the model, so no process would see it")

    def run(
        self, examples: Sequence[tuple[int, Any]], tracing: bool = False, **place: Any
    ) -> list[Tried]:
        """Run examples, given as pairs of index and (input, info); the results in their order."""
        one: Any = functools.partial(_Job, self.model, self.guide, tracing)
        jobs = [one(*pair, {**place, "example": index}) for index, pair in examples]
        tried = self.run_here(jobs) if self.here else self.run_elsewhere(jobs)
        scores = (each.score for each in tried if each.score is not None)
        self.failed_score = min([self.failed_score, *scores])  # a failure is never the better one
        tried = [t._replace(score=self.failed_score) if t.failed else t for t in tried]
        for job, each in zip(jobs, tried, strict=True):
            self.journal.write({"event": "example", **job.place, **_example_told(job, each)})
        return tried

    def run_here(self, jobs: Sequence[_Job]) -> list[Tried]:
        """Run jobs in threads of this process."""
        since, journal = next(_numbers), self.journal

        def work(job: _Job) -> Tried:
            return job.run(journal.replies_at(job.place), journal.path and journal.write)

        tried = _side_by_side(work, jobs, self.workers, self.executor)
        if len(jobs) > 1 and (self.workers > 1 or self.executor):
            _renumber([each.output for each in tried], since)
        return tried

    def run_elsewhere(self, jobs: Sequence[_Job]) -> list[Tried]:
        """Run jobs where no memory is shared: values go there, nodes and records come back."""
        from concurrent.futures import as_completed, wait

        own = _parameters_of(self.model)
        values = [parameter._data for parameter in own]
        try:
            dumps = _pickle().dumps
            packed = [dumps((j, values, self.journal.replies_at(j.place))) for j in jobs]
        except Exception as error:
            words = "model, guide and data must be picklable for an executor of other processes"
            raise TypeError(f"{words}: {error}") from error
        futures = [self.executor.submit(_run_packed, each) for each in packed]
        kept = set()
        try:
            for future in as_completed(futures):
                kept.add(future)
                self.take_down(future.result())
        finally:  # what cannot be called off is waited for, and kept too
            running = [each for each in futures if each not in kept and not each.cancel()]
            for future in wait(running).done:
                with contextlib.suppress(Exception):
                    self.take_down(future.result())
        return [_unpacked(future.result()[0], own) for future in futures]

    def take_down(self, result: tuple[bytes, list[dict[str, Any]], Exception | None]) -> None:
        """Write what a job in another process was told, and raise what it raised."""
        for record in result[1]:
            self.journal.write(record)
        if result[2]:
            raise result[2]


def _run_packed(packed: bytes) -> tuple[bytes, list[dict[str, Any]], Exception | None]:
    """Run a job that came from another process: the result, what was told, and what went wrong."""
    import pickle

    job, values, replies = pickle.loads(packed)
    own, records = _parameters_of(job.model), list[Any]()
    _assign(dict(zip(own, values, strict=True)))
    try:
        return _packed(job.run(replies, records.append), own), records, None
    except Exception as error:
        return b"", records, error


def _pickle() -> Any:
    """The module that pickles: one that Dask or loky brought knows the classes of a script too."""
    import pickle

    return sys.modules.get("cloudpickle") or pickle


def _packed(value: Any, parameters: Sequence[Any]) -> bytes:
    """A pickle that names parameters by their place, so that it can meet the living ones."""
    places = {id(parameter): place for place, parameter in enumerate(parameters)}

    class Pickler(_pickle().Pickler):  # type: ignore[misc]
        def persistent_id(self, each: Any) -> Any:
            return places.get(id(each.node if isinstance(each, _Pickled) else each))

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _unpacked(data: bytes, parameters: Sequence[Any]) -> Any:
    import pickle

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, place: Any) -> Any:
            return parameters[place]

    return Unpickler(io.BytesIO(data)).load()


def _parameters_of(model: Any) -> list[ParameterNode[Any]]:
    """The parameters that a model carries along to another process."""
    if isinstance(model, ParameterNode):
        return [model]
    if hasattr(model, "parameters"):
        return [*model.parameters()]
    raise TypeError(
        f"{_text(model, 60)} carries no parameters to another process: make it a module or a bundle"
    )


def _renumber(outputs: Iterable[Node[Any]], since: int) -> None:
    """Number what ran side by side as if it had run one after the other: graphs go by numbers."""
    until = next(_numbers)
    for output in outputs:
        for each in _ancestors([output]):
            if since < each._number < until:
                each._number = next(_numbers)


# ---- The journal: all that happens, line by line, and every reply, so that a run can be resumed.


def _reply_in(record: dict[str, Any]) -> Reply:
    """The reply in a record of a call, with what was known about it."""
    facts = {k: record[k] for k in ("usage", "finish_reason", "model") if k in record}
    return Reply(record["reply"], **facts)


def _call_key(messages: _Messages, options: dict[str, Any]) -> str:
    """What tells calls apart, and shows how they differ."""
    return json.dumps([messages, options], sort_keys=True, indent=0, ensure_ascii=False)


class _Tape:
    """The calls to language models of one piece of a run: what was recorded, and what is new.

    A call is found by what is asked and how often it was asked here before, so that neither other
    threads nor other pieces of the run change what it gets.
    """

    def __init__(self, place: Mapping[str, Any], replies: Mapping[Any, Any], write: Any) -> None:
        self.place, self.replies, self.write = place, replies, write
        self.turns, self.lock = Counter[str](), threading.Lock()

    def __call__(self, messages: Any, options: Any, ask: Callable[[], Any]) -> Any:
        """The reply recorded for this call, or what `ask` gives, which is recorded."""
        import hashlib

        key = hashlib.sha256(_call_key(messages, options).encode("utf-8", "replace")).hexdigest()
        with self.lock:
            self.turns[key] += 1
            turn = self.turns[key]
        if (turn, key) in self.replies:
            return self.replies[turn, key]
        began = time.monotonic()
        try:
            with _on_tape(None):
                answer = ask()
        except BaseException:
            with self.lock:  # a call that failed is none, and its turn is free again
                if self.turns[key] == turn:
                    self.turns[key] -= 1
            raise
        record = {"event": "call", **self.place, "turn": turn, "key": key, "messages": messages}
        record |= {"options": options, "reply": answer, "usage": dict(_usage_told(answer)) or None}
        record |= {"model": answer.model, "finish_reason": answer.finish_reason}
        self.write({**record, "seconds": round(time.monotonic() - began, 3)})
        return answer


_tape: ContextVar[_Tape | None] = ContextVar("minitrace_tape", default=None)


@contextlib.contextmanager
def _on_tape(tape: _Tape | None) -> Iterator[None]:
    """Put what language models are asked inside on a tape, or on none."""
    token = _tape.set(tape)
    try:
        yield
    finally:
        _tape.reset(token)


def _place(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where in a run a record belongs."""
    return tuple(map(record.get, ("step", "part", "candidate", "example")))


_journals = weakref.WeakSet[Any]()
if hasattr(os, "register_at_fork"):  # else a child would keep the lock of a run that is gone
    os.register_at_fork(after_in_child=lambda: [file.close() for file in _journals])


class _Journal:
    """An append-only file of JSON lines that says all that happened in a run, and resumes it.

    Resuming is running again on the replies recorded here: a record that stands here already is not
    written again. Without a path it writes nothing.
    """

    def __init__(self, path: Any, redact: Callable[[dict[str, Any]], Any] | None = None) -> None:
        self.path, self.redact = path and os.fspath(path), redact
        self.known: dict[Any, str] = {}  # what each record says, by its mark
        self.replies: dict[Any, dict[Any, Any]] = defaultdict(dict)
        self.first: dict[str, Any] = {}  # the configuration in the first record
        self.passed: list[Any] = []  # the values after each step
        self.lock, self.same = threading.Lock(), True

    def __enter__(self) -> _Journal:
        if self.path:
            self.file = open(self.path, "a+b", buffering=0)
            try:
                _lock(self.file, self.path)
                _journals.add(self.file)
                self.file.seek(0)
                for number, line in enumerate(_whole_lines(self.file.read()), 1):
                    self.read(number, line)
                _mend(self.file)
            except BaseException:
                self.file.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.path:
            self.file.close()

    def read(self, number: int, line: bytes) -> None:
        """Take in a line of an earlier run."""
        try:
            record = json.loads(line)
            mark, event = self.mark(record), record["event"]
            self.known[mark] = self.content(record)
            if event == "call" and isinstance(record.get("reply"), str):
                self.replies[_place(record)][record["turn"], record["key"]] = _reply_in(record)
            if number == 1:
                self.first = record["configuration"]
            self.passed += [record["values"]] if event in ("step", "end") else []
        except (ValueError, LookupError, TypeError, AttributeError):
            raise MinitraceError(
                f"{self.path}, line {number}: not a record of a journal; name another file"
            ) from None

    def mark(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        """What tells records apart."""
        event = record["event"]
        why = record["reason"] if event == "end" else ""
        return event, *_place(record), why, record.get("turn"), record.get("key")

    def replies_at(self, place: Mapping[str, Any]) -> dict[Any, Any]:
        """The replies to the calls at this place of the run, by turn and key."""
        return self.replies.get(_place(place), {})

    def content(self, record: Mapping[str, Any]) -> str:
        """What a record says, but not when it was nor how long it took."""
        told = {key: value for key, value in record.items() if key not in ("time", "seconds")}
        return json.dumps(told, sort_keys=True)

    def write(self, record: dict[str, Any]) -> None:
        """Add a record, in one write, unless it is there."""
        if not self.path:
            return
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"event": record["event"], "time": when, **record}
        try:
            whole = json.dumps(record, ensure_ascii=False, default=_text)
            seen = self.redacted(json.loads(whole)) if self.redact else record
            whole = json.dumps(seen, ensure_ascii=False) if self.redact else whole
            if self.mark(record) in self.known:
                self.compare(self.known[self.mark(record)], whole)
            elif seen is not None:
                self.append(whole.encode("utf-8", "backslashreplace") + b"\n")
        except Exception as error:  # one of ours, lest it pass for a failure of the program
            words = f"{self.path}: a record could not be written: {error}"
            raise MinitraceError(words) from error

    def redacted(self, record: dict[str, Any]) -> Any:
        """A record as the user's function wants it to be kept."""
        event, seen = record["event"], cast(Any, self.redact)(record)
        if not isinstance(seen, dict) and (seen is not None or event == "run"):
            raise TypeError(f"redact= gave {_text(seen, 60)} for the record of a {event}")
        return seen

    def append(self, line: bytes) -> None:
        """Add a line, all of it or nothing."""
        with self.lock:
            end = os.fstat(self.file.fileno()).st_size
            try:
                while line:
                    line = line[self.file.write(line) :]
            except BaseException:
                self.file.truncate(end)
                raise

    def compare(self, old: str, new: str) -> None:
        """Warn, once, when what happens again is not what is recorded."""
        if self.same and old != self.content(json.loads(new) or {}):
            self.same = False
            warnings.warn(
                f"{self.path}: the run goes another way than before: something that is not "
                f"recorded, such as chance or the time, has a part in it. Now {new:.200}",
                stacklevel=2,
            )

    def begin(self, configuration: dict[str, Any]) -> Any:
        """Note what is run or, if that was noted before, that it is the same.

        Returns: the values that the run began with; the present ones may also be its last.
        """
        now = json.loads(json.dumps(configuration))
        if not self.first:
            self.write({"event": "run", "version": __version__, "configuration": now})
        first = self.first or now
        differ = [key for key in now if now[key] != first.get(key)]
        if now["parameters"] in self.passed:
            differ = [key for key in differ if key != "parameters"]
        if differ:
            told = [f"{key} was {first.get(key)!r:.300}, now {now[key]!r:.300}" for key in differ]
            raise MinitraceError(f"{self.path} is the journal of another run: {'; '.join(told)}")
        return first["parameters"]


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines of a file; a record at its end that a crash cut short is none."""
    *lines, last = data.split(b"\n")
    with contextlib.suppress(ValueError):
        if last[:1] in (b"", b"{", b"\0"):
            json.loads(last)
        lines.append(last)
    return lines


def _mend(file: Any) -> None:
    """Cut off what a crash tore at the end of a file that is open to append."""
    file.seek(0)
    data = file.read()
    whole = b"".join(line + b"\n" for line in _whole_lines(data))
    file.truncate(min(len(whole), len(data)))
    file.write(whole[len(data) :])


def _lock(file: Any, path: str) -> None:
    """Keep other processes from writing a file as long as it is open here."""
    try:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows, where what is locked cannot be read: a byte far beyond
            import msvcrt

            file.seek(1 << 40)
            cast(Any, msvcrt).locking(file.fileno(), cast(Any, msvcrt).LK_NBLCK, 1)
    except OSError:
        raise MinitraceError(f"{path} is being written by another run: name another file") from None


def _example_told(job: _Job, tried: Tried) -> dict[str, Any]:
    """An example as the journal keeps it."""
    pair = {"query": job.query, "response": tried.response}
    texts = {key: v if isinstance(v, str) else _text(v) for key, v in pair.items()}
    told = {"score": tried.score, "feedback": _said(tried.feedback, 8000), "failed": tried.failed}
    return {**{key: _cut(text, 2000) for key, text in texts.items()}, **told}


# ---- The loop: a step for each batch, and the best values at the end.


class Run(NamedTuple):
    """How a training run ended: why, after how many steps, and its best score and values.

    The score is the mean on the validation set or, if there is none, on the batch of the step that
    found the values. `scores` has each batch's mean before its step; `spent` the calls and tokens.
    """

    reason: str
    steps: int
    score: float | None
    values: dict[str, Any]
    scores: list[float | None]
    spent: dict[str, float]


class _Tested(NamedTuple):
    """A proposal, and how its values did: on the validation set, and on the batch."""

    proposal: Proposal
    validation: float | None
    score: float | None
    feedback: Sequence[Any] = ()

    @property
    def rank(self) -> tuple[float, float]:
        """What candidates are compared by."""
        low = float("-inf")
        validation = low if self.validation is None else self.validation
        return validation, low if self.score is None else self.score


class _Training:
    """One run of `train`: its parts, and where it stands."""

    def __init__(
        self, optimizer: Optimizer, crew: _Crew, examples: Any, held_out: Any, options: Any,
        progress: Any, spent: Any,
    ) -> None:  # fmt: skip
        self.optimizer, self.crew, self.journal = optimizer, crew, crew.journal
        self.examples, self.held_out = examples, held_out
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self.progress = _show_progress if progress is None and terminal else progress
        self.options, self.spent = options, spent
        self.number, self.kept_step, self.stale, self.began = 0, 0, 0, time.monotonic()
        self.scores: list[float | None] = []
        self.validation: float | None = None
        self.compares = bool(options["gate"] or held_out or options["candidates"] > 1)
        self.best, self.best_rank, self.best_step = self.values(), (float("-inf"),) * 2, 0

    def values(self) -> dict[ParameterNode[Any], Any]:
        return {parameter: parameter._data for parameter in self.optimizer.parameters}

    def encoded(self, values: Mapping[ParameterNode[Any], Any]) -> dict[str, Any]:
        """Values as the journal keeps them."""
        return {p.py_name: encode(value, as_text=True) for p, value in values.items()}

    def begin(self, options: dict[str, Any]) -> None:
        """Note what is run, or go back to where the run in the journal began."""
        optimizer, now = self.optimizer, self.encoded(self.values())
        past = [len(optimizer.history), len(optimizer._refused)]
        past = self.journal.first.get("history", past)
        began = self.journal.begin({"parameters": now, "history": past, **options})
        del optimizer.history[past[0] :]
        for words in [*optimizer._refused][past[1] :]:
            del optimizer._refused[words]
        if began != now:
            values = {name: decode(value) for name, value in began.items()}
            _assign(optimizer._checked(values))
            self.best = self.values()

    def go(self) -> str:
        """Take all steps, leave the best values in the model in any case, and say why it ended."""
        try:
            reason = self.steps()
        except BudgetError as error:
            reason = f"budget: {error}"
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.farewell()) from None
        finally:
            _assign(self.best)
            if self.progress is _show_progress:
                print(file=sys.stderr)
        self.record("end", reason=reason, values=self.encoded(self.best), best=self.told_best())
        return reason

    def farewell(self) -> str:
        again = f"the same call goes on from {self.journal.path}"
        again = again if self.journal.path else "with journal= a run can be gone on with"
        return f"stopped in step {self.number}; the best values so far are in the model; {again}"

    def record(self, event: str, **facts: Any) -> None:
        self.journal.write({"event": event, "step": self.number, **facts})

    def told_best(self) -> dict[str, Any]:
        score = self.best_rank[0] if self.held_out else self.best_rank[1]
        return {"step": self.best_step, "score": score if math.isfinite(score) else None}

    def steps(self) -> str:
        """Take all steps; say why there are no more."""
        if self.held_out:
            tried = self.crew.run(self.held_out, step=0, part="validate", candidate=0)
            self.validation = _mean(each.score for each in tried)
        epochs = self.options["epochs"]
        count = epochs * -(-len(self.examples) // self.options["batch_size"])
        for epoch, batch in itertools.chain.from_iterable(map(self.batches, range(epochs))):
            self.number += 1
            self.step(epoch, batch)
            self.show(count)
            if self.stale == self.options["patience"]:
                return "patience"
        return "epochs"

    def batches(self, epoch: int) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
        """The examples of one epoch, so many at a time."""
        import random

        examples, size = [*self.examples], self.options["batch_size"]
        if self.options["shuffle"]:
            random.Random(f"{self.options['seed']} {epoch}").shuffle(examples)
        for start in range(0, len(examples), size):
            yield epoch + 1, examples[start : start + size]

    def step(self, epoch: int, batch: list[tuple[int, Any]]) -> None:
        """One batch: run it, send back what was said, ask for candidates, keep the best of them."""
        self.optimizer.zero_feedback()
        tried = self.crew.run(batch, True, step=self.number, part="forward", candidate=0)
        now = _Tested(Proposal(), self.validation, _mean(each.score for each in tried))
        with self.taped("backward"):
            outputs, said = [each.output for each in tried], [each.feedback for each in tried]
            self.optimizer.backward(outputs, said, score=[each.score for each in tried])
        graph = self.optimizer._merged()
        with self.taped("propose"):
            proposals = self.propose() if len(graph) or graph.outputs else []
        tested: list[_Tested] = []
        for each in proposals:
            tested.append(self.test(each, batch, tested))
        chosen, reason = self.choose(now, tested)
        self.keep(now, tested, chosen, reason)
        self.scores.append(now.score)
        self.stale = 0 if reason in ("better", "no scores", "not compared") else self.stale + 1
        small = self.journal.path and 0 < len(graph) <= 500
        self.record(
            "step", epoch=epoch, score=now.score, validation=now.validation, accepted=chosen,
            reason=reason, values=self.encoded(self.values()), best=self.told_best(),
            graph=json.loads(graph.to_json()) if small else None,
        )  # fmt: skip

    @contextlib.contextmanager
    def taped(self, part: str) -> Iterator[None]:
        """Put the optimizer's calls in this part of the step on the tape."""
        place = {"step": self.number, "part": part, "candidate": 0, "example": None}
        tape = _Tape(place, self.journal.replies_at(place), self.journal.write)
        with _on_tape(tape) if self.journal.path else contextlib.nullcontext():
            yield

    def propose(self) -> list[Proposal]:
        """The candidates; a reply that cannot be used is one that changes nothing."""
        optimizer, count = self.optimizer, self.options["candidates"]
        before, optimizer.on_refusal = optimizer.on_refusal, "keep"
        try:
            found = optimizer.propose() if count == 1 else optimizer.propose(count)
        finally:
            optimizer.on_refusal = before
        found = [found] if isinstance(found, Mapping) else found or []
        return [p if isinstance(p, Proposal) else Proposal(optimizer._checked(p)) for p in found]

    def test(
        self, proposal: Proposal, batch: Sequence[tuple[int, Any]], before: Sequence[_Tested]
    ) -> _Tested:
        """Try a candidate's values, unless one before had the same, and note how they did."""
        number, values = len(before) + 1, self.encoded(proposal)
        same = [each for each in before if self.encoded(each.proposal) == values]
        result = _Tested(proposal, None, None)
        if same:
            result = same[0]._replace(proposal=proposal)
        elif proposal and self.compares:
            result = self.measured(number, proposal, batch)
        told = {name: getattr(proposal, name) for name in ("reasoning", "answer", "refused")}
        told |= {"usage": proposal.usage and dict(proposal.usage), "diff": proposal.diff()}
        told |= {"score": result.score, "validation": result.validation}
        told |= {"seconds": round(proposal.seconds, 3)}
        self.record("proposal", candidate=number, values=values, **told)
        return result

    def measured(
        self, number: int, proposal: Proposal, batch: Sequence[tuple[int, Any]]
    ) -> _Tested:
        """How a candidate's values do on the batch and the validation set; they do not stay."""
        place: dict[str, Any] = {"step": self.number, "candidate": number}
        before = self.values()
        try:
            _assign(self.optimizer._checked(proposal))
            tried = _evaluation(self.crew.run(batch, part="check", **place))
            held = _evaluation(self.crew.run(self.held_out, part="validate", **place))
        finally:
            _assign(before)
        return _Tested(proposal, held.mean, tried.mean, tried.feedback)

    def choose(self, now: _Tested, tested: Sequence[_Tested]) -> tuple[int, str]:
        """The number of the candidate to keep, 0 for none, and why."""
        ranks = {number: each.rank for number, each in enumerate(tested, 1) if each.proposal}
        if not ranks:
            return 0, "no change" if tested else "no feedback"
        if not self.compares:
            return min(ranks), "not compared"
        best, rank = max(ranks.items(), key=lambda each: each[1])  # the first of equals
        if not any(map(math.isfinite, (*rank, *now.rank))):
            return best, "no scores"
        if rank < now.rank and self.options["gate"]:
            return 0, "worse"
        return best, "better" if rank > now.rank else "worse" if rank < now.rank else "as good"

    def keep(self, now: _Tested, tested: Sequence[_Tested], chosen: int, reason: str) -> None:
        """Set the chosen values; what was tried in vain is remembered, so that it is not again."""
        if self.compares and not self.options["gate"] and now.rank > self.best_rank:
            self.note_best(now)
        for number, (proposal, held, score, feedback) in enumerate(tested, 1):
            if proposal and number != chosen:
                tried = _values_by_name({**self.values(), **proposal})
                said = [*dict.fromkeys(filter(None, (_said(each, 300) for each in feedback)))][:4]
                if now.validation is not None:
                    said.append(f"on other examples {held:g}, not {now.validation:g} as before")
                self.optimizer._add(Attempt(tried, said, score, reason=_NOT_KEPT))
        if reason == "no change":
            self.optimizer._remember(tested[0].proposal, reason)
        if chosen:
            now = tested[chosen - 1]
            self.optimizer.update(now.proposal)
            self.kept_step, self.validation = self.number, now.validation
        latest = self.options["gate"] or not self.compares or reason == "no scores"
        if latest or now.rank >= self.best_rank:
            self.note_best(now)

    def note_best(self, now: _Tested) -> None:
        """Hold the present values for the best so far."""
        self.best, self.best_rank, self.best_step = self.values(), now.rank, self.kept_step

    def show(self, steps: int) -> None:
        """Tell how far it got: a function of the user's, or a line on a terminal."""
        if self.progress:
            spent, done = self.spent.spent, self.number
            left = (time.monotonic() - self.began) / done * (steps - done)
            state = {"step": done, "steps": steps, "score": self.scores[-1]}
            state |= {"best": self.told_best()["score"], "calls": int(spent["calls"])}
            self.progress({**state, "tokens": int(spent["tokens"]), "seconds_left": round(left)})


def _show_progress(state: dict[str, Any]) -> None:
    """One line on standard error, written over and over."""
    score, best = (("-" if n is None else f"{n:.3g}") for n in (state["score"], state["best"]))
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
        model: a module, a bundle, a parameter, or any callable if the optimizer has its parameters;
            it is called with an input. Async ones are awaited. If it fails with an
            `ExecutionError`, the error is the feedback; the score is `failed_score` or, if less,
            the lowest that the guide gave so far.
        dataset: pairs `(input, info)`, or `{"inputs": [...], "infos": [...]}`.
        guide: a function of `(query, response, info)`: see `Guide`. What it raises ends the run,
            but for a `ReplyError`: that example stays without a score.
        optimizer: an `OptoPrime` of the model by default.
        epochs, batch_size: how often the dataset is run through, and how many examples at a time.
        candidates: how many proposals are asked for in a step, side by side.
        validation: a second dataset, whose mean score then decides.
        patience: end after so many steps in a row that did not better the score.
        workers: how many examples run at a time, in threads.
        executor: a `concurrent.futures.Executor` to run them instead: of threads, or of processes
            (then model, guide and data are pickled, and budgets see the optimizer's calls only).
        journal: a file of JSON lines that keeps all that happens, the data too. The same call with
            the same file goes on after a crash, and pays for no recorded reply again.
        budget: a `Budget`; when it is spent the run ends.
        progress: a function of a dict, called after each step; False for none. By default a line
            on standard error, if that is a terminal.
        seed, shuffle: shuffle the examples of each epoch, by this seed.
        gate: False keeps the best candidate even if it is worse.
        redact: a function that sees a copy of every record before it is written, and returns it,
            changed or not, or None to leave it out (any but the first). What it takes away of a
            reply is not there when the run goes on; a reply that is gone is asked for again.

    Returns: a `Run`.

    Raises:
        MinitraceError: the journal belongs to another run, or another process writes it.

    >>> GRAPH.clear()
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
    optimizer = optimizer or OptoPrime(model)
    examples = _pairs(dataset, "dataset")
    held_out = _pairs(() if validation is None else validation, "validation")
    counts = {"epochs": epochs, "batch_size": batch_size, "candidates": candidates}
    _check_counts(**counts, patience=1 if patience is None else patience)
    if not callable(guide) or isinstance(guide, type):
        raise TypeError(f"guide= takes a function or a Guide(), not {_text(guide, 60)}")
    if not (budget is None or hasattr(budget, "spent")):
        raise TypeError(f"budget= takes a Budget, not {_text(budget, 60)}")
    options: dict[str, Any] = {**counts, "patience": patience, "gate": gate}
    options |= {"shuffle": shuffle, "seed": seed, "failed_score": failed_score}
    with budget or Budget() as spent, _Journal(journal, redact) as notes:
        crew = _Crew(model, guide, workers, executor, failed_score, notes)
        crew.check_sees(optimizer.parameters)
        run = _Training(optimizer, crew, examples, held_out, options, progress, spent)
        facts = {"examples": _digest(examples), "validation": _digest(held_out)}
        run.begin({"optimizer": type(optimizer).__name__, **facts, **options})
        reason = run.go()
    score, values = run.told_best()["score"], _values_by_name(run.best)
    return Run(reason, run.number, score, values, run.scores, spent.spent)


def _pairs(dataset: Any, name: str) -> list[tuple[int, Any]]:
    """The examples of a dataset, numbered."""
    if isinstance(dataset, Mapping):
        inputs, infos = (list(dataset.get(key, ())) for key in ("inputs", "infos"))
        if dataset.keys() != {"inputs", "infos"} or len(inputs) != len(infos):
            words = f"{len(inputs)} inputs and {len(infos)} infos"
            raise TypeError(f"{name} as a mapping has inputs and as many infos, not {words}")
        dataset = zip(inputs, infos, strict=True)
    examples = list(dataset)
    for index, pair in enumerate(examples):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{name}[{index}] must be a pair (input, info), not {_text(pair, 60)}")
    return list(enumerate(examples))


def _digest(examples: Any) -> str:
    """How many examples there are, and what tells them from others."""
    import hashlib

    text = json.dumps(encode([list(pair) for _, pair in examples], as_text=True))
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return f"{len(examples)}, {digest[:12]}"


class Evaluation(NamedTuple):
    """How a model did on a dataset.

    A score per example (None where the guide gave words only) and their mean; by index, what was
    said of those that failed; the responses; the feedback.
    """

    scores: list[float | None]
    mean: float | None
    failures: dict[int, str]
    responses: list[Any]
    feedback: list[Any]


def evaluate(
    model: Any, dataset: Any, guide: Any = None, *, workers: int = 1, executor: Any = None,
    failed_score: float = 0.0,
) -> Evaluation:  # fmt: skip
    """Run a model on every example of a dataset, side by side, and judge the responses.

    Nothing is traced and nothing changes. Without a guide the dataset is an iterable of inputs.

    Args: those of `train`.

    >>> rate = node(2, name="rate", trainable=True)
    >>> def price(amount):
    ...     return rate * amount
    >>> evaluate(price, [1, 2, 3], workers=3).responses
    [2, 4, 6]
    >>> evaluate(price, [(1, 2), (2, 5)], lambda query, response, info: response == info).mean
    0.5
    """
    inputs = dataset.get("inputs", ()) if isinstance(dataset, Mapping) else dataset
    pairs = [(each, None) for each in inputs] if guide is None else dataset
    crew = _Crew(model, guide, workers, executor, failed_score, _Journal(None))
    return _evaluation(crew.run(_pairs(pairs, "dataset")))


def _evaluation(tried: Sequence[Tried]) -> Evaluation:
    scores = [each.score for each in tried]
    failures = {index: str(each.feedback) for index, each in enumerate(tried) if each.failed}
    responses, feedback = [each.response for each in tried], [each.feedback for each in tried]
    return Evaluation(scores, _mean(scores), failures, responses, feedback)


def _mean(scores: Iterable[float | None]) -> float | None:
    found = [score for score in scores if score is not None]
    return sum(found) / len(found) if found else None


# ---- 5. Language models --------------------------------------------------------------------------
