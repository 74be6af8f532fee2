"""The metadata of `lora_webui.safetensors`, as web interfaces and model managers read it.

There are two vocabularies: kohya's (`ss_…`; AUTOMATIC1111 sorts LoRAs by `ss_base_model_version` and `ss_v2`, and takes
any file that has metadata but neither of them for an SD 1.x one; kohya-ss/sd-scripts, `train_network.py`) and Stability
AI's metadata specification (`modelspec.…`; 1.0.1 is what sd-scripts writes, `library/sai_model_spec.py`). The content
does not depend on names of folders, clocks or how the training was cut into tasks. Values that are None are the text
"None", as kohya's tools write them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save as serialise_tensors

from engine.core.messages import plural
from engine.results import safetensors_file
from engine.task.plan.learning_rates import base_learning_rate, base_text_encoder_rate
from engine.task.task import TrainArgs
from engine.training.methods.method import About
from engine.training.methods.usage import hub_id
from engine.training.optimizers.registry import OPTIMIZERS

DOWN_ENDING = ".lora_down.weight"
ALPHA_ENDING = ".alpha"


def describe(tensors: Mapping[str, torch.Tensor], about: About, *, kind: str = "LoRA") -> dict[str, str]:
    """Return the metadata of a LoRA in kohya's format.

    Args:
        tensors: the file's tensors.
        about: the training.
        kind: what is trained, for titles.
    """
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if key.endswith(DOWN_ENDING)}
    alphas = {float(tensor) for key, tensor in tensors.items() if key.endswith(ALPHA_ENDING)}
    base = about.base.family.webui_metadata(about.base.config, about.prediction_type)
    return {
        **_model_specification(about, kind),
        **base,
        **_training(about),
        **_dataset(about),
        "ss_network_module": "networks.lora",
        "ss_network_dim": _only(ranks),
        "ss_network_alpha": _only(alphas),
        "ss_network_dropout": f"{about.task.lora.dropout:g}",
    }


def _model_specification(about: About, kind: str) -> dict[str, str]:
    """Return the keys of the metadata specification, without those of the base model's kind."""
    word, resolution = about.task.dataset.trigger_word, about.task.train_args.resolution
    of_base = hub_id(about.base)
    licence = about.base.family.licences.get(of_base or "")
    steps = plural(about.global_step, "step")
    found = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": f"{word}, {kind}, {steps}" if word else f"{kind}, {steps}",
        "modelspec.description": f"{kind}{f' for {of_base}' if of_base else ''}, trained with sd-lora-task for {steps}",
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.trigger_phrase": word,
        "modelspec.usage_hint": word and f"Trigger word: {word}",
        "modelspec.license": licence,
        "modelspec.timestep_range": _timestep_range(about),
    }
    return {key: value for key, value in found.items() if value}


def _timestep_range(about: About) -> str | None:
    """Return the first and last timestep of a training on a part of the noise schedule; None for all of it."""
    total = about.base.num_train_timesteps
    drawn = about.base.timesteps(about.task.train_args)
    return None if (drawn.begin, drawn.end) == (0, total) else f"{drawn.begin},{drawn.end - 1}"


def _training(about: About) -> dict[str, str]:
    """Return kohya's keys on the whole training: nothing in them depends on how it is cut into tasks or processes."""
    args, name, k = about.task.train_args, about.base.identity, about.micro_batches
    schedule, visits = args.lr_scheduler, k * args.batch_size
    found: dict[str, Any] = {
        "ss_sd_model_name": hub_id(about.base) or name.removeprefix("sha256:")[:12],
        "ss_resolution": f"({args.resolution}, {args.resolution})",
        "ss_steps": about.global_step,
        "ss_max_train_steps": about.max_steps,
        "ss_epoch": about.global_step * visits // about.num_images,
        "ss_num_epochs": -(-about.max_steps * visits // about.num_images),
        "ss_learning_rate": base_learning_rate(args, k),
        "ss_unet_lr": base_learning_rate(args, k),
        "ss_text_encoder_lr": base_text_encoder_rate(args, k) if args.train_text_encoder else None,
        "ss_lr_scheduler": schedule.lr_scheduler,
        "ss_lr_warmup_steps": schedule.lr_warmup_steps,
        "ss_optimizer": _optimizer(args),
        "ss_batch_size_per_device": args.batch_size,
        "ss_total_batch_size": visits,
        "ss_gradient_accumulation_steps": k,
        "ss_max_grad_norm": args.max_grad_norm,
        "ss_min_snr_gamma": args.snr_gamma,
        "ss_noise_offset": args.noise_offset or None,
        "ss_zero_terminal_snr": args.zero_terminal_snr,
        "ss_mixed_precision": about.task.mixed_precision,
        "ss_seed": about.task.seed,
    }
    return {key: str(value) for key, value in found.items()}


def _optimizer(args: TrainArgs) -> str:
    """Return the optimizer with the constants that it reads."""
    adam, reads = args.adam_args, OPTIMIZERS[args.optimizer].reads
    constants = {
        "beta1": f"betas=({adam.beta1}, {adam.beta2})",
        "weight_decay": f"weight_decay={adam.weight_decay}",
        "epsilon": f"eps={adam.epsilon}",
    }
    own = [text for name, text in constants.items() if f"adam_args.{name}" in reads]
    return f"{args.optimizer}({', '.join(own)})"


def _dataset(about: About) -> dict[str, str]:
    """Return kohya's keys on the images, in which folders are called by their repeats."""
    dataset, transforms, counts = about.task.dataset, about.task.transforms, about.count_tags()
    found: dict[str, Any] = {
        "ss_num_train_images": about.num_images,
        "ss_num_batches_per_epoch": -(-about.num_images // about.task.train_args.batch_size),
        "ss_enable_bucket": transforms.buckets,
        "ss_flip_aug": transforms.random_flip,
        "ss_random_crop": not transforms.center_crop,
        "ss_shuffle_caption": dataset.shuffle_tags,
        "ss_keep_tokens": dataset.keep_tokens,
        "ss_caption_dropout_rate": dataset.caption_dropout,
        "ss_max_token_length": dataset.max_caption_tokens,
    }
    return {key: str(value) for key, value in found.items()} | {
        "ss_tag_frequency": json.dumps(counts, ensure_ascii=False)
    }


def serialise(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with metadata in sorted order; the library writes several keys in random order.

    It adds the SHA-256 of all bytes after the header: `sshs_model_hash`, by which web interfaces identify weights, and
    `modelspec.hash_sha256`.
    """
    data: bytes = serialise_tensors(dict(tensors))
    tensors_header, body = safetensors_file.split(data)
    digest = hashlib.sha256(body).hexdigest()
    everything = {**metadata, "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    header = {"__metadata__": dict(sorted(everything.items())), **tensors_header}
    return b"".join((safetensors_file.encode_header(header), body))


def _only(values: set[int] | set[float]) -> str:
    """Return the only value as text, or "Dynamic" as kohya's tools do if layers differ."""
    return f"{next(iter(values)):g}" if len(values) == 1 else "Dynamic"
