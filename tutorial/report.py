"""A training run as one page: what was tried at each step, what was said of it, what changed.

`train(..., journal="run.jsonl")` records everything that happens; this program reads the record.

    python3 tutorial/report.py run.jsonl -o run.html

The page needs no other file and no network. It can be read without JavaScript, which only adds keys
to go from step to step. Whatever a language model wrote appears as text: `el` escapes what is not
`Html` already, and the page's own policy allows no script or style but the two below.
"""

import argparse
import base64
import difflib
import hashlib
import html
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
sys.path.append(str(Path(__file__).resolve().parent / "companions"))

from minitrace_pictures import to_svg

from minitrace import GraphError, TraceGraph

# ---- The journal: JSON lines, the first of which says how the run was configured


FIELDS = {"step": int, "refused": list, "messages": list}
FIELDS |= dict.fromkeys(("configuration", "values", "usage", "best", "graph"), dict)


class NotAJournal(ValueError):
    """The file is not the journal of a training run."""


def read(data):
    """The records in the bytes of a journal, and what could not be read of it, in words."""
    records, notes = [], []
    lines = data.decode("utf-8", "replace").split("\n")
    for place, line in enumerate(lines, 1):
        try:
            found = json.loads(line) if line.strip() else {"event": ""}
            fits = {k: v for k, v in found.items() if isinstance(v, FIELDS.get(k, object))}
            records.append({**fits, "event": str(found["event"])})
        except (ValueError, AttributeError, LookupError, RecursionError):
            notes.append(f"Line {place} is {'cut off' if place == len(lines) else 'not a record'}.")
        if place == 1 and not (records and "configuration" in records[0]):
            raise NotAJournal("its first line is not that of the journal of a run")
    if all(record["event"] != "end" for record in records):
        notes.append("The run has not ended: it was stopped, or is still going.")
    return records, notes


def by_step(records):
    """The records of each step, by what they tell of."""
    steps = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["event"] in ("call", "example", "proposal", "step"):
            steps[max(0, min(record.get("step", 0), 10**6))][record["event"]].append(record)
    return dict(sorted(steps.items()))


def number(value):
    """The value if it is a number that can be drawn, or else None."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if plain and abs(value) < 1e15 else None


def spent(calls, prices=()):
    """What some calls took, in words: how many, seconds, tokens, US dollars."""
    kinds = "input_tokens", "output_tokens"
    used = [call["usage"] for call in calls if call.get("usage")]
    tokens = [sum(number(each.get(kind)) or 0 for each in used) for kind in kinds]
    guessed = sum(number(call.get("tokens")) or 0 for call in calls if not call.get("usage"))
    seconds = sum(number(call.get("seconds")) or 0 for call in calls)
    words = [f"{len(calls):,} call{'s' * (len(calls) != 1)}, {seconds:.1f} s"]
    words += [f"{tokens[0]:,} tokens in, {tokens[1]:,} out"] if any(tokens) else []
    words += [f"about {guessed:,} tokens{' more' * any(tokens)}"] if guessed else []
    words += ["tokens unknown"] if not (guessed or any(tokens)) else []
    words += [f"${(tokens[0] * prices[0] + tokens[1] * prices[1]) / 1e6:.4f}"] if prices else []
    return ", ".join(words) if calls else "no calls"


REASONS = {
    "better": "a better score",
    "as good": "as good as before",
    "worse": "a worse score",
    "no change": "no change was proposed",
    "refused": "no reply could be used",
    "no feedback": "no feedback reached the parameters",
    "no scores": "there are no scores to compare",
    "not compared": "scores were not compared",
    "epochs": "all epochs are done",
    "patience": "no better score for a while",
}


def because(reason):
    """Why a step or a run ended as it did, in words."""
    return REASONS.get(reason, text(reason)) if isinstance(reason, str) else text(reason)


# ---- HTML, where all that is not Html already is text


class Html(str):
    """Text that is HTML."""


def text(value, most=20_000):
    """A value in words: text as it is, anything else as JSON; nothing for None."""
    if not isinstance(value, str):
        value = "" if value is None else json.dumps(value, ensure_ascii=False)
    more = len(value) - most
    return value if more <= 0 else f"{value[:most]}\n... {more:,} more characters"


def escape(value):
    """A value as HTML, with what nobody can see as escapes."""
    if isinstance(value, Html):
        return value
    seen = (c if c.isprintable() or c in "\n\t\u200d" else repr(c)[1:-1] for c in text(value))
    return html.escape("".join(seen))


def el(tag, *parts, **attributes):
    """An element of HTML; a name such as `class_` is `class`, and `aria_label` is `aria-label`."""
    names = [(name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items()]
    start = "".join([tag, *(f' {name}="{escape(value)}"' for name, value in names)])
    return Html(f"<{start}>{''.join(map(escape, parts))}</{tag}>")


def facts(**pairs):
    """Names and values in a line, without those that nobody knows."""
    found = {name.replace("_", " "): v for name, v in pairs.items() if v is not None}
    told = {name: text(v) if number(v) is None else f"{v:.4g}" for name, v in found.items()}
    return el("p", " · ".join(map(": ".join, told.items())), class_="facts")


def wide(part, label):
    """What may be wider than the page scrolls by itself, by keys as well."""
    return el("div", part, class_="wide", tabindex="0", role="region", aria_label=label)


def pieces(words, lines):
    """A text in lines, or in words, numbers, runs of blanks, and single signs; none is lost."""
    return words.split("\n") if lines else re.findall(r"-?\d[\d.]*|\w+|\s+|[^\w\s]", words)


def change(old, new):
    """What became of a text: word by word in a line, line by line in longer ones."""
    old, new = text(old), text(new)
    lines = "\n" in old + new
    a, b = pieces(old, lines), pieces(new, lines)
    parts = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        same = [("span", "  ", a[i:j])] if kind == "equal" else []
        for tag, sign, found in same or [("del", "- ", a[i:j]), ("ins", "+ ", b[k:m])]:
            shown = [f"{sign}{line}\n" for line in found] if lines else ["".join(found)]
            parts += [el(tag, each) for each in shown if each]
    return el("pre", *parts, dir="auto", class_="lines" if lines else "words")


def changes(before, values):
    """What becomes of each parameter that gets another value."""
    new = [name for name, value in values.items() if value != before.get(name)]
    told = []
    for name in new:
        told += [el("h5", name), change(before.get(name), values[name])]
    return el("div", *told or [el("p", "Nothing changed.")])


# ---- The parts of a step


def picture(step):
    """The graph of a step."""
    if not step.get("graph"):
        return el("p", "No graph was kept.")
    try:
        svg = to_svg(TraceGraph.from_json(json.dumps(step["graph"])))
    except GraphError as error:
        return el("p", f"The graph could not be read: {error}")
    return wide(Html(re.sub("<style>.*?</style>", "", svg, flags=re.S)), "Trace graph")


def table(examples):
    """What was said of each example."""
    names = "example", "query", "response", "score", "feedback"
    rows = [el("tr", *(el("th", name, scope="col") for name in names))]
    for each in examples[:99]:
        rows.append(el("tr", *(el("td", each.get(name), dir="auto") for name in names)))
    held_out = any(each.get("part") == "validate" for each in examples)
    caption = el("caption", f"Feedback on each {'held-out ' * held_out}example")
    return wide(el("table", caption, *rows), "Feedback") if examples else ""


def proposal(record, before, accepted):
    """A proposal, and what became of it."""
    kept = record.get("candidate") == accepted
    told = [facts(**{kind: number(record.get(kind)) for kind in ("score", "validation")})]
    told += [el("p", record.get(name), dir="auto") for name in ("reasoning", "error")]
    told += [el("p", f"Unusable reply: {text(each)}") for each in record.get("refused", ())]
    title = f"Proposal {text(record.get('candidate'))}: {'accepted' if kept else 'not accepted'}"
    told.append(changes(before, record.get("values", {})))
    return el("article", el("h4", title), *told, class_="accepted" if kept else "refused")


PARTS = {
    "propose": "Proposal",
    "backward": "Criticism",
    "forward": "The batch",
    "check": "The batch with proposed values",
    "validate": "The held-out examples",
    "measure": "The whole dataset",
}


def dialogue(call):
    """One call to a language model, open to a click."""
    messages = [each for each in call.get("messages", ()) if isinstance(each, dict)]
    messages += [{"role": f"reply {text(call.get('model'))}", "content": call.get("reply")}]
    told = []
    for message in messages:
        told += [el("h5", message.get("role")), el("pre", message.get("content"), dir="auto")]
    part, example = call.get("part"), call.get("example")
    title = PARTS.get(part, text(part)) if isinstance(part, str) else text(part)
    title += "" if example is None else f", example {text(example)}"
    return el("details", el("summary", f"{title}: {spent([call])}"), *told)


def section(n, step, before, prices):
    """All of a step."""
    end = step["step"][-1] if step["step"] else {"reason": "it was cut short"}
    accepted = end.get("accepted")
    verdict = f"{'accepted' if accepted else 'nothing accepted'}: {because(end.get('reason'))}"
    verdict = verdict if n else "before anything changed"
    known = {"epoch": end.get("epoch"), "score": number(end.get("score"))}
    known |= {"validation": number(end.get("validation")), "ended": end.get("time")}
    asked = [call for call in step["call"] if call.get("part") in ("propose", "backward")]
    others = [call for call in step["call"] if call not in asked]
    title = el("summary", f"Calls by the program and the guide: {spent(others)}")
    judged = [x for x in step["example"] if x.get("part") == ("forward" if n else "validate")]
    return el(
        "section",
        el("h2", f"Step {n}, {verdict}", id=f"title-{n}", tabindex="-1"),
        facts(**known, language_models=spent(step["call"], prices)),
        el("h3", "Forward and feedback"),
        picture(end) if n else "",
        table(judged),
        el("h3", "Proposals") if step["proposal"] else "",
        *[proposal(each, before, accepted) for each in step["proposal"]],
        el("h3", "Prompts and replies") if step["call"] else "",
        *map(dialogue, asked),
        el("details", title, *map(dialogue, others[:99])) if others else "",
        id=f"step-{n}",
        class_="step",
        aria_labelledby=f"title-{n}",
    )


# ---- The score over the steps

CLASSES = {"not accepted": "refused"}
MARKS = {
    "current": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "accepted": "M0 -7l7 12h-14z",
    "not accepted": "M-5 -5l10 10m0 -10l-10 10",
}


def points(steps, kind):
    """What was measured: (place, score, step, what it is), of the current values and of proposed ones."""
    for n, step in steps.items():
        end = step["step"][-1] if step["step"] else {}
        yield n, number(end.get(kind)), n, "current"
        for place, each in enumerate(step["proposal"], 1):
            what = "accepted" if each.get("candidate") == end.get("accepted") else "not accepted"
            yield n + 0.8 * place / (len(step["proposal"]) + 1), number(each.get(kind)), n, what


def plot(steps, best):
    """Scores as a curve, proposals as marks that lead to their steps."""
    kind = "validation" if any(p[1] is not None for p in points(steps, "validation")) else "score"
    found = [point for point in points(steps, kind) if point[1] is not None]
    if not found:
        return el("p", "There are no scores to draw.")
    low, high, last = min(p[1] for p in found), max(p[1] for p in found), max(steps) + 1

    def place(x, y):
        up = (y - low) / (high - low) if high > low else 0.5
        return f"{70 + 800 * x / last:.1f} {250 - 220 * up:.1f}"

    def at(x, y):
        return f"translate({place(x, y)})"

    best = number(best.get("score"))
    curve = " ".join(place(x, y) for x, y, _, what in found if what == "current")
    shapes = [el("polyline", points=curve, class_="curve")]
    if best is not None and low <= best <= high:
        shapes.append(el("path", d=f"M{place(0, best)}L{place(last, best)}", class_="best"))
    for y in sorted({low, high}):
        shapes.append(el("text", f"{y:.4g} ", transform=at(-0.1, y), dy="4", class_="y"))
    for n in [*steps][:: 1 + len(steps) // 16]:
        shapes.append(el("text", n, transform=at(n, low), dy="35", class_="x"))
    for x, y, n, what in found:
        shape = el("path", d=MARKS[what], transform=at(x, y), class_=CLASSES.get(what, what))
        shapes.append(el("a", el("title", f"Step {n}, {what}: {y:.4g}"), shape, href=f"#step-{n}"))
    top = "unknown" if best is None else format(best, ".4g")
    words = f"The {kind} score" if kind == "validation" else "The batch score"
    words += " of the current values (dots on the line) and of proposed ones: triangles were"
    words += f" accepted, crosses were not. Dashed line: the best score, {top}."
    svg = el("svg", *shapes, viewBox="0 0 900 300", role="group", aria_label=words)
    return el("figure", wide(svg, "Plot"), el("figcaption", words))


# ---- The page

STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --paper: #fff; --line: #cbd5e1; --faint: #64748b;
  --good: #15803d; --bad: #b91c1c; --plus: #dcfce7; --minus: #fee2e2; --blue: #2563eb }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --paper: #141414; --line: #404040;
  --faint: #a3a3a3; --good: #4ade80; --bad: #f87171; --plus: #14391f; --minus: #471d1d; --blue: #60a5fa } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; overflow-wrap: anywhere }
h1, h2, h3, h4, h5 { line-height: 1.25; margin: 1.4em 0 .4em } h5 { margin: .8em 0 .2em }
section.step { border-top: 2px solid var(--line); margin-top: 2rem }
article { border-left: 4px solid var(--line); padding: .1rem 1rem; margin: 1rem 0 }
article.accepted { border-color: var(--good) } article.refused { border-color: var(--bad) }
.facts, figcaption, caption, .note { color: var(--faint); text-align: left }
pre { font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; margin: .2rem 0;
  padding: .6rem .8rem; border: 1px solid var(--line); border-radius: 6px }
ins { background: var(--plus) } del { background: var(--minus) }
.lines ins, .lines del { text-decoration: none } .words del + ins { margin-left: .3em }
.wide { overflow-x: auto } .wide > svg { display: block; margin: auto; max-width: none }
table { border-collapse: collapse; font-size: 14px; width: 100%; overflow-wrap: normal }
td, th { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: top;
  white-space: pre-wrap; min-width: 4rem; overflow-wrap: anywhere } th { white-space: nowrap }
details { margin: .5rem 0 } summary { cursor: pointer } figure { margin: 1rem 0 }
figure svg { min-width: 600px } figure text { font-size: 13px; fill: var(--faint) }
.x { text-anchor: middle } .y { text-anchor: end } .curve { fill: none; stroke: var(--blue); stroke-width: 2 }
.best { stroke: var(--good); stroke-dasharray: 6 4 } path.current { fill: var(--blue) }
path.accepted { fill: var(--good) } path.refused { stroke: var(--bad); stroke-width: 2; fill: none }
nav { position: sticky; top: 0; background: var(--paper); padding: .6rem 0; z-index: 1; display: flex;
  gap: .6rem; align-items: center; flex-wrap: wrap; border-bottom: 1px solid var(--line) }
nav[hidden] { display: none } nav input { flex: 1; min-width: 8rem } button { font: inherit }
:focus-visible { outline: 3px solid var(--blue); outline-offset: 2px }
@media print { nav { display: none !important } .step[hidden] { display: block !important }
  .wide > svg { max-width: 100%; height: auto } article, figure { break-inside: avoid } }
"""

SCRIPT = """
const steps = [...document.querySelectorAll("section.step")], nav = document.querySelector("nav");
const slider = nav.querySelector("input"), told = nav.querySelector("output");
let at = steps.length - 1, all = false;
function show(n, all_) {
  at = Math.max(0, Math.min(steps.length - 1, n)); all = all_;
  const title = steps[at].querySelector("h2").textContent;
  steps.forEach((step, k) => { step.hidden = !all && k !== at; });
  slider.value = at; slider.setAttribute("aria-valuetext", title); told.textContent = all ? "All steps" : title;
  nav.querySelector(".all").setAttribute("aria-pressed", all);
  if (all) steps[at].scrollIntoView();
}
function named() { return steps.findIndex(step => "#" + step.id === location.hash); }
slider.max = at;
slider.addEventListener("input", () => show(+slider.value, false));
nav.querySelector(".back").addEventListener("click", () => show(at - 1, all));
nav.querySelector(".on").addEventListener("click", () => show(at + 1, all));
nav.querySelector(".all").addEventListener("click", () => show(at, !all));
addEventListener("hashchange", () => { if (named() >= 0) show(named(), all); });
addEventListener("keydown", event => {
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 }[event.key];
  const busy = event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, .wide");
  if (to !== undefined && !busy) { event.preventDefault(); show(to, all); }
});
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
nav.hidden = false;
show(named() >= 0 ? named() : steps.findIndex(step => step.id !== "step-0"), false);
"""

NAV = """<nav hidden aria-label="Steps"><button class="back">← Previous</button>
<label for="walk">Step</label><input id="walk" type="range" min="0" step="1" value="0">
<button class="on">Next →</button><button class="all" aria-pressed="false">All steps</button>
<output for="walk" aria-live="polite"></output></nav>"""


def policy(style, script):
    """What the page allows itself: this style, this script, and nothing from anywhere."""
    sums = [hashlib.sha256(part.encode()).digest() for part in (style, script)]
    hashes = ["'sha256-" + base64.b64encode(each).decode() + "'" for each in sums]
    rules = "default-src 'none'; style-src {}; script-src {}; base-uri 'none'; form-action 'none'"
    return rules.format(*hashes)


def page(data, prices=(), name=""):
    """The page of a run: HTML, from the bytes of its journal and the name of that file."""
    records, notes = read(data)
    steps, configuration = by_step(records), records[0]["configuration"]
    first = configuration.get("parameters")
    before = first = first if isinstance(first, dict) else {}
    sections, end = [], {}
    for n, step in steps.items():
        sections.append(section(n, step, before, prices))
        end = step["step"][-1] if step["step"] else end
        before = end.get("values", before)
    ending = ([r for r in records if r["event"] == "end"] or [{}])[-1]
    best = ending.get("best", end.get("best", {}))
    calls = [call for step in steps.values() for call in step["call"]]
    known = {"steps": max(steps, default=0), "best score": number(best.get("score"))}
    known |= {"measured on": scored_on(ending), "found in step": best.get("step")}
    known |= {"unusable replies": number(ending.get("refusals")) or None}
    known |= {"ended because": because(ending["reason"]) if "reason" in ending else None}
    known |= {"from": records[0].get("time"), "to": records[-1].get("time") or ending.get("time")}
    title = f"Training run: {name}" if name else "Training run"
    drawing = re.search("<style>(.*?)</style>", to_svg(TraceGraph()), re.S)[1]
    rules, viewport = policy(STYLE + drawing, SCRIPT), "width=device-width"
    head = [f'<meta charset="utf-8"><meta name="viewport" content="{viewport}">']
    head += [f'<meta http-equiv="Content-Security-Policy" content="{rules}">']
    head += [el("title", title), f"<style>{STYLE}{drawing}</style>"]
    configured = json.dumps(configuration, indent=1)
    body = [
        el("h1", title),
        facts(**known, language_models=spent(calls, prices)),
        *[el("p", note, class_="note") for note in notes],
        plot(steps, best) if steps else el("p", "No step was recorded."),
        el("h2", "What changed"),
        changes(first, ending.get("values", before)),
        el("details", el("summary", "Configuration"), el("pre", configured)),
        Html(NAV if steps else ""),
        el("main", *sections),
        Html(f"<script>{SCRIPT}</script>" if steps else ""),
    ]
    start = f'<!doctype html>\n<html lang="en"><head>{"".join(head)}</head>'
    return f"{start}{el('body', *body)}</html>\n"


def scored_on(ending):
    """What the score of a run is the mean of, in words."""
    count, where = number(ending.get("examples")), ending.get("scored_on")
    if not count or not isinstance(where, str):
        return None
    kind = " set" * (where == "validation")
    return f"{count:,} example{'s' * (count != 1)} of the {where}{kind}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("journal", help="what train(..., journal=...) wrote")
    parser.add_argument("-o", "--output", help="where the page goes; beside the journal by default")
    told = "US dollars for a million tokens of prompts, and of replies"
    parser.add_argument(
        "--prices", nargs=2, type=float, default=(), metavar=("IN", "OUT"), help=told
    )
    given = parser.parse_args(argv)
    output = Path(given.output or Path(given.journal).with_suffix(".html"))
    if output.resolve() == Path(given.journal).resolve():
        parser.error("the page would take the place of the journal; name another file with -o")
    try:
        data, name = Path(given.journal).read_bytes(), Path(given.journal).name
        output.write_text(page(data, given.prices, name), encoding="utf-8")
    except (OSError, NotAJournal) as error:
        words = getattr(error, "strerror", None) or error
        place = getattr(error, "filename", None) or given.journal
        print(f"report: {place}: {words}", file=sys.stderr)
        return 2
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
