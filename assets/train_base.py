"""Trains the tiny Stable-Diffusion-shaped base from rendered emoji, in stages that can be interrupted.

    python assets/prepare_data.py --work build/emoji
    python assets/train_base.py vae     --work build/emoji     # autoencoder, all styles
    python assets/train_base.py decoder --work build/emoji     # decoder alone, latents fixed, on perturbed latents
    python assets/train_base.py unet    --work build/emoji     # text encoder and denoiser
    python assets/train_base.py export  --work build/emoji     # writes assets/base-emoji and the contact sheet

`decoder`, `unet` and `export` with `--base FOLDER` go on from a pipeline that is there: its encoder stays, and decoder,
text encoder and denoiser start from its weights. `decoder` and `unet` need only a finished `vae` and may run at the
same time. Each stage keeps one file in `--work`, `<stage>.safetensors`: weights, their moving average, the optimizer's
moments and the step; a stage started again goes on from it. What step n draws at random depends on the seed and n
alone. One thread: for models of this size a second one costs more than it brings.
"""

import argparse
import gzip
import importlib.util
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ASSETS = Path(__file__).resolve().parent
SEED = 0
NUM_MERGES = 12_288
EMA_DECAY = 0.998
CAPTION_DROPOUT = 0.1
HIGH_CONTRAST_SHARE = 0.65  # of the denoiser's batch
MAX_PERTURBATION = 0.6  # of the latents that the decoder is trained on, where they have a standard deviation of 1
MUON_FACTOR = 2.0  # the matrices' learning rate over that of everything else
LATENT_CHANNELS = 4
LATENT_SCALE = 0.5  # the pipeline's `scaling_factor`: latents have a standard deviation of 2
TEXT_WIDTH = 128


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage trains, and how. `steps` spans the learning rate's cosine.

    Training from scratch, the first `num_small_batches` steps take half a batch: early on, many updates are worth more
    than exact ones.
    Every `every` steps there is a line for the log and a file to go on from.
    """

    name: str
    steps: int
    batch_size: int
    learning_rate: float
    num_small_batches: int = 0
    muon: bool = False
    every: int = 250

    def batch_size_at(self, step: int) -> int:
        return self.batch_size // 2 if step < self.num_small_batches else self.batch_size


STAGES = {
    "vae": Stage("vae", 1500, 16, 1.5e-3),
    "decoder": Stage("decoder", 1500, 16, 7e-4),
    "unet": Stage("unet", 7000, 32, 1e-3, num_small_batches=1500, muon=True),
}


# --- models ---------------------------------------------------------------------------------------------------------


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Down to 4x4, where the padding of a convolution tells every cell its place: pure noise says nothing of layout."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,  # the number of heads: Diffusers' old misnomer
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_scheduler() -> DDIMScheduler:
    """DDPM's linear betas leave almost no signal at the last step, so an image on white can start from pure noise."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the vocabulary's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(rest))]


def build_tokenizer(work: Path) -> CLIPTokenizer:
    """CLIP's own byte-pair encoding, cut after its most frequent merges: a rarer word is spelled in more pieces."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None, "pip install --no-deps open_clip_torch==3.3.0"
    archive = Path(str(package.origin)).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(archive.read_bytes()).decode().split("\n")[1 : NUM_MERGES + 1]
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge.split()) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder = work / "tokenizer"
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


# --- training -------------------------------------------------------------------------------------------------------


def generator(step: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED * 1_000_003 + step * 7 + stream)


def learning_rate(stage: Stage, step: int) -> float:
    warmup = min(1.0, (step + 1) / 200)
    return stage.learning_rate * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / stage.steps)))


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Linear and convolution weights; not the embeddings, nor the first and last convolution."""
    return parameter.ndim >= 2 and not any(part in name for part in ("embedding", "conv_in", "conv_out"))


def optimizer_keys(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    return ("exp_avg",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Five Newton-Schulz steps towards the nearest (semi-)orthogonal matrix (K. Jordan et al., 2024, "Muon")."""
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix, at the size of an AdamW update; a convolution is a matrix (out, rest)."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})

    @torch.no_grad()
    def step(self) -> None:
        group = self.param_groups[0]
        for parameter in group["params"]:
            momentum = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
            momentum.lerp_(parameter.grad, 0.05)
            update = orthogonalize(parameter.grad.lerp(momentum, 0.95).flatten(1))
            size = 0.2 * math.sqrt(max(update.shape))
            parameter.add_(update.view(parameter.shape).to(parameter.dtype), alpha=-group["lr"] * size)


class Trainer:
    """AdamW (Muon for the matrices, where the stage says so), a moving average, and the file that holds all of it."""

    def __init__(self, stage: Stage, module: nn.Module, work: Path) -> None:
        self.stage, self.module = stage, module
        self.file = work / f"{stage.name}.safetensors"
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        matrices = {name: p for name, p in self.parameters.items() if stage.muon and is_hidden_matrix(name, p)}
        others = [p for name, p in self.parameters.items() if name not in matrices]
        adamw = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
        self.optimizer_of: dict[str, torch.optim.Optimizer] = dict.fromkeys(self.parameters, adamw)
        self.optimizers: list[torch.optim.Optimizer] = [adamw]
        if matrices:
            self.optimizers.append(Muon(matrices.values()))
            self.optimizer_of |= dict.fromkeys(matrices, self.optimizers[-1])
        self.step = 0
        if self.file.exists():
            self.load()

    def load(self) -> None:
        state = load_file(self.file)
        self.step = int(state["step"])
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state[f"model.{name}"])
            self.ema[name].copy_(state[f"ema.{name}"])
            optimizer = self.optimizer_of[name]
            # In the parameter's memory format: fused AdamW walks parameter and moments in the order they lie in memory.
            moments = {
                key: torch.empty_like(parameter).copy_(state[f"{key}.{name}"]) for key in optimizer_keys(optimizer)
            }
            optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}

    def save(self) -> None:
        state = {"step": torch.tensor(self.step)}
        for name, parameter in self.parameters.items():
            state |= {f"model.{name}": parameter.detach().contiguous(), f"ema.{name}": self.ema[name].contiguous()}
            optimizer = self.optimizer_of[name]
            state |= {f"{key}.{name}": optimizer.state[parameter][key] for key in optimizer_keys(optimizer)}
        partial = self.file.with_suffix(".partial")
        save_file({key: value.contiguous() for key, value in state.items()}, partial)
        partial.replace(self.file)

    def update(self, loss: torch.Tensor) -> None:
        for optimizer in self.optimizers:
            factor = MUON_FACTOR if isinstance(optimizer, Muon) else 1.0
            optimizer.param_groups[0]["lr"] = factor * learning_rate(self.stage, self.step)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(EMA_DECAY, self.step / (self.step + 10))
        for name, parameter in self.parameters.items():
            self.ema[name].lerp_(parameter.detach(), 1 - decay)

    def run(self, loss_of: Callable[[int], torch.Tensor], report: Callable[[], str]) -> None:
        """Steps until the stage's end. The loss in the log is the mean since the line before."""
        started, first, losses = time.monotonic(), self.step, []
        while self.step < self.stage.steps:
            loss = loss_of(self.step)
            self.update(loss)
            losses.append(loss.item())
            if self.step % self.stage.every == 0 or self.step == self.stage.steps:
                self.save()
                seconds = time.monotonic() - started
                rate = (self.step - first) / seconds
                mean = sum(losses) / len(losses)
                print(f"{self.step} loss {mean:.5f} {rate:.2f}/s {seconds:.0f} s {report()}", flush=True)
                losses.clear()


def load_ema(module: nn.Module, file: Path) -> None:
    """The moving average of a stage into its module; what the stage did not train stays."""
    with safe_open(file, "pt") as state:
        parameters = dict(module.named_parameters())
        for key in state.keys():  # noqa: SIM118  (safe_open is no dict)
            if key.startswith("ema."):
                parameters[key.removeprefix("ema.")].data.copy_(state.get_tensor(key))


def load_exported(module: nn.Module, folder: Path) -> None:
    """The weights of a pipeline's part, fp16 in its folder."""
    weights = load_file(next(folder.glob("*.safetensors")))
    module.load_state_dict({key: weight.float() for key, weight in weights.items()})


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    """Decibels for pixels in [-1, 1], per image, then the mean."""
    mse = (output.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3)) / 4
    return float((-10 * torch.log10(mse)).mean())


# --- autoencoder ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pixels:
    """Renders as (N, 3, H, W) uint8: the subjects in each style, and every emoji at double size for augmentation."""

    flat: torch.Tensor
    contrast: torch.Tensor
    augment: torch.Tensor

    @classmethod
    def load(cls, work: Path) -> "Pixels":
        renders = {name: pixels.permute(0, 3, 1, 2) for name, pixels in load_file(work / "renders.safetensors").items()}
        return cls(renders["flat"], renders["high-contrast"], renders["augment"])

    def batch(self, size: int, rng: torch.Generator) -> torch.Tensor:
        """Half the subjects as they are, half any emoji cropped, scaled, recoloured -> (size, 3, 64, 64) in [-1, 1]."""
        styles = (self.flat, self.contrast)
        plain = [styles[n % 2][torch.randint(len(self.flat), (), generator=rng)] for n in range(size // 2)]
        varied = [self.varied(rng) for _ in range(size - size // 2)]
        images = torch.cat([unit(torch.stack(plain)), torch.stack(varied)])
        mirrored = torch.rand(size, 1, 1, 1, generator=rng) < 0.5
        return torch.where(mirrored, images.flip(-1), images)

    def varied(self, rng: torch.Generator) -> torch.Tensor:
        image = unit(self.augment[torch.randint(len(self.augment), (), generator=rng)][None])
        side = int(torch.randint(80, 161, (), generator=rng))
        canvas = torch.ones(1, 3, 192, 192)
        canvas[..., 32:160, 32:160] = image
        top, left = torch.randint(0, 192 - side + 1, (2,), generator=rng).tolist()
        crop = canvas[..., top : top + side, left : left + side]
        small = F.interpolate(crop, (64, 64), mode="bilinear", antialias=True)[0]
        return small[torch.randperm(3, generator=rng)]


def unit(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 127.5 - 1


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute error for crisp edges, squared error against wrong colours, and the same on a coarser grid."""
    error = output - target
    coarse = F.avg_pool2d(error, 4)
    return error.abs().mean() + error.square().mean() + coarse.abs().mean()


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([vae.encode(unit(part)).latent_dist.mode() for part in pixels.split(32)])


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in images.split(32)])


def vae_report(vae: AutoencoderKL, pixels: Pixels) -> str:
    values = []
    for style, images in (("flat", pixels.flat), ("high-contrast", pixels.contrast)):
        sample = unit(images[::6])
        with autocast():
            values.append(f"{style} {psnr(reconstruct(vae, sample), sample):.2f}")
    return "psnr " + " ".join(values)


def train_vae(work: Path, stage: Stage) -> None:
    pixels = Pixels.load(work)
    vae = build_vae().to(memory_format=torch.channels_last)
    trainer = Trainer(stage, vae, work)

    def loss_of(step: int) -> torch.Tensor:
        images = pixels.batch(stage.batch_size, generator(step, 0)).contiguous(memory_format=torch.channels_last)
        with autocast():
            posterior = vae.encode(images).latent_dist
            output = vae.decode(posterior.sample(generator(step, 1))).sample
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).float().mean()
        return reconstruction_loss(output.float(), images) + 3e-4 * kl

    trainer.run(loss_of, lambda: vae_report(vae, pixels))


@torch.no_grad()
def finished_vae(work: Path) -> AutoencoderKL:
    """The trained autoencoder, its latents centred and of one variance in all channels, `scaling_factor` set to match.

    The pipeline knows one factor for all channels and no offset, but renders on white lie far off zero, and the
    channels that carry colour were small, so the denoiser would neglect them. Offset and gains therefore move into the
    1x1 convolutions on both sides of the latents: reconstructions stay what they were.
    """
    vae = build_vae()
    load_ema(vae, work / "vae.safetensors")
    pixels = Pixels.load(work)
    latents = encode(vae, torch.cat([pixels.flat, pixels.contrast]))
    offset, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    gain = 1 / (deviation * LATENT_SCALE)
    mean, log_variance = vae.quant_conv.weight[:LATENT_CHANNELS], vae.quant_conv.bias[LATENT_CHANNELS:]
    mean *= gain[:, None, None, None]
    vae.quant_conv.bias[:LATENT_CHANNELS].sub_(offset).mul_(gain)
    log_variance += 2 * gain.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ offset
    vae.post_quant_conv.weight /= gain[:, None, None]
    vae.register_to_config(scaling_factor=LATENT_SCALE)
    return vae.requires_grad_(False)


def train_decoder(work: Path, stage: Stage, base: Path | None = None) -> None:
    """The decoder alone, on latents a little off, as a denoiser's are. The encoder, and with it every latent, stays."""
    pixels = Pixels.load(work)
    vae = autoencoder_of(work, base).to(memory_format=torch.channels_last)
    vae.decoder.requires_grad_(True)
    trainer = Trainer(stage, vae, work)

    def loss_of(step: int) -> torch.Tensor:
        rng = generator(step, 0)
        images = pixels.batch(stage.batch_size, rng).contiguous(memory_format=torch.channels_last)
        with autocast():
            with torch.no_grad():
                latents = vae.encode(images).latent_dist.mode().float()
            strength = MAX_PERTURBATION * torch.rand(len(latents), 1, 1, 1, generator=rng) / vae.config.scaling_factor
            noisy = latents + strength * torch.randn(latents.shape, generator=rng)
            output = vae.decode(noisy).sample
        return reconstruction_loss(output.float(), images)

    trainer.run(loss_of, lambda: vae_report(vae, pixels))


# --- text encoder and denoiser --------------------------------------------------------------------------------------


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def read_subjects(work: Path) -> list[dict[str, Any]]:
    return json.loads((work / "subjects.json").read_text())


class Denoiser(nn.Module):
    """The two modules that train together, under the names their folders will have."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.unet = build_unet().to(memory_format=torch.channels_last)


def denoiser_of(tokenizer: CLIPTokenizer, base: Path | None) -> Denoiser:
    """Untrained, or with the weights of the pipeline in `base`."""
    denoiser = Denoiser(tokenizer)
    if base is not None:
        for name, module in denoiser.named_children():
            load_exported(module, base / name)
    return denoiser


def tokenizer_of(work: Path, base: Path | None) -> CLIPTokenizer:
    return build_tokenizer(work) if base is None else CLIPTokenizer.from_pretrained(base / "tokenizer")


def autoencoder_of(work: Path, base: Path | None) -> AutoencoderKL:
    if base is None:
        return finished_vae(work)
    vae = build_vae()
    load_exported(vae, base / "vae")
    vae.register_to_config(scaling_factor=LATENT_SCALE)
    return vae.requires_grad_(False)


def train_unet(work: Path, stage: Stage, base: Path | None = None) -> None:
    """Flat emoji under their captions; high-contrast ones, but for the unseen, under captions that name the style."""
    vae = autoencoder_of(work, base)
    pixels = load_file(work / "renders.safetensors")
    rows = read_subjects(work)
    images = torch.cat([pixels["flat"], pixels["high-contrast"]]).permute(0, 3, 1, 2)
    latents = encode(vae, images) * vae.config.scaling_factor
    in_flat, in_contrast = torch.ones(len(rows)), torch.tensor([float(not row["unseen"]) for row in rows])
    weights = torch.cat(
        [in_flat / in_flat.sum() * (1 - HIGH_CONTRAST_SHARE), in_contrast / in_contrast.sum() * HIGH_CONTRAST_SHARE]
    )
    tokenizer = tokenizer_of(work, base)
    texts = [row[key] for key in ("caption", "high_contrast_caption") for row in rows]
    token_ids = tokenize(tokenizer, [*texts, ""])
    denoiser = denoiser_of(tokenizer, base)
    # Plain attention: on a CPU, at these sizes, it is faster than the fused kernel.
    denoiser.unet.set_attn_processor(AttnProcessor())
    denoiser.text_encoder.set_attn_implementation("eager")
    trainer = Trainer(stage, denoiser, work)
    scheduler = build_scheduler()

    def loss_of(step: int) -> torch.Tensor:
        rng = generator(step, 0)
        size = stage.batch_size_at(step)
        chosen = torch.multinomial(weights, size, replacement=True, generator=rng)
        dropped = torch.rand(size, generator=rng) < CAPTION_DROPOUT
        timesteps = stratified_timesteps(size, rng)
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=rng)
        noisy = scheduler.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last)
        target = scheduler.get_velocity(clean, noise, timesteps)
        with autocast():
            states = denoiser.text_encoder(token_ids[torch.where(dropped, len(latents), chosen)]).last_hidden_state
            output = denoiser.unet(noisy, timesteps, states).sample
        return F.mse_loss(output.float(), target)

    trainer.run(loss_of, lambda: "")


def stratified_timesteps(size: int, rng: torch.Generator) -> torch.Tensor:
    """One timestep from each of `size` equal parts of [0, 1000): the loss of a step then varies less."""
    return ((torch.arange(size) + torch.rand(size, generator=rng)) * (1000 / size)).long().clamp(max=999)


# --- export ---------------------------------------------------------------------------------------------------------


def build_pipeline(work: Path, base: Path | None) -> StableDiffusionPipeline:
    tokenizer = tokenizer_of(work, base)
    vae = autoencoder_of(work, base)
    if (work / "decoder.safetensors").exists():
        load_ema(vae, work / "decoder.safetensors")
    denoiser = Denoiser(tokenizer)
    load_ema(denoiser, work / "unet.safetensors")
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def draw(pipeline: StableDiffusionPipeline, captions: list[str], guidance: float = 7.5) -> list[Image.Image]:
    """One image per caption, image n from seed n."""
    images = []
    for start in range(0, len(captions), 32):
        prompts = captions[start : start + 32]
        rngs = [torch.Generator().manual_seed(start + n) for n in range(len(prompts))]
        images += pipeline(prompts, num_inference_steps=30, guidance_scale=guidance, generator=rngs).images
    return images


def grid(images: list[Image.Image], columns: int) -> Image.Image:
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for n, image in enumerate(images):
        sheet.paste(image, (n % columns * width, n // columns * height))
    return sheet


def export(work: Path, folder: Path, base: Path | None) -> None:
    pipeline = build_pipeline(work, base)
    shutil.rmtree(folder, ignore_errors=True)  # after it was read: `base` may be the same folder
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    # Read back, so that the sheet shows what was shipped.
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    captions = [row["caption"] for row in read_subjects(work)]
    chosen = [captions[round(n * (len(captions) - 1) / 63)] for n in range(64)]
    grid(draw(pipeline, chosen), 8).quantize(256).save(folder.with_suffix(".png"), optimize=True)


def report_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"{path.stat().st_size:>10,} {path.relative_to(folder)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("stage", choices=[*STAGES, "export"])
    parser.add_argument("--work", type=Path, default=Path("build/emoji"))
    parser.add_argument("--output", type=Path, default=ASSETS / "base-emoji")
    parser.add_argument("--base", type=Path, help="go on from this pipeline (not vae)")
    parser.add_argument("--steps", type=int, help="another length for this stage")
    parser.add_argument("--learning-rate", type=float, help="another one for this stage, at its height")
    parser.add_argument("--every", type=int, help="save every so many steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    if args.stage == "export":
        export(args.work, args.output, args.base)
        print("\n".join(report_files(args.output)))
        return
    stage = STAGES[args.stage]
    stage = replace(
        stage,
        steps=args.steps or stage.steps,
        learning_rate=args.learning_rate or stage.learning_rate,
        num_small_batches=0 if args.base else stage.num_small_batches,
        every=args.every or stage.every,
    )
    if stage.name == "vae":
        train_vae(args.work, stage)
    else:
        {"decoder": train_decoder, "unet": train_unet}[stage.name](args.work, stage, args.base)


if __name__ == "__main__":
    main()
