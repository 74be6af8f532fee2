"""A base model whose files are on disk: its family, its identity, where its parts lie. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.models.components.place import Place
from engine.models.components.search import Elsewhere
from engine.models.configs import SCHEDULER_FILE
from engine.models.objectives.objective import ObjectiveSpec, TargetType
from engine.models.objectives.registry import OBJECTIVES
from engine.models.single_file import SingleFile
from engine.models.spec import FamilySpec
from engine.task.plan.extent import latent_frames
from engine.task.plan.timesteps import Timesteps
from engine.task.task import TimestepSampling, TrainArgs


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
    elsewhere: Mapping[str, Elsewhere] = field(default_factory=dict)
    """The components that come from elsewhere, by name. `identity` is that of the others."""

    def has(self, component: str) -> bool:
        """Return whether the model has a component of its family, which may be optional."""
        return component not in self.absent

    def config(self, component: str, name: str = "config.json") -> dict[str, Any]:
        """Return one of a component's JSON files; {} for an optional one that it does not have. Raises ModelError."""
        if not self.has(component):
            return {}
        return self.place(component).config(name)

    def place(self, component: str) -> Place:
        """Return where a component lies."""
        if component in self.elsewhere:
            return self.elsewhere[component].place
        return Place(component=component, folder=self.folder / component, single_file=self.single_file)

    @property
    def places(self) -> dict[str, Place]:
        """The places of the components that come from elsewhere, by name."""
        return {name: found.place for name, found in self.elsewhere.items()}

    @property
    def identities(self) -> dict[str, str]:
        """The identities of the components that come from elsewhere, by name."""
        return {name: found.identity for name, found in self.elsewhere.items()}

    @property
    def objective(self) -> ObjectiveSpec:
        """The row of the family's training objective."""
        return OBJECTIVES[self.family.objective]

    def check_task(self, args: TrainArgs, prediction_type: TargetType) -> None:
        """Raise TaskError for keys that do not fit the objective, what is predicted, or the model's scheduler."""
        self.objective.check_task(args, prediction_type, self.family.pipeline, self.config("scheduler", SCHEDULER_FILE))

    @property
    def prediction_type(self) -> TargetType:
        """The quantity that the model predicts, from its scheduler's configuration. Raises ModelError."""
        return self.objective.prediction_type(self.config("scheduler", SCHEDULER_FILE))

    @property
    def num_train_timesteps(self) -> int:
        """The number of timesteps of the noise schedule. Raises ModelError."""
        return self.objective.num_train_timesteps(self.config("scheduler", SCHEDULER_FILE))

    @property
    def drawing_steps(self) -> range:
        """The numbers of denoising steps in which the model's scheduler can draw. Raises ModelError."""
        return self.objective.drawing_steps(self.config("scheduler", SCHEDULER_FILE))

    def timestep_sampling(self, args: TrainArgs) -> TimestepSampling | None:
        """Return how timesteps are sampled: as the task says, or as is usual for the family."""
        return args.timestep_sampling or self.family.usual_sampling

    def describe_noise(self, args: TrainArgs) -> str | None:
        """Return how noise levels follow from timesteps; None if no key of a task changes that. Raises ModelError."""
        describe = self.objective.describe_noise
        frames = latent_frames(args.num_frames, self.family.frame_step)
        tokens = frames * (args.resolution // self.family.token_side) ** 2
        return describe(self.config("scheduler", SCHEDULER_FILE), args, tokens) if describe else None

    def timesteps(self, args: TrainArgs) -> Timesteps:
        """Return the timesteps that a task draws. Raises TaskError if it leaves none."""
        resolved = replace(args, timestep_sampling=self.timestep_sampling(args))
        return self.objective.timesteps(resolved, self.num_train_timesteps)
