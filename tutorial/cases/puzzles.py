"""Number puzzles: a random program of +, -, * and `larger`, and a target for its result.

A puzzle has three trainable numbers. A program that is made from a seed computes one number from them,
and somebody who knows the target says how far off it is. `python3 tutorial/cases/puzzles.py`
draws the figure of the case study again.
"""

import math
import operator
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE, HERE.parent / "companions", HERE.parent.parent))

from minitrace_record import Replay  # noqa: E402
from plot import chart  # noqa: E402

from minitrace import (  # noqa: E402
    GRAPH,
    OPRO,
    Optimizer,
    OptoPrime,
    Proposal,
    SumPropagator,
    bundle,
    node,
    to_data,
)


@bundle()
def larger(x, y):
    "The larger of two numbers."
    return max(x, y)


class Puzzle:
    """Three numbers, the steps that a seed makes of them, and a target that can be reached.

    `steps` are (function, place, place): each joins two values that nothing has used yet, until one
    is left. Every number enters three times, and a constant once. A puzzle that starts within 10 of
    its target, or with either of them beyond 100, is thrown away and drawn again.
    """

    def __init__(self, seed):
        self.seed, dice = seed, random.Random(seed)
        while True:
            start, hidden = ([dice.choice(HALVES) for _ in "abc"] for _ in range(2))
            self.constant, self.steps = float(dice.randint(2, 9)), grow(dice)
            first, self.target = (to_data(self.compute(values)) for values in (start, hidden))
            if abs(first - self.target) >= 10 and max(abs(first), abs(self.target)) <= 100:
                break
        GRAPH.clear()  # names from zero: every prompt about this puzzle is the same
        self.numbers = [
            node(value, name=name, trainable=True, bounds=(-5, 5))
            for name, value in zip("abc", start, strict=True)
        ]

    def compute(self, numbers):
        """Run the program on plain numbers or on nodes."""
        values = [*numbers] * 3 + [self.constant]
        for function, x, y in self.steps:
            values.append(function(values[x], values[y]))
        return values[-1]

    def run(self):
        """Run the program on the trainable numbers."""
        return self.compute(self.numbers)

    def gap(self, output):
        """How far an output is above the target."""
        return to_data(output) - self.target


HALVES = [half / 2 for half in range(-10, 11) if half]
FUNCTIONS = [operator.add, operator.sub, operator.mul, operator.mul, larger]


def grow(dice, leaves=10):
    """Steps that join so many leaves, two at a time, until one value is left."""
    free, steps = [*range(leaves)], []
    while len(free) > 1:
        x = free.pop(dice.randrange(len(free)))
        y = dice.choice(
            [place for place in free if place % 3 != x % 3 or max(place, x) >= 9] or free
        )
        free.remove(y)
        free.append(leaves + len(steps))
        steps.append((dice.choice(FUNCTIONS), x, y))
    return steps


# ---- What is said of an output: words, or the number that derivatives start from


def in_words(puzzle, output):
    gap = puzzle.gap(output)
    return f"too {'high' if gap > 0 else 'low'} by {abs(gap):.6g}" if gap else "right"


def as_slope(puzzle, output):
    """The derivative of the distance to the target: 1 above it, -1 below."""
    return math.copysign(1.0, puzzle.gap(output))


def errors(puzzle, optimizer, say=in_words, steps=4):
    """The distance to the target before each step and after the last, the first one being 1.

    Below a hundredth of the first distance the puzzle is solved, and the numbers stay.
    """
    found = []
    for step in range(steps + 1):
        output = puzzle.run()
        found.append(abs(puzzle.gap(output)))
        if step < steps and found[-1] >= found[0] / 100:
            optimizer.zero_feedback()
            optimizer.backward(output, say(puzzle, output))
            optimizer.step()
    return [error / found[0] for error in found]


# ---- Two old methods, on derivatives that our own backward carries


def derivatives():
    """The propagator of chapter 8, with the rules that puzzles need: a slope for each argument."""
    flow = SumPropagator()
    slopes = {
        "add": lambda x, y: (1, 1),
        "subtract": lambda x, y: (1, -1),
        "multiply": lambda x, y: (y, x),
        "larger": lambda x, y: (1, 0) if x >= y else (0, 1),
    }
    for name, rule in slopes.items():

        def send(node, feedback, rule=rule):
            return [feedback * slope for slope in rule(*(p.data for p in node.parents))]

        flow.register(name, send)
    return flow


class Adam(Optimizer):
    """Adam: steps of about `rate` against the slope, by its running mean and size.

    Source: arXiv:1412.6980.
    """

    def __init__(self, parameters, rate):
        super().__init__(parameters, propagator=derivatives())
        self.rate, self.time, self.seen = rate, 0, dict.fromkeys(self.names, (0.0, 0.0))

    def propose(self, n=None):
        self.time, new = self.time + 1, Proposal()
        for name, parameter in zip(self.names, self.parameters, strict=True):
            (mean, square), slope = self.seen[name], sum(parameter.feedback)
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            self.seen[name] = mean, square
            size = math.sqrt(square / (1 - 0.999**self.time)) + 1e-8
            step = self.rate * mean / (1 - 0.9**self.time) / size
            new[parameter] = within(parameter, parameter.data - step)
        return new


class Newton(Optimizer):
    """Newton's method for one output: the shortest step to the target if slopes stay as they are.

    Its feedback is the distance itself.
    """

    def __init__(self, parameters):
        super().__init__(parameters, propagator=derivatives())

    def backward(self, output, feedback, **options):
        self.gap = feedback
        super().backward(output, 1.0, **options)

    def propose(self, n=None):
        slopes = {parameter: sum(parameter.feedback) for parameter in self.parameters}
        far = self.gap / (sum(slope**2 for slope in slopes.values()) or 1)
        return Proposal({p: within(p, p.data - far * slope) for p, slope in slopes.items()})


def within(parameter, value):
    """The value, or the bound that it is beyond."""
    low, high = parameter.bounds
    return min(max(value, low), high)


# ---- The study: four ways to ask a language model


class Blind(OptoPrime):
    """OptoPrime with its eyes shut: nothing of the graph is in the prompt."""

    def describe(self, room):
        return ""


# What the prompt shows beside the variables and the feedback: the optimizer, its past attempts.
WAYS = {
    "graph": (OptoPrime, 0),
    "graph and past": (OptoPrime, 8),
    "past": (OPRO, 8),
    "neither": (Blind, 0),
}
SEEDS = 1, 2, 3, 4, 5, 6
CASSETTE = HERE / "cassettes" / "case_4.jsonl"


def optimize(puzzle, way, llm):
    """The errors of one run, in one of the four ways."""
    kind, memory_size = WAYS[way]
    made = kind(puzzle.numbers, llm, memory_size=memory_size, retries=1, on_refusal="keep")
    return errors(puzzle, made)


def study(live=None, path=CASSETTE):
    """The errors of every way on every puzzle, side by side in threads: {way: {seed: errors}}.

    With `live`, a function that makes a language model for a way and a seed, what is not on the
    cassette yet is asked of it. As long as there is no past, prompts with and without it are the
    same; so the ways without come first, and the first reply serves both.
    """
    found = {}
    for ways in ("graph", "neither"), ("graph and past", "past"):
        jobs = [(Puzzle(seed), way) for way in ways for seed in SEEDS]
        tapes = [Replay(path, live=live and live(way, puzzle.seed)) for puzzle, way in jobs]
        with ThreadPoolExecutor(len(jobs)) as pool:
            runs = pool.map(optimize, *zip(*jobs, strict=True), tapes)
            for (puzzle, way), run in zip(jobs, runs, strict=True):
                found.setdefault(way, {})[puzzle.seed] = run
    return {way: found[way] for way in WAYS}


PICTURE = HERE / "case_4_numbers.svg"


def picture(found):
    """The figure of the study, as SVG: a panel for each puzzle; a line ends where it is solved."""
    lines = {}
    for way, runs in found.items():  # what went the same way everywhere is one line
        same = next((name for name in lines if lines[name] == runs), None)
        lines[f"{same} = {way}" if same else way] = lines.pop(same) if same else runs
    panels = {
        f"puzzle {seed}": {
            name: runs[seed][: solved_after(runs[seed]) + 1] for name, runs in lines.items()
        }
        for seed in SEEDS
    }
    ticks = {2: "200 %", 1: "100 %", 0.1: "10 %", 0.01: "1 %"}
    about = "distance to the target, of the distance at the start; below 1 % a puzzle is solved"
    return chart(panels, "Six puzzles, four steps: how near does each come?", "step", about, ticks)


def solved_after(run):
    """After how many steps a puzzle was solved; if it was not, one more than there were."""
    return next((step for step, error in enumerate(run) if error < 0.01), len(run))


def old_methods(seeds=SEEDS, steps=4):
    """The errors of both old methods: {method: {seed: errors}}."""
    found = {"Adam": {}, "Newton": {}}
    for seed in seeds:
        puzzle = Puzzle(seed)
        found["Adam"][seed] = errors(puzzle, Adam(puzzle.numbers, 1.0), as_slope, steps)
        puzzle = Puzzle(seed)
        found["Newton"][seed] = errors(puzzle, Newton(puzzle.numbers), Puzzle.gap, steps)
    return found


if __name__ == "__main__":
    PICTURE.write_text(picture({**study(), **old_methods()}), encoding="utf-8")
