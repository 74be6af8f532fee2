"""What the Hub's client could not do, as the job's own errors."""

import errno
import threading

import httpx2
import pytest
from huggingface_hub.utils import hf_raise_for_status

from engine.core.errors import DatasetError, ModelError, OutputError, TemporaryError
from engine.data.fetch import hub


@pytest.fixture(autouse=True)
def waited(monkeypatch):
    """Nobody waits."""
    waits = []
    # There is one `sleep` for all: a thread that another test has left behind may be at it.
    here = threading.current_thread()
    monkeypatch.setattr(hub.time, "sleep", lambda s: waits.append(s) if threading.current_thread() is here else None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return waits


def answering(status, asked, headers=None):
    """A request that a server answers with a status, as the Hub's client raises it."""

    def call():
        asked.append(status)
        request = httpx2.Request("GET", "https://mirror.example/api/models/a/b/revision/main")
        hf_raise_for_status(httpx2.Response(status, request=request, headers=headers))

    return call


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EACCES, "HF_HOME"), (errno.EROFS, "HF_HOME"), (errno.ENOSPC, "disk is full")]
)
def test_a_cache_that_cannot_be_written_is_no_bug_and_no_bad_model(number, words):
    def download():
        raise OSError(number, "refused", "somewhere")

    with pytest.raises(OutputError, match=words):
        hub.with_retries(download, "base model 'a/b'", refused=ModelError)


@pytest.mark.parametrize("refused", [ModelError, DatasetError])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 410, 416, 451])
def test_a_bare_refusal_is_what_was_asked_fors(status, refused, waited):
    """Without the headers that tell the Hub's own refusals apart, as a mirror or a proxy answers."""
    asked = []
    with pytest.raises(refused, match="base model 'a/b'") as caught:
        hub.with_retries(answering(status, asked), "base model 'a/b'", refused=refused)
    assert len(asked) == 1 and not waited
    assert "\n" not in str(caught.value)
    assert str(status) in str(caught.value) or "nothing on the Hub that may be read" in str(caught.value)


@pytest.mark.parametrize("status", [404, 503])
def test_who_looks_something_up_learns_what_it_was(monkeypatch, status):
    def get(self, url, **_):
        return httpx2.Response(status, request=httpx2.Request("GET", url))

    monkeypatch.setattr(httpx2.Client, "send", lambda self, request, **_: get(self, str(request.url)))
    with pytest.raises((DatasetError, TemporaryError)) as caught:
        hub.resolve_commit("me/cats", "dataset", "main")
    assert caught.value.hub_id == "me/cats"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 520])
def test_trouble_is_temporary_after_four_attempts(status, waited):
    asked = []
    with pytest.raises(TemporaryError, match="4 attempts"):
        hub.with_retries(answering(status, asked), "base model 'a/b'")
    assert len(asked) == 4 and waited == [1.0, 3.0, 9.0]


@pytest.mark.parametrize(
    ("code", "words"), [("RevisionNotFound", "no such revision"), ("GatedRepo", "gated"), ("EntryNotFound", "404")]
)
def test_the_hubs_own_refusals_say_more(code, words):
    with pytest.raises(ModelError, match=words):
        hub.with_retries(answering(404, [], {"X-Error-Code": code}), "base model 'a/b'")


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"[]", b"{}", b'{"id": "a/b"}'])
@pytest.mark.parametrize("kind, refused", [("model", ModelError), ("dataset", DatasetError)])
def test_an_answer_that_is_not_the_hubs(monkeypatch, body, kind, refused):
    def get(self, url, **_):
        return httpx2.Response(200, request=httpx2.Request("GET", url), content=body)

    monkeypatch.setattr(httpx2.Client, "get", get)
    monkeypatch.setattr(httpx2.Client, "request", lambda self, method, url, **_: get(self, url))
    with pytest.raises(refused, match="HF_ENDPOINT"):
        hub.resolve_commit("a/b", kind, "main")


class TestSnapshots:
    """Folders of the Hub's cache."""

    def cached(self, root, *commits, **refs):
        folder = root / "models--me--model"
        for commit in commits:
            (folder / "snapshots" / commit).mkdir(parents=True)
        for name, commit in refs.items():
            (folder / "refs").mkdir(exist_ok=True)
            (folder / "refs" / name).write_text(commit)
        return folder

    @pytest.mark.parametrize(
        ("revision", "commit"), [("main", "aaa"), ("v1", "bbb"), ("bbb", "bbb")], ids=["main", "another", "a commit"]
    )
    def test_the_one_that_the_revision_names(self, tmp_path, revision, commit):
        folder = self.cached(tmp_path, "aaa", "bbb", main="aaa", v1="bbb")
        assert hub.snapshot_of(folder, revision, ModelError) == folder / "snapshots" / commit

    @pytest.mark.parametrize("revision", ["v2", "../../x", "a\0b", ""])
    def test_one_that_is_not_there(self, tmp_path, revision):
        with pytest.raises(ModelError, match="2 snapshots"):
            hub.snapshot_of(self.cached(tmp_path, "aaa", "bbb", main="aaa"), revision, ModelError)

    def test_a_file_elsewhere_is_not_shown(self, tmp_path):
        (tmp_path / "secret").write_text("hf_token")
        with pytest.raises(ModelError) as caught:
            hub.snapshot_of(self.cached(tmp_path, "aaa", "bbb", main="aaa"), "../../secret", ModelError)
        assert "hf_token" not in str(caught.value)

    def test_other_folders_stay(self, tmp_path):
        (tmp_path / "models--mine").mkdir()
        for folder in (tmp_path, tmp_path / "models--mine", tmp_path / "gone"):
            assert hub.snapshot_of(folder, "main", ModelError) == folder


def test_other_errors_pass_through():
    def fail():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        hub.with_retries(fail, "model 'x'")
