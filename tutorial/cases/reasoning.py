"""Small questions with known answers, in the style of BIG-Bench Hard (arXiv:2210.09261).

There are three kinds: counting things, evaluating boolean expressions, and sorting words. The same seed
makes the same questions with every version of Python; another seed makes others.

    python3 tutorial/cases/reasoning.py 6
"""

import argparse
import random

THINGS = {
    "fruits": str.split("apple banana grape nectarine orange peach plum strawberry"),
    "vegetables": str.split("cabbage carrot garlic lettuce onion potato pumpkin yam"),
    "animals": str.split("cat chicken cow duck frog goat mouse snail"),
    "musical instruments": str.split("accordion clarinet drum flute piano trombone trumpet violin"),
    "pieces of furniture": str.split("armchair bed chair desk shelf sofa stool table"),
}
PLURALS = {"mouse": "mice", "shelf": "shelves", "strawberry": "strawberries"}
PLURALS |= {"peach": "peaches", "potato": "potatoes", "garlic": "heads of garlic"}
NUMBERS = ["two", "three", "four"]
WORDS = str.split("""almost barley battery between birch bramble branch bright bucket butter candle
    cannot carpet carve castle chalk circle cobalt copper cotton dagger damage danger divide dragon
    elbow ember engine evening fabric feather fiddle forest garden gather glider hammer harbor
    hollow island jacket kernel kettle ladder lantern marble meadow needle orchard paddle pepper
    quarry ribbon saddle shadow silver tanner temple thread timber tunnel valley velvet walnut
    whistle window winter yellow zipper""")


def pick(dice, items, count):
    """So many of the items, in a random order; by `random()` alone, which no version changes."""
    left = list(items)
    return [left.pop(int(dice.random() * len(left))) for _ in range(count)]


def counting(dice):
    """How many things of one kind are there? The answer is a number, as text."""
    kind, *others = pick(dice, THINGS, 3)
    wanted = pick(dice, THINGS[kind], 4)
    rest = [item for other in others for item in pick(dice, THINGS[other], 2)]
    amounts = {item: 1 + int(dice.random() * 4) for item in pick(dice, wanted + rest, 8)}
    *most, last = [several(amount, item) for item, amount in amounts.items()]
    question = f"I have {', '.join(most)}, and {last}. How many {kind} do I have?"
    return question, str(sum(amounts[item] for item in wanted))


def several(amount, item):
    """So many of a thing, in words: `an apple`, `three mice`."""
    if amount > 1:
        return f"{NUMBERS[amount - 2]} {PLURALS.get(item, item + 's')}"
    item = "head of garlic" if item == "garlic" else item
    return f"{'an' if item[0] in 'aeiou' else 'a'} {item}"


def boolean(dice):
    """What is the value of an expression of True and False? The answer is one of the two words."""
    text, value = expression(dice, 4)
    return f"{text} is", str(value)


def expression(dice, depth):
    """An expression as text, and its value."""
    if depth <= 0:
        value = dice.random() < 0.5
        return str(value), value
    (form,) = pick(dice, ["not", "and", "or"], 1)
    left, a = expression(dice, depth - 1)
    if form == "not":
        return f"not ( {left} )", not a
    right, b = expression(dice, depth - 2)
    return f"( {left} ) {form} ( {right} )", (a and b) if form == "and" else (a or b)


def sorting(dice):
    """Which order is alphabetical? The answer is the words with a space between them."""
    words = pick(dice, WORDS, 10)
    return f"Sort the following words alphabetically: {' '.join(words)}", " ".join(sorted(words))


KINDS = [counting, boolean, sorting]


def questions(count, seed=0):
    """So many questions of the three kinds in turn, each with its answer: a list of pairs of texts."""
    dice = random.Random(f"reasoning {seed}")
    return [KINDS[number % len(KINDS)](dice) for number in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for question, answer in questions(arguments.count, arguments.seed):
        print(f"{question}\n    {answer}")


if __name__ == "__main__":
    main()
