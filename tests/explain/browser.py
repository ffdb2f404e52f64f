"""A real headless Chromium, driven over the W3C WebDriver protocol with the standard library alone."""

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str | None:
    """Why no browser can be driven here, or None."""
    if not any(map(shutil.which, BROWSERS)):
        return "no chromium on PATH (Debian: apt-get install chromium chromium-driver)"
    return None if shutil.which("chromedriver") else "no chromedriver on PATH (Debian: apt-get install chromium-driver)"


class Browser:
    """One window."""

    def __init__(self, driver: str) -> None:
        arguments = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]
        if os.geteuid() == 0:  # its sandbox refuses root, which CI containers run as
            arguments.append("--no-sandbox")
        options = {
            "binary": next(filter(None, map(shutil.which, BROWSERS))),
            "args": [*arguments, "--disable-dev-shm-usage"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        wanted["timeouts"] = {"script": 110_000}  # a busy machine; a call waits 120 s
        self._driver = driver
        self._session = ""
        self._session = f"/session/{self._call('POST', '/session', capabilities={'alwaysMatch': wanted})['sessionId']}"

    def open(self, page: Path, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """Show a page of a file in a window of that size and colour scheme."""
        self.visit(page.resolve().as_uri(), width=width, height=height, dark=dark)

    def visit(self, address: str, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """The same for any address."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.logs("browser"), self.logs("performance")  # what came before is no concern of this page
        self._call("POST", f"{self._session}/url", url=address)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self._call("POST", f"{self._session}/execute/sync", script=script, args=list(arguments))

    def click(self, selector: str) -> None:
        """A real click on the middle of the first element that fits."""
        self._call("POST", f"{self._session}/element/{self._find(selector)}/click")

    def press(self, selector: str, keys: str) -> None:
        """Keys on the first element that fits."""
        self._call("POST", f"{self._session}/element/{self._find(selector)}/value", text=keys)

    def logs(self, kind: str) -> list[dict[str, Any]]:
        """Entries of the console ("browser") or the DevTools events ("performance") since the last call."""
        found: list[dict[str, Any]] = self._call("POST", f"{self._session}/se/log", type=kind)
        return found

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.logs("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """The page as PNG: all of it, or what its window shows."""
        shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A DevTools command."""
        return self._call("POST", f"{self._session}/goog/cdp/execute", cmd=command, params=parameters)

    def close(self) -> None:
        """Close the window."""
        self._call("DELETE", self._session)

    def _find(self, selector: str) -> str:
        (element,) = self._call("POST", f"{self._session}/element", using="css selector", value=selector).values()
        return str(element)

    def _call(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self._driver + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of this machine
        try:
            with opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as fault:
            with fault:
                raise RuntimeError(f"{method} {path}: {fault.read().decode()[:500]}") from None


@contextmanager
def chromium(log: Path) -> Iterator[Browser]:
    """A browser for as long as the block lasts."""
    with log.open("w") as errors:
        driver = subprocess.Popen(
            [str(shutil.which("chromedriver")), "--port=0"], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert driver.stdout is not None
            started = next((m for line in driver.stdout if (m := re.search(r"successfully on port (\d+)", line))), None)
            assert started, f"chromedriver did not start: {log.read_text()}"
            browser = Browser(f"http://127.0.0.1:{started[1]}")
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
            driver.wait(timeout=20)
            driver.stdout.close()
