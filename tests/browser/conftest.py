"""A served `ui` page and a Chromium to use it with.

Which gradio is tested is decided by the environment that pytest runs in: `make test-browser` runs these with both.
Without Chromium, playwright or gradio they are skipped, unless REQUIRE_BROWSER is set.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.browser.painter import Painter

REPOSITORY = Path(__file__).parents[2]
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
START = 120  # seconds until the page is served: it loads a model first
VIEWPORT = {"width": 1280, "height": 1400}


def _missing(reason: str):
    if os.environ.get("REQUIRE_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser():
    try:
        import gradio  # noqa: F401
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        _missing(f"browser tests need playwright and gradio: {error}")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        _missing("browser tests need Chromium (Debian: apt-get install chromium), or CHROMIUM to say where it is")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Where the page's program keeps what it keeps for its user."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def address(browser, home):
    """Where the page is served."""
    port = _free_port()
    log = (home / "log").open("w")
    command = [sys.executable, "-m", "lib_masknoise", "ui", "--port", str(port)]
    environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}", server, home / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def context(browser):
    made = browser.new_context(viewport=VIEWPORT, accept_downloads=True)
    yield made
    made.close()


@pytest.fixture
def painter(context, address):
    """A page with the canvas mounted; fails afterwards where the page has logged an error."""
    used = Painter.open(context, address)
    yield used
    assert used.errors == []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the page is not served:\n{log.read_text()}")
