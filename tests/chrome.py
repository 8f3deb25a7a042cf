"""Chromium driven through its DevTools protocol: open a page, run script in it, press keys, collect what goes wrong."""

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import websocket

PROGRAMS = ["chromium", "chromium-browser", "google-chrome"]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-extensions",
         "--no-first-run", "--no-default-browser-check", "--disable-component-update", "--disable-sync",
         "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0", "--remote-allow-origins=*"]  # fmt: skip


def find_chrome():
    """Path of an installed Chromium, None when there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Chrome:
    """One browser with one page. `problems` holds console errors, exceptions and failed requests since the last `open`."""

    def __init__(self, start_s=60):
        self.profile = tempfile.TemporaryDirectory(prefix="chrome-", ignore_cleanup_errors=True)
        command = [find_chrome(), *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.numbers, self.events, self.problems, self.requests = itertools.count(1), [], [], []
        self.socket = websocket.create_connection(self._address(start_s), timeout=60)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    session = None

    def _address(self, start_s):
        written = Path(self.profile.name) / "DevToolsActivePort"
        deadline = time.monotonic() + start_s
        while time.monotonic() < deadline:
            lines = written.read_text().splitlines() if written.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            if self.process.poll() is not None:
                raise RuntimeError(f"Chromium ended with code {self.process.returncode} before it was ready")
            time.sleep(0.05)
        raise RuntimeError(f"Chromium was not ready after {start_s} s")

    def call(self, method, **parameters):
        """Send one command and wait for its answer; events that come meanwhile are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        kind, content = event.get("method"), event.get("params", {})
        self.events.append(event)
        if kind == "Runtime.exceptionThrown":
            self.problems.append(content["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif kind == "Runtime.consoleAPICalled" and content["type"] in ("error", "assert", "warning"):
            self.problems.append(" ".join(str(part.get("value")) for part in content["args"]))
        elif kind == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.problems.append(content["entry"]["text"])
        elif kind == "Network.loadingFailed" and not content.get("canceled"):
            self.problems.append(f"request failed: {content['errorText']}")
        elif kind == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])

    def size(self, width, height, dark=False):
        """Set the window's size in CSS pixels and the reader's preferred theme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def open(self, url, wait_s=30):
        """Open a page and wait until it and all its pictures are loaded."""
        self.problems.clear()
        self.requests.clear()
        self.call("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && location.href === {json.dumps(url)}", wait_s)

    def wait_for(self, condition, wait_s=30):
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + wait_s
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true within {wait_s} s: {condition}")
            time.sleep(0.03)

    def run(self, script):
        """Value of a JavaScript expression (a promise is awaited)."""
        call = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in call:
            details = call["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return call["result"].get("value")

    def press(self, key):
        """Press one key: "Tab", "Enter" or " "."""
        codes = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}
        code, text = codes[key]
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path, full=True):
        """Write a PNG of the page, from its top to its end when `full`."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def close(self):
        """End the browser that was started here."""
        self.socket.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.profile.cleanup()
