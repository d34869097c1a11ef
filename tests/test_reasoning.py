"""The tutorial's reasoning questions: the same on every Python, and each with the right answer."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tutorial" / "cases"))
import reasoning

MANY = [pair for seed in range(40) for pair in reasoning.questions(15, seed)]
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}


def of_kind(start):
    return [(question, answer) for question, answer in MANY if re.match(start, question)]


def test_a_seed_gives_the_same_questions_everywhere():
    assert reasoning.questions(3, seed=1) == [
        (
            "I have three desks, a carrot, four yams, a lettuce, a potato, three chairs, "
            "two snails, and three ducks. How many vegetables do I have?",
            "7",
        ),
        ("not ( ( not ( not ( False ) ) ) or ( not ( False ) ) ) is", "False"),
        (
            "Sort the following words alphabetically: birch cannot kettle saddle "
            "ribbon winter bramble thread damage hollow",
            "birch bramble cannot damage hollow kettle ribbon saddle thread winter",
        ),
    ]
    assert reasoning.questions(9, seed=2)[:4] == reasoning.questions(4, seed=2)
    assert reasoning.questions(3, seed=1) != reasoning.questions(3, seed=2)


def test_the_three_kinds_come_in_turn():
    starts = [question.split()[0] for question, _ in reasoning.questions(9)]
    assert starts[0::3] == ["I"] * 3 and starts[2::3] == ["Sort"] * 3
    assert sum(map(len, map(of_kind, ("I have", r"[(nTF]", "Sort")))) == len(MANY) == 600


def test_things_are_counted_right():
    kind_of = {item: kind for kind, items in reasoning.THINGS.items() for item in items}
    kind_of |= {reasoning.PLURALS.get(item, item + "s"): kind for item, kind in kind_of.items()}
    kind_of["head of garlic"] = "vegetables"
    for question, answer in of_kind("I have"):
        listed, asked = re.fullmatch(r"I have (.*)\. How many (.*) do I have\?", question).groups()
        amounts = [item.split(" ", 1) for item in listed.replace(", and ", ", ").split(", ")]
        right = sum(NUMBERS[n] for n, item in amounts if kind_of[item] == asked)
        assert len(amounts) == 8 and answer == str(right)


def test_each_thing_is_of_one_kind():
    items = [item for items in reasoning.THINGS.values() for item in items]
    assert len(items) == len(set(items)) == 40


def test_expressions_have_the_value_that_python_gives_them():
    answers = {answer for _, answer in of_kind(r"[(nTF]")}
    assert answers == {"True", "False"}
    for question, answer in of_kind(r"[(nTF]"):
        assert str(eval(question.removesuffix(" is"))) == answer


def test_words_are_sorted_and_none_comes_twice():
    for question, answer in of_kind("Sort"):
        words = question.partition(": ")[2].split()
        assert answer.split() == sorted(words) and len(set(words)) == 10


@pytest.mark.parametrize("amount, item, words", [
    (1, "apple", "an apple"), (2, "mouse", "two mice"), (3, "garlic", "three heads of garlic"),
    (1, "garlic", "a head of garlic"), (4, "yam", "four yams"),
])  # fmt: skip
def test_amounts_in_words(amount, item, words):
    assert reasoning.several(amount, item) == words


def test_the_program_prints_questions_with_their_answers():
    command = [sys.executable, "tutorial/cases/reasoning.py", "4", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    expected = [line for q, a in reasoning.questions(4, seed=1) for line in (q, "    " + a)]
    assert done.stdout.splitlines() == expected
