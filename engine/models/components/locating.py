"""Find a base model on disk or download it: its files, its family, and its identity. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from engine.core.errors import ModelError
from engine.core.files.file_hashes import FileDigests
from engine.core.files.retention import hold_repository
from engine.core.limits import DEFAULT_LIMITS, Limits
from engine.core.messages import Say
from engine.core.redact import shown_url
from engine.data.fetch import hub
from engine.models import registry, single_file
from engine.models.base_model import BaseModel
from engine.models.components import hub_files
from engine.models.components.files import (
    INDEX,
    PICKLE_SUFFIXES,
    PICKLED,
    absent_components,
    content_identity,
    files_below,
    is_url,
    require_pairs,
    select_files,
)
from engine.models.components.search import Elsewhere, Search, require_known
from engine.models.configs import CONFIG, SCHEDULER_FILE, read_json
from engine.models.spec import FamilySpec
from engine.task.paths import hub_page, nearest
from engine.task.task import Model

_FILE_SUFFIXES: Final = (".safetensors", *PICKLE_SUFFIXES)


def locate(
    model: Model,
    *,
    pinned: str | None,
    weights: bool,
    report: Say,
    cache_dir: Path,
    pinned_components: Mapping[str, str] = MappingProxyType({}),
    limits: Limits = DEFAULT_LIMITS,
    digests: FileDigests | None = None,
) -> BaseModel:
    """Find the base model, and download those of its files that are needed.

    Args:
        model: the task's model; a local folder or file is an absolute path.
        pinned: the Hub commit to which earlier tasks of the chain resolved `model.revision`.
        weights: False leaves the weights out of a download from the Hub (for `--plan`). A single file is always
            downloaded: its content is its identity.
        report: called with a line to print.
        cache_dir: the folder to which single files are downloaded.
        pinned_components: the same as `pinned` for components from elsewhere, by name.
        limits: those of such a download.
        digests: those that `hash_ahead` began to compute; None if it was not called.

    Raises:
        ModelError: not found, not of a supported family, or incomplete, or parts that do not belong together.
        TaskError: the family has no component of a name in `model.components`.
        TemporaryError: the Hub or the server cannot be reached.
        OutputError: the cache cannot be written.
    """
    path, digests = Path(model.name), digests or FileDigests(cache_dir)
    if is_url(model.name):
        base = _locate_url(model, cache_dir, limits, report, digests)
    elif not path.is_absolute():
        hold_repository(cache_dir, model.name, "model")
        base = _locate_on_hub(model, pinned=pinned, weights=weights, report=report)
    elif path.is_file() or (path.suffix.lower() in _FILE_SUFFIXES and not path.exists()):
        base = _locate_file(path, path.name, model, report, digests)
    else:
        folder = hub.snapshot_of(path, model.revision, ModelError)
        base = _locate_folder(folder, model, report, digests)
    if model.components:
        search = Search(
            family=base.family,
            own=partial(_own_config, base),
            pinned=pinned_components,
            weights=weights,
            report=report,
            cache_dir=cache_dir,
            limits=limits,
            digests=digests,
        )
        base = _composed(base, {name: search.find(name, one) for name, one in sorted(model.components.items())})
    require_pairs(base.absent)
    base.family.check(base.config)
    scheduler = base.config("scheduler", SCHEDULER_FILE)
    for note in base.objective.check(scheduler):
        report(note)
    _require_drawable(base.family, str(scheduler.get("_class_name")))
    refine = base.family.refine
    return replace(base, family=refine(base.config)) if refine else base


def _require_drawable(family: FamilySpec, scheduler: str) -> None:
    """Raise ModelError if the family's pipeline cannot draw with a scheduler."""
    if family.schedulers and scheduler not in family.schedulers:
        raise ModelError(
            f"the base model's scheduler is {scheduler}, with which a {family.pipeline} cannot draw validation images; "
            f"expected {' or '.join(sorted(family.schedulers))}"
        )


def _own_config(base: BaseModel, component: str) -> Mapping[str, Any]:
    """Return the configuration of a base model's own component, which comes from elsewhere; {} if it has none."""
    is_there = base.single_file is not None or (base.folder / component / CONFIG).is_file()
    return base.config(component) if is_there else {}


def _composed(base: BaseModel, elsewhere: Mapping[str, Elsewhere]) -> BaseModel:
    """Return a base model with components from elsewhere. Raises ModelError if a text encoder lacks its tokenizer."""
    absent = base.absent - elsewhere.keys()
    for name in elsewhere:
        if name.startswith("text_encoder") and (tokenizer := name.replace("text_encoder", "tokenizer")) in absent:
            raise ModelError(f"model.components.{name}: the base model has no {tokenizer}; name that, too")
    own = {name: variant for name, variant in base.variants.items() if name not in elsewhere}
    weighted = {name: found for name, found in elsewhere.items() if name in base.family.weighted}
    return replace(
        base,
        elsewhere=elsewhere,
        variants=own | {name: found.variant for name, found in weighted.items() if not found.place.single_file},
        absent=absent,
    )


def hash_ahead(model: Model, digests: FileDigests) -> None:
    """Begin to hash the weights of a local base model in the background. Errors are ignored: `locate` raises them."""
    path = Path(model.name)
    with contextlib.suppress(ModelError, OSError, ValueError):  # ValueError: a NUL in the name
        if path.is_absolute() and path.is_dir():
            path = hub.snapshot_of(path, model.revision, ModelError)
            index = read_json(path / INDEX)
            family, replaced = registry.detect(index), model.components.keys()
            selected, _ = select_files(
                files_below(path), family, model.variant, str(path), index=index, replaced=replaced
            )
            digests.begin(path / name for name in selected if name.endswith(".safetensors"))
        elif path.is_absolute() and path.is_file():
            digests.begin([path])


def _report_fallback(variants: Mapping[str, str | None], wanted: str | None, report: Say) -> None:
    if plain := sorted(component for component, found in variants.items() if found != wanted):
        report(f"base model: there are no {wanted} weights of {', '.join(plain)}; the plain weights are used")


def _family_of(index: Mapping[str, Any], model: Model) -> FamilySpec:
    """Return the family of a base model, which has all components that the task replaces. Raises `locate`'s errors."""
    family = registry.detect(index)
    require_known(model.components, family)
    return family


def _locate_folder(folder: Path, model: Model, report: Say, digests: FileDigests) -> BaseModel:
    if not folder.is_dir():
        raise ModelError(f"the base model {folder} is neither a folder nor a file{nearest(folder)}")
    index = read_json(folder / INDEX)
    family = _family_of(index, model)
    replaced = model.components.keys()
    selected, variants = select_files(
        files_below(folder), family, model.variant, str(folder), index=index, replaced=replaced
    )
    _report_fallback(variants, model.variant, report)
    return BaseModel(
        folder=folder,
        family=family,
        variants=variants,
        absent=absent_components(index, family),
        identity=content_identity(folder, selected, digests),
        revision=None,
    )


def _locate_url(model: Model, cache_dir: Path, limits: Limits, report: Say, digests: FileDigests) -> BaseModel:
    from engine.data.fetch import fetch_file

    address = shown_url(model.name)
    if page := hub_page(model.name):
        raise ModelError(f"the base model {address} is a page of the Hub: write the Hub ID alone, {page}")
    if Path(urlsplit(address).path).suffix.lower() in PICKLE_SUFFIXES:
        raise ModelError(f"the base model {address} {PICKLED}")
    path = fetch_file(
        model.name,
        cache_dir,
        suffix=".safetensors",
        check=lambda part: single_file.inspect(part, address, lambda line: None, model.components.keys()),
        report=report,
        limits=limits,
    )
    base = _locate_file(path, address, model, report, digests)
    if base.identity != f"sha256:{path.stem}":
        raise ModelError(f"the downloaded base model {path} is damaged; delete it and run again")
    return base


def _locate_file(path: Path, name: str, model: Model, report: Say, digests: FileDigests) -> BaseModel:
    if not path.is_file():
        raise ModelError(f"the base model {path} does not exist{nearest(path)}")
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ModelError(f"the base model {name} {PICKLED}")
    file = single_file.inspect(path, name, report, model.components.keys())
    family = _family_of({"_class_name": file.layout.pipeline}, model)
    if model.variant or model.revision != "main":
        report("base model: a single file has no variants or revisions; model.variant and model.revision are ignored")
    try:
        digest = digests.of(path)
    except OSError as error:
        raise ModelError(f"the base model {name} cannot be read ({error.strerror})") from None
    return BaseModel(
        folder=path.parent,
        family=family,
        variants={},
        identity=f"sha256:{digest}",
        revision=None,
        single_file=file,
    )


def _locate_on_hub(model: Model, *, pinned: str | None, weights: bool, report: Say) -> BaseModel:
    commit = pinned or hub.resolve_commit(model.name, "model", model.revision)
    report(f"base model {model.name} at commit {commit[:12]}")
    folder = hub_files.download(model.name, commit, [INDEX])
    index = read_json(folder / INDEX)
    family = _family_of(index, model)
    files = hub_files.list_files(model.name, commit, folder)
    replaced = model.components.keys()
    selected, variants = select_files(files, family, model.variant, model.name, index=index, replaced=replaced)
    _report_fallback(variants, model.variant, report)
    if not weights:
        selected = [name for name in selected if not name.endswith(".safetensors")]
    hub_files.download(model.name, commit, selected)
    return BaseModel(
        folder=folder,
        family=family,
        variants=variants,
        absent=absent_components(index, family),
        identity=f"{model.name}@{commit}",
        revision=commit,
    )
