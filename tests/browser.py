"""A headless Chromium for tests, spoken to through a pipe: no package, no port, no network.

    with Browser() as browser:
        page = browser.open(path)
        page.run("document.title")
        page.screenshot(path, dark=True)

`page.complaints` holds what the console and the security policy had to say.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --hide-scrollbars
--force-device-scale-factor=1 --host-resolver-rules=MAP\t*\t~NOTFOUND --remote-debugging-pipe"""


class Browser:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="chromium")
        theirs_in, self.sending = os.pipe()
        self.receiving, theirs_out = os.pipe()
        flags = [flag.replace("\t", " ") for flag in FLAGS.split(" ") for flag in flag.split("\n")]
        command = [CHROMIUM, *flags, f"--user-data-dir={self.folder}", "about:blank"]
        shell = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "chromium", *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self.folder},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.buffer, self.count, self.listeners = b"", 0, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        os.close(self.sending)
        os.close(self.receiving)
        shutil.rmtree(self.folder, ignore_errors=True)

    def message(self):
        """The next message from the browser."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.receiving], [], [], 90)
            piece = os.read(self.receiving, 1 << 16) if ready else b""
            if not piece:
                raise EOFError("the browser is gone" if ready else "the browser says nothing")
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def call(self, method, session=None, **params):
        """Ask for something and wait for the answer; what comes in between is told to pages."""
        self.count += 1
        order = {"id": self.count, "method": method, "params": params}
        if session:
            order["sessionId"] = session
        os.write(self.sending, json.dumps(order).encode() + b"\0")
        while True:
            message = self.message()
            if message.get("id") == self.count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            for listener in self.listeners:
                listener(message)

    def open(self, path, **features):
        """A page in a tab of its own, loaded. Features are such as prefers_color_scheme="dark"."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, Path(path).resolve().as_uri(), features)


class Page:
    def __init__(self, browser, session, url, features):
        self.browser, self.session = browser, session
        self.complaints, self.loaded = [], False
        browser.listeners.append(self.hear)
        for domain in "Page", "Runtime", "Log", "Network":
            self.call(f"{domain}.enable")
        self.prefer(**features)
        self.size(1200, 800)
        self.call("Page.navigate", url=url)
        while not self.loaded:
            self.hear(browser.message())

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def hear(self, message):
        if message.get("sessionId") != self.session:
            return
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded = True
        if method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(params)
        url = (
            params.get("request", {}).get("url", "")
            if method == "Network.requestWillBeSent"
            else ""
        )
        if url and not url.startswith(("file:", "data:", "about:")):
            self.complaints.append(f"it asked for {url}")

    def prefer(self, **features):
        """What the reader prefers, such as prefers_color_scheme="dark"."""
        pairs = [{"name": n.replace("_", "-"), "value": v} for n, v in features.items()]
        self.call("Emulation.setEmulatedMedia", features=pairs)

    def size(self, width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def run(self, script):
        """The value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def press(self, key):
        """One key, such as ArrowRight, to whatever has the focus."""
        for kind in "keyDown", "keyUp":
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self, path, **clip):
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, **clip)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
