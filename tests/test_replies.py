"""Section 5, reading replies: a table of careless ones, then their edges, garbage, hostile texts."""

import json
import pathlib
import random
import re
import subprocess
import sys

import pytest

from minitrace import coerce_value, read_reply

LONGEST, DEEPEST = 200_000, 64  # characters, and brackets in brackets; more is refused, not tried

CASES = json.loads((pathlib.Path(__file__).parent / "replies.json").read_text(encoding="utf-8"))


def update(reply, variables):
    """The typed update and the problems, as an optimizer would find them."""
    read, values, problems = read_reply(reply, list(variables)), {}, []
    for name, raw in read.values.items():
        try:
            values[name] = coerce_value(raw, variables[name])
        except ValueError as error:
            problems.append(str(error))
    return read, values, read.problems + problems


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_table(case):
    read, values, problems = update(case["reply"], case["variables"])
    if "refuse" in case:
        assert case["refuse"] in " ".join(problems)
        assert not read.problems or not read.values
    else:
        assert (problems, repr(values)) == ([], repr(case["expect"]))
    for field in {"reasoning", "answer"} & case.keys():
        assert getattr(read, field) == case[field]


def test_every_problem_is_a_sentence_that_can_be_sent():
    for case in CASES:
        for problem in update(case["reply"], case["variables"])[2]:
            assert problem[0].isupper() and problem.endswith(".") and "\n" not in problem, problem
            problem.encode("utf-8")


# ---- values

TABLE = [  # value, like, result or error
    (7, 1, 7), (7.0, 1, 7), ("7", 1, 7), (" 7 ", 1, 7), ("7.0", 1, 7), ("-7", 1, -7),
    (1e22, 1, 10**22), (7.5, 1, ValueError), ("banana", 1, ValueError), (True, 1, ValueError),
    ("true", 1, ValueError), (None, 1, ValueError), ([7], 1, ValueError), ("", 1, ValueError),
    ("1e999", 1, ValueError), (float("nan"), 1, ValueError), (float("inf"), 1, ValueError),
    ("1,000", 1, ValueError), ("7 8", 1, ValueError), ("7] [8", 1, ValueError),
    ("3 + 4", 1, ValueError), (2, 1.5, 2.0), ("2", 1.5, 2.0), (".5", 1.5, 0.5),
    ("1e-3", 1.5, 0.001), (True, 1.5, ValueError), (float("nan"), 1.5, ValueError),
    (float("-inf"), 1.5, ValueError), ("nan", 1.5, ValueError), ("Infinity", 1.5, ValueError),
    (10**400, 1.5, ValueError), (2**53 + 1, 1.5, float(2**53)), (True, False, True),
    ("true", False, True), ("True", False, True), ("false", True, False), ("FALSE", True, False),
    (1, True, ValueError), (0, True, ValueError), ("yes", True, ValueError),
    ("1", True, ValueError), (1.0, True, ValueError), (None, True, ValueError), ("a", "", "a"),
    ("  a\n", "", "  a\n"), (5, "", "5"), (7.5, "", "7.5"), ("[1]", "", "[1]"),
    ({}, "", ValueError), ([], "", ValueError), (None, "", ValueError), (True, "", ValueError),
    ([1, "a"], [], [1, "a"]), ((1,), [], [1]), ("[1, 2]", [], [1, 2]), ("(1, 2)", [], [1, 2]),
    ("abc", ["a"], ValueError), ({"a": 1}, [], ValueError), (None, [], ValueError),
    (5, [], ValueError), ({1}, [], ValueError), ("[1, 2", [], ValueError),
    ("'abc'", [], ValueError), ([1, 2], (), (1, 2)), ("(1,)", (), (1,)), ("[]", (), ()),
    ("(1)", (), ValueError), ([1, 2, 1], set(), {1, 2}), ({1}, set(), {1}),
    ("{1, 2}", set(), {1, 2}), ([[1]], set(), ValueError), ([1], frozenset(), frozenset({1})),
    ({"a": 1}, set(), ValueError), ({"a": 1}, {}, {"a": 1}), ('{"a": 1}', {}, {"a": 1}),
    ("{1: (2, 3)}", {}, {1: (2, 3)}), ("{(1, 2): 3}", {}, {(1, 2): 3}),
    ([("a", 1)], {}, ValueError), ("{1, 2}", {}, ValueError),
    ("{'a': 1, 'a': 2}", {}, ValueError), ("{[1]: 2}", {}, ValueError), (b"a", b"", b"a"),
    ("a", b"", ValueError), (5, None, 5), (None, None, None), ("None", None, "None"),
]  # fmt: skip


@pytest.mark.parametrize(
    "value, like, result", TABLE, ids=[f"{v!r:.30}-{k!r}" for v, k, _ in TABLE]
)
def test_coerce(value, like, result):
    if result is ValueError:
        with pytest.raises(ValueError, match=r"^Expected (a finite )?\w+, not .*\.$") as caught:
            coerce_value(value, like)
        assert len(str(caught.value)) < 140
    else:
        made = coerce_value(value, like)
        assert (type(made), made) == (type(result), result)


@pytest.mark.parametrize("text", ["[1]x", "[1],", "[1]]", "[1] 2"])
def test_a_value_with_something_after_it_is_none(text):
    with pytest.raises(ValueError, match="Expected list, not"):
        coerce_value(text, [0])


# ---- how much, how deep, how large


def test_a_reply_is_read_up_to_its_last_character_and_no_further():
    text = '{"suggestion": {"x0": 7}}'
    assert read_reply(text.rjust(LONGEST), ["x0"]).values == {"x0": 7}
    problem = "The reply has 200,001 characters; at most 200,000 are read."
    assert read_reply(text.rjust(LONGEST + 1), ["x0"]) == ("", "", {}, [problem])


def test_brackets_are_read_to_a_depth_and_no_further():
    for depth, good in (DEEPEST - 1, True), (DEEPEST, False):
        read = read_reply('{"x0": ' + "[" * depth + "]" * depth + "}", ["x0"])
        assert bool(read.values) is good is not bool(read.problems)


@pytest.mark.parametrize(
    "text",
    ["1234567890", "-98765432109876543210", "1e+3", "1E5", "2.5e-3", "12345678901234567890.5"],
)
def test_long_numbers_and_exponents(text):
    value = read_reply('{"x0": ' + text + "}", ["x0"]).values["x0"]
    assert repr(value) == repr(eval(text))
    assert coerce_value(text, float(1)) == float(text)


def test_a_number_that_is_none_is_shown_whole():
    (problem,) = read_reply('{"suggestion": {"x0": 1.2.3}}', ["x0"]).problems
    assert "it breaks off at '1.2.3}}'" in problem


ESCAPES = [
    (r"\n", "\n"), (r"\t", "\t"), (r"\r", "\r"), (r"\b", "\b"), (r"\f", "\f"), (r"\\", "\\"),
    (r"\/", "/"), (r"\"", '"'), (r"\'", "'"), (r"\`", "`"), ("\\\n", ""), (r"\q", r"\q"),
    (r"\x41", "A"), (r"\u0041", "A"), (r"\U0001F600", "\U0001f600"), (r"\x4", r"\x4"),
    (r"\u41", r"\u41"), (r"\U00110000", r"\U00110000"),
]  # fmt: skip


@pytest.mark.parametrize("written, meant", ESCAPES, ids=[written for written, _ in ESCAPES])
def test_escapes(written, meant):
    assert read_reply('{"x0": "a' + written + 'z"}', ["x0"]).values == {"x0": f"a{meant}z"}


# ---- where an answer begins and ends


@pytest.mark.parametrize("comment", ["// why\n", "# why\n", "/* why */ "])
def test_an_object_may_begin_with_a_comment(comment):
    text = "{" + comment + '"reasoning": "r", "suggestion": {"x0": 7}} or {"x0": 3}.'
    assert read_reply(text, ["x0"]) == ("r", "", {"x0": 7}, [])


def test_nothing_inside_a_comment_without_end_counts():
    read = read_reply('{"thoughts": 1, /* such as {"x0": 3} or', ["x0"])
    assert (read.values, read.problems) == ({}, ["The reply cannot be read: it is cut short."])


def test_space_before_a_colon_and_before_the_end_of_a_tag():
    assert read_reply("{x0 : 7}", ["x0"]).values == {"x0": 7}
    assert read_reply("<x0 >7</x0 >", ["x0"]).values == {"x0": "7"}


def test_a_set_with_a_comment_in_front_is_no_answer():
    (problem,) = read_reply("{# a set\n1, 2}", ["x0"]).problems
    assert problem.startswith("No answer was found")


@pytest.mark.parametrize("word", ["think", "thinking", "thought", "thoughts", "reflection",
                                  "scratchpad", "Scratchpad"])  # fmt: skip
def test_what_was_thought_first_is_no_answer(word):
    text = f'<{word}>{{"suggestion": {{"x0": 3}}}}</{word}> '
    assert read_reply(text, ["x0"]).values == {}
    assert read_reply(text + '{"x0": 7}', ["x0"]).values == {"x0": 7}


def test_only_the_attribute_name_names_a_variable():
    assert read_reply('<variable rename="x0">7</variable>', ["x0"]).values == {}
    assert read_reply('<variable kind="a" name="x0">7</variable>', ["x0"]).values == {"x0": "7"}


def test_a_name_in_a_tag_of_its_own_is_told_without_its_space():
    text = "<variable><name>\n y9 </name><value>7</value></variable>"
    assert read_reply(text, ["x0"]).problems == ["There is no variable 'y9', only x0."]


def test_an_answer_is_empty_where_none_is_given_and_stays_where_one_was():
    assert read_reply('{"suggestion": {"x0": 7}}', ["x0"]) == ("", "", {"x0": 7}, [])
    text = '{"answer": "12"} {"reasoning": "r", "suggestion": {"x0": 7}}'
    assert read_reply(text, ["x0"]) == ("r", "12", {"x0": 7}, [])


def test_names_beside_an_answer_are_bare_and_tags_outrank_them():
    text = '<x0>7</x0> {"answer": "12", "x0": 3}.'
    assert read_reply(text, ["x0"]) == ("", "12", {"x0": "7"}, [])
    assert read_reply(text[11:], ["x0"]) == ("", "12", {"x0": 3}, [])


@pytest.mark.parametrize(
    "name, written", [("x0", "x:0"), ("x0", " X0 "), ("X0", "x0"), ("X0", "X0")]
)
def test_a_bare_name_is_known_however_it_is_written(name, written):
    assert read_reply(json.dumps({written: 7}), [name]).values == {name: 7}


def test_a_field_is_known_however_it_is_written():
    text = '{" Reasoning ": "r", " suggestion ": {"x0": 7}}'
    assert read_reply(text, ["x0"]) == ("r", "", {"x0": 7}, [])
    assert read_reply("<Reasoning>\n r \n</REASONING> <x0>7</x0>", ["x0"]).reasoning == "r"


@pytest.mark.parametrize("broken", ['{"Reasoning": oops}', '{"x0": oops}', '{"x:0": oops}'])
def test_after_a_broken_answer_only_a_whole_one_counts(broken):
    for more in '{"x0": 3}', "<x0>3</x0>":
        read = read_reply(f"{broken} {more}", ["x0"])
        assert read.values == {} and "it breaks off at 'oops" in read.problems[0]
    assert read_reply(broken + ' {"suggestion": {"x0": 3}}', ["x0"]).values == {"x0": 3}


def test_a_suggestion_that_is_no_object_is_told_and_gives_way_to_another_answer():
    for broken in '{"suggestion": "x0 = 3"}', '{"suggestion": {"x0", 3}}':
        (problem,) = read_reply(broken, ["x0"]).problems
        assert problem.endswith("its suggestion is not an object of names and values.")
        assert read_reply(broken + ' {"x0": 3}', ["x0"]).values == {}
        whole = broken + ' I mean {"suggestion": {"x0": 7}}'
        assert read_reply(whole, ["x0"]) == ("", "", {"x0": 7}, [])
        assert read_reply(broken + '</think> {"x0": 7}', ["x0"]).values == {"x0": 7}


@pytest.mark.parametrize("key", ["1", "-1", "'a'", "(1, 2)", "true", "None", "2.5"])
def test_a_key_that_stands_twice_in_a_value_is_refused(key):
    (problem,) = read_reply(f"{{'x0': {{{key}: 1, {key}: 2}}}}", ["x0"]).problems
    assert problem == "The reply cannot be read: it has the same key twice."


def test_no_more_than_eight_problems_are_told():
    text = json.dumps({"suggestion": {f"y{n}": n for n in range(10)}})
    problems = read_reply(text, ["x0"]).problems
    assert problems == [f"There is no variable 'y{n}', only x0." for n in range(8)]


BETWEEN_TAGS = [
    ("```\na\n```", "a"), ("a &amp; b", "a &amp; b"), ("&lt;b&gt; &amp;", "<b> &"),
    ("&lt; and <", "&lt; and <"), ("```\na\n ``` \nb\n```", "```\na\n ``` \nb\n```"),
]  # fmt: skip


@pytest.mark.parametrize("written, meant", BETWEEN_TAGS)
def test_what_stands_between_tags(written, meant):
    assert read_reply(f"<prompt0>\n{written}\n</prompt0>", ["prompt0"]).values == {"prompt0": meant}


def test_code_that_is_no_text_is_left_to_the_check_of_values():
    assert read_reply('{"suggestion": {"__code0": 5}}', ["__code0"]).values == {"__code0": 5}


@pytest.mark.parametrize(
    "form", ["<{0}>5</{0}>", '<variable name="{0}">5</variable>', '{{"{0}": "5"}}']
)
def test_names_that_differ_in_case_alone_are_two(form):
    for name in "X0", "x0":
        assert read_reply(form.format(name), ["X0", "x0"]).values == {name: "5"}


# ---- garbage

PIECES = [
    *"{}[]()\"'`:,<>/#\\=&\n \t",
    "x0", "x:0", "X0", "prompt1", "y9", "__code0", "reasoning", "answer", "suggestion", "true",
    "None", "7", "-7.5", "1e9", "NaN", '"""', "'''", "```", "```python\n", "/*", "*/", "//",
    "<think>", "</think>", "<reasoning>", "</reasoning>", "<x0>", "</x0>", '<variable name="x0">',
    "</variable>", "<variable>", "<name>", "</name>", "<value>", "</value>", '{"suggestion": {',
    '"x0": ', '"x1": ', "}}", "\\u12", "\\ud800", "\ud800", "\x00", "é", "TERMINATE", "&lt;",
    "<![CDATA[", "]]>",
]  # fmt: skip


def garbage(rng):
    """A reply that is either thrown together or a good one with a few cuts, copies and swaps."""
    if rng.random() < 0.4:
        return "".join(rng.choice(PIECES) for _ in range(rng.randrange(60)))
    text = rng.choice(CASES)["reply"]
    for _ in range(rng.randrange(1, 5)):
        start, stop = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        stop = min(stop, start + rng.choice([0, 1, 5, 50]))
        middle = rng.choice(["", rng.choice(PIECES), text[start:stop] * 2])
        text = text[:start] + middle + text[stop:]
    return text


def test_garbage_never_raises_and_never_sets_what_is_unknown():
    rng, names = random.Random(0), ["x0", "x1", "prompt0", "__code0", "prompt1"]
    likes = [1, 1.5, True, "", [], (), {}, set(), None]
    read = refused = 0
    for _ in range(10_000):
        text = garbage(rng)
        reply = read_reply(text, names)
        assert set(reply.values) <= set(names), text
        assert not (reply.problems and reply.values), text
        assert isinstance(reply.reasoning, str) and isinstance(reply.answer, str), text
        assert all(isinstance(problem, str) for problem in reply.problems)
        read, refused = read + bool(reply.values), refused + bool(reply.problems)
        for value in reply.values.values():
            like = rng.choice(likes)
            try:
                assert like is None or type(coerce_value(value, like)) is type(like), (value, like)
            except ValueError as error:
                assert str(error).startswith("Expected ")
    assert read > 1_000 and refused > 1_000


def anything(rng, depth=0):
    """A random value of the kinds that JSON has."""
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 2:
        return "".join(rng.choice(PIECES) for _ in range(rng.randrange(6))).replace("\ud800", "")
    if kind < 6:
        return [rng.randrange(-999, 999), rng.uniform(-1e9, 1e9), rng.random() < 0.5, None][
            kind - 2
        ]
    if kind < 8:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {f"k{i}": anything(rng, depth + 1) for i in range(rng.randrange(4))}


def test_every_value_written_as_json_or_python_comes_back():
    rng, names = random.Random(1), ["x0", "x1"]
    writers = [
        json.dumps,
        repr,
        lambda value: json.dumps(value, ensure_ascii=False, indent=2),
        lambda value: "```json\n" + json.dumps(value, indent=4) + "\n```\nI hope {that} helps.",
        lambda value: "<think>{x0: 1} and {'suggestion': {</think>Well:\n" + repr(value),
    ]
    for _ in range(3_000):
        values = {name: anything(rng) for name in names}
        text = rng.choice(writers)({"reasoning": "r", "answer": "", "suggestion": values})
        assert read_reply(text, names) == ("r", "", values, []), text


def test_every_text_between_tags_comes_back():
    """Any text without a variable's own tags in it, on lines of its own, to the last space."""
    rng, names = random.Random(2), ["prompt0", "prompt1"]
    pieces = [
        piece for piece in PIECES if not re.search("variable|name>|value>|&lt;|CDATA|```", piece)
    ]
    forms = [
        '<variable name="{}">\n{}\n</variable>',
        "<{0}>\n{1}\n</{0}>",
        "<variable><name>{}</name>\n<value>\n{}\n</value></variable>",
    ]
    for _ in range(3_000):
        form = rng.choice(forms)
        values = {
            name: "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 20))) for name in names
        }
        text = "<reasoning>r</reasoning>\n" + "\n".join(
            form.format(*pair) for pair in values.items()
        )
        assert read_reply(text, names) == ("r", "", values, []), text


def test_a_reply_cut_anywhere_is_whole_or_refused():
    """No beginning of a good reply gives an update of its own."""
    checked = 0
    for case in CASES:
        if "expect" not in case or not case["expect"]:
            continue
        whole = read_reply(case["reply"], list(case["variables"])).values
        for stop in range(len(case["reply"])):
            values = read_reply(case["reply"][:stop], list(case["variables"])).values
            drafts = "missing" in case["name"] or case["name"] in SEVERAL
            if values not in ({}, whole) and not drafts:
                raise AssertionError((case["name"], case["reply"][:stop], values))
            checked += 1
    assert checked > 5_000


# Where a first part is a whole reply of its own: nothing in it shows that more was to come.
SEVERAL = {
    "two bare objects add up", "two variables in tags", "name and value in tags, two of them",
    "the name as the tag", "other words for variable", "two whole answers: the last wins",
    "a reasoning block whose opening is lost", "the name of another variable inside a value",
    "a value that holds the end of its own tag", "ends of tags inside code",
    "ends of tags inside a value tag",
    "seen: a mark of a turn mentioned between two variables",
    "seen: the beginning of a comment of HTML mentioned between two variables",
    "seen: the beginning of details of HTML mentioned between two variables",
    "seen: parameters around two", "seen: an end named in prose", "seen: an attribute on a tag of ours", "seen: a draft, and the answer in a tag",
    "thoughts: stripped channel", "thoughts: nested", "thoughts: process", "thoughts: final response",
    "thoughts: a variable that is called so", "thoughts: a draft in a tag that does not end",
}  # fmt: skip


# ---- hostile texts

HOSTILE = {
    "brackets": "'{\"x0\": ' + '[' * n",
    "braces": "'{\"x0\":' * n",
    "operators": "'{\"x0\": 1' + '+1' * n",
    "indices": "'{\"x0\": []' + '[0]' * n",
    "calls": "'{\"x0\": f' + '()' * n",
    "minuses": "'{\"x0\": ' + '-' * n + '1}'",
    "nots": "'{\"x0\": ' + 'not ' * n",
    "strings": "'{\"x0\": ' + '\"\"' * n",
    "colons": "'{\"x0\"' + ':1' * n",
    "commas": "'{\"x0\": [' + '1,' * n + ']}'",
    "keys": "'{\"x0\": {' + ''.join(f'{i}:1,' for i in range(n // 5)) + '}}'",
    "unknown": "'{\"suggestion\": {' + ''.join(f'\"y{i}\":1,' for i in range(n // 10)) + '}}'",
    "objects": "'{\"x0\":1}' * n",
    "comments of HTML": "'<!--1' * n",
    "a comment of digits": "'<!--' + '1' * n",
    "details": "'<details>' * n",
    "open comments": "'{\"x0\":/*' * n",
    "line comments": "'{\"x0\"://' * n",
    "hash comments": "'{x0:1#' * n",
    "open strings": '\'{"x0":"\' * n',
    "open triples": "'{\"x0\":\\'\\'\\'' * n",
    "backslashes": "'{\"x0\":\"' + '\\\\' * n",
    "escaped quotes": '\'{"x0":"\\\\"\' * n',
    "deep wide": "'{\"a\":' * 60 + '[' + '{\"x0\":1},' * n",
    "spaces": "'{' + ' ' * n + '\"x0\"' + ' ' * n + ':' + ' ' * n",
    "spaced braces": "('{' + ' ' * 50) * (n // 50)",
    "lines": "'<x0>' + '\\n ' * n + '</x0>'",
    "fences": "'<x0>```' + '\\n```' * n + '</x0>'",
    "fence of spaces": "'<x0>```\\n' + ' ' * n + '</x0>'",
    "open tags": "'<x0>' * n",
    "open variables": "'<variable name=\"x0\">' * n",
    "open names": "'<variable><name>x0</name><value>' * n",
    "half variables": "'<variable ' * n",
    "long attribute": "'<variable ' + 'a' * n + '>'",
    "attributes": "'<variable ' + ' name' * n",
    "closing tags": "'<x0>' + '</x1>' * n",
    "open and close": "'<x0></x1>' * n",
    "two names": "'<x0><x1>' * n",
    "reasonings": "'<reasoning>' * n",
    "thoughts": "'<think>' * n",
    "thoughts end": "'</think>' * n",
    "angles": "'<' * n",
    "values": "'<variable name=\"x0\"><value>' + '</value> ' * n + '</variable>'",
    "cdata": "'<x0><![CDATA[' + ']]> ' * n + '</x0>'",
    "entities": "'<x0>' + '&lt;' * n + '</x0>'",
    "names": "''.join(f'<variable name=\"y{i}\">1</variable>' for i in range(n // 30))",
    "digits": "'{\"x0\": ' + '9' * n + '}'",
    "zeros": "'{\"x0\": 1e' + '9' * n + '}'",
    "words": "'{\"x0\": ' + 'a' * n + '}'",
    "key": "'{\"' + 'a' * n + '\": 1}'",
    "quotes": "'{\"x0\": ' + '`' * n",
    "surrogates": "'{\"x0\": \"' + chr(0xd800) * n + '\"}'",
    "zeroes": "chr(0) * n",
}

PROGRAM = """
import sys, json
sys.path.insert(0, "..")
from minitrace import coerce_value, read_reply
read = {}
for key, expression in json.loads(sys.argv[1]).items():
    for size in map(int, sys.argv[2:]):
        text = eval(expression, {"n": size})[:size]
        reply = read_reply(text, ["x0", "x1", "prompt0"])
        for value in (*reply.values.values(), text, text.removeprefix('{"x0": ')):
            for like in (1, 1.5, [], {}, ""):
                try: coerce_value(value, like)
                except ValueError: pass
        read[key] = len(reply.problems)
assert "characters" in read_reply("[" * 3_000_000, ["x0"]).problems[0]
print(json.dumps(read))
"""


@pytest.mark.parametrize("size", [30_000, pytest.param(180_000, marks=pytest.mark.slow)])
def test_hostile_texts_never_crash_the_interpreter(size):
    """Deep, long and repetitive texts, in a process of their own, each read in several ways."""
    here = pathlib.Path(__file__).parent
    command = [sys.executable, "-c", PROGRAM, json.dumps(HOSTILE), str(size)]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout).keys() == HOSTILE.keys()
