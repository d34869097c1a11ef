"""Three searches on public names of minitrace and minitrace_train: a beam, a bandit, a Pareto front.

`train` continues from one set of values. These keep several, and differ in which of them they
continue from. Each takes a `Task` and leaves the best values that it measured in the model, never
worse ones than it began with; if it is interrupted, the model is as it was. A search is as
deterministic as the model, the guide and the optimizer, given the seed of its task. `Task` and
`Candidate` are what the searches share; each search is one function of about thirty lines.
"""

import contextlib
import math
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent / "companions"))

from minitrace_train import evaluate

from minitrace import ExecutionError, operators

WORDS_ONLY = "a search compares scores, and the guide gave words only"


class Candidate(NamedTuple):
    """Values by parameter, and their scores: on each example in order, or from the pulls of an arm."""

    values: dict[Any, Any]
    scores: tuple[float, ...] = ()

    @property
    def mean(self):
        """The mean score, infinite if there is none, so that a new arm goes first."""
        return sum(self.scores) / len(self.scores) if self.scores else math.inf


class Found(NamedTuple):
    """How a search ended: the best candidate, those it would continue from, and all it measured."""

    best: Candidate
    kept: list[Candidate]
    tried: list[Candidate]


class Task:
    """What a search has to know: a program, its examples, who judges, and who proposes.

    Args:
        model, dataset, guide: as for `train`; the guide has to give scores.
        optimizer: an `Optimizer` of the model's parameters. An `OptoPrime` takes
            `on_refusal="keep"`, or a reply that cannot be used ends the search.
        limit: how often an example may be run; `runs` counts. This is what a search spends.
        seed: for everything that is left to chance.
        failed_score: the score if the program fails; choose a lower one if good scores are negative.
        workers: how many examples are measured at a time.
    """

    def __init__(
        self, model, dataset, guide, optimizer, limit=1000, seed=0, failed_score=0.0, workers=1
    ):
        self.model, self.dataset, self.guide = model, list(dataset), guide
        self.optimizer, self.random = optimizer, random.Random(seed)
        self.limit, self.runs = limit, 0
        self.failed_score, self.workers = failed_score, workers
        if not 0 < 2 * len(self.dataset) <= limit:
            words = f"{len(self.dataset)} examples do not go twice into limit={limit}"
            raise ValueError(f"a search measures its start and its end on all examples: {words}")

    def affords(self, runs):
        """Is there room for so many more runs?"""
        return self.runs + runs <= self.limit

    def sample(self, size):
        """Some of the examples, at random."""
        return self.random.sample(self.dataset, min(size, len(self.dataset)))

    def present(self):
        """The present values of the parameters."""
        return {parameter: parameter.data for parameter in self.optimizer.parameters}

    @contextlib.contextmanager
    def trying(self, values):
        """Give the parameters these values for a while."""
        before = self.present()
        try:
            for parameter, value in values.items():
                parameter.set(value)
            yield
        finally:
            for parameter, value in before.items():
                parameter.set(value)

    def measured(self, values):
        """A candidate with its scores on the whole dataset; nothing is traced or remembered."""
        self.runs += len(self.dataset)
        options = {"failed_score": self.failed_score, "workers": self.workers}
        with self.trying(values):
            scores = evaluate(self.model, self.dataset, self.guide, **options).scores
        if None in scores:
            raise ValueError(WORDS_ONLY)
        return Candidate(values, tuple(scores))

    def traced(self, query, info):
        """Run an example for its graph: the output as a node, what was said of it, and the score."""
        try:
            output = operators.identity(self.model(query))
        except ExecutionError as error:
            words = error.exception_node.create_feedback("full")
            return error.exception_node, words, self.failed_score
        said = self.guide(query, output.data, info)
        score, words = said if isinstance(said, tuple) else (said, "")
        if not isinstance(score, (int, float)):
            raise ValueError(WORDS_ONLY)
        return output, words, float(score)

    def visit(self, values, batch, count=0):
        """Run a batch with these values, send back what was said, ask for so many better values.

        The attempt goes into the optimizer's history, which the next prompt shows.

        Returns: the scores of the batch, and the proposals, each with the values it does not change.
        """
        self.runs += len(batch)
        with self.trying(values):
            self.optimizer.zero_feedback()
            outputs, words, scores = zip(*[self.traced(*pair) for pair in batch], strict=True)
            self.optimizer.backward(list(outputs), list(words), score=list(scores))
            made = self.optimizer.propose(n=count) if count > 1 else {}
            made = self.optimizer.propose() if count == 1 else made
            self.optimizer.update({})  # this writes the history, and changes nothing
        proposals = [made] if isinstance(made, dict) else made
        return scores, [{**values, **proposal} for proposal in proposals]

    def settle(self, candidates, kept, tried):
        """Leave the best of the candidates, the first of equals, in the model."""
        best = max(candidates, key=lambda each: each.mean)
        self.optimizer.zero_feedback()
        self.optimizer.update(best.values)
        return Found(best, kept, tried)


def new(values, known):
    """The values that are not known yet, each once."""
    found = []
    for each in values:
        if each not in known and each not in found:
            found.append(each)
    return found


# ---- Beam: go on from the best few.


def beam(task, width=2, candidates=2, batch_size=4):
    """In each round all of the `width` best so far have children, measured on the whole dataset.

    A parent may stay, so the best is never forgotten. Among equals, the latest are kept.

    Source: beam search comes from the speech recognition of the 1970s. ProTeGi (Pryzant et al.,
    arXiv:2305.03495) uses it for prompts that a language model proposes, with a bandit to save runs.
    """
    tried = [task.measured(task.present())]
    kept, whole = tried[:], len(task.dataset)
    while task.affords(len(kept) * (batch_size + candidates * whole)):
        proposed = []
        for parent in kept:
            proposed += task.visit(parent.values, task.sample(batch_size), candidates)[1]
        known = [each.values for each in tried]
        tried += [task.measured(values) for values in new(proposed, known)]
        kept = sorted(tried, key=lambda each: each.mean)[::-1][:width]
    return task.settle(kept, kept, tried)


# ---- UCB: go on from the one that may be the best, for all we know.


def upper(arm, pulls, c):
    """An upper bound for the mean, after so many pulls in total; with c < 0, a lower bound."""
    return arm.mean + c * math.sqrt(2 * math.log(pulls) / max(1, len(arm.scores)))


def ucb(task, arms=8, candidates=1, batch_size=4, c=0.3):
    """Pull the arm with the highest upper bound: run that candidate on a few examples.

    An arm that was never pulled goes first; one that was pulled before has children on the way. If
    there are more than `arms`, those with the lowest bounds are dropped. Only the start and, at the end,
    the arm with the highest lower bound are measured on the whole dataset. `c` is the weight of the bonus.

    Source: the bound is that of UCB1 (Auer, Cesa-Bianchi and Fischer, Machine Learning 47, 2002) with
    each example as a reward. There, all arms are given; here, arms are added on the way.
    """
    start = task.present()
    pool, known, pulls, ends = [Candidate(start)], [start], 1, 2 * len(task.dataset)
    while task.affords(batch_size + ends):
        arm = max(pool, key=lambda each: upper(each, pulls, c))
        count = candidates if arm.scores else 0
        scores, children = task.visit(arm.values, task.sample(batch_size), count)
        pulls += len(scores)
        born = new(children, known)
        known += born
        pool = [each for each in pool if each is not arm] + [Candidate(values) for values in born]
        pool.append(Candidate(arm.values, (*arm.scores, *scores)))
        pool = sorted(pool, key=lambda each: -upper(each, pulls, c))[:arms]
    pulled = [each for each in pool if each.scores]
    likely = max(pulled, key=lambda each: upper(each, pulls, -c), default=pool[0])
    tried = [task.measured(values) for values in new([start, likely.values], [])]
    return task.settle(tried, pool, tried)


# ---- Pareto: go on from anyone who is the best at something.


def dominates(one, other):
    """Is it as good on every example, and better on one?"""
    pairs = [*zip(one.scores, other.scores, strict=True)]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def front(candidates):
    """Those that no other one dominates, in their order."""
    return [each for each in candidates if not any(dominates(other, each) for other in candidates)]


def wins(candidates):
    """On how many examples each of them is as good as the best."""
    best = [max(scores) for scores in zip(*[each.scores for each in candidates], strict=True)]
    return [sum(a == b for a, b in zip(each.scores, best, strict=True)) for each in candidates]


def pareto(task, batch_size=4):
    """Continue from a candidate on the Pareto front, chosen more often the more examples it is best at.

    The child is run on the batch that it was made for, and only if it does better there is it measured
    on the whole dataset. One that alone solves some example stays, however low its mean.

    Source: GEPA (Agrawal et al., arXiv:2507.19457), which also merges candidates, changes one prompt of
    a program at a time, and learns from other examples than it measures on.
    """
    tried = [task.measured(task.present())]
    while task.affords(2 * batch_size + len(task.dataset)):
        kept = front(tried)
        parent = task.random.choices(kept, wins(kept))[0]
        batch = task.sample(batch_size)
        scores, children = task.visit(parent.values, batch, 1)
        for values in new(children, [each.values for each in tried]):
            if sum(task.visit(values, batch)[0]) > sum(scores):
                tried.append(task.measured(values))
    return task.settle(tried, front(tried), tried)
