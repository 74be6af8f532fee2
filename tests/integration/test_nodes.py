"""A job on two machines, both of them this one: each one's launcher ends with the job's own code, after one start."""

import os
import socket
import subprocess
import sys

from tests.support.harness import ENTRYPOINT, PATIENCE


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_wrong_task_costs_one_start_and_both_machines_say_its_code(tmp_path):
    endpoint = f"127.0.0.1:{free_port()}"
    line = [sys.executable, str(ENTRYPOINT), "torchrun", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=0"]
    line += ["--rdzv-backend=c10d", "--rdzv-id=job", f"--rdzv-endpoint={endpoint}", "--local-addr=127.0.0.1"]
    task = tmp_path / "task.json"
    task.write_text('{"model": {"name": "x"}, "nonsense": 1}')
    env = os.environ | {"OUTPUT_DIR": str(tmp_path / "out"), "DEVICE": "cpu", "TASK_FILE": str(task)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    nodes = [subprocess.Popen([*line, str(ENTRYPOINT)], cwd=ENTRYPOINT.parent, env=env, **pipes) for _ in range(2)]
    try:
        said = [node.communicate(timeout=PATIENCE)[1] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [2, 2], said
    first, other = sorted(said, key=lambda text: "the log of its first process" in text)
    assert first.count("error: ") == 1 and "nonsense" in first
    assert other.count("error: ") == 1 and "ended with code 2" in other
