"""Directions of style on a WebUI's U-Net: what its calls see, and that nothing of them stays."""

import pytest
import torch

from lib_masknoise.calibrate import style
from lib_masknoise.calibrate.calibrator import Calibrator
from lib_masknoise.calibrate.profile import Profiles
from lib_masknoise.calibrate.requests import CalibrateRequest
from lib_masknoise.conditioning import unblended
from lib_masknoise.explore.model import Stop
from tests.standin.test_calibrating import settings, webui  # noqa: F401

PROMPTS = tuple(f"{manner} {thing}" for manner in ("red", "blue", "old") for thing in ("house", "sea", "tree", "cat"))
ASKED = {"style": True, "width": 64, "height": 64}
TIME = 400


@pytest.fixture
def subject(webui):  # noqa: F811
    return webui.host.styling.subject(webui.model, settings(webui))


def latents(rows):
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def asked(webui, contexts, x):  # noqa: F811
    """The host's model by itself: `[B, T, D]` → the noise."""
    signal = webui.host.model.alphas_cumprod[TIME]
    times = torch.full((len(x),), 50 * float(((1 - signal) / signal).sqrt()))
    return webui.host.unet(x, times, context=contexts)


def test_a_call_is_the_hosts_own(webui, subject):  # noqa: F811
    own, x = subject.encode(["red house"])["red house"], latents(2)
    noise, looks = subject.looked(unblended(own), x, TIME)
    assert torch.allclose(noise, asked(webui, own.context.expand(2, -1, -1), x), atol=1e-4)
    assert looks.shape[0] == 2 and torch.allclose(looks.sum(2), torch.ones(looks.shape[:2]), atol=1e-5)


def test_an_offset_in_all_groups_shifts_the_values_of_every_token(webui, subject):  # noqa: F811
    """And of none of the keys: so it does what a context shifted everywhere does."""
    own, x = subject.encode(["red house"])["red house"], latents(2)
    groups = style.layer_groups(subject.levels)
    shift = torch.randn(2, 1, own.context.shape[1], generator=torch.Generator().manual_seed(2))
    noise, _ = subject.looked(style.stepped(unblended(own), groups, shift.expand(-1, len(groups), -1)), x, TIME)
    assert torch.allclose(noise, asked(webui, own.context + shift, x), atol=1e-3)
    assert not torch.allclose(noise, asked(webui, own.context.expand(2, -1, -1), x), atol=1e-2)


def test_a_group_of_layers_alone_is_another_step(webui, subject):  # noqa: F811
    own, x = subject.encode(["red house"])["red house"], latents(1)
    groups = style.layer_groups(subject.levels)
    assert len(groups) > 1
    offsets = torch.zeros(len(groups), len(groups), own.context.shape[1])
    offsets[range(len(groups)), range(len(groups))] = 1.0
    noise, _ = subject.looked(style.stepped(unblended(own), groups, offsets), x.expand(len(groups), -1, -1, -1), TIME)
    assert float((noise[0] - noise[1]).abs().max()) > 1e-2


def test_the_route_finds_directions_and_keeps_the_ranges(webui, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(style, "find", quick_find)
    monkeypatch.setattr(webui.model, "identity", lambda: ("ab" * 32, "textures"))
    calibrator = Calibrator(webui.workshop, Profiles(tmp_path / "profiles"), webui.model.identity)
    told = [event for event in calibrator.events(CalibrateRequest.parse(ASKED)) if isinstance(event, tuple)]
    profile = calibrator.current()
    assert set(profile.style["mixtures"]) == {"style", "layout"} and not profile.effects
    assert any(done for _, done, _ in told)
    again = calibrator.make(CalibrateRequest.parse(ASKED))
    assert again == profile
    assert not webui.host.shared.state.job


def quick_find(subject, prompts, seed, report):
    """The whole of it, with fewer prompts, pictures and directions."""
    return FIND(subject, PROMPTS, seed, pictures=2, candidates=3, report=report)


FIND = style.find


def test_the_hosts_interrupt_ends_it_and_leaves_no_profile(webui, tmp_path, monkeypatch):  # noqa: F811
    calls = []

    def interrupting(subject, prompts, seed, report):
        def once(rows):
            calls.append(rows)
            webui.host.shared.state.interrupt()
            report(rows)

        return quick_find(subject, prompts, seed, once)

    monkeypatch.setattr(style, "find", interrupting)
    with pytest.raises(Stop):
        webui.workshop.make(CalibrateRequest.parse(ASKED))
    assert len(calls) == 1
