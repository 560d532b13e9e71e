"""The same files from two workers as from one process, also when one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib_masknoise.__main__ import main
from lib_masknoise.render import Settings, write
from lib_masknoise.scene import Scene

ray = pytest.importorskip("ray")

SCENE = Scene.parse(
    {
        "concepts": [{"prompt": "a wheat field", "mask": {"kind": "split", "axis": "x", "from": 0, "to": 0.4}}],
        "noise": {"visual": {"strength": 1}, "concept": {"strength": 1}},
        "motion": {"kind": "circle"},
        "animation": {"frames": 15, "formats": ["sheet"]},
    }
)
SETTINGS = Settings(prompt="an ocean", steps=2, size=(32, 64), batch_size=2, threads=1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[str]:
    """sha256 of the frames, made in this process."""
    return write(SCENE, SETTINGS, tmp_path_factory.mktemp("alone"))["sha256"]


def descendants() -> dict[int, str]:
    """This process' children and theirs: pid → command line."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    processes = [line.split(None, 2) for line in listed.splitlines()]
    ours, found = {os.getpid()}, {}
    for pid, parent, *command in sorted(processes, key=lambda row: int(row[0])):
        if int(parent) in ours:
            ours.add(int(pid))
            found[int(pid)] = " ".join(command)
    return found


def workers() -> list[int]:
    return [pid for pid, command in descendants().items() if "ray::Worker" in command]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")
def test_two_workers_one_of_them_killed(tmp_path, alone):
    killed = []

    def kill_one(path: Path) -> None:
        if not killed and path.parent.name == "frames":
            killed.append(workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    announced: list[str] = []
    summary = write(SCENE, SETTINGS, tmp_path, lambda path: (announced.append(path.name), kill_one(path)), workers=2)
    assert killed and summary["sha256"] == alone
    assert announced[:15] == [f"{index:05}.png" for index in range(15)]
    assert not ray.is_initialized()
    assert not [command for command in descendants().values() if "ray" in command and "<defunct>" not in command]


@pytest.mark.skipif(sys.platform == "win32", reason="Ray's own test cluster needs POSIX")
def test_two_machines_one_of_them_lost(tmp_path, alone):
    """Two nodes of one core on this machine; the second one goes away and leaves no room for a replacement."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()

        def lose(path: Path) -> None:
            if path.name == "00002.png":
                cluster.remove_node(second, allow_graceful=False)

        summary = write(SCENE, SETTINGS, tmp_path, lose, address=cluster.address)
        assert summary["sha256"] == alone
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="^no model at nowhere"):
        write(SCENE, Settings(model="nowhere"), tmp_path, workers=1)
    assert not ray.is_initialized()


def test_a_cluster_that_is_not_there(tmp_path, capsys):
    scene = tmp_path / "scene.json"
    scene.write_text(SCENE.to_json(), encoding="utf-8")
    assert main(["render", str(scene), "--out", str(tmp_path / "out"), "--address", "127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.startswith("no Ray cluster at 127.0.0.1:9: ")
