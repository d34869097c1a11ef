"""The tutorial in a terminal: it shows a chapter, stops at each block of code, and runs it.

    python3 tutorial             the chapters and the exercises
    python3 tutorial 6           a chapter, block by block; also case_4, and a, b, c for the appendices
    python3 tutorial check 6     grade tutorial/exercises/ex06.py
    python3 tutorial check       grade them all
    python3 tutorial notebooks FOLDER    write them all as Jupyter notebooks

A chapter is a doctest, and this is a test runner that waits: what it prints was computed just then.
"""

import doctest
import os
import re
import shutil
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "exercises")]

import checks  # noqa: E402

WAITS = sys.stdin.isatty() and sys.stdout.isatty()
ESCAPES = WAITS and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("NO_COLOR")
WIDTH = max(40, min(shutil.get_terminal_size().columns or 80, 100))  # some terminals say 0
BOLD, DIM, ITALIC, RED, GREEN, CYAN = 1, 2, 3, 31, 32, 36
STATES = {"passed": GREEN, "not yet": RED, "to do": DIM}


def paint(text, colour):
    return f"\x1b[{colour}m{text}\x1b[0m" if ESCAPES else text


def chapters():
    """The file of each chapter by its name, such as "6", "case_4" or "a", in reading order."""
    found = {}
    for form in r"0*(\d+)_", r"(case_\d+)_", r"([a-z])_":
        for path in sorted([*HERE.glob("*.md"), *HERE.glob("cases/*.md")]):
            if name := re.match(form, path.name):
                found[name[1]] = path
    return found


def overview():
    """Print the chapters with their questions, and the exercises with their state."""
    for name, path in chapters().items():
        text = path.read_text(encoding="utf-8")
        title = re.sub(r"^# (Case |Appendix )?(\w{1,2}:? )?", "", text.partition("\n")[0])
        question = re.search(r"^\*([^*]+)\*$", text, re.M)
        told = f"{name:>7}  {title}. {' '.join(question[1].split()) if question else ''}"
        told = textwrap.fill(told, WIDTH, subsequent_indent=" " * 9)
        print(told.replace(title, paint(title, BOLD), 1))
    verdicts = graded(checks.numbers())
    print("\nExercises")
    for state, colour in STATES.items():
        mine = [str(number) for number, verdict in verdicts.items() if verdict.state == state]
        if mine:
            print(f"{state:>9}: {paint(' '.join(mine), colour)}")
    print("\n`python3 tutorial 1` shows chapter 1, `python3 tutorial check 1` grades its exercise.")
    return 0


def graded(numbers):
    """The verdicts on some exercises by their numbers, each from a process of its own."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(numbers, pool.map(checks.grade, numbers), strict=True))


def check(numbers):
    """Print the verdicts on some exercises; 0 if all of them passed."""
    verdicts = graded(numbers)
    for number, verdict in verdicts.items():
        print(f"exercise {number}: {paint(verdict.state, STATES[verdict.state])}")
        if verdict.state == "not yet" or len(numbers) == 1:
            print(textwrap.indent(verdict.words, "  "), end="")
    return int(any(verdict.state != "passed" for verdict in verdicts.values()))


class Left(Exception):
    """The reader has seen enough."""


class Reader(doctest.DocTestRunner):
    """Runs a chapter as one doctest. A terminal shows a block whole, waits, and shows what came of
    it; where nobody can press Enter the output stands below its line, as on the page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.lines, self.shown, self.differing = self.text.splitlines(), 0, 0

    def report_start(self, out, test, example):
        """At the first example of a block: show what leads to it; then the code, and wait."""
        if example.lineno >= self.shown:
            end = self.lines.index("```", example.lineno)
            self.prose(out, example.lineno - 1)
            self.shown = end + 1
            out("\n")
            if WAITS:
                inside = [each for each in test.examples if example.lineno <= each.lineno < end]
                self.outputs = sum(bool(each.want) for each in inside)
                self.code(out, inside)
                self.wait(out)
        if not WAITS:
            self.code(out, [example])

    def code(self, out, examples):
        code = "".join(">>> " + re.sub(r"\n(?=.)", "\n... ", each.source) for each in examples)
        out(textwrap.indent(paint(code.rstrip(), CYAN), "    ") + "\n")

    def wait(self, out):
        out(paint("    [Enter runs it, q leaves] ", DIM))
        sys.__stdout__.flush()
        answer = sys.stdin.readline()
        if answer.strip().lower() in ("q", "quit") or not answer:
            raise Left
        out("\x1b[1A\x1b[2K" if ESCAPES else "")  # up a line, and that line away

    def report_success(self, out, test, example, got):
        if got:
            again = WAITS and self.outputs > 1  # the code is some lines above
            code = paint(">>> " + example.source.partition("\n")[0], DIM) + "\n" if again else ""
            *_, last = got.rpartition("Traceback (most recent call last):\n")
            error = re.sub(r"\A(?:  .*\n)+", "", last) if last != got else got
            out(textwrap.indent(code + error, "    "))

    def report_failure(self, out, test, example, got):
        self.differing += 1
        self.report_success(out, test, example, got or "(nothing)\n")
        out(paint("    but what is written on the page is\n", RED))
        out(textwrap.indent(example.want or "(nothing)\n", "    "))

    def report_unexpected_exception(self, out, test, example, exc_info):
        self.report_failure(out, test, example, f"{exc_info[0].__name__}: {exc_info[1]}\n")

    def prose(self, out, end):
        """Show the page up to a line: paragraphs and tables as wide as the terminal."""
        text = "\n".join(self.lines[self.shown : end])
        for part in re.split(r"(?ms)(^```.*?^```$)|\n\n+", text):
            if part and part.strip():
                told = laid_out(part.strip("\n").rstrip(), self.path.parent)
                out(f"\n{told}\n")


def laid_out(part, folder):
    """A paragraph of Markdown for a terminal, from a page in a folder."""
    place = folder.relative_to(HERE.parent).as_posix()
    part = re.sub(r"!\[([^]]*)\]\(([^)]*)\)", rf"(picture: \1, {place}/\2)", part)
    part = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", part)
    if part.startswith("#"):
        return paint(part.lstrip("# "), BOLD)
    if ESCAPES and re.fullmatch(r"\*[^*]+\*", part):
        return paint(textwrap.fill(part.strip("*"), WIDTH), ITALIC)
    if re.match(r"\|.*\n\|[-:| ]+$", part, re.M):
        return table(part.splitlines())
    verbatim = part.startswith(("|", "```", "- ", "1. ", "    ", "<"))
    return part if verbatim else textwrap.fill(part, WIDTH)


def table(lines):
    """A Markdown table in columns; where it is wider than the terminal, its cells are wrapped."""
    head, marks, *rows = ([cell.strip() for cell in cells(line)] for line in lines)
    widths = [max(map(len, column)) for column in zip_longest(head, *rows, fillvalue="")]
    room = WIDTH - 2 * (len(widths) - 1)
    most = max(widths)
    while most > 1 and sum(min(width, most) for width in widths) > room:
        most -= 1  # the widest columns give way
    widths = [min(width, most) for width in widths]
    told = [laid_in(row, widths, marks) for row in rows]
    if any(head):
        told[:0] = laid_in(head, widths, marks), "  ".join("-" * width for width in widths)
    return "\n".join(told)


def cells(line):
    """The cells of a row: a bar with a backslash before it is a character of its cell."""
    inside = line.strip().removeprefix("|").removesuffix("|")
    return [cell.replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", inside)]


def laid_in(row, widths, marks):
    """A row of a table in columns of these widths; a mark that ends in a colon ranges right."""
    wrapped = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=False)]
    lines = []
    for parts in zip_longest(*wrapped, fillvalue=""):
        columns = zip_longest(parts, widths, marks, fillvalue="")
        texts = [p.rjust(w) if m.endswith(":") else p.ljust(w) for p, w, m in columns]
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def read(name, path):
    """Show and run a chapter; 0 if it printed what is written there."""
    reader, space, end = Reader(path), {"__name__": "__main__"}, ""
    os.chdir(HERE.parent)
    os.environ.pop("MINITRACE_MODEL", None)  # a chapter spends nothing
    try:
        parser = doctest.DocTestParser()
        reader.run(parser.get_doctest(reader.text, space, path.name, str(path), 0))
    except Left:
        return 0
    reader.prose(sys.stdout.write, len(reader.lines))
    if reader.differing:
        end += f"\n{reader.differing} of these outputs differ from what is written on the page.\n"
    print(paint(end, GREEN), end="")
    return int(bool(reader.differing))


def write_notebooks(folder):
    """Write all chapters, and the map, as notebooks into a folder; 0 if they print what is written."""
    import notebooks

    pages = [*chapters().values(), HERE / "README.md"]
    try:
        differ = notebooks.write(folder, pages)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(pages)} notebooks are in {folder}; begin with map.ipynb")
    for name in differ:
        print(f"in the notebook of {name} some outputs differ from what is written on the page")
    return int(bool(differ))


def main(words):
    """The command line; returns the exit code."""
    first, *rest = words or [""]
    if first == "notebooks":
        if len(rest) == 1:
            return write_notebooks(rest[0])
        print("say where to: `python3 tutorial notebooks FOLDER`", file=sys.stderr)
        return 2
    exercises = checks.numbers()
    if first == "check" and (not rest or rest in [[str(number)] for number in exercises]):
        return check([int(rest[0])] if rest else exercises)
    if not first:
        return overview()
    if first in ("-h", "--help"):
        print(__doc__.rstrip())
        return 0
    for name, path in chapters().items():
        if not rest and first.removesuffix(".md") in (name, name.zfill(2), path.stem):
            return read(name, path)
    kind = "exercise" if first == "check" else "chapter"
    told = f"there is no {kind} {' '.join(rest or words)}: `python3 tutorial` lists them"
    print(told, file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        print()
        sys.exit(130)
