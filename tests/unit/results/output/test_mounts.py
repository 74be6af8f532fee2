"""An output folder that would be lost with its container is refused, in the image alone."""

import re
from pathlib import Path

import pytest

from engine.core.errors import OutputError, TaskError
from engine.core.process.environment import IN_IMAGE
from engine.results.output.mounts import MOUNTS as MOUNTINFO
from engine.results.output.mounts import mount_points, require_mount

# As in a container of Docker's: the root is an overlay, the volume's name has a blank.
ROOT = "600 500 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/l"
MOUNTS = [
    ROOT,
    "601 600 0:54 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw",
    "602 600 0:55 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755",
    "603 600 254:1 /hosts /etc/hosts rw,relatime - ext4 /dev/vda rw",
    "604 600 254:1 /home/me/task /task ro,relatime - ext4 /dev/vda rw",
]
OUT = "605 600 254:1 /home/me/out /out rw,relatime - ext4 /dev/vda rw"
IMAGE = {IN_IMAGE: "1"}


def check(tmp_path, folder, *more, env=IMAGE):
    table = tmp_path / "mountinfo"
    table.write_text("\n".join([*MOUNTS, *more]) + "\n")
    require_mount(Path(folder), env, mounts=table)


@pytest.mark.parametrize(
    "folder, target", [("/out", "/out"), ("/out/lora-cat", "/out"), ("/outside/a", "/outside/a"), ("/task2", "/task2")]
)
def test_what_is_not_mounted_is_refused(tmp_path, folder, target):
    with pytest.raises(OutputError, match=re.escape(f"at {folder}: the result would be lost")) as caught:
        check(tmp_path, folder)
    assert f"add -v ./out:{target} to docker run" in str(caught.value)
    assert "ALLOW_EPHEMERAL_OUT=1" in str(caught.value)


@pytest.mark.parametrize(
    "folder, mount",
    [
        ("/out", OUT),
        ("/out/lora-cat", OUT),
        ("/results", OUT.replace("/out rw", "/results rw")),
        ("/mnt/a b/x", OUT.replace("/out rw", r"/mnt/a\040b rw")),
        ("/out", OUT.replace("ext4", "tmpfs")),  # a sidecar may read it
        ("/out", OUT.replace("/home/me/out", "/")),
    ],
)
def test_what_is_mounted_is_fine_wherever_it_is(tmp_path, folder, mount):
    check(tmp_path, folder, mount)


def test_a_mount_beside_it_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"mounted instead: /output\)"):
        check(tmp_path, "/out", OUT.replace("/out rw", "/output rw"))
    with pytest.raises(OutputError):  # it only begins the same
        check(tmp_path, "/output", OUT)


def test_a_link_counts_as_what_it_leads_to(tmp_path):
    (tmp_path / "link").symlink_to("/out")
    check(tmp_path, tmp_path / "link" / "x", OUT)
    with pytest.raises(OutputError):
        check(tmp_path, tmp_path / "link")


def test_who_asks_for_it_may_lose_it(tmp_path):
    check(tmp_path, "/out", env=IMAGE | {"ALLOW_EPHEMERAL_OUT": "1"})
    with pytest.raises(OutputError):
        check(tmp_path, "/out", env=IMAGE | {"ALLOW_EPHEMERAL_OUT": "0"})
    with pytest.raises(TaskError, match="ALLOW_EPHEMERAL_OUT is 'yes'"):
        check(tmp_path, "/out", env=IMAGE | {"ALLOW_EPHEMERAL_OUT": "yes"})


@pytest.mark.parametrize("env", [{}, {IN_IMAGE: ""}])
def test_outside_the_image_nothing_is_refused(tmp_path, env):
    check(tmp_path, "/out", env=env)


def test_this_machines_own_table_is_read():
    assert "/" in map(str, mount_points(MOUNTINFO.read_text()))
