"""What every other test would let pass: each test here fails on a small, wrong change of the file."""

import json

import pytest

import minitrace
from minitrace import (
    MAX_DEPTH,
    MAX_REPLY,
    ExecutionError,
    Optimizer,
    OptoPrime,
    Proposal,
    SumPropagator,
    TraceGraph,
    backward,
    bundle,
    coerce_value,
    node,
    read_reply,
    train,
)

# ---- backward: what goes in


def test_several_feedbacks_may_come_as_a_tuple():
    x = node(1, "x", trainable=True)
    outputs = x + 1, x + 2
    found = backward(outputs, ("low", "high"), SumPropagator())
    assert [found[each] for each in outputs] == ["low", "high"]


def test_scores_may_come_as_a_tuple():
    x = node(1, "x", trainable=True)
    assert backward([x + 1, x + 2], "low", score=(1, 0))[x].score == 0.5


def test_feedback_left_out_is_an_empty_text():
    x = node(1, "x", trainable=True)
    assert backward(x + 1)[x].feedback == [""]


def test_one_feedback_arrives_as_it_was_said():
    class Words(str):
        """A text with something to it."""

    x, words = node(1, "x", trainable=True), Words("low")
    assert backward(x + 1, words, SumPropagator())[x] is words
    assert backward([x + 1, x + 2], [None, words], SumPropagator())[x] is words


def test_a_rule_may_give_a_tuple():
    rules = SumPropagator()
    rules.register("add", lambda node, feedback: (feedback, 0))
    x = node(1, "x", trainable=True)
    assert backward(x + 1, 5, rules)[x] == 5


def test_what_a_wrong_rule_gave_is_shown_up_to_eighty_characters():
    x = node(1, "x", trainable=True)
    for size, shown in (78, repr("a" * 78)), (79, "(81 characters)"):
        rules = SumPropagator()
        rules.register("add", lambda node, feedback, size=size: "a" * size)
        with pytest.raises(ValueError) as caught:
            backward(x + 1, "low", rules)
        assert shown in str(caught.value)


def test_a_score_that_is_no_number_is_refused():
    x = node(1, "x", trainable=True)
    with pytest.raises(TypeError, match="a score is a number, not 'high'"):
        backward(x + 1, "low", score="high")
    with pytest.raises(TypeError, match=r"a score is a number, not \[0.5, 'high'\]"):
        backward([x + 1, x + 2], "low", score=[0.5, "high"])


def test_a_value_is_no_output():
    with pytest.raises(TypeError, match=r"starts from a node, not 3: was it read with \.data"):
        backward(3, "low")


def test_without_a_score_there_is_none():
    x = node(1, "x", trainable=True)
    graph = backward(x + 1, "low")[x]
    assert graph.score is None and '"score"' not in graph.to_json()


def test_a_start_that_forgets_an_output_is_an_error():
    class Forgetful(SumPropagator):
        def start(self, outputs):
            return ["for the first alone"]

    x = node(1, "x", trainable=True)
    with pytest.raises(ValueError, match="shorter"):
        backward([x + 1, x + 2], "low", Forgetful())


def test_a_propagator_with_a_call_of_its_own_still_owes_every_parent_something():
    class Careless(SumPropagator):
        def __call__(self, node, feedback):
            return [feedback]  # and nothing for the other

    x = node(1, "x", trainable=True)
    with pytest.raises(ValueError, match="shorter"):
        backward(x + 1, "low", Careless())


def test_the_warning_names_every_output():
    with pytest.warns(UserWarning, match="backward from add:0, add:1 reaches no parameter"):
        backward([node(1) + 2, node(1) + 3], "low")


def test_visualize_gives_the_graph_with_what_was_said():
    x = node(1, "x", trainable=True)
    graph = (x + 1).backward("low", visualize=True)
    assert (graph.feedback, graph.score, len(graph)) == (["low"], None, 3)
    graph = (x + 1).backward("high", SumPropagator(), score=0.5, visualize=True)
    assert (graph.feedback, graph.score) == (["high"], 0.5)


# ---- the trace graph


def kinds(graph):
    return {graph.names[record.number]: record.kind for record in graph}


def test_the_whole_graph_above_a_node_says_what_each_node_is():
    x = node(2, "x", trainable=True)
    fixed = node(3, "c") * 4
    assert kinds(TraceGraph.of(fixed + x)) == {
        "x0": "parameter",
        "c0": "input",
        "int0": "input",
        "multiply0": "operator",
        "add0": "operator",
    }
    assert TraceGraph.of(x).feedback == [None]


def test_what_was_computed_from_nothing_is_an_input():
    @bundle("[dice] Four.")
    def dice():
        return 4

    assert kinds(TraceGraph.of(dice())) == {"dice0": "input"}


def test_a_failure_is_an_exception_in_the_graph():
    x = node(0, "x", trainable=True)
    with pytest.raises(ExecutionError) as caught:
        1 / x
    graph = backward(caught.value.exception_node, "mend it")[x]
    assert [record.kind for record in graph] == ["parameter", "input", "exception"]


def test_a_node_brings_its_fixed_inputs_and_no_other_parents():
    x = node(1, "x", trainable=True)
    graph = TraceGraph()
    graph.add(x + 1)
    assert kinds(graph) == {"int0": "input", "add0": "operator"}


@pytest.mark.parametrize("read", [["names"], ["children"], ["names", "children"]])
def test_a_graph_that_grows_derives_its_names_and_children_anew(read):
    x = node(1, "x", trainable=True)
    graph = TraceGraph.of(x)
    if "names" in read:
        assert [*graph.names.values()] == ["x0"]
    if "children" in read:
        assert graph.children(x) == []
    graph.add(x + 1)
    assert [graph.names[record.number] for record in graph] == ["x0", "int0", "add0"]
    assert [record.operator for record in graph.children(x)] == ["add"]


def test_a_parameter_keeps_its_own_name_in_a_graph_without_its_namesakes():
    node(1, "x", trainable=True), node(2, "x", trainable=True)
    third = node(3, "x", trainable=True)
    graph = backward(third + 1, "low")[third]
    assert graph.names[graph.parameters[0]._number] == third.py_name == "x2"


def test_a_parameter_keeps_its_name_though_an_older_input_has_it():
    older = node(1, "x")
    minitrace.GRAPH.clear()
    x = node(2, "x", trainable=True)
    graph = backward(older + x, "low")[x]
    assert [graph.names[record.number] for record in graph] == ["x1", "x0", "add0"]


def test_a_name_given_to_a_node_is_made_an_identifier():
    x = node(1, "x", trainable=True)
    graph = backward(node("a", "my words!") * x, "low")[x]
    assert [*graph.names.values()] == ["x0", "my_words_0", "multiply0"]


def test_what_a_graph_says_beyond_is_kept_when_graphs_are_merged():
    read = [TraceGraph.from_json(json.dumps({"nodes": [], key: 1})) for key in ("by", "at")]
    assert TraceGraph.merged(read).extra == {"by": 1, "at": 1}


def test_an_id_from_elsewhere_is_a_name_only_as_an_identifier():
    form = {"nodes": [{"id": "a b", "value": 1}, {"id": 7, "value": 2}]}
    graph = TraceGraph.from_json(json.dumps(form))
    assert [*graph.names.values()] == ["a_b", "_7"] and [*graph.ids.values()] == ["a b", 7]


def test_a_graph_from_elsewhere_and_one_from_here_have_distinct_ids_together():
    read = TraceGraph.from_json('{"nodes": [{"id": "x0", "value": 1}]}')
    x = node(2, "x", trainable=True)
    whole = TraceGraph.merged([read, backward(x + 1, "low")[x]])
    assert [whole.ids[record.number] for record in whole] == ["x0", "x0_", "int0", "add0"]
    assert len(TraceGraph.from_json(whole.to_json())) == 4


# ---- replies: how much, how deep, how large


def test_a_reply_is_read_up_to_its_last_character_and_no_further():
    text = '{"suggestion": {"x0": 7}}'
    assert read_reply(text.rjust(MAX_REPLY), ["x0"]).values == {"x0": 7}
    problem = "The reply has 200,001 characters; at most 200,000 are read."
    assert read_reply(text.rjust(MAX_REPLY + 1), ["x0"]) == ("", "", {}, [problem])


def test_brackets_are_read_to_a_depth_and_no_further():
    for depth, good in (MAX_DEPTH - 1, True), (MAX_DEPTH, False):
        read = read_reply('{"x0": ' + "[" * depth + "]" * depth + "}", ["x0"])
        assert bool(read.values) is good is not bool(read.problems)
    assert MAX_DEPTH == 64


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


# ---- replies: where an answer begins and ends


@pytest.mark.parametrize("comment", ["// why\n", "# why\n", "/* why */ "])
def test_an_object_may_begin_with_a_comment(comment):
    text = "{" + comment + '"reasoning": "r", "suggestion": {"x0": 7}} or {"x0": 3}'
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
    text = '<x0>7</x0> {"answer": "12", "x0": 3}'
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


@pytest.mark.parametrize("text", ["[1]x", "[1],", "[1]]", "[1] 2"])
def test_a_value_with_something_after_it_is_none(text):
    with pytest.raises(ValueError, match="Expected list, not"):
        coerce_value(text, [0])


def test_code_that_is_no_text_is_left_to_whoever_checks_it():
    assert read_reply('{"suggestion": {"__code0": 5}}', ["__code0"]).values == {"__code0": 5}


# ---- values


def test_an_update_of_nothing_is_remembered_as_no_change():
    x = node(1, "x", trainable=True)
    optimizer = OptoPrime([x])
    assert optimizer.update({}) == {}
    assert [attempt.reason for attempt in optimizer.history] == ["no change"]
    optimizer.update({x: 2})
    assert optimizer.history[-1].reason == ""


def test_a_value_that_stays_as_it_is_is_no_change():
    x, y = node(1, "x", trainable=True), node("a", "y", trainable=True)
    answer = '{"suggestion": {"x0": "1", "y0": "b"}}'
    optimizer = OptoPrime([x, y], llm=lambda messages: answer)
    optimizer.backward(y + "!", "hm")
    assert optimizer.propose() == {y: "b"}


def test_a_refused_value_is_shown_as_python_writes_it_and_no_longer_than_a_line():
    p = node(1, "p", trainable=True)
    with pytest.raises(ValueError, match="p:0 cannot take 'banana': it must be an int"):
        p.set("banana")
    for size, shown in (78, f"cannot take {'x' * 78!r}: "), (79, "...(81 characters)..."):
        with pytest.raises(ValueError) as caught:
            p.set("x" * size)
        assert shown in str(caught.value)


def test_what_is_good_in_a_reply_is_not_kept_beside_what_is_refused():
    x, y = node(1, "x", trainable=True), node(2, "y", trainable=True, bounds=(0, 9))
    answer = '{"suggestion": {"x0": 5, "y0": 50}}'
    optimizer = OptoPrime([x, y], llm=lambda messages: answer, retries=0, on_refusal="keep")
    optimizer.backward(x + y, "low")
    assert optimizer.step() == {} and (x.data, y.data) == (1, 2)
    assert "y0: parameter y:0 cannot take 50" in optimizer.history[-1].proposal.refused[0]


class Row:
    """An array as far as checks look at one: compared item by item, and of no single truth."""

    def __init__(self, *items):
        self.items = items

    def __ge__(self, low):
        return Row(*(item >= low for item in self.items))

    def __le__(self, high):
        return Row(*(item <= high for item in self.items))

    def all(self):
        return all(self.items)

    def __bool__(self):
        raise ValueError("an array has no truth")


def test_bounds_and_checks_hold_for_every_item_of_an_array():
    p = node(Row(1, 2), "p", trainable=True, bounds=(0, 9), check=lambda row: row <= 5)
    p.set(Row(0, 5))
    assert p.data.items == (0, 5)
    for items, words in ((-1, 2), "between 0 and 9"), ((2, 10), "between 0"), ((0, 6), "its check"):
        with pytest.raises(ValueError, match=words):
            p.set(Row(*items))


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_a_collection_keeps_its_type(kind):
    p = node(kind([1]), "p", trainable=True)
    for value in ([2, 3], (2, 3), kind([2, 3])):
        p.set(value)
        assert p.data == kind([2, 3]) and type(p.data) is kind


def test_what_has_no_parameters_is_named():
    with pytest.raises(TypeError, match="7 has no parameters"):
        OptoPrime(7)


def test_what_was_tried_in_vain_long_ago_is_kept_without_a_proposal():
    class Down(Optimizer):
        def propose(self, n=None):
            return Proposal({p: p.data - 1 for p in self.parameters})

    x = node(0, "x", trainable=True)
    optimizer = Down(x)
    train(x, [(None, 0)], lambda query, response, info: response, optimizer, epochs=110)
    first, last = optimizer.history[0], optimizer.history[-1]
    assert (len(optimizer.history), first.reason, first.score) == (110, "not kept", -1)
    assert first.proposal is last.proposal is None and not first.feedback
