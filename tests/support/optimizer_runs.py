"""Optimizers on random gradients, beside a formula in float64."""

import torch

from engine.task.task import AdamArgs, TrainArgs
from engine.training.optimizers import registry


def alone(values, length):
    """What `Gradients.total` gives in the only process."""
    return torch.stack([values[name] for name in sorted(values)]).sum(dim=0)


def make(name, groups, *, whole=False, total=alone, **options):
    """The optimizer of a row, with `train_args.adam_args`."""
    args = TrainArgs(optimizer=name, adam_args=AdamArgs(**options))
    return registry.make(groups, args, is_whole_model=whole, total=total)


def parameters(*shapes, seed=0):
    """Float32 parameters by name: a, b, …"""
    draw = torch.Generator().manual_seed(seed)
    return {chr(97 + k): torch.nn.Parameter(torch.randn(shape, generator=draw)) for k, shape in enumerate(shapes)}


def gradients(named, step):
    draw = torch.Generator().manual_seed(1000 + step)
    return {name: torch.randn(parameter.shape, generator=draw) for name, parameter in named.items()}


def doubles(named):
    return {name: parameter.detach().double() for name, parameter in named.items()}


def assert_near(named, exact, **tolerances):
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.detach().double(), exact[name], **tolerances)
