"""Facts about a training for published files, without a model."""

from types import SimpleNamespace

from engine.models.families.sd.spec import SPEC
from engine.task.plan.timesteps import Timesteps
from engine.task.task import Dataset, Model, Task, TrainArgs
from engine.training.methods.method import About

COMMIT = "a" * 40
TAGS = {"1_images": {"a cat": 3, "sks": 2}}
CONFIGS = {
    "unet": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768},
    "text_encoder": {"architectures": ["CLIPTextModel"]},
}


def base_of(identity=f"org/model@{COMMIT}", *, spec=SPEC, configs=CONFIGS, **changes):
    """A base model on the Hub, or another one by its identity."""
    values = {
        "family": spec,
        "identity": identity,
        "revision": identity.partition("@")[2] or None,
        "variants": {},
        "absent": frozenset(),
        "single_file": None,
        "elsewhere": {},
        "num_train_timesteps": 1000,
        "timesteps": lambda args: Timesteps.of(args, 1000),
        "config": lambda component: configs[component],
    }
    return SimpleNamespace(**values | changes)


def task_of(trigger_word=None, dataset=None, train_args=None, **changes):
    args = {"batch_size": 2, "max_train_steps": 20, **(train_args or {})}
    return Task(
        model=Model(name="org/model"),
        dataset=Dataset(name="d", trigger_word=trigger_word, **(dataset or {})),
        train_args=TrainArgs(**args),
        **changes,
    )


def about_of(base=None, task=None, **changes):
    values = {
        "base": base or base_of(),
        "task": task or task_of(),
        "prediction_type": "epsilon",
        "global_step": 9,
        "max_steps": 20,
        "micro_batches": 3,
        "num_images": 10,
        "count_tags": lambda: TAGS,
    }
    return About(**values | changes)
