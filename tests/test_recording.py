"""The program that records a page's cassette anew."""

import json
import shutil
import subprocess
import sys
import threading
import time

from conftest import ROOT

PAGE = """# Case 99

```python
>>> import sys
>>> from minitrace import OptoPrime, node
>>> from minitrace_record import Replay
>>> for start in 1, 2:
...     llm = Replay("tutorial/cases/cassettes/case_99.jsonl")
...     print(llm("hello"), end=" ")
...     x = node(start, name="x", trainable=True)
...     optimizer = OptoPrime([x], llm=llm)
...     optimizer.backward(x + 1, "more")
...     update = optimizer.step()
...     print(x.data)
hi 7
hi 7

```
"""


def test_a_page_is_recorded_each_conversation_in_a_folder_of_its_own(tmp_path):
    root, talk = tmp_path / "root", tmp_path / "talk"
    (root / "tutorial" / "cases" / "cassettes").mkdir(parents=True)
    (root / "tutorial" / "companions").mkdir()
    for name in (
        "minitrace.py",
        "tutorial/record.py",
        "tutorial/relay.py",
        "tutorial/companions/minitrace_record.py",
    ):
        shutil.copy(ROOT / name, root / name)
    (root / "tutorial" / "cases" / "case_99_page.md").write_text(PAGE, encoding="utf-8")
    cassette = root / "tutorial" / "cases" / "cassettes" / "case_99.jsonl"
    cassette.write_text('{"old": 1}\n', encoding="utf-8")
    command = [sys.executable, "tutorial/record.py", "case_99", str(talk)]
    running, answered = (
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True),
        set(),
    )

    def answer():
        while running.poll() is None:
            for prompt in talk.glob("*/*.prompt.md"):
                reply = prompt.with_name(prompt.name.replace("prompt", "reply"))
                if not reply.exists():
                    answered.add(prompt.parent.name)
                    said = '{"suggestion": {"x%s": 7}}' % (
                        "1" if "x1" in prompt.read_text() else "0"
                    )
                    made = said if "# Variables" in prompt.read_text() else "hi"
                    reply.with_suffix(".part").write_text(made)
                    reply.with_suffix(".part").rename(reply)
            time.sleep(0.02)

    thread = threading.Thread(target=answer)
    thread.start()
    out = running.communicate(timeout=60)[0]
    thread.join()
    assert running.returncode == 0, out
    assert answered == {"case_99-1-optimizer", "case_99-1-program", "case_99-2-optimizer"}
    records = [json.loads(line) for line in cassette.read_text(encoding="utf-8").splitlines()]
    assert [record["reply"] for record in records if len(record["messages"]) == 1] == ["hi"]
    assert len(records) == 3 and records[0]["model"].endswith("by hand-off")
    assert cassette.with_suffix(".old").read_text(encoding="utf-8") == '{"old": 1}\n'
