"""The names of a medium's samples: in messages, in the task's keys, in tables, in lists of files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleNames:
    """The names of a medium's samples."""

    noun: str
    """The word for one sample in messages; an s makes it several."""
    suffix: str
    """A usual suffix of its files, for examples in messages."""
    readable: str
    """Formats in which samples are readable."""
    unread_videos: str
    """The advice for videos that cannot be read as its samples."""
    column_key: Literal["image_column", "video_column"]
    """The key of the task's `dataset` that names a table's column of samples."""
    default_column: str
    """The default of that key."""
    other_columns: tuple[str, ...] = ("file_name",)
    """Names that the column may also have where the key has its default."""
    musubi_columns: tuple[str, ...] = ()
    """The columns of lists for musubi-tuner, in which the captions are in the column `caption`."""
    list_files: tuple[str, ...] = ()
    """Names of text files that list samples, one a line, beside a file of captions, one a line."""

    @property
    def with_article(self) -> str:
        """The word for one sample with its article."""
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"

    @property
    def several(self) -> str:
        """The word for several samples in messages."""
        return f"{self.noun}s"


OF_IMAGES: Final = SampleNames(
    noun="image",
    suffix=".png",
    readable="PNG or JPEG",
    unread_videos="save frames as images",
    column_key="image_column",
    default_column="image",
)
_OF_MUSUBI: Final = ("video_path", "image_path")
OF_VIDEOS: Final = SampleNames(
    noun="clip",
    suffix=".mp4",
    readable="MP4 with H.264",
    unread_videos="save as .mp4, .mkv or .webm",
    column_key="video_column",
    default_column="video",
    other_columns=("file_name", *_OF_MUSUBI),
    musubi_columns=_OF_MUSUBI,
    list_files=("videos.txt", "video.txt"),
)
