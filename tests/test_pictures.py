"""The pictures in the tutorial are what the library draws now."""

import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tutorial"))
import pictures  # noqa: E402


@pytest.mark.parametrize("name", pictures.GRAPHS)
def test_a_picture_is_what_is_drawn_now(name):
    stored = (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert pictures.draw(name) == stored, f"python3 tutorial/pictures.py draws {name}.svg anew"


def test_one_picture_can_be_printed():
    command = [sys.executable, str(ROOT / "tutorial" / "pictures.py"), "diamond"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == pictures.draw("diamond") and done.stderr == ""


def test_what_the_pictures_show():
    """The README's number, the chapter's diamond, the published value of the expression."""
    assert ">24<" in pictures.draw("comfort") and "too warm" in pictures.draw("comfort")
    assert pictures.draw("diamond").count('class="edge"') == 2
    assert ">24.70408163265306<" in pictures.draw("expression")
    assert "(ZeroDivisionError) division by" in pictures.draw("failure")
    assert pictures.draw("agent").count(">parameter</text>") == 4
