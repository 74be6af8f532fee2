"""Pushing through the real client, to a Hub on this machine that is well, in trouble, refuses, or hangs."""

import threading
import time
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import _commit_api, constants
from huggingface_hub.utils import _http

from engine.core.errors import TaskError, TemporaryError
from engine.data.fetch import hub, hub_push
from engine.data.fetch.hub_push import push
from tests.support.fake_hub_uploads import HANG, TOKEN, taking_uploads

REPO = "someone/my-lora"
CONTENT = {"README.md": b"---\nlicense: mit\n---\n", "weights.safetensors": b"w" * 3_000_000, "validation/0.png": b"p"}


@pytest.fixture
def server(monkeypatch):
    with taking_uploads() as found:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "WAITS", (0.01, 0.01, 0.01))
        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
        api = huggingface_hub.HfApi
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: api(endpoint=found.address, token=token))
        yield found


@pytest.fixture
def files(tmp_path):
    for name, data in CONTENT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return {name: tmp_path / name for name in CONTENT}


def pushed(files, token=TOKEN, **options):
    return push(REPO, files, token=token, message="Step 9", **options)


def test_a_private_repository_with_all_files_in_one_commit(server, files):
    where = pushed(files)
    repository = server.repositories[REPO]
    assert repository.private and repository.files == CONTENT and repository.commits == ["Step 9"]
    assert repository.lfs == {"weights.safetensors", "validation/0.png"}
    assert where == server.commit_address(REPO)


def test_the_same_files_again_upload_nothing_and_make_no_commit(server, files):
    first = pushed(files)
    server.requests.clear()
    assert pushed(files) == first
    assert len(server.repositories[REPO].commits) == 1
    assert not [one for one in server.requests if one.startswith("PUT") or "/commit/" in one]


def test_changed_files_make_a_commit_and_others_stay(server, files):
    pushed(files)
    files["README.md"].write_bytes(b"changed")
    pushed({"README.md": files["README.md"]})
    repository = server.repositories[REPO]
    assert repository.files == CONTENT | {"README.md": b"changed"} and len(repository.commits) == 2


@pytest.mark.parametrize(
    "at", ["POST api/repos/create", "POST api/models", "PUT blob", f"POST api/models/{REPO}/commit"]
)
def test_trouble_is_waited_out(server, files, at):
    left = iter([503] * 3)
    server.trouble = lambda request: next(left, None) if request.startswith(at) else None
    pushed(files)
    assert server.repositories[REPO].files == CONTENT and len(server.repositories[REPO].commits) == 1


def test_a_commit_whose_answer_was_lost_is_not_made_twice(server, files, monkeypatch):
    """The fake answers 503 after it has committed."""
    send = _commit_api._send_commit
    lost = iter([True])

    def losing(**arguments):
        send(**arguments)
        if next(lost, False):
            raise ConnectionResetError

    monkeypatch.setattr(_commit_api, "_send_commit", losing)
    pushed(files)
    assert server.repositories[REPO].commits == ["Step 9"]


def test_a_hub_that_stays_in_trouble(server, files):
    server.trouble = lambda request: 503
    with pytest.raises(TemporaryError, match=r"pushing to someone/my-lora: .* 4 attempts"):
        pushed(files)
    assert server.requests.count("POST api/repos/create") == 4


@pytest.mark.parametrize(
    "token, status, message",
    [("hf_other", None, "the Hub does not accept HF_TOKEN"), (TOKEN, 403, "HF_TOKEN may not write there")],
)
def test_a_refusal_is_not_repeated(server, files, token, status, message):
    server.trouble = lambda request: status
    with pytest.raises(TaskError, match=message) as caught:
        pushed(files, token)
    assert token not in str(caught.value) and server.requests.count("POST api/repos/create") == 1


@pytest.mark.parametrize("at", ["POST api/repos/create", "PUT blob"])
def test_a_hub_that_hangs_is_given_up(server, files, at, monkeypatch):
    monkeypatch.setattr(hub_push, "SILENT_SECONDS", 0.5)
    server.trouble = lambda request: HANG if request.startswith(at) else None
    start = time.monotonic()
    with pytest.raises(TemporaryError, match=r"no progress for 0\.5 s"):
        pushed(files)
    assert time.monotonic() - start < 10
    names = {one.name: one.daemon for one in threading.enumerate()}
    assert names["push"] and not [name for name in names if "ThreadPool" in name], "the process would wait for these"


def test_a_stopped_job_gives_up(server, files):
    server.trouble = lambda request: HANG
    with pytest.raises(TemporaryError, match="the job was stopped"):
        pushed(files, must_stop=lambda: True)


def test_an_unexpected_error_is_a_typed_one(server, files, tmp_path):
    with pytest.raises(TemporaryError, match=r"someone/my-lora failed: .*gone"):
        pushed(files | {"gone": tmp_path / "gone"})
