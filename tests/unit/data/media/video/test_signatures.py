"""Files of clips are recognised without FFmpeg's libraries."""

import pytest

from engine.data.media.video.signatures import container_name


@pytest.mark.parametrize(
    "head, name",
    [
        (b"\0\0\0\x20ftypisom", "mov"),
        (b"\0\0\0\x08wide\0\0\0\0", "mov"),
        (b"\0\0\0\x20ftypavif", None),
        (b"\0\0\0\x20ftypheic", None),
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"RIFF\0\0\0\0AVI LIST", "avi"),
        (b"RIFF\0\0\0\0WEBPVP8 ", None),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"", None),
    ],
)
def test_containers_are_known_by_their_first_bytes(head, name):
    assert container_name(head) == name
