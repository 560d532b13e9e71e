"""install.py, run as a WebUI runs it, in a Python that sees a folder of packages of ours instead of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLER = ROOT / "install.py"
NEEDED = {"opensimplex": "0.4.5.1", "av": "12.3.0"}

# Stands in for pip: notes what it is asked for, and installs it or fails.
PIP = """
import os, pathlib, sys
folder = pathlib.Path(__file__).parent.parent
with open(folder / "calls.txt", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if os.environ.get("OFFLINE"):
    sys.exit("a warning\\nERROR: No matching distribution found\\nNotice: there is a newer pip")
name = [word for word in sys.argv if ">=" in word][0].split(">=")[0]
info = folder / f"{name}-99.dist-info"
info.mkdir()
(info / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 99\\n")
"""

LAUNCH = """
import shlex, subprocess, sys
def run_pip(command, desc=None, live=False):
    print("Installing", desc)
    if not SKIP:
        subprocess.run([sys.executable, "-m", "pip", "by-launch", *shlex.split(command)], check=True)
"""


@pytest.fixture
def packages(tmp_path):
    """A folder of installed packages: everything that the installer sees besides the standard library."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(PIP)
    return tmp_path


def put(packages: Path, name: str, version: str) -> None:
    info = packages / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def install(packages: Path, **environment: str) -> tuple[str, list[str]]:
    """What the installer printed and what it asked pip for."""
    # -S leaves site-packages out, so that no package of this test's own environment is seen.
    result = subprocess.run(
        [sys.executable, "-S", str(INSTALLER)],
        env={**os.environ, "PYTHONPATH": str(packages), **environment},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    calls = packages / "calls.txt"
    return result.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_nothing_missing_needs_neither_pip_nor_words(packages):
    for name, version in NEEDED.items():
        put(packages, name, version)
    assert install(packages, OFFLINE="1") == ("", [])


def test_only_what_is_missing_is_installed_and_nothing_with_it(packages):
    put(packages, "opensimplex", "0.4.5")
    said, calls = install(packages)
    assert said == ""
    assert len(calls) == 1 and calls[0].startswith("install --no-deps ") and " av>=12" in calls[0]
    assert "--upgrade" not in calls[0]
    assert install(packages)[1] == calls


def test_a_package_of_the_hosts_stays_whatever_its_version(packages):
    put(packages, "opensimplex", "0.3")
    put(packages, "av", "11.0.0")
    said, calls = install(packages)
    assert calls == []
    assert re.findall(r"MaskNoise: (\S+) is wanted, (\S+) is installed", said) == [
        ("opensimplex>=0.4.5", "0.3"),
        ("av>=12", "11.0.0"),
    ]


def test_a_failure_is_one_line_and_no_more(packages):
    put(packages, "opensimplex", "1.0")
    said, _ = install(packages, OFFLINE="1")
    assert said.splitlines() == [
        "MaskNoise: could not install av>=12 (ERROR: No matching distribution found); "
        "without it there are no GIF, APNG and MP4 animations, only WebP."
    ]


def test_the_hosts_own_way_is_taken(packages):
    (packages / "launch.py").write_text("SKIP = False" + LAUNCH)
    said, calls = install(packages)
    assert said.splitlines() == ["Installing opensimplex>=0.4.5 for MaskNoise", "Installing av>=12 for MaskNoise"]
    assert len(calls) == 2 and all(call.startswith("by-launch install --no-deps ") for call in calls)


def test_a_host_that_installs_nothing_is_obeyed(packages):
    (packages / "launch.py").write_text("SKIP = True" + LAUNCH)
    said, calls = install(packages)
    assert calls == [] and said.count("--skip-install") == 2


@pytest.mark.parametrize("launch", ["raise SystemExit(3)", "1 / 0", "run_pip = None"])
def test_an_odd_host_starts_all_the_same(packages, launch):
    (packages / "launch.py").write_text(launch)
    install(packages)


def test_it_asks_for_what_the_library_asks_for():
    asked = set(re.findall(r'Requirement\("(\S+)", "(\S+)"', INSTALLER.read_text("utf-8")))
    declared = re.findall(r'"([\w-]+)>=([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert asked == {(name, least) for name, least in declared if name in NEEDED}
