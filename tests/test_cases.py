"""The programs of the case studies in numbers: puzzles, battleship, traffic, moons, and the plot."""

import doctest
import json
import math
import random
import re
import statistics
import sys
import xml.dom.minidom
from collections import Counter

import pytest
from conftest import ROOT
from minitrace_record import Replay

from minitrace import OPRO, ExceptionNode, Script, StubLLM, backward, bundle, to_data

sys.path.insert(0, str(ROOT / "tutorial" / "cases"))
import battleship
import moons
import plot
import puzzles
import traffic

CASES = ROOT / "tutorial" / "cases"
CASSETTES = [CASES / "cassettes" / f"case_{number}.jsonl" for number in (4, 5, 7)]


@pytest.fixture
def counted(monkeypatch):
    """How many answers are taken from cassettes."""
    calls = []
    ask = Replay.complete
    monkeypatch.setattr(Replay, "complete", lambda *a: calls.append(a) or ask(*a))
    return calls


@pytest.mark.parametrize("path", CASSETTES, ids=lambda path: path.stem)
def test_a_cassette_is_a_record_of_calls_and_tells_nothing_of_the_machine(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        assert json.loads(line)["reply"]
        assert not re.search(r"/(tmp|home|root|work|Users)/|0x[0-9a-f]{6}", line)


# ---- puzzles


def shape(puzzle):
    return [x.data for x in puzzle.numbers], puzzle.target, puzzle.steps, puzzle.constant


def test_a_seed_makes_the_same_puzzle_every_time():
    assert all(shape(puzzles.Puzzle(seed)) == shape(puzzles.Puzzle(seed)) for seed in range(20))
    assert len({str(shape(puzzles.Puzzle(seed))) for seed in range(20)}) == 20
    puzzle = puzzles.Puzzle(1)
    assert (shape(puzzle)[0], puzzle.target, puzzle.run().data) == ([-3.0, 4.5, -4.0], -0.5, 76.5)


@pytest.mark.parametrize("seed", range(30))
def test_a_puzzle_uses_every_value_once_and_starts_far_from_its_target(seed):
    puzzle = puzzles.Puzzle(seed)
    used = [place for _, x, y in puzzle.steps for place in (x, y)]
    assert sorted(used) == list(range(18)) and len(puzzle.steps) == 9
    output = puzzle.run()
    assert abs(puzzle.gap(output)) >= 10 and max(abs(output.data), abs(puzzle.target)) <= 100
    assert [x.py_name for x in puzzle.numbers] == ["a0", "b0", "c0"]


def test_what_is_said_of_an_output():
    puzzle = puzzles.Puzzle(1)
    assert puzzles.in_words(puzzle, 76.5) == "too high by 77"
    assert puzzles.in_words(puzzle, -1.25) == "too low by 0.75"
    assert puzzles.in_words(puzzle, puzzle.target) == "right"
    assert puzzles.as_slope(puzzle, 76.5) == 1.0 and puzzles.as_slope(puzzle, -9) == -1.0


MOVES = 1e-6, 0, -1e-6


def test_derivatives_agree_with_moving_the_numbers_a_little():
    compared = 0
    for puzzle in map(puzzles.Puzzle, range(60)):
        output = puzzle.run()
        found = backward(output, 1.0, puzzles.derivatives())
        for number in puzzle.numbers:
            values = [[x.data + move * (x is number) for x in puzzle.numbers] for move in MOVES]
            up, here, down = (to_data(puzzle.compute(each)) for each in values)
            if math.isclose(up - here, here - down, rel_tol=1e-3, abs_tol=1e-9):  # else a corner
                compared += 1
                assert math.isclose(found[number], (up - down) / 2e-6, abs_tol=1e-3)
    assert compared > 150


def left_after_four_steps(make, say):
    """What is left of the distance, as a median over puzzles that are not in the study."""
    last = []
    for puzzle in map(puzzles.Puzzle, range(100, 140)):
        run = puzzles.errors(puzzle, make(puzzle.numbers), say)
        assert run[0] == 1 and len(run) == 5
        assert all(-5 <= number.data <= 5 for number in puzzle.numbers)
        last.append(run[-1])
    return statistics.median(last)


def test_the_rate_of_adam_is_the_best_of_four():
    left = {
        rate: left_after_four_steps(lambda n, rate=rate: puzzles.Adam(n, rate), puzzles.as_slope)
        for rate in (0.1, 0.3, 1.0, 3.0)
    }
    assert min(left, key=left.get) == 1.0 and left[1.0] < 0.5


def test_newton_uses_the_distance_and_comes_nearer():
    assert left_after_four_steps(puzzles.Newton, puzzles.Puzzle.gap) < 0.01


def test_in_puzzles_3_and_4_the_old_methods_stay_stuck_for_a_hundred_steps():
    for runs in puzzles.old_methods(seeds=(3, 4), steps=100).values():
        assert [puzzles.solved_after(run) for run in runs.values()] == [101, 101]


def test_a_solved_puzzle_asks_no_more():
    puzzle, script = puzzles.Puzzle(1), Script(['{"suggestion": {"b0": -0.5, "c0": 0.0}}'])
    run = puzzles.optimize(puzzle, "graph", script)
    assert run == [1, 0, 0, 0, 0] and len(script.asked) == 1


def test_without_the_graph_optoprime_asks_what_opro_asks():
    puzzle = puzzles.Puzzle(2)
    blind, opro = puzzles.Blind(puzzle.numbers), OPRO(puzzle.numbers)
    output = puzzle.run()
    blind.backward(output, puzzles.in_words(puzzle, output))
    assert blind.prompt() == opro.prompt()
    assert "subtract1 = " not in blind.prompt()[1]["content"]


def test_the_study_of_numbers_is_on_its_cassette_and_its_picture_is_up_to_date(offline, counted):
    found = puzzles.study()
    assert set(found) == set(puzzles.WAYS) and set(found["graph"]) == set(puzzles.SEEDS)
    assert found == puzzles.study()
    asked = Counter((id(tape), str(messages)) for tape, messages, _ in counted)
    most = Counter()  # a prompt that a run asks twice has two records, which other runs share
    for (_, text), times in asked.items():
        most[text] = max(most[text], times)
    assert most.total() == len(CASSETTES[0].read_text(encoding="utf-8").splitlines())
    made = puzzles.picture({**found, **puzzles.old_methods()})
    assert made == puzzles.PICTURE.read_text(encoding="utf-8"), (
        "run python3 tutorial/cases/puzzles.py"
    )


# ---- plot

PANELS = {"A & B": {"one": [1, 0.1, 0], "two": [1, 50, 0.5]}, "C": {"one": [1], "two": [0.3, 1]}}


def test_a_chart_is_the_same_text_every_time_and_well_formed():
    svg = plot.chart(PANELS, "T < U", "step", "error", {0.01: "1 %", 1: "all"})
    assert svg == plot.chart(PANELS, "T < U", "step", "error", {0.01: "1 %", 1: "all"})
    tree = xml.dom.minidom.parseString(svg)
    texts = [t.firstChild.data for t in tree.getElementsByTagName("text")]
    assert {"T < U", "A & B", "C", "one", "two", "step", "error", "1 %", "all"} <= set(texts)
    assert "prefers-color-scheme: dark" in svg and "href" not in svg
    assert re.findall(r"https?://\S+?[\"']", svg) == ['http://www.w3.org/2000/svg"']


def test_the_example_in_the_plot_s_docstring_runs():
    assert doctest.testmod(plot) == (0, 4)


def test_what_lies_beyond_a_chart_s_scale_is_drawn_at_its_end():
    svg = plot.chart({"": {"one": [1, 0, 1e9]}}, "T", "x", "y", {0.01: "low", 1: "high"})
    *_, path = re.findall(r'class="line" d="M([^"]+)"', svg)
    assert [float(point.split()[1]) for point in path.split("L")] == [0.0, plot.HEIGHT, 0.0]


def test_panels_stand_three_in_a_row():
    panels = {str(number): {"one": [1]} for number in range(4)}
    svg = plot.chart(panels, "T", "x", "y", {0.1: "low", 1: "high"})
    places = re.findall(r'^<g transform="translate\((\d+) (\d+)\)">$', svg, re.M)
    across, down = zip(*places, strict=True)
    assert len(set(across)) == 3 and down[:3] == (down[0],) * 3 != down[3:]


def test_a_plane_shades_the_side_where_the_score_is_above_zero():
    points = [((0.5, 0.5), 1), ((-0.5, 0.5), -1), ((0.5, -0.5), -1)]
    corners, scores = ((-1, -1), (1, 1)), {"A & B": lambda place: place[0], "C": lambda place: -1}
    svg = plot.plane(scores, points, "T < U", corners)
    assert svg == plot.plane(scores, points, "T < U", corners)
    tree = xml.dom.minidom.parseString(svg)
    texts = [t.firstChild.data for t in tree.getElementsByTagName("text") if t.firstChild]
    assert {"T < U", "A & B", "C"} <= set(texts) and svg.count("<circle") == 2
    right, nothing = re.findall(r'fill-opacity="0.22" d="([^"]*)"', svg)
    middle, end = f"{plot.WIDTH / 2:.1f}", f"{plot.WIDTH:.1f}"
    assert set(re.findall(r"M([\d.]+) \d+H([\d.]+)", right)) == {(middle, end)} and nothing == ""
    assert right.count("M") == plot.HEIGHT / 2


# ---- moons


def test_a_seed_makes_the_same_moons_every_time():
    points = moons.two_moons(60, seed=3)
    assert points == moons.two_moons(60, seed=3) != moons.two_moons(60, seed=4)
    assert [label for _, label in points] == [1, -1] * 30
    assert all(round(each, 3) == each for place, _ in points for each in place)


@pytest.mark.parametrize("kind", [moons.Network, moons.Curve])
def test_a_model_on_plain_numbers_gives_what_it_gives_on_nodes(kind):
    model = kind()
    model.parameters()[0].set(0.5)
    score = moons.plain(model)
    for place, _ in moons.two_moons(10):
        assert type(score(place)) is float and score(place) == model(place).data


@pytest.mark.parametrize("kind", [moons.Network, moons.Curve])
def test_slopes_of_the_loss_agree_with_moving_the_parameters_a_little(kind):
    model, points, dice = kind(), moons.two_moons(6), random.Random(1)
    found = backward(moons.margin_loss(model, points), 1.0, moons.derivatives())
    for parameter in dice.sample(model.parameters(), min(12, len(model.parameters()))):
        up, here, down = (
            loss_with(model, points, parameter, parameter.data + move) for move in MOVES
        )
        if math.isclose(up - here, here - down, rel_tol=1e-3, abs_tol=1e-9):  # else a corner
            assert math.isclose(found[parameter], (up - down) / 2e-6, abs_tol=1e-4)


def loss_with(model, points, parameter, value):
    before = parameter.data
    parameter.set(value)
    loss = moons.margin_loss(model, points).data
    parameter.set(before)
    return loss


@pytest.mark.slow
def test_the_loss_agrees_with_micrograd_step_after_step():
    theirs = pytest.importorskip("micrograd.nn", reason="micrograd is not installed")
    points, steps, seed = moons.two_moons(16), 8, 5
    losses = moons.by_numbers(moons.Network(seed), points, steps)
    random.seed(seed)  # from which micrograd draws its weights
    network, found = theirs.MLP(2, [16, 16, 1]), []
    for step in range(steps + 1):
        missing = [(1 + -label * network(place)).relu() for place, label in points]
        squares = sum(parameter * parameter for parameter in network.parameters())
        loss = sum(missing) * (1.0 / len(missing)) + 1e-4 * squares
        network.zero_grad()
        loss.backward()
        for parameter in network.parameters():
            parameter.data -= (1.0 - 0.9 * step / steps) * parameter.grad
        found.append(loss.data)
    assert losses == pytest.approx(found, rel=4e-15, abs=0)
    assert losses[-1] < losses[0] / 2


def test_words_keep_the_best_curve_of_all():
    curve, points = moons.Curve(), moons.two_moons(100)
    before = moons.astray(curve, points)
    losses = moons.by_words(curve, points, steps=20)
    assert len(losses) == 21 and moons.astray(curve, points) < before / 5


@pytest.mark.slow
def test_the_study_of_moons_prints_what_its_page_says_and_draws_its_pictures(
    tmp_path, monkeypatch, capsys
):
    pictures = moons.PICTURE, moons.LOSSES
    for name, path in zip(("PICTURE", "LOSSES"), pictures, strict=True):
        monkeypatch.setattr(moons, name, tmp_path / path.name)
    moons.main()
    page = (CASES / "case_8_moons.md").read_text(encoding="utf-8")
    told = re.search(r"(?m)^It prints\n\n((?:    .*\n)+)", page)[1]
    assert capsys.readouterr().out == told.replace("    a ", "a ")
    for path in pictures:
        assert (tmp_path / path.name).read_text(encoding="utf-8") == path.read_text(
            encoding="utf-8"
        ), "run python3 tutorial/cases/moons.py"


# ---- battleship


def test_the_layouts_are_all_pairs_of_ships_that_do_not_overlap():
    assert len(battleship.LAYOUTS) == 1296 and {len(ships) for ships in battleship.LAYOUTS} == {7}
    assert len([*battleship.placements(4)]) == 36 and len([*battleship.placements(3)]) == 48
    assert all(battleship.Board(s).ships == battleship.Board(s).ships for s in range(20))
    assert len({battleship.Board(s).ships for s in range(40)}) > 30


def test_a_shot_shows_what_is_there_and_nothing_else():
    board, before = battleship.Board(3), list(battleship.OPEN)
    for cell in battleship.CELLS:
        view = board.fire(before, cell).data
        assert battleship.seen(view, "x" if cell in board.ships else "o") == {cell}
        assert len(battleship.seen(view, ".")) == 35 and before == battleship.OPEN
    with pytest.raises(Exception, match=r"\(9, 9\) is no cell that is still '\.'"):
        board.fire(before, (9, 9))


@pytest.mark.parametrize("seed", range(10))
def test_every_game_ends_with_all_ships_hit(seed):
    for player in battleship.random_player(seed), battleship.enumerating_player:
        view, shots = battleship.play(player, seed)
        assert battleship.seen(view.data, "x") == battleship.Board(seed).ships
        assert shots == 36 - len(battleship.seen(view.data, ".")) >= 7


def test_a_player_that_fails_has_lost():
    again = bundle()(lambda view: (0, 0))
    last, shots = battleship.play(again, 0)
    assert isinstance(last, ExceptionNode) and shots == 36
    words = battleship.in_words([(None, 20), (last, 36)])
    assert "20, 36" in words and "a failure, which counts as 36: (ValueError) (0, 0)" in words


def test_enumerating_is_better_than_chance_and_than_the_start():
    boards = range(200, 220)
    few = statistics.mean(battleship.shots_on(battleship.enumerating_player, boards))
    chance = statistics.mean(battleship.shots_on(battleship.random_player(1), boards))
    start = statistics.mean(battleship.shots_on(battleship.Captain(), boards))
    assert few < 16 < 24 < min(start, chance)


def test_training_a_captain_keeps_the_best_code():
    worse = json.dumps({"suggestion": {"choose_code": "def choose(view, plan):\n    return (7, 7)"}})
    captain, code = battleship.Captain(), battleship.choose
    means = battleship.train(captain, Script([worse]), steps=1)
    assert means[0] < means[1] == 36
    assert captain.choose.parameter.data.startswith("def choose") and code(None, [1]) == 1
    assert "min(plan)" in captain.choose.parameter.data


def test_the_study_of_battleship_is_on_its_cassette(offline, counted):
    battleship.train(battleship.Captain(), Replay(CASSETTES[1]))
    assert len(counted) == len(CASSETTES[1].read_text(encoding="utf-8").splitlines())


# ---- traffic


def one_by_one(road, morning, start, green, cycle):
    """The same road, car by car: each leaves at the first chance after the one before it."""
    chances = [
        t for t in range(1800) if (t - start) % cycle < green and (t - start) % cycle % 2 == 0
    ]
    waited, free = 0, 0
    for second, comes in enumerate(traffic.arrivals(road, morning)):
        if comes:
            while free < len(chances) and chances[free] < second:
                free += 1
            leaves = chances[free] if free < len(chances) else 1800
            waited, free = waited + leaves - second, free + 1
    return waited


@pytest.mark.parametrize("start", [0, 7, 59, 200])
def test_a_queue_is_what_its_cars_wait_one_by_one(start):
    for road, green, cycle in (
        ("north", 20, 60),
        ("east", 31, 63),
        ("east", 6, 70),
        ("north", 6, 20),
    ):
        found = traffic.queue(road, 2, start, green, cycle).data
        assert found["waited"] == one_by_one(road, 2, start, green, cycle)
        assert found["cars"] == sum(traffic.arrivals(road, 2)) >= found["left over"] >= 0


def test_a_morning_comes_from_its_number():
    traffic.arrivals.cache_clear()
    before = traffic.arrivals("east", 5)
    traffic.arrivals.cache_clear()
    assert before == traffic.arrivals("east", 5) != traffic.arrivals("east", 6)
    assert 250 < sum(traffic.arrivals("north", 5)) < 330 < sum(before) < 420


def test_a_light_repeats_after_a_cycle():
    assert traffic.wait((22, 30, 0)) == traffic.wait((22, 30, 0))
    one, same = (traffic.queue("east", 0, start, 30, 60).data for start in (5, 65))
    assert one == same


def test_a_grid_search_finds_the_best_of_its_plans():
    plan, tried = traffic.grid_search((20, 30), (0, 30), morning=1)
    others = [(n, e, o) for n in (20, 30) for e in (20, 30) for o in (0, 30)]
    assert tried == 8 and traffic.wait(plan, 1) == min(traffic.wait(p, 1) for p in others)


def test_training_a_crossing_keeps_the_best_plan_and_its_bounds():
    crossing = traffic.Crossing(20, 20, 30)
    waits = traffic.train(crossing, StubLLM(), 10)
    assert traffic.wait(crossing.plan()) == min(waits) < waits[0] and len(waits) == 11
    assert all(6 <= green <= 60 for green in crossing.plan()[:2])
    with pytest.raises(ValueError, match="between 6 and 60"):
        traffic.Crossing(5, 20, 0)


def test_the_words_point_no_way():
    """A stub must climb the score: no word may tell it up or down for all numbers alike."""
    output = traffic.Crossing()(0)
    words = traffic.in_words(output)
    assert re.fullmatch(
        r"A car waits [\d.]+ s on average: .* s from the east, .* from the north\.", words
    )


def test_the_study_of_traffic_is_on_its_cassette(offline, counted):
    found = traffic.study(lambda number: Replay(traffic.CASSETTE))
    assert [*found] == [*traffic.STARTS]
    asked = {str(messages) for _, messages, _ in counted}
    assert len(asked) == len(CASSETTES[2].read_text(encoding="utf-8").splitlines())
