"""The files in a dataset's folder that are not trained on: one reason for each, one line for each reason."""

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
    """Why files are not trained on, and what to do: the words after their number, for one file and for several."""

    one: str
    many: str
    by_type: bool = False
    """Whether the line says how many there are of each type."""
    is_quiet: bool = False
    """Whether no line is printed about such files, as for a README."""


NOT_READ: Final = Reason(
    "picture is of a kind that is not read, save it as JPEG or PNG",
    "pictures are of kinds that are not read, save them as JPEG or PNG",
    by_type=True,
)
UNNAMED: Final = Reason("image is not used, named by no metadata row", "images are not used, named by no metadata row")
OTHER_SPLITS: Final = Reason(
    "image is of other splits and not trained on", "images are of other splits and not trained on"
)
OTHER_SPLIT_TABLES: Final = Reason(
    "data file is of other splits and not trained on", "data files are of other splits and not trained on"
)
ZERO_TIMES: Final = Reason("image is not used, a folder says 0 times", "images are not used, a folder says 0 times")
LOST_CAPTIONS: Final = Reason(
    "text file is beside no image of that name", "text files are beside no image of that name"
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
    "file is of a training's result, written here by a job, and not trained on",
    "files are of trainings' results, written here by jobs, and not trained on",
)
MASKS: Final = Reason(
    "mask is left out, dataset.mask_column would use it", "masks are left out, dataset.mask_column would use them"
)
CONDITIONS: Final = Reason(
    "image for an inpainting model (-condlabel) is not used", "images for an inpainting model (-condlabel) are not used"
)
LOST_MASKS: Final = Reason("mask is beside no image of that name", "masks are beside no image of that name")
OTHER_CAPTIONS: Final = Reason(
    "file beside an image is not read, its caption is elsewhere",
    "files beside images are not read, their captions are elsewhere",
)
NO_CAPTION_IN_JSON: Final = Reason(
    "JSON file beside an image holds no caption (text in UTF-8 under dataset.caption_column or 'caption')",
    "JSON files beside images hold no captions (text in UTF-8 under dataset.caption_column or 'caption')",
)
OTHER_TABLES: Final = Reason(
    "data file is not used, it is not this dataset's table",
    "data files are not used, they are not this dataset's table",
)
WITHOUT_COLUMNS: Final = Reason(
    "data file is not used, it has no columns of images and captions (dataset.image_column, dataset.caption_column)",
    "data files are not used, they have no columns of images and captions (dataset.image_column, "
    "dataset.caption_column)",
)
UNREADABLE_TABLES: Final = Reason(
    "data file is not used, it cannot be read as a table",
    "data files are not used, they cannot be read as tables",
)
OTHER_CONFIGURATIONS: Final = Reason(
    "file is of other configurations or splits in README.md and not trained on",
    "files are of other configurations or splits in README.md and not trained on",
)
ARCHIVES: Final = Reason(
    "archive is not unpacked, unpack it there to train on what is in it",
    "archives are not unpacked, unpack them there to train on what is in them",
)
VIDEOS: Final = Reason("video is not read, save frames of it as images", "videos are not read, save frames as images")
OF_SYSTEMS: Final = Reason(
    "image is left out, hidden or in a folder of thumbnails or deleted files",
    "images are left out, hidden or in folders of thumbnails or deleted files",
)
DEAD_LINKS: Final = Reason("link leads nowhere", "links lead nowhere")
LINKED_TWICE: Final = Reason(
    "link leads to a folder that is read already", "links lead to folders that are read already"
)
NOT_FOLLOWED: Final = Reason(
    "link to a folder is not followed, the dataset was downloaded",
    "links to folders are not followed, the dataset was downloaded",
)
OTHERS: Final = Reason("other file is not used", "other files are not used", by_type=True)
USUAL: Final = Reason(
    "file is about the dataset or a system's", "files are about the dataset or a system's", is_quiet=True
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
    """Which files of a dataset's folder are used, and why the others are not; the first entry of a file stands."""

    def __init__(self, tree: Tree, medium: Medium) -> None:
        self.root = tree.root
        self.medium = medium
        """Whose files the samples are."""
        self.files = tree.files
        """Those that may be used: sorted paths relative to `root`."""
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
        """Reason -> files; those beside an image that is left out are among them."""
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
        """The file that a row names by way of a link that was not entered."""
        if not self._has_links or "\0" in name:
            return name
        root = os.path.realpath(self.root)
        return os.path.relpath(os.path.realpath(self.root / name), root)

    def leave(self, reason: Reason, files: Iterable[str]) -> None:
        """Enter files that are not trained on, unless they have an entry."""
        found = [file for file in files if file in self._open]
        for file in found:
            del self._open[file]
        if found:
            self._left.setdefault(reason, []).extend(found)

    def drop(self, reason: Reason, files: Sequence[str]) -> None:
        """Leave files out before anything is looked for among them."""
        self.leave(reason, files)
        dropped = set(files)
        self.files = [file for file in self.files if file not in dropped]

    def close(self) -> None:
        """Find a reason for each file without an entry, by its name and the files beside it."""
        files = sorted(self._open)
        for file in files:
            if not self._is_beside(file):
                self.leave(self._reason(file), [file])
        owners = {owner: reason for reason, left in self._left.items() for file in left for owner in _owners(file)}
        images = {owner for file in self._used if self.medium.has_name(file) for owner in _owners(file)}
        for file in filter(self._is_beside, files):
            self._close_beside(file, owners, images)

    def lines(self) -> list[str]:
        """Return a line for each reason, for a person."""
        return [f"dataset: {self.told(reason)}" for reason in self._left if not reason.is_quiet]

    def told(self, reason: Reason) -> str:
        """Return how many files have this reason, and some of their names; nothing where none has."""
        files, beside = self._left.get(reason, []), self._beside.get(reason, [])
        if not files:
            return ""
        words = plural(len(files), reason.one, reason.many)
        if reason.by_type:
            counts = Counter(map(_suffix, files))
            types = [f"{count:,} {shown(suffix)}" for suffix, count in sorted(counts.items())]
            words += f" ({listing(types, str, most=6)})"
        if beside:
            words += f", with {plural(len(beside), 'file')} beside"
        return f"{words}: {listing(files)}"

    def _close_beside(self, file: str, owners: Mapping[str, Reason], images: set[str]) -> None:
        """Give a caption or a mask the reason of its image, or the reason for having none."""
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
        """Whether a file may be an image's caption or mask."""
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
    """Whether a file is an archive by its name."""
    return any(reason is ARCHIVES and kind.fullmatch(_suffix(file)) for kind, reason in _KINDS)


def _suffix(file: str) -> str:
    stem, dot, suffix = file.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if stem and dot else "without suffix"


def _owners(file: str) -> tuple[str, str]:
    """Return the names by which a caption may belong to an image: `cat` and `cat.png`."""
    return stem_of(file), composed(file)
