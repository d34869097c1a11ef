"""The tutorial's searches: what each of them promises, over many seeds and against brute force."""

import json
import math
import random
import sys
from collections import Counter

import pytest
from conftest import ROOT
from minitrace_train import evaluate, train

from minitrace import OPRO, Module, Optimizer, OptoPrime, Proposal, Script, StubLLM, bundle, node

sys.path.insert(0, str(ROOT / "tutorial"))
import search
from search import Candidate, Task, beam, front, pareto, ucb, upper, wins

SEARCHES = [beam, ucb, pareto]


class Choice(Module):
    """Gives a number that it has to learn, and counts how often it runs."""

    def __init__(self, start=0):
        self.number, self.runs = node(start, name="number", trainable=True), 0

    def forward(self, query):
        self.runs += 1
        return self.number + 0


class Landscape:
    """A guide with a fixed score for each pair of a number and an example, by chance."""

    def __init__(self, seed, size=6, levels=3):
        self.seed, self.levels = seed, levels
        self.dataset = [(query, None) for query in range(size)]

    def __call__(self, query, response, info):
        return self.score(response, query), f"{query} gave {response}"

    def score(self, number, query):
        return random.Random(f"{self.seed} {number} {query}").randrange(self.levels) / 2

    def mean(self, number):
        return sum(self.score(number, query) for query, _ in self.dataset) / len(self.dataset)


class Wanderer(Optimizer):
    """Proposes a number near the present one."""

    def __init__(self, parameters, seed=0, ends=(-20, 20)):
        super().__init__(parameters)
        self.random, self.ends = random.Random(seed), ends

    def propose(self, n=None):
        made = [self.one() for _ in range(n or 1)]
        return made if n else made[0]

    def one(self):
        [number] = self.parameters
        low, high = self.ends
        new = min(high, max(low, number.data + self.random.randint(-3, 3)))
        return Proposal({number: new} if new != number.data else {})


class Listed(Wanderer):
    """Proposes the numbers up to `count` in their order, then none."""

    def __init__(self, parameters, count):
        super().__init__(parameters)
        self.left = iter(range(1, count))

    def one(self):
        new = next(self.left, None)
        return Proposal({} if new is None else {self.parameters[0]: new})


class Spy(Task):
    """A task that notes what a search asks of it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.notes = []

    def measured(self, values):
        found = super().measured(values)
        [number] = values.values()
        self.notes.append(("measured", number, sum(found.scores), []))
        return found

    def visit(self, values, batch, count=0):
        scores, made = super().visit(values, batch, count)
        [number] = values.values()
        born = [each for one in made for each in one.values()]
        self.notes.append(("asked" if count else "visited", number, sum(scores), born))
        return scores, made


def spied(how, seed, limit=200, size=6, optimizer=None, task_seed=None, **options):
    """A search on a landscape: what it found, its task, the model and the guide."""
    model, guide = Choice(), Landscape(seed, size)
    optimizer = optimizer or Wanderer(model, seed)
    if callable(optimizer) and not isinstance(optimizer, Optimizer):
        optimizer = optimizer(model)
    task = Spy(model, guide.dataset, guide, optimizer, limit=limit, seed=task_seed or seed)
    return how(task, **options), task, model, guide


@pytest.fixture
def seeds(slow):
    """The seeds to try: all of them, or with less patience a few."""
    return range(40 if slow else 5)


def number(candidate):
    [value] = candidate.values.values()
    return value


# ---- What all of them promise


@pytest.mark.parametrize("how", SEARCHES)
def test_never_worse_than_the_start_and_the_best_is_in_the_model(how, seeds):
    better = 0
    for seed in seeds:
        found, _, model, guide = spied(how, seed)
        assert found.best.mean == pytest.approx(guide.mean(model.number.data))
        assert number(found.best) == model.number.data
        assert found.best.mean >= guide.mean(0)
        assert found.best.mean == max(each.mean for each in found.tried)
        better += found.best.mean > guide.mean(0)
    assert better > 0.65 * len(seeds)  # two thirds, at least


@pytest.mark.parametrize("how", SEARCHES)
def test_scores_are_those_of_the_program(how, seeds):
    for seed in seeds:
        found, _, _, guide = spied(how, seed)
        for each in found.tried:
            assert each.scores == tuple(guide.score(number(each), q) for q, _ in guide.dataset)


@pytest.mark.parametrize("how", SEARCHES)
def test_the_limit_holds_and_every_run_is_counted(how, seeds):
    for seed in seeds:
        limit = 12 + 7 * seed
        _, task, model, _ = spied(how, seed, limit=limit)
        assert task.runs == model.runs <= limit


@pytest.mark.parametrize("how", SEARCHES)
def test_a_search_is_deterministic_by_its_seed(how):
    runs = [spied(how, 3)[1].notes for _ in range(2)]
    assert runs[0] == runs[1] and len(runs[0]) > 10
    assert spied(how, 3, task_seed=4)[1].notes != runs[0]


@pytest.mark.parametrize("how", SEARCHES)
def test_no_values_are_measured_on_all_examples_twice(how, seeds):
    for seed in seeds:
        found, _, _, _ = spied(how, seed, limit=300)
        seen = [number(each) for each in found.tried]
        assert len(seen) == len(set(seen))


@pytest.mark.parametrize("how", SEARCHES)
def test_where_nobody_proposes_anything_the_start_stays(how):
    found, task, model, _ = spied(how, 0, optimizer=lambda model: Listed(model, 1))
    assert model.number.data == 0 and number(found.best) == 0
    assert {note[1] for note in task.notes} == {0}


@pytest.mark.parametrize("how", SEARCHES)
def test_an_interrupted_search_leaves_the_model_as_it_was(how):
    class Broken(Wanderer):
        def one(self):
            if len(self.history) >= 4:
                raise KeyboardInterrupt
            return super().one()

    for seed in range(5):
        model, guide = Choice(7), Landscape(seed)
        with pytest.raises(KeyboardInterrupt):
            how(Task(model, guide.dataset, guide, Broken(model, seed)))
        assert model.number.data == 7


@pytest.mark.parametrize("how", SEARCHES)
def test_what_was_tried_is_in_the_next_prompt(how):
    class Near(Module):
        def __init__(self):
            self.offset = node(0, name="offset", trainable=True)

        def forward(self, x):
            return x + self.offset

    def guide(query, response, info):
        return -abs(response - info), "too low" if response < info else "too high"

    asked = []

    def llm(messages, **options):
        asked.append(messages[-1]["content"])
        return StubLLM()(messages, **options)

    model, dataset = Near(), [(n, n + 7) for n in range(4)]
    optimizer = OptoPrime(model, llm=llm, on_refusal="keep")
    found = how(Task(model, dataset, guide, optimizer, limit=160, failed_score=-99))
    assert model.offset.data == 7 and found.best.mean == 0
    first = "1. offset0 = 0\n   feedback on "
    assert first in next(prompt for prompt in asked if "# Past attempts" in prompt)
    assert all(attempt.feedback for attempt in optimizer.history[:-1])


@pytest.mark.parametrize("how", SEARCHES)
def test_a_failing_program_is_an_example_with_its_error_as_feedback(how):
    @bundle(trainable=True)
    def double(x):
        "Twice as much."
        return x + 1

    code = ["return x / 0", "return x * 2"]
    replies = [
        json.dumps({"suggestion": {"double_code": f"def double(x):\n    {line}"}}) for line in code
    ]
    script = Script([("ZeroDivisionError|candidate 2", replies[1]), ("", replies[0])])
    optimizer = OptoPrime(double, llm=script, on_refusal="keep")

    def guide(query, response, info):
        return -abs(response - info)

    task = Task(double, [(5, 10), (7, 14)], guide, optimizer, limit=60, failed_score=-50)
    found = how(task)
    assert found.best.mean == 0 and double(21).data == 42


def test_a_program_that_fails_from_the_start_says_why_in_the_prompt():
    @bundle(trainable=True)
    def double(x):
        "Twice as much."
        return x / 0

    good = json.dumps({"suggestion": {"double_code": "def double(x):\n    return x * 2"}})
    script = Script([("ZeroDivisionError", good)])
    task = Task(double, [(5, 10)], lambda q, r, i: r == i, OptoPrime(double, llm=script), limit=20)
    assert beam(task).best.mean == 1.0


@pytest.mark.parametrize("how", SEARCHES)
def test_a_guide_that_gives_words_only_is_refused(how):
    model = Choice()
    with pytest.raises(ValueError, match="a search compares scores, and the guide gave words only"):
        how(Task(model, [(1, 1)] * 4, lambda *_: "better", Wanderer(model)))


@pytest.mark.parametrize(("size", "limit"), [(0, 10), (6, 11)])
def test_a_task_too_small_to_measure_anything_is_refused(size, limit):
    guide = Landscape(0, size)
    with pytest.raises(ValueError, match=f"{size} examples do not go twice into limit={limit}"):
        Task(Choice(), guide.dataset, guide, None, limit)
    if size:
        assert spied(beam, 0, limit=limit + 1)[1].runs <= limit + 1


@pytest.mark.parametrize("how", SEARCHES)
def test_an_optimizer_that_knows_of_no_several_gives_one(how):
    class Single(Wanderer):
        def propose(self, n=None):
            return self.one()

    found, _, _, guide = spied(how, 1, optimizer=lambda model: Single(model, 1))
    assert found.best.mean >= guide.mean(0)


def test_other_optimizers_and_workers():
    model, guide = Choice(), Landscape(5)
    optimizer = OPRO(model, llm=StubLLM())
    found = beam(Task(model, guide.dataset, guide, optimizer, limit=200, workers=3))
    assert found.best.mean >= guide.mean(0)


# ---- Beam


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_the_beam_keeps_its_width_and_the_best_of_all_that_was_measured(width, seeds):
    for seed in seeds:
        found, task, _, guide = spied(beam, seed, limit=400, width=width)
        assert 1 <= len(found.kept) <= width
        assert len(found.kept) == min(width, len(found.tried))
        order = sorted(enumerate(found.tried), key=lambda pair: (pair[1].mean, pair[0]))
        assert found.kept == [each for _, each in reversed(order)][:width]
        measured = [note[1] for note in task.notes if note[0] == "measured"]
        assert Counter(measured) == Counter(number(each) for each in found.tried)
        best = max(guide.mean(each) for each in measured)
        assert found.best.mean == pytest.approx(best)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_in_each_round_the_whole_beam_has_children(width, seeds):
    for seed in seeds:
        _, task, _, guide = spied(beam, seed, limit=300, width=width)
        seen, parents = [0], []
        for kind, value, *_ in task.notes[1:]:
            if kind == "measured" and parents:  # a round ended: these were the best of that moment
                order = sorted(enumerate(seen), key=lambda pair: (guide.mean(pair[1]), pair[0]))
                assert parents == [each for _, each in reversed(order)][:width]
                parents = []
            if kind == "measured":
                seen.append(value)
            else:
                parents = [*parents, value][-width:]


def test_a_beam_of_one_without_limit_is_a_hill_climber():
    class Up(Wanderer):
        def one(self):
            return Proposal({self.parameters[0]: self.parameters[0].data + 1})

    model = Choice()
    task = Task(model, [(0, 9)], lambda q, r, i: -abs(r - i), Up(model), limit=60)
    assert beam(task, width=1, candidates=1, batch_size=1).best.mean == 0 and model.number.data == 9


# ---- UCB


def test_the_bound_is_that_of_ucb1():
    arm = Candidate({}, (1, 0, 1, 1))
    assert upper(arm, 20, 1) == pytest.approx(0.75 + math.sqrt(2 * math.log(20) / 4))
    assert upper(arm, 20, 0) == 0.75 and upper(arm, 20, -1) < 0.75
    assert upper(Candidate({}), 20, 1) == math.inf


def test_the_bound_alone_finds_the_best_of_noisy_arms():
    """Each arm is pulled once first, and the best of five nearly always the most often."""
    hits = 0
    for seed in range(60):
        rng = random.Random(seed)
        chances = rng.sample([0.1, 0.3, 0.4, 0.5, 0.8], 5)
        arms = [Candidate({"arm": n}) for n in range(5)]
        for pull in range(1, 601):
            place = max(range(5), key=lambda n: upper(arms[n], pull, 0.5))
            assert pull > 5 or not arms[place].scores
            reward = float(rng.random() < chances[place])
            arms[place] = arms[place]._replace(scores=(*arms[place].scores, reward))
        hits += max(range(5), key=lambda n: len(arms[n].scores)) == chances.index(0.8)
    assert hits >= 56


def test_ucb_pulls_every_arm_once_before_any_again(seeds):
    for seed in seeds:
        _, task, _, _ = spied(ucb, seed, arms=99, candidates=3, batch_size=2, limit=300)
        waiting, pulled = {0}, set()
        for kind, value, _, born in task.notes:
            if kind == "visited":
                waiting.remove(value)  # an error if it was pulled before
                pulled.add(value)
            elif kind == "asked":
                assert not waiting and value in pulled
                waiting |= {*born} - pulled
        assert len(pulled) > 5


def test_ucb_drops_arms_beyond_its_number(seeds):
    for seed in seeds:
        found, task, _, _ = spied(ucb, seed, arms=4, candidates=2)
        assert len(found.kept) <= 4
        assert len({note[1] for note in task.notes}) > 4


def test_ucb_finds_the_best_of_given_arms_against_brute_force():
    """Eight arms, each with its own chance of a right answer on each of fifty examples."""
    hits = 0
    for seed in range(20):
        rng = random.Random(seed)
        chances = rng.sample([0.1, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.8], 8)
        table = [[float(rng.random() < chance) for _ in range(50)] for chance in chances]
        model = Choice()
        task = Task(
            model, [(n, None) for n in range(50)], lambda q, r, i, t=table: t[r][q],
            Listed(model, 8), limit=800, seed=seed,
        )  # fmt: skip
        found = ucb(task, arms=8)
        best = max(range(8), key=lambda n: sum(table[n]))
        hits += model.number.data == best
        assert found.best.scores == tuple(table[model.number.data])
        assert len({number(each) for each in found.kept}) == 8
    assert hits >= 18


def test_ucb_measures_few_on_everything():
    found, task, _, _ = spied(ucb, 2, size=10, limit=300)
    whole = [note for note in task.notes if note[0] == "measured"]
    assert len(whole) == len(found.tried) <= 2
    assert number(found.tried[0]) == 0


# ---- Pareto


def test_the_front_against_brute_force():
    for seed in range(200):
        rng = random.Random(seed)
        scores = [tuple(rng.randrange(3) for _ in range(4)) for _ in range(rng.randrange(1, 9))]
        candidates = [Candidate({"n": n}, row) for n, row in enumerate(scores)]
        found = front(candidates)
        beaten = [
            each
            for each in candidates
            if any(
                min(map(float.__sub__, map(float, o.scores), map(float, each.scores))) >= 0
                and o.scores != each.scores
                for o in candidates
            )
        ]
        assert found == [each for each in candidates if each not in beaten]
        for column in range(4):  # nobody is better at anything than the best of the front
            top = max(row[column] for row in scores)
            assert max(each.scores[column] for each in found) == top
        best = max(candidates, key=lambda each: each.mean)
        assert max(each.mean for each in found) == best.mean


def test_wins_against_brute_force():
    for seed in range(100):
        rng = random.Random(seed)
        rows = [tuple(rng.randrange(3) for _ in range(5)) for _ in range(4)]
        counted = [0] * 4
        for column in range(5):
            for place, row in enumerate(rows):
                counted[place] += all(row[column] >= other[column] for other in rows)
        assert wins([Candidate({}, row) for row in rows]) == counted and sum(counted) >= 5


def test_the_pareto_search_goes_on_from_winners_of_its_front_only(seeds):
    for seed in seeds:
        found, task, _, guide = spied(pareto, seed, limit=300)
        assert found.kept == front(found.tried)
        assert not any(search.dominates(a, b) for a in found.kept for b in found.kept)
        known = []
        for kind, value, _, _ in task.notes:
            if kind == "measured":
                scores = tuple(guide.score(value, query) for query, _ in guide.dataset)
                known.append(Candidate({"number": value}, scores))
            elif kind == "asked":
                kept = front(known)
                chosen = [n for n, each in enumerate(kept) if number(each) == value]
                assert chosen and wins(kept)[chosen[0]] > 0


def test_a_child_is_measured_only_if_it_does_better_on_the_batch(seeds):
    measured = skipped = 0
    for seed in seeds:
        notes = spied(pareto, seed, limit=300, batch_size=3)[1].notes
        for before, now, after in zip(notes, notes[1:], [*notes[2:], ("end",)], strict=False):
            if now[0] == "visited":
                assert before[0] == "asked" and before[3] == [now[1]]
                assert (after[0] == "measured") == (now[2] > before[2])
                measured, skipped = (
                    measured + (after[0] == "measured"),
                    skipped + (after[0] != "measured"),
                )
    assert measured > len(seeds) / 2 and skipped > len(seeds) / 2


def test_who_alone_solves_an_example_lives():
    """A step that is worse on the whole, and the only way: the front keeps it, a climber does not."""

    def guide(query, response, info):
        return info[response]

    dataset = [(0, (1, 0, 1)), (1, (1, 0, 1)), (2, (0, 1, 1))]  # 0 solves two, 1 one, 2 all

    class Step(Wanderer):
        def one(self):
            [number] = self.parameters
            return Proposal({number: min(2, number.data + 1)})

    for seed in range(20):
        model = Choice()
        found = pareto(Task(model, dataset, guide, Step(model), limit=100, seed=seed), batch_size=1)
        assert model.number.data == 2 and found.best.mean == 1
    model = Choice()
    run = train(model, dataset, guide, Step(model), batch_size=3, epochs=16)
    assert model.number.data == 0 and run.score == pytest.approx(2 / 3)


# ---- The task of the chapter


def test_evaluate_agrees_with_what_a_task_measures():
    model, guide = Choice(), Landscape(1)
    task = Task(model, guide.dataset, guide, Wanderer(model))
    measured = task.measured({model.number: 5})
    assert model.number.data == 0
    model.number.set(5)
    assert evaluate(model, guide.dataset, guide).scores == [*measured.scores]


def test_children_are_whole_values():
    class Two(Module):
        def __init__(self):
            self.a = node(1, name="a", trainable=True)
            self.b = node(2, name="b", trainable=True)

        def forward(self, x):
            return self.a + self.b

    class Half(Wanderer):
        def one(self):
            return Proposal({self.parameters[0]: 9})

    model = Two()
    task = Task(model, [(1, 1)], lambda *_: (0.5, "so so"), Half(model))
    scores, [child] = task.visit({model.a: 3, model.b: 4}, [(1, 1)], 1)
    assert scores == (0.5,) and child == {model.a: 9, model.b: 4}
    assert (model.a.data, model.b.data) == (1, 2)
    [attempt] = task.optimizer.history
    assert attempt.values == {"a0": 3, "b0": 4} and attempt.feedback == ["so so"]
