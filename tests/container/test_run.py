"""`docker run` in the ways that people use it: where the task comes from, whose the folders are, what is forbidden."""

import json

import pytest

from engine import __version__
from tests.container.conftest import TASK
from tests.support.containers import CALLER, IMAGE, STRANGER, docker, give, owners, run, succeed

pytestmark = pytest.mark.container

SHORT = {"num_train_steps": 4, "max_train_steps": 4}
READ_ONLY = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


def test_results_belong_to_the_caller_when_docker_makes_the_folder(made_by_docker):
    assert made_by_docker.result["status"] == "done"
    assert (made_by_docker.out / "checkpoint" / "FINISH").exists()
    assert owners(made_by_docker.out) == {CALLER}
    files = [path for path in made_by_docker.out.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_a_task_in_the_environment(out, made_by_docker):
    finished = succeed(out, options=["-e", f"TASK_JSON={json.dumps(TASK)}"])
    assert finished.folders() == made_by_docker.folders()
    assert owners(out) == {CALLER}


def test_a_task_on_standard_input_for_another_user(out, made_by_docker):
    give(out, STRANGER)
    finished = succeed(out, "--task", "-", options=["-i"], stdin=json.dumps(TASK))
    assert finished.folders() == made_by_docker.folders()
    assert owners(out) == {STRANGER}


def test_an_arbitrary_user_on_a_read_only_root_without_capabilities(out, task_folder, made_by_docker):
    out.chmod(0o777)
    finished = succeed(out, task=task_folder, options=["--user", "4242:4343", *READ_ONLY])
    assert finished.folders() == made_by_docker.folders()
    assert owners(out) == {CALLER, (4242, 4343)}  # the folder, and what the job made in it


def test_the_second_start_finds_everything_done(made_by_docker, task_folder):
    again = succeed(made_by_docker.out, task=task_folder)
    assert "nothing to do" in again.stderr


@pytest.mark.parametrize("more", [["--cap-drop", "ALL"], ["--security-opt", "no-new-privileges"], ["--init"]])
def test_who_cannot_become_the_owner_says_what_to_do(out, task_folder, more):
    finished = run(out, "--plan", task=task_folder, options=more)
    assert f"start with --user {CALLER[0]}:{CALLER[1]}" in finished.stderr
    assert finished.code == 7  # a plan writes nothing, but says what the job would
    out.chmod(0o700)
    assert run(out, task=task_folder, options=more).code == 7


def test_root_without_capabilities_is_refused(out, task_folder):
    finished = run(out, task=task_folder, options=["--user", "0", "--cap-drop", "ALL"])
    assert finished.code == 7 and f"start it with --user {CALLER[0]}:{CALLER[1]}" in finished.stderr
    assert list(out.iterdir()) == []


WHO = ("python", "-c", "import os; open('/out/mine', 'w').close(); print(*os.getresuid(), *os.getresgid())")


class TestRoot:
    """`docker run` without a word about users, where nobody but root owns anything; and where root is asked for."""

    def who(self, out, **options):
        finished = run(out, *WHO, **options)
        assert finished.code == 0, finished.stderr
        return {int(number) for number in finished.stderr.split()}

    @pytest.mark.parametrize("more", [[], ["--user", "0"]])
    def test_the_job_is_not_root_by_accident(self, out, task_folder, tmp_path, more):
        task = tmp_path / "roots"
        task.mkdir()
        give(out, (0, 0))
        assert self.who(out, task=task, options=more) == {10001}
        assert owners(out) == {(10001, 10001)}
        assert self.who(out, task=task, options=more) == {10001}, "the second time it is theirs"

    def test_root_where_it_is_asked_for(self, out, task_folder):
        assert self.who(out, task=task_folder, options=["-e", "RUN_AS_ROOT=1"]) == {0}
        refused = run(out, *WHO, options=["-e", "RUN_AS_ROOT=1", "--user", "4242"])
        assert refused.code == 2 and "--user 0" in refused.stderr

    def test_nothing_leads_back_to_root(self, out):
        """A stranger's task that is run as the image's own user, who alone may start the program that became it."""
        give(out, (0, 0))
        script = "/usr/local/libexec/sd-lora-task-rise -c 'import os; print(os.geteuid()); os.setuid(0)'"
        finished = run(out, "sh", "-c", script)
        assert finished.stderr.startswith("10001\n") and "Operation not permitted" in finished.stderr
        script = "find / -xdev -type f -perm /6000 2>/dev/null"
        assert run(out, "sh", "-c", script).stderr.split() == ["/usr/bin/sd-lora-task-rise"]


def test_what_a_cluster_asks_of_an_image_that_must_not_be_root():
    """The kubelet's runAsNonRoot takes a number that is not 0, and nothing else."""
    user = docker("image", "inspect", "--format", "{{.Config.User}}", IMAGE).stdout.strip()
    assert user.split(":")[0].isdecimal() and int(user.split(":")[0]) != 0


class TestNotMounted:
    def run(self, task, *args, options=()):
        line = ["run", "--rm", "--network=none", "-e", "DEVICE=cpu", "-v", f"{task}:/task", *options, IMAGE, *args]
        return docker(*line, check=False)

    @pytest.mark.parametrize("args", [[], ["--plan"], ["--output-dir", "/results"]])
    def test_a_result_that_would_be_lost_is_refused(self, task_folder, args):
        done = self.run(task_folder, *args)
        assert done.returncode == 7 and "ALLOW_EPHEMERAL_OUT=1" in done.stderr

    def test_who_asks_for_it_may_lose_it(self, task_folder, tmp_path):
        done = self.run(task_folder, "--plan", options=["-e", "ALLOW_EPHEMERAL_OUT=1"])
        assert done.returncode == 0, done.stderr

    def test_another_mount_is_fine(self, task_folder, tmp_path):
        (tmp_path / "results").mkdir()
        give(tmp_path / "results", CALLER)
        mount = ["-v", f"{tmp_path}/results:/results", "-e", "OUTPUT_DIR=/results/cat"]
        assert self.run(task_folder, "--plan", options=mount).returncode == 0


def test_a_result_is_verified_in_the_image(made_by_docker, task_folder):
    """The re-run's output folder is a temporary one, and is to be lost."""
    line = [
        "verify",
        "/out",
        "--task",
        "/task/task.json",
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    finished = succeed(made_by_docker.out, *line, task=task_folder)
    assert "identical" in finished.stderr


def test_the_launcher_for_several_machines_ends_with_the_jobs_code(out):
    line = ["torchrun", "--standalone", "--nproc-per-node=2", "--max-restarts=0"]
    line += ["--local-addr=127.0.0.1"]  # without a network the container does not know its own name
    finished = run(out, *line, "/app/entrypoint.py", options=["-e", "TASK_JSON={}"])
    assert finished.code == 2 and finished.stderr.count("error: ") == 1
    assert finished.result["kind"] == "task"


def test_the_three_capabilities_that_becoming_the_owner_takes(out, task_folder):
    out.chmod(0o700)
    caps = [flag for name in ("SETUID", "SETGID") for flag in ("--cap-add", name)]
    script = "import os; open('/out/mine', 'w').close(); print(os.getuid(), os.getgid(), os.getgroups())"
    finished = run(out, "python", "-c", script, task=task_folder, options=["--cap-drop", "ALL", *caps])
    assert finished.stderr.split("\n")[0] == f"{CALLER[0]} {CALLER[1]} []"
    assert owners(out) == {CALLER}


def test_an_output_folder_that_root_may_not_look_into(out, task_folder):
    """As on a server that keeps root out; without DAC_OVERRIDE root is nobody special."""
    give(out, (0, 0)).chmod(0)
    caps = [flag for name in ("SETUID", "SETGID") for flag in ("--cap-add", name)]
    finished = run(out, task=task_folder, options=["--user", "0", "--cap-drop", "ALL", *caps])
    assert finished.code == 7 and "Traceback" not in finished.stderr
    assert "chown 10001:10001" in finished.stderr and "make it writable for the user that runs" in finished.stderr


def test_two_processes_give_the_bytes_of_one(out, task_folder, tmp_path):
    short = TASK | {"train_args": TASK["train_args"] | SHORT | {"gradient_accumulation_steps": 2}}
    (tmp_path / "one").mkdir()
    give(tmp_path / "one", CALLER)
    options = ["-e", f"TASK_JSON={json.dumps(short)}", *READ_ONLY, "--user", ":".join(map(str, CALLER))]
    two = succeed(out, options=["-e", "PROCESSES=2", *options])
    one = succeed(tmp_path / "one", options=options)
    assert "2 processes" in two.stderr and "2 processes" not in one.stderr
    assert two.weights() == one.weights()


def test_without_a_gpu_the_code_says_so(out, task_folder):
    finished = run(out, task=task_folder, options=["-e", "DEVICE="])
    assert finished.code == 9
    assert "--gpus all" in finished.stderr
    assert finished.result["kind"] == "device"


def test_nothing_in_the_task_folder_is_imported(task_folder, tmp_path, out):
    hostile = tmp_path / "task"
    hostile.mkdir()
    (hostile / "task.json").write_text(json.dumps(TASK))
    for name in ("json.py", "torch.py", "engine.py", "sitecustomize.py"):
        (hostile / name).write_text("raise SystemExit('imported')")
    assert succeed(out, "--plan", task=hostile).code == 0


def test_a_command_that_is_not_there(out):
    finished = run(out, "no-such-command")
    assert finished.code == 127
    assert "no-such-command: not a command in this image" in finished.stderr


def test_the_image_says_what_it_is():
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", IMAGE).stdout)
    for key in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert labels[f"org.opencontainers.image.{key}"]
    # What is not known (a base that was never on a registry, a clone without an address) is empty.
    assert {"org.opencontainers.image.source", "org.opencontainers.image.base.digest"} <= set(labels)
    name, _, digest = labels["org.opencontainers.image.base.name"].partition("@")
    assert name and labels["org.opencontainers.image.base.digest"] == digest
    assert labels["org.opencontainers.image.version"] == __version__


def test_nothing_of_the_build_stays_in_the_image(out):
    """No package manager of ours, no cache, no certificate or pip configuration of the machine that built it."""
    script = (
        "import importlib.util, os; from pathlib import Path;"
        "print(importlib.util.find_spec('pip'), [p for p in ('/opt/pip', '/locks', '/run/ca.pem', '/root/.cache',"
        " '/etc/apt/apt.conf.d/99ca') if os.path.exists(p)], os.path.getsize('/etc/pip.conf')"
        " if os.path.exists('/etc/pip.conf') else 0)"
    )
    assert run(out, "python", "-c", script).stderr.split("\n")[0] == "None [] 0"
