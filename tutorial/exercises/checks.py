"""Grades the exercises: `python3 tutorial check 6`.

`EXERCISES` has a text for each exercise. It begins with Python code that prepares the calls. Then
come the calls themselves: `call:` is what is called, and `want:` is what it should return, either
as an expression or, after a `test:` of the result (`it`), in words. Hints follow,
`hint: SIGN -> WORDS` or just `hint: WORDS`, where a sign is an expression about `it` (the
exception, if one was raised). The verdict shows the first call that goes wrong, with the first hint
whose sign holds.

Each file is graded in a process of its own, so that one that never ends, or that ends Python
itself, gets a verdict like any other.
"""

import contextlib
import importlib.util
import io
import json
import math
import re
import subprocess
import sys
import textwrap
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "companions")]

import minitrace_limits  # noqa: E402
import minitrace_record  # noqa: E402
import minitrace_train  # noqa: E402

import minitrace  # noqa: E402

LIBRARY = minitrace, minitrace_limits, minitrace_record, minitrace_train

SECONDS, MEGABYTES, PRINTED = 10, 2000, 1000
EXERCISES = {}

EXERCISES[1] = """
def shape(value):
    "A graph of Values as nested tuples: the data, then the same of each parent."
    return (value.data, *map(shape, value.parents))
a, b = Value(2), Value(3)

call: Value(2) + Value(3)
test: isinstance(it, Value) and it.data == 5
want: a new Value, its data 5
hint: isinstance(it, int) -> a number remembers nothing: make a Value of it
hint: it is None -> the method has to return the new Value
hint: the data is the sum of the data of both

call: (a + b) is a
want: False
hint: a + b must leave a as it was: make a new Value

call: shape(Value(2) + Value(3))
want: (5, (2,), (3,))
hint: it == (5,) -> it remembers nothing: give the new Value its parents, Value(data, (self, other))
hint: it == (5, (3,), (2,)) -> the parents stand in the order (self, other)
hint: shape() shows the data of a Value, then its parents: they are (self, other), as they were

call: [parent is given for parent, given in zip((a + b).parents, (a, b))]
want: [True, True]
hint: the parents are self and other themselves, not copies of them

call: shape(a), shape(b)
want: ((2,), (3,))
hint: a + b must leave a and b as they were

call: shape(Value(2) + 3)
want: (5, (2,), (3,))
hint: 3 is a plain number: if other is no Value, make one of it first, Value(other)

call: shape(Value(2) * Value(3))
want: (6, (2,), (3,))
hint: it == (5, (2,), (3,)) -> that is the sum
hint: the same as for +, but with the product

call: shape(Value(2) * 3 + 1)
want: (7, (6, (2,), (3,)), (1,))
hint: 3 is a plain number: if other is no Value, make one of it first, Value(other)
"""

EXERCISES[2] = """
numbers = node([2, 4, 9], name="numbers", trainable=True)
name, price = node("tea", name="name", trainable=True), node(3, name="price", trainable=True)
def operators_in(result):
    return sorted({each.op_name for each in TraceGraph.of(result) if each.parents})
def parameters_of(result):
    return sorted(each.py_name for each in TraceGraph.of(result).parameters)

call: mean(numbers)
test: isinstance(it, Node) and it.data == 5
want: a node, its data 5
hint: not isinstance(it, (Node, Exception)) -> a plain value came, so the trace ended: work on the \
node, not on its .data
hint: the mean is the sum divided by the length

call: parameters_of(mean(numbers))
want: ['numbers0']
hint: what was read with .data, or by a plain function such as len(), has no part in the result

call: operators_in(mean(numbers))
test: "len" in it and len(it) > 2
want: 'len' among them, and what makes the sum
hint: "len" not in it -> len(numbers) is a plain int; numbers.len() is the traced form
hint: the sum has to be computed from the node too: sum(numbers), not sum(numbers.data)

call: label(name, price)
test: isinstance(it, Node) and it.data == "tea: 3 euro"
want: a node with the text 'tea: 3 euro'
hint: isinstance(it, str) -> a plain text came: an f-string, str() and str.format read the value. \
operators.format(text, ...) is the traced form
hint: isinstance(it, ExecutionError) -> a text and a number cannot be added: operators.format takes both
hint: the name, a colon and a space, the price, and the word euro

call: parameters_of(label(name, price))
want: ['name0', 'price0']
hint: an f-string, str() or .data read one of them, and the trace ended there
"""

EXERCISES[3] = """
seen = []
def area(width, height=1):
    "The area of a room."
    seen.append((width, height))
    return width * height
width, height = Value(4), Value(5)

call: record(area)(width, height).data
want: 20
hint: isinstance(it, TypeError) -> call function with plain things: the data of each Value
hint: isinstance(it, AttributeError) -> return a Value: only Values have .data
hint: isinstance(it, Value) -> call function with the data of the Values, not with the Values

call: seen[-1]
want: (4, 5)
hint: function is called with plain things only: the data of each Value

call: record(area)(width, height).parents
test: it == (width, height)
want: the two Values that were given, a tuple
hint: it == () -> the parents are forgotten: Value(result, parents, name)
hint: isinstance(it, list) -> a tuple, please: it cannot be changed by accident
hint: the parents are the Values themselves, not their data, in the order of the call

call: record(area)(width, 5).parents
test: it == (width,)
want: only the argument that is a Value
hint: isinstance(it, AttributeError) -> 5 is a plain thing: only a Value has .data
hint: a plain thing is not a parent

call: record(area)(width, height=height).data
want: 20
hint: height was passed by name: kwargs may hold Values too, and function gets their data

call: record(area)(width, height=height).parents
test: it == (width, height)
want: both Values, the one given by name too
hint: look for Values in kwargs.values() as well

call: record(area)(width, height).name
want: 'area'
hint: the third argument of Value is the function's __name__
"""

EXERCISES[4] = """
people = node(0, name="people", trainable=True)
def broken(x):
    raise KeyError("a bug around the steps")

call: attempt(share, node(90), node(3))[0].data
want: 30.0
hint: isinstance(it, TypeError) -> return a pair: the node, and what to say of it
hint: isinstance(it, AttributeError) -> the first of the pair is the node, not its data

call: attempt(share, node(90), node(3))[1]
want: 'fine'

call: attempt(share, node(90), people)[0]
test: isinstance(it, ExceptionNode)
want: the ExceptionNode that stands where the output would be
hint: isinstance(it, ZeroDivisionError) -> catch ExecutionError
hint: it.__class__ is ExecutionError -> catch it: `except ExecutionError as error`, and the node is \
error.exception_node
hint: it is None -> a failure has a node too: error.exception_node
hint: the error carries the node: error.exception_node

call: attempt(share, node(90), people)[1]
test: isinstance(it, str) and "<-- ZeroDivisionError" in it
want: the feedback in full: the message, and the source with the failed line marked
hint: isinstance(it, str) and "ZeroDivisionError" in it -> that is the message alone: \
create_feedback("full") has the source as well
hint: the node says it: error.exception_node.create_feedback("full")

call: attempt(broken, 1)
test: isinstance(it, KeyError)
want: KeyError, which passes through
hint: only ExecutionError is a failure of a step; a wide `except` hides bugs
"""

EXERCISES[5] = """
def parameter(name):
    return node(1, name=name, trainable=True)
def part(**attributes):
    made = Part()
    vars(made).update(attributes)
    return made
a, b, c = parameter("a"), parameter("b"), parameter("c")
owner = part(a=a, me=None, inner=part(b=b))
owner.me = owner.inner.owner = owner
def paths(thing):
    return sorted(collect(thing))

call: paths(part(a=a, b=b))
want: ['a', 'b']
hint: vars(part).items() are the attributes with their names

call: collect(part(a=a)).get("a")
test: it is a
want: the parameter itself
hint: the values of the dict are the parameters themselves

call: paths(part(a=a, fixed=node(2), number=3))
want: ['a']
hint: only a ParameterNode counts: isinstance(thing, ParameterNode)

call: paths(part(words=[a, (b, {"last": c})]))
want: ['words.0', 'words.1.0', 'words.1.1.last']
hint: it == [] -> look into lists, tuples and dicts as well
hint: the path is every name, index and key on the way, with dots between

call: paths(part(inner=part(b=b), a=a))
want: ['a', 'inner.b']
hint: an attribute that is a Part has parameters of its own

call: paths([part(a=a)])
want: ['0.a']
hint: the thing may be a list itself

call: paths(part(first=a, second=a))
want: ['first']
hint: the same parameter twice counts once: remember the id() of what was seen

call: paths(owner)
want: ['a', 'inner.b']
hint: isinstance(it, RecursionError) -> a Part may hold itself: do not enter what was seen before
hint: the same parameter comes once, by the first path
"""

EXERCISES[6] = """
a = node(1, name="a")
b, c = a + 1, a + 2
d = b * c
chain = a
for _ in range(5000):
    chain = chain + 1
def names(nodes):
    return [each.py_name for each in nodes]
def early(nodes):
    "The nodes that come before one of their parents, or without it."
    place = {id(each): n for n, each in enumerate(nodes)}
    return [x.py_name for x in nodes if any(place.get(id(p), 1e9) > place[id(x)] for p in x.parents)]

call: type(topological([a])).__name__
want: 'list'
hint: the order counts, so return a list

call: names(topological([a]))
want: ['a0']
hint: a root has no parents, and is in the list itself

call: sorted(names(topological([b])))
want: ['a0', 'add0', 'int0']
hint: it in (["a0", "add0"], ["add0", "int0"]) -> one is missing: `node in list` and `==` compare \
values, and two of these nodes hold a 1. Tell them apart by id()
hint: its parents are a and the 1, which became a node too

call: len(topological([d]))
want: 6
hint: isinstance(it, int) and it > 6 -> d = (a + 1) * (a + 2) reaches a along two paths: remember the \
id() of what was seen, and add each node once
hint: every node that d was computed from, and d itself

call: early(topological([d]))
want: []
hint: parents come first: a node is ready when all of its parents are in the list. These come too \
early

call: names(topological([b, b, d])).count("add0")
want: 1
hint: an output may be listed twice, or be the parent of another: each node still comes once

call: early(topological([d, b, a]))
want: []
hint: an output may be an ancestor of another one, so its place is not the end

call: len(topological([chain]))
want: 10001
hint: isinstance(it, RecursionError) -> a chain of 5000 steps is too deep for a function that calls \
itself: keep a list of what is to be done, and loop

call: early(topological([ladder(400)]))
want: []
hint: isinstance(it, (TimeoutError, MemoryError)) -> each step of this ladder has two ways down, which\
 makes 2 ** 400 ways: look at a node once, and not once for each way to it
"""

EXERCISES[7] = """
a = node(1, name="a", trainable=True)
b, c = a + 1, a + 2
d = b * c
def blame(output):
    return backward(output, "wrong", Blame())

call: blame(a + node(1))[a]
want: 0.5
hint: isinstance(it, ValueError) -> propagate gives a list with one number for each of node.parents
hint: isinstance(it, ZeroDivisionError) -> a root has no parents: then the list is empty
hint: it == 1.0 -> the blame is split: with two parents, each receives half
hint: divide by the number of parents, len(node.parents)

call: blame(a + a)[a]
want: 1.0
hint: it == 0.5 -> a is both parents, and hears twice: aggregate gets both numbers
hint: what arrives along several paths adds up

call: blame(d)[b]
want: 0.5
hint: d has two parents, b and c

call: blame(d)[a]
want: 0.5
hint: it == 0.25 -> a hears from b and from c: aggregate gets both numbers, and none may be lost
hint: it == 1.0 -> a + 1 has two parents, and the 1 takes its share
hint: a quarter comes through b and a quarter through c, and they add up

call: blame(round(d))[d]
want: 1.0
hint: round(d) has a single parent, which receives it all: divide by the number of parents

call: round(blame(thirds(a, a, a))[a], 6)
want: 1.0
hint: three parents receive a third each
"""

EXERCISES[8] = """
derivatives = SumPropagator()
derivatives.register("hypot", hypot_rule)
derivatives.register("multiply", lambda node, g: [g * p.data for p in reversed(node.parents)])
x, y = node(3.0, name="x", trainable=True), node(4.0, name="y", trainable=True)
def slopes(output):
    found = backward(output, 1.0, derivatives)
    return found[x], found[y]
def rounded(values):
    return [round(float(value), 6) for value in values]

call: hypot_rule(hypot(x, y), 1.0)
test: isinstance(it, (list, tuple)) and len(it) == 2
want: a list of two numbers
hint: it is None -> the rule has to return the list
hint: one number for each of node.parents, x first

call: [type(each).__name__ for each in hypot_rule(hypot(x, y), 1.0)]
want: ['float', 'float']
hint: a parent is a node: compute with its .data, or the derivative becomes part of a graph

call: rounded(hypot_rule(hypot(x, y), 1.0))
want: [0.6, 0.8]
hint: it == [0.8, 0.6] -> x comes first
hint: it == [3.0, 4.0] -> divided by the length, node.data
hint: at (3, 4) the length is 5: the slopes are 3/5 and 4/5

call: rounded(slopes(hypot(x, y) * 10.0))
want: [6.0, 8.0]
hint: it == [0.6, 0.8] -> multiply by feedback: what comes after hypot makes it ten times as steep
hint: the chain rule: the slope of hypot times feedback

call: rounded(slopes(hypot(x, y) * hypot(x, y)))
want: [6.0, 8.0]
hint: the square of the length is x*x + y*y, whose slopes are 2x and 2y

call: rounded(measured(hypot(x, y), x, y))
test: it == rounded(hypot_rule(hypot(x, y), 1.0))
want: the same as by the rule
"""

EXERCISES[9] = """
variables = {"speed": 10.0, "gear": "third"}
calls = [("way", "drive", {"v": "speed"}, 20.0), ("cost", "fuel", {"w": "way", "g": "gear"}, 3)]
def written(variables={"speed": 10.0}, calls=calls[:1], output="way", feedback="too far"):
    return write_graph(variables, calls, output, feedback)
def tree(**given):
    return TraceGraph.from_json(written(**given)).tree(ascii=True)
def infinite(value):
    return [("way", "drive", {"v": "speed"}, value)]

call: written()
test: isinstance(it, str) and json.loads(it)
want: a text
hint: isinstance(it, dict) -> json.dumps turns it into text
hint: it is None -> the function has to return the text

call: json.loads(written()).get("outputs")
want: [{"id": "way", "feedback": "too far"}]
hint: what was said goes into "outputs", a list of objects with "id" and "feedback"

call: [node.get("trainable", False) for node in json.loads(written())["nodes"]]
want: [True, False]
hint: isinstance(it, Exception) -> "nodes" is a list of objects: the variables, then the calls
hint: a variable has "trainable": true, and a call has not

call: tree()
want: 'way = 20.0  <- too far\\n`- speed = 10.0  [parameter]'
hint: isinstance(it, GraphError) -> the message says what is refused: compare with the tables of \
chapter 9
hint: isinstance(it, str) and "way = 20" not in it -> every node has its "value"
hint: a call has its "operator" and its "inputs"

call: tree(variables=variables, calls=calls, output="cost")
want: "cost = 3  <- too far\\n|- way = 20.0\\n|  `- speed = 10.0  [parameter]\\n\
`- gear = 'third'  [parameter]"
hint: the nodes are all the variables and all the calls, and the output is the one that was judged

call: json.loads(written()).get("format")
want: 'minitrace-graph'
hint: a writer says what it writes: "format" and "version", see the chapter

call: json.loads(written(calls=infinite(inf)))["nodes"][-1]["value"]
want: {'$float': 'inf'}
hint: it == inf -> json.dumps wrote Infinity, which only Python reads: the tag is {"$float": "inf"}
hint: see the table of tags in the chapter

call: json.loads(written(calls=infinite(-inf)))["nodes"][-1]["value"]
want: {'$float': '-inf'}
hint: below zero the tag is {"$float": "-inf"}
"""

EXERCISES[10] = """
now = {"x0": 3, "rate": 0.5, "word": "Hello"}
def reply(**suggestion):
    return json.dumps({"reasoning": "because", "suggestion": suggestion})
refused = "isinstance(it, ValueError)"

call: read(reply(x0=7, word="Hi"), now)
want: {'x0': 7, 'word': 'Hi'}
hint: it == {"suggestion": {"x0": 7, "word": "Hi"}, "reasoning": "because"} -> only what stands in \
"suggestion" comes back
hint: the values by name, as in "suggestion"

call: read(reply(), now)
want: {}
hint: no change is a good answer: an empty suggestion is not a mistake

call: read("I would try seven.", now)
test: type(it) is ValueError
want: ValueError with a sentence
hint: isinstance(it, ValueError) -> json.loads raises an error of its own: catch it, and raise \
ValueError with words for the language model
hint: what is not JSON is refused

call: read('{"x0": 7}', now)
test: isinstance(it, ValueError)
want: ValueError, for there is no "suggestion"
hint: isinstance(it, KeyError) -> a KeyError is not a sentence: look with .get("suggestion")
hint: the values are in "suggestion", and nowhere else

call: read('[1, 2]', now)
test: isinstance(it, ValueError)
want: ValueError, for it is no object
hint: JSON may be a list or a number as well: ask isinstance(..., dict)

call: read('{"suggestion": [7]}', now)
test: isinstance(it, ValueError)
want: ValueError, for the suggestion is no object
hint: "suggestion" may be anything: ask isinstance(..., dict)

call: read(reply(x0=7, z9=1), now)
test: isinstance(it, ValueError) and "z9" in str(it)
want: ValueError that names z9
hint: isinstance(it, KeyError) -> a KeyError is not a sentence: raise ValueError
hint: isinstance(it, ValueError) -> say which name it was, or nobody can fix it
hint: it == {"x0": 7} -> it is all or nothing: an unknown name must not be dropped in silence
hint: z9 is not one of the variables

call: read(reply(word="Hi", x0="seven"), now)
test: isinstance(it, ValueError) and "x0" in str(it)
want: ValueError that names x0
hint: it == {"word": "Hi"} -> it is all or nothing: one bad value, and none is taken
hint: isinstance(it, ValueError) -> say which name it was
hint: x0 is an int now, and a text came: compare the types

call: read(reply(x0=True), now)
test: isinstance(it, ValueError)
want: ValueError, for True is no number here
hint: isinstance(True, int) is true in Python: compare type(value) instead

call: read(reply(rate=1), now)
test: it == {"rate": 1.0} and type(it["rate"]) is float
want: {'rate': 1.0}, a float
hint: isinstance(it, ValueError) -> an int where a float is now is fine
hint: it becomes a float, so that the type stays

call: read(reply(x0=2.5), now)
test: isinstance(it, ValueError) and "x0" in str(it)
want: ValueError that names x0
hint: a float where an int is now is another type, and int(2.5) would lose something
"""

EXERCISES[11] = """
x = node(0, name="x", trainable=True)
optimizer = Ranked([x])
def attempt(value, score):
    x.set(value)
    optimizer.zero_feedback()
    optimizer.backward(x + 0, "hm", score=score)
    optimizer.update({x: value})
for value, score in (3, 0.5), (5, -2.0), (7, None), (9, 10.0), (11, 2.0):
    attempt(value, score)
def lines(room):
    return optimizer.describe(room).splitlines()

call: optimizer.describe(1000)
test: isinstance(it, str)
want: the text
hint: isinstance(it, list) -> return one text, its lines joined
hint: isinstance(it, TypeError) -> a score may be None, and None is neither more nor less than a number
hint: describe returns what is to be shown, as a text

call: lines(1000)
want: ['score -2.0: x0 = 5', 'score 0.5: x0 = 3', 'score 2.0: x0 = 11', 'score 10.0: x0 = 9']
hint: it == ['score 10.0: x0 = 9', 'score 2.0: x0 = 11', 'score 0.5: x0 = 3', 'score -2.0: x0 = 5'] \
-> the best stands last, next to where the answer begins
hint: it[2:3] == ['score 10.0: x0 = 9'] and it[0] < it[1] -> that is the order of the \
words: sort by the number, attempt.score
hint: any("None" in line for line in it) -> an attempt without a score has no place in this list
hint: it[:1] == ['score 0.5: x0 = 3'] -> that is the order in time: sort by attempt.score
hint: a line for each attempt, as in the docstring

call: lines(40)
want: ['score 2.0: x0 = 11', 'score 10.0: x0 = 9']
hint: len(it) == 4 -> there is room for 40 characters: leave attempts out
hint: it[:1] == ['score -2.0: x0 = 5'] -> the worst are left out first, and these are the worst
hint: len(it) == 1 -> another one fits
hint: whole lines, the best ones

call: [len(optimizer.describe(room)) <= room for room in range(100)].count(False)
want: 0
hint: the text is longer than its room: the line ends count as well

call: optimizer.prompt()[1]["content"]
test: "score 10.0: x0 = 9" in it
want: a prompt with these lines
"""

EXERCISES[12] = """
x = node(2.0, name="x", trainable=True)
output = bell(x)
class Other(Optimizer):
    "Proposes what it was given, and notes how many it was asked for."
    def __init__(self, values):
        super().__init__([x])
        self.values, self.asked = values, []
    def propose(self, n=None):
        self.asked.append(n)
        proposals = [Proposal({x: value}) for value in self.values]
        return proposals[:n] if n else proposals[0]
def score(height):
    if not isinstance(height, float):
        raise TypeError("a score is computed from a number")
    return height
def best(*values):
    return BestOf(Other(values), output, score, k=3).propose()
def asked(k):
    other = Other([1.0, 4.0])
    BestOf(other, output, score, k=k).propose()
    return other.asked

call: best(1.0, 4.0, 9.0)
test: isinstance(it, Proposal) and it == {x: 4.0}
want: the proposal x = 4.0, whose output is the highest
hint: isinstance(it, (int, float)) -> return the proposal, not its score
hint: isinstance(it, list) -> return one proposal, the best
hint: isinstance(it, dict) and it.get(x) == 1.0 -> that is the first of them, and not the best: \
self.other.propose(n=self.k) gives all of them, propose() always the first
hint: isinstance(it, TypeError) -> self.score takes the data of an output: rerun(proposal).data
hint: it is None -> the method has to return the best proposal
hint: it == {} -> x = 4.0 is better than 2.0, as it is. Was every proposal tried? \
self.other.propose(n=self.k) gives a list of them
hint: the best is the one with the highest self.score(self.output.rerun(proposal).data)

call: asked(k=7)
want: [7]
hint: isinstance(it, list) and len(it) > 1 -> ask once, for all of them: self.other.propose(n=self.k)
hint: self.other.propose(n=self.k) asks for k proposals in parallel

call: best(1.0, 9.0)
want: {}
hint: it in ({x: 1.0}, {x: 9.0}) -> at x = 2.0, as it is, the output is higher: nothing should \
change, and the answer is Proposal()
hint: when none is better than self.output, the answer is Proposal()

call: best(-1.0, 4.0)
want: {x: 4.0}
hint: isinstance(it, ExecutionError) -> for x = -1.0 the program fails: catch ExecutionError, and go \
on to the next
hint: a proposal that fails is left out, and the others count

call: best(-1.0, -2.0)
want: {}
hint: when all of them fail, nothing should change

call: x.data
want: 2.0
hint: propose sets nothing: rerun shows what would be, and changes nothing
"""

EXERCISES[13] = """
rate = node(1, name="rate", trainable=True)
def price(amount):
    return rate * amount
def trained():
    train(price, [(1, 7), (2, 14)], guide, OptoPrime(rate, llm=StubLLM()), epochs=6, progress=False)
    return rate.data

call: guide("how many?", 7, 7)
test: isinstance(it, tuple) and it[0] == 0 and it[1] == "just right"
want: (0, 'just right')
hint: it is None -> return a pair: the score and the feedback
hint: isinstance(it, tuple) and it[:1] == (1,) -> the best score is 0 here: minus the distance

call: guide("how many?", 5, 7)
want: (-2, 'too low')
hint: isinstance(it, tuple) and it[0] == 2 -> a score is better the higher it is: a distance is better \
the lower, so give it a minus
hint: it == (-2, "too high") -> 5 is below 7, so it is too low: the words are about the response

call: guide("how many?", 9.5, 7)
want: (-2.5, 'too high')
hint: isinstance(it, tuple) and it[0] == 2.5 -> minus the distance, on both sides: abs() tells it

call: guide("how many?", "about seven", 7)
test: isinstance(it, tuple) and it[0] == -1000 and "not a number" in it[1]
want: (-1000, words with 'not a number')
hint: isinstance(it, Exception) -> a guide that raises ends the training: ask first whether the \
response is a number

call: guide("how many?", None, 7)
test: isinstance(it, tuple) and it[0] == -1000 and "not a number" in it[1]
want: (-1000, words with 'not a number')
hint: isinstance(it, Exception) -> None is not a number either

call: guide("how many?", float("nan"), 7)
test: isinstance(it, tuple) and it[0] == -1000 and "not a number" in it[1]
want: (-1000, words with 'not a number')
hint: nan is a float, and neither equal, smaller nor larger: math.isfinite() tells

call: guide("how many?", float("-inf"), 7)
test: isinstance(it, tuple) and it[0] == -1000 and "not a number" in it[1]
want: (-1000, words with 'not a number')
hint: a score has to be finite, and the distance to -inf is not

call: trained()
want: 7
hint: the checker trained a rate with this guide, and it should have ended at 7
"""

EXERCISES[14] = """
hill = {"": 0, "a": 2, "b": 1, "aa": 1, "ab": 1, "ba": 1, "bb": 1.5, "bba": 6, "bbaa": 9}
asked = []
def worth(word):
    asked.append(word)
    return hill.get(word, -1)
def longer(word):
    return [word + "a", word + "b"] if len(word) < 4 else []
def around(n):
    return [n - 1, n + 1]
def found(**options):
    asked.clear()
    return beam_search("", longer, worth, **options)
def most_asked():
    return max((asked.count(word), word) for word in asked)

call: beam_search(0, around, lambda n: -abs(n - 3))
want: 3
hint: it in (-3, -10) -> a higher score is better
hint: it is None -> return the best value of the beam
hint: it in (2, 4) -> the old values stay in the race: a step must not lose the best one

call: beam_search(0, around, lambda n: -abs(n - 30), steps=4)
want: 4
hint: isinstance(it, int) and it > 4 -> the search ends after `steps` steps
hint: each step expands every value of the beam, and no more

call: beam_search(5, around, lambda n: n, steps=0)
want: 5
hint: without a step there is only the start

call: found(width=1)
want: 'a'
hint: it == "bbaa" -> a beam of width 1 keeps one value, and cannot know of 'bb' behind 'b'
hint: with one value at a time the search stops at the first hill

call: found(width=2)
want: 'bbaa'
hint: it == "a" -> with two values the second best, 'b', stays as well and is expanded too, and only \
a step that leaves the whole beam as it was is the last
hint: every value of the beam is expanded

call: (found(width=2), most_asked()[0])[1]
want: 1
hint: isinstance(it, int) and it > 1 -> a score costs a run of the program: keep the scores in a dict

call: steps_taken(beam_search)
test: it <= 3
want: at most 3 steps on a hill with nothing around it
hint: when a step leaves the beam as it was, no other will change it: stop

call: beam_search(0, twins, {0: 0, 1: 1, 2: 0.5, 9: 9}.get, width=2, steps=3)
want: 9
hint: it == 1 -> the same value twice fills the beam: each value counts once
"""

EXERCISES[15] = """
calls = []
def good(messages, **options):
    calls.append((messages, options))
    return "Paris."
def never(messages, **options):
    raise AssertionError("this one should not have been asked")
def down(messages, **options):
    raise LLMError("the server is down", kind="network")
def slow(messages, **options):
    raise LLMError("too slow", kind="timeout")
def spent(messages, **options):
    raise BudgetError("nothing left")
def buggy(messages, **options):
    raise TypeError("a bug")

call: Fallback(good)("The capital of France?")
want: 'Paris.'
hint: return the reply of the first that gives one

call: Fallback(good, never)("The capital of France?")
want: 'Paris.'
hint: isinstance(it, AssertionError) -> when one has answered, the next is not asked: it would cost

call: Fallback(down, good)("The capital of France?")
want: 'Paris.'
hint: isinstance(it, LLMError) -> catch LLMError, and ask the next
hint: the first could not answer, so the second is asked

call: Fallback(down, good)("Hello?", temperature=0) and calls[-1]
want: ('Hello?', {'temperature': 0})
hint: pass on the messages and the options as they came

call: Fallback(down, slow)("The capital of France?")
test: isinstance(it, LLMError) and "too slow" in str(it)
want: LLMError: too slow
hint: it is None -> when none could answer, the caller has to know: raise the last error
hint: isinstance(it, NameError) -> `except ... as error` forgets its name at its end: keep \
the error under another one
hint: isinstance(it, LLMError) -> that is the first error; the last is wanted
hint: raise the last error

call: Fallback(spent, good)("The capital of France?")
test: isinstance(it, BudgetError)
want: BudgetError: nothing left
hint: it == "Paris." -> a BudgetError means that nothing more may be spent: catch LLMError alone

call: Fallback(buggy, good)("The capital of France?")
test: isinstance(it, TypeError)
want: TypeError: a bug
hint: a wide `except` hides bugs: catch LLMError alone
"""

EXERCISES[16] = """
square = "def solve(x):\\n    return x * x"

call: trial(square, 3, 9)
want: (1.0, 'correct')
hint: isinstance(it, TypeError) -> Limits(seconds=1).run(source, "solve", [argument]) calls it
hint: it is None -> return the pair

call: trial(square, 3, 10)
test: it[0] == 0.0 and "9" in it[1] and "10" in it[1]
want: (0.0, words that hold 9 and 10)
hint: it == (1.0, "correct") -> compare with what is wanted
hint: its author can only fix it if told both: what came, and what is wanted

call: trial("def solve(y):\\n    return y * y", 3, 9)
test: it[0] == 0.0 and "signature" in it[1]
want: (0.0, words of check_code)
hint: isinstance(it, ValueError) -> check_code raises ValueError: its words are the feedback
hint: it == (1.0, "correct") -> check_code(source, "solve", "(x)") comes first

call: trial("import os\\ndef solve(x):\\n    return os.getpid()", 3, 9)
test: it[0] == 0.0 and "os" in it[1]
want: (0.0, words that say that os is not allowed)
hint: isinstance(it, LimitError) -> what is refused under limits raises LimitError: its words are \
the feedback
hint: run it under Limits, which lists what may be imported

call: trial("def solve(x):\\n    return 1 / (x - 3)", 3, 9)
test: it[0] == 0.0 and "ZeroDivisionError" in it[1] and "2" in it[1].replace("ZeroDivisionError", "")
want: (0.0, words with ZeroDivisionError and line 2)
hint: isinstance(it, CodeError) -> what the code itself raised is a CodeError: error.kind, error.line
hint: isinstance(it, ZeroDivisionError) -> it ran in this very process: use Limits(...).run
hint: the error knows its kind and its line: error.kind, error.line

call: trial("def solve(x):\\n    while True:\\n        pass", 3, 9)
test: it[0] == 0.0 and "time" in it[1]
want: (0.0, words that say that the time was up)
hint: isinstance(it, LimitError) -> an endless loop ends as a LimitError: its words are the feedback
hint: Limits(seconds=1) stops it
"""

EXERCISES[17] = """
x = node(3, name="x", trainable=True)
asked = []
def poet(messages, **options):
    asked.append(messages)
    return "Salt is the sea's own memory."
def cook(messages, **options):
    return '{"suggestion": {"x0": 4}}'
def stepped(llm, **options):
    asked.clear()
    x.set(3)
    optimizer = moved([x], llm, **options)
    optimizer.zero_feedback()
    optimizer.backward(x * 2, "too low")
    optimizer.step()
    return len(asked), x.data

call: type(moved([x], cook)).__mro__[:2] == (OptoPrime, Optimizer)
want: True
hint: minitrace's own: OptoPrime(parameters, llm, ...), which has to be returned

call: stepped(cook)
want: (0, 4)
hint: isinstance(it, AttributeError) -> the optimizer has to be returned
hint: it works on `parameters`, and asks `llm`

call: moved([x], cook).memory_size
want: 0
hint: it == 8 -> that is minitrace's default: memory_size=0 shows no past attempts

call: stepped(poet)
want: (1, 3)
hint: isinstance(it, ReplyError) -> a reply that cannot be used raises, unless on_refusal="keep"
hint: it == (3, 3) -> it asked again, twice: retries=0
hint: one question, and a value that stays

call: moved([x], cook, memory_size=4).memory_size
want: 4
hint: isinstance(it, TypeError) -> given twice: put the defaults into a dict, and let the options \
replace what is in it
hint: it == 0 -> an option that the program gives replaces the default

call: stepped(poet, retries=1)
want: (2, 3)
hint: isinstance(it, TypeError) -> given twice: put the defaults into a dict, and let the options \
replace what is in it
hint: an option that the program gives replaces the default

call: stepped(poet, on_refusal="raise")
test: isinstance(it, ReplyError)
want: ReplyError
hint: an option that the program gives replaces the default

call: stepped(cook, config_list=[], ignore_extraction_error=True)
want: (0, 4)
hint: isinstance(it, TypeError) -> minitrace's own OptoPrime does not take these: leave out the \
options that IGNORED names

call: moved([x], cook, objective="Salt it.", prompt_symbols=None).objective
want: 'Salt it.'
hint: isinstance(it, TypeError) -> leave out all the options that IGNORED names
hint: all other options are passed on

call: moved([x], cook, memory=4)
test: isinstance(it, TypeError)
want: TypeError, for there is no such option
hint: leave out what IGNORED names, and nothing else: a misspelled option should be an error
"""


# ---- What the calls above use beside the exercise and the library's names ----


@minitrace.bundle()
def share(cost, people):
    """Share a cost."""
    return cost / people


@minitrace.bundle()
def thirds(x, y, z):
    """Of three parents."""
    return x + y + z


@minitrace.bundle()
def bell(x):
    """A curve that is highest at 4, and fails below 0."""
    return math.sqrt(x) * (12 - x)


def ladder(steps):
    """A chain in which every step has two ways to the one before."""
    x = minitrace.node(1, name="x")
    for _ in range(steps):
        x = x + x
    return x


def measured(output, *inputs, step=1e-6):
    """Slopes without any rule: move each input a little, and see."""
    moved = [(output.rerun({x: x.data + step}), output.rerun({x: x.data - step})) for x in inputs]
    return [(up.data - down.data) / (2 * step) for up, down in moved]


def twins(n):
    """What is proposed from a number: 1 again and again, and behind 2 the best there is."""
    return {0: [1, 1, 1, 2], 2: [9]}.get(n, [1])


def steps_taken(search):
    """How often a search looks around where there is nothing to be found."""
    taken = []
    search(0, lambda n: taken.append(n) or [0], lambda n: n, width=1, steps=100)
    return len(taken)


# ---- The grader ----


SUPPORT = share, thirds, bell, ladder, measured, twins, steps_taken


class Verdict(NamedTuple):
    """What came of an exercise: "passed", "not yet" or "to do", and what there is to say."""

    state: str
    words: str


class Row(NamedTuple):
    """A call, a test of what came, what was wanted in words, and pairs of a sign and a hint."""

    call: str
    test: str
    want: str
    hints: list[tuple[str, str]]


START = Row(
    "import it",
    "it is None",
    "a file that Python can run",
    [("isinstance(it, SyntaxError)", "Python cannot read it at that line, or just before")],
)
ALWAYS = [
    ("isinstance(it, NameError) and not line", "the names that the exercise gave must stay"),
    ("isinstance(it, TimeoutError)", "look for a loop that never ends"),
    ("isinstance(it, SystemError)", "most often a function that calls itself without an end"),
]


def numbers():
    """The numbers of the exercises."""
    return sorted(EXERCISES)


def rows(number):
    """The Python that prepares an exercise, and its rows."""
    prepared, *parts = re.split(r"(?m)^(?=call: )", EXERCISES[number])
    found = []
    for part in parts:
        lines = re.findall(r"(?m)^(call|want|test|hint): (.*)$", part)
        fields, hints = dict(lines), [h.rpartition(" -> ") for name, h in lines if name == "hint"]
        test = fields.get("test") or f"it == ({fields['want']})"
        signs = [(sign, words) for sign, _, words in hints]
        found.append(Row(fields["call"], test, fields["want"], signs))
    return prepared, found


def came_of(action):
    """What an action gives, or the exception that it raises."""
    try:
        return action()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error


def judge(number, path, begin=lambda place: None):
    """Grade a file in this process; `begin` hears the place of each call before it is made."""
    prepared, calls = rows(number)
    names = {name: getattr(module, name) for module in LIBRARY for name in module.__all__}
    names |= {"inf": float("inf"), "json": json}
    names |= {each.__name__: each for each in SUPPORT}
    minitrace.GRAPH.clear()

    def start():
        names.update(load(path))
        exec(prepared, names)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin(-1)
        it = came_of(start)
        if it is not None:
            return verdict(START, {"it": it}, path)
        for place, row in enumerate(calls):
            begin(place)
            names["it"] = it = came_of(lambda call=row.call: eval(call, names))
            if isinstance(it, NotImplementedError) and place == 0:
                line = where(it, path).partition(":")[0]
                return Verdict("to do", f"the body is yours to write{line}\n")
            if not holds(row.test, names):
                return verdict(row, names, path)
    return Verdict("passed", "")


def load(path):
    """The names in an exercise, which is run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def holds(test, names):
    """Does an expression about what came hold? That may be anything, so the test may fail."""
    try:
        return bool(eval(test, names))
    except Exception:
        return False


def verdict(row, names, path):
    """What went wrong, a line for each thing that helps."""
    it, names = names["it"], {**names, "line": where(names["it"], path)}
    hints = sorted([*row.hints, *ALWAYS], key=lambda hint: not hint[0])  # words alone come last
    hint = next((words for sign, words in hints if holds(sign or "True", names)), "")
    hint = textwrap.fill(hint, 80).replace("\n", "\n" + " " * 8)
    lines = ("called", row.call), ("came", shown(it, path)), ("wanted", row.want), ("hint", hint)
    return Verdict("not yet", "".join(f"{name:<8}{words}\n" for name, words in lines if words))


def shown(it, path):
    """What came, without addresses, and not too long."""
    failed = isinstance(it, BaseException)
    words = getattr(it, "msg", it) if isinstance(it, SyntaxError) else it
    text = f"{type(it).__name__}: {words}{where(it, path)}" if failed else repr(it)
    text = re.sub(r" at 0x\w+", "", text)
    return text if len(text) < 500 else f"{text[:300]} ... {text[-150:]}"


def where(error, path):
    """The line of the exercise in which an exception was raised."""
    if not isinstance(error, BaseException):
        return ""
    if isinstance(error, SyntaxError) and error.lineno:
        return f", in {path.name} at line {error.lineno}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if Path(each[0]) == path]
    return f", in {path.name} at line {frames[-1].lineno}: {frames[-1].line}" if frames else ""


def grade(number, path=None, seconds=SECONDS):
    """Grade a file, by default the exercise's own, in a process that may hang or crash."""
    path = Path(path or HERE / f"ex{number:02}.py").resolve()
    command = [sys.executable, "-uX", "utf8", __file__, str(number), str(path)]
    try:
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds, **quiet)
        printed, it = done.stdout, SystemError(f"Python itself ended, status {done.returncode}")
    except subprocess.TimeoutExpired as late:
        printed, it = late.stdout or b"", TimeoutError(f"nothing within {seconds:g} seconds")
    text = printed.decode("utf-8", "replace")
    last = [json.loads(mark) for mark in re.findall(r"\0(.*)\n", text)][-1:] or [-1]
    if isinstance(last[0], list):
        state, words = last[0]
    else:  # it began a call, and no more was heard of it
        row = [*rows(number)[1], START][last[0]]
        state, words = verdict(row, {"it": it}, path)
    parts = re.split(r"\0.*\n", text)  # what was printed before each mark, and after the last
    said = parts[-2 if isinstance(last[0], list) else -1].rstrip().replace("\n", "\n" + " " * 8)
    return Verdict(state, words + (f"printed {said}\n" if said and state == "not yet" else ""))


class Printed(io.TextIOBase):
    """What an exercise prints, up to a bound for each call."""

    left = PRINTED

    def write(self, text):
        sys.__stdout__.write(text[: self.left])
        self.left = max(0, self.left - len(text))
        return len(text)


def main():
    """In the process of one exercise: tell each call before it is made, and the verdict."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))

    def tell(words):
        sys.__stdout__.write(f"\0{json.dumps(words)}\n")
        sys.stdout = Printed()

    tell(judge(int(sys.argv[1]), Path(sys.argv[2]), tell))


if __name__ == "__main__":
    main()
