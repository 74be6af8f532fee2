"""Which containers and codecs are opened, and that nothing else is."""

import ctypes
import os

import pytest

from engine.data.media.geometry import UnreadableImage
from engine.data.media.video import container
from engine.data.media.video.container import READER_VERSION, opened
from engine.data.media.video.decoding import check
from engine.data.media.video.signatures import container_name
from tests.integration.hostile import videos
from tests.support.clips import clip_bytes

IN_OPEN = 0x20


class Watch:
    """Sees who opens files of a folder, in C as well as in Python (inotify(7))."""

    def __init__(self, folder):
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._events, os.fsencode(folder), IN_OPEN) >= 0

    def was_opened(self):
        try:
            return bool(os.read(self._events, 4096))
        except BlockingIOError:
            return False


@pytest.fixture
def secret(tmp_path):
    """A clip outside of the one that is read; nothing may open it."""
    (tmp_path / "secret.mp4").write_bytes(clip_bytes(first=100))
    watch = Watch(tmp_path)
    yield tmp_path / "secret.mp4"
    assert not watch.was_opened()
    (tmp_path / "secret.mp4").read_bytes()
    assert watch.was_opened()  # it would have been seen


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{path}'\n",
        "concat:{path}",
        "file:{path}",
        "<MPD><Period><AdaptationSet><BaseURL>{path}</BaseURL></AdaptationSet></Period></MPD>",
        "v=0\nm=video 5004 RTP/AVP 96\na=control:{path}\n",
        "[playlist]\nFile1={path}\n",
    ],
)
def test_lists_of_files_are_no_clips(text, secret):
    data = text.format(path=secret).encode()
    assert container_name(data) is None
    with pytest.raises(UnreadableImage, match="not an MP4"):
        check(data, None)


def test_frames_in_another_file_are_not_read(secret):
    with pytest.raises(UnreadableImage):
        check(videos.elsewhere(bytes(secret)), None)


def test_what_ffmpeg_asks_to_open_is_refused(monkeypatch, secret):
    """Even with a container of which FFmpeg would open other files."""
    monkeypatch.setattr(container, "container_name", lambda data: "hls")
    monkeypatch.setattr(container, "refuse_claims", lambda data, name: None)
    data = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n".encode()
    with pytest.raises(UnreadableImage), opened(data):
        pass


def test_attachments_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check(videos.attached(), None).frames == 9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(container._DECODERS))
def test_the_decoders_are_there(name):
    """With these names, in this FFmpeg; VP8 has no encoder here to make a clip with."""
    import av

    assert av.Codec(name, "r").type == "video"


def test_other_codecs_are_named():
    data = clip_bytes(".mov", codec="prores")
    with pytest.raises(UnreadableImage, match=r"its codec is prores; convert it to one of H.264, H.265, VP8"):
        check(data, None)


def test_sound_and_cover_pictures_are_no_video():
    with pytest.raises(UnreadableImage, match="no video stream"):
        check(videos.sound_alone(), None)


def test_the_decoder_has_one_thread():
    with opened(clip_bytes()) as (_, stream):
        assert stream.codec_context.thread_count == 1


def test_versions_are_named():
    assert READER_VERSION.startswith("av ") and "libavcodec 6" in READER_VERSION
