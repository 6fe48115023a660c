"""Headless Chromium through its driver, by the WebDriver protocol itself: no client library, only loopback."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Tab": "\ue004", "Right": "\ue014", "Left": "\ue012", "Enter": "\ue007", "Escape": "\ue00c"}


def problem() -> str | None:
    """Why there is no browser here, or None."""
    if shutil.which("chromedriver") is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        return "no Chromium with its driver: `apt-get install --no-install-recommends chromium chromium-driver`"
    return None


class Browser:
    """One window of Chromium."""

    def __init__(self, port: int, folder: Path) -> None:
        self._base = f"http://127.0.0.1:{port}"
        # Root cannot use the sandbox; the pages are our own.
        arguments = ["--headless=new", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
        arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
        options = {"goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self._session = f"/session/{session['sessionId']}"

    def close(self) -> None:
        self._call("DELETE", self._session)

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """The result of a function body in the page."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": arguments})

    def wait_for(self, script: str, *, seconds: float = 30) -> None:
        """Wait until a function body returns true; errors while the page loads do not count."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):
                if self.run(script):
                    return
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds:g} s: {script}")

    def click(self, selector: str) -> None:
        """Click the middle of an element, as a mouse does: fails if something covers it."""
        using = {"using": "css selector", "value": selector}
        found = self._call("POST", f"{self._session}/element", using)[ELEMENT]
        self._call("POST", f"{self._session}/element/{found}/click", {})

    def press(self, *names: str) -> None:
        """Press keys, one after the other."""
        actions = [{"type": kind, "value": KEYS[name]} for name in names for kind in ("keyDown", "keyUp")]
        keyboard = {"type": "key", "id": "keyboard", "actions": actions}
        self._call("POST", f"{self._session}/actions", {"actions": [keyboard]})

    def console(self) -> list[str]:
        """What the page wrote to the console since the last call: errors, violations of its policy, failed requests."""
        return [entry["message"] for entry in self._call("POST", f"{self._session}/se/log", {"type": "browser"})]

    def show(self, width: int, height: int, scheme: Literal["light", "dark"] = "light", *, scale: float = 1) -> None:
        """Set the size of the window, and the color scheme that the page is asked for."""
        self._devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        # Scrolling that takes time would move the page away under a click.
        media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        self._devtools("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        """Store the visible part of the page as PNG."""
        path.write_bytes(base64.b64decode(self._devtools("Page.captureScreenshot", format="png")["data"]))

    def _devtools(self, command: str, **parameters: object) -> Any:
        return self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {json.load(error)['value']['message']}") from error


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile in ``folder``, and its driver; both end with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["chromedriver", f"--port={port}"], **quiet) as driver:
        try:
            _wait_for(port)
            window = Browser(port, folder)
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError("chromedriver does not listen")
