"""A training method in one file: a vector that is added to the output of each of the denoiser's attentions."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from safetensors.torch import load, save

from engine.core.errors import CheckpointError, NonFiniteError
from engine.models.parts.tape import AdapterTape
from engine.results.report.words import Words
from engine.training.methods.distances import Distances
from engine.training.methods.method import MethodSpec

FILE = "biases.safetensors"
END = ".to_out.0"


def find_start(folder, names):
    if FILE not in names:
        raise CheckpointError(f"{folder} has no {FILE}")
    return [FILE]


def tapes(family, task, value_bytes, norm_bytes):
    """As if each vector were a LoRA of rank 1."""
    tape = AdapterTape(is_adapted=lambda name: name.endswith(END), rank=1, width=value_bytes, norm_width=norm_bytes)
    return tape, replace(tape, is_adapted=lambda name: False)


def distances(one, other):
    left, right = (load((folder / FILE).read_bytes()) for folder in (one, other))
    return Distances(
        apart={name: float((left[name] - right[name]).norm()) for name in left},
        norms={name: max(float(biases[name].norm()) for biases in (left, right)) for name in left},
        unit="bias",
        scale="0: equal",
    )


TOY_METHOD = MethodSpec(
    module=__name__,
    words=Words(
        noun="a set of biases",
        many="biases",
        new="biases of zero",
        trained="the biases",
        title="Bias training",
        event="biases",
    ),
    reads=(),
    usual_rate=None,
    main_file=FILE,
    step_ending={FILE: "_biases.safetensors"}.get,
    is_step_ending=lambda ending: ending == "_biases.safetensors",
    is_complete=lambda names: FILE in names,
    is_in=lambda folder: (folder / FILE).exists(),
    distances=distances,
    published=None,
    trained_weights=lambda family, task: (),
    invariants=lambda family, task: {"biases_of": "attention"},
    find_start=find_start,
    check=lambda base, task, warm_start: [],
    notes=lambda task, warm_start: [],
    needs_original_weights=lambda task: None,
    is_whole_model=False,
    tapes=tapes,
    smaller=lambda task: iter(()),
    lighter=None,
    copies=lambda task: 1,
    hub_tags=("biases",),
    relation="adapter",
    usage=lambda about, image: f"Load `{FILE}`.",
    published_bytes=lambda task: 4,
)


class Biases:
    """The vectors while they are trained."""

    def __init__(self, layers, device):
        self.parameters = {
            f"{name}.added": torch.nn.Parameter(torch.zeros(layer.out_features, device=device))
            for name, layer in sorted(layers.items())
        }
        self.groups = [self.parameters]
        self.start = {}
        self.is_whole_model = False
        self._is_on = True
        for name, layer in layers.items():
            layer.register_forward_hook(self._adding(self.parameters[f"{name}.added"]))

    def _adding(self, bias):
        return lambda layer, inputs, output: output + bias.to(output.dtype) if self._is_on else output

    def state(self):
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def restore(self, trained):
        if trained.keys() != self.parameters.keys():
            raise CheckpointError("the checkpoint's biases are of other layers")
        for name, parameter in self.parameters.items():
            if trained[name].shape != parameter.shape:
                raise CheckpointError(f"the checkpoint's bias of {name} has another size")
            parameter.copy_(trained[name])

    def step(self):
        return nullcontext(list(self.parameters.values()))

    def refresh(self):
        pass

    def micro_batch(self, address):
        return nullcontext()

    @contextmanager
    def baseline(self):
        self._is_on = False
        yield
        self._is_on = True

    def require_finite(self, step):
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters.values()):
            raise NonFiniteError(f"a bias is not finite after step {step}")

    def export(self, about):
        return {FILE: save({name: tensor.cpu() for name, tensor in self.state().items()})}


def attach(family, task, device, *, start, warm_start):
    family.denoiser.requires_grad_(False)
    layers = {name: layer for name, layer in family.denoiser.named_modules() if name.endswith(END)}
    biases = Biases(layers, device)
    if warm_start:
        biases.restore(load(warm_start.content(FILE)))
    return biases
