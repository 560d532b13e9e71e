"""Settings, state, and the loaded model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

_DEFAULTS: dict[str, Any] = {
    "batch_cond_uncond": True,
    "pad_cond_uncond": False,
    "pad_cond_uncond_v0": False,
    "skip_early_cond": 0.0,
    "s_min_uncond_all": False,
    "upcast_attn": False,
    "conditions_together": None,
    "merges_options": False,
    "no_dpmpp_sde_batch_determinism": False,
    "samples_save": True,
    "samples_format": "png",
    "outdir_samples": "",
    "outdir_txt2img_samples": "",
    "save_incomplete_images": False,
    "return_grid": False,
    "save_to_dirs": True,
    "directories_filename_pattern": "",
    "samples_filename_pattern": "",
    "save_images_add_number": True,
}


class State:
    """What the interrupt and skip buttons set, and the progress."""

    def __init__(self) -> None:
        self.interrupted = self.skipped = False
        self.sampling_step = self.sampling_steps = 0
        self.textinfo: str | None = None
        self.job, self.job_count, self.job_no = "", 0, 0
        self.job_timestamp = "0"

    def begin(self, job: str) -> None:
        self.__init__()
        self.job, self.job_count = job, -1

    def end(self) -> None:
        self.job, self.job_count = "", 0

    def interrupt(self) -> None:
        self.interrupted = True

    def skip(self) -> None:
        self.skipped = True


class Total:
    """The bar of all jobs together."""

    def clear(self) -> None:
        pass


device = "cpu"
total_tqdm = Total()


class Options(SimpleNamespace):
    @property
    def data(self) -> dict[str, Any]:
        return dict(vars(self))

    @property
    def data_labels(self) -> dict[str, Any]:
        """The settings there are."""
        return vars(self)


opts = Options(**_DEFAULTS)
cmd_opts = SimpleNamespace(no_prompt_history=False)
prompt_history: list[str] = []
"""The prompts of the jobs, which the host keeps for the user."""
state = State()
sd_model: Any = None
checkpoints: dict[str, Any] = {}
loaded_hypernetworks: list[Any] = []


def reset(model: Any) -> None:
    """As after a start of the host."""
    global sd_model
    vars(opts).clear()
    vars(opts).update(_DEFAULTS)
    state.__init__()
    loaded_hypernetworks.clear()
    checkpoints.clear()
    prompt_history.clear()
    sd_model = model
