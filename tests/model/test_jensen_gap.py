"""The gap between attending to a blend and blending what was attended to, in every cross-attention."""

from __future__ import annotations

import json
import runpy
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.models.attention_processor import Attention  # noqa: E402

from bench.jensen_gap import ROOT, attended, embedded, gap, layers, measured, pair_gaps, summary, table  # noqa: E402

HALF = (0.5, 0.5)


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    attn = Attention(query_dim=16, cross_attention_dim=12, heads=2, dim_head=8).eval().requires_grad_(False)
    attn.to_k.weight.mul_(4)  # logits that are far from equal
    return attn


def contexts(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(7, 12, generator=generator) for _ in range(count)]


def test_what_is_measured_is_what_the_layer_computes(attention):
    hidden, context = torch.randn(5, 16), contexts()[0]
    out = attended(attention, attention.to_q(hidden), context)
    expected = attention(hidden[None], encoder_hidden_states=context[None])[0]
    assert torch.allclose(attention.to_out[0](out), expected, atol=1e-5)


def test_the_gap_is_that_of_its_formula(attention):
    hidden, (a, b) = torch.randn(5, 16), contexts()
    query = attention.to_q(hidden)
    out_a, out_b = (attended(attention, query, c) for c in (a, b))
    blended, mixed = 0.3 * out_a + 0.7 * out_b, attended(attention, query, 0.3 * a + 0.7 * b)
    found = gap(attention, hidden, (a, b), (0.3, 0.7))
    assert found.relative == pytest.approx(((mixed - blended).norm() / blended.norm()).item(), rel=1e-4)
    assert found.of_the_way == pytest.approx(((mixed - blended).norm() / (out_a - out_b).norm()).item(), rel=1e-4)
    assert found.relative > 0.05


def test_there_is_no_gap_between_equal_contexts_nor_where_attention_is_linear(attention):
    hidden, (a, b) = torch.randn(5, 16), contexts()
    assert gap(attention, hidden, (a, a), HALF).relative < 1e-6
    attention.to_k.weight.zero_()  # every token counts the same: what is left is linear
    assert gap(attention, hidden, (a, b), HALF).relative < 1e-6


def test_the_two_orders_of_a_pair_have_the_same_gap(attention):
    hidden, (a, b) = torch.randn(5, 16), contexts()
    one, other = gap(attention, hidden, (a, b), (0.2, 0.8)), gap(attention, hidden, (b, a), (0.8, 0.2))
    assert one.relative == pytest.approx(other.relative, rel=1e-5)


def test_a_model_without_cross_attention_is_named():
    with pytest.raises(ValueError, match="expected a U-Net with cross-attentions"):
        layers(torch.nn.Linear(2, 2))


def test_every_layer_and_step_of_the_built_in_model_is_measured(pipe):
    gaps = pair_gaps(pipe, ("a forest", "a desert"), 0.5, steps=3, size=(64, 64), seed=0)
    assert gaps.keys() == layers(pipe.unet).keys() and len(gaps) == 7
    assert all(len(of_layer) == 3 for of_layer in gaps.values())
    everything = summary([g for of_layer in gaps.values() for g in of_layer])
    assert 0.01 < everything["relative"] < everything["relative_max"] < 1
    assert "| all layers |" in table(gaps)


def test_measuring_leaves_the_picture_and_the_model_as_they_are(pipe):
    def picture():
        generator = torch.Generator().manual_seed(3)
        return pipe(**embedded(pipe, "ice"), num_inference_steps=2, height=64, width=64, generator=generator,
                    output_type="latent").images  # fmt: skip

    before = picture()
    sides = [embedded(pipe, prompt)["prompt_embeds"][0] for prompt in ("ice", "lava")]
    with measured(pipe.unet, sides, HALF):
        during = picture()
    assert torch.equal(before, during) and torch.equal(before, picture())
    assert not any(attn._forward_pre_hooks for attn in layers(pipe.unet).values())


def test_the_command_writes_its_figures(monkeypatch, tmp_path, capsys):
    out = tmp_path / "gap.json"
    script = str(ROOT / "bench" / "jensen_gap.py")
    monkeypatch.setattr(sys, "argv", [script, "--pair", "ice", "lava", "--steps", "2", "--size", "64", "64",
                                      "--device", "cpu", "--weights", "0.5", "--out", str(out)])  # fmt: skip
    runpy.run_path(script, run_name="__main__")
    figures = json.loads(out.read_text())
    assert list(figures["pairs"]) == ["ice / lava"] and len(figures["layers"]) == 7
    assert "| mid_block.0.0 |" in capsys.readouterr().out
