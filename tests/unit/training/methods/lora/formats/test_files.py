# ruff: noqa: F811  # a test's arguments are the fixtures imported here
"""The adapter's files through Diffusers' own loaders, and other trainers' files into an adapter."""

import copy
import json
import logging
import math
from dataclasses import replace
from types import MappingProxyType

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from engine.core.errors import CheckpointError
from engine.models.families.sdxl.spec import SPEC
from engine.task.task import Lora
from engine.training.methods.lora import adapter as lora_module
from engine.training.methods.lora.formats import files
from engine.training.methods.lora.formats.files import diffusers_state, webui_state
from engine.training.methods.lora.formats.start_file import peft_config
from engine.training.methods.registry import METHODS, load_parent
from tests.support.tolerance import assert_equal_but_for_rounding, depth
from tests.unit.training.methods.lora.test_adapter import (  # noqa: F401  # fixtures among them
    ATTENTION,
    CONVOLUTIONS,
    RANK,
    attach,
    pipeline,
    predict,
    randomise,
    unet,
)


def from_diffusers_file(tensors, components=("unet",), names=MappingProxyType({}), **options):
    return files.from_diffusers_file(tensors, SPEC, components=components, names=names, **options)


def read_diffusers_file(data, components=("unet",), names=MappingProxyType({}), **options):
    return files.read_diffusers_file(data, SPEC, components, names=names, **options)


LARGEST_RANK = 16
STEPS = 3
LOFTQ = Lora(rank=RANK, init_lora_weights="loftq", target_modules=(*ATTENTION, "conv1"))
EVERYTHING_WEBUI_KNOWS = (
    r"(down|mid|up)_block.*\.(to_[kqv]|to_out\.0|proj|net\.2|proj_in|proj_out|conv\w*|time_emb_proj)"
)


def with_unet(pipeline, unet, **parts):
    other = StableDiffusionPipeline(**pipeline.components | {"unet": unet} | parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def webui_name(component, module):
    return {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component] + module.replace(".", "_")


def own_name(name):
    return name.removeprefix("unet.")


def own_state(adapter):
    """By the names in the UNet, as other programs' functions want them."""
    return {own_name(name): tensor for name, tensor in adapter.state().items()}


def paint(pipeline):
    generator = torch.Generator().manual_seed(3)
    image = pipeline("a cat", num_inference_steps=STEPS, height=64, width=64, generator=generator, output_type="pt")
    return image.images


def assert_same_painting(found, expected):
    """Two pipelines draw the same; guidance of 7.5 adds two predictions 7.5 and 6.5 times as large at each step."""
    parts = expected.components
    operations = depth(parts["text_encoder"], parts["vae"].decoder) + STEPS * 14 * depth(parts["unet"])
    assert_equal_but_for_rounding(paint(found), paint(expected), operations=operations)


class Listener(logging.Handler):
    """What a library's logger says; its records do not propagate to pytest's."""

    def __init__(self, *names):
        super().__init__(logging.WARNING)
        self.messages, self.loggers = [], [logging.getLogger(name) for name in names]

    def emit(self, record):
        self.messages.append(record.getMessage())

    def __enter__(self):
        for logger in self.loggers:
            logger.addHandler(self)
        return self

    def __exit__(self, *_):
        for logger in self.loggers:
            logger.removeHandler(self)


def load_file(pipeline, unet, tensors, path, recwarn, **parts):
    """A pipeline after `load_lora_weights` of the saved file; nothing missing, nothing unexpected, nothing said."""
    safetensors.torch.save_file(tensors, path)
    loaded = with_unet(pipeline, unet, **parts)
    with Listener("diffusers", "peft", "transformers") as listener:
        loaded.load_lora_weights(path.parent, weight_name=path.name)
    # Diffusers says this of every LoRA that leaves the text encoder alone.
    said = [message for message in listener.messages if "No LoRA keys associated to CLIPTextModel" not in message]
    assert said == []
    assert [str(warning.message) for warning in recwarn] == []
    return loaded


# ------------------------------------------------------------------------------------------------------- export


@pytest.mark.filterwarnings("ignore:.*torchvision")
class TestExport:
    @pytest.fixture(params=["attention", "convolutions", "everything", "loftq", "alpha", "rslora", "loftq, alpha"])
    def attached(self, request, unet):
        """A UNet with a trained adapter of each kind."""
        lora = {
            "attention": Lora(rank=RANK),
            "convolutions": Lora(rank=RANK, target_modules=CONVOLUTIONS),
            "everything": Lora(rank=2, target_modules=EVERYTHING_WEBUI_KNOWS),
            "loftq": Lora(rank=RANK, target_modules=CONVOLUTIONS, init_lora_weights="loftq"),
            "alpha": Lora(rank=16, alpha=8, target_modules=CONVOLUTIONS),
            "rslora": Lora(rank=RANK, alpha=3, use_rslora=True, target_modules=CONVOLUTIONS),
            "loftq, alpha": Lora(rank=RANK, alpha=3, target_modules=CONVOLUTIONS, init_lora_weights="loftq"),
        }[request.param]
        return unet, randomise(attach(unet, lora, 0))

    @pytest.mark.parametrize("kind", ["diffusers", "webui"])
    def test_diffusers_loads_it_whole_and_gives_the_same(self, pipeline, attached, kind, tmp_path, recwarn):
        trained, adapter = attached
        tensors = diffusers_state(adapter) if kind == "diffusers" else webui_state(adapter, webui_name)
        plain = copy.deepcopy(pipeline.unet)
        loaded = load_file(pipeline, plain, tensors, tmp_path / "lora.safetensors", recwarn)
        adapted = sum(isinstance(module, LoraLayer) for module in loaded.unet.modules())
        assert adapted == len(adapter.parameters) / 2
        if adapter.initial:  # the file acts on the original weights, the training saw quantised ones
            expected = _with_change(pipeline, adapter)
            assert_equal_but_for_rounding(predict(loaded.unet), predict(expected), operations=depth(expected))
            return
        assert_equal_but_for_rounding(predict(loaded.unet), predict(trained), operations=depth(trained))
        change = (paint(loaded) - paint(with_unet(pipeline, copy.deepcopy(pipeline.unet)))).abs().max()
        assert change > 0.01
        assert_same_painting(loaded, with_unet(pipeline, trained))

    def test_bytes_are_stable(self, attached):
        _, adapter = attached
        for export in (lambda: diffusers_state(adapter), lambda: webui_state(adapter, webui_name)):
            tensors = export()
            shuffled = dict(sorted(tensors.items(), key=lambda item: hash(item[0])))
            assert (
                safetensors.torch.save(tensors) == safetensors.torch.save(shuffled) == safetensors.torch.save(export())
            )
            assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors.values())

    def test_exports_share_no_memory_with_the_adapter(self, unet):
        adapter = attach(unet, Lora(rank=RANK), 0)
        for tensors in (diffusers_state(adapter), webui_state(adapter, webui_name)):
            for tensor in tensors.values():
                tensor.fill_(7)
        assert not any((parameter == 7).any() for parameter in adapter.parameters.values())

    def test_the_webui_file_names_its_strength(self, unet):
        adapter = attach(unet, Lora(rank=RANK), 0)
        tensors = webui_state(adapter, webui_name)
        assert len(tensors) == 3 * len(adapter.parameters) / 2
        alpha = tensors["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.alpha"]
        assert alpha.shape == () and alpha.dtype == torch.float32 and alpha == RANK

    def test_an_untrained_loftq_file_changes_nothing(self, pipeline, unet, tmp_path, recwarn):
        tensors = diffusers_state(attach(unet, LOFTQ, 0))
        assert {tensor.shape[0] for name, tensor in tensors.items() if "to_q.lora_A" in name} == {2 * RANK}
        loaded = load_file(pipeline, copy.deepcopy(pipeline.unet), tensors, tmp_path / "lora.safetensors", recwarn)
        plain = pipeline.unet
        assert_equal_but_for_rounding(predict(loaded.unet), predict(plain), operations=depth(plain))


def _with_change(pipeline, adapter):
    """The original UNet with each linear layer's weight changed by B·A - B0·A0 and each convolution adapted."""
    unet = copy.deepcopy(pipeline.unet)
    state, changes = adapter.state(), {}
    for name in adapter.initial:
        if name.endswith("lora_A.weight"):
            module, up = name.removesuffix(".lora_A.weight"), name.replace("lora_A", "lora_B")
            change = state.pop(up) @ state.pop(name) - adapter.initial[up] @ adapter.initial[name]
            changes[module.removeprefix("unet.")] = change * adapter.strength
    for module, change in changes.items():
        unet.get_submodule(module).weight.data += change
    rest = {own_name(name).removesuffix(".lora_A.weight") for name in state if name.endswith("lora_A.weight")}
    lora = Lora(rank=RANK, alpha=adapter.strength * RANK, target_modules=tuple(rest))
    attach(unet, lora, 0).restore(state)
    return unet


@pytest.mark.filterwarnings("ignore:.*torchvision")
class TestTextEncoder:
    """Both components in one file, at a strength of their own."""

    @pytest.fixture(params=[Lora(rank=16, alpha=8), Lora(rank=2, alpha=3, use_rslora=True)], ids=["alpha", "rslora"])
    def trained(self, request, pipeline):
        """A pipeline with an adapter in its UNet and its text encoder."""
        parts = {name: copy.deepcopy(getattr(pipeline, name)) for name in ("unet", "text_encoder")}
        lora = replace(request.param, target_modules=("to_q", "conv1"))
        return parts, randomise(lora_module.attach(parts, lora, 0, spec=SPEC))

    @pytest.mark.parametrize("kind", ["diffusers", "webui"])
    def test_every_layer_of_diffusers_pipeline_changes_as_in_training(self, pipeline, trained, kind, tmp_path, recwarn):
        parts, adapter = trained
        tensors = diffusers_state(adapter) if kind == "diffusers" else webui_state(adapter, webui_name)
        fresh_parts = {name: copy.deepcopy(getattr(pipeline, name)) for name in parts}
        loaded = load_file(
            pipeline, tensors=tensors, path=tmp_path / "lora.safetensors", recwarn=recwarn, **fresh_parts
        )
        count = 0
        for component, root in parts.items():
            found = dict(deltas(getattr(loaded, component)))
            expected = dict(deltas(root))
            assert found.keys() == expected.keys() and len(expected) == {"unet": 16, "text_encoder": 8}[component]
            for name, delta in expected.items():
                assert_equal_but_for_rounding(found[name], delta, operations=LARGEST_RANK)
                assert delta.abs().max() > 1e-3
                count += 1
        assert count == len(adapter.parameters) / 2
        own = {**{name: getattr(pipeline, name) for name in ("vae", "tokenizer", "scheduler")}, **parts}
        in_memory = StableDiffusionPipeline(
            **own, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        in_memory.set_progress_bar_config(disable=True)
        assert_same_painting(loaded, in_memory)
        assert (paint(loaded) - paint(pipeline)).abs().max() > 0.01

    def test_our_own_file_is_a_warm_start_at_any_strength(self, pipeline, trained):
        parts, adapter = trained
        found = from_diffusers_file(diffusers_state(adapter), components=list(parts))
        rank = adapter.parameters[min(adapter.parameters)].shape[0]
        others = {name: copy.deepcopy(getattr(pipeline, name)) for name in parts}
        again = lora_module.attach(others, Lora(rank=rank, alpha=5, target_modules=("to_q", "conv1")), 1, spec=SPEC)
        again.warm_start(found)
        for component, root in parts.items():
            expected = dict(deltas(root))
            for name, delta in deltas(others[component]):
                assert_equal_but_for_rounding(delta, expected[name], operations=LARGEST_RANK)

    @pytest.mark.parametrize("spelling", ["peft", "diffusers", "flattened"])
    def test_other_trainers_spellings_are_read(self, trained, spelling, tmp_path):
        """Through `save_lora_weights`: `text_model.` is there or not, as the trainer had it."""
        parts, adapter = trained
        layers = {name: {} for name in parts}
        for name, tensor in diffusers_state(adapter).items():
            component, own = name.split(".", 1)
            layers[component][own.removeprefix("text_model.") if spelling == "flattened" else own] = tensor
        if spelling == "diffusers":
            layers["text_encoder"] = convert_state_dict_to_diffusers(layers["text_encoder"])
            assert all(".lora_linear_layer." in name for name in layers["text_encoder"])
        StableDiffusionPipeline.save_lora_weights(
            tmp_path, unet_lora_layers=layers["unet"], text_encoder_lora_layers=layers["text_encoder"]
        )
        data = (tmp_path / "pytorch_lora_weights.safetensors").read_bytes()
        found = read_diffusers_file(data, list(parts))
        expected = diffusers_state(adapter)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_each_component_has_its_strength_from_the_metadata(self, trained):
        parts, adapter = trained
        packed = json.dumps({"unet.r": 2, "unet.lora_alpha": 4, "text_encoder.r": 4, "text_encoder.lora_alpha": 1})
        tensors = diffusers_state(adapter)
        found = from_diffusers_file(tensors, components=list(parts), metadata={"lora_adapter_metadata": packed})
        for name, tensor in tensors.items():
            scale = {"unet": 2, "text_encoder": 0.25}[name.split(".")[0]] if "lora_B" in name else 1
            assert torch.equal(found[name], tensor * scale)


def deltas(root):
    """What each adapted layer's weight changes by, by the layer's name."""
    for name, layer in root.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer.get_delta_weight(layer.active_adapters[0]).detach()


# ------------------------------------------------------------------------------------------------------- warm start


class TestWarmStart:
    @pytest.fixture
    def adapter(self, unet):
        return randomise(attach(unet, Lora(rank=RANK, target_modules=(*ATTENTION, "conv1", "proj_in")), 0))

    def assert_reads(self, tensors, adapter, **options):
        found = from_diffusers_file(tensors, **options)
        assert found.keys() == adapter.parameters.keys()
        for name, parameter in adapter.parameters.items():
            assert_equal_but_for_rounding(found[name], parameter.detach(), operations=2)
            assert found[name].dtype == torch.float32
        adapter.warm_start(found)

    def test_our_own_file(self, adapter):
        self.assert_reads(diffusers_state(adapter), adapter)

    def test_diffusers_spelling_mixed_with_pefts(self, adapter):
        tensors = {f"unet.{name}": t for name, t in convert_state_dict_to_diffusers(own_state(adapter)).items()}
        assert any(".lora.down" in name for name in tensors) and any(".lora_A" in name for name in tensors)
        self.assert_reads(tensors, adapter)

    @pytest.mark.parametrize("prefix", ["unet.", ""])
    def test_the_oldest_spelling_with_alphas(self, unet, prefix):
        adapter = randomise(attach(copy.deepcopy(unet), Lora(rank=RANK), 0))
        tensors = {}
        for name, tensor in own_state(adapter).items():
            module, matrix, _ = name.rsplit(".", 2)
            attention, projection = module.removesuffix(".0").rsplit(".", 1)
            old = f"{prefix}{attention}.processor.{projection}_lora"
            tensors[f"{old}.{'down' if matrix == 'lora_A' else 'up'}.weight"] = tensor * (
                1 if matrix == "lora_A" else 2
            )
            tensors[f"{old}.alpha"] = torch.tensor(RANK / 2)
        self.assert_reads(tensors, adapter)

    @pytest.mark.parametrize("alpha, rslora", [(None, False), (2, False), (8, False), (6, True)])
    def test_a_file_that_diffusers_wrote_with_metadata(self, adapter, alpha, rslora, tmp_path):
        config = {"r": RANK, "lora_alpha": alpha, "use_rslora": rslora, "alpha_pattern": {}, "rank_pattern": {}}
        StableDiffusionPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=own_state(adapter),
            unet_lora_adapter_metadata=config if alpha else None,
        )
        with safetensors.safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
            metadata = file.metadata()
        tensors = safetensors.torch.load_file(tmp_path / "pytorch_lora_weights.safetensors")
        scale = alpha / (math.sqrt(RANK) if rslora else RANK) if alpha else 1.0
        for name, parameter in adapter.parameters.items():
            if "lora_B" in name:
                parameter.data *= scale
        self.assert_reads(tensors, adapter, metadata=metadata)

    def test_half_precision_files(self, adapter):
        adapter.warm_start({name: tensor.half().float() for name, tensor in adapter.state().items()})
        self.assert_reads({name: tensor.half() for name, tensor in diffusers_state(adapter).items()}, adapter)

    def test_a_file_that_adapts_more_is_refused(self, adapter):
        more = {"text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(RANK, 32)}
        with pytest.raises(CheckpointError, match="also adapts text_encoder, which this task does not train"):
            from_diffusers_file(diffusers_state(adapter) | more)

    @pytest.mark.parametrize(
        "key, words",
        [
            ("unet.x.weight", "the LoRA file's unet.x.weight is not in a format that is read"),
            ("unet.x.to_q.lora_magnitude_vector", "is a DoRA"),
            ("base_model.model.x.to_q.lora_magnitude_vector.default.weight", "is a DoRA"),
            ("lora_unet_x_to_q.dora_scale", "is a DoRA"),
            ("lora_unet_x_to_q.lora_down.weight", "lora_unet_x_to_q is none of the base model's layers"),
            ("lora_unet_x_to_q.lora_mid.weight", "Tucker decomposition"),
            ("lora_unet_x_to_q.diff", "lora_unet_x_to_q.diff is no matrix or alpha of a LoRA"),
            ("lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "also adapts text_encoder, which .*train_text"),
            ("lora_te2_x.alpha", "also adapts text_encoder_2, which this task does not train; set train_args.train"),
            ("lora_te3_x.alpha", "also adapts text_encoder_3, which this task does not train$"),
            ("lora_unet_x_to_q.hada_w1_a", "is a LoHa"),
            ("lycoris_x_to_q.lokr_w1", "is a LoKr"),
            ("lora_unet_x_to_q.on_input", "is an .IA.³"),
            ("lycoris_x_to_q.oft_blocks", "is of LyCORIS"),
            ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "is for another kind of model"),
            ("diffusion_model.double_blocks.0.lora_A.weight", "double_blocks.0 is none of the base model's layers"),
            ("emb_params", "is an embedding"),
            ("model.diffusion_model.input_blocks.0.0.weight", "is a whole model"),
        ],
    )
    def test_other_formats_are_named(self, key, words):
        with pytest.raises(CheckpointError, match=words):
            from_diffusers_file({key: torch.zeros(2, 2), "unet.a.to_q.lora_A.weight": torch.zeros(2, 2)})

    def test_a_message_names_the_same_tensor_whatever_the_order(self):
        tensors = {f"{k}.weight": torch.zeros(2, 2) for k in "bcadfe"}
        for keys in (tensors, reversed(tensors)):
            with pytest.raises(CheckpointError, match=r"file's a\.weight is not"):
                from_diffusers_file({key: tensors[key] for key in keys})

    @pytest.mark.parametrize("prefix", ["base_model.model.", "unet.base_model.model.", "base_model.model.unet.", ""])
    @pytest.mark.parametrize("name", [".default", ".my style", ""])
    def test_pefts_own_spellings(self, adapter, prefix, name):
        tensors = {
            prefix + key.replace(".weight", f"{name}.weight"): tensor for key, tensor in own_state(adapter).items()
        }
        self.assert_reads(tensors, adapter)

    def test_pefts_own_file(self, unet, tmp_path):
        """A UNet adapted and saved by PEFT itself, with a strength of 2."""
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(ATTENTION), init_lora_weights=False)
        get_peft_model(fresh(unet), config).save_pretrained(tmp_path)
        found = load_parent(tmp_path, METHODS["lora"])
        assert found.name == "adapter_model.safetensors" and peft_config(found)
        weights = found.content(found.name)
        with_config, without = (read_diffusers_file(weights, config=each) for each in (peft_config(found), None))
        adapter = attach(unet, Lora(rank=RANK, target_modules=ATTENTION), 0)
        assert with_config.keys() == adapter.parameters.keys()
        for key, tensor in with_config.items():
            assert torch.equal(tensor, without[key] * (2 if "lora_B" in key else 1))
        adapter.warm_start(with_config)

    def test_a_text_encoders_adapter_by_peft_is_one(self, adapter):
        key = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
        with pytest.raises(CheckpointError, match="also adapts text_encoder, which this task does not train"):
            from_diffusers_file(diffusers_state(adapter) | {key: torch.zeros(RANK, 32)})

    def test_several_adapters_in_one_file_are_refused(self, adapter):
        tensors = {
            key.replace(".weight", f".{name}.weight"): tensor
            for name in ("one", "two")
            for key, tensor in own_state(adapter).items()
        }
        with pytest.raises(CheckpointError, match="contains several adapters"):
            from_diffusers_file(tensors)

    @pytest.mark.parametrize(
        "config",
        [b"{", b"[]", b'{"lora_alpha": 4}', b'{"r": 0, "lora_alpha": 4}', b'{"r": 1e999, "lora_alpha": 4}'],
    )
    def test_malformed_configurations_of_peft_are_refused(self, adapter, config):
        with pytest.raises(CheckpointError, match=r"adapter_config\.json is malformed"):
            from_diffusers_file(diffusers_state(adapter), config=config)

    @pytest.mark.parametrize(
        "bad, problem",
        [
            ({"unet.x.lora_B.weight": torch.zeros(3)}, r"lora_B\.weight has shape \(3,\)"),
            ({"unet.x.lora_B.weight": torch.zeros(3, 0)}, r"lora_B\.weight has shape \(3, 0\)"),
            ({"unet.x.alpha": torch.ones(2)}, r"alpha has shape \(2,\)"),
            *(
                ({"unet.x.lora_B.weight": torch.ones(2, 2).to(dtype)}, f"lora_B.weight has the type {name};")
                for name, dtype in (
                    ("int8", torch.int8),
                    ("bool", torch.bool),
                    ("complex64", torch.complex64),
                    ("float8_e4m3fn", torch.float8_e4m3fn),
                )
            ),
            ({"unet.x.alpha": torch.tensor(math.nan)}, "alpha holds values that are not finite"),
            ({"unet.x.lora_A.weight": torch.full((2, 2), math.inf)}, "not finite"),
            (
                {"unet.x.lora_B.weight": torch.full((2, 2), 1e3), "unet.x.alpha": torch.tensor(1e37)},
                "alpha for unet.x is too",
            ),
        ],
    )
    def test_tensors_that_cannot_be_trained_are_refused(self, bad, problem):
        with pytest.raises(CheckpointError, match=problem):
            from_diffusers_file(bad)

    @pytest.mark.parametrize(
        "packed",
        [
            "{",
            "[]",
            '{"unet.lora_alpha": 4}',
            '{"unet.r": 4, "unet.lora_alpha": NaN}',
            '{"unet.r": 0, "unet.lora_alpha": 4}',
            '{"unet.r": "a", "unet.lora_alpha": 1}',
        ],
    )
    def test_malformed_metadata_are_refused(self, adapter, packed):
        with pytest.raises(CheckpointError, match="metadata are malformed"):
            from_diffusers_file(diffusers_state(adapter), metadata={"lora_adapter_metadata": packed})

    def test_ranks_and_alphas_by_layer(self, adapter):
        """By the metadata of Diffusers and by PEFT's own configuration."""
        config = {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": 2, "to_out.0": 8}, "rank_pattern": {"to_out.0": 2}}
        tensors = diffusers_state(adapter)
        packed = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
        for options in ({"metadata": packed}, {"config": json.dumps(config).encode()}):
            found = from_diffusers_file(tensors, **options)
            for name, tensor in tensors.items():
                scale = 0.5 if "to_q.lora_B" in name else 4 if "to_out.0.lora_B" in name else 1
                assert torch.equal(found[name], tensor * scale)

    @pytest.mark.parametrize("pattern", ["to_.*", "(a+)+$", "^to_q", ""])
    def test_expressions_are_not_read(self, adapter, pattern):
        config = {"r": 4, "lora_alpha": 4, "alpha_pattern": {pattern: 2}}
        with pytest.raises(CheckpointError, match="by an expression"):
            from_diffusers_file(diffusers_state(adapter), config=json.dumps(config).encode())

    def test_another_adapter_does_not_fit(self, unet, adapter):
        other = attach(fresh(unet), Lora(rank=RANK), 0)
        with pytest.raises(CheckpointError, match="excludes"):
            other.warm_start(from_diffusers_file(diffusers_state(adapter)))


def fresh(unet):
    """A fresh UNet of the same configuration, without the adapter."""
    return type(unet).from_config(unet.config)


@pytest.mark.parametrize("data", [b"", b"x" * 7, b"\xff" * 100, b"\x80\x04cos\nsystem\n."])
def test_bytes_that_are_no_safetensors_file_are_refused(data):
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_diffusers_file(data)


def test_a_files_bytes_are_read_with_their_metadata(unet):
    adapter = randomise(attach(unet, Lora(rank=RANK), 0))
    packed = {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": 2 * RANK})}
    found = read_diffusers_file(safetensors.torch.save(diffusers_state(adapter), metadata=packed))
    for name, tensor in adapter.state().items():
        assert torch.equal(found[name], tensor * (2 if "lora_B" in name else 1))


def test_what_the_file_says_cannot_play_with_a_terminal():
    """The parser's message quotes the file, control characters and all."""
    header = b'{"a": ["\\u001f"]}'
    with pytest.raises(CheckpointError) as raised:
        read_diffusers_file(len(header).to_bytes(8, "little") + header)
    assert str(raised.value).isprintable()
