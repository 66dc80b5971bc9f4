"""Headless Chromium for tests of pages: started once, driven by Selenium, watched."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest

from tools import npm

AXE = ("axe-core", "4.14.1")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb",
)  # fmt: skip
PHONE, DESKTOP = (390, 844), (1280, 900)
WAIT_SEC = 60


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where $BROWSER_TESTS says that a browser is required."""
    if os.environ.get("BROWSER_TESTS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Give a driver of Debian's chromium."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        missing("needs chromium and chromium-driver")
    from selenium import webdriver as selenium

    options = selenium.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        service = selenium.ChromeService(driver)
        browser = selenium.Chrome(options=options, service=service)
        try:
            browser.set_script_timeout(WAIT_SEC)
            yield browser
        finally:
            browser.quit()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder as any static host would; give its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait(browser: Any, condition: str, *arguments: Any) -> Any:
    """Wait until a JavaScript expression is true; return its value."""
    script = f"return ({condition})"
    return until(browser, lambda: browser.execute_script(script, *arguments))


def until(browser: Any, holds: Callable[[], Any]) -> Any:
    """Wait until a function's value is true; return it."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT_SEC, poll_frequency=0.05).until(lambda _: holds())


def view(browser: Any, *, size: tuple[int, int] = DESKTOP, **media: str) -> None:
    """Set the width and height of the page, and media features as prefers_color_scheme."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1}
    metrics |= {"mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": k.replace("_", "-"), "value": v} for k, v in media.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def complaints(browser: Any) -> list[str]:
    """Return errors on the console since the last call."""
    log = browser.get_log("browser")
    return [entry["message"] for entry in log if entry["level"] == "SEVERE"]


def hosts(browser: Any) -> set[str]:
    """Return the hosts that were asked for anything since the last call; files have none."""
    found = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(message["params"]["request"]["url"])
            if url.scheme in ("http", "https", "ws", "wss"):
                found.add(url.hostname or "")
    return found


def faults(browser: Any) -> list[str]:
    """Return what axe-core finds serious or critical on the page as it is shown."""
    folder = npm.fetch(*AXE, ["axe.min.js"])
    browser.execute_script((folder / "axe.min.js").read_text())
    result = browser.execute_async_script("axe.run().then(arguments[0])")
    assert result["passes"]
    return [
        f"{fault['id']}: {node['html']}"
        for fault in result["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
