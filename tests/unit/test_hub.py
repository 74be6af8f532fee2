"""What the Hub's client could not do, as the job's own errors."""

import errno
import threading

import httpx2
import pytest
from huggingface_hub.utils import hf_raise_for_status

from engine import hub
from engine.errors import DatasetError, ModelError, OutputError, TemporaryError


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
