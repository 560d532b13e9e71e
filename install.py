"""What a WebUI runs at each start, before the extension is loaded: installs what the extension needs and is missing.

A package that is there stays as it is, in whatever version, and so does everything else: pip is called for the missing
packages alone, with --no-deps, and not at all when none is missing. Whatever goes wrong ends in one line of text: the
WebUI must start.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from typing import NamedTuple


class Requirement(NamedTuple):
    """A package, the least version that will do, and what is lost without it."""

    name: str
    least: str
    purpose: str

    def __str__(self) -> str:
        return f"{self.name}>={self.least}"


# As in pyproject.toml. torch, numpy, Pillow and pydantic are the WebUI's own; these two need no other package.
REQUIREMENTS = (
    Requirement("opensimplex", "0.4.5", "without it there is no concept and no feature noise"),
    Requirement("av", "12", "without it there are no GIF, APNG and MP4 animations, only WebP"),
)


def main() -> None:
    for requirement in REQUIREMENTS:
        found = installed(requirement.name)
        if found is None:
            try:
                pip_install(requirement)
                importlib.invalidate_caches()
                if installed(requirement.name) is None:
                    raise RuntimeError("the WebUI does not install packages (--skip-install)")
            except Exception as error:
                print(f"MaskNoise: could not install {requirement} ({last_line(error)}); {requirement.purpose}.")
        elif numbers(found) < numbers(requirement.least):
            print(f"MaskNoise: {requirement} is wanted, {found} is installed and left alone; {requirement.purpose}.")


def installed(name: str) -> str | None:
    """The version of a package; None where there is none. The package is not imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """ "0.4.5.1" → (0, 4, 5): enough to compare with the least version, which has three parts at most."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def pip_install(requirement: Requirement) -> None:
    """Install one package without its dependencies: as the WebUI does, which has settings for it, or plainly.

    Raises RuntimeError where pip fails.
    """
    arguments = ["install", "--no-deps", "--prefer-binary", str(requirement)]
    try:
        from launch import run_pip
    except (Exception, SystemExit):  # not below a WebUI, or below one that is unlike the others
        command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if result.returncode != 0:
            raise RuntimeError(result.stderr or f"pip failed with {result.returncode}") from None
    else:
        run_pip(" ".join(f'"{argument}"' for argument in arguments), f"{requirement} for MaskNoise")


def last_line(error: Exception) -> str:
    """What an error comes down to: pip's own last word that says "ERROR", or the last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line.strip() for line in reversed(lines) if "ERROR" in line), lines[-1].strip())[:200]


main()
