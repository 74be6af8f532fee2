"""Find the components of a base model that come from elsewhere (`model.components`). No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from engine.core.errors import ModelError, TaskError
from engine.core.files.file_hashes import FileDigests
from engine.core.files.retention import hold_repository
from engine.core.limits import Limits
from engine.core.messages import Say, listing, short, shown
from engine.core.redact import shown_url
from engine.data.fetch import hub
from engine.models.components import hub_files
from engine.models.components.files import (
    INDEX,
    PICKLE_SUFFIXES,
    PICKLED,
    content_identity,
    files_in,
    is_url,
    select_weights,
    side_files,
)
from engine.models.components.place import Place, WeightFile
from engine.models.single_file import SingleFile
from engine.models.single_file.header import Header, read_header
from engine.models.single_file.layouts import alone
from engine.models.spec import Configs, FamilySpec
from engine.task.keys.model import Component
from engine.task.paths import nearest

_FILE: Final = "a file of its own holds a part with weights: give the folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A component that comes from elsewhere, whose needed files are on disk."""

    wanted: Component
    """The task's own words for it."""
    place: Place
    variant: str | None
    """The variant in the names of its weights."""
    identity: str
    """The identity of the bytes: `<id>@<commit>`, with `/<folder>` for a folder in it, or a content hash; no path."""
    revision: str | None
    """The Hub commit, None for a folder or a file."""

    @property
    def resolved(self) -> dict[str, Any]:
        """The record of it in a manifest, from which it can be found again if it is on the Hub."""
        return {
            "identity": self.identity,
            "revision": self.revision,
            "name": self.wanted.name if self.revision else None,
            "subfolder": self.wanted.subfolder,
            "variant": self.wanted.variant,
            "branch": self.wanted.revision,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The settings of a search for components; see `locating.locate`."""

    family: FamilySpec
    own: Configs
    """The configurations of the base model's own components."""
    pinned: Mapping[str, str]
    """Component -> the Hub commit to which earlier tasks of the chain resolved its revision."""
    weights: bool
    report: Say
    cache_dir: Path
    limits: Limits
    digests: FileDigests

    def find(self, component: str, wanted: Component) -> Elsewhere:
        """Find a component, and download those of its files that are needed.

        Raises:
            ModelError: not found, incomplete, or of another class; `locating.locate` has the others.
            TaskError: its sub-folder is outside.
        """
        with _named(component):
            if is_url(wanted.name):
                return self._by_url(component, wanted)
            path = Path(wanted.name)
            if not path.is_absolute():
                return self._on_hub(component, wanted)
            if path.is_file():
                return self._in_file(component, wanted, path, path.name)
            return self._in_folder(component, wanted, hub.snapshot_of(path, wanted.revision, ModelError))

    def _by_url(self, component: str, wanted: Component) -> Elsewhere:
        from engine.data.fetch import fetch_file

        address = shown_url(wanted.name)
        path = fetch_file(
            wanted.name,
            self.cache_dir,
            suffix=".safetensors",
            check=lambda part: self._file_place(component, part, address),
            report=self.report,
            limits=self.limits,
        )
        return self._in_file(component, wanted, path, address)

    def _in_file(self, component: str, wanted: Component, path: Path, name: str) -> Elsewhere:
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise ModelError(f"{name} {PICKLED}")
        place = self._file_place(component, path, name)
        if wanted.subfolder or wanted.variant or wanted.revision != "main":
            self.report(f"model.components.{component}: a file has no subfolder, variant or revision; they are ignored")
        try:
            identity = f"sha256:{self.digests.of(path)}"
        except OSError as error:
            raise ModelError(f"{name} cannot be read ({error.strerror})") from None
        return Elsewhere(wanted=wanted, place=place, variant=None, identity=identity, revision=None)

    def _file_place(self, component: str, path: Path, name: str) -> Place:
        """Return the place of a component in a file, whose configuration follows from the base model's own."""
        if component not in self.family.weighted:
            raise ModelError(f"{name} is a file; {_FILE}")
        header, own = read_header(path, name), dict(self.own(component))
        if not own:
            raise ModelError(
                f"{name} is a file without a configuration, and the base model has no {component}: {_FILE}"
            )
        layout, config = alone(header, component, own, name)
        if layout is None:
            return Place(
                component=component,
                folder=path.parent,
                weight_file=WeightFile(path=path, config=_fitted(header, config)),
            )
        file = SingleFile(path=path, name=name, layout=layout, configs={component: config})
        return Place(component=component, folder=path.parent, single_file=file)

    def _in_folder(self, component: str, wanted: Component, folder: Path) -> Elsewhere:
        if not folder.is_dir():
            raise ModelError(f"{shown(str(folder))} is neither a folder nor a file{nearest(folder)}")
        inner = _inner(component, wanted, (folder / INDEX).is_file())
        own = folder / inner
        names = files_in(own) if own.is_dir() else []
        selected, variant = self._selected(component, wanted, names, str(own))
        self._require_class(component, own)
        identity = content_identity(own, selected, self.digests)
        place = Place(component=component, folder=own)
        return Elsewhere(wanted=wanted, place=place, variant=variant, identity=identity, revision=None)

    def _on_hub(self, component: str, wanted: Component) -> Elsewhere:
        name = wanted.name
        hold_repository(self.cache_dir, name, "model")
        commit = self.pinned.get(component) or hub.resolve_commit(name, "model", wanted.revision)
        self.report(f"{component} {name} at commit {commit[:12]}")
        folder = hub_files.download(name, commit, [INDEX])
        names = hub_files.list_files(name, commit, folder)
        inner = _inner(component, wanted, INDEX in names)
        inside = [one.removeprefix(f"{inner}/") for one in names if PurePosixPath(one).parent == PurePosixPath(inner)]
        selected, variant = self._selected(component, wanted, inside, f"{name}/{inner}".rstrip("/."))
        if not self.weights:
            selected = [one for one in selected if not one.endswith(".safetensors")]
        hub_files.download(name, commit, [(PurePosixPath(inner) / one).as_posix() for one in selected])
        self._require_class(component, folder / inner)
        return Elsewhere(
            wanted=wanted,
            place=Place(component=component, folder=folder / inner),
            variant=variant,
            identity=f"{name}@{commit}" + (f"/{inner}" if inner != "." else ""),
            revision=commit,
        )

    def _selected(
        self, component: str, wanted: Component, names: list[str], source: str
    ) -> tuple[list[str], str | None]:
        """Return the files that are needed of those in a component's folder, and the variant of its weights."""
        if not names:
            raise ModelError(f"there is no folder {shown(source)}, or nothing in it; subfolder names another")
        selected = side_files(names)
        if component not in self.family.weighted:
            return selected, None
        weights, variant = select_weights(names, wanted.variant, source, component)
        if variant != wanted.variant:
            raise ModelError(f"{shown(source)} has no {wanted.variant} weights: leave variant out")
        return [*selected, *weights], variant

    def _require_class(self, component: str, folder: Path) -> None:
        """Raise ModelError if the component in a folder is of another class than the base model's own."""
        if component not in self.family.weighted:
            return
        place = Place(component=component, folder=folder)
        own = class_name(self.own(component))
        known = self.family.classes.get(component) or ((own,) if own else ())
        found = class_name(place.config())
        if found and known and found not in known:
            raise ModelError(
                f"{shown(str(folder))} is a {found[:80]}, expected {' or '.join(known)}: it is another kind of part"
            )


def require_known(components: Mapping[str, Component], family: FamilySpec) -> None:
    """Raise TaskError if the base model's family has no component of one of these names."""
    for name in components:
        if name not in family.components:
            raise TaskError(
                f"model.components.{name}: the base model has no part of this name; "
                f"its parts are {listing(family.components, most=20)}"
            )


def class_name(config: Mapping[str, Any]) -> str | None:
    """Return the class that a component's configuration names: Diffusers' or transformers'."""
    architectures = config.get("architectures")
    found = config.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) and architectures else None
    )
    return found if isinstance(found, str) else None


def _inner(component: str, wanted: Component, is_pipeline: bool) -> str:
    """Return the folder of a component in a place; `.` is the place itself.

    Raises:
        TaskError: it is outside.
    """
    inner = PurePosixPath(wanted.subfolder or (component if is_pipeline else "."))
    if inner.is_absolute() or ".." in inner.parts:
        raise TaskError(
            f"model.components.{component}.subfolder is {short(str(inner))}: expected a folder inside its name"
        )
    return inner.as_posix()


def _fitted(header: Header, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a VAE's configuration with the latent channels of its weights, so that another model's VAE is noticed."""
    found = header.tensors.get("decoder.conv_in.weight")
    if "latent_channels" not in config or found is None or len(found.shape) < 2:
        return config
    return {**config, "latent_channels": found.shape[1]}


@contextmanager
def _named(component: str) -> Iterator[None]:
    """Begin the messages of ModelErrors in the block with the key that names the component."""
    try:
        yield
    except ModelError as error:
        named = ModelError(f"model.components.{component}: {str(error).removeprefix('model.name: ')}")
        named.hub_id = error.hub_id
        raise named from error
