"""Find the base model that a checkpoint was trained on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from engine.core.console import say
from engine.core.errors import ModelError, TaskError
from engine.core.limits import Limits
from engine.core.messages import listing
from engine.models.base_model import BaseModel
from engine.models.components import locating
from engine.models.components.files import is_url
from engine.results.checkpoint import Checkpoint
from engine.results.output.job_record import object_at
from engine.task.keys.model import Variant
from engine.task.paths import local_or_hub
from engine.task.settings import cache_dir
from engine.task.task import Component, Model


def base_of(flags: argparse.Namespace, environment: Mapping[str, str], checkpoint: Checkpoint) -> BaseModel:
    """Return the base model of the training, whose weights are all on disk.

    Args:
        flags: those of `export`: `base`, `component`, `cache_dir`.
        environment: environment variables, for the settings of downloads.
        checkpoint: the training's.

    Raises:
        ModelError: it is not named, not found, or another one than in the training.
    """
    wanted = str(checkpoint.manifest["base_model"].get("identity"))
    elsewhere = object_at(checkpoint.manifest, "base_model", "components")
    name, revision = _named(flags.base, wanted)
    components = _components(flags.component, elsewhere)
    variants = {key: value for key, value in (checkpoint.world.get("variants") or {}).items() if key not in components}
    variant = next((value for _, value in sorted(variants.items()) if value), None)
    base = locating.locate(
        Model(name=name, variant=variant, revision=revision, components=components),
        pinned=revision if f"{name}@{revision}" == wanted else None,
        weights=True,
        report=say,
        cache_dir=cache_dir(flags, environment),
        limits=Limits.from_environment(environment),
    )
    if base.identity != wanted:
        raise ModelError(
            f"--base {name} is {base.identity}, but the checkpoint was trained on {wanted}: {_advice(wanted, variants)}"
        )
    for part, identity in base.identities.items():
        if identity != elsewhere[part].get("identity"):
            raise ModelError(
                f"the {part} from {components[part].name} is {identity}, but the checkpoint was trained with "
                f"{elsewhere[part].get('identity')}: name the task's own with --component {part}=PATH"
            )
    return base


def _components(given: Sequence[str], elsewhere: Mapping[str, Any]) -> dict[str, Component]:
    """Return the components of the training that came from elsewhere: as given, else as the checkpoint names them.

    Args:
        given: the values of --component.
        elsewhere: what the checkpoint's manifest, which is untrusted, records of them.

    Raises:
        TaskError: something else is given.
        ModelError: a local one is not given, or the checkpoint does not name one.
    """
    places = dict(one.split("=", 1) for one in given if "=" in one)
    if unknown := sorted({one.partition("=")[0] for one in given} - {name for name in places if name in elsewhere}):
        known = listing(sorted(elsewhere), most=20) or "none"
        raise TaskError(f"--component {unknown[0]}: expected NAME=WHERE, where NAME is one of the training's: {known}")
    found: dict[str, Component] = {}
    for name in sorted(elsewhere):
        one = object_at(elsewhere, name)
        own, commit = (one.get(key) if isinstance(one.get(key), str) else None for key in ("name", "revision"))
        if name not in places and not (own and commit):
            raise ModelError(
                f"the checkpoint was trained with a local {name}, which has to be named: add --component {name}=PATH "
                f"(its content is {one.get('identity')})"
            )
        place = local_or_hub(places[name], Path.cwd()) if name in places else str(own)
        subfolder, variant = one.get("subfolder"), one.get("variant")
        found[name] = Component(
            name=place,
            subfolder=subfolder if isinstance(subfolder, str) else None,
            variant=variant if variant in get_args(Variant) else None,
            revision=commit or "main",
        )
    return found


def _named(given: str | None, wanted: str) -> tuple[str, str]:
    """Return the base model's name and revision: as given, else as the checkpoint names them.

    Raises:
        ModelError: nothing is given, and the checkpoint names none that can be found.
    """
    identity, _, commit = wanted.partition("@")
    if given is None:
        if not commit:
            raise ModelError(
                "the checkpoint was trained on a local base model, which has to be named: add --base with the folder "
                f"or the .safetensors file that was the task's model.name (its content is {wanted})"
            )
        return identity, commit
    name = local_or_hub(given, Path.cwd())
    if Path(name).is_absolute() or is_url(name):
        return name, "main"
    name, _, revision = name.partition("@")
    # Without a revision, the commit of the training: a branch may have moved since.
    return name, revision or (commit if name == identity else "main")


def _advice(wanted: str, variants: Mapping[str, Any]) -> str:
    if not wanted.startswith("sha256:"):
        return f"leave --base out, or write --base {wanted}"
    what = "folder with these very files" if variants else "file with this SHA-256"
    return f"name the {what}, the task's model.name"
