"""The training of the world's model from pictures to a folder that the program loads, a few steps of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from transformers import CLIPTokenizer  # noqa: E402

from tools.small_model import export_single_file, train_local_vae, train_world_unet, world_checkpoint, world_data  # noqa: E402
from tools.small_model.layout import unet_names, vae_names  # noqa: E402
from tools.small_model.local_vae import COLOURS, SIGNALS, LocalVAE, Width, from_autoencoder, to_autoencoder, widths_for  # noqa: E402
from tools.small_model.networks import MODEL, read_config, read_weights  # noqa: E402
from tools.small_model.world_model import write_folder  # noqa: E402

SD15 = (128, 256, 512, 512)


@pytest.fixture(scope="module")
def vae() -> LocalVAE:
    torch.manual_seed(0)
    model = LocalVAE().eval()
    for parameter in model.parameters():  # scales and offsets as after a training
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    return model.requires_grad_(False)


def exported(vae: LocalVAE, **options) -> diffusers.AutoencoderKL:
    config, state = to_autoencoder(vae, **options)
    model = diffusers.AutoencoderKL(**{key: value for key, value in config.items() if key != "_class_name"})
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    "options",
    [{}, {"attention": False}, {"groups": 32}, {"groups": 32, "channels": SD15, "layers": 2}],
    ids=["one group", "no attention", "32 groups", "the widths of SD1.5"],
)
def test_the_export_computes_what_the_autoencoder_does(vae, options):
    pictures = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model, latents = exported(vae, **options), vae.encode(pictures)
    own, theirs = vae.decode(latents), model.decode(latents).sample
    assert (model.encode(pictures).latent_dist.mean - latents).abs().max() < 0.01 * latents.std()
    assert (theirs - own).abs().max() < 0.01 * own.std()
    corner = latents[..., :2, :3]  # a CPU without arithmetic for half precision takes minutes for the whole
    half = model.half().decode(corner.half()).sample.float()
    assert (half - vae.decode(corner)).abs().max() < 0.1 * own.std()


def test_the_export_is_read_back(vae):
    config, state = to_autoencoder(vae)
    again = from_autoencoder(config, state).state_dict()
    assert all(torch.allclose(again[name], value, atol=1e-4) for name, value in vae.state_dict().items())
    with pytest.raises(ValueError, match="expected an autoencoder of one group"):
        from_autoencoder({**config, "norm_num_groups": 32}, state)


@pytest.mark.parametrize("groups", [1, 32])
def test_one_side_of_a_picture_does_not_change_the_other(vae, groups):
    model = exported(vae, groups=groups)
    latents = torch.randn(1, 4, 8, 24, generator=torch.Generator().manual_seed(2))
    other = latents.clone()
    other[..., :8] = 3 * other[..., :8] + 1
    before, after = (model.decode(z).sample for z in (latents, other))
    change = (after - before).abs().amax((0, 1, 2))
    assert change[:48].max() > 0.1 * before.std()
    assert change[-48:].max() < 1e-3 * before.std()


def test_training_begins_with_the_colours_of_blocks():
    torch.manual_seed(0)
    model = LocalVAE().begin_with_colours()
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    means = torch.nn.functional.avg_pool2d(pictures, 8)
    with torch.no_grad():
        latents = model.encode(pictures)
        wanted = torch.einsum("ij,bjhw->bihw", torch.tensor(COLOURS), means)
        assert torch.allclose(latents[:, :3], wanted, atol=1e-4)
        plain = torch.tensor([0.3, -0.2, 0.5]).view(1, 3, 1, 1).expand(1, 3, 128, 128)
        middle = model.decode(model.encode(plain))[..., 56:72, 56:72]
    assert (middle.mean((2, 3)) - plain[..., 0, 0]).abs().max() < 0.15


def test_a_width_without_room_is_refused():
    with pytest.raises(ValueError, match="channels: 64 in 32 groups have room for 0 signals, not 24"):
        Width.of(24, 64, 32)
    with pytest.raises(ValueError, match="two levels have 512"):
        to_autoencoder(LocalVAE((24, 32, 48, 64)), 32, SD15)
    with pytest.raises(ValueError, match="layers: expected at least 1"):
        to_autoencoder(LocalVAE(), layers=0)


def test_widths_are_those_an_sd1_configuration_can_say():
    widths = widths_for(SIGNALS, 32)
    assert all(width % widths[0] == 0 and width % 32 == 0 for width in widths)
    assert widths_for((24, 24), 32)[0] == widths_for((24, 24), 32)[1]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Shards of three and of one wide picture, and an autoencoder of two steps."""
    folder = tmp_path_factory.mktemp("work")
    for number, count in ((0, 18), (3, 4)):
        world_data.save(world_data.make_shard(number, count=count), folder / f"pictures-{number:03d}.pt")
    trainer = train_local_vae.Trainer(steps=4, rate=1e-3, sharpen=1, freeze=2, seed=1)
    pictures = train_local_vae.Pictures(folder)
    parts = [trainer.update(pictures) for _ in range(2)]
    assert "judge" not in parts[0] and "judge" in parts[1]
    world_data.save(trainer.state(), folder / "vae.pt")
    with pytest.raises(ValueError, match="still learning"):
        world_data.make_latents(folder, folder / "vae.pt")
    trainer.update(pictures)
    world_data.save(trainer.state(), folder / "vae.pt")
    world_data.make_latents(folder, folder / "vae.pt")
    return folder


@pytest.mark.parametrize("freeze", [None, 0, 1])
def test_the_autoencoder_goes_on_as_if_it_had_not_stopped(work, freeze):
    pictures = train_local_vae.Pictures(work)
    ends = []
    for stop in (False, True):
        trainer = train_local_vae.Trainer(steps=4, rate=1e-3, sharpen=1, freeze=freeze, seed=1)
        trainer.update(pictures)
        if stop:
            state = trainer.state()
            trainer = train_local_vae.Trainer(steps=4, rate=1e-3, sharpen=1, freeze=freeze, seed=9)
            trainer.seed = 1
            trainer.restore(state)
        trainer.update(pictures)
        ends.append(trainer.average.module.state_dict())
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


def test_the_encoder_stands_still_while_the_decoder_learns(work):
    pictures = train_local_vae.Pictures(work)
    trainer = train_local_vae.Trainer(steps=4, rate=1e-3, sharpen=None, freeze=1, seed=1)
    trainer.update(pictures)
    before = trainer.average.module.fingerprint()
    decoder = trainer.model.decoder.conv_in.weight.clone()
    trainer.update(pictures)
    assert trainer.average.module.fingerprint() == trainer.model.fingerprint() == before
    assert not torch.equal(trainer.model.decoder.conv_in.weight, decoder)


def test_latents_of_an_encoder_are_made_once(work):
    path = work / "latents-000.pt"
    made = path.stat().st_mtime_ns
    world_data.make_latents(work, work / "vae.pt")
    assert path.stat().st_mtime_ns == made


def unet_trainer(work: Path, seed: int = 1) -> train_world_unet.Trainer:
    latents = train_world_unet.Latents(work, CLIPTokenizer.from_pretrained(MODEL / "tokenizer"))
    return train_world_unet.Trainer(latents, steps=10, rate=1e-3, guidance_from=1, seed=seed)


def test_a_batch_is_its_step(work):
    latents = unet_trainer(work).latents
    for step in (0, 4, 5):
        first, again = latents.batch(step, 1), latents.batch(step, 1)
        assert torch.equal(first.latents, again.latents) and torch.equal(first.ids, again.ids)
        assert first.ids.shape[2] == 77 and first.weight.shape == first.latents.shape[:1] + first.latents.shape[2:]
        assert 0 <= first.weight.min() and first.weight.max() <= 1
    assert latents.batch(1, 1).latents.shape == (3, 4, 32, 32)
    assert latents.batch(11, 1).latents.shape == (2, 4, 32, 64)  # of the wide shard


def test_words_without_a_meaning_stay_without_one(work):
    trainer = unet_trainer(work)
    trainer.update()
    rows = trainer.text.get_input_embeddings().weight.abs().sum(1) > 0
    assert torch.nonzero(rows)[:, 0].tolist() == trainer.latents.known


def test_from_training_to_a_folder_that_the_program_renders_with(work, tmp_path):
    from lib_masknoise.hosts.diffusers import load_pipeline, render
    from lib_masknoise.scene import Scene

    trainer = unet_trainer(work)
    trainer.update()
    world_data.save(trainer.state(), work / "unet.pt")
    again = unet_trainer(work, seed=1)
    again.restore(torch.load(work / "unet.pt"))
    assert again.step == 1
    write_folder(tmp_path, work / "vae.pt", work / "unet.pt")
    unet, vae = (read_config(tmp_path, part) for part in ("unet", "vae"))
    assert [320 / c for c in unet["block_out_channels"]] == [5, 320 / 128, 320 / 192]
    assert 768 % unet["cross_attention_dim"] == 0
    unet_names(read_weights(tmp_path, "unet"), unet)  # every parameter has a place in the SD1 layout
    vae_names(read_weights(tmp_path, "vae"), vae)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 40_000_000
    files = export_single_file.export(tmp_path, tmp_path / "sd1")  # raises where a tensor does not come back
    assert "channel_mult: [1, 2, 3]" in files[1].read_text() and "context_dim: 96" in files[1].read_text()
    scene = Scene.parse({"concepts": [{"prompt": "a forest"}]})
    frame = next(render(load_pipeline(tmp_path, "cpu"), scene, steps=2, size=(64, 96)))
    assert np.asarray(frame.image).shape == (64, 96, 3)


def test_a_packed_training_goes_on(work, tmp_path):
    trainer = unet_trainer(work)
    trainer.update()
    folder = tmp_path / "work"
    folder.mkdir()
    world_data.save(trainer.state(), folder / "unet.pt")
    (folder / "vae.pt").write_bytes((work / "vae.pt").read_bytes())
    small = world_checkpoint.pack(folder, tmp_path / "small")
    with pytest.raises(ValueError, match="is there already"):
        world_checkpoint.unpack(folder, tmp_path / "small")
    world_checkpoint.unpack(tmp_path / "again", tmp_path / "small")
    assert sum(path.stat().st_size for path in small) < 30_000_000
    assert LocalVAE.load(tmp_path / "again" / "vae.pt").fingerprint() == LocalVAE.load(work / "vae.pt").fingerprint()
    vae = train_local_vae.Trainer(steps=9, rate=1e-3, sharpen=1, freeze=2, seed=1)
    vae.restore(torch.load(tmp_path / "again" / "vae.pt"))
    assert vae.frozen and vae.step == 3
    other = unet_trainer(work)
    other.restore(torch.load(tmp_path / "again" / "unet.pt"))
    for name, average in trainer.averages.items():
        for value, kept in zip(average.module.parameters(), other.averages[name].module.parameters(), strict=True):
            assert torch.allclose(value, kept, atol=1e-3, rtol=1e-3)
    assert other.step == 1 and other.update() > 0


def test_other_latents_are_refused(work):
    trainer = unet_trainer(work)
    state = trainer.state()
    with pytest.raises(ValueError, match="it has changed"):
        trainer.restore({**state, "encoder": "another"})


def test_a_folder_without_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="expected pictures"):
        train_local_vae.Pictures(tmp_path)
    with pytest.raises(ValueError, match="expected latents"):
        train_world_unet.Latents(tmp_path, CLIPTokenizer.from_pretrained(MODEL / "tokenizer"))
