"""With gradient checkpointing a training has the bits that it has without."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load as load_tensors

from engine.data.media.geometry import geometry
from engine.models import registry
from engine.models.components.block_inputs import BlockInputs
from engine.models.family import LoadArgs
from engine.task.plan.steps import StepRange
from engine.task.plan.visits import VisitStream
from engine.task.task import Dataset, Lora, Model, Task, TrainArgs
from engine.training.assembly import assemble
from engine.training.encoding.visit_encoder import Example
from engine.training.gradient_checkpointing import recompute_activations
from engine.training.methods import registry as methods
from tests.support import tiny
from tests.support.states import dump_state

CPU = torch.device("cpu")
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}
EVERYTHING = Lora(rank=3, alpha=2, dropout=0.3, use_rslora=True, target_modules=("to_q", "to_v", "conv1", "conv_in"))
WHOLE = "all weights"
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
LOFTQ = Lora(rank=3, init_lora_weights="loftq")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {"sd": tiny.build_sd(root / "sd"), "xl": tiny.build_sdxl(root / "xl")}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(folder, precision, trained=()):
    entry = registry.detect(json.loads((folder / "model_index.json").read_text()))
    variants = dict.fromkeys(entry.weighted)
    dtype = DTYPES[precision]
    trained = frozenset(trained) & variants.keys()
    args = LoadArgs(
        folder=folder,
        variants=variants,
        dtype=dtype,
        float32=trained,
        device=CPU,
        prediction_type="epsilon",
        caption_tokens=75,
    )
    return registry.load(entry, args)


def train(folder, precision, options, *, text=False, recompute, inputs=None):
    """The state after two steps of two micro-batches, and how often one of the denoiser's blocks was computed."""
    args = TrainArgs(batch_size=2, gradient_accumulation_steps=2, resolution=64, train_text_encoder=text)
    task = Task(model=Model(name="m"), dataset=Dataset(name="d"), train_args=args, mixed_precision=precision)
    task = replace(task, training_type="full") if options is WHOLE else replace(task, lora=options)
    step_range = StepRange(num_rows=5, batch_size=2, micro_batches=2, start_step=0, stop_step=2, max_steps=2)
    family, calls = load(folder, precision, COMPONENTS if options is WHOLE else ()), []
    family.denoiser.mid_block.resnets[1].register_forward_pre_hook(lambda *_: calls.append(1))
    trainable = methods.attach(family, task, CPU, start=None, warm_start=None)
    trainer = assemble(task, step_range, family, trainable, CPU)
    if recompute:
        recompute_activations(family.denoiser, inputs)
    stream = VisitStream(seed=0, num_rows=5, random_flip=False, num_train_timesteps=1000)
    view = geometry((80, 72), target=(64, 64), center_crop=True, crop_words=(0, 0), flip=False)
    moments = {"mean": torch.linspace(-1, 1, 256).reshape(4, 8, 8), "logvar": torch.full((4, 8, 8), -3.0)}
    for step in range(2):
        examples = []
        for visit in stream.visits(step * 4, 4):
            caption = f"a picture of {visit.sample}"
            known = {} if text else family.encode_caption(caption)
            tokens = family.tokenize(caption) if text else {}
            examples.append(Example(visit, moments, known | family.place(view), tokens))
        trainer.train_step(examples)
    return dump_state(trainer.state()), len(calls)


def name_in_file(name):
    return name if name.startswith("text_model.") else f"text_model.{name}"


CASES = [
    ("sd", "no", Lora(rank=3), False),
    ("sd", "bf16", EVERYTHING, True),
    ("sd", "no", LOFTQ, False),
    ("xl", "bf16", Lora(rank=3), False),
    ("xl", "no", EVERYTHING, True),
    ("sd", "bf16", WHOLE, True),
    ("xl", "no", WHOLE, True),
]


@pytest.mark.parametrize("family, precision, options, text", CASES)
def test_the_bits_do_not_depend_on_it(folders, family, precision, options, text):
    plain, calls = train(folders[family], precision, options, text=text, recompute=False)
    saving, more_calls = train(folders[family], precision, options, text=text, recompute=True)
    assert plain == saving
    assert (calls, more_calls) == (4, 8)


@pytest.mark.slow
@pytest.mark.parametrize("family, precision, options, text", CASES)
def test_nor_on_where_the_inputs_of_blocks_are(folders, family, precision, options, text):
    kept, offloaded = (
        train(folders[family], precision, options, text=text, recompute=True, inputs=inputs)
        for inputs in (None, BlockInputs(CPU))
    )
    assert kept == offloaded


def test_the_last_layer_of_an_xl_text_encoder_is_left_as_it_is(folders):
    """Its output is not used: no gradient, and no decay of its weights either."""
    (data, _), _ = train(folders["xl"], "no", WHOLE, text=True, recompute=False)
    found, family = load_tensors(data), load(folders["xl"], "no")
    before = {name_in_file(name): value for name, value in family.parts["text_encoder"].named_parameters()}
    changed = {name: not torch.equal(found[f"adapter.text_encoder.{name}"], value) for name, value in before.items()}
    last = [name for name in changed if ".layers.1." in name or "final_layer_norm" in name]
    assert last and not any(changed[name] for name in last)
    assert changed["text_model.encoder.layers.0.mlp.fc1.weight"]
    assert not any(found[f"exp_avg.text_encoder.{name}"].any() for name in last)


def test_without_gradients_nothing_is_computed_again(folders):
    family = load(folders["sd"], "no")
    recompute_activations(family.denoiser)
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 77, tiny.HIDDEN)
    with torch.no_grad():
        assert not family.denoiser(sample, 3, states).sample.requires_grad


def test_the_global_generator_is_left_alone(folders):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    train(folders["sd"], "no", EVERYTHING, recompute=True)
    assert torch.equal(torch.get_rng_state(), before)
