"""Samplers, hires fix, batches, prompts, sizes, guidance and settings: in each the blending is exact.

Every value of each is tried alone, and (slow) every pair of them in a selection of combinations.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.webui import hosts
from tests.webui.client import Images, difference
from tests.webui.compare import check

# 90 words and more: two chunks of 75 tokens.
LONG = ", ".join(["an ocean with waves and foam", "a wide blue sky", "a calm sea"] * 8)
S = hosts.SIZE

PROMPTS: dict[str, dict[str, str]] = {
    "short": {},
    "AND in the concept": {"prompt": "an ocean AND a forest"},
    "AND in the base": {"base": "red bricks AND snow"},
    "AND, weighted, in both": {"prompt": "an ocean :0.7 AND a forest :0.4 AND lava :-0.2", "base": "red bricks :1.2"},
    "AND, more in the base": {"prompt": "an ocean AND a forest", "base": "red bricks :0.5 AND snow :0.3 AND lava :0.4"},
    "edited concept": {"prompt": "[an ocean:a forest:0.5]"},
    "edited base": {"base": "[red bricks:snow:0.5]"},
    "edited at other steps": {"prompt": "[an ocean:a forest:2]", "base": "[red bricks:snow:0.7]"},
    "alternating": {"prompt": "[an ocean|a forest]", "base": "[red bricks|snow|lava]"},
    "edited part of AND": {"prompt": "[an ocean:lava:0.4] AND a forest :0.6", "base": "red bricks"},
    "edited negative": {"negative": "[lava:snow:0.5]", "base_negative": "[desert|sand]"},
    "emphasis": {"prompt": "(an ocean:1.3) [waves]", "base": "(red:0.7) bricks"},
    "comments": {"prompt": "an ocean # lava\n, waves", "negative": "# nothing\nlava", "base": "red # blue\nbricks"},
    "BREAK": {"prompt": "an ocean BREAK a forest", "base": "red bricks"},
    "BREAK in the base": {"base": "red bricks BREAK snow BREAK lava"},
    "long concept": {"prompt": LONG},
    "long base": {"base": LONG.replace("ocean", "desert")},
    "long negative": {"negative": "lava, " * 50},
    "long base negative": {"base_negative": "lava, " * 50},
    "long concept, longer negative": {"prompt": LONG, "negative": "lava, " * 90},
    "no negative of its own": {"negative": "", "base_negative": "lava"},
    "empty base": {"base": ""},
}

HIRES: dict[str, dict[str, Any]] = {
    "no hires": {},
    "hires Latent": {"hr_upscaler": "Latent", "hr_scale": 1.3},
    "hires Lanczos": {"hr_upscaler": "Lanczos", "hr_scale": 1.3},
    "hires with fewer steps": {"hr_upscaler": "Latent", "hr_scale": 1.5, "hr_second_pass_steps": 5},
    "hires, other sampler": {"hr_upscaler": "Latent", "hr_scale": 1.3, "hr_sampler_name": "DPM++ 2M"},
}

BATCHES = {
    "one image": {},
    "batch size 2": {"batch_size": 2},
    "batch count 2": {"n_iter": 2},
    "size 3, count 2": {"batch_size": 3, "n_iter": 2},
}

SIZES = {
    "square": {},
    "wide, odd": {"width": S + S // 2 + 8, "height": S // 2 + 8},
    "tall, odd": {"width": S - 24, "height": S + 40},
}

GUIDANCE = {"CFG 4": {}, "CFG 1": {"cfg_scale": 1}, "CFG 8.5": {"cfg_scale": 8.5}}

SETTINGS: dict[str, dict[str, Any]] = {
    "usual settings": {},
    "batch_cond_uncond off": {"batch_cond_uncond": False},
    "pad_cond_uncond": {"pad_cond_uncond": True},
    "pad_cond_uncond_v0": {"pad_cond_uncond_v0": True},
    "NGMS": {"s_min_uncond": 4.0},
    "NGMS, all steps": {"s_min_uncond": 4.0, "s_min_uncond_all": True},
    "NGMS, batch_cond_uncond off": {"s_min_uncond": 4.0, "batch_cond_uncond": False},
    "skip_early_cond": {"skip_early_cond": 0.3},
    "clip skip 2": {"CLIP_stop_at_last_layers": 2},
    "ENSD": {"eta_noise_seed_delta": 31337},
    "randn CPU": {"randn_source": "CPU"},
    "randn NV": {"randn_source": "NV"},
    "old emphasis": {"emphasis": "No norm"},
    "token merging": {"token_merging_ratio": 0.5},
    "comma padding": {"comma_padding_backtrack": 0},
    "upcast attention": {"upcast_attn": True},
}

ACTING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "emphasis None": ({"emphasis": "None"}, {"prompt": "(an ocean:1.4)"}),
    "emphasis Ignore": ({"emphasis": "Ignore"}, {"prompt": "(an ocean:1.4)"}),
    "emphasis No norm": ({"emphasis": "No norm"}, {"prompt": "(an ocean:1.6)"}),
    "old emphasis": ({"use_old_emphasis_implementation": True}, {"prompt": "(an ocean:1.6), (lava:0.7)"}),
    "old scheduling": ({"use_old_scheduling": True}, {"prompt": "[an ocean:lava:1.0]"}),
    "clip skip": ({"CLIP_stop_at_last_layers": 2}, {}),
    "pad": ({"pad_cond_uncond": True}, {"prompt": LONG, "negative": "snow"}),
    "pad, longer negative": ({"pad_cond_uncond": True}, {"negative": LONG.replace("ocean", "desert")}),
    "pad v0": ({"pad_cond_uncond_v0": True}, {"prompt": LONG, "negative": "snow"}),
    "pad v0 cuts": ({"pad_cond_uncond_v0": True}, {"negative": LONG.replace("ocean", "desert")}),
    # 72 tokens, and a part behind a comma that goes beyond 75: it is put into the next chunk whole, or divided.
    "comma padding": ({"comma_padding_backtrack": 0}, {"prompt": "an ocean " * 36 + ", a meadow of red bricks"}),
    "NGMS": ({"s_min_uncond": 4.0}, {}),
    "NGMS, all steps": ({"s_min_uncond": 4.0, "s_min_uncond_all": True}, {}),
    "skip early": ({"skip_early_cond": 0.5}, {}),
    "token merging": ({"token_merging_ratio": 0.5}, {}),
    "Hypertile": ({"hypertile_enable_unet": True, "hypertile_max_tile_unet": 32}, {"width": 4 * S, "height": 2 * S}),
    "eta DDIM": ({"eta_ddim": 0.8}, {"sampler_name": "DDIM"}),
    "eta ancestral": ({"eta_ancestral": 0.4}, {"sampler_name": "Euler a"}),
    "churn": ({"s_churn": 6.0}, {}),
    "ENSD": ({"eta_noise_seed_delta": 31337}, {"sampler_name": "Euler a"}),
    "sigma min": ({"sigma_min": 0.4}, {"scheduler": "Karras"}),
    "rho": ({"rho": 3.0}, {"scheduler": "Karras"}),
    "penultimate sigma": ({"always_discard_next_to_last_sigma": True}, {}),
    "SGM noise": ({"sgm_noise_multiplier": True}, {}),
    "Zero Terminal SNR": ({"sd_noise_schedule": "Zero Terminal SNR"}, {}),
    "UniPC variant": ({"uni_pc_variant": "bh2"}, {"sampler_name": "UniPC"}),
    "UniPC order": ({"uni_pc_order": 1}, {"sampler_name": "UniPC"}),
    "beta": ({"beta_dist_alpha": 0.9}, {"scheduler": "Beta"}),
    "RNG NV": ({"randn_source": "NV"}, {}),
    "old Karras": ({"use_old_karras_scheduler_sigmas": True}, {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}),
}
"""Settings that change what a sampling pass does, and a job in which each changes the plain picture."""

SUBSEEDS = {"no subseed": {}, "subseed": {"subseed": 3, "subseed_strength": 0.4}, "tiling": {"tiling": True}}

EVERY_KIND = ["Euler", "Euler a", "Heun", "DPM++ 2M", "DPM++ SDE", "DDIM", "UniPC", "LCM"]
"""Samplers that differ in how they call the denoiser; those the host has are combined with everything."""


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_of_it(plain):
    yield
    plain.assert_as_before()


def _job(hires: str = "no hires", **more: Any) -> dict[str, Any]:
    if not HIRES[hires]:
        return more
    return {**more, "enable_hr": True, "denoising_strength": 0.6, **HIRES[hires], **hosts.host().hires}


def test_sampler(webui, sampler):
    check(webui, sampler_name=sampler)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt(webui, prompt):
    check(webui, **PROMPTS[prompt])


@pytest.mark.parametrize("hires", [name for name in HIRES if HIRES[name]])
def test_hires(webui, hires):
    check(webui, **_job(hires))


def test_hires_prompts_are_the_concepts_too(webui):
    """Editing at a step counts anew in the second pass."""
    check(webui, prompt="[an ocean:a forest:0.5] AND lava :0.3", **_job("hires with fewer steps"))


@pytest.mark.parametrize("batch", BATCHES)
def test_batch(webui, batch):
    check(webui, **BATCHES[batch])


@pytest.mark.parametrize("size", SIZES)
def test_size(webui, size):
    check(webui, **SIZES[size])


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_guidance(webui, guidance):
    check(webui, **GUIDANCE[guidance])


@pytest.mark.parametrize("setting", SETTINGS)
def test_setting(webui, setting):
    check(webui, settings=SETTINGS[setting])


@pytest.mark.parametrize("setting", SETTINGS)
def test_setting_with_prompts_of_unequal_length(webui, setting):
    check(webui, LONG, settings=SETTINGS[setting], batch_size=2)


@pytest.mark.parametrize("setting", ACTING)
def test_setting_acts(webui, setting):
    """As it does without MaskNoise, and not in vain."""
    settings, job = ACTING[setting]
    names = {"negative": "negative_prompt"}
    ask = {"prompt": "an ocean", "negative_prompt": "lava", **{names.get(k, k): v for k, v in job.items()}}
    usual = webui.ask(**ask)
    if usual.status != 200 or ask.get("sampler_name", hosts.SAMPLER) not in hosts.samplers():
        pytest.skip(f"this host does not do it: {usual}")
    with webui.settings(**settings):
        # The host compares few of its settings before it takes the last job's prompts as they were encoded.
        webui.ask(prompt="sand", negative_prompt="a wall")
        changed = webui.ask(**ask)
    if changed.status != 200 or not difference(Images(usual.json), Images(changed.json)):
        pytest.skip("the setting does nothing in this host without MaskNoise")
    check(webui, settings=settings, **job)


def test_optimisation(webui, optimisation):
    check(webui, settings={"cross_attention_optimization": optimisation})


@pytest.mark.parametrize("subseed", SUBSEEDS)
def test_subseed(webui, subseed):
    check(webui, sampler_name="Euler a", batch_size=2, **SUBSEEDS[subseed])


@pytest.mark.parametrize("scheduler", ["Karras", "Exponential", "SGM Uniform", "Align Your Steps"])
def test_scheduler(webui, scheduler):
    check(webui, sampler_name="DPM++ 2M", scheduler=scheduler)


second_checkpoint = pytest.mark.skipif(
    not hosts.SECOND_CHECKPOINT, reason="MASKNOISE_WEBUI_SECOND_CHECKPOINT is not set: no other model of the same kind"
)


@second_checkpoint
@pytest.mark.parametrize("switch_at", [0.1, 0.5, 0.9])
def test_refiner(webui, switch_at):
    check(webui, refiner_checkpoint=hosts.SECOND_CHECKPOINT, refiner_switch_at=switch_at)


@second_checkpoint
def test_refiner_with_parts(webui):
    check(
        webui,
        "an ocean :0.8 AND a forest :0.5",
        "[lava:snow:0.5]",
        refiner_checkpoint=hosts.SECOND_CHECKPOINT,
        refiner_switch_at=0.5,
        batch_size=2,
    )


@second_checkpoint
def test_hires_checkpoint(webui):
    check(webui, **_job("hires Latent", hr_checkpoint_name=hosts.SECOND_CHECKPOINT))


@second_checkpoint
def test_other_checkpoint_for_a_job(webui):
    check(webui, override_settings={"sd_model_checkpoint": hosts.SECOND_CHECKPOINT})


FACTORS = {
    "prompt": list(PROMPTS),
    "setting": [name for name in SETTINGS if name != "token merging"],
    "sampler": EVERY_KIND,
    "hires": list(HIRES),
    "batch": list(BATCHES),
    "size": list(SIZES),
    "guidance": list(GUIDANCE),
    "subseed": list(SUBSEEDS)[:2],
}


def pairwise(factors: dict[str, list[str]]) -> list[dict[str, str]]:
    """Combinations in which every two values of different factors come together at least once, few of them."""
    names = list(factors)
    missing = {
        ((a, one), (b, other))
        for a, b in itertools.combinations(names, 2)
        for one in factors[a]
        for other in factors[b]
    }
    order = sorted(missing)
    random.Random(0).shuffle(order)  # so that the first cases already say much
    cases = []
    for pair in order:
        if pair not in missing:
            continue
        case = dict(pair)
        for name in names:
            if name not in case:
                case[name] = max(
                    factors[name],
                    key=lambda value: sum(_pair(names, (name, value), item) in missing for item in case.items()),
                )
        cases.append({name: case[name] for name in names})
        missing -= set(itertools.combinations(cases[-1].items(), 2))
    return cases


def _pair(names: list[str], one: tuple[str, str], other: tuple[str, str]) -> tuple:
    return tuple(sorted((one, other), key=lambda item: names.index(item[0])))


@pytest.mark.slow
@pytest.mark.parametrize("case", pairwise(FACTORS), ids=lambda case: ", ".join(case.values()))
def test_combination(webui, case):
    if case["sampler"] not in hosts.samplers():
        pytest.skip(f"this host has no sampler {case['sampler']}")
    check(
        webui,
        settings=SETTINGS[case["setting"]],
        **PROMPTS[case["prompt"]],
        **_job(
            case["hires"],
            steps=max(5, hosts.STEPS - 1),
            sampler_name=case["sampler"],
            **BATCHES[case["batch"]],
            **SIZES[case["size"]],
            **GUIDANCE[case["guidance"]],
            **SUBSEEDS[case["subseed"]],
        ),
    )
