"""The chapters as notebooks: whole, valid, with links that lead somewhere; and executed, where they can be.

nbformat, nbclient and ipykernel take part where they are installed.
"""

import ast
import doctest
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

TUTORIAL = ROOT / "tutorial"
sys.path.append(str(TUTORIAL))

import notebooks  # noqa: E402

PAGES = sorted([*TUTORIAL.glob("*.md"), *TUTORIAL.glob("cases/*.md")])
CHAPTERS = [page for page in PAGES if page.name != "README.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
each_chapter = pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)


def program(*words):
    command = [sys.executable, str(TUTORIAL), "notebooks", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_of(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text_of(notebook):
    return "\n\n".join(c["source"] for c in notebook["cells"] if c["cell_type"] == "markdown")


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """All notebooks, as the program writes them, and what it said."""
    folder = tmp_path_factory.mktemp("notebooks") / "new"
    return folder, program(folder)


@pytest.fixture
def folder(written):
    return written[0]


# ---- What is in a notebook


@each_chapter
def test_nothing_of_a_page_is_lost(page, tmp_path):
    """All its text is there, links aside, and all its code, and all that it prints."""
    cells, wants = notebooks.cells_of(page, PAGES, tmp_path)
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"(?ms)^```python\n.*?^```$", "", text)
    kept = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    assert without_links(kept).split() == without_links(prose).split()
    examples = doctest.DocTestParser().get_examples(text)
    printed = "".join(want or "" for want, _ in wants)
    assert printed == "".join(example.want for example in examples)
    code = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")
    for example in examples:
        alone = notebooks.for_notebook(example.source.rstrip(), example.want)
        assert alone in code or example.source.rstrip() in code


def without_links(text):
    return re.sub(r"\]\([^)]*\)", "]()", text)


@each_chapter
def test_a_cell_of_code_can_be_read_and_prints_in_its_last_line_alone(page, tmp_path):
    cells, wants = notebooks.cells_of(page, PAGES, tmp_path)
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    assert code[0] == notebooks.SETUP and len(code) == len(wants)
    for source in code[1:]:
        ast.parse(source)
        assert "doctest:" not in source and ">>>" not in source and "asyncio.run(" not in source


def test_a_few_pages_are_written_with_what_comes_out(tmp_path):
    pages = [next(TUTORIAL.glob(f"{number}_*.md")) for number in ("01", "04", "05")]
    assert notebooks.write(tmp_path / "new", pages) == []
    nodes, errors, modules = (read(tmp_path / "new" / notebooks.name_of(page)) for page in pages)
    assert_is_a_notebook(nodes)
    outputs = [output for cell in code_of(nodes) for output in cell["outputs"]]
    drawn = [each["data"] for each in outputs if each["output_type"] == "execute_result"]
    assert any(data.get("image/svg+xml", "").startswith("<svg") for data in drawn)
    assert "|- multiply0 = 120\n" in "".join(each.get("text", "") for each in outputs)
    failed = [cell for cell in code_of(errors) if cell["metadata"].get("tags")]
    assert {each["outputs"][-1]["output_type"] for each in failed} == {"error"}
    assert any("= await panel(" in cell["source"] for cell in code_of(modules))


def assert_is_a_notebook(notebook):
    """The format as its own description has it, as far as these notebooks use it."""
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len({*ids}) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", each) for each in ids)
    fields = {"cell_type", "id", "metadata", "source"}
    for cell in notebook["cells"]:
        is_code = cell["cell_type"] == "code"
        assert set(cell) == fields | ({"outputs", "execution_count"} if is_code else set())
        assert cell["source"].strip() and cell["cell_type"] in ("code", "markdown")
    for cell in code_of(notebook):
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "execute_result", "error")


def test_a_page_that_prints_something_else_is_told(tmp_path):
    page = tmp_path / "07_other.md"
    page.write_text("# 7\n\n```python\n>>> 1 + 1\n3\n>>> x\nTraceback (most recent call last):\n"
                    "NameError: name 'x' is not defined\n\n```\n", encoding="utf-8")  # fmt: skip
    assert notebooks.write(tmp_path / "new", [page]) == ["07_other.md"]
    _, first, second = code_of(read(tmp_path / "new" / "07_other.ipynb"))
    assert first["outputs"][0]["data"]["text/plain"] == "2"
    assert (second["outputs"][0]["ename"], second["metadata"]) == (
        "NameError",
        {"tags": ["raises-exception"]},
    )


BLOCKS = {  # a block, and the cells that it becomes
    ">>> x = 1\n>>> x\n1\n>>> x + 1\n2\n>>> y = 3\n": ["x = 1\nx", "x + 1", "y = 3"],
    ">>> print(1)    # doctest: +ELLIPSIS\n...\n": ["print(1)"],
    ">>> import asyncio\n>>> asyncio.run(main(1))\n2\n": ["import asyncio\nawait main(1)"],
    ">>> with a() as b:\n...     b.c()\n{}\n": ["with a() as b:\n    shown = b.c()\nshown"],
    ">>> with a():\n...     print(b)\n1\n": ["with a():\n    print(b)"],
    ">>> with a():\n...     b()\nTraceback (most recent call last):\nE\n": ["with a():\n    b()"],
    ">>> print(x.y.tree(ascii=True))\nz\n": ["print(x.y.tree(ascii=True))", "x.y"],
    ">>> print((x + 5).tree())\nz\n": ["shown = x + 5\nprint(shown.tree())", "shown"],
    ">>> print(f(x).tree())\nz\n": ["shown = f(x)\nprint(shown.tree())", "shown"],
}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_becomes_cells(block, tmp_path):
    page = tmp_path / "01_one.md"
    page.write_text(f"# 1\n\n```python\n{block}\n```\n", encoding="utf-8")
    cells, _ = notebooks.cells_of(page, [page], tmp_path)
    assert [cell["source"] for cell in cells] == ["# 1", notebooks.SETUP, *BLOCKS[block]]


LINKS = {  # a link in tutorial/cases/case_4_numbers.md, and where it leads in its notebook
    "[a](../08_derivatives.md)": "[a](08_derivatives.ipynb)",
    "![b](case_4_numbers.svg)": "![b](tutorial/cases/case_4_numbers.svg)",
    "[c](https://arxiv.org/abs/1)": "[c](https://arxiv.org/abs/1)",
    "[d](../README.md#the-companions)": "[d](map.ipynb#The-companions)",
    "[e](#four-prompts)": "[e](#Four-prompts)",
    "[f](../../LICENSE)": "[f](LICENSE)",
    "`[g](../README.md)` and `x[0](1)`": "`[g](../README.md)` and `x[0](1)`",
    "    [h](../README.md)": "    [h](../README.md)",
    "[i](../companions)": "[i](tutorial/companions)",
}


@pytest.mark.parametrize("text", LINKS)
def test_a_link_leads_from_a_notebook_where_it_led_before(text, tmp_path):
    page = TUTORIAL / "cases" / "case_4_numbers.md"
    assert notebooks.linked(text, page, PAGES, tmp_path) == LINKS[text]
    assert (tmp_path / "LICENSE").exists() == ("LICENSE" in text)


def test_nothing_is_written_over(tmp_path):
    mine = tmp_path / "01_nodes.ipynb"
    mine.write_text("mine", encoding="utf-8")
    done = program(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path} is not empty: name a new folder, so that nothing is lost\n"
    assert [*tmp_path.iterdir()] == [mine] and mine.read_text(encoding="utf-8") == "mine"
    done = program(mine)
    assert done.returncode == 2 and "is not empty: name a new folder" in done.stderr


def test_the_tutorial_itself_is_no_place_for_notebooks():
    for place in TUTORIAL / "new", TUTORIAL / "cases":
        done = program(place)
        told = f"{place} is part of the tutorial itself: name a folder outside of {TUTORIAL}\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
    assert not (TUTORIAL / "new").exists()


@pytest.mark.parametrize("words", [[], ["one", "two"]])
def test_the_program_wants_one_folder(words):
    done = program(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "say where to: `python3 tutorial notebooks FOLDER`\n"


def test_the_program_needs_nothing_installed():
    tree = ast.parse((TUTORIAL / "notebooks.py").read_text(encoding="utf-8"))
    names = {
        alias.name
        for part in ast.walk(tree)
        if isinstance(part, ast.Import)
        for alias in part.names
    }
    names |= {part.module for part in ast.walk(tree) if isinstance(part, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == set()


# ---- All of them


@pytest.mark.slow
def test_all_notebooks_are_written_and_nothing_in_them_differs_from_the_pages(written):
    folder, done = written
    told = f"{len(PAGES)} notebooks are in {folder}; begin with map.ipynb\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, told, "")
    assert {path.stem for path in folder.glob("*.ipynb")} == {"map", *(p.stem for p in CHAPTERS)}


@pytest.mark.slow
@each_page
def test_every_link_of_a_notebook_leads_somewhere(page, folder):
    text = text_of(read(folder / notebooks.name_of(page)))
    text = re.sub(r"(?ms)^```.*?^```$|^    .*?$|`[^`]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            place = folder / path if path else folder / notebooks.name_of(page)
            assert place.exists(), target
            assert place.suffix != ".md", target
            assert not anchor or anchor in headings(place), target


def headings(path):
    found = re.findall(r"(?m)^#+ (.*)$", text_of(read(path)))
    return {words.replace(" ", "-") for words in found}


@pytest.mark.slow
@each_page
def test_a_notebook_is_valid(page, folder):
    notebook = read(folder / notebooks.name_of(page))
    assert_is_a_notebook(notebook)
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbformat.validate(nbformat.from_dict(notebook))


@pytest.mark.slow
@each_chapter
def test_an_executed_notebook_agrees_with_its_page(page, folder):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import nbformat

    path = folder / notebooks.name_of(page)
    notebook, before = nbformat.read(path, as_version=4), code_of(read(path))
    place = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=place).execute()
    _, wants = notebooks.cells_of(page, PAGES, folder)
    code = code_of(notebook)
    assert len(code) == len(wants)
    for cell, stored, (want, flags) in zip(code, before, wants, strict=True):
        came = as_printed(cell["outputs"])
        if want is None:  # a graph that is drawn
            assert came == as_printed(stored["outputs"])
            continue
        want = re.sub(r"(?m)^minitrace(_\w+)?\.(?=\w+:)", "", want)  # a notebook leaves it out
        assert notebooks.CHECKER.check_output(want, came, flags), (cell["source"], want, came)
        assert is_drawn(cell["outputs"]) == is_drawn(stored["outputs"])


def as_printed(outputs):
    """What came of a cell, as a page has it; what goes to standard error is on no page."""
    said = ""
    for each in outputs:
        if each["output_type"] == "stream":
            said += each["text"] * (each["name"] == "stdout")
        elif each["output_type"] == "error":
            said += f"Traceback (most recent call last):\n{each['ename']}: {each['evalue']}\n"
        else:
            said += f"{each['data']['text/plain']}\n"
    return said


def is_drawn(outputs):
    return any("image/svg+xml" in each.get("data", {}) for each in outputs)
