"""Writes the chapters and cases as Jupyter notebooks: `python3 tutorial notebooks FOLDER`.

Text becomes text cells, and a block of code one cell for each of its outputs. What the cells show was
printed just now: each page runs once, in a process of its own, in the folder of its notebook. Everything
that a notebook imports, opens or links to is copied there too. Writing notebooks takes nothing but
Python; opening one takes a program that shows notebooks.
"""

import ast
import asyncio
import contextlib
import doctest
import io
import json
import linecache
import os
import re
import shutil
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
COPIED = {".py", ".md", ".svg", ".json", ".jsonl"}  # with minitrace.py, all that a page may need
CHECKER = doctest.OutputChecker()
SETUP = """\
import sys; sys.path.append("tutorial/companions")
import minitrace_pictures                      # nodes and graphs draw themselves
%config PlainTextFormatter.pprint = False      # values look as in a prompt"""
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def write(folder, pages):
    """Write a notebook for each page into a folder that is new or empty.

    Returns: the names of the pages that printed something other than what they say.

    Raises: `FileExistsError` if something is in the folder, `ValueError` if it is part of the tutorial.
    """
    folder = Path(folder).resolve()
    if HERE in [folder, *folder.parents]:
        raise ValueError(
            f"{folder} is part of the tutorial itself: name a folder outside of {HERE}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: name a new folder, so that nothing is lost")
    files = [path for path in [ROOT / "minitrace.py", *HERE.rglob("*")] if path.suffix in COPIED]
    for path in files:
        if "__pycache__" not in path.parts and folder not in path.parents:
            copy(path, folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        differ = [*pool.map(lambda page: write_one(folder, page, pages), pages)]
    return [page.name for page, differs in zip(pages, differ, strict=True) if differs]


def copy(path, folder):
    place = folder / path.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)


def name_of(page):
    """What the notebook of a page is called."""
    return "map.ipynb" if page.name == "README.md" else f"{page.stem}.ipynb"


def write_one(folder, page, pages):
    """Write the notebook of a page; does anything in it differ from the page?"""
    cells, wants = cells_of(page, pages, folder)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = run([cell["source"] for cell in code], folder)
    differs = False
    for number, (cell, came, (want, flags)) in enumerate(zip(code, outputs, wants, strict=True), 1):
        cell["execution_count"] = number
        cell["outputs"] = [as_output(each, number) for each in came]
        if want is not None:
            differs |= not CHECKER.check_output(want, "".join(map(as_text, came)), flags)
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    notebook = {"cells": cells, "metadata": KERNEL, "nbformat": 4, "nbformat_minor": 5}
    text = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
    (folder / name_of(page)).write_text(text, encoding="utf-8")
    return differs


# ---- From a page to cells


def cells_of(page, pages, folder):
    """The cells of a page; and for each cell of code what it should print, and doctest's options."""
    text = page.read_text(encoding="utf-8")
    cells, wants = [], []
    for part in re.split(r"(?ms)^(```python\n.*?^```)$", text):
        if not part.startswith("```python\n"):
            prose = linked(part.strip(), page, pages, folder)
            cells += [text_cell(prose)] if prose else []
            continue
        if not wants:
            cells.append(code_cell(SETUP))
            wants.append((None, 0))
        for source, want, flags in groups(part):
            cells.append(code_cell(source, raises="Traceback (most recent call last):" in want))
            wants.append((want, flags))
            if graph := drawn(source):
                cells.append(code_cell(graph))
                wants.append((None, 0))
    return cells, wants


def text_cell(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def code_cell(source, raises=False):
    metadata = {"tags": ["raises-exception"]} if raises else {}
    return {"cell_type": "code", "metadata": metadata, "source": source}


def groups(block):
    """The examples of a block as (code, what it prints, options), each ending where one prints."""
    source = []
    examples = doctest.DocTestParser().get_examples(block)
    for number, example in enumerate(examples, 1):
        source.append(example.source)
        if example.want or number == len(examples):
            flags = sum(flag for flag, on in example.options.items() if on)
            yield for_notebook("".join(source).rstrip(), example.want), example.want, flags
            source = []


def for_notebook(code, want):
    """Code as a notebook runs it, which in a few things is no prompt."""
    for pattern, instead in REWRITTEN:
        code = re.sub(pattern, instead, code, flags=re.M)
    last = ast.parse(code).body[-1]
    if isinstance(last, ast.With) and isinstance(last.body[-1], ast.Expr):
        inner, lines = last.body[-1], code.splitlines()
        if want and "Traceback" not in want and not ast.unparse(inner).startswith("print("):
            line = lines[inner.lineno - 1]  # a prompt shows its value, a notebook the last line's
            lines[inner.lineno - 1] = (
                f"{line[: inner.col_offset]}shown = {line[inner.col_offset :]}"
            )
            code = "\n".join([*lines, "shown"])
    return code


REWRITTEN = [
    (r"\s*# doctest:.*$", ""),
    (r"\basyncio\.run\((.*)\)$", r"await \1"),  # the loop of a notebook runs already
    (r"^print\(\((.+)\)\.tree\(([^()]*)\)\)\Z", r"shown = \1\nprint(shown.tree(\2))"),
    (r"^print\(((?![\w.]+\.tree).+)\.tree\(([^()]*)\)\)\Z", r"shown = \1\nprint(shown.tree(\2))"),
    (  # a notebook asks in the page
        r'\bmock\.patch\("sys\.stdin", io\.StringIO\((".*?)\\n"\)\)',
        r'mock.patch("builtins.input", lambda words: print(words, end="") or \1")',
    ),
]


def drawn(code):
    """The name of the graph whose tree the last line prints, if it does: a notebook draws it too."""
    found = re.search(r"(?m)^print\(([\w.]+)\.tree\([^()]*\)\)\Z", code)
    return found[1] if found else ""


def linked(text, page, pages, folder):
    """Text whose links lead from the folder of notebooks to where those of the page lead."""

    def moved(found):
        before, target = found[1], found[2]
        if before is None or re.match(r"[a-z]+:", target):
            return found[0]
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if place in pages:
            path = name_of(place) if path else ""
            return f"{before}({path}{'#' + heading(place, anchor) if anchor else ''})"
        if place.is_file():
            copy(place, folder)
        return f"{before}({place.relative_to(ROOT).as_posix()}{'#' * bool(anchor)}{anchor})"

    # code is no link: a fence, lines that are indented, and what stands between backticks
    code = r"^```.*?^```$|^    .*?$|`[^`]*`"
    return re.sub(rf"(?ms)(?:{code})|(\])\(([^)\s]+)\)", moved, text)


def heading(page, anchor):
    """An anchor as notebooks name it: the words of the heading, with hyphens between them."""
    for words in re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8")):
        if re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") == anchor:
            return words.replace(" ", "-")
    return anchor


# ---- From cells to what they print


def run(sources, folder):
    """What each of some cells of code prints, gives or raises, run in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "run"]
    env = {k: v for k, v in os.environ.items() if k != "MINITRACE_MODEL"}  # it spends nothing
    done = subprocess.run(command, input=json.dumps(sources), capture_output=True, cwd=folder,
                          env={**env, "PYTHONIOENCODING": "utf-8"}, encoding="utf-8")  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the cells could not be run in {folder}:\n{done.stderr}")
    return json.loads(done.stdout)


def run_cells():
    """In that process: read the cells from standard input, and write what came of each."""
    sources, sys.path[0] = json.load(sys.stdin), ""
    space, said = {"__name__": "__main__"}, []
    with contextlib.redirect_stderr(io.StringIO()):
        for number, source in enumerate(sources):
            said.append(run_cell(source, space, f"<cell {number}>"))
    json.dump(said, sys.stdout)


def run_cell(source, space, name):
    """Run a cell as a notebook does: what it prints, and its last line if that is an expression."""
    source = source.replace("%config", "# %config")
    linecache.cache[name] = len(source), None, source.splitlines(True), name  # for getsource
    tree, last, came, printed = ast.parse(source), None, [], io.StringIO()
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    with contextlib.redirect_stdout(printed):
        try:
            value = evaluate(tree, space, name)
            value = evaluate(last, space, name) if last else None
        except Exception as error:
            told = traceback.format_exception_only(error)[-1]
            came = [{"error": type(error).__name__, "words": str(error), "told": told}]
        else:
            if value is not None:
                came = [{"value": repr(value), "svg": svg_of(value)}]
    return [{"printed": printed.getvalue()}] * bool(printed.getvalue()) + came


def evaluate(tree, space, name):
    """Run a syntax tree; `await` may stand in it, as in a notebook."""
    mode = "eval" if isinstance(tree, ast.Expression) else "exec"
    result = eval(compile(tree, name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), space)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def svg_of(value):
    return value._repr_svg_() if hasattr(type(value), "_repr_svg_") else None


def as_output(came, number):
    """What came of a cell, in the form of a notebook."""
    if "printed" in came:
        return {"output_type": "stream", "name": "stdout", "text": came["printed"]}
    if "error" in came:
        words = f"{came['error']}: {came['words']}"
        return {"output_type": "error", "ename": came["error"], "evalue": came["words"],
                "traceback": ["Traceback (most recent call last):", words]}  # fmt: skip
    data = {"text/plain": came["value"], **({"image/svg+xml": came["svg"]} if came["svg"] else {})}
    return {
        "output_type": "execute_result",
        "execution_count": number,
        "data": data,
        "metadata": {},
    }


def as_text(came):
    """What came of a cell, as a page has it."""
    if "error" in came:
        return f"Traceback (most recent call last):\n{came['told']}"
    return came.get("printed") or f"{came['value']}\n"


if __name__ == "__main__":
    run_cells() if sys.argv[1:] == ["run"] else print(__doc__.rstrip())
