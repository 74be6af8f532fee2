"""The adapter on a real tiny UNet."""

import copy
import math
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from transformers import CLIPTextModelWithProjection

from engine.core.errors import CheckpointError, TaskError
from engine.models.families.sdxl.spec import SPEC
from engine.task.task import Lora
from engine.training.methods.lora import adapter as lora_module
from engine.training.methods.lora import loftq
from engine.training.methods.lora.formats.files import diffusers_state
from engine.training.methods.lora.targets import find_targets
from tests.support import tiny
from tests.support.tolerance import assert_equal_but_for_rounding, depth

RANK = 4
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "to_q", "to_out.0")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tiny.build_sd(tmp_path_factory.mktemp("model"))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def unet(pipeline):
    return copy.deepcopy(pipeline.unet)


def attach(unet, lora, seed, **options):
    """The adapter of a UNet alone."""
    return lora_module.attach({"unet": unet}, lora, seed, spec=SPEC, **options)


def randomise(adapter, seed=0, size=0.1):
    """Stand in for training: every tensor moves a little."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters.values():
        parameter.data += torch.randn(parameter.shape, generator=draw) * size
    return adapter


@torch.no_grad()
def predict(unet):
    draw = torch.Generator().manual_seed(5)
    sample, states = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 77, 32, generator=draw)
    return unet(sample, torch.tensor([10, 700]), states).sample


# ------------------------------------------------------------------------------------------------------- attaching


class TestAttach:
    def test_only_the_adapter_is_trained_in_float32(self, unet):
        unet.to(torch.float16)
        adapter = attach(unet, Lora(rank=RANK), 0)
        trained = {id(parameter) for parameter in adapter.parameters.values()}
        for parameter in unet.parameters():
            assert parameter.requires_grad == (id(parameter) in trained)
            assert parameter.dtype == (torch.float32 if id(parameter) in trained else torch.float16)

    def test_names_are_sorted_and_free_of_pefts_additions(self, unet):
        modules = find_targets(unet, ATTENTION)
        names = list(attach(unet, Lora(rank=RANK), 0).parameters)
        assert names == sorted(
            f"unet.{module}.{matrix}.weight" for module in modules for matrix in ("lora_A", "lora_B")
        )

    def test_adapts_the_targets_alone_at_scale_one(self, unet):
        attach(unet, Lora(rank=3, target_modules="conv_in|mid_block.*to_k"), 0)
        adapted = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
        assert len(adapted) == 3 and "conv_in" in adapted
        assert all(layer.scaling == {"default": 1.0} and layer.r == {"default": 3} for layer in adapted.values())

    def test_before_training_nothing_changes(self, pipeline, unet):
        for init in (True, "gaussian"):
            attached = copy.deepcopy(unet)
            attach(attached, Lora(rank=RANK, init_lora_weights=init, target_modules=CONVOLUTIONS), 0)
            assert torch.equal(predict(attached), predict(pipeline.unet))

    def test_gradients_reach_every_parameter(self, unet):
        adapter = randomise(attach(unet, Lora(rank=RANK, target_modules=CONVOLUTIONS), 0))
        unet(torch.randn(1, 4, 8, 8), 10, torch.randn(1, 77, 32)).sample.sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in adapter.parameters.values())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_gradients_are_float32_on_any_base(self, unet, dtype):
        adapter = randomise(attach(unet.to(dtype), Lora(rank=RANK), 0))
        sample, states = torch.randn(1, 4, 8, 8, dtype=dtype), torch.randn(1, 77, 32, dtype=dtype)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            unet(sample, 10, states).sample.float().square().mean().backward()
        for parameter in adapter.parameters.values():
            assert parameter.grad.dtype == torch.float32 and torch.isfinite(parameter.grad).all()


class TestInit:
    @pytest.fixture(params=[True, False, "gaussian", "loftq"])
    def kind(self, request):
        return request.param

    def test_the_global_generator_neither_matters_nor_moves(self, unet, kind):
        lora = Lora(rank=RANK, init_lora_weights=kind, target_modules=CONVOLUTIONS)
        states = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            states.append(attach(copy.deepcopy(unet), lora, 7).state())
            assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_neither_do_the_order_and_number_of_targets(self, unet, kind):
        def state(*targets):
            lora = Lora(rank=RANK, init_lora_weights=kind, target_modules=targets)
            return attach(copy.deepcopy(unet), lora, 7).state()

        one, other, fewer = state("conv1", *ATTENTION), state(*ATTENTION[::-1], "conv1"), state("to_q")
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert all(torch.equal(one[name], fewer[name]) for name in fewer)

    def test_the_seed_and_the_name_matter(self, unet):
        states = [attach(copy.deepcopy(unet), Lora(rank=RANK), seed).state() for seed in (0, 1)]
        downs = [tensor for state in states for name, tensor in state.items() if "lora_A" in name]
        assert len({tensor.numpy().tobytes() for tensor in downs}) == len(downs)

    @pytest.mark.parametrize("kind, up_is_zero", [(True, True), (False, False)])
    def test_uniform_within_the_inverse_root_of_the_inputs(self, unet, kind, up_is_zero):
        adapter = attach(unet, Lora(rank=8, init_lora_weights=kind, target_modules=CONVOLUTIONS), 0)
        for name, tensor in adapter.state().items():
            if name.endswith("lora_B.weight") and up_is_zero:
                assert not tensor.any()
                continue
            bound = 1 / math.sqrt(tensor[0].numel())
            assert 0.9 * bound < tensor.abs().max() <= bound, name
            assert tensor.std() == pytest.approx(bound / math.sqrt(3), rel=0.2)
            assert abs(tensor.mean()) < 0.3 * bound

    def test_uniform_has_pefts_statistics(self, unet):
        """PEFT's own draw of the same kind, for the largest layers: same bounds, same spread."""
        for kind in (True, False):
            attached = copy.deepcopy(unet)
            ours = attach(attached, Lora(rank=64, init_lora_weights=kind, target_modules=("conv1",)), 0).state()
            layer = next(module for module in attached.modules() if isinstance(module, LoraLayer))
            theirs = type(layer)(layer.get_base_layer(), "x", _peft_config(kind), r=64, lora_alpha=64)
            for matrix in ("lora_A", "lora_B"):
                mine = next(
                    ours[name] for name in ours if matrix in name and ours[name].shape == _weight(theirs, matrix).shape
                )
                assert mine.std() == pytest.approx(_weight(theirs, matrix).std().item(), rel=0.05)

    def test_gaussian_has_the_inverse_rank_as_deviation(self, unet):
        adapter = attach(unet, Lora(rank=8, init_lora_weights="gaussian", target_modules=CONVOLUTIONS), 0)
        downs = torch.cat([p.detach().flatten() for name, p in adapter.parameters.items() if "lora_A" in name])
        assert downs.std() == pytest.approx(1 / 8, rel=0.02)
        assert abs(downs.mean()) < 0.002
        assert (downs.abs() > 2 / 8).float().mean() == pytest.approx(0.0455, abs=0.005)
        assert not any(p.any() for name, p in adapter.parameters.items() if "lora_B" in name)


def _peft_config(kind):
    return lora_module.LoraConfig(r=64, lora_alpha=64, init_lora_weights=kind)


def _weight(layer, matrix):
    return getattr(layer, matrix)["x"].weight


# ------------------------------------------------------------------------------------------------------- state


class TestState:
    def test_there_and_back(self, unet):
        first = randomise(attach(copy.deepcopy(unet), Lora(rank=RANK), 0))
        second = attach(unet, Lora(rank=RANK), 1)
        state = first.state()
        second.restore(state)
        assert all(torch.equal(second.parameters[name], first.parameters[name]) for name in state)
        second.parameters[next(iter(state))].data.zero_()
        assert state[next(iter(state))].any(), "what is restored shares memory with the adapter"

    def test_differences_are_named(self, unet):
        adapter = attach(unet, Lora(rank=RANK), 0)
        state = adapter.state()
        first, last = min(state), max(state)
        with pytest.raises(CheckpointError, match=f"has no {last}"):
            adapter.restore({name: tensor for name, tensor in state.items() if name != last})
        with pytest.raises(CheckpointError, match=r"has unet\.z\.lora_A\.weight"):
            adapter.restore(state | {"unet.z.lora_A.weight": torch.zeros(1)})
        with pytest.raises(CheckpointError, match=rf"another model: {first} is \(4, 3\)"):
            adapter.restore(state | {first: torch.zeros(4, 3)})

    @pytest.mark.parametrize("targets", [ATTENTION, ("conv1",)])
    def test_another_rank_names_both(self, unet, targets):
        smaller = attach(copy.deepcopy(unet), Lora(rank=2, target_modules=targets), 0)
        larger = attach(unet, Lora(rank=8, target_modules=targets), 0)
        with pytest.raises(CheckpointError, match=r"rank 2, but lora\.rank is 8") as caught:
            larger.restore(smaller.state())
        assert caught.value.code == 5


# ------------------------------------------------------------------------------------------------------- strength


class TestStrength:
    @pytest.mark.parametrize(
        "lora, strength",
        [
            (Lora(rank=4), 1.0),
            (Lora(rank=4, alpha=4), 1.0),
            (Lora(rank=4, alpha=2), 0.5),
            (Lora(rank=4, alpha=0.3), 0.075),
            (Lora(rank=4, use_rslora=True), 2.0),
            (Lora(rank=9, alpha=6, use_rslora=True), 2.0),
        ],
    )
    def test_every_layer_has_it(self, unet, lora, strength):
        adapter = attach(unet, replace(lora, target_modules=CONVOLUTIONS), 0)
        assert adapter.strength == pytest.approx(strength, rel=1e-15)
        layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
        assert {layer.scaling["default"] for layer in layers} == {adapter.strength}
        assert {type(layer.get_base_layer()) for layer in layers} >= {torch.nn.Linear, torch.nn.Conv2d}

    @pytest.mark.parametrize("lora", [Lora(rank=RANK, alpha=2), Lora(rank=RANK, alpha=6, use_rslora=True)])
    def test_a_warm_start_acts_as_the_file_did(self, unet, lora):
        plain, scaled = copy.deepcopy(unet), unet
        file = randomise(attach(plain, Lora(rank=RANK), 0)).state()
        attach(scaled, lora, 1).warm_start(file)
        assert_equal_but_for_rounding(predict(scaled), predict(plain), operations=depth(plain))

    def test_loftq_makes_up_for_the_quantisation_at_any_strength(self, pipeline, unet):
        adapter = attach(unet, Lora(rank=RANK, alpha=1, init_lora_weights="loftq"), 0)
        for module, layer in find_targets(pipeline.unet, SPEC.lora_targets).items():
            wrapped = unet.get_submodule(module)
            lost = (wrapped.get_base_layer().weight - layer.weight).norm()
            left = (wrapped.get_base_layer().weight + wrapped.get_delta_weight("default") - layer.weight).norm()
            assert left < lost
        plain = attach(copy.deepcopy(pipeline.unet), Lora(rank=RANK, init_lora_weights="loftq"), 0)
        for name, tensor in adapter.initial.items():
            assert torch.equal(tensor, plain.initial[name] * (4 if "lora_B" in name else 1))


class TestDropout:
    LORA = Lora(rank=RANK, dropout=0.5, target_modules=CONVOLUTIONS)

    def test_none_is_left_to_peft(self, unet):
        attach(unet, Lora(rank=RANK), 0)
        layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
        assert {type(layer.lora_dropout["default"]) for layer in layers} == {torch.nn.Identity}

    def test_it_acts_on_the_adapter_alone_and_within_a_micro_batch_alone(self, unet):
        adapter = attach(unet, self.LORA, 0)
        bare = predict(unet)
        with adapter.dropping.at(3):
            assert torch.equal(predict(unet), bare), "B is zero: whatever is dropped, nothing changes"
        randomise(adapter)
        whole = predict(unet)
        with adapter.dropping.at(3):
            first = predict(unet)
            assert torch.equal(predict(unet), first)
        with adapter.dropping.at(4):
            assert not torch.equal(predict(unet), first)
        assert not torch.equal(first, whole) and torch.equal(predict(unet), whole)

    def test_the_seed_matters_and_every_layer_has_its_own(self, unet):
        streams = {}
        for seed in (0, 1):
            attached = copy.deepcopy(unet)
            attach(attached, self.LORA, seed)
            layers = [module for module in attached.modules() if isinstance(module, LoraLayer)]
            streams[seed] = [
                (layer.lora_dropout["default"]._seed, layer.lora_dropout["default"]._stream) for layer in layers
            ]
        assert len(set(streams[0] + streams[1])) == 2 * len(streams[0])
        assert ("lora dropout/unet.mid_block.resnets.0.conv1") in {stream for _, stream in streams[0]}


# --------------------------------------------------------------------------------------------------- text encoders


class TestTextEncoder:
    @pytest.fixture
    def parts(self, pipeline, unet):
        return {"unet": unet, "text_encoder": copy.deepcopy(pipeline.text_encoder)}

    def test_its_projections_are_adapted_by_the_names_of_files(self, parts):
        adapter = lora_module.attach(parts, Lora(rank=2, alpha=1, target_modules=("to_q",)), 0, spec=SPEC)
        own = [name for name in adapter.parameters if name.startswith("text_encoder.")]
        assert own == sorted(
            f"text_encoder.text_model.encoder.layers.{k}.self_attn.{projection}.{matrix}.weight"
            for k in range(2)
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj")
            for matrix in ("lora_A", "lora_B")
        )
        assert all(".to_q." in name for name in adapter.parameters if name.startswith("unet."))
        trained = {id(parameter) for parameter in adapter.parameters.values()}
        for root in parts.values():
            assert all(p.requires_grad == (id(p) in trained) for p in root.parameters())

    def test_the_other_class_has_the_same_names(self, pipeline, unet):
        """transformers 5 left `text_model.` in it."""
        projected = CLIPTextModelWithProjection(pipeline.text_encoder.config)
        adapter = lora_module.attach({"unet": unet, "text_encoder_2": projected}, Lora(rank=2), 0, spec=SPEC)
        own = [name for name in adapter.parameters if name.startswith("text_encoder_2.")]
        assert len(own) == 16 and all(name.startswith("text_encoder_2.text_model.encoder.layers.") for name in own)

    def test_the_denoisers_start_does_not_depend_on_it(self, pipeline, parts):
        with_text = lora_module.attach(parts, Lora(rank=2), 0, spec=SPEC).state()
        alone = attach(copy.deepcopy(pipeline.unet), Lora(rank=2), 0).state()
        assert all(torch.equal(with_text[name], tensor) for name, tensor in alone.items())
        assert len(with_text) == len(alone) + 16

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_gradients_reach_it_in_float32(self, parts, dtype):
        for root in parts.values():
            root.to(dtype)
        adapter = randomise(lora_module.attach(parts, Lora(rank=2), 0, spec=SPEC))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            states = parts["text_encoder"](torch.arange(77)[None])[0]
            parts["unet"](torch.randn(1, 4, 8, 8, dtype=dtype), 10, states).sample.float().square().mean().backward()
        for name, parameter in adapter.parameters.items():
            assert parameter.grad.dtype == torch.float32 and parameter.grad.abs().max() > 0, name

    def test_disabled_is_without_all_of_it(self, pipeline, parts):
        randomise(lora_module.attach(parts, Lora(rank=2), 0, spec=SPEC))
        encoder, ids = parts["text_encoder"], torch.arange(77)[None]
        with torch.no_grad():
            adapted = encoder(ids)[0]
            with lora_module.disabled(parts.values()):
                assert torch.equal(encoder(ids)[0], pipeline.text_encoder(ids)[0])
                assert torch.equal(predict(parts["unet"]), predict(pipeline.unet))
            assert torch.equal(encoder(ids)[0], adapted)
            assert not torch.equal(adapted, pipeline.text_encoder(ids)[0])

    def test_loftq_leaves_it_as_it_is(self, pipeline, parts):
        adapter = lora_module.attach(parts, Lora(rank=2, init_lora_weights="loftq"), 0, spec=SPEC)
        assert all(name.startswith("unet.") for name in adapter.initial)
        module = "encoder.layers.0.self_attn.q_proj"
        wrapped = parts["text_encoder"].get_submodule(module)
        assert torch.equal(wrapped.get_base_layer().weight, pipeline.text_encoder.get_submodule(module).weight)
        assert not wrapped.lora_B["default"].weight.any()

    def test_a_state_with_or_without_it_is_refused_by_its_key(self, pipeline, parts):
        both = lora_module.attach(parts, Lora(rank=2), 0, spec=SPEC)
        alone = attach(copy.deepcopy(pipeline.unet), Lora(rank=2), 0)
        with pytest.raises(CheckpointError, match=r"has text_encoder\..*train_args\.train_text_encoder excludes"):
            alone.restore(both.state())
        with pytest.raises(CheckpointError, match=r"no text_encoder\..*train_args\.train_text_encoder requires"):
            both.restore(alone.state())


# ------------------------------------------------------------------------------------------------------- LoftQ


class TestLoftQ:
    LORA = Lora(rank=RANK, init_lora_weights="loftq", target_modules=(*ATTENTION, "conv1"))

    def test_the_base_is_quantised_and_the_adapter_makes_up_for_it(self, pipeline, unet):
        adapter = attach(unet, self.LORA, 0)
        for module, layer in find_targets(pipeline.unet, self.LORA.target_modules or SPEC.lora_targets).items():
            base = unet.get_submodule(module).get_base_layer().weight
            if isinstance(layer, torch.nn.Conv2d):
                assert torch.equal(base, layer.weight)
                assert not adapter.parameters[f"unet.{module}.lora_B.weight"].any()
                continue
            assert torch.equal(base, loftq.quantise(layer.weight))
            down, up = (
                adapter.parameters[f"unet.{module}.{matrix}.weight"].detach() for matrix in ("lora_A", "lora_B")
            )
            lost, left = (base - layer.weight).norm(), (base + up @ down - layer.weight).norm()
            assert left < lost
        assert adapter.initial.keys() == {name for name in adapter.parameters if ".conv1." not in name}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_continued_without_decomposing_again(self, unet, dtype, monkeypatch):
        unet.to(dtype)
        first, second = copy.deepcopy(unet), unet
        begun = randomise(attach(first, self.LORA, 0))
        monkeypatch.setattr(torch.linalg, "svd", None)
        continued = attach(second, self.LORA, 0, initial=begun.initial)
        continued.restore(begun.state())
        for (name, one), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
            assert torch.equal(one, other) and one.dtype == other.dtype, name
        assert all(torch.equal(begun.initial[name], continued.initial[name]) for name in begun.initial)
        exports = [safetensors.torch.save(diffusers_state(adapter)) for adapter in (begun, continued)]
        assert exports[0] == exports[1]

    def test_the_saved_start_must_fit(self, unet):
        initial = attach(copy.deepcopy(unet), self.LORA, 0).initial
        with pytest.raises(CheckpointError, match="has no "):
            attach(copy.deepcopy(unet), self.LORA, 0, initial={})
        with pytest.raises(CheckpointError, match="rank 4"):
            attach(copy.deepcopy(unet), Lora(rank=2, init_lora_weights="loftq"), 0, initial=_linear_only(initial))
        with pytest.raises(CheckpointError, match="excludes"):
            attach(copy.deepcopy(unet), Lora(rank=RANK), 0, initial=initial)

    def test_other_kinds_have_no_start_to_save(self, unet):
        assert attach(copy.deepcopy(unet), Lora(rank=RANK), 0).initial == {}
        assert attach(unet, Lora(rank=RANK), 0, initial={}).initial == {}

    def test_a_rank_beyond_the_layers_is_refused(self, unet):
        with pytest.raises(TaskError, match=r"lora\.rank: 33 is more than the rank of .*\(32 x 32\)"):
            attach(unet, Lora(rank=33, init_lora_weights="loftq"), 0)

    def test_a_lora_file_cannot_start_it(self, unet):
        plain = attach(copy.deepcopy(unet), Lora(rank=RANK), 0)
        with pytest.raises(CheckpointError, match="loftq"):
            attach(unet, Lora(rank=RANK, init_lora_weights="loftq"), 0).warm_start(plain.state())


def _linear_only(initial):
    return {name: tensor for name, tensor in initial.items() if ".conv1." not in name}
