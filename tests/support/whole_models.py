"""A training of a whole model of a few small tensors, one of them unused, in one process or several."""

import contextlib

import torch

from engine.results.safetensors_file import Source
from engine.results.state import flatten_state, parse_state
from tests.support.fakes import LinearFamily, PlainTrainable
from tests.unit.training.test_trainer import Run

UNUSED = "unet.unused.weight"


class LayeredFamily(LinearFamily):
    """Layers of several sizes, computing in `dtype`."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        sizes = {"first": (11, 4), "second": (7, 11), "last": (4, 7), "unused": (3, 3)}
        self.denoiser = torch.nn.ModuleDict()
        for name, size in sizes.items():
            layer = torch.nn.Linear(size[1], size[0])
            for parameter in layer.parameters():
                parameter.data = torch.randn(parameter.shape, generator=draw).to(dtype)
            self.denoiser[name] = layer
        self.dtype = dtype

    def loss(self, batch, options):
        hidden = batch.latents + batch.noise * (1 + batch.timesteps[:, None]) / 1000
        hidden = hidden.to(self.dtype)
        for name in ("first", "second", "last"):
            hidden = torch.tanh(self.denoiser[name](hidden))
        hidden = hidden.float() + 0.001 * batch.conditioning["states"].mean()
        return (hidden - batch.noise).square().mean() * next(self.loss_factors, 1.0)


class WholeTrainable(PlainTrainable):
    """Float32 masters of the layers' weights, which are rounded after each update."""

    def __init__(self, family):
        self.layers = {f"unet.{name}": layer for name, layer in sorted(family.denoiser.named_parameters())}
        masters = {name: torch.nn.Parameter(layer.detach().float().clone()) for name, layer in self.layers.items()}
        super().__init__(masters, [masters], is_whole_model=True)

    def restore(self, state):
        super().restore(state)
        self.refresh()

    def refresh(self):
        for name, layer in self.layers.items():
            layer.data.copy_(self.parameters[name])

    def step(self):
        return contextlib.nullcontext(list(self.layers.values()))


class WholeRun(Run):
    """A trainer of a whole model with all its parts."""

    dtype = torch.float32

    def model(self):
        family = LayeredFamily(self.dtype)
        return family, WholeTrainable(family)

    def saved(self):
        """The state as the first process saves it, read by all: its tensors by their names in the file, the rest."""
        tensors, scalars = flatten_state(self.trainer.state())
        read = {name: one.read() if isinstance(one, Source) else one for name, one in sorted(tensors.items())}
        return {name: tensor.detach().clone() for name, tensor in read.items()}, scalars


class Run16(WholeRun):
    dtype = torch.bfloat16


def same(one, other):
    """Whether two values of `saved` are equal."""
    return one[1] == other[1] and one[0].keys() == other[0].keys() and all(map(torch.equal, *both(one, other)))


def both(one, other):
    return [one[0][name] for name in one[0]], [other[0][name] for name in one[0]]


def restored(saved):
    """What a checkpoint gives back of a `saved`."""
    return parse_state({name: tensor.clone() for name, tensor in saved[0].items()}, saved[1])
