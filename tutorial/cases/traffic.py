"""A toy: two roads cross at a traffic light, half an hour goes by, and cars wait.

Second by second: cars arrive by chance, and while a road has green one car leaves every two seconds.
After each green all lights are red for four seconds. From the north cars come at any time; from the
east most come in platoons, one each minute, because a light further up the road lets them go together.
No car brakes, turns or gives up. Nothing here was measured on a street.
"""

import functools
import itertools
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent)]

from minitrace import (  # noqa: E402
    GRAPH,
    Module,
    OptoPrime,
    bundle,
    node,
    stop_tracing,
    to_data,
)

SECONDS, MINUTE, RED = 1800, 60, 4


@functools.cache
def arrivals(road, morning):
    """For each second of a morning, whether a car comes; platoons begin at second 48 of a minute."""
    dice, chances = random.Random(f"{road}, morning {morning}"), [0.16] * MINUTE
    if road == "east":
        chances = [0.7 if (second - 48) % MINUTE < 14 else 0.04 for second in range(MINUTE)]
    return [dice.random() < chances[second % MINUTE] for second in range(SECONDS)]


@bundle()
def queue(road, morning, start, green, cycle):
    """Let the cars of one road come for 1800 seconds, and see how many seconds they wait in all.

    The light turns green at second `start` and every `cycle` seconds before and after, each time
    for `green` seconds. In green a car leaves every 2 seconds. From the north cars come at any
    time; from the east most come in platoons, one each minute.
    """
    leaving = [second % 2 == 0 and second < green for second in range(cycle)]
    lights = itertools.islice(itertools.cycle(leaving), -start % cycle, None)
    waiting = waited = longest = 0
    for comes, leaves in zip(arrivals(road, morning), lights):  # noqa: B905, one has no end
        waiting += comes
        if leaves and waiting:
            waiting -= 1
        waited += waiting
        if waiting > longest:
            longest = waiting
    cars = sum(arrivals(road, morning))
    return {"cars": cars, "waited": waited, "longest queue": longest, "left over": waiting}


@bundle()
def average(*roads):
    "The seconds that a car waits on average, over all cars of the roads."
    return round(sum(road["waited"] for road in roads) / sum(road["cars"] for road in roads), 2)


class Crossing(Module):
    """The plan of a light: three whole numbers of seconds, which may change.

    A cycle is the green of the east, red for all, the green of the north, red for all.
    """

    def __init__(self, north=30, east=30, offset=30):
        GRAPH.clear()  # names from zero, so that prompts are the same whatever ran before
        when = "the second at which the light turns green for the east first"
        self.north = node(north, "green_north", trainable=True, bounds=(6, 60))
        self.east = node(east, "green_east", trainable=True, bounds=(6, 60))
        self.offset = node(offset, "offset", trainable=True, description=when, bounds=(0, 59))

    def forward(self, morning):
        """Run both roads: how long the cars of each wait, and how long a car waits on average."""
        cycle = self.east + RED + self.north + RED
        east = queue("east", morning, self.offset, self.east, cycle)
        north = queue("north", morning, self.offset + self.east + RED, self.north, cycle)
        return average(east, north)

    def plan(self):
        """The three numbers: green for the north, green for the east, offset."""
        return self.north.data, self.east.data, self.offset.data


def wait(plan, morning=0):
    """The average wait of a plan on a morning, in seconds."""
    with stop_tracing():
        return to_data(Crossing(*plan)(morning))


# ---- Optimizing

TASK = """\
Two roads cross at a traffic light. Choose the numbers so that cars wait as little as can be, on this \
morning and on others like it."""


def in_words(output):
    """What is said of a morning: the average wait, and that of each road."""
    roads = [f"{call['waited'] / call['cars']:.1f} s" for call in map(to_data, output.parents)]
    return f"A car waits {output.data} s on average: {roads[0]} from the east, {roads[1]} from the north."


def train(crossing, llm, steps, **options):
    """Change a plan so many times; the average wait before each and at the end. Keeps the best."""
    optimizer = OptoPrime(crossing, llm, objective=TASK, retries=1, on_refusal="keep", **options)
    for step in range(steps + 1):
        output = crossing(0)
        optimizer.zero_feedback()
        optimizer.backward(output, in_words(output), score=-output.data)
        optimizer.step() if step < steps else optimizer.update({})
    optimizer.restore(optimizer.best)
    return [-attempt.score for attempt in optimizer.history]


def grid_search(greens, offsets, morning=0):
    """The best of all plans with these numbers on a morning, and how many were tried."""
    plans = [*itertools.product(greens, greens, offsets)]
    return min(plans, key=lambda plan: wait(plan, morning)), len(plans)


# ---- The study

STARTS = (30, 30, 30), (15, 40, 0), (45, 15, 15)
CASSETTE = HERE / "cassettes" / "case_7.jsonl"


def study(llm_of, steps=6, **options):
    """Train from every start, side by side in threads: {start: (plan, average waits)}.

    `llm_of` makes a language model for the number of a start.
    """
    crossings = [Crossing(*start) for start in STARTS]
    llms = [llm_of(number) for number in range(len(STARTS))]
    with ThreadPoolExecutor(len(STARTS)) as pool:
        runs = pool.map(lambda *each: train(*each, steps, **options), crossings, llms)
        waits = [*runs]
    plans = [crossing.plan() for crossing in crossings]
    return dict(zip(STARTS, zip(plans, waits, strict=True), strict=True))
