"""Battleship for one: two hidden ships on a small board, to be sunk with as few shots as possible.

A view is what a player knows: six rows of six signs, `.` not shot at, `o` missed, `x` hit. A player
is any function of a view that returns the cell to shoot at, `(row, column)`. The player is not told when
a ship is sunk, or which one was hit.
"""

import itertools
import random
import statistics
import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

from minitrace import GRAPH, ExceptionNode, ExecutionError, Module, OptoPrime, bundle, node

SIZE, SHIPS = 6, (4, 3)
CELLS = [*itertools.product(range(SIZE), repeat=2)]
OPEN = ["." * SIZE] * SIZE


def placements(length):
    """Every place that a straight ship can take, as a set of cells."""
    for row, column in itertools.product(range(SIZE), range(SIZE - length + 1)):
        line = [(row, column + step) for step in range(length)]
        yield frozenset(line)
        yield frozenset((x, y) for y, x in line)


LAYOUTS = [a | b for a, b in itertools.product(*map(placements, SHIPS)) if not a & b]


class Board:
    """A board on which a seed has hidden the ships: one of all layouts, each as likely."""

    def __init__(self, seed):
        self.ships = random.Random(f"board {seed}").choice(LAYOUTS)

    @bundle()
    def fire(self, view, cell):
        "Shoot at a cell that is still '.', and see 'x' if a ship is there, 'o' if not."
        if cell not in CELLS or view[cell[0]][cell[1]] != ".":
            raise ValueError(f"{cell!r:.40} is no cell that is still '.'")
        return mark(view, cell, "x" if cell in self.ships else "o")

    def is_won(self, view):
        """Are all cells of the ships hit?"""
        return sum(row.count("x") for row in view) == len(self.ships)


def mark(view, cell, sign):
    """The view with another sign at one cell."""
    (row, column), new = cell, [*view]
    new[row] = view[row][:column] + sign + view[row][column + 1 :]
    return new


def seen(view, sign):
    """The cells of a view that show a sign."""
    return {(row, column) for row, column in CELLS if view[row][column] == sign}


# ---- Players: one that learns, and two to compare it with


def reason(view):
    """Rate the open cells of a view: a dict from (row, column) to a number, higher is better.

    A view is a list of six texts of six signs: '.' not shot at, 'o' missed, 'x' hit.
    """
    return {(r, c): 0 for r in range(6) for c in range(6) if view[r][c] == "."}


def choose(view, plan):
    "Choose the next cell to shoot at, (row, column), from a view and the plan made of it."
    return min(plan)


class Captain(Module):
    """Plans, then shoots. It starts with the simplest code there is, and all of it is trainable.

    `limits` are for code that nobody has read yet: it runs in a child process then.
    """

    def __init__(self, limits=None):
        GRAPH.clear()  # names from zero, so that prompts are the same whatever ran before
        self.reason, self.choose = (
            bundle(trainable=True, limits=limits)(function) for function in (reason, choose)
        )

    def forward(self, view):
        return self.choose(view, self.reason(view))


def random_player(seed):
    """Shoots at any open cell."""
    dice = random.Random(f"player {seed}")
    return bundle()(lambda view: dice.choice(sorted(seen(view, "."))))


@bundle()
def enumerating_player(view):
    """Shoots where most of the layouts lie that fit all it has seen; the first of equals."""
    hits, misses = seen(view, "x"), seen(view, "o")
    fitting = [ships for ships in LAYOUTS if hits <= ships and misses.isdisjoint(ships)]
    counts = Counter(itertools.chain.from_iterable(fitting))
    return max(sorted(seen(view, ".")), key=lambda cell: counts[cell])


# ---- Games


def play(player, seed):
    """Play one board to its end: the last node, and the number of shots.

    A player that fails, or shoots where it cannot, has lost: all cells count, and the last node is
    the failure.
    """
    board, view = Board(seed), node(OPEN, name="view")
    shots = 0
    while not board.is_won(view.data):
        shots += 1
        try:
            view = board.fire(view, player(view))
        except ExecutionError as error:
            return error.exception_node, len(CELLS)
    return view, shots


def shots_on(player, seeds):
    """The number of shots on each board."""
    return [play(player, seed)[1] for seed in seeds]


# ---- Training

TASK = """\
Two straight ships, one of 4 cells and one of 3, lie somewhere on a board of 6 by 6, across or down, \
and do not overlap. Change the code so that both are hit in all their cells with as few shots as \
possible on any such board. Nothing is kept from shot to shot but the view. No random numbers, and \
at most a hundredth of a second for a shot."""
TRAINING, UNSEEN = range(4), range(100, 140)


def train(captain, llm, steps=6):
    """Rewrite a captain's code so many times; the mean number of shots before each and at the end.

    Every step plays the training boards and shows the longest game. The best code is kept.
    """
    optimizer = OptoPrime(
        captain, llm, objective=TASK, memory_size=4, max_chars=14_000, retries=1, on_refusal="keep"
    )
    for step in range(steps + 1):
        games = [play(captain, seed) for seed in TRAINING]
        last, _ = max(games, key=lambda game: game[1])
        optimizer.zero_feedback()
        optimizer.backward(last, in_words(games), -statistics.mean(shots for _, shots in games))
        optimizer.step() if step < steps else optimizer.update({})
    optimizer.restore(optimizer.best)
    return [-attempt.score for attempt in optimizer.history]


def in_words(games):
    """What is said of the games: the shots they took, and how the longest ended."""
    last, most = max(games, key=lambda game: game[1])
    end = f"a failure, which counts as {most}: {last.data}"
    return (
        f"Shots on the boards: {', '.join(str(shots) for _, shots in games)}. Fewer are better, 7 "
        "would be perfect. Code shows the longest of these games. Its end was "
        f"{end if isinstance(last, ExceptionNode) else 'a win.'}"
    )
