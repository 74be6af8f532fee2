"""The operator's settings for pushing: who wins, and what is refused before anything is trained."""

import pytest

from engine.core.errors import TaskError
from engine.task.push import Push, describe
from engine.task.settings import read_flags, read_settings

TOKEN = {"HF_TOKEN": "hf_secret"}


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


def read(*flags, **env):
    return read_settings(read_flags(flags), {"TASK_JSON": "{}", **env}).push


def test_nothing_is_pushed_by_default():
    assert read() is None and read(PUSH_TO_HUB="", **TOKEN) is None and describe(None) == []


def test_flag_then_variable():
    assert read("--push-to-hub", "a/b", PUSH_TO_HUB="c/d", **TOKEN) == Push(
        repo="a/b", token="hf_secret", every_result=False
    )
    assert read(PUSH_TO_HUB="c/d", PUSH_EVERY_RESULT="1", **TOKEN).every_result
    assert read("--push-every-result", PUSH_TO_HUB="c/d", **TOKEN).every_result


def test_the_token_is_not_shown():
    assert "secret" not in repr(read(PUSH_TO_HUB="c/d", **TOKEN))
    assert read(PUSH_TO_HUB="c/d", HF_TOKEN="hf_secret\n").token == "hf_secret"


def test_a_token_of_a_login(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_stored")
    assert read(PUSH_TO_HUB="c/d").token == "hf_stored"


@pytest.mark.parametrize(
    "env, message",
    [
        ({"PUSH_TO_HUB": "c/d"}, "set HF_TOKEN"),
        ({"PUSH_TO_HUB": "c/d", "HF_HUB_OFFLINE": "1", **TOKEN}, "HF_HUB_OFFLINE forbids"),
        *(({"PUSH_TO_HUB": name, **TOKEN}, "OWNER/NAME") for name in ("d", "a/b/c", "a/b c", "/b", "../b", "a/..")),
        ({"PUSH_TO_HUB": "c/d", "HF_TOKEN": " "}, "set HF_TOKEN"),
        ({"PUSH_TO_HUB": "c/d", "HF_TOKEN": "hf_secret\nx"}, "HF_TOKEN holds"),
        ({"PUSH_EVERY_RESULT": "1"}, "but no repository"),
        ({"PUSH_TO_HUB": "c/d", "PUSH_EVERY_RESULT": "yes", **TOKEN}, "PUSH_EVERY_RESULT is 'yes'"),
    ],
)
def test_mistakes_are_refused(env, message):
    with pytest.raises(TaskError, match=message) as caught:
        read(**env)
    assert "secret" not in str(caught.value)
