"""Reading environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engine.core.errors import TaskError

LAUNCHED: Final = "SD_LORA_TASK_LAUNCHED"
"""Set by `launch.py` for the processes it starts: they divide the task's own gradient accumulation among them."""
EXIT_CODES: Final = "SD_LORA_TASK_EXIT_CODES"
"""Set by our launchers for the processes they start: the folder where each writes its exit code."""
IN_IMAGE: Final = "SD_LORA_TASK_IN_IMAGE"
"""Set in the container image, where files outside mounts are lost."""


def int_variable(env: Mapping[str, str], name: str, *, default: int, least: int) -> int:
    """An environment variable that holds a whole number, `default` when absent or empty.

    Raises:
        TaskError: something else is in it, or a smaller number than `least`.
    """
    text = env.get(name) or str(default)
    if not (text.isascii() and text.isdigit()) or len(text) > 4000 or int(text) < least:
        raise TaskError(f"{name} is {text!r}: expected a whole number of at least {least}")
    return int(text)


def flag_variable(env: Mapping[str, str], name: str) -> bool:
    """Return whether an environment variable is 1; not when it is 0, empty or absent.

    Raises:
        TaskError: something else is in it.
    """
    text = env.get(name) or "0"
    if text not in ("0", "1"):
        raise TaskError(f"{name} is {text!r}: expected 1, 0 or nothing")
    return text == "1"


@dataclass(frozen=True, slots=True)
class Place:
    """This process's rank among the processes of its job, as torchrun sets it."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """The rank on this machine, which selects the GPU."""
    shares_task: bool = False
    """Started by `launch.py`: the processes divide the task's own gradient accumulation instead of multiplying it."""

    @property
    def is_first(self) -> bool:
        """Return True for rank 0, which writes, logs and publishes."""
        return self.rank == 0

    @property
    def num_here(self) -> int:
        """The number of processes known to be on this machine; torchrun may use several machines."""
        return self.world_size if self.shares_task else 1

    @property
    def multiplier(self) -> int:
        """The factor by which the task's `gradient_accumulation_steps` is multiplied to get K."""
        return 1 if self.shares_task else self.world_size


def read_place(environment: Mapping[str, str]) -> Place:
    """Read this process's place from RANK, WORLD_SIZE and LOCAL_RANK.

    Raises:
        TaskError: they contradict each other, or do not say where the processes meet.
    """
    env = {name: value for name, value in environment.items() if value}
    world_size = int_variable(env, "WORLD_SIZE", default=1, least=1)
    if world_size == 1:
        return Place()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]
    if missing:
        raise TaskError(
            f"WORLD_SIZE is {world_size}, but {' and '.join(missing)} is not set; start the processes with torchrun, "
            "or unset WORLD_SIZE"
        )
    rank = int_variable(env, "RANK", default=0, least=0)
    if rank >= world_size:
        raise TaskError(f"RANK is {rank}: expected less than WORLD_SIZE, {world_size}")
    if not 0 < int_variable(env, "MASTER_PORT", default=1, least=0) < 65536:
        raise TaskError(f"MASTER_PORT is {env['MASTER_PORT']}: expected a port between 1 and 65535")
    local_rank = int_variable(env, "LOCAL_RANK", default=rank, least=0)
    return Place(rank, world_size, local_rank, shares_task=LAUNCHED in env)
