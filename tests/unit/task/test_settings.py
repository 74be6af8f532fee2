"""Flags and environment: who wins, and what is refused."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.core.errors import TaskError
from engine.task import settings
from engine.task.settings import output_dir, read_flags, read_settings

TASK = "{}"
MEETING = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}


def read(*flags, **env):
    return read_settings(read_flags(flags), {"TASK_JSON": TASK, **env})


class TestPrecedence:
    """Flag, then variable, then default; an empty variable is not set."""

    @pytest.mark.parametrize(
        "field, flag, variable, default",
        [
            ("output_dir", "--output-dir", "OUTPUT_DIR", Path("/out")),
            ("checkpoint", "--checkpoint", "CHECKPOINT_DIR", None),
            ("cache_dir", "--cache-dir", "CACHE_DIR", Path("/home/someone/.cache/sd-lora-task")),
        ],
    )
    def test_folders(self, monkeypatch, field, flag, variable, default):
        monkeypatch.setattr(settings, "DEFAULT_CACHE", Path("/no/such/folder"))
        home = {"HOME": "/home/someone"}
        assert getattr(read(**home), field) == default
        assert getattr(read(**home, **{variable: ""}), field) == default
        assert getattr(read(**home, **{variable: "/variable"}), field) == Path("/variable")
        assert getattr(read(flag, "/flag", **home, **{variable: "/variable"}), field) == Path("/flag")
        assert getattr(read(flag, "relative", **home), field) == Path.cwd() / "relative"

    def test_device(self):
        assert read().device == read(DEVICE="").device == "cuda"
        assert read(DEVICE="cpu").device == "cpu"
        assert read("--device", "cuda", DEVICE="cpu").device == "cuda"

    def test_the_output_folder_is_known_before_the_rest(self):
        assert output_dir(read_flags([]), {"OUTPUT_DIR": ""}) == Path("/out")
        assert output_dir(read_flags([]), {"OUTPUT_DIR": "x"}) == Path.cwd() / "x"

    def test_switches(self):
        assert (read().overwrite, read().plan) == (False, False)
        assert (read("--overwrite", "--plan").overwrite, read("--plan").plan) == (True, True)


class TestTask:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path, monkeypatch):
        (tmp_path / "folder").mkdir()
        for name in ("flag", "variable", "default"):
            (tmp_path / "folder" / name).write_text(name)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(settings, "DEFAULT_TASK", tmp_path / "folder" / "default")
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"stdin")))

    @pytest.mark.parametrize(
        "flags, env, expected",
        [
            ((), {}, "default"),
            ((), {"TASK_FILE": "", "TASK_JSON": ""}, "default"),
            ((), {"TASK_FILE": "folder/variable"}, "variable"),
            ((), {"TASK_FILE": "folder/variable", "TASK_JSON": "json"}, "json"),
            (("--task", "folder/flag"), {"TASK_FILE": "folder/variable", "TASK_JSON": "json"}, "flag"),
            (("--task", "-"), {"TASK_FILE": "folder/variable", "TASK_JSON": "json"}, "stdin"),
        ],
    )
    def test_where_it_comes_from(self, tmp_path, flags, env, expected):
        found = read_settings(read_flags(flags), env)
        assert found.task_bytes == expected.encode()
        from_file = expected in ("default", "variable", "flag")
        assert found.task_folder == (tmp_path / "folder" if from_file else tmp_path)
        assert found.task_source == {
            "json": "TASK_JSON",
            "stdin": "standard input",
        }.get(expected, str(tmp_path / "folder" / expected))

    @pytest.mark.parametrize("path", ["missing", "folder", "x" * 5000], ids=["missing", "folder", "long"])
    def test_one_that_cannot_be_read(self, path):
        with pytest.raises(TaskError, match="cannot be read") as caught:
            read_settings(read_flags(["--task", path]), {})
        assert caught.value.code == 2

    def test_bytes_that_are_no_text_come_through(self):
        assert read_settings(read_flags([]), {"TASK_JSON": "\udcff"}).task_bytes == b"\xff"


class TestCacheFolder:
    def test_the_mounted_one_is_taken_if_it_is_there_and_writable(self, monkeypatch, tmp_path):
        monkeypatch.setattr(settings, "DEFAULT_CACHE", tmp_path)
        assert read(HOME="/h").cache_dir == tmp_path
        monkeypatch.setattr(settings.os, "access", lambda path, mode: False)
        assert read(HOME="/h").cache_dir == Path("/h/.cache/sd-lora-task")

    def test_a_filled_one_is_read_though_it_cannot_be_written(self, monkeypatch, tmp_path):
        monkeypatch.setattr(settings, "DEFAULT_CACHE", tmp_path)
        writing = settings.os.W_OK
        monkeypatch.setattr(settings.os, "access", lambda path, mode: not mode & writing and Path(path).exists())
        assert read(HOME="/h").cache_dir == Path("/h/.cache/sd-lora-task"), "nothing is in it"
        (tmp_path / "models").mkdir()
        assert read(HOME="/h").cache_dir == tmp_path

    @pytest.mark.parametrize(
        "env, expected",
        [
            ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/sd-lora-task"),
            ({"HOME": "/h", "XDG_CACHE_HOME": ""}, "/h/.cache/sd-lora-task"),
            ({"HOME": ""}, "/tmp/.cache/sd-lora-task"),
            ({}, "/tmp/.cache/sd-lora-task"),
        ],
    )
    def test_else_the_users(self, monkeypatch, env, expected):
        monkeypatch.setattr(settings, "DEFAULT_CACHE", Path("/no/such/folder"))
        assert read(**env).cache_dir == Path(expected)


NUMBERS = {"CPU_THREADS": "cpu_threads", "SAVE_SECONDS": "save_seconds", "MAX_ENCODED_BYTES": "encoded_cache_bytes"}


class TestNumbers:
    @pytest.mark.parametrize("name", list(NUMBERS))
    def test_good(self, name):
        default = {"CPU_THREADS": 1, "SAVE_SECONDS": 30, "MAX_ENCODED_BYTES": 20 << 30}[name]
        for text, expected in (("", default), ("7", 7), ("007", 7)):
            assert getattr(read(**{name: text}), NUMBERS[name]) == expected

    def test_the_cache_is_bounded_only_where_that_is_asked_for(self):
        found = [read(**{"MAX_CACHE_BYTES": text}).limits.max_cache_bytes for text in ("", "0", "7")]
        assert found == [None, 0, 7]

    @pytest.mark.parametrize("name", [*NUMBERS, "WORLD_SIZE", "MAX_DATASET_BYTES", "MAX_CACHE_BYTES"])
    @pytest.mark.parametrize("text", ["-1", "1.0", "x", " 1", "1 ", "1_0", "0x10", "٣", "+1", "1" * 5000, "inf"])
    def test_bad(self, name, text):
        with pytest.raises(TaskError, match=f"^{name} is ") as caught:
            read(**{name: text})
        assert caught.value.code == 2

    @pytest.mark.parametrize("name", ["CPU_THREADS", "WORLD_SIZE"])
    def test_none_is_too_few(self, name):
        with pytest.raises(TaskError, match="at least 1"):
            read(**{name: "0"})


@pytest.mark.parametrize(
    "flags, env, message",
    [
        ((), {"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK and MASTER_ADDR and MASTER_PORT is not set"),
        ((), {**MEETING, "RANK": "2"}, "RANK is 2: expected less than WORLD_SIZE, 2"),
        ((), {**MEETING, "RANK": "-1"}, "RANK is '-1'"),
        ((), {**MEETING, "MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
        (("--task", "-"), MEETING, "several processes cannot share standard input"),
        ((), {"PROCESSES": "0"}, "PROCESSES is '0'"),
        ((), {"DEVICE": "tpu"}, "DEVICE is 'tpu': expected cuda or cpu"),
        ((), {"DEVICE": "CPU"}, "DEVICE is 'CPU'"),
        (("--device", "tpu"), {}, "invalid choice: 'tpu'"),
        (("--nonsense",), {}, "unrecognized arguments: --nonsense"),
        (("extra",), {}, "unrecognized arguments: extra"),
        (("--task",), {}, "expected one argument"),
        ((), {"ALLOW_PRIVATE_URLS": "yes"}, "ALLOW_PRIVATE_URLS is 'yes'"),
    ],
)
def test_refusals(flags, env, message):
    with pytest.raises(TaskError, match=message) as caught:
        read(*flags, **env)
    assert caught.value.code == 2


def test_one_process_is_fine():
    assert read(WORLD_SIZE="1").device == "cuda"


def test_limits_come_from_the_environment():
    found = read(MAX_DATASET_BYTES="123", ALLOW_PRIVATE_URLS="1").limits
    assert (found.max_dataset_bytes, found.allow_private_urls) == (123, True)
