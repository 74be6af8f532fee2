"""The account of a dataset's folder: each file that is not trained on has a reason, which is reported in one line."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from engine.core.files.folder_names import composed, is_of_system, label_of, stem_of
from engine.core.messages import listing, plural, shown
from engine.data.dataset.folder.walking import Tree
from engine.data.media.medium import Medium


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason for which files are not trained on, with advice: the words after the number of files.

    `one` are the words for one file, `many` those for several. In braces stand words that depend on the medium.
    """

    one: str
    many: str
    by_type: bool = False
    """True if the line gives the number of files of each type."""
    is_quiet: bool = False
    """True if no line is printed about such files, such as a README."""


NOT_READ: Final = Reason(
    "picture is in a format that is not supported, save it as JPEG or PNG",
    "pictures are in formats that are not supported, save them as JPEG or PNG",
    by_type=True,
)
UNNAMED: Final = Reason(
    "{sample} is not used, not listed in the metadata", "{sample}s are not used, not listed in the metadata"
)
OTHER_SPLITS: Final = Reason(
    "{sample} belongs to another split and is not trained on", "{sample}s belong to other splits and are not trained on"
)
OTHER_SPLIT_TABLES: Final = Reason(
    "data file belongs to another split and is not trained on",
    "data files belong to other splits and are not trained on",
)
ZERO_TIMES: Final = Reason(
    "{sample} is not used, its folder's name asks for 0 repeats",
    "{sample}s are not used, their folders' names ask for 0 repeats",
)
LOST_CAPTIONS: Final = Reason(
    "text file has no {sample} of that name beside it", "text files have no {sample} of that name beside them"
)
REGULARISATION: Final = Reason(
    "file of regularisation images (reg/ of a kohya project) is not trained on",
    "files of regularisation images (reg/ of a kohya project) are not trained on",
)
PROJECT_RESULTS: Final = Reason(
    "file of a kohya project's results (model/, log/, sample/) is not trained on",
    "files of a kohya project's results (model/, log/, sample/) are not trained on",
)
RESULTS: Final = Reason(
    "file is the result of an earlier training job and not trained on",
    "files are results of earlier training jobs and not trained on",
)
MASKS: Final = Reason(
    "mask is left out, dataset.mask_column would use it", "masks are left out, dataset.mask_column would use them"
)
CONDITIONS: Final = Reason(
    "image for an inpainting model (-condlabel) is not used", "images for an inpainting model (-condlabel) are not used"
)
LOST_MASKS: Final = Reason(
    "mask has no {sample} of that name beside it", "masks have no {sample} of that name beside them"
)
OTHER_CAPTIONS: Final = Reason(
    "file beside {a_sample} is not read, the {sample}'s caption is taken from another file",
    "files beside {sample}s are not read, the {sample}s' captions are taken from other files",
)
NO_CAPTION_IN_JSON: Final = Reason(
    "JSON file beside {a_sample} has no caption (UTF-8 text under the key of dataset.caption_column, or 'caption')",
    "JSON files beside {sample}s have no captions (UTF-8 text under the key of dataset.caption_column, or 'caption')",
)
OTHER_TABLES: Final = Reason(
    "data file is not used, it is not this dataset's table",
    "data files are not used, they are not this dataset's table",
)
WITHOUT_COLUMNS: Final = Reason(
    "data file is not used, it has no columns of {sample}s and captions (dataset.{column_key}, dataset.caption_column)",
    "data files are not used, they have no columns of {sample}s and captions (dataset.{column_key}, "
    "dataset.caption_column)",
)
UNREADABLE_TABLES: Final = Reason(
    "data file is not used, it cannot be read as a table",
    "data files are not used, they cannot be read as tables",
)
OTHER_CONFIGURATIONS: Final = Reason(
    "file belongs to another configuration or split in README.md and is not trained on",
    "files belong to other configurations or splits in README.md and are not trained on",
)
ARCHIVES: Final = Reason(
    "archive is not read, unpack it there to train on its content",
    "archives are not read, unpack them there to train on their content",
)
VIDEOS: Final = Reason("video is not read, {videos}", "videos are not read, {videos}")
OF_SYSTEMS: Final = Reason(
    "{sample} is left out, hidden or in a folder of thumbnails or deleted files",
    "{sample}s are left out, hidden or in folders of thumbnails or deleted files",
)
DEAD_LINKS: Final = Reason("link is broken, its target does not exist", "links are broken, their targets do not exist")
LINKED_TWICE: Final = Reason(
    "link leads to a folder that is already read", "links lead to folders that are already read"
)
NOT_FOLLOWED: Final = Reason(
    "link to a folder is not followed, the dataset was downloaded",
    "links to folders are not followed, the dataset was downloaded",
)
OTHERS: Final = Reason("other file is not used", "other files are not used", by_type=True)
USUAL: Final = Reason(
    "file describes the dataset or belongs to the operating system",
    "files describe the dataset or belong to the operating system",
    is_quiet=True,
)

_KINDS: Final = tuple(
    (re.compile(rf"\.(?:{suffixes})"), reason)
    for suffixes, reason in (
        (
            "heic|heif|hif|jxl|jp2|j2k|j2c|jpf|jpx|jpm|jxr|hdp|wdp|psd|psb|xcf|kra|clip|ora|afphoto|svgz?|eps|ai|tga|dds"
            "|exr|hdr|pcx|p[pgbnf]m|ico|icns|qoi|apng|mpo|jpg_large|jng|flif|bpg|raw|dng|cr[23w]|nef|nrw|arw|sr[2fw]|orf"
            "|rw[2l]|raf|pef|x3f|3fr|fff|iiq|kdc|dcr|mrw|erf|mef|mos|gpr",
            NOT_READ,
        ),
        ("mp4|mov|webm|mkv|avi|m4v|mpe?g|wmv|flv|3gp|mts", VIDEOS),
        ("zip|7z|rar|gz|tgz|bz2|tbz2|xz|txz|zst|tzst|z\\d\\d|\\d{3}", ARCHIVES),
        ("parquet|arrow|jsonl|ndjson|csv|tsv|json|tar", OTHER_TABLES),
        ("txt|caption", LOST_CAPTIONS),
    )
)
_TEXTS: Final = (".txt", ".caption", ".json")
_USUAL: Final = re.compile(
    r"(?:readme|licen[cs]e)(?:[._-].*)?|(?:copying|notice|changelog|citation|authors)(?:\.\w+)?"
    r"|(?:eh)?thumbs\.db|desktop\.ini|icon\r|(?:dataset_infos?|dataset_dict|state)\.json",
    re.IGNORECASE,
)
ABOUT_NO_IMAGES: Final = (NOT_READ, VIDEOS, ARCHIVES, OF_SYSTEMS, LOST_MASKS, DEAD_LINKS, LINKED_TWICE, NOT_FOLLOWED)
"""The reasons to name when a folder has no images."""
_TOLD_KINDS: Final = (NOT_READ, VIDEOS, ARCHIVES)


class Account:
    """The files of a dataset's folder that are used, and the reasons for the others; a file's first entry counts."""

    def __init__(self, tree: Tree, medium: Medium) -> None:
        self.root = tree.root
        self.medium = medium
        """The medium of the samples."""
        self.files = tree.files
        """The files that may be used: sorted paths relative to `root`."""
        self._open = dict.fromkeys([*tree.files, *tree.hidden, *tree.linked_twice, *tree.not_followed])
        self._used: set[str] = set()
        self._has_links = bool(tree.linked_twice or tree.not_followed)
        self._left: dict[Reason, list[str]] = {}
        self._beside: dict[Reason, list[str]] = {}
        self.leave(LINKED_TWICE, tree.linked_twice)
        self.leave(NOT_FOLLOWED, tree.not_followed)

    @property
    def open(self) -> list[str]:
        """The files without an entry."""
        return list(self._open)

    @property
    def used(self) -> frozenset[str]:
        return frozenset(self._used)

    @property
    def left(self) -> Mapping[Reason, Sequence[str]]:
        """Reason -> files, with the captions and masks of images that are left out."""
        return {reason: [*files, *self._beside.get(reason, ())] for reason, files in self._left.items()}

    def use(self, files: Iterable[str]) -> None:
        """Enter files that are trained on, or read for it: images, captions, masks, tables."""
        for name in files:
            file = name if self._is_known(name) else self._behind_links(name)
            if file in self._open:
                del self._open[file]
                self._used.add(file)

    def _is_known(self, name: str) -> bool:
        return name in self._open or name in self._used

    def _behind_links(self, name: str) -> str:
        """Return the file for a path that leads through a link that was not entered."""
        if not self._has_links or "\0" in name:
            return name
        root = os.path.realpath(self.root)
        return os.path.relpath(os.path.realpath(self.root / name), root)

    def leave(self, reason: Reason, files: Iterable[str]) -> None:
        """Enter files that are not trained on, except those that already have an entry."""
        found = [file for file in files if file in self._open]
        for file in found:
            del self._open[file]
        if found:
            self._left.setdefault(reason, []).extend(found)

    def drop(self, reason: Reason, files: Sequence[str]) -> None:
        """Leave files out and remove them from `files`."""
        self.leave(reason, files)
        dropped = set(files)
        self.files = [file for file in self.files if file not in dropped]

    def close(self) -> None:
        """Give each file without an entry a reason, by its name and the files beside it."""
        files = sorted(self._open)
        for file in files:
            if not self._is_beside(file):
                self.leave(self._reason(file), [file])
        owners = {owner: reason for reason, left in self._left.items() for file in left for owner in _owners(file)}
        images = {owner for file in self._used if self.medium.has_name(file) for owner in _owners(file)}
        for file in filter(self._is_beside, files):
            self._close_beside(file, owners, images)

    def lines(self) -> list[str]:
        """Return the lines to print, one for each reason."""
        return [f"dataset: {self.told(reason)}" for reason in self._left if not reason.is_quiet]

    def told(self, reason: Reason) -> str:
        """Return a line with the number of files that have this reason and some names; "" if there are none."""
        files, beside = self._left.get(reason, []), self._beside.get(reason, [])
        if not files:
            return ""
        words = self.worded(plural(len(files), reason.one, reason.many))
        if reason.by_type:
            counts = Counter(map(_suffix, files))
            types = [f"{count:,} {shown(suffix)}" for suffix, count in sorted(counts.items())]
            words += f" ({listing(types, str, most=6)})"
        if beside:
            words += f", with {plural(len(beside), 'file')} beside"
        return f"{words}: {listing(files)}"

    def worded(self, text: str) -> str:
        """Return a reason's words for this medium."""
        names = self.medium.names
        words = {"sample": names.noun, "a_sample": names.with_article, "column_key": names.column_key}
        return text.format(**words, videos=names.unread_videos)

    def _close_beside(self, file: str, owners: Mapping[str, Reason], images: set[str]) -> None:
        """Give a caption or mask file the reason of its image, or that of a file without an image."""
        label = label_of(file)
        owner = composed(label[0]) if label else stem_of(file)
        if owner in images:
            self.leave({"mask": MASKS, "cond": CONDITIONS}[label[1]] if label else OTHER_CAPTIONS, [file])
        elif owner in owners and not is_of_system(file):
            del self._open[file]
            self._beside.setdefault(owners[owner], []).append(file)
        else:
            self.leave(self._reason(file), [file])

    def _is_beside(self, file: str) -> bool:
        """Return whether a file may be an image's caption or mask."""
        return _suffix(file) in _TEXTS or (self.medium.has_name(file) and label_of(file) is not None)

    def _reason(self, file: str) -> Reason:
        name = file.rpartition("/")[2]
        if is_of_system(file):
            return OF_SYSTEMS if self.medium.has_name(file) and not name.startswith("._") else USUAL
        if self.medium.has_name(file):
            return LOST_MASKS if label_of(file) else UNNAMED
        found = next((reason for kind, reason in _KINDS if kind.fullmatch(_suffix(file))), None)
        if found not in _TOLD_KINDS and _USUAL.fullmatch(name):
            return USUAL
        if found:
            return found
        return OTHERS if os.path.exists(f"{self.root}/{file}") else DEAD_LINKS  # noqa: PTH110  # a link behind a link


def is_archive(file: str) -> bool:
    """Return whether a file's name is that of an archive."""
    return any(reason is ARCHIVES and kind.fullmatch(_suffix(file)) for kind, reason in _KINDS)


def _suffix(file: str) -> str:
    stem, dot, suffix = file.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if stem and dot else "without suffix"


def _owners(file: str) -> tuple[str, str]:
    """Return the names that a caption file of this image may have, without suffix: `cat` and `cat.png`."""
    return stem_of(file), composed(file)
