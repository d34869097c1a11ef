"""A training run that a test can kill: `python3 train_program.py JOURNAL SERVED WORKERS`.

Its language model answers by a hash of the prompt, after a moment, and notes in the file SERVED every
call that reaches it. It prints the best values, the scores and the reason as JSON.
"""

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tutorial" / "companions"))

from minitrace_train import train

import minitrace
from minitrace import Module, OptoPrime, node, operators


class Noted:
    """A language model that is a pure function of the prompt, and notes that it was asked."""

    def __init__(self, served, seconds):
        self.served, self.seconds = served, seconds

    def __call__(self, messages, **options):
        text = json.dumps(messages)
        key = hashlib.sha256(text.encode()).hexdigest()
        with open(self.served, "ab", buffering=0) as file:
            file.write(key[:24].encode() + b"\n")
        time.sleep(self.seconds)
        rng = random.Random(key)
        if "Change the variables" not in text:
            return f"{rng.randint(0, 9)} apples"
        suggestion = {"count0": rng.randint(0, 20), "tone0": rng.choice(["dry", "warm", "loud"])}
        return json.dumps({"reasoning": "a guess", "suggestion": suggestion})


class Counter(Module):
    """Asks how many there are in a tone, and adds a number of its own."""

    def __init__(self, llm):
        self.llm = llm
        self.count = node(3, name="count", trainable=True, bounds=(0, 20))
        self.tone = node("dry", name="tone", trainable=True)

    def forward(self, question):
        said = operators.call_llm(self.llm, self.tone, question)
        return said.split(" ")[0].call("zfill", 3) + " and " + operators.format("{}", self.count)


def guide(query, response, info):
    first, second = (int(word) for word in response.split(" and "))
    return -abs(first + second - info), "too few" if first + second < info else "too many"


def run(journal, served, workers, seconds=0.001, **options):
    minitrace.GRAPH.clear()
    llm = Noted(served, seconds)
    model = Counter(llm)
    dataset = [(f"How many in box {n}?", 14 + n % 5) for n in range(6)]
    held_out = [(f"How many in bag {n}?", 17 + n) for n in range(3)]
    optimizer = OptoPrime(model, llm=llm, memory_size=3)
    settings = {
        "epochs": 2,
        "batch_size": 3,
        "candidates": 2,
        "seed": 7,
        "shuffle": True,
        **options,
    }
    return train(
        model, dataset, guide, optimizer, validation=held_out, workers=workers, journal=journal, **settings
    )  # fmt: skip


if __name__ == "__main__":
    outcome = run(sys.argv[1], sys.argv[2], int(sys.argv[3]), 0.004)
    print(json.dumps([outcome.values, outcome.score, outcome.scores, outcome.reason]))
    os._exit(0) if "--hard" in sys.argv else None
