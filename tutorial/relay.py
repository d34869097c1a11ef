"""A language model by hand: any chat window, or any other program, can be the one that answers.

On a terminal, `Relay()` prints each prompt and reads the answer pasted back, up to a line with a single
dot. With a folder, `Relay("talk")` writes `0001.prompt.md` there and waits until `0001.reply.md` appears.

    python3 tutorial/relay.py "What is the capital of France?"
    python3 tutorial/relay.py --folder talk "What is the capital of France?"
"""

import argparse
import itertools
import os
import sys
import threading
import time
from pathlib import Path


class Relay:
    """A callable from messages to text that hands over the prompt and waits for the reply.

    Args:
        folder: where prompts and replies are files; None for the terminal.
        seconds: how long to wait for a file.
        pause: seconds between two looks for the reply.
    """

    def __init__(self, folder=None, seconds=3600.0, pause=0.2):
        self.folder, self.seconds, self.pause = folder and Path(folder), seconds, pause
        self.lock, self.model = threading.Lock(), "relay"

    def __call__(self, messages, **options):
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        text = "\n\n".join(f"## {m['role']}\n\n{m['content']}" for m in messages) + "\n"
        return self.by_file(text) if self.folder else self.by_hand(text)

    def by_hand(self, text):
        """Print the prompt, read the reply up to a line with a single dot."""
        with self.lock:
            print(
                text, "\nPaste the reply, then a line with a single dot:", sep="", file=sys.stderr
            )
            lines = itertools.takewhile(lambda line: line.rstrip("\n") != ".", sys.stdin)
            return "".join(lines).rstrip("\n")

    def by_file(self, text):
        """Write the next prompt whole, wait for its reply."""
        with self.lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            number = 1 + sum(1 for _ in self.folder.glob("*.prompt.md"))
            prompt = self.folder / f"{number:04}.prompt.md"
            part = prompt.with_suffix(".part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, prompt)
        reply, until = self.folder / f"{number:04}.reply.md", time.monotonic() + self.seconds
        while not reply.exists():
            if time.monotonic() > until:
                raise TimeoutError(f"no {reply} came within {self.seconds:g} seconds")
            time.sleep(self.pause)
        time.sleep(self.pause)  # whoever writes it may not have ended
        return reply.read_text(encoding="utf-8").rstrip("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--folder", help="hand over by files in this folder")
    arguments = parser.parse_args()
    print(Relay(arguments.folder)(arguments.question))


if __name__ == "__main__":
    main()
