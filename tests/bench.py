"""How fast it is, and how far from the limit, as `python3 tests/bench.py [part ...] [--quick]` prints.

Each row of its table compares minitrace with the least that Python itself takes for the same work,
measured in turns in the same run, so that the ratio means the same on a slow machine. A target that
was missed is marked so; nothing here fails by time. Packages to compare with take part where they are
installed: the last line says how to get those that are not.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "tutorial" / "companions"))  # last, so that its opto.py hides no Trace

from minitrace import (  # noqa: E402
    Module,
    Optimizer,
    OptoPrime,
    Proposal,
    Script,
    TraceGraph,
    backward,
    bundle,
    node,
)

QUICK = False


class Bare:
    """The least that remembers: a value and its parents."""

    __slots__ = ("data", "parents")

    def __init__(self, data, parents=()):
        self.data = data
        self.parents = parents

    def __add__(self, other):
        return Bare(self.data + other.data, (self, other))


def bare_backward(output):
    """Parents first without recursion, then one sum for each node."""
    order, seen, stack = [], set(), [output]
    while stack:
        each = stack.pop()
        if each is None:
            order.append(stack.pop())
        elif each not in seen:
            seen.add(each)
            stack += (each, None, *each.parents)
    grads = dict.fromkeys(order, 0.0)
    grads[output] = 1.0
    for each in reversed(order):
        for parent in each.parents:
            grads[parent] += grads[each]
    return grads


def seconds(*works, rounds=7):
    """The best time of each work, taken in turns."""
    best = [float("inf")] * len(works)
    for _ in range(3 if QUICK else rounds):
        for n, work in enumerate(works):
            gc.collect()
            start = time.perf_counter()
            result = work()
            best[n] = min(best[n], time.perf_counter() - start)
            del result
    return best


def kept(work):
    """The bytes that the result of a work holds."""
    gc.collect()
    tracemalloc.start()
    result = work()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del result
    return size


def row(operation, ours, limit, unit, target, ratio=None):
    """One line of the table; a limit of None is a package that is not installed."""
    if limit is None:
        line(operation, f"{ours:,.2f} {unit}", "not installed", "", target, "")
        return
    ratio = ours / limit if ratio is None else ratio
    mark = "" if holds(ratio, target) else "missed"
    shown = f"{ratio:.2f}" if ratio >= 0.01 else f"{ratio:.4f}"
    line(operation, f"{ours:,.2f} {unit}", f"{limit:,.2f} {unit}", shown, target, mark)


def holds(ratio, target):
    """Whether a ratio, as it is printed, is within a target such as `<= 2.2` or `>= 30`."""
    sign, _, bound = target.partition(" ")
    ratio = round(ratio, 2)
    return not sign or (ratio <= float(bound) if sign == "<=" else ratio >= float(bound))


def line(operation, ours, limit, ratio, target, mark):
    """The cells of one line in their columns."""
    cells = f"{operation:52} | {ours:>13} | {limit:>13} | {ratio:>7} | {target:>7} | {mark:6}"
    print(f"| {cells} |", flush=True)


# ---- one operation


def adding(x, y):
    def work():
        for _ in range(100_000):
            x + y

    return work


def operator():
    """`x + y` of two nodes, and what it holds in memory."""
    ours, bare = seconds(adding(node(1), node(2)), adding(Bare(1), Bare(2)))
    row("x + y", ours * 1e4, bare * 1e4, "ns", "<= 2.2")
    x, y, n = node(1.5), node(2.5), 100_000
    a, b = Bare(1.5), Bare(2.5)
    ours, bare = kept(lambda: [x + y for _ in range(n)]), kept(lambda: [a + b for _ in range(n)])
    row("x + y, bytes (the target is in bytes)", ours / n, bare / n, "B", "<= 272", ours / n)


def small(a, b):
    return a + b


def wrapped(*args, **kwargs):
    return small(*args, **kwargs)


def calls():
    """A bundle call beside the same call through one wrapper."""
    traced, x, y = bundle(small), node(1), node(2)

    def loop(function, a, b):
        def work():
            for _ in range(20_000):
                function(a, b)

        return work

    nodes, plain, bare = seconds(loop(traced, x, y), loop(traced, 1, 2), loop(wrapped, 1, 2))
    row("bundle call with two nodes", nodes * 5e4, bare * 5e4, "ns", "<= 28")
    row("bundle call with two plain values", plain * 5e4, bare * 5e4, "ns", "<= 45")


def imports():
    """`import minitrace`, compiled once, beside `pass`, both without site."""

    def start(code):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        command = [sys.executable, "-S", "-c", code]
        return lambda: subprocess.run(command, cwd=ROOT, env=environment, check=True)

    start("import minitrace")()
    ours, bare = seconds(start("import minitrace"), start("pass"), rounds=15)
    row(
        "import (the target is the difference in ms)",
        ours * 1e3,
        bare * 1e3,
        "ms",
        "<= 20",
        (ours - bare) * 1e3,
    )


def walks():
    """Backward through 10,000 additions, beside the bare walk that sums one number for each."""
    n = 10_000
    ours, bare = chain(node(0.0, trainable=True), n), chain(Bare(0.0), n)
    ours, bare = seconds(lambda: backward(ours, ""), lambda: bare_backward(bare))
    row("backward, per operation", ours / n * 1e9, bare / n * 1e9, "ns", "<= 6")


# ---- growth


def chain(x, size, parameters=1, make=None):
    each, others = x, [x] + [make() for _ in range(parameters - 1)]
    for n in range(size):
        each = each + others[n % parameters]
    return each


def fan(x, size, **_):
    """Many children of one parent, and a balanced sum of them all."""
    row = [x + x for _ in range(size // 2)]
    while len(row) > 1:
        row = [a + b for a, b in zip(row[::2], row[1::2], strict=False)] + row[len(row) // 2 * 2 :]
    return row[0]


def grid(x, size, **_):
    """Rows of ten, where each node has two parents in the row above: ever more paths, not more edges."""
    row = [x] * 10
    for _ in range(size // 10):
        row = [row[n - 1] + row[n] for n in range(10)]
    return sum(row[1:], row[0])


def cost(shape, parameters, size, rounds):
    """Microseconds per node: forward, ours and bare, then backward, ours and bare."""

    def ours():
        return shape(new_node(), size, parameters=parameters, make=new_node)

    def bare():
        return shape(Bare(0.0), size, parameters=parameters, make=lambda: Bare(0.0))

    def new_node():
        return node(0.0, "x", trainable=True)

    forward = seconds(ours, bare, rounds=rounds)
    a, b = ours(), bare()
    back = seconds(lambda: backward(a, ""), lambda: bare_backward(b), rounds=rounds)
    return [each / size * 1e6 for each in (*forward, *back)]


def growth(shape, parameters):
    """How the cost per node grows from the small size to the large one, ours and the bare class's."""
    small, large = (2_000, 20_000) if QUICK else (10_000, 1_000_000)
    first, last = cost(shape, parameters, small, 7), cost(shape, parameters, large, 2)
    what = f"{shape.__name__}{f', {parameters} parameters' if parameters > 1 else ''}"
    for n, way in (0, "forward"), (2, "backward"):
        ours, bare = last[n] / first[n], last[n + 1] / first[n + 1]
        row(f"{way}, {what}: growth per node", ours, bare, "x", "<= 1.5")
        words = f"{first[n]:.2f} us per node at {small:,}, {last[n]:.2f} at {large:,}"
        DETAILS.append(f"{way}, {what}: {words}; bare {first[n + 1]:.2f} and {last[n + 1]:.2f}")


DETAILS = []


def linear():
    """What a node costs among 1,000,000, beside what it costs among 10,000."""
    for shape, parameters in (chain, 1), (chain, 800), (fan, 1), (grid, 1):
        growth(shape, parameters)


def memory():
    """Bytes per node, as the graph grows: the forward graph, and the trace graph that backward makes."""
    small, large = (2_000, 20_000) if QUICK else (10_000, 300_000)

    def graph(size):
        return kept(lambda: chain(node(0.0), size)) / size

    def trace_graph(size):
        output = chain(node(0.0, trainable=True), size)

        def work():
            graph = TraceGraph.of(output)
            return graph, len(graph)  # which puts its nodes in order

        return kept(work) / size

    row("forward, bytes per node, large / small", graph(large), graph(small), "B", "<= 1.1")
    many, few = trace_graph(large), trace_graph(small)
    row("trace graph, bytes per node, large / small", many, few, "B", "<= 1.1")
    row("trace graph, bytes per node (the target is in bytes)", many, few, "B", "<= 64", many)


# ---- sizes


def installed(name, seen):
    """The bytes of an installed package and of all that it needs, each once."""
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return 0
    if package.metadata["Name"].lower() in seen:
        return 0
    seen.add(package.metadata["Name"].lower())
    paths = (Path(package.locate_file(file)) for file in package.files or ())
    needs = (
        re.match(r"[\w.-]+", need)[0] for need in package.requires or () if "extra ==" not in need
    )
    return sum(p.stat().st_size for p in paths if p.is_file()) + sum(
        installed(n, seen) for n in needs
    )


def sizes():
    """What there is to install: this one file, beside packages with all that they need."""
    ours = (ROOT / "minitrace.py").stat().st_size
    for name in PEERS:
        seen = set()
        theirs = installed(name, seen)
        what = f"size on disk, beside {name}" + f" ({len(seen)} packages)" * (len(seen) > 1)
        row(what, ours / 1e6, theirs / 1e6 if theirs else None, "MB", "<= 1")


# ---- peers

PEERS = "micrograd", "trace-opt", "textgrad"


def has(name):
    """Whether a package is installed: the companion opto.py is no trace-opt."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.distribution(name))
    return False


def peers():
    """Others, where they are installed: 1,000 additions in a chain."""

    def ours():
        return chain(node(1.0, trainable=True), 1_000)

    def both(new):
        chain(new(1.0, trainable=True), 1_000).backward("too low")

    works = [ours]
    if has("micrograd"):
        from micrograd.engine import Value

        works.append(lambda: chain(Value(1.0), 1_000))
    mine, *theirs = (each * 1e3 for each in seconds(*works, rounds=15))
    what = "1,000 operations forward, beside micrograd's Value"
    row(what, mine, theirs[0] if theirs else None, "ms", "<= 1")

    works = [lambda: both(node)]
    if has("trace-opt"):
        with contextlib.redirect_stdout(sys.stderr):
            import opto.trace as trace

        works.append(lambda: both(trace.node))
    mine, *theirs = (each * 1e3 for each in seconds(*works, rounds=5))
    what = "1,000 operations forward and backward beside Trace"
    row(what, mine, *(theirs or [None]), "ms", ">= 30", theirs[0] / mine if theirs else None)


# ---- a network


def moons():
    """A step of training: the network of case 8 and 40 points, beside the same in micrograd.

    Once more without the garbage collector, which has much to do in micrograd: each Value is part of
    a reference cycle.
    """
    sys.path.append(str(ROOT / "tutorial" / "cases"))
    from moons import Descent, Network, as_slope, learn, two_moons

    points, network = two_moons(40), Network()

    def ours(steps=5):
        return learn(network, points, Descent(network, steps=100), as_slope, steps)

    works = [ours]
    if has("micrograd"):
        works.append(micrograd_steps(points))
    for what, target in ("a step of training", "<= 0.6"), ("a step, no garbage collector", ""):
        if not target:
            works = [without_collector(work) for work in works]
        mine, *theirs = (each / 5 * 1e3 for each in seconds(*works, rounds=5))
        row(f"{what}, beside micrograd", mine, *(theirs or [None]), "ms", target)


def without_collector(work):
    def worked():
        gc.disable()
        try:
            return work()
        finally:
            gc.enable()

    return worked


def micrograd_steps(points):
    """Steps of micrograd's demo, as a function."""
    from micrograd.nn import MLP

    network = MLP(2, [16, 16, 1])

    def loss():
        missing = [(1 + -label * network(place)).relu() for place, label in points]
        squares = sum(parameter * parameter for parameter in network.parameters())
        return sum(missing) * (1.0 / len(missing)) + 1e-4 * squares

    def steps(count=5):
        for step in range(count):
            total = loss()
            network.zero_grad()
            total.backward()
            for parameter in network.parameters():
                parameter.data -= (1.0 - 0.9 * step / 100) * parameter.grad
        return loss().data

    return steps


# ---- pictures


def pictures():
    """A graph of 2,000 nodes, drawn whole; the limit is what writing its JSON takes."""
    from minitrace_pictures import to_svg

    x = node(1.0, trainable=True)
    layers = [x]
    for n in range(1_000):
        layers.append(layers[n // 2] + layers[-1] if n % 3 else layers[-1] * 2.0)
    graph = TraceGraph.of(layers[-1])
    ours, limit = seconds(lambda: to_svg(graph, calls=2_000), graph.to_json, rounds=1)
    row(f"SVG of {len(graph):,} nodes (the target in seconds)", ours, limit, "s", "<= 5", ours)


# ---- training


class Shift(Module):
    """Adds a number, after a while."""

    def __init__(self, pause=0.0):
        self.offset, self.pause = node(0, name="offset", trainable=True), pause

    def forward(self, x):
        time.sleep(self.pause) if self.pause else None
        return x + self.offset


class Up(Optimizer):
    """Proposes the next number, without asking anybody."""

    def propose(self, n=None):
        return Proposal({self.parameters[0]: self.parameters[0].data % 50 + 1})


def guide(query, response, info):
    return -abs(response - info), "too low" if response < info else "too high"


def training():
    """A batch side by side, beside what sleeping alone would take; and a long run, step by step."""
    from minitrace_train import train

    dataset, slow = [(n, n + 7) for n in range(64)], Shift(0.1)
    start = time.perf_counter()
    options = {"gate": False, "measure": False}  # so that each example runs once
    train(slow, dataset, guide, Up(slow), batch_size=64, workers=16, **options)
    row("64 examples of 100 ms, 16 workers", time.perf_counter() - start, 0.4, "s", "<= 1.25")

    steps, marks = 200 if QUICK else 1_000, {}

    def note(state):
        if state["step"] in (steps // 5, 2 * steps // 5, 4 * steps // 5, steps):
            gc.collect()
            marks[state["step"]] = time.perf_counter(), tracemalloc.get_traced_memory()[0]

    shift = Shift()
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        journal = os.path.join(folder, "run.jsonl")
        train(shift, [(1, 8)], guide, Up(shift), epochs=steps, journal=journal, progress=note)
    tracemalloc.stop()
    (a, _), (b, low), (c, _), (d, high) = marks.values()
    row(
        f"a step at the end of {steps:,}, beside one early",
        (d - c) * 5e3,
        (b - a) * 5e3,
        "us",
        "<= 1.5",
    )
    held, note_size = (high - low) / (steps - 2 * steps // 5), 500
    row("memory a step leaves: score and update, bytes", held, note_size, "B", "<= 1")


# ---- prompts


def problems(node):
    """Three programs, each as its parameter and its output: a formula, a chain, a long text."""
    x, y, text = (
        node(value, name=name, trainable=True)
        for value, name in ((3, "x"), (1, "y"), ("a" * 20_000, "text"))
    )
    chained, upper = y, text
    for _ in range(300):
        chained = chained + 1
    for n in range(10):
        upper = upper + str(n)
    return {
        "x * 2 + 1": (x, x * 2 + 1),
        "300 additions": (y, chained),
        "10 steps on 20,000 characters": (text, upper),
    }


def prompts():
    """Characters in OptoPrime's prompt, all messages; Trace's own where it is installed."""
    theirs = trace_prompts() if has("trace-opt") else {}
    for name, (parameter, output) in problems(node).items():
        optimizer = OptoPrime([parameter], llm=Script([]), max_chars=60_000)
        optimizer.backward(output, "too low")
        ours = sum(len(message["content"]) for message in optimizer.prompt())
        row(f"prompt: {name} (beside Trace)", ours, theirs.get(name), "", "<= 1")


def trace_prompts():
    """The same by Trace: its optimizer asks a language model that only counts."""
    with contextlib.redirect_stdout(sys.stderr):
        import opto.trace as trace
        from opto.optimizers import OptoPrime as Theirs

    sizes = {}
    for name, (parameter, output) in problems(trace.node).items():

        def count(*args, name=name, **kwargs):
            sizes[name] = sum(len(message["content"]) for message in kwargs["messages"])
            raise KeyboardInterrupt

        optimizer = Theirs([parameter], llm=count)
        optimizer.zero_feedback()
        optimizer.backward(output, "too low")
        with contextlib.suppress(KeyboardInterrupt):
            optimizer.step()
    return sizes


PARTS = {
    part.__name__: part
    for part in (
        operator,
        calls,
        imports,
        walks,
        memory,
        linear,
        moons,
        pictures,
        training,
        prompts,
        sizes,
        peers,
    )
}


def main(arguments=None):
    global QUICK
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", help=f"what to run: {', '.join(PARTS)} (all by default)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller graphs, fewer rounds: only to try it"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - PARTS.keys()
    if unknown:
        parser.error(
            f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}"
        )
    QUICK = options.quick
    print(f"Python {sys.version.split()[0]}\n")
    line("operation", "minitrace", "bare limit", "ratio", "target", "")
    print(f"|{'-' * 54}|{'-' * 14}:|{'-' * 14}:|{'-' * 8}:|{'-' * 8}:|{'-' * 8}|")
    for name in options.parts or PARTS:
        PARTS[name]()
    print(*["", *DETAILS], sep="\n") if DETAILS else None
    missing = [name for name in PEERS if not has(name)]
    if missing:
        print(f"\nTo compare with the rest: python3 -m pip install {' '.join(missing)}")


if __name__ == "__main__":
    main()
