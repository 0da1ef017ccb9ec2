"""A headless Chromium, driven over the DevTools protocol on a pipe: nothing but the browser itself is needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio",
         "--disable-dev-shm-usage", "--force-color-profile=srgb", "--remote-debugging-pipe")  # fmt: skip
KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "Space": 32,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


def find() -> str | None:
    """A Chromium of this machine: RPBENCH_CHROMIUM, or one on the path."""
    return os.environ.get("RPBENCH_CHROMIUM") or next((p for name in NAMES if (p := shutil.which(name))), None)


class Browser:
    """One tab. `events` holds everything that the browser has told about it."""

    def __init__(self, program: str, profile: Path) -> None:
        inside, self._out = os.pipe()
        self._in, outside = os.pipe()
        # the browser reads commands from descriptor 3 and answers on 4
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (inside, outside)]

        def place() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (inside, outside, *ends):
            os.close(fd)
        self._rest, self._last, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{part}.enable")
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)  # else there are no focus events

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command; RuntimeError where the browser refuses it, TimeoutError after 30 s."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for told in self._read(0.5):
                if told.get("id") == self._last:
                    if "error" in told:
                        raise RuntimeError(f"{method}: {told['error']['message']}")
                    result: dict[str, Any] = told["result"]
                    return result
        raise TimeoutError(method)

    def _read(self, seconds: float) -> Iterator[dict[str, Any]]:
        if select.select([self._in], [], [], seconds)[0]:
            self._rest += os.read(self._in, 1 << 20)
        *whole, self._rest = self._rest.split(b"\0")
        found = [json.loads(part) for part in whole]
        self.events += [told for told in found if "method" in told]
        yield from found

    def close(self) -> None:
        self._session = ""
        try:
            self.send("Browser.close")
        except (RuntimeError, TimeoutError, OSError):
            self._process.kill()
        self._process.wait(timeout=30)
        os.close(self._out)
        os.close(self._in)

    # --- what tests say ---

    def size(self, width: int, height: int = 900, dark: bool = False, mobile: bool = False, scale: float = 1) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])

    def open(self, url: str) -> None:
        self.events.clear()
        self.send("Page.navigate", url=url)
        end = time.monotonic() + 30
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            if time.monotonic() > end:
                raise TimeoutError(url)
            for _ in self._read(0.5):
                pass

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited. An exception there is one here."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"]["exception"].get("description", "an exception"))
        return told["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """What stands in the elements that a selector finds."""
        found: list[str] = self.js(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")
        return found

    def press(self, text: str, selector: str = "button") -> None:
        """Click on the element whose text begins so."""
        self.js(f"[...document.querySelectorAll({selector!r})].find(e => e.textContent.startsWith({text!r})).click()")

    def key(self, name: str, shift: bool = False) -> None:
        text = {"Enter": "\r", "Space": " "}.get(name, "")
        key = " " if name == "Space" else name
        same: dict[str, Any] = {"key": key, "code": name, "windowsVirtualKeyCode": KEYS[name], "modifiers": 8 * shift}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **same)
        self.send("Input.dispatchKeyEvent", type="keyUp", **same)

    def picture(self, path: Path, whole: bool = True) -> None:
        told = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def paper(self, path: Path) -> None:
        told = self.send("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        path.write_bytes(base64.b64decode(told["data"]))

    def requests(self) -> list[str]:
        """Every address that the page has asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Everything on the console, uncaught exceptions and refusals of the page's policy included."""
        found = []
        for e in self.events:
            if e["method"] == "Runtime.exceptionThrown":
                found.append(e["params"]["exceptionDetails"]["exception"].get("description", "an exception"))
            elif e["method"] == "Runtime.consoleAPICalled":
                found.append(str([a.get("value") for a in e["params"]["args"]]))
            elif e["method"] == "Log.entryAdded":
                found.append(e["params"]["entry"]["text"])
        return found


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Browser]:
    tab = Browser(program, profile)
    try:
        yield tab
    finally:
        tab.close()
