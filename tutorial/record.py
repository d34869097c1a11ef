"""Record a page's cassette again: what it asks a language model goes to a folder, as with relay.py.

    python3 tutorial/record.py case_2 talk

The old cassette is renamed to `.old`, and the page runs as it is. Every prompt that the new cassette does not have
yet becomes a file, `talk/case_2-1-optimizer/0001.prompt.md`, which waits for its `.reply.md` from a person, a chat
window or a program. Each cassette that the page opens has conversations of its own, one for what the optimizer
asks and one for what the program itself asks, so that none knows what another has seen. If the page now prints
something else than it says, that is shown at the end: then change the text to fit the outcome.
"""

import argparse
import contextlib
import doctest
import itertools
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tutorial"), str(ROOT / "tutorial" / "companions")]

import minitrace_record  # noqa: E402
from relay import Relay  # noqa: E402

from minitrace import Reply  # noqa: E402

OPTIMIZERS = "# Variables", "A step of a program:"  # how their prompts can be told


class Conversations:
    """A language model with two conversations: the optimizer's, and the program's own."""

    numbers = itertools.count(1)
    model = "a large language model, by hand-off"

    def __init__(self, folder, page):
        self.name = folder / f"{page}-{next(self.numbers)}"

    def __call__(self, messages, **options):
        asks = any(sign in message["content"] for message in messages for sign in OPTIMIZERS)
        relay = Relay(f"{self.name}-{'optimizer' if asks else 'program'}", pause=0.05)
        return Reply(relay(messages), model=self.model)


def recording(folder, page):
    """A `Replay` that asks in the folder for what it does not have."""

    class Recording(minitrace_record.Replay):
        def __init__(self, path, live=None):
            super().__init__(path, live or Conversations(folder, page))

    return Recording


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", help="such as 11 or case_2")
    parser.add_argument("folder", type=Path, help="where prompts and replies are files")
    arguments = parser.parse_args(argv)
    os.chdir(ROOT)
    (path,) = [
        *ROOT.glob(f"tutorial/{arguments.page}_*.md"),
        *ROOT.glob(f"tutorial/cases/{arguments.page}_*.md"),
    ]
    cassettes = ROOT / "tutorial" / "cases" / "cassettes"
    for old in cassettes.glob(re.sub(r"\W.*", "", f"{arguments.page}") + "[._]*jsonl"):
        os.replace(old, old.with_suffix(".old"))
    minitrace_record.Replay = recording(arguments.folder, arguments.page)
    text = path.read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text, {}, path.name, str(path), 0)
    with contextlib.suppress(KeyboardInterrupt):
        return min(doctest.DocTestRunner(verbose=False).run(test).failed, 1)


if __name__ == "__main__":
    sys.exit(main())
