"""Find a base model on disk or download it: its files, its family, and its identity. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
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
from engine.models.base_model_files import (
    INDEX,
    PICKLE_SUFFIXES,
    absent_components,
    content_identity,
    files_below,
    select_files,
)
from engine.models.configs import SCHEDULER_FILE, read_json
from engine.models.objectives.objective import ObjectiveSpec, TargetType
from engine.models.objectives.registry import OBJECTIVES
from engine.models.single_file import SingleFile
from engine.models.spec import FamilySpec
from engine.task.paths import hub_page, nearest
from engine.task.plan.timesteps import Timesteps
from engine.task.task import Model, TimestepSampling, TrainArgs

_FILE_SUFFIXES: Final = (".safetensors", *PICKLE_SUFFIXES)
_PICKLED: Final = "is a pickle, which can run code; convert it to safetensors (docs/task.md says how)"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model whose needed files are all on disk."""

    folder: Path
    family: FamilySpec
    variants: Mapping[str, str | None]
    """Component with weights -> the variant in its file names."""
    absent: frozenset[str] = frozenset()
    """The optional components that it does not have."""
    identity: str
    """The identity of the bytes: `<id>@<commit>` for the Hub, a content hash for a folder or a file; not a path."""
    revision: str | None
    """The Hub commit, None for a folder or a file."""
    single_file: SingleFile | None = None
    """The file that holds the model; None for a model in `folder`."""

    def has(self, component: str) -> bool:
        """Return whether the model has a component of its family, which may be optional."""
        return component not in self.absent

    def config(self, component: str, name: str = "config.json") -> dict[str, Any]:
        """Return one of a component's JSON files; {} for an optional one that it does not have. Raises ModelError."""
        if not self.has(component):
            return {}
        if self.single_file is not None:
            return dict(self.single_file.configs[component])
        return read_json(self.folder / component / name)

    @property
    def objective(self) -> ObjectiveSpec:
        """The row of the family's training objective."""
        return OBJECTIVES[self.family.objective]

    @property
    def prediction_type(self) -> TargetType:
        """The quantity that the model predicts, from its scheduler's configuration. Raises ModelError."""
        return self.objective.prediction_type(self.config("scheduler", SCHEDULER_FILE))

    @property
    def num_train_timesteps(self) -> int:
        """The number of timesteps of the noise schedule. Raises ModelError."""
        return self.objective.num_train_timesteps(self.config("scheduler", SCHEDULER_FILE))

    def timestep_sampling(self, args: TrainArgs) -> TimestepSampling | None:
        """Return how timesteps are sampled: as the task says, or as is usual for the family."""
        return args.timestep_sampling or self.family.usual_sampling

    def describe_noise(self, args: TrainArgs) -> str | None:
        """Return how noise levels follow from timesteps; None if no key of a task changes that. Raises ModelError."""
        describe = self.objective.describe_noise
        tokens = (args.resolution // self.family.token_side) ** 2
        return describe(self.config("scheduler", SCHEDULER_FILE), args, tokens) if describe else None

    def timesteps(self, args: TrainArgs) -> Timesteps:
        """Return the timesteps that a task draws. Raises TaskError if it leaves none."""
        resolved = replace(args, timestep_sampling=self.timestep_sampling(args))
        return self.objective.timesteps(resolved, self.num_train_timesteps)


def locate(
    model: Model,
    *,
    pinned: str | None,
    weights: bool,
    report: Say,
    cache_dir: Path,
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
        cache_dir: the folder to which a single file is downloaded.
        limits: of that download.
        digests: those that `hash_ahead` began to compute; None if it was not called.

    Raises:
        ModelError: not found, not of a supported family, or incomplete.
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
    base.family.check(base.config)
    for note in base.objective.check(base.config("scheduler", SCHEDULER_FILE)):
        report(note)
    refine = base.family.refine
    return replace(base, family=refine(base.config)) if refine else base


def hash_ahead(model: Model, digests: FileDigests) -> None:
    """Begin to hash the weights of a local base model in the background. Errors are ignored: `locate` raises them."""
    path = Path(model.name)
    with contextlib.suppress(ModelError, OSError, ValueError):  # ValueError: a NUL in the name
        if path.is_absolute() and path.is_dir():
            path = hub.snapshot_of(path, model.revision, ModelError)
            index = read_json(path / INDEX)
            selected, _ = select_files(files_below(path), registry.detect(index), model.variant, str(path), index=index)
            digests.begin(path / name for name in selected if name.endswith(".safetensors"))
        elif path.is_absolute() and path.is_file():
            digests.begin([path])


def is_url(name: str) -> bool:
    """Return whether a model's name is the http(s) URL of a file."""
    return name.lower().startswith(("http://", "https://"))


def _report_fallback(variants: Mapping[str, str | None], wanted: str | None, report: Say) -> None:
    if plain := sorted(component for component, found in variants.items() if found != wanted):
        report(f"base model: there are no {wanted} weights of {', '.join(plain)}; the plain weights are used")


def _locate_folder(folder: Path, model: Model, report: Say, digests: FileDigests) -> BaseModel:
    if not folder.is_dir():
        raise ModelError(f"the base model {folder} is neither a folder nor a file{nearest(folder)}")
    index = read_json(folder / INDEX)
    family = registry.detect(index)
    selected, variants = select_files(files_below(folder), family, model.variant, str(folder), index=index)
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
        raise ModelError(f"the base model {address} {_PICKLED}")
    path = fetch_file(
        model.name,
        cache_dir,
        suffix=".safetensors",
        check=lambda part: single_file.inspect(part, address, lambda line: None),
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
        raise ModelError(f"the base model {name} {_PICKLED}")
    file = single_file.inspect(path, name, report)
    family = registry.detect({"_class_name": file.layout.pipeline})
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
    folder = _download(model.name, commit, [INDEX])
    index = read_json(folder / INDEX)
    family = registry.detect(index)
    files = _list_files(model.name, commit, folder)
    selected, variants = select_files(files, family, model.variant, model.name, index=index)
    _report_fallback(variants, model.variant, report)
    if not weights:
        selected = [name for name in selected if not name.endswith(".safetensors")]
    _download(model.name, commit, selected)
    return BaseModel(
        folder=folder,
        family=family,
        variants=variants,
        absent=absent_components(index, family),
        identity=f"{model.name}@{commit}",
        revision=commit,
    )


def _download(name: str, commit: str, files: list[str]) -> Path:
    """Download files of a repository at a commit, and return their folder in the Hub's cache."""
    import huggingface_hub

    folder = hub.with_retries(
        lambda: huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=files), f"base model {name!r}"
    )
    return Path(folder)


def _list_files(name: str, commit: str, folder: Path) -> list[str]:
    """Return the names of a repository's files; with HF_HUB_OFFLINE, of those that are in the cache."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return files_below(folder)
    files: list[str] = hub.with_retries(
        lambda: huggingface_hub.HfApi().list_repo_files(name, revision=commit), f"base model {name!r}"
    )
    return files
