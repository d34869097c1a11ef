"""Programs written for Trace run unchanged with `opto.py`, and do here what they do there.

Those in `trace_programs/` were written for these tests in the manner of programs that others wrote for Trace. Each
prints values, the parents of nodes and the feedback that arrived; the text file beside it is what it printed
with trace-opt 0.1.3.8. To print that anew, and compare:

    python3 -m venv trace && trace/bin/pip install trace-opt
    TRACE_PYTHON=trace/bin/python python3 -m pytest -q tests/test_opto.py --slow

Everything runs in processes of its own, since importing `opto` gives minitrace's classes more names.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import COMPANIONS, ROOT

PROGRAMS = ROOT / "tests" / "trace_programs"
NAMES = sorted(path.stem for path in PROGRAMS.glob("*.txt"))
VARIABLES = "MINITRACE_MODEL", "TRACE_LITELLM_MODEL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "PYTHONPATH"


def run(folder, *arguments, python=sys.executable, **variables):
    """Run Python in a folder; the process when it has ended."""
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [python, "-W", "ignore", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env={**env, **variables}, capture_output=True, text=True,
                          encoding="utf-8", stdin=subprocess.DEVNULL, timeout=300)  # fmt: skip


def printed(folder, code, *flags, **variables):
    """What some code prints, warnings too, each as `Category: words`."""
    page = Path(folder, "program.py")
    show = "import warnings\nwarnings.showwarning = lambda m, c, *_: print(f'{c.__name__}: {m}')\n"
    page.write_text(show + textwrap.dedent(code), encoding="utf-8")
    done = run(folder, *flags, "-W", "always", page.name, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def alone(tmp_path):
    """A folder with `opto.py` and `minitrace.py`, and nothing else."""
    for path in ROOT / "minitrace.py", COMPANIONS / "opto.py":
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture
def with_training(alone):
    """The same, and the companion that trains."""
    shutil.copy(COMPANIONS / "minitrace_train.py", alone)
    return alone


# ---- Whole programs, as their authors would write them


def recorded(name):
    return (PROGRAMS / f"{name}.txt").read_text(encoding="utf-8")


def test_there_are_a_dozen_programs():
    written = {path.stem for path in PROGRAMS.glob("*.py")} - {"scripted"}
    assert written == set(NAMES) and len(NAMES) >= 12


@pytest.mark.parametrize("name", NAMES)
def test_a_program_does_here_what_it_did_with_trace(name, alone):
    for file in "scripted.py", f"{name}.py":
        shutil.copy(PROGRAMS / file, alone)
    done = run(alone, "-S", f"{name}.py")  # -S: no package is in reach
    assert (done.stdout, done.stderr) == (recorded(name), "")


@pytest.fixture(scope="session")
def trace_python():
    """A Python that has trace-opt: what TRACE_PYTHON names, or this one."""
    named = os.environ.get("TRACE_PYTHON")
    if named:
        return Path(named).absolute()
    try:
        importlib.metadata.version("trace-opt")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("trace-opt is not installed, and TRACE_PYTHON names no Python that has it")
    return sys.executable


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_trace_itself_still_prints_what_is_recorded(name, trace_python, tmp_path):
    for file in "scripted.py", f"{name}.py":
        shutil.copy(PROGRAMS / file, tmp_path)
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "TRACE_LITELLM_MODEL": "none"}
    done = run(tmp_path, f"{name}.py", python=trace_python, **offline)
    lines = done.stdout.splitlines(keepends=True)
    told = "".join(line for line in lines if not line.startswith("Using LiteLLM"))
    assert told == recorded(name), done.stderr


# ---- Small programs, each with what it prints here

CASES = {}


def case(name, code, expected):
    CASES[name] = textwrap.dedent(code), textwrap.dedent(expected).lstrip("\n")


case(
    "every form of import",
    """
    import opto.trace
    import opto.trace as trace
    import opto.trace.operators as ops
    import opto.optimizers.utils, opto.utils, opto.trace.utils, opto.trainer.utils
    from opto import trace as again
    from opto.trace import GRAPH, ExecutionError, Module, Node, bundle, model, node, operators, propagators, stop_tracing
    from opto.trace.bundle import ExceptionNode, ExecutionError as E1, TraceMissingInputsError, bundle as b1
    from opto.trace.errors import ExecutionError as E2
    from opto.trace.modules import Module as M1, model as m1
    from opto.trace.nodes import GRAPH as G1, MessageNode, ParameterNode
    from opto.trace.operators import add, call_llm
    from opto.trace.propagators import GraphPropagator, Propagator, SumPropagator, TraceGraph
    from opto.trace.propagators.graph_propagator import GraphPropagator as P1
    from opto.trace.propagators.propagators import Propagator as P2
    from opto.trace.projections import BlackCodeFormatter, Projection
    from opto.trace.utils import contain, render_opt_step, sum_feedback
    from opto.optimizers import OPRO, OptoPrime, OptoPrimeMulti, OptoPrimeV2, TextGrad
    from opto.optimizers.opro import OPRO as O1
    from opto.optimizers.optimizer import Optimizer
    from opto.optimizers.optoprime import OptoPrime as O2
    from opto.optimizers.textgrad import TextGrad as O3
    from opto.optimizers.utils import print_color
    from opto.utils.llm import LLM, AbstractModel, AutoGenLLM, CustomLLM, DummyLLM, LiteLLM
    import minitrace

    assert trace is again is opto.trace
    assert E1 is E2 is ExecutionError is minitrace.ExecutionError
    assert b1 is bundle is opto.bundle and node is minitrace.node and G1 is GRAPH
    assert M1 is Module and m1 is model and P1 is GraphPropagator and P2 is Propagator
    assert (O1, O2, O3) == (OPRO, OptoPrime, TextGrad) and OptoPrimeV2 is OptoPrime
    assert opto.utils is not opto.trace.utils is not opto.optimizers.utils
    assert trace.nodes.MessageNode is MessageNode and trace.bundle is bundle
    print(ops.add(1, 2).data, add(3, 4).data, operators.concat("a", "b").data)
    """,
    """
    3 7 ab
    """,
)
case(
    "what is left out says so",
    """
    import importlib
    for module, name in [("trace", "apply_op"), ("optimizers.optoprime", "node_to_function_feedback"), ("trace.containers", "Seq"),
                         ("features.priority_search", "PrioritySearch"), ("trace", "random")]:
        try:
            getattr(importlib.import_module("opto." + module), name)
        except ImportError as error:
            print(error)
    from opto import trace
    print(hasattr(trace, "_private"), hasattr(trace, "__wrapped__"))
    """,
    """
    opto.py leaves out apply_op of opto.trace: its docstring says what it has
    opto.py leaves out node_to_function_feedback of opto.optimizers.optoprime: its docstring says what it has
    opto.py leaves out Seq of opto.trace.containers: its docstring says what it has
    opto.py leaves out PrioritySearch of opto.features.priority_search: its docstring says what it has
    opto.py leaves out random of opto.trace: its docstring says what it has
    False False
    """,
)
case(
    "training without its file says which to copy",
    """
    for name in "train", "Guide", "LLMJudge", "MinibatchAlgorithm":
        try:
            exec(f"from opto.trainer.algorithms import {name}")
        except ImportError as error:
            print(error)
    """,
    """
    training needs minitrace_train.py: copy it beside opto.py
    training needs minitrace_train.py: copy it beside opto.py
    training needs minitrace_train.py: copy it beside opto.py
    training needs minitrace_train.py: copy it beside opto.py
    """,
)
case(
    "classes know the nodes of minitrace, and those only",
    """
    from opto.trace import bundle, node
    from opto.trace.nodes import ExceptionNode, ExecutionError, MessageNode, Node, ParameterNode
    kinds = Node, ParameterNode, MessageNode, ExceptionNode
    try:
        node(1) / 0
    except ExecutionError as error:
        failed = error.exception_node
    for each in node(1), node(1, trainable=True), node(1) + 1, failed, 1:
        print([isinstance(each, kind) for kind in kinds])
    print(Node(2, name="a").name, ParameterNode("b").trainable, ParameterNode(3, trainable=False).trainable)
    """,
    """
    [True, False, False, False]
    [True, True, False, False]
    [True, False, True, False]
    [True, False, True, True]
    [False, False, False, False]
    a:0 True False
    """,
)
case(
    "a node made by hand, with and without words",
    """
    from opto.trace import ExecutionError, node, stop_tracing
    from opto.trace.nodes import ExceptionNode, MessageNode
    x = node(1, name="x", trainable=True)
    for options in {}, {"description": "[note] A note."}, {"description": "A note."}, {"description": None, "name": "n"}:
        made = MessageNode([2], inputs={"a": x}, **options)
        print(made.name, made.op_name, repr(made.description), made.data, made.inputs["a"] is x)
    made = MessageNode({"seen": [x, 5]}, inputs={"x": x}, description="[look] What is seen.")
    print(made.name, made.data, made.parents == (x,))
    for error in ValueError("no"), KeyError("k"), ExecutionError(ExceptionNode(OSError("disk"), inputs=[x])):
        failed = ExceptionNode(error, inputs={"x": x}, name="exception_step", description="[exception] It failed.")
        print(failed.name, failed.data, failed.create_feedback("full"), failed.parents == (x,))
    from opto.trace.errors import TraceMissingInputsError
    print(ExceptionNode(TraceMissingInputsError("outside"), inputs=[x]).data)
    with stop_tracing():
        print(MessageNode(1, inputs={"x": x}).parents)
    """,
    """
    MessageNode:0 MessageNode '' [2] True
    note:0 note 'A note.' [2] True
    MessageNode:1 MessageNode 'A note.' [2] True
    n:0 n '' [2] True
    look:0 {'seen': [1, 5]} True
    exception_step:0 (ValueError) no (ValueError) no True
    exception_step:1 (KeyError) 'k' (KeyError) 'k' True
    exception_step:2 (ExecutionError) (OSError) disk (ExecutionError) (OSError) disk True
    (TraceMissingInputsError) outside
    ()
    """,
)
case(
    "an error tells its source, and what raised it",
    """
    from opto.trace import ExecutionError, bundle
    @bundle()
    def half(x):
        return 1 / x
    try:
        half(0)
    except ExecutionError as error:
        print(error)
        print(type(error.__cause__).__name__)
    """,
    """
    (ZeroDivisionError) division by zero
    def half(x):
        return 1 / x   <-- ZeroDivisionError
    ZeroDivisionError
    """,
)
case(
    "backward takes Trace's options, twice, and from several outputs",
    """
    from pathlib import Path
    from opto.optimizers import OptoPrime
    from opto.trace import node
    from opto.trace.utils import sum_feedback
    x = node(2, name="x", trainable=True)
    y = x * 3
    print(y.backward("low", None, True), len(x.feedback))
    graph = y.backward("low", visualize=True, simple_visualization=False, reverse_plot=True, print_limit=9)
    print(type(graph).__name__, graph.feedback, len(x.feedback))
    path = graph.render(filename="pictures/new/one", format="png", view=False)
    print(path, "multiply0 = 6" in Path(path).read_text(encoding="utf-8"))
    x.zero_feedback()
    optimizer = OptoPrime([x], llm=lambda messages: "{}")
    optimizer.backward([y, x + 1], ["low", "high"])
    print(sum_feedback([x]).user_feedback, optimizer.trace_graph.feedback)
    print([(number, node.op_name) for number, node in optimizer.trace_graph.graph])
    print(sum_feedback([node(1, trainable=True)]).graph)
    """,
    """
    None 1
    TraceGraph ['low'] 2
    pictures/new/one.txt True
    low
    high ['low', 'high']
    [(0, 'ParameterNode'), (1, 'Node'), (2, 'multiply'), (3, 'Node'), (4, 'add')]
    []
    """,
)
case(
    "an f-string reads a node and says nothing, as in Trace",
    """
    from opto.trace import node
    x = node(2.5, name="x", trainable=True)
    print(f"{x}", f"{x * 2:.2f}", "{:>5}".format(x), "%s" % x)
    """,
    """
    2.5 5.00   2.5 2.5
    """,
)
case(
    "modules by the names of other versions",
    """
    from opto.optimizers.function_optimizer import FunctionOptimizer, FunctionOptimizerV2Memory
    from opto.optimizers import OptoPrime
    print(FunctionOptimizer is FunctionOptimizerV2Memory is OptoPrime)
    import opto.trainer.algorithms.algorithm, opto.trainer.algorithms.basic_algorithm
    """,
    """
    True
    """,
)
case(
    "children are those that live",
    """
    import weakref
    from opto.trace import node
    x = node(2, name="x", trainable=True)
    y, z = x + 1, x * 2
    print([child.name for child in x.children], x.is_leaf, y.is_leaf, y == 3)
    square = x * x
    print([child.name for child in x.children])
    gone = weakref.ref(square)
    del square
    print([child.name for child in x.children], gone())
    """,
    """
    ['add:0', 'multiply:0'] False True True
    ['add:0', 'multiply:0', 'multiply:1']
    ['add:0', 'multiply:0'] None
    """,
)
case(
    "feedback of every parameter is kept, and steps are apart",
    """
    from opto.optimizers import OptoPrime
    from opto.trace import node
    from opto.utils.llm import DummyLLM
    def answer(value):
        return DummyLLM(lambda messages: '{"suggestion": {"%s": %d}}' % (("a0" if "a0 = " in messages[1]["content"].split("Variables")[1] else "b0"), value))
    a, b = node(1, name="a", trainable=True), node(2, name="b", trainable=True)
    first, second = OptoPrime([a], llm=answer(10)), OptoPrime([b], llm=answer(20))
    first.backward(a + b, "more")
    print(len(a.feedback), len(b.feedback), first.step(), second.step(), a.data, b.data)
    """,
    """
    1 1 {<ParameterNode a:0 = 10>: 10} {<ParameterNode b:0 = 20>: 20} 10 20
    """,
)
case(
    "leniency: what is unusable warns and changes nothing; without feedback nothing is asked",
    """
    from opto.optimizers import OptoPrime
    from opto.trace import node
    x = node(3, name="x", trainable=True)
    calls = []
    def llm(messages, **options):
        calls.append(options)
        return "banana"
    optimizer = OptoPrime([x], llm=llm)
    print(optimizer.step(), calls, optimizer.memory_size, optimizer.retries)
    optimizer.backward(x + 1, "low")
    print(optimizer.step(mask=["#Code"], anything=1), len(calls), x.data)
    patient = OptoPrime([x], llm=llm, retries=2, max_tokens=9)
    print(patient.step(), len(calls), calls[-1])
    strict = OptoPrime([x], llm=llm, ignore_extraction_error=False)
    try:
        strict.step()
    except Exception as error:
        print(type(error).__name__, error)
    try:
        OptoPrime([x], llm=llm, on_refusal="raise").step()
    except Exception as error:
        print(type(error).__name__)
    """,
    """
    {} [] 0 0
    UserWarning: the reply is unusable and the values stay: No answer was found in the reply, neither as JSON nor in tags.
    {} 1 3
    UserWarning: the reply is unusable and the values stay: No answer was found in the reply, neither as JSON nor in tags.
    {} 4 {'max_tokens': 9}
    ReplyError no usable reply in 1 attempt: No answer was found in the reply, neither as JSON nor in tags.
    ReplyError
    """,
)
case(
    "options of Trace are taken; one that nobody knows is told",
    """
    from opto.optimizers import OPRO, OptoPrime, TextGrad
    from opto.trace import node
    x = node(3, name="x", trainable=True)
    theirs = dict(config_list=[], filter_dict={}, prompt_symbols={}, include_example=True, log=True,
                  ignore_extraction_error=True, max_tokens=100, objective="Be brief.")
    for kind in OptoPrime, OPRO, TextGrad:
        optimizer = kind([x], llm=print, memroy_size=2, **theirs)
        print(optimizer.objective, optimizer.max_tokens, optimizer.memory_size)
    optimizer = OptoPrime([x], llm=print, objective=None)
    print(optimizer.objective == OptoPrime.default_objective, "feedback" in OptoPrime.default_objective)
    print(OPRO([x], llm=print, memory_size=0).memory_size, OPRO([x], llm=print, memory_size=None).memory_size)
    """,
    """
    UserWarning: OptoPrime() does not know memroy_size=, and ignores it
    Be brief. 100 0
    UserWarning: OPRO() does not know memroy_size=, and ignores it
    Be brief. 100 8
    UserWarning: TextGrad() does not know memroy_size=, and ignores it
    Be brief. 100 0
    True True
    0 8
    """,
)
case(
    "a step prints the reply, or all of it, and the log keeps it",
    """
    import contextlib, io
    from opto.optimizers import OptoPrime
    from opto.trace import node
    from opto.trace.utils import render_opt_step
    x = node(3, name="x", trainable=True)
    optimizer = OptoPrime([x], llm=lambda messages: '{"suggestion": {"x0": 4}}')
    print(repr(optimizer.problem_instance(optimizer.summarize())))
    optimizer.backward(x * 2, "low")
    optimizer.objective = "Go up. " + optimizer.default_objective
    page = optimizer.problem_instance(optimizer.summarize(), mask=["#Others"])
    print(page.splitlines()[1], optimizer.construct_prompt(optimizer.summarize())[1] == page)
    print(optimizer.step(bypassing=True, verbose="output"), x.data)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        optimizer.step(verbose=True)
        render_opt_step(1, optimizer, no_trace_graph=True)
    entry, told = optimizer.log[1], out.getvalue()
    print(x.data, [sorted(entry) for entry in optimizer.log], entry["user_prompt"] == page)
    print([told.count(entry[key]) for key in ("system_prompt", "user_prompt", "response")])
    """,
    """
    ''
    Go up. Change the variables so that the output improves as the feedback asks. True
    LLM response:
    {"suggestion": {"x0": 4}}
    {<ParameterNode x:0 = 3>: 4} 3
    4 [['response', 'system_prompt', 'user_prompt'], ['response', 'system_prompt', 'user_prompt']] True
    [2, 2, 2]
    """,
)
case(
    "several proposals, and one is chosen",
    """
    from opto.optimizers import OptoPrimeMulti
    from opto.trace import node
    x = node(3, name="x", trainable=True)
    answers = iter([4, 9, 5] * 3)
    def llm(messages):
        return '{"suggestion": {"x0": %d}}' % next(answers)
    largest = lambda candidates: max(candidates, key=lambda each: each.get(x, 0))
    for options in {}, {"selector": largest}:
        x.set(3)  # which answer came first, and was taken, depends on threads
        optimizer = OptoPrimeMulti([x], llm=llm, num_responses=3, temperature_range=[1.0, 0.0], **options)
        print(optimizer.step())
        optimizer.backward(x + 1, "low")
        optimizer.step()
        print(x.data in (4, 5, 9), x.data == 9 or not options, len(optimizer.candidates), len(optimizer.log))
        optimizer.zero_feedback()
    """,
    """
    {}
    True True 3 3
    {}
    True True 3 3
    """,
)
case(
    "options of Trace's bundle are taken",
    """
    from opto.trace import bundle
    @bundle(overwrite_python_recursion=True)
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)
    @bundle("[twice] Two times x.", trainable=True, overwrite_python_recursion=False)
    def twice(x):
        return 2 * x
    print(factorial(5).data, [parent.data for parent in factorial(5).parents], twice(3).data, twice.parameter.data)
    """,
    """
    120 [5] 6 def twice(x):
        return 2 * x
    """,
)
case(
    "modules that a program may import, whatever is in them",
    """
    import opto.optimizers.buffers, opto.trainer.algorithms.UCBsearch, opto.trace.iterators, opto.utils.trainer
    from opto.trainer.algorithms import beamsearch_algorithm
    from opto.version import __version__
    print(__version__)
    try:
        from opto.optimizers.buffers import FIFOBuffer
    except ImportError as error:
        print(error)
    """,
    """
    0.1.3.8
    opto.py leaves out FIFOBuffer of opto.optimizers.buffers: its docstring says what it has
    """,
)
case(
    "language models of one's own, by a factory or by a property",
    """
    from types import SimpleNamespace as Object
    from opto.optimizers import OptoPrime
    from opto.trace import node
    from opto.utils.llm import LLM, AbstractModel, DummyLLM
    def completion(text):
        return Object(choices=[Object(message=Object(content=text))], usage={"prompt_tokens": 7, "completion_tokens": 1})
    class ByFactory(AbstractModel):
        def __init__(self):
            super().__init__(lambda: lambda messages, **options: completion('{"suggestion": {"x0": 4}}'), reset_freq=60)
    class ByProperty(AbstractModel):
        def __init__(self):
            super().__init__(factory=lambda: self, reset_freq=None)
        @property
        def model(self):
            return self.create
        def create(self, **config):
            return completion('{"suggestion": {"x0": 5}}')
    class ByCall(ByProperty):
        def __call__(self, *args, **kwargs):
            assert not args
            return completion('{"suggestion": {"x0": 6}}')
    x = node(3, name="x", trainable=True)
    for llm in ByFactory(), ByProperty(), ByCall():
        print(llm(messages=[{"role": "user", "content": "Hi"}]).choices[0].message.content)
        optimizer = OptoPrime([x], llm=llm)
        optimizer.zero_feedback()
        optimizer.backward(x + 1, "low")
        print(dict(optimizer.step().usage))
    print([isinstance(each, AbstractModel) for each in (LLM("a/b"), DummyLLM(print))])
    """,
    """
    {"suggestion": {"x0": 4}}
    {'input_tokens': 7, 'output_tokens': 1}
    {"suggestion": {"x0": 5}}
    {'input_tokens': 7, 'output_tokens': 1}
    {"suggestion": {"x0": 6}}
    {'input_tokens': 7, 'output_tokens': 1}
    [True, True]
    """,
)
case(
    "a value in TextGrad's own tag",
    """
    from opto.optimizers import TextGrad
    from opto.trace import node
    word, count = node("Hello", name="word", trainable=True), node(2, name="count", trainable=True)
    def llm(messages, **options):
        page = messages[-1]["content"]
        new = "3" if "(int) count0" in page else "Hi,\\nfriend"
        return f"So:\\n<IMPROVED_VARIABLE>\\n{new}\\n</IMPROVED_VARIABLE>" if "# Variables" in page else "Be shorter."
    optimizer = TextGrad([word, count], llm=llm)
    optimizer.backward(word * count, "too stiff")
    optimizer.step()
    print([word.data, count.data])
    """,
    """
    ['Hi,\\nfriend', 3]
    """,
)
case(
    "a language model is an object with choices, in and out",
    """
    from types import SimpleNamespace as Object
    from opto.optimizers import OptoPrime
    from opto.trace import node, operators
    from opto.utils.llm import AbstractModel, DummyLLM, LLM
    llm = DummyLLM(lambda *args, **kwargs: f"{kwargs['messages'][-1]['content']}, {sorted(kwargs)}")
    told = llm(messages=[{"role": "user", "content": "Hi"}], temperature=0)
    print(told, told.choices[0].message.content == told, isinstance(llm, AbstractModel))
    class Server:
        def create(self, **config):
            message = Object(content='{"suggestion": {"x0": 4}}')
            return Object(choices=[Object(message=message)])
    x = node(3, name="x", trainable=True)
    for server in Server(), Server().create:
        optimizer = OptoPrime([x], llm=server)
        optimizer.zero_feedback()
        optimizer.backward(x + 1, "low")
        print(optimizer.step())
    nothing = DummyLLM(lambda messages: Object(choices=[Object(message=Object(content=None))]))
    print(repr(nothing("?")), repr(nothing("?").choices[0].message.content))
    print(operators.call_llm(llm, "Be kind.", "Hello").data)
    """,
    """
    Hi, ['messages', 'temperature'] True True
    {<ParameterNode x:0 = 4>: 4}
    {}
    '' ''
    Hello, ['messages']
    """,
)
case(
    "own propagators hear each child, also twice",
    """
    from opto.optimizers.optimizer import Optimizer
    from opto.trace import node
    from opto.trace.propagators import Propagator
    class Slope(Propagator):
        def init_feedback(self, node, feedback):
            return float(feedback)
        def _propagate(self, child):
            heard = sum(sum(v) for v in child.feedback.values())
            print(child.name, child.op_name, child.data, [p.name for p in child.parents], heard)
            return {p: heard * (2 if child.name.startswith("mul") else 1) for p in child.parents}
    class Descent(Optimizer):
        def default_propagator(self):
            return Slope()
        def _step(self, *args, rate=1, **kwargs):
            return {p: p.data - rate * sum(sum(v) for v in p.feedback.values()) for p in self.parameters}
    x = node(3, name="x", trainable=True)
    optimizer = Descent([x])
    y = x * 2
    optimizer.backward(y + (y + y), 1)
    print(x.feedback.values(), [*x.feedback.items()], optimizer.step(rate=0.5), x.data)
    class Bare(Propagator):
        pass
    try:
        (x + 1).backward(1, Bare())
    except NotImplementedError as error:
        print(error)
    """,
    """
    add:1 add 18 ['multiply:0', 'add:0'] 1.0
    add:0 add 12 ['multiply:0', 'multiply:0'] 1.0
    multiply:0 multiply 6 ['x:0', 'int:0'] 3.0
    [[6.0]] [(0, [6.0])] {<ParameterNode x:0 = 0.0>: 0.0} 0.0
    Bare has no _propagate()
    """,
)
case(
    "criticism is asked for in the step, also after node.backward",
    """
    from opto.optimizers import TextGrad
    from opto.trace import node
    calls = []
    def llm(messages, **options):
        calls.append(messages[-1]["content"])
        return '{"suggestion": {"word0": "Hi"}}' if "Variables" in calls[-1] else "Be shorter."
    word = node("Hello", name="word", trainable=True)
    optimizer = TextGrad([word], llm=llm)
    print(optimizer.step(), calls)
    (word + ", Ada").backward("too stiff")
    print(len(calls), optimizer.step(), len(calls), word.data)
    optimizer.zero_feedback()
    optimizer.backward(word + "!", "too loud")
    print(len(calls), optimizer.step(), "too loud" in calls[-2], "Be shorter." in calls[-1])
    """,
    """
    {} []
    0 {<ParameterNode word:0 = 'Hi'>: 'Hi'} 2 Hi
    2 {} True True
    """,
)
case(
    "modules and bundles are saved into new folders, as JSON",
    """
    import pickle
    from pathlib import Path
    from opto.trace import Module, bundle, model, node
    @bundle(trainable=True)
    def price(count):
        return 2 * count
    price.save("a/b/price.pkl")
    print(price.parameters_dict().keys() == price.state_dict().keys())
    price.parameter.set("def price(count):\\n    return 0")
    price.load("a/b/price.pkl")
    print(price(4).data, "def price(count):" in Path("a/b/price.pkl").read_text())
    class Shop(Module):
        def __init__(self):
            self.rate = node(3, name="rate", trainable=True)
    Shop().save("c/shop")
    Shop().save("plain")
    print(Path("plain").read_text() == Path("c/shop").read_text())
    Path("theirs.pkl").write_bytes(pickle.dumps({"rate": 4}))
    try:
        Shop().load("theirs.pkl")
    except ValueError as error:
        print(type(error).__name__, str(error).partition(":")[0])
    """,
    """
    True
    8 True
    True
    ValueError theirs.pkl
    """,
)


@pytest.mark.parametrize("name", CASES)
def test_a_small_program_prints_what_it_should(name, alone):
    code, expected = CASES[name]
    assert printed(alone, code, "-S") == expected


# ---- A language model is named, or nobody is asked

ASK = """
import os
from opto.utils.llm import LLM
for given in [()] if os.environ.get("OPENAI_API_KEY") else [(), ("gpt-4o",), ("groq/llama",)]:
    try:
        print(LLM(*given)(messages=[{"role": "user", "content": "Hi"}]))
    except Exception as error:
        print(type(error).__name__, str(error).partition(". Providers")[0])
"""


@pytest.mark.parametrize(
    "variables, first",
    [
        ({}, "no language model is configured: pass LLM('provider/name'), or set MINITRACE_MODEL to it and the "
             "variable of the provider's key"),
        ({"OPENAI_API_KEY": "sk-12345678"}, "no language model is configured: pass LLM('provider/name'), or set "
                                            "MINITRACE_MODEL to it and the variable of the provider's key"),
        ({"TRACE_LITELLM_MODEL": "gpt-5"}, "openai/gpt-5: there is no key: pass api_key= or set OPENAI_API_KEY"),
        ({"MINITRACE_MODEL": "groq/llama"}, "groq/llama: there is no key: pass api_key= or set GROQ_API_KEY"),
        ({"TRACE_LITELLM_MODEL": "mistral/small", "MINITRACE_MODEL": "groq/llama"},
         "mistral/small: there is no key: pass api_key= or set MISTRAL_API_KEY"),
    ],
)  # fmt: skip
def test_the_environment_names_a_language_model(variables, first, alone):
    rows = printed(alone, ASK, **variables).splitlines()
    assert rows[0] == f"LLMError {first}"
    if "OPENAI_API_KEY" not in variables:
        assert rows[1:] == [
            "LLMError openai/gpt-4o: there is no key: pass api_key= or set OPENAI_API_KEY",
            "LLMError groq/llama: there is no key: pass api_key= or set GROQ_API_KEY",
        ]


STEP = """
from opto.optimizers import OptoPrime
from opto.trace import node
x = node(3, name="x", trainable=True)
optimizer = OptoPrime([x])
optimizer.backward(x + 1, "too low")
try:
    print(optimizer.step())
except Exception as error:
    print(error)
"""


def test_an_optimizer_without_one_has_the_stub_and_says_so(alone):
    told = printed(alone, STEP)
    assert "so a StubLLM answers" in told and told.endswith("{<ParameterNode x:0 = 6>: 6}\n")
    told = printed(alone, STEP, TRACE_LITELLM_MODEL="gpt-5")
    assert told.startswith("openai/gpt-5: there is no key")


# ---- Training

TRAIN = """
import json, re
from opto import trace, trainer
from opto.features.predefined_agents import BasicLearner
from opto.optimizers import OptoPrimeV2 as OptoPrime
from opto.trainer.algorithms.basic_algorithms import BasicSearchAlgorithm, MinibatchAlgorithm, batchify
from opto.trainer.evaluators import evaluate
from opto.trainer.guide import AutoGuide, Guide, LLMJudge, VerbalJudgeGuide
from opto.trainer.loader import DataLoader
from opto.trainer.loggers import ConsoleLogger, TensorboardLogger
from opto.utils.llm import DummyLLM

class Near(Guide):
    def get_feedback(self, query, response, reference=None, **kwargs):
        return -abs(response - reference), "too low" if response < reference else "too high"

@trace.model
class Shift:
    def __init__(self):
        self.offset = trace.node(0, name="offset", trainable=True)
    def forward(self, x):
        return x + self.offset

def up(messages, **options):
    name, value = re.search(r"(offset\\d*) = (\\d+)", messages[-1]["content"]).groups()
    return json.dumps({"suggestion": {name: int(value) + 1}})

dataset = dict(inputs=[1, 2, 3, 4], infos=[4, 5, 6, 7])
"""
TRAINING = {
    "by name, with a logger and options that mean nothing here": (
        """
        shift = Shift()
        print(trainer.train(model=shift, train_dataset=dataset, guide=Near(), algorithm="MinibatchAlgorithm",
                            optimizer="OptoPrimeV2", optimizer_kwargs={"llm": DummyLLM(up)}, num_epochs=2,
                            batch_size=2, num_threads=None, test_frequency=-1, verbose="output",
                            logger=TensorboardLogger(log_dir="logs")), shift.offset.data)
        """,
        "[Step 4] Average test score: -1.0\n([-3.0, -2.0, -1.0, 0.0], -1.0) 4\n",
    ),
    "by objects, several proposals and a held-out dataset": (
        """
        shift = Shift()
        optimizer = OptoPrime(shift.parameters(), llm=DummyLLM(up))
        class Quiet(ConsoleLogger):
            def log(self, name, data, step, **kwargs):
                print(name, data)
        search = BasicSearchAlgorithm(agent=shift, optimizer=optimizer, logger=Quiet(), num_threads=2)
        scores, last = search.train(Near(), dataset, num_epochs=1, batch_size=4, validate_dataset=dataset,
                                    test_dataset=dict(inputs=[0], infos=[9]))
        print(scores, last, shift.offset.data, len(optimizer.log))
        """,
        "Average test score -8.0\n[-3.0] -8.0 1 4\n",
    ),
    "a parameter alone, judged by a language model": (
        """
        word = trace.node("Hello", name="word", trainable=True)
        asked = []
        def judge(messages, **options):
            asked.append(messages)
            return "Incorrect: be warmer" if "Hello" in messages[-1]["content"] else "Correct [TERMINATE]"
        def warm(messages, **options):
            assert "be warmer" in messages[-1]["content"]
            return '{"suggestion": {"word0": "Hi"}}'
        guide = LLMJudge(llm=DummyLLM(judge), system_prompt="You teach.", prompt_template="{query} {response}={reference}")
        print(trainer.train(model=word, train_dataset=dict(inputs=["Q"], infos=["Hi"]), guide=guide, num_epochs=2,
                            optimizer_kwargs=dict(llm=DummyLLM(warm), memory_size=2)), word.data)
        print([message["content"] for message in asked[0]])
        print(LLMJudge(llm=DummyLLM(lambda messages: "Correct [TERMINATE]"))("Q", "A", "A"))
        """,
        "[Step 2] Average test score: 1.0\n([0.0, 1.0], 1.0) Hi\n['You teach.', 'Q Hello=Hi']\n"
        "(1.0, 'Correct [TERMINATE]')\n",
    ),
    "what gets worse is kept unless a program says otherwise, and nothing is measured twice": (
        """
        for options in {}, {"ensure_improvement": True}:
            shift, seen = Shift(), []
            class Counted(Near):
                def get_feedback(self, query, response, reference=None, **kwargs):
                    seen.append(query)
                    return super().get_feedback(query, response, reference)
            trainer.train(model=shift, train_dataset=dict(inputs=[1, 2], infos=[1, 2]), guide=Counted(), num_epochs=2,
                          batch_size=2, optimizer_kwargs={"llm": DummyLLM(up)}, **options)
            print(shift.offset.data, len(seen))
        """,
        "[Step 2] Average test score: -2.0\n2 6\n[Step 2] Average test score: 0.0\n0 10\n",
    ),
    "an option that nobody knows is told": (
        """
        near, fixed = Near(), trace.node(3, name="n", trainable=True)
        def same(messages, **options):
            return '{"suggestion": {}}'
        optimizer = OptoPrime([fixed], llm=DummyLLM(same))
        algorithm = MinibatchAlgorithm(fixed, optimizer, batchsize=2)
        data = dict(inputs=[1], infos=[3])
        print(algorithm.train(near, data, num_epoch=5, save_path="a.pkl", min_score=-9, eval_frequency=1, verbose=True))
        print(trainer.train(model=fixed, train_dataset=data, guide=near, optimizer=optimizer, num_epoch=2))
        print(evaluate(fixed, near, [1], [3], num_samples=2, description="test"))
        """,
        "UserWarning: MinibatchAlgorithm.train() does not know batchsize=, num_epoch=, save_path=, and ignores it\n"
        "[Step 1] Average test score: 0.0\n([0.0], 0.0)\n"
        "UserWarning: MinibatchAlgorithm.train() does not know num_epoch=, and ignores it\n"
        "[Step 1] Average test score: 0.0\n([0.0], 0.0)\n"
        "UserWarning: evaluate() does not know num_samples=, and ignores it\n[0.0]\n",
    ),
    "methods that only Trace's loop calls are named, before anything is asked": (
        """
        class Mine(MinibatchAlgorithm):
            def forward(self, agent, x, guide, info):
                return agent(x), 0, ""
            def update(self, outputs, **kwargs):
                pass
            def train(self, guide, train_dataset, **kwargs):
                return super().train(guide, train_dataset, **kwargs)
        class Search(BasicSearchAlgorithm):
            def optimizer_step(self, bypassing=False, **kwargs):
                pass
        class Own(Mine):
            def train(self, guide, train_dataset, **kwargs):
                return [self.forward(self.agent, x, guide, None)[0].data for x in train_dataset["inputs"]]
        for kind in Mine, Search, Own:
            try:
                print(trainer.train(model=Shift(), train_dataset=dataset, guide=Near(), algorithm=kind,
                                    optimizer_kwargs={"llm": DummyLLM(None)}))
            except NotImplementedError as error:
                print(error)
        """,
        "training here never calls forward(), update(): write train()\n"
        "training here never calls optimizer_step(): write train()\n[1, 2, 3, 4]\n",
    ),
    "an example that fails has the score that the program says": (
        """
        class Half(Shift):
            def forward(self, x):
                return 6 / (x + self.offset)
        class Picky(Near):
            def get_feedback(self, query, response, reference=None, **kwargs):
                return super().get_feedback(query, response, {9: 9}[reference])
        for options in {"min_score": -1}, {"min_score": 0}, {"min_score": None}, {"min_score": -1, "num_threads": 2}:
            print(evaluate(Half(), Picky(), [0, 2, 2], [9, 9, 8], **options))
        print(evaluate(Half(), Near(), [0, 2], [9, 9]))
        """,
        "[-1.0, -6.0, -1.0]\n[0.0, -6.0, 0.0]\n[None, -6.0, None]\n[-1.0, -6.0, -1.0]\n[None, -6.0]\n",
    ),
    "a guide is called by keywords, and gives the score alone": (
        """
        near, judge = Near(), LLMJudge(llm=DummyLLM(lambda messages: "Correct [TERMINATE]"))
        print(near(task=1, response=2, info=5), near.metric(1, 2, 5), near.metric(task=1, response=2, info=5))
        print(judge(task="Q", response="A", info="A"), judge.metric("Q", "A", "A"), isinstance(judge, AutoGuide))
        print(judge.get_feedback("Q", "A", reference="A", other=1))
        class Strict(LLMJudge):
            def get_feedback(self, query, response, reference=None, **kwargs):
                score, words = super().get_feedback(query, response, reference)
                return score / 2, words
        print(Strict(llm=judge.llm)("Q", "A", "A"))
        """,
        "(-3, 'too low') -3 -3\n(1.0, 'Correct [TERMINATE]') 1.0 True\n(1.0, 'Correct [TERMINATE]')\n"
        "(0.5, 'Correct [TERMINATE]')\n",
    ),
    "the parts": (
        """
        agent = BasicLearner(llm=DummyLLM(lambda messages: " | ".join(m["content"] for m in messages)))
        answer = agent("2+2?")
        print(answer.data, [parent.data for parent in answer.parents], [p.data for p in agent.parameters()])
        print([*DataLoader(dataset, batch_size=3, shuffle=False)])
        batches = [*DataLoader(dataset, batch_size=3)]
        print(sorted(x for xs, _ in batches for x in xs), all(i - x == 3 for xs, infos in batches for x, i in zip(xs, infos)))
        print(evaluate(Shift(), Near(), [1, 2], [4, 9], num_threads=2), repr(batchify("a", trace.node("b")).data))
        """,
        "You're a helpful agent | Query: 2+2? [\"You're a helpful agent\", 'Query: 2+2?'] "
        "[\"You're a helpful agent\"]\n[([1, 2, 3], [4, 5, 6]), ([4], [7])]\n[1, 2, 3, 4] True\n"
        "[-3.0, -7.0] 'ID [0]: a\\nID [1]: b\\n'\n",
    ),
    "what is left out": (
        """
        for algorithm in "PrioritySearch", "UCBSearch":
            try:
                trainer.train(model=Shift(), train_dataset=dataset, guide=Near(), algorithm=algorithm)
            except ImportError as error:
                print(error)
        """,
        "opto.py leaves out PrioritySearch of opto.trainer: its docstring says what it has\n"
        "opto.py leaves out UCBSearch of opto.trainer: its docstring says what it has\n",
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training(name, with_training):
    code, expected = TRAINING[name]
    told = printed(with_training, TRAIN + textwrap.dedent(code))
    assert "".join(row for row in told.splitlines(True) if "Warning: no language" not in row) == expected


# ---- What importing it does to others


def test_minitrace_stays_what_it_was(alone):
    """Programs of minitrace's own print the same beside a program of Trace's."""
    page = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Train it")[0]
    (alone / "page.md").write_text(">>> import opto\n\n" + page, encoding="utf-8")
    done = run(alone, "-m", "doctest", "page.md")
    assert (done.returncode, done.stdout) == (0, "")


def test_it_says_which_file_is_missing(tmp_path):
    shutil.copy(COMPANIONS / "opto.py", tmp_path)
    done = run(tmp_path, "-c", "import opto")
    assert "ImportError: opto.py needs minitrace.py: copy it beside this file" in done.stderr
