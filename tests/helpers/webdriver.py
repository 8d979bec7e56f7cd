"""A headless Chromium, driven by real input events through chromedriver's HTTP interface (W3C WebDriver)."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

KEYS = {
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "Tab": "\ue004",
    "Shift": "\ue008",
    "ArrowLeft": "\ue012",
    "ArrowUp": "\ue013",
}
KEYS |= {"ArrowRight": "\ue014", "ArrowDown": "\ue015", "Space": " "}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars"
)


def missing() -> str | None:
    """Return what is not installed, as a reason to skip tests; None when everything is."""
    if shutil.which("chromedriver") and any(map(shutil.which, BROWSERS)):
        return None
    return "no Chromium with chromedriver here: apt-get install -y chromium chromium-driver"


class Browser:
    """One browser window; use it in a `with` statement."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 800, dark: bool = True) -> None:
        self.profile, self.width, self.height, self.dark = profile, width, height, dark

    def __enter__(self) -> Browser:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.address = f"http://127.0.0.1:{port}/session"
        browser = next(filter(None, map(shutil.which, BROWSERS)))
        arguments = [*OPTIONS.split(), f"--user-data-dir={self.profile}", f"--window-size={self.width},{self.height}"]
        capabilities = {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": browser, "args": arguments},
        }
        self._wait_for(f"http://127.0.0.1:{port}/status")
        session = self._send("POST", "", {"capabilities": {"alwaysMatch": capabilities}})
        self.address += f"/{session['sessionId']}"
        self.emulate()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._send("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait(10)

    def emulate(self, width: int | None = None, height: int | None = None, **features: str) -> None:
        """Set the page's size in CSS pixels and media features, for instance `prefers_reduced_motion="reduce"`."""
        size = {"width": width or self.width, "height": height or self.height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        media = {"prefers_color_scheme": "dark" if self.dark else "light"} | features
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.devtools("Emulation.setEmulatedMedia", features=listed)

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, address: str) -> None:
        self._send("POST", "/url", {"url": address})

    def js(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function and return its value; a promise is awaited."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, *keys: str) -> None:
        """Press keys one after the other; "Shift+ArrowLeft" holds the first."""
        actions = []
        for key in keys:
            parts = [KEYS.get(part, part) for part in (key.split("+") if len(key) > 1 else [key])]
            actions += [{"type": "keyDown", "value": part} for part in parts]
            actions += [{"type": "keyUp", "value": part} for part in reversed(parts)]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def type(self, text: str) -> None:
        self.press(*text)

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """Drag with the left mouse button from one point of the page to another."""
        move = {"type": "pointerMove", "duration": 0, "origin": "viewport"}
        actions: list[dict[str, Any]] = [
            move | {"x": start[0], "y": start[1]},
            {"type": "pointerDown", "button": 0},
            move | {"x": end[0], "y": end[1]},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        self._send("POST", "/actions", {"actions": [mouse]})

    def click(self, selector: str) -> None:
        box = self.js("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", selector)
        point = (round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2))
        self.drag(point, point)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).innerText", selector)

    def until(self, script: str, *arguments: Any, seconds: float = 15) -> Any:
        """Wait until the body of a function returns something true, and return that."""
        return until(lambda: self.js(script, *arguments), script, seconds)

    def messages(self) -> list[str]:
        """Return the messages of the browser's console since the last call: errors and violations of the page's policy."""
        return [entry["message"] for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None and method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def _wait_for(self, address: str) -> None:
        def ready() -> bool:
            try:
                with urllib.request.urlopen(address, timeout=5) as answer:
                    return bool(json.load(answer)["value"]["ready"])
            except OSError:
                return False

        until(ready, "chromedriver starts", 20)


def until(condition: Callable[[], Any], what: str, seconds: float = 15) -> Any:
    """Wait until `condition` returns something true, and return that; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")
