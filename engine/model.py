"""The base model on disk: which files it consists of, where they are, and what identifies them. No torch."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from . import families, hub
from .errors import ModelError
from .families import single_file
from .families.checks import MAX_TIMESTEPS
from .families.single_file import SingleFile
from .limits import Limits
from .task import Model, PredictionType, canonical_json

INDEX: Final = "model_index.json"
_WEIGHT_STEMS: Final = ("diffusion_pytorch_model", "model")
_SIDE_FILES: Final = ("*.json", "*.txt", "*.model")
_PICKLE_SUFFIXES: Final = (".bin", ".ckpt", ".pt", ".pth")
_PICKLES: Final = tuple(f"*{suffix}" for suffix in _PICKLE_SUFFIXES)
_FILE_SUFFIXES: Final = (".safetensors", *_PICKLE_SUFFIXES)
_PICKLED: Final = "is a pickle, which can run code; convert it to safetensors (docs/task.md says how)"
_MAX_JSON_BYTES: Final = 64 << 20
_DEFAULT_LIMITS: Final = Limits()

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model whose needed files are all on disk."""

    folder: Path
    family: families.Entry
    variants: Mapping[str, str | None]
    """For each component with weights, the variant that its file names carry."""
    identity: str
    """What the bytes are: `<id>@<commit>` from the Hub, a content hash for a folder or a file. Never a path."""
    revision: str | None
    """The Hub commit, None for a folder or a file."""
    single_file: SingleFile | None = None
    """Where everything is when it is not in `folder`."""

    def config(self, component: str, name: str = "config.json") -> dict[str, Any]:
        """One of a component's JSON files, as a dict."""
        if self.single_file is not None:
            return dict(self.single_file.configs[component])
        return _read_json(self.folder / component / name)

    @property
    def prediction_type(self) -> PredictionType:
        """What the model was trained to predict, by its scheduler's configuration.

        Raises:
            ModelError: something else than noise or velocity.
        """
        found = self.config("scheduler", "scheduler_config.json").get("prediction_type", "epsilon")
        if found not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"the base model's scheduler predicts {found!r}; epsilon and v_prediction can be trained, "
                "and train_args.prediction_type can name one of them"
            )
        return cast(PredictionType, found)

    @property
    def num_train_timesteps(self) -> int:
        """The length of the noise schedule.

        Raises:
            ModelError: no count, or one that no memory would hold.
        """
        found = self.config("scheduler", "scheduler_config.json").get("num_train_timesteps", 1000)
        if type(found) is not int or not 1 <= found <= MAX_TIMESTEPS:
            raise ModelError(
                "the base model's scheduler does not load: "
                f"num_train_timesteps is {str(found)[:40]!r}; download it again"
            )
        return found


def locate(
    model: Model,
    *,
    pinned: str | None,
    weights: bool,
    report: Report,
    cache_dir: Path,
    limits: Limits = _DEFAULT_LIMITS,
) -> BaseModel:
    """Find the base model, downloading the files it needs and no others.

    Args:
        model: the task's model; a local folder or file is an absolute path.
        pinned: the Hub commit that earlier tasks of the chain resolved `model.revision` to.
        weights: False leaves the weights out of a download from the Hub (for `--plan`). A single file is always
            downloaded: its content is its identity.
        report: called with a line on long work.
        cache_dir: where a single file is downloaded to.
        limits: of that download.

    Raises:
        ModelError: not found, no family of ours, or incomplete.
        TemporaryError: the Hub or the server cannot be reached.
        OutputError: the cache cannot be written.
    """
    path = Path(model.name)
    if is_url(model.name):
        base = _locate_url(model, cache_dir, limits, report)
    elif not path.is_absolute():
        base = _locate_on_hub(model, pinned=pinned, weights=weights, report=report)
    elif path.is_file() or (path.suffix.lower() in _FILE_SUFFIXES and not path.exists()):
        base = _locate_file(path, path.name, model, report)
    else:
        base = _locate_folder(path, model, report)
    base.family.check(base.config)
    _check_scheduler(base)
    return base


def _check_scheduler(base: BaseModel) -> None:
    """Refuse other kinds of diffusion by name, before weights are downloaded; loading looks at the class itself."""
    name = str(base.config("scheduler", "scheduler_config.json").get("_class_name"))
    if name.startswith(("EDM", "FlowMatch")):
        raise ModelError(f"the base model's {name} has no betas: EDM and flow matching cannot be trained")


def is_url(name: str) -> bool:
    """Whether a model's name is the address of a file."""
    return name.lower().startswith(("http://", "https://"))


def _report_fallback(variants: Mapping[str, str | None], wanted: str | None, report: Report) -> None:
    if plain := sorted(component for component, found in variants.items() if found != wanted):
        report(f"base model: no {wanted} weights of {', '.join(plain)}; their plain weights are used")


def _locate_folder(folder: Path, model: Model, report: Report) -> BaseModel:
    if not folder.is_dir():
        raise ModelError(f"the base model {folder} is neither a folder nor a file; check its path")
    family = families.detect(_read_json(folder / INDEX))
    selected, variants = select_files(_files_below(folder), family, model.variant, str(folder))
    _report_fallback(variants, model.variant, report)
    return BaseModel(
        folder=folder, family=family, variants=variants, identity=_content_identity(folder, selected), revision=None
    )


def _locate_url(model: Model, cache_dir: Path, limits: Limits, report: Report) -> BaseModel:
    from .fetch import fetch_file, shown

    address = shown(model.name)
    if Path(urlsplit(address).path).suffix.lower() in _PICKLE_SUFFIXES:
        raise ModelError(f"the base model {address} {_PICKLED}")
    path = fetch_file(
        model.name,
        cache_dir,
        suffix=".safetensors",
        check=lambda part: single_file.inspect(part, address, lambda line: None),
        report=report,
        limits=limits,
    )
    base = _locate_file(path, address, model, report)
    if base.identity != f"sha256:{path.stem}":
        raise ModelError(f"the downloaded base model {path} is damaged; delete it and run again")
    return base


def _locate_file(path: Path, name: str, model: Model, report: Report) -> BaseModel:
    if not path.is_file():
        raise ModelError(f"the base model {path} is not there; check its path")
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        raise ModelError(f"the base model {name} {_PICKLED}")
    file = single_file.inspect(path, name, report)
    family = families.detect({"_class_name": file.layout.pipeline})
    if model.variant or model.revision != "main":
        report("base model: a single file has neither variants nor revisions; model.variant and .revision are ignored")
    try:
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
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


def _locate_on_hub(model: Model, *, pinned: str | None, weights: bool, report: Report) -> BaseModel:
    commit = pinned or hub.resolve_commit(model.name, "model", model.revision)
    report(f"base model {model.name} at commit {commit[:12]}")
    folder = _download(model.name, commit, [INDEX])
    family = families.detect(_read_json(folder / INDEX))
    selected, variants = select_files(_list_files(model.name, commit, folder), family, model.variant, model.name)
    _report_fallback(variants, model.variant, report)
    if not weights:
        selected = [name for name in selected if not name.endswith(".safetensors")]
    _download(model.name, commit, selected)
    return BaseModel(
        folder=folder, family=family, variants=variants, identity=f"{model.name}@{commit}", revision=commit
    )


def _download(name: str, commit: str, files: list[str]) -> Path:
    """The folder of the Hub's cache that holds these files of a repository at a commit."""
    import huggingface_hub

    folder = hub.with_retries(
        lambda: huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=files), f"base model {name!r}"
    )
    return Path(folder)


def _list_files(name: str, commit: str, folder: Path) -> list[str]:
    """A repository's files; with HF_HUB_OFFLINE, those of them that are in the cache."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return _files_below(folder)
    files: list[str] = hub.with_retries(
        lambda: huggingface_hub.HfApi().list_repo_files(name, revision=commit), f"base model {name!r}"
    )
    return files


def _files_below(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def select_files(
    names: Iterable[str], family: families.Entry, variant: str | None, source: str
) -> tuple[list[str], dict[str, str | None]]:
    """The files of a Diffusers folder that training needs, and each weighted component's variant.

    A component that has no weights of the asked-for variant falls back to its plain ones, as in Diffusers.

    Raises:
        ModelError: a component is missing or has no safetensors weights, or none has the variant.
    """
    names = sorted(names)
    selected = [INDEX]
    variants: dict[str, str | None] = {}
    for component in family.components:
        inside = [name for name in names if Path(name).parent.as_posix() == component]
        selected += [name for name in inside if _matches(name, _SIDE_FILES)]
        if not inside:
            raise ModelError(f"the base model {source} has no {component}/; it is incomplete")
        if component not in family.weighted:
            continue
        for candidate in dict.fromkeys((variant, None)):
            weights = [name for name in inside if _is_weight(name, candidate)]
            if weights:
                selected += weights
                variants[component] = candidate
                break
        else:
            raise ModelError(_no_weights(source, component, inside))
    if variant and variant not in variants.values():
        raise ModelError(f"the base model {source} has no {variant} weights: leave model.variant out")
    return selected, variants


def _is_weight(name: str, variant: str | None) -> bool:
    middle = f".{variant}" if variant else ""
    file = Path(name).name
    return any(
        file == f"{stem}{middle}.safetensors" or fnmatch.fnmatchcase(file, f"{stem}{middle}-?????-of-?????.safetensors")
        for stem in _WEIGHT_STEMS
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _no_weights(source: str, component: str, inside: list[str]) -> str:
    if any(_matches(name, _PICKLES) for name in inside):
        return (
            f"the base model {source} has only pickled weights in {component}/, which can run code; "
            "convert it to safetensors (Diffusers: pipe.save_pretrained(folder, safe_serialization=True))"
        )
    variants = sorted(name for name in inside if name.endswith(".safetensors"))
    found = f"; it has {', '.join(variants)}: name that in model.variant" if variants else ""
    return f"the base model {source} has no safetensors weights in {component}/{found}"


def _content_identity(folder: Path, names: list[str]) -> str:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            if not name.endswith(".safetensors"):
                _refuse_large(folder / name)
            return hashlib.file_digest(file, "sha256").hexdigest()

    try:
        with ThreadPoolExecutor() as pool:
            digests = dict(zip(names, pool.map(digest, names), strict=True))
    except OSError as error:
        raise ModelError(f"the base model's file {error.filename} cannot be read ({error.strerror})") from None
    return "sha256:" + hashlib.sha256(canonical_json(digests)).hexdigest()


def _refuse_large(path: Path) -> None:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ModelError(f"the base model's {path} is too large for a configuration; download it again")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        _refuse_large(path)
        value = json.loads(path.read_bytes())
    except OSError:
        raise ModelError(
            f"the base model has no {path.parent.name}/{path.name}; a Diffusers folder is expected"
        ) from None
    except (ValueError, RecursionError):
        raise ModelError(f"the base model's {path} is not JSON; download it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"the base model's {path} is not a JSON object; download it again")
    return value
