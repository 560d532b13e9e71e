"""What a render is told besides its scene."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib_masknoise import networks
from lib_masknoise.networks import Lora


@dataclass(frozen=True)
class Settings:
    """Everything of a render that is not in the scene. size: (height, width), None for the model's own. batch_size:
    None to measure which is quickest. even: place the frames at equal perceptual distances along the motion. threads:
    of the processor, in each process; None for as many as PyTorch uses here. loras and what follows is added to the
    model, as `load_pipeline` says.

    On one kind of machine they decide every byte: a sum is rounded otherwise in a batch of another size, and on the
    processor with another number of threads.
    """

    prompt: str = ""
    negative_prompt: str = ""
    model: str | None = None
    seed: int = 0
    steps: int = 20
    size: tuple[int, int] | None = None
    guidance_scale: float = 4.0
    batch_size: int | None = 4
    even: bool = False
    threads: int | None = None
    loras: tuple[Lora, ...] = ()
    lora_dir: str | None = None
    embeddings: tuple[str, ...] = ()
    vae: str | None = None
    sampler: str | None = None
    clip_skip: int = 1

    @property
    def additions(self) -> dict[str, Any]:
        """What is added to the model, as `load_pipeline` takes it."""
        return {name: getattr(self, name) for name in ADDITIONS}

    def files(self, prompts: Iterable[str]) -> dict[str, str]:
        """The files of what is added, also by prompts, by names for them. Raises FileNotFoundError, ValueError."""
        added = [*self.loras, *networks.named(prompts, networks.beside(self.model, self.lora_dir))]
        found = {f"lora/{Path(one.file).name}": one.file for one in added}
        found |= {f"embedding/{Path(file).name}": file for file in self.embeddings}
        return found | ({f"vae/{Path(self.vae).name}": self.vae} if self.vae else {})

    def record(self) -> dict[str, Any]:
        """Every setting by its name; what is added to the model only where something is."""
        usual = Settings()
        everything = asdict(self)
        return {name: v for name, v in everything.items() if name not in ADDITIONS or v != getattr(usual, name)}


ADDITIONS = ("loras", "lora_dir", "embeddings", "vae", "sampler", "clip_skip")
