"""The run report: a page from the journal of a training run, whatever a language model wrote there."""

import base64
import copy
import hashlib
import html
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from browser import CHROMIUM, Browser
from conftest import ROOT
from minitrace_train import train

from minitrace import Module, OptoPrime, Reply, bundle, node, operators

sys.path.insert(0, str(ROOT / "tutorial"))
import report

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")

# ---- A run as it happens: a stand-in for a language model sorts letters and mends the rules for it

LETTERS = [
    ("The server is down, nobody can work.", "urgent"),
    ("Could you send the invoice again?", "calm"),
    ("Fire in the basement, please call.", "urgent"),
    ("Thank you for the nice lunch.", "calm"),
    ("I would like a larger font.", "calm"),
    ("Our data is gone.", "urgent"),
]
MENDED = '''def urgent(self, words):
    """Is one of these words a reason to hurry?"""
    alarming = {"down", "fire", "gone", "broken"}
    return "urgent" if any(word in alarming for word in words.lower().split()) else "calm"'''
SUGGESTIONS = [
    {"keywords": "Name the words that sound alarming, in lower case."},
    {"keywords": "Shout.", "urgent": MENDED.replace('"gone", ', "")},
    "I would rather talk about the weather.",
    {"urgent": MENDED},
    {"keywords": "Name the three words that matter most, in lower case, with nothing else."},
]


class Triage(Module):
    """Ask for the words that matter in a letter, then let a rule decide."""

    def __init__(self, llm):
        self.llm = llm
        self.keywords = node("Name the words that matter.", name="keywords", trainable=True)

    def forward(self, letter):
        return self.urgent(operators.call_llm(self.llm, self.keywords, letter))

    @bundle("[urgent] Decide by the words that matter.", trainable=True)
    def urgent(self, words):
        return "calm"


class StandIn:
    """A language model of a few lines: it finds words in letters, and suggests what is written above."""

    def __init__(self, suggestions=SUGGESTIONS):
        self.suggestions = list(suggestions)

    def __call__(self, messages, **options):
        asked = " ".join(message["content"] for message in messages)
        usage = {"input_tokens": len(asked) // 4, "output_tokens": 12}
        if "# Variables" not in asked:
            words = re.findall(r"[a-z]+", messages[-1]["content"].lower())
            return Reply(" ".join(sorted(words, key=len)[-5:]), usage=usage, model="stand-in")
        wanted = self.suggestions.pop(0) if self.suggestions else {}
        if isinstance(wanted, dict):
            names = re.findall(r"\((?:code|str)\) (\w+)", asked)
            find = {
                key: next(n for n in names if ("code" in n) == (key == "urgent")) for key in wanted
            }
            wanted = {find[key]: value for key, value in wanted.items()}
            reasoning = "The rule always says calm; it should look at the words."
            wanted = json.dumps({"reasoning": reasoning, "suggestion": wanted})
        return Reply(wanted, usage=usage, model="stand-in")


def judge(query, response, info):
    return float(response == info), "right" if response == info else f"wrong: this is {info}"


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """The journal of a real run."""
    path = tmp_path_factory.mktemp("run") / "run.jsonl"
    llm = StandIn()
    agent = Triage(llm)
    train(agent, LETTERS, judge, OptoPrime(agent, llm=llm), epochs=2, batch_size=3, journal=path)
    return path


def write(path, records, end="\n"):
    path.write_text("\n".join(map(json.dumps, records)) + end, encoding="utf-8")
    return path


RUN = {"event": "run", "configuration": {"parameters": {"x0": 3}}}


def step(n, **facts):
    known = {"score": 0.5, "accepted": 1, "reason": "better", "values": {"x0": n}, "graph": None}
    return {"event": "step", "step": n, "time": "2026-11-23T07:00:00Z", **known, **facts}


# ---- What the page says


class Outline(HTMLParser):
    """The elements of a page, and whether each is closed where it should be."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_run_becomes_a_page_with_all_its_steps(journal):
    page = report.page(journal.read_bytes(), (3, 15))
    outline, words = Outline(page), "".join(Outline(page).texts)
    assert outline.open == []
    steps = [each for each in outline.all("section") if each["class"] == "step"]
    assert [each["id"] for each in steps] == ["step-1", "step-2", "step-3", "step-4"]
    assert not any("hidden" in each for each in steps)  # all can be read without JavaScript
    assert len(outline.all("svg")) == 1 + len(steps)
    assert "Step 2, accepted: as good as before" in words and "wrong: this is urgent" in words
    assert "I would rather talk about the weather." in words  # the reply that was refused
    assert "The rule always says calm" in words and "# Variables" in words
    assert re.search(
        r"best score: 1 · measured on: 6 examples of the dataset · found in step: \d", words
    )
    assert "$0.0" in words and "ended because: all epochs are done" in words
    assert "unusable replies: 1" in words
    assert re.search(r"language models: 35 calls, [\d.]+ s, 3,\d{3} tokens in, 420 out", words)
    assert "+     alarming = " in words and '-     return "calm"' in words


def test_the_plot_marks_what_was_accepted_refused_and_best(journal):
    outline = Outline(report.page(journal.read_bytes()))
    kinds = [each.get("class") for each in outline.all("path")]
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    tried = [each for each in records if each["event"] == "proposal" and each["score"] is not None]
    assert kinds.count("current") == 4 and kinds.count("best") == 1
    assert kinds.count("accepted") + kinds.count("refused") == len(tried)
    assert {each["href"] for each in outline.all("a")} <= {f"#step-{n}" for n in range(1, 5)}


def test_a_refused_proposal_is_a_cross_and_says_why():
    told = {
        "candidate": 1,
        "values": {"x0": 9},
        "score": 0.2,
        "refused": ["x0 = 'warm': no number"],
    }
    records = [RUN, {"event": "proposal", "step": 1, **told}, step(1, accepted=0, reason="worse")]
    page = report.page("\n".join(map(json.dumps, records)).encode())
    outline, words = Outline(page), " ".join(Outline(page).texts)
    assert [each["class"] for each in outline.all("path")] == ["current", "refused"]
    assert "nothing accepted: a worse score" in words and "Unusable reply: x0 = 'warm'" in words
    assert "Proposal 1: not accepted" in words and "<del>3</del><ins>9</ins>" in page


def test_validation_is_what_is_drawn_where_there_is_any():
    end = {"event": "end", "score": 0.4, "examples": 2, "scored_on": "validation"}
    records = [RUN, step(1, validation=0.1), step(2, score=0.0, validation=0.4), end]
    page = report.page("\n".join(map(json.dumps, records)).encode())
    assert "The validation score of the current values" in page and "Step 2, current: 0.4" in page
    assert "measured on: 2 examples of the validation set" in page
    assert "score: 0 · validation: 0.4" in page
    tried = {"event": "example", "step": 0, "part": "validate", "query": "how many?", "score": 0.1}
    page = report.page("\n".join(map(json.dumps, [RUN, tried, step(1)])).encode())
    assert "Step 0, before anything changed" in page and "how many?" in page


def test_the_title_names_the_file(journal, tmp_path):
    odd = tmp_path / "a <b> & 'c'.jsonl"
    odd.write_bytes(journal.read_bytes())
    assert report.main([str(odd)]) == 0
    page = odd.with_suffix(".html").read_text(encoding="utf-8")
    told = "Training run: a &lt;b&gt; &amp; &#x27;c&#x27;.jsonl"
    assert f"<title>{told}</title>" in page and f"<h1>{told}</h1>" in page


def test_a_function_has_its_name_and_no_number(journal):
    outline = Outline(report.page(journal.read_bytes()))
    texts = [text.strip() for text in outline.texts]
    assert "urgent" in texts and "urgent_code" in texts  # a heading, and the graph
    assert not any(re.search(r"code_?\d", text) for text in texts)


def test_tokens_are_those_of_the_run_where_no_server_told_them():
    told = {"usage": {"input_tokens": 1200, "output_tokens": 30}, "tokens": 1230, "seconds": 1}
    assert report.spent([told]) == "1 call, 1.0 s, 1,200 tokens in, 30 out"
    assert report.spent([{"tokens": 1500}] * 2) == "2 calls, 0.0 s, about 3,000 tokens"
    mixed = "2 calls, 1.0 s, 1,200 tokens in, 30 out, about 1,500 tokens more"
    assert report.spent([told, {"tokens": 1500, "usage": None}]) == mixed
    assert report.spent([{}]) == "1 call, 0.0 s, tokens unknown"


def test_a_step_whose_replies_were_unusable_says_so(tmp_path):
    llm = StandIn(["Nice weather."] * 3)
    agent = Triage(llm)
    with pytest.warns(UserWarning, match="no reply to the optimizer could be used"):
        train(
            agent, LETTERS, judge, OptoPrime(agent, llm=llm), batch_size=6, journal=tmp_path / "j"
        )
    words = "".join(Outline(report.page((tmp_path / "j").read_bytes())).texts)
    assert "Step 1, nothing accepted: no reply could be used" in words
    assert words.count("Unusable reply: No answer was found") == 3


def plain(page, without):
    """The text of a piece of HTML without the elements of one kind."""
    return html.unescape(
        re.sub(r"<[^>]*>", "", re.sub(f"<{without}>.*?</{without}>", "", page, flags=re.S))
    )


@pytest.mark.parametrize("seed", range(60))
def test_a_word_diff_loses_no_blank(seed):
    dice = random.Random(seed)
    parts = ["word", "Word", "3.5", "-2", " ", "  ", "\t", ",", "é", "_x", "\u3000", "(", "10%"]

    def sentence(most):
        return "".join(dice.choice(parts) for _ in range(dice.randrange(most)))

    old = sentence(dice.choice([5, 40, 900]))
    cut = dice.randrange(len(old) + 1)
    new = old[:cut] + sentence(9) + old[min(len(old), cut + dice.randrange(9)) :]
    changed = report.change(old, new)
    assert plain(changed, "del") == new.replace("\u3000", "\\u3000")
    assert plain(changed, "ins") == old.replace("\u3000", "\\u3000")


def test_blanks_alone_are_a_change_that_can_be_seen():
    assert "<del> </del><ins>  </ins>" in report.change("a b", "a  b")
    assert "<ins> </ins>" in report.change("a b", "a b ")
    assert "<ins>+ \n</ins>" in report.change("a\nb", "a\nb\n")
    long = " ".join(f"word{n}" for n in range(300))
    assert report.change(long, long.replace("word150", "other")).count("<del>") == 1


def test_the_same_journal_gives_the_same_page(journal):
    assert report.page(journal.read_bytes()) == report.page(journal.read_bytes())


# ---- What may be wrong with a journal


def test_a_run_that_was_killed_can_be_read_up_to_there(journal):
    data = journal.read_bytes()
    for length in range(data.index(b"\n") + 1, len(data), 997):
        page = report.page(data[:length])
        assert "The run has not ended" in page and Outline(page).open == []
        assert ("is cut off" in page) is not data[:length].endswith(b"\n")


def test_what_is_not_known_is_passed_over():
    records = [RUN, {"event": "weather", "step": 1}, {"event": "note"}, step(1)]
    page = report.page(("\n".join(map(json.dumps, records)) + "\n[1]\nnot JSON\n").encode())
    assert "Line 5 is not a record." in page and "Line 6 is not a record." in page
    assert "Step 1" in page


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n", b"[]", b"{}", b"\x00\xff\xfe", b"<html>", b'{"event": "call"}', b"[" * 10**5],
)
def test_what_is_no_journal_is_refused_in_one_line(data, tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    path.write_bytes(data)
    assert report.main([str(path)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "run.jsonl: its first line" in told.err
    assert not path.with_suffix(".html").exists()


def test_files_that_cannot_be_read_or_written_are_named(journal, tmp_path, capsys):
    assert report.main([str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err
    assert report.main([str(journal), "-o", str(tmp_path / "no" / "run.html")]) == 2
    assert "run.html: No such file" in capsys.readouterr().err
    assert report.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_never_takes_the_place_of_the_journal(journal, tmp_path, capsys):
    path = tmp_path / "run.html"
    path.write_bytes(journal.read_bytes())
    with pytest.raises(SystemExit, match="2"):
        report.main([str(path)])
    assert "the page would take the place of the journal" in capsys.readouterr().err
    assert path.read_bytes() == journal.read_bytes()


def test_it_runs_from_the_command_line(journal, tmp_path):
    target = tmp_path / "page.html"
    program = [
        sys.executable,
        str(ROOT / "tutorial" / "report.py"),
        str(journal),
        "-o",
        str(target),
    ]
    done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"{target}\n" and done.stderr == ""
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")


ODD = [
    None,
    True,
    -1,
    1e308,
    10**400,
    float("nan"),
    "",
    "text",
    [],
    [[]],
    {},
    {"a": [1]},
    {"$set": 1},
]


@pytest.mark.parametrize("seed", range(40))
def test_no_field_of_any_type_breaks_the_page(seed, journal):
    dice = random.Random(seed)
    records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    for record in records[1:]:
        for name in dice.sample(sorted(record), 2):
            record[name] = copy.deepcopy(dice.choice(ODD))
        if dice.random() < 0.2 and isinstance(record.get("graph"), dict):
            record["graph"]["nodes"] = copy.deepcopy(dice.choice(ODD))
    page = report.page("\n".join(map(json.dumps, records)).encode())
    assert Outline(page).open == []


# ---- What a language model may have written

ATTACKS = [
    "<script>window.pwned = 1</script>",
    "</script><script>window.pwned = 1</script>",
    "</style><img src=x onerror='window.pwned = 1'>",
    '" onmouseover="window.pwned = 1" x="',
    "]]><svg onload=window.pwned=1>",
    "</pre></section></main><iframe srcdoc='<script>parent.pwned = 1</script>'>",
    "<meta http-equiv=refresh content='0;url=https://example.com/'>",
    "<link rel=stylesheet href=https://example.com/x.css>",
    "javascript:window.pwned=1",
    "\x00\x1b[31m\ud800\u202egnp.exe\u2028",
    "x" * 100_000,
    "a " * 50_000,
    "مرحبا بالعالم " * 20,
    "漢字" * 400,
    "&lt;b&gt; &amp;amp; <!-- --> <![CDATA[",
]


def hostile():
    """A journal with an attack in every field that holds text."""
    records = [
        {
            "event": "run",
            "time": ATTACKS[0],
            "configuration": {"parameters": {ATTACKS[0]: ATTACKS[1]}},
        }
    ]
    for n, words in enumerate(ATTACKS, 1):
        x, y = {"id": "x", "value": words, "trainable": True}, {"id": words[:99], "value": [words]}
        end = {
            "id": "z",
            "operator": words,
            "inputs": {words[:9]: "x", "y": words[:99]},
            "value": words,
        }
        outputs = [{"id": "z", "feedback": words, "score": 0.5}]
        graph = {"nodes": [x, y, end], "operators": {words: words}, "outputs": outputs}
        place = {"step": n, "candidate": 1, "part": "propose", "model": words, "example": words}
        messages = [{"role": words, "content": words}]
        records += [
            {"event": "call", **place, "messages": messages, "reply": words, "usage": {words: words}},
            {"event": "call", **place, "part": words, "messages": words, "reply": words},
            {"event": "example", **place, "part": "forward", "query": words, "response": words,
             "feedback": words, "score": words},
            {"event": "proposal", **place, "values": {words: words, "x": f"{words}\n{words}"},
             "reasoning": words, "refused": [words], "error": words, "score": n / 9},
            step(n, reason=words, values={"x": words}, graph=graph, time=words, epoch=words),
        ]  # fmt: skip
    return [
        *records,
        {"event": "end", "reason": ATTACKS[0], "best": {"step": ATTACKS[0], "score": 1}},
    ]


def test_nothing_that_was_written_becomes_more_than_text(journal):
    page = report.page("\n".join(map(json.dumps, hostile())).encode())
    page.encode("utf-8")
    outline, plain = Outline(page), Outline(report.page(journal.read_bytes()))
    assert outline.open == []
    assert {tag for tag, _ in outline.elements} <= {tag for tag, _ in plain.elements} | {
        "ins",
        "del",
    }
    names = {name for _, attributes in outline.elements for name in attributes}
    assert names <= {name for _, attributes in plain.elements for name in attributes} | {
        "textlength",
        "lengthadjust",
    }
    assert len(outline.all("script")) == len(outline.all("style")) == 1
    assert all(each["href"].startswith("#step-") for each in outline.all("a"))
    assert ATTACKS[2] in "".join(outline.texts)
    assert re.sub(r"[\n\t]", "", page).isprintable() or "\u200d" in page
    assert len(page) < 5_000_000


def test_the_policy_lets_only_this_style_and_this_script_run(journal):
    page = report.page(journal.read_bytes())
    rules = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    for tag in "style", "script":
        inside = re.search(f"<{tag}>(.*?)</{tag}>", page, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in rules
    assert rules.startswith("default-src 'none';") and "unsafe" not in rules
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "") and "https:" not in page


# ---- In a browser


@pytest.fixture(scope="module")
def browser():
    with Browser() as one:
        yield one


@pytest.fixture
def page(browser, journal, tmp_path):
    path = tmp_path / "run.html"
    assert report.main([str(journal), "-o", str(path)]) == 0
    return browser.open(path)


SHOWN = "[...document.querySelectorAll('section.step')].filter(s => s.offsetHeight).map(s => s.id)"
TOLD = "document.querySelector('nav output').textContent"


@needs_chromium
def test_the_steps_are_walked_by_slider_by_buttons_by_keys_and_by_the_plot(page):
    assert page.run(SHOWN) == ["step-1"] and "Step 1" in page.run(TOLD)
    page.press("ArrowRight")
    assert page.run(SHOWN) == ["step-2"]
    page.press("End")
    page.press("ArrowRight")
    assert page.run(SHOWN) == ["step-4"]
    page.press("Home")
    page.run("document.querySelector('#walk').focus()")
    page.press("ArrowRight")  # now it is the slider's own key
    assert page.run(SHOWN) == ["step-2"]
    assert page.run("document.querySelector('#walk').getAttribute('aria-valuetext')") == page.run(
        TOLD
    )
    page.run("document.querySelector('.on').click()")
    assert page.run(SHOWN) == ["step-3"]
    page.run("document.querySelector('.back').click()")
    page.run(
        "document.querySelector('a[href=\"#step-4\"]').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    page.run("new Promise(done => setTimeout(done, 50))")
    assert page.run(SHOWN) == ["step-4"]
    page.run("document.querySelector('.all').click()")
    assert page.run(SHOWN) == ["step-1", "step-2", "step-3", "step-4"]
    assert page.run("document.querySelector('.all').getAttribute('aria-pressed')") == "true"
    assert not page.complaints


@needs_chromium
def test_printed_or_without_scripts_all_steps_are_there(page, browser):
    page.call("Emulation.setEmulatedMedia", media="print")
    assert len(page.run(SHOWN)) == 4 and page.run("document.querySelector('nav').offsetHeight") == 0
    page.call("Emulation.setEmulatedMedia", media="")
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.loaded = False
    page.call("Page.reload")
    while not page.loaded:
        page.hear(browser.message())
    assert len(page.run(SHOWN)) == 4 and page.run("document.querySelector('nav').offsetHeight") == 0


OVERFLOW = """[document.documentElement, ...document.querySelectorAll("pre, td, p, h1, h2, h3, h4, h5, nav, dl")]
    .filter(each => each.scrollWidth > each.clientWidth + 1 && each.clientWidth)
    .map(each => [each.tagName, each.textContent.slice(0, 60), each.scrollWidth, each.clientWidth])"""


@needs_chromium
@pytest.mark.parametrize("width", [1200, 400])
def test_no_text_leaves_its_place(page, width, tmp_path, browser):
    bad = tmp_path / "bad.html"
    bad.write_text(report.page("\n".join(map(json.dumps, hostile())).encode()), encoding="utf-8")
    for each in page, browser.open(bad):
        each.size(width, 800)
        each.run("document.querySelector('.all').click()")
        each.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert each.run(OVERFLOW) == []
        assert each.run("window.pwned") is None and not each.complaints
        assert each.run("document.querySelectorAll('iframe, img, link').length") == 0


@needs_chromium
def test_what_got_in_all_the_same_would_not_run(page):
    """The policy is a second wall: without the escaping, too, no script and no style would run."""
    page.run(
        "document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\" onclick=\"pwned = 1\">x</p>')"
    )
    page.run("document.body.lastChild.click()")
    assert page.run("window.pwned") is None
    assert page.run("getComputedStyle(document.body.lastChild).color") != "rgb(255, 0, 0)"


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_by_day_and_by_night(page, scheme):
    from test_pictures import contrast

    page.prefer(prefers_color_scheme=scheme)
    pairs = page.run("""[...document.querySelectorAll("p, td, th, h1, h2, h3, h4, h5, pre, ins, del, figcaption")].map(each => {
        let back = each, color = "rgba(0, 0, 0, 0)";
        while (back && color === "rgba(0, 0, 0, 0)") { color = getComputedStyle(back).backgroundColor; back = back.parentElement }
        return [getComputedStyle(each).color, color] })""")
    for pair in {tuple(each) for each in pairs}:
        ink, paper = ([int(part) / 255 for part in re.findall(r"\d+", each)[:3]] for each in pair)
        assert contrast(ink, paper) >= 4.5, pair


@needs_chromium
def test_those_who_listen_or_use_keys_find_everything_named(page):
    """The browser's own tree for screen readers: a name for whatever can be used or is a picture."""
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = [
        (each["role"]["value"], each.get("name", {}).get("value"))
        for each in tree
        if not each["ignored"]
    ]
    wanted = {"button", "slider", "region", "link", "image", "navigation", "table"}
    found = [(role, name) for role, name in roles if role in wanted]
    assert {role for role, _ in found} >= {
        "button",
        "slider",
        "region",
        "link",
        "navigation",
        "table",
    }
    assert all(name for _, name in found)
    levels = page.run(
        "[...document.querySelectorAll('h1, h2, h3, h4, h5')].map(h => +h.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
