"""Trace's own import names and call forms: programs written for Microsoft Trace run unchanged.

A companion of `minitrace.py`: copy both files into one folder, and `import opto` finds this one.
Training needs `minitrace_train.py` beside them. There is nothing else to install.

>>> from opto import trace
>>> from opto.optimizers import OptoPrime
>>> from opto.utils.llm import DummyLLM
>>> x = trace.node(3, name="x", trainable=True)
>>> optimizer = OptoPrime([x], llm=DummyLLM(lambda messages: '{"suggestion": {"x0": 5}}'))
>>> output = x * 2
>>> optimizer.zero_feedback()
>>> optimizer.backward(output, "too small", retain_graph=True)
>>> optimizer.step(verbose="output")
LLM response:
{"suggestion": {"x0": 5}}
{<ParameterNode x:0 = 5>: 5}

The names are those of trace-opt 0.1.3.8, and of the trainer of 0.2.0 as far as `minitrace_train`
carries it. Chapter 17 of the tutorial explains. What a program may notice:

- Optimizers are as lenient as Trace's: `memory_size` is 0; a step asks once (`retries=2` asks again
  after a reply that cannot be used); such a reply keeps the values, with a warning; a step without
  feedback does nothing.
- A reply is applied whole or not at all, after its types and its code were checked; Trace skips a
  variable that it does not know.
- The prompt is minitrace's, also in `construct_prompt`, `problem_instance` and `log`. Options for
  Trace's own, such as `prompt_symbols` or `mask`, are accepted and do nothing; an option that
  neither knows is ignored, with a warning. A subclass may redefine `_step`, not `construct_prompt`,
  `call_llm` or `extract_llm_suggestion`, which nothing here would call.
- The graph is minitrace's: nodes inside an argument, and nodes from outside that are allowed, are
  parents; with `traceable_code=True` every step in a function is a node, and the call is none; a
  function that calls itself is one node, whatever `overwrite_python_recursion` says; a node made by
  hand is called after its `name`, and so is its operator; that of an error is called after the
  function, without `exception_` before it; `*items` are the inputs `items_0`, `items_1` and so on.
- One backward brings one trace graph, with the paths of every parameter that it reached; in Trace
  each parameter has a graph of its own paths.
- `str(node)` is the value. Feedback is a list; `values()` and `items()` are there for programs that
  read it as a dict. `trace_graph.graph` numbers its nodes, and does not give their levels.
- Backward never uses up a graph. Several outputs may have words of their own.
- Nothing points from a node to those made of it, so `children` and `is_leaf` look at every living
  object. They are slow, and find no node that nobody holds.
- `visualize=True` gives the trace graph, whose `render` writes a tree of text; no Graphviz is
  needed. To draw it in a notebook, import `minitrace_pictures`.
- `LLM()` asks the language model named in TRACE_LITELLM_MODEL or MINITRACE_MODEL. An optimizer
  without one has a `StubLLM`. A key alone in the environment never makes anything spend.
  `LiteLLM`, `AutoGenLLM` and `CustomLLM` are `LLM` too: servers are named by `base_url=`.
- `OptoPrimeMulti` asks for its candidates side by side, at one temperature.
- Files are JSON. Those that Trace saved are pickles, and cannot be read. Parameters in them, and in
  `parameters_dict()`, have dotted names, such as `inner.prompt`.
- `MinibatchAlgorithm` keeps a proposal even if it is worse, as Trace's does, unless a program says
  `ensure_improvement=True`; the dataset is not measured again at the end. It calls no `forward`,
  `update` or `optimizer_step` of a subclass, and an error says so.
- An f-string reads a node without a warning that the trace ends there.
- Importing this file gives minitrace's own classes a few of Trace's names (see `_nodes` below).

Left out, and said so when a program asks for them: the searches `PrioritySearch`, `UCBSearch`,
beams and GEPA; `apply_op`, `NodeContainer`, `Seq` and `Map`, since plain containers work
everywhere; `node_to_function_feedback`, `ProblemInstance` and what else made Trace's prompts;
operators that change a copy, such as `list_append` (`x + [y]` is recorded); the registry behind
`GRAPH`; `info`, `id` and `parameter_dependencies` of nodes, and trace graphs made by hand.
"""

import gc
import os
import random
import re
import sys
from abc import ABC
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from warnings import warn

try:
    import minitrace
    from minitrace import ExecutionError, LanguageModel, Reply, TraceGraph, node, operators
except ModuleNotFoundError as error:
    raise ImportError("opto.py needs minitrace.py: copy it beside this file") from error


# ---- Nodes, made by Trace's call forms -----------------------------------------------------------


def bundle(*args: Any, overwrite_python_recursion: bool = True, **options: Any) -> Any:
    """`minitrace.bundle` with Trace's options.

    Args:
        args, options: as `minitrace.bundle` takes them: description, trainable and so on.
        overwrite_python_recursion: accepted; a function that calls itself is always one node.

    >>> @bundle("[factorial] n!", overwrite_python_recursion=True)
    ... def factorial(n):
    ...     return 1 if n < 2 else n * factorial(n - 1)
    >>> factorial(5).data, len(factorial(5).parents)
    (120, 1)
    """
    return minitrace.bundle(*args, **options)


class Node(ABC):  # noqa: B024
    """Trace's `Node(value, name=..., description=...)`: makes a node of minitrace.

    All nodes of minitrace are instances of it, though none is made by it.

    >>> x = Node(3, name="x")
    >>> type(x) is minitrace.Node, isinstance(x, Node), isinstance(x, ParameterNode)
    (True, True, False)
    """

    trainable = False

    def __new__(cls, value: Any, **options: Any) -> Any:
        return node(value, **{"trainable": cls.trainable, **options})


class ParameterNode(Node):
    """Trace's `ParameterNode(value, name=...)`: a parameter, unless it has `trainable=False`.

    >>> ParameterNode("Hello", name="word", constraint="one word").trainable
    True
    """

    trainable = True


class MessageNode(Node):
    """A node made by hand: what something outside of the program gave, and what that came from.

    Args:
        value: the data; an exception makes an `ExceptionNode`.
        inputs: the parents, by the names of arguments, or as a list.
        description: `"[op] words"`.
        name: what the node and its operator are called; else it is `op`, or the class's name.

    >>> minitrace.GRAPH.clear()
    >>> x = Node(3, name="x")
    >>> seen = MessageNode(9, inputs={"x": x}, description="[square] x times itself.")
    >>> seen.name, seen.data, seen.inputs, seen.description
    ('square:0', 9, {'x': <Node x:0 = 3>}, 'x times itself.')
    """

    def __new__(cls, value: Any, **options: Any) -> Any:
        data, told = minitrace.to_data(value), _Told(value)

        def give(**inputs: Any) -> Any:
            if isinstance(data, Exception):
                raise told
            return data

        op, bracket, words = (options.get("description") or "").partition("]")
        inputs = options["inputs"]
        name = options.get("name") or (op[1:] if bracket else cls.__name__)
        named = inputs if isinstance(inputs, dict) else {each.name: each for each in inputs}
        try:
            return bundle(f"[{name}] {words if bracket else op}")(give)(**named)
        except ExecutionError as error:
            return error.exception_node


class ExceptionNode(MessageNode):
    """Trace's `ExceptionNode(error, inputs={...})`, to `raise ExecutionError(node)` with.

    >>> move = Node(7, name="move")
    >>> failed = ExceptionNode(ValueError("off the board"), inputs={"move": move})
    >>> try:
    ...     raise ExecutionError(failed)
    ... except ExecutionError as error:
    ...     print(error, error.exception_node.parents[0] is move)
    (ValueError) off the board True
    """


class _Told(Exception):
    """An error with the words of another."""

    def __init__(self, error: Any) -> None:
        self.failure = f"({type(error).__name__}) {error}", ""


for _form in Node, ParameterNode, MessageNode, ExceptionNode:
    _form.register(getattr(minitrace, _form.__name__))


# ---- Backward, and what Trace shows of a graph ---------------------------------------------------


class Feedback(list[Any]):
    """What a parameter heard, an entry for each backward.

    In Trace it is a dict from a child to a list of what came from there. Here the keys of `items()`
    are numbers.

    >>> heard = Feedback(["too low", "too slow"])
    >>> heard.values(), dict(heard.items())
    ([['too low'], ['too slow']], {0: ['too low'], 1: ['too slow']})
    """

    def values(self) -> Any:
        """A list for each feedback."""
        heard = (entry if isinstance(entry, Feedback) else [entry] for entry in self)
        return [[each] for entry in heard for each in entry]

    def items(self) -> Any:
        """The same, numbered."""
        return enumerate(self.values())


class _Child:
    """A node as Trace's propagators see it: with what it heard."""

    def __init__(self, node: Any, heard: Feedback) -> None:
        self.node, self.feedback = node, heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)


class Propagator(minitrace.Propagator):
    """A propagator in Trace's way: a subclass defines `_propagate`, maybe `init_feedback` too.

    `_propagate(child)` gets a node that has something in `feedback`, as Trace's does, and returns a
    dict from each parent to what it shall hear.

    >>> class Slope(Propagator):
    ...     def _propagate(self, child):
    ...         return {parent: 2 * sum(sum(v) for v in child.feedback.values())
    ...                 for parent in child.parents}
    >>> x = node(3, name="x", trainable=True)
    >>> (x * 2).backward(1.0, Slope())
    >>> x.feedback
    [[2.0]]
    """

    def aggregate(self, feedbacks: Any) -> Any:
        """All that was heard."""
        return Feedback(feedbacks)

    def _propagate(self, child: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no _propagate()")

    def propagate(self, node: Any, feedback: Any) -> Any:
        """What each parent receives."""
        sent = {} if node.is_root else self._propagate(_Child(node, feedback))
        return [sent[parent] for parent in node.parents]


def _user_feedback(self: Any) -> Any:
    """What was said of the output; of several, a text of what was said of each."""
    return self.feedback[0] if len(self.outputs) == 1 else "\n".join(map(str, self.feedback))


def _render(self: Any, filename: str = "trace_graph", **ignored: Any) -> str:
    """Write a trace graph as a tree of text, and give the path."""
    path = Path(f"{filename}.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(self.tree(), encoding="utf-8")
    return str(path)


_plain_backward = minitrace.Node.backward


def _backward(self: Any, feedback: Any = "", propagator: Any = None, *_: Any, **kw: Any) -> Any:
    """`Node.backward`, with Trace's options; if it should be visualized, the graph above."""
    _plain_backward(self, feedback, propagator, score=kw.get("score"))
    if kw.get("visualize"):
        graph = TraceGraph.of(*(self if isinstance(self, (list, tuple)) else [self]))
        graph.outputs = [type(each)(each.node, feedback) for each in graph.outputs]
        return graph
    return None


def contain(container: Any, node: Any) -> bool:
    """Is this very node in a container? `in` compares values.

    >>> one, other = node(1), node(1)
    >>> other in [one], contain([one], other)
    (True, False)
    """
    return any(each is node for each in container)


def _children(self: Any) -> Any:
    """The living nodes that were made of this one, the oldest first."""
    nodes = (each for each in gc.get_objects() if issubclass(type(each), minitrace.Node))
    made = [each for each in nodes if contain(each.parents, self)]
    return [each for each in TraceGraph.of(*made) if contain(made, each)]


# minitrace's own classes get a few of Trace's names, so that every node, graph and error has them.
_nodes: Any = minitrace.Node
_nodes.backward = _backward
_nodes.__format__ = lambda self, spec: format(self.data, spec)
_nodes.children = property(_children)
_nodes.is_leaf = property(lambda self: not self.children)
_graphs: Any = TraceGraph
_graphs.graph = property(lambda self: [*enumerate(self)])
_graphs.user_feedback = property(_user_feedback)
_graphs.render = _render
_errors: Any = ExecutionError
_errors.__str__ = lambda self: self.exception_node.create_feedback("full")


def sum_feedback(nodes: Any) -> Any:
    """The trace graphs that some parameters received, as one.

    >>> x = node(3, name="x", trainable=True)
    >>> (x * 2).backward("too small")
    >>> graph = sum_feedback([x])
    >>> graph.user_feedback, [each.op_name for number, each in graph.graph]
    ('too small', ['ParameterNode', 'Node', 'multiply'])
    """
    heard = [each for node in nodes for each in node.feedback]
    return TraceGraph.merged(each for each in heard if isinstance(each, TraceGraph))


# ---- Language models -----------------------------------------------------------------------------


def _completion(answer: Any, messages: Any) -> Reply:
    """An answer as a reply that a program may also read as `.choices[0].message.content`."""
    reply = Reply(answer)
    name = re.search(r"\n\(\w+\) (\w+)", str(messages[-1]["content"]))  # of the first variable
    text = re.sub(r"(?<=[</])IMPROVED_VARIABLE(?=>)", name[1], reply) if name else reply
    choice = SimpleNamespace(message=SimpleNamespace(content=text))
    return Reply(text, **{**vars(reply), "choices": [choice]})


class AbstractModel(LanguageModel):
    """The base of language models of one's own.

    Args:
        factory: makes what is called as `ask(messages=..., max_tokens=...)` and returns a text or a
            completion, whose text is `.choices[0].message.content`. A property `model` in a
            subclass goes before it.
        reset_freq: accepted; nothing is made anew.

    >>> class Mine(AbstractModel):
    ...     def __init__(self):
    ...         super().__init__(lambda: lambda messages, **options: messages[0]["content"] * 2)
    >>> Mine()(messages=[{"role": "user", "content": "Hi!"}]).choices[0].message.content
    'Hi!Hi!'
    """

    def __init__(self, factory: Any, reset_freq: Any = None) -> None:
        self.made = factory()

    def complete(self, messages: Any, options: Any) -> Reply:
        """Ask the language model."""
        ask: Any = self.model or self.made
        return _completion(ask(messages=messages, **options), messages)


class DummyLLM(AbstractModel):
    """A function of `messages=` as a language model, for tests.

    >>> DummyLLM(lambda messages, **options: "Hello!")("Hi").choices[0].message.content
    'Hello!'
    """

    def __init__(self, callable: Any) -> None:
        super().__init__(lambda: callable)


class LLM(minitrace.LLM, AbstractModel):
    """Trace's `LLM(model=None)`: what it names, or TRACE_LITELLM_MODEL, or MINITRACE_MODEL.

    A name without a provider is one of OpenAI's, as in LiteLLM. What comes back is a text, with
    Trace's `.choices[0].message.content` too. It takes the options of `minitrace.LLM`, and none of
    LiteLLM's own, such as `cache`.

    >>> LLM("gpt-4o", temperature=0)
    LLM('gpt-4o', temperature=0)
    """

    create = LanguageModel.__call__  # AutoGen's name for it

    def complete(self, messages: Any, options: Any) -> Reply:
        """Ask the language model."""
        name = self.model or os.environ.get("TRACE_LITELLM_MODEL")
        self.model = f"openai/{name}" if name and "/" not in name else name  # as LiteLLM does
        return _completion(super().complete(messages, options), messages)


AutoGenLLM = LiteLLM = CustomLLM = LLM


def _as_llm(llm: Any) -> Any:
    """Any language model that Trace takes; None for the one that minitrace takes by itself."""
    if llm is None:
        return LLM() if os.environ.get("TRACE_LITELLM_MODEL") else None
    ours = type(llm).__call__ is LanguageModel.__call__
    return llm if ours else DummyLLM(llm if callable(llm) else llm.create)


# ---- Optimizers ----------------------------------------------------------------------------------

_KNOWN = "propagator objective memory_size max_tokens max_chars retries on_refusal"
_SWALLOWED = """ config_list filter_dict prompt_symbols include_example json_keys log
    use_json_object_format optimizer_prompt_symbol_set truncate_expression initial_var_char_limit
    temperature_range wandb_enabled synthesize num_responses selector ignore_extraction_error"""


def _warn_unknown(who: str, options: Any, known: str) -> None:
    unknown = sorted(options.keys() - set(known.split()))
    if unknown:
        warn(f"{who} does not know {'=, '.join(unknown)}=, and ignores it", stacklevel=3)


class Optimizer(minitrace.Optimizer):
    """The base of optimizers in Trace's way, which define `_step` and `default_propagator`.

    Args:
        parameters: a list of parameters, or a module.
        llm: any language model that Trace takes.
        options: `objective`, `memory_size`, `propagator`, `max_tokens`; minitrace's `retries`,
            `max_chars` and `on_refusal`; `ignore_extraction_error=False` raises an error where a
            reply cannot be used. Others of Trace's are accepted, and each is an attribute.

    What `_step` returns is set as it is, unchecked.

    >>> class Descent(Optimizer):
    ...     def _step(self, rate=1.0, **options):
    ...         feedback = self.trace_graph.user_feedback
    ...         return {each: each.data - rate * feedback for each in self.parameters}
    >>> x = node(3.0, name="x", trainable=True)
    >>> optimizer = Descent([x])
    >>> optimizer.backward(x * 2, 0.5)
    >>> update = optimizer.step(rate=2.0)
    >>> x.data
    2.0
    """

    default_objective = "Change the variables so that the output improves as the feedback asks."
    memory = 0

    def __init__(self, parameters: Any, llm: Any = None, **options: Any) -> None:
        vars(self).update(options)
        refusal = "keep" if options.get("ignore_extraction_error", True) else "raise"
        _warn_unknown(f"{type(self).__name__}()", options, _KNOWN + _SWALLOWED)
        given = {"propagator": self.default_propagator(), "objective": self.default_objective}
        given |= {"memory_size": self.memory, "retries": 0, "on_refusal": refusal}
        given |= {name: options[name] for name in _KNOWN.split() if options.get(name) is not None}
        super().__init__(parameters, _as_llm(llm), **given)
        self.log: Any = []
        for each in self.parameters:
            each.feedback = Feedback(each.feedback)

    def default_propagator(self) -> Any:
        """The propagator if none is given."""
        return minitrace.GraphPropagator()

    # All that the parameters heard, as one graph.
    trace_graph = property(minitrace.Optimizer.graph)
    summarize = minitrace.Optimizer.graph

    def backward(self, output: Any, feedback: Any = "", score: Any = None, **options: Any) -> Any:
        """Send feedback from an output to every parameter, also those of other optimizers."""
        propagator = None if isinstance(self, TextGrad) else self.propagator
        return _backward(output, feedback, propagator, score=score, **options)

    def step(self, bypassing: bool = False, *args: Any, **options: Any) -> Any:
        """Propose new values and set them; without feedback, nothing."""
        values = self.propose(None, *args, **options)
        return values if bypassing else self.update(values)

    def propose(self, n: Any = None, *args: Any, **options: Any) -> Any:
        """New values by parameter; with `n` a list of so many."""
        return self._step(*args, **({**options, "n": n} if n else options))

    def _step(self, verbose: Any = False, n: Any = None, **ignored: Any) -> Any:
        if not any(each.feedback for each in self.parameters):
            return [minitrace.Proposal()] if n else minitrace.Proposal()
        found = super().propose(n)
        for each in found if n else [found]:
            self._tell(each, verbose)
        return found

    def _tell(self, proposal: Any, verbose: Any) -> None:
        """Note how a proposal came about, and print it if asked."""
        system, *user = asked = [each["content"] for each in proposal.prompt]
        page, reply = "\n".join(user), "\n".join(proposal.replies)
        self.log.append({"system_prompt": system, "user_prompt": page, "response": reply})
        if verbose:
            print(*([] if verbose == "output" else asked), "LLM response:", reply, sep="\n")
        if proposal.refused and not proposal:
            warn(f"the reply is unusable and the values stay: {proposal.refused[-1]}", stacklevel=5)

    def update(self, values: Any) -> Any:
        """Set new values; what a program chose itself is not checked."""
        if isinstance(values, minitrace.Proposal):
            return super().update(values)
        for parameter, value in values.items():
            parameter.restore(value)
        return values

    def construct_prompt(self, summary: Any, mask: Any = None) -> Any:
        """What a language model would be shown of it: the system's text, and the user's."""
        system, *user = [each["content"] for each in self.prompt()]
        return system, "\n".join(user)

    def problem_instance(self, summary: Any, mask: Any = None) -> str:
        """The user's text alone; nothing if there is nothing to learn from."""
        return self.construct_prompt(summary)[1] if summary else ""


class OptoPrime(Optimizer, minitrace.OptoPrime):
    """`minitrace.OptoPrime` in Trace's way; also Trace's `OptoPrimeV2`.

    >>> x = node(3, name="x", trainable=True)
    >>> reply = '{"reasoning": "too low", "suggestion": {"%s": 5}}' % x.py_name
    >>> optimizer = OptoPrime([x], llm=DummyLLM(lambda messages: reply), config_list=[], log=True)
    >>> optimizer.objective = "Go up. " + optimizer.default_objective
    >>> optimizer.zero_feedback()
    >>> optimizer.backward(x * 2, "too low")
    >>> system, user = optimizer.construct_prompt(optimizer.summarize())
    >>> user.splitlines()[1]
    'Go up. Change the variables so that the output improves as the feedback asks.'
    >>> update = optimizer.step()
    >>> x.data, optimizer.log[0]["response"] == reply
    (5, True)
    """


class OPRO(Optimizer, minitrace.OPRO):
    """`minitrace.OPRO` in Trace's way: a prompt shows up to eight past attempts, not all of them.

    >>> optimizer = OPRO([node("Hi", name="word", trainable=True)], llm=DummyLLM(print))
    >>> optimizer.memory_size
    8
    """

    memory = 8


class TextGrad(Optimizer, minitrace.TextGrad):
    """`minitrace.TextGrad` in Trace's way: it asks for criticism in its step, not in backward.

    A reply in Trace's tag `<IMPROVED_VARIABLE>` is read too.

    >>> word = node("Hello", name="word", trainable=True)
    >>> def answer(messages, **options):
    ...     improve = "# Variables" in messages[-1]["content"]
    ...     return "<IMPROVED_VARIABLE>Hi</IMPROVED_VARIABLE>" if improve else "Be shorter."
    >>> optimizer = TextGrad([word], llm=answer)
    >>> (word + ", Ada").backward("too stiff")
    >>> update = optimizer.step()
    >>> word.data
    'Hi'
    """

    def default_propagator(self) -> Any:
        """None: minitrace's own, which asks for criticism."""
        return None

    def _step(self, *args: Any, **options: Any) -> Any:
        graph = sum_feedback(self.parameters)
        if graph:
            self.zero_feedback()
            minitrace.TextGrad.backward(self, [each.node for each in graph.outputs], graph.feedback)
        return super()._step(*args, **options)


class OptoPrimeMulti(OptoPrime):
    """`OptoPrime` that asks for several candidates, side by side, and chooses one.

    Args:
        num_responses: how many, by default 5.
        selector: a function from the list of candidates to one; else it is the last.

    >>> x = node(3, name="x", trainable=True)
    >>> optimizer = OptoPrimeMulti(
    ...     [x], llm=lambda messages: '{"suggestion": {"%s": 4}}' % x.py_name, num_responses=2
    ... )
    >>> optimizer.backward(x + 1, "too low")
    >>> update = optimizer.step()
    >>> x.data, len(optimizer.candidates)
    (4, 2)
    """

    num_responses = 5
    selector: Any = None

    def _step(self, *args: Any, **options: Any) -> Any:
        self.candidates = super()._step(*args, **{**options, "n": self.num_responses})
        return self.selector(self.candidates) if self.selector else self.candidates[-1]


OptoPrimeV1 = OptoPrimeV2 = FunctionOptimizer = FunctionOptimizerV2Memory = OptoPrime
OPROv2 = OPRO


def print_color(message: Any, *ignored: Any, **options: Any) -> None:
    """Print a message; colors are left out.

    >>> print_color("done", "green")
    done
    """
    print(message)


def render_opt_step(step_idx: int, optimizer: Any, **ignored: Any) -> None:
    """Print what was asked in a step, and the reply.

    Args:
        step_idx: the number of the step in `optimizer.log`, from 0.
        optimizer: any of those above.
        ignored: what Trace's takes for notebooks.
    """
    print(*optimizer.log[step_idx].values(), sep="\n\n")


class Projection:
    """A map from a value to a good one, for `projections=`: a subclass defines `project`.

    >>> class Positive(Projection):
    ...     def project(self, x):
    ...         return max(x, 0)
    >>> rate = node(1, name="rate", trainable=True, projections=[Positive()])
    >>> rate.set(-3)
    >>> rate.data
    0
    """

    def __call__(self, x: Any) -> Any:
        return self.project(x)

    def project(self, x: Any) -> Any:
        """The good value: the same, unless a subclass knows better."""
        return x


BlackCodeFormatter = Projection


# ---- Training, by minitrace_train ----------------------------------------------------------------


class Guide:
    """Says how good a response is: a subclass defines `get_feedback`.

    >>> class Exact(Guide):
    ...     def get_feedback(self, query, response, reference=None, **kwargs):
    ...         return float(response == reference), f"It should be {reference}."
    >>> Exact()("2+2", "5", "4"), Exact().metric("2+2", "4", "4")
    ((0.0, 'It should be 4.'), 1.0)
    """

    get_feedback: Any

    def __call__(self, task: Any, response: Any, info: Any, **options: Any) -> Any:
        return self.get_feedback(task, response, info, **options)

    def metric(self, *args: Any, **options: Any) -> Any:
        """The score alone."""
        return self(*args, **options)[0]


class LLMJudge(Guide):
    """A guide that asks a language model: its words are the feedback, 1 or 0 is the score.

    Args:
        model, llm: the name of a language model, or one.
        options: `system_prompt`, and `prompt_template` with the fields `{query}`, `{response}`,
            `{reference}`, `{correctness_template}` and `{incorrectness_template}`. The words of
            these two are fixed here; an answer with the first scores 1.

    >>> judge = LLMJudge(llm=DummyLLM(lambda messages: "Incorrect: say 4."))
    >>> judge("2+2?", "5", "4")
    (0.0, 'Incorrect: say 4.')
    """

    system_prompt = "You are a teacher who says clearly what to do better."
    prompt_template = """The query: {query}\n\nThe response: {response}\n\nThe answer: {reference}\n
Is the response right? Then say {correctness_template}; if not, {incorrectness_template} and why."""

    def __init__(self, model: Any = None, llm: Any = None, **options: Any) -> None:
        self.llm = _as_llm(llm) or LLM(model)
        vars(self).update(options)

    def get_feedback(self, query: Any, response: Any, reference: Any = None, **options: Any) -> Any:
        """Ask."""
        right = "Correct [TERMINATE]"
        asked = self.prompt_template.format(
            query=query,
            response=response,
            reference=reference,
            correctness_template=right,
            incorrectness_template="Incorrect",
        )
        said = operators.call_llm(self.llm, self.system_prompt, asked).data
        return float(right in said), said


AutoGuide, VerbalJudgeGuide = Guide, LLMJudge


@minitrace.model
class BasicLearner:
    """An agent with a system prompt to learn.

    Args:
        system_prompt: the first value of its one parameter.
        options: `user_prompt_template` with the field `{message}`, and `llm`.

    >>> agent = BasicLearner("Be brief.", llm=DummyLLM(lambda messages: messages[-1]["content"]))
    >>> agent("2+2?").data, [each.data for each in agent.parameters()]
    ('Query: 2+2?', ['Be brief.'])
    """

    def __init__(self, system_prompt: str = "You're a helpful agent", **options: Any) -> None:
        self.system_prompt = node(system_prompt, "system_prompt", trainable=True)
        self.user_prompt_template = node(options.get("user_prompt_template", "Query: {message}"))
        self.llm = _as_llm(options.get("llm")) or LLM()

    def forward(self, message: Any) -> Any:
        """The answer to a message."""
        question = self.user_prompt_template.format(message=message)
        return operators.call_llm(self.llm, self.system_prompt, question)


@dataclass
class DataLoader:
    """The batches of a dataset, as lists of inputs and of infos.

    Going through it again shuffles again, by Python's `random`.

    >>> [*DataLoader({"inputs": [1, 2, 3], "infos": "abc"}, batch_size=2, shuffle=False)]
    [([1, 2], ['a', 'b']), ([3], ['c'])]
    """

    dataset: Any
    batch_size: int = 1
    shuffle: bool = True

    def __iter__(self) -> Any:
        pairs = [*zip(self.dataset["inputs"], self.dataset["infos"], strict=True)]
        if self.shuffle:
            random.shuffle(pairs)
        while pairs:
            yield tuple(map(list, zip(*pairs[: self.batch_size])))  # noqa: B905
            del pairs[: self.batch_size]


batchify = bundle("[batchify] The items as one text, numbered.")(
    lambda *items: "".join(f"ID [{number}]: {item}\n" for number, item in enumerate(items))
)


def evaluate(agent: Any, guide: Any, inputs: Any, infos: Any, **options: Any) -> Any:
    """The score of an agent on each input, by `minitrace_train.evaluate`.

    Args:
        agent, guide: what answers, and what judges the answers.
        inputs, infos: the data, of one length.
        options: `num_threads`; `min_score`, the score where anything raises an error: None if it is
            not given, as in Trace.
    """
    import minitrace_train

    _warn_unknown("evaluate()", options, "min_score num_threads description")
    data, workers = {"inputs": inputs, "infos": infos}, options.get("num_threads") or 1

    def judge(query: Any, response: Any, info: Any) -> Any:
        score = options.get("min_score")
        with suppress(Exception):
            found = minitrace_train.evaluate(agent, [(query, info)], guide)
            if not found.failures:
                score = found.scores[0]
        return "no score" if score is None else score

    return minitrace_train.evaluate(lambda x: x, data, judge, workers=workers).scores


class ConsoleLogger:
    """Prints how training goes; it also stands for loggers that write elsewhere.

    >>> ConsoleLogger(log_dir="logs").log("Average test score", 0.5, step=3)
    [Step 3] Average test score: 0.5
    """

    def __init__(self, **ignored: Any) -> None:
        """Take options of Trace's loggers."""

    def log(self, name: str, data: Any, step: int, **ignored: Any) -> None:
        """Print a figure."""
        print(f"[Step {step}] {name}: {data}")


BaseLogger = DefaultLogger = TensorboardLogger = WandbLogger = ConsoleLogger

# What Trace calls the options of `minitrace_train.train`.
_RENAMED = """num_epochs=epochs batch_size=batch_size num_proposals=candidates num_threads=workers
    validate_dataset=validation ensure_improvement=gate min_score=failed_score"""
_NAMES = dict(re.findall(r"(\w+)=(\w+)", _RENAMED))
_NO_MATTER = " test_dataset test_frequency eval_frequency log_frequency num_eval_samples verbose"
_EXTENSIONS = "forward update optimizer_step has_improvement evaluate validate save_agent"


class MinibatchAlgorithm:
    """Trains an agent by `minitrace_train.train`, in batches.

    Args:
        agent, optimizer: what to train, and by what.
        logger: has `log(name, data, step)`; a `ConsoleLogger`.
        options: those of `train`, for every call.

    A proposal is kept even if it is worse, unless `ensure_improvement=True`, and the dataset is not
    measured again at the end. A subclass may redefine `train`; none of its `forward`, `update`,
    `optimizer_step` and the like is called, and an error says so.
    """

    defaults: Any = {"ensure_improvement": False}  # noqa: RUF012

    def __init__(self, agent: Any, optimizer: Any, logger: Any = None, **options: Any) -> None:
        self.agent, self.optimizer, self.options = agent, optimizer, options
        self.logger = logger or ConsoleLogger()

    def train(self, guide: Any, train_dataset: Any, **options: Any) -> Any:
        """Train; the scores of the batches, and the mean score on `test_dataset`.

        Args:
            guide: says how good an answer is.
            train_dataset: `{"inputs": [...], "infos": [...]}`.
            options: `num_epochs`, `batch_size`, `num_threads`, `num_proposals`, `min_score`,
                `ensure_improvement`, `validate_dataset` and `test_dataset`. Those about logs and
                tests in between are accepted and do nothing; others are ignored, with a warning.
        """
        import minitrace_train

        own = [f"{name}()" for name in _EXTENSIONS.split() if hasattr(self, name)]
        if own:
            raise NotImplementedError(f"training here never calls {', '.join(own)}: write train()")
        options = {**self.defaults, **self.options, **options}
        _warn_unknown(f"{type(self).__name__}.train()", options, " ".join(_NAMES) + _NO_MATTER)
        known = {new: options[old] for old, new in _NAMES.items() if options.get(old) is not None}
        known["measure"] = False
        run = minitrace_train.train(self.agent, train_dataset, guide, self.optimizer, **known)
        data = options.get("test_dataset") or train_dataset
        score = minitrace_train.evaluate(self.agent, data, guide).mean
        self.logger.log("Average test score", score, run.steps)
        return run.scores, score


class BasicSearchAlgorithm(MinibatchAlgorithm):
    """Tries four proposals in a step, and keeps the best, or the old values if all are worse."""

    defaults = {"num_proposals": 4}  # noqa: RUF012


def train(model: Any, train_dataset: Any, **options: Any) -> Any:
    """Train a model; what is given by name, or as a class, is made here.

    Args:
        model: a module, a bundle or a parameter.
        train_dataset: `{"inputs": [...], "infos": [...]}`.
        options: `guide`, `logger`, `optimizer` and `algorithm`, each with its `..._kwargs`; the
            others are those of `MinibatchAlgorithm.train`.

    Returns: the scores of the batches, and the mean score at the end.
    """

    def made(what: str, default: Any, *args: Any) -> Any:
        thing = options.pop(what, None) or default
        kwargs = options.pop(f"{what}_kwargs", None) or {}
        thing = _find("trainer", thing) if isinstance(thing, str) else thing
        return thing(*args, **kwargs) if isinstance(thing, type) else thing

    guide, logger = made("guide", LLMJudge), made("logger", ConsoleLogger)
    optimizer = made("optimizer", OptoPrime, model)
    trainer = made("algorithm", MinibatchAlgorithm, model, optimizer, logger)
    return trainer.train(guide, train_dataset, **options)


# ---- The modules that programs import ------------------------------------------------------------

_MODULES = """trace trace.nodes trace.bundle trace.errors trace.modules trace.containers
    trace.broadcast trace.iterators trace.operators trace.utils trace.projections trace.propagators
    trace.propagators.propagators trace.propagators.graph_propagator
    optimizers optimizers.optimizer optimizers.optoprime optimizers.optoprime_v2
    optimizers.optoprimemulti optimizers.opro optimizers.opro_v2 optimizers.textgrad
    optimizers.function_optimizer optimizers.buffers optimizers.utils
    utils utils.llm utils.trainer version features features.predefined_agents
    features.priority_search trainer trainer.train trainer.guide trainer.loader trainer.loggers
    trainer.evaluators trainer.utils trainer.examples trainer.examples.basic_algorithms
    trainer.algorithms trainer.algorithms.algorithm trainer.algorithms.basic_algorithm
    trainer.algorithms.basic_algorithms trainer.algorithms.priority_search
    trainer.algorithms.UCBsearch trainer.algorithms.beamsearch_algorithm"""


def _find(module: str, name: str) -> Any:
    """What Trace has by this name in one of its modules; it is here or in minitrace."""
    if name.startswith("_"):
        raise AttributeError(name)
    found = globals().get(name) or getattr(minitrace, name, None)
    if module.startswith("trainer") and not find_spec("minitrace_train"):
        raise ImportError("training needs minitrace_train.py: copy it beside opto.py")
    if getattr(found, "__module__", None) in (__name__, "minitrace"):
        return found
    raise ImportError(f"opto.py leaves out {name} of opto.{module}: its docstring says what it has")


for _path in _MODULES.split():
    _made = ModuleType(f"{__name__}.{_path}")
    _look = partial(getattr, operators) if _path == "trace.operators" else partial(_find, _path)
    vars(_made).update(__path__=[], __version__="0.1.3.8", __getattr__=_look)
    sys.modules[_made.__name__] = _made
    _parent, _, _last = _made.__name__.rpartition(".")
    if _last not in ("bundle", "operators", "train"):  # more than a module
        setattr(sys.modules[_parent], _last, _made)
