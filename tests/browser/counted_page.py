"""The `ui` page with a route more, `/calls`: how often the denoiser has been called. `python -m … PORT`."""

import sys
import tempfile
from pathlib import Path

from lib_masknoise import page
from lib_masknoise.hosts.diffusers import load_pipeline


def main() -> None:
    pipe = load_pipeline()
    calls = 0

    def count(*args) -> None:
        nonlocal calls
        calls += 1

    pipe.unet.register_forward_pre_hook(count)
    with tempfile.TemporaryDirectory() as folder:
        studio = page.Studio(pipe, Path(folder))
        served, app = page.serve(studio, int(sys.argv[1]))
        hooks = len(pipe.unet._forward_pre_hooks)

        @app.get("/calls")
        def say() -> dict:
            # A hook or a processor more than at first is one that was left behind.
            processors = {type(one).__name__ for one in pipe.unet.attn_processors.values()}
            return {
                "calls": calls,
                "hooks": len(pipe.unet._forward_pre_hooks) - hooks,
                "processors": sorted(processors),
            }

        served.block_thread()


if __name__ == "__main__":
    main()
