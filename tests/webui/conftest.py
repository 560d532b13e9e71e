"""The running WebUI that these tests are for, and what must be true after each of them."""

from __future__ import annotations

import base64

import pytest

from tests.webui import compare, hosts
from tests.webui.client import WebUI
from tests.webui.watcher import Watcher


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if hosts.URL:
        return
    skip = pytest.mark.skip(reason="MASKNOISE_WEBUI_URL is not set: these tests need a running WebUI")
    for item in items:
        if "tests/webui/" in item.path.as_posix():
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if compare.NEAR:
        measured, what, sampler = max(compare.NEAR)
        same = sum(not one[0] for one in compare.NEAR)
        terminalreporter.write_line(
            f"{hosts.host().name}: {len(compare.NEAR)} pairs of pictures that must be the same were at most "
            f"{measured}/255 apart ({what}, {sampler}); {same} were the same bit by bit"
        )


LISTS = {"sampler": hosts.samplers, "optimisation": hosts.optimisations, "crash": lambda: tuple(hosts.host().crashes)}
"""What the host lists, as parameters of tests."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, listed in LISTS.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, listed() if hosts.URL else ["the host's"])


@pytest.fixture(scope="session")
def webui() -> WebUI:
    """The WebUI, with the checkpoint asked for; afterwards with the one it had."""
    client = hosts.webui()
    scripts = client.get("/sdapi/v1/scripts")["txt2img"]
    assert "masknoise" in [name.lower() for name in scripts], "MaskNoise is not installed in this WebUI"
    before = client.get("/sdapi/v1/options")["sd_model_checkpoint"]
    if hosts.CHECKPOINT:
        client.post("/sdapi/v1/options", {"sd_model_checkpoint": hosts.CHECKPOINT})
    yield client
    if hosts.CHECKPOINT:
        client.post("/sdapi/v1/options", {"sd_model_checkpoint": before})


class Plain:
    """Jobs without the extension, and what they looked like before anything else was done."""

    def __init__(self, webui: WebUI):
        self.webui = webui
        self.first = webui.txt2img(batch_size=2)
        self.picture = base64.b64encode(self.first.raw[0]).decode()
        self.before = self.hashes()

    def hashes(self) -> tuple[list[str], list[str]]:
        return self.webui.txt2img(batch_size=2).hashes, self.webui.img2img(self.picture).hashes

    def assert_as_before(self) -> None:
        text, image = self.hashes()
        assert text == self.before[0], "a plain txt2img is another picture than before"
        assert image == self.before[1], "a plain img2img is another picture than before"


@pytest.fixture(scope="session")
def plain(webui: WebUI) -> Plain:
    plain = Plain(webui)
    if plain.hashes() != plain.before:
        pytest.fail("this host does not make the same picture twice: nothing can be compared bit by bit")
    return plain


@pytest.fixture
def unharmed(plain: Plain):
    """After the test, a plain txt2img and a plain img2img are bit-identical to those before."""
    yield plain
    plain.assert_as_before()


@pytest.fixture(scope="session")
def watcher(webui: WebUI) -> Watcher:
    return Watcher(webui)
