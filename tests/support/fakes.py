"""A family and a dataset small enough to be read at a glance, for tests of what uses them."""

import hashlib
import io
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from engine.data.media.geometry import UnreadableImage
from engine.data.media.sample_names import OF_IMAGES
from engine.models.families.sd.spec import SPEC
from engine.training.methods.method import Trainable

CPU = torch.device("cpu")


def png(seed, size=(8, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class FakeDataset:
    """Images by index: bytes, or None for a row without a readable file."""

    images: list
    texts: list | None = None
    reads: list = field(default_factory=list)
    masks: list | None = None
    names = OF_IMAGES

    def __len__(self):
        return len(self.images)

    @property
    def num_images(self):
        return len(self.images)

    def image_bytes(self, index):
        self.reads.append(index)
        if self.images[index] is None:
            raise UnreadableImage("the file is empty")
        return self.images[index]

    def image_index(self, index):
        return index

    def read_ahead(self, images, *, with_masks=False, check_stop=None):
        pass

    def in_blocks(self, indices):
        return iter(indices)

    def known_digest(self, index, *, of_mask=False):
        return None

    def known_size(self, index):
        return None

    def known_sizes(self):
        return None

    def mask_bytes(self, index):
        return self.masks[index] if self.masks else None

    def captions(self, index):
        return self.texts[index] if self.texts else (f"caption {index}",)

    def name(self, index):
        return f"image-{index}"


class LinearFamily:
    """A linear denoiser of flat latents; encodings are simple functions of the input's bytes."""

    spec = SPEC

    def __init__(self, width=4):
        self.width = width
        self.denoiser = torch.nn.ModuleDict({"to_q": torch.nn.Linear(width, width, bias=False)})
        with torch.no_grad():
            self.denoiser["to_q"].weight.copy_(torch.linspace(-1, 1, width * width).reshape(width, width))
        self.denoiser.requires_grad_(False)
        self.text_encoders = {"text_encoder": torch.nn.Linear(2, 2, bias=False).requires_grad_(False)}
        torch.nn.init.eye_(self.text_encoders["text_encoder"].weight)
        self.parts = {"unet": self.denoiser, **self.text_encoders}
        self.encoded_images, self.encoded_captions, self.devices = [], [], []
        self.loss_factors = iter(())
        """What the coming losses are multiplied with."""

    def latent_shape(self, extent):
        return (self.width,)

    def encode_pixels(self, pixels):
        self.encoded_images.append(hashlib.sha256(pixels.tobytes()).hexdigest())
        mean = torch.from_numpy(pixels.reshape(-1)[: self.width].astype(np.float32)) / 255
        return {"mean": mean, "logvar": mean - 3}

    def encode_caption(self, caption):
        self.encoded_captions.append(caption)
        return {"states": torch.tensor([float(len(caption)), float(sum(caption.encode()) % 97)])}

    def place(self, geometry):
        return {"corner": torch.tensor([geometry.top, geometry.left, geometry.flip])}

    def tokenize(self, caption):
        return {"ids": torch.tensor([len(caption), sum(caption.encode()) % 97])}

    def embed(self, tokens):
        return {"states": self.text_encoders["text_encoder"](tokens["ids"].to(torch.float32))}

    def sample_latents(self, moments, noise):
        return moments["mean"] + torch.exp(0.5 * moments["logvar"]) * noise

    def loss(self, batch, options):
        noisy = batch.latents + batch.noise * (1 + batch.timesteps[:, None]) / 1000
        prediction = self.denoiser["to_q"](noisy) + 0.001 * batch.conditioning["states"].mean()
        return (prediction - batch.noise).square().mean() * next(self.loss_factors, 1.0)

    def move_encoders(self, device):
        self.devices.append(device)


@dataclass
class PlainTrainable:
    """The modules' own weights as the only trained parameters; stands in for a method's `Trainable`."""

    parameters: dict
    groups: list
    start: dict = field(default_factory=dict)
    is_whole_model: bool = False
    address: int | None = None
    """Of the micro-batch that is under way."""

    @classmethod
    def of(cls, family, size=0.5, *, with_text_encoder=False):
        weight = torch.nn.Parameter(torch.full((family.width, family.width), size))
        family.denoiser["to_q"].weight = weight
        groups = [{"unet.to_q.lora_A.weight": weight}]
        if with_text_encoder:
            groups.append({"text_encoder.q_proj.lora_A.weight": family.text_encoders["text_encoder"].weight})
            groups[1]["text_encoder.q_proj.lora_A.weight"].requires_grad_(True)
        return cls({name: group[name] for group in reversed(groups) for name in group}, groups)

    def state(self):
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def restore(self, state):
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state[name])

    def step(self):
        return nullcontext(list(self.parameters.values()))

    def refresh(self):
        pass

    @contextmanager
    def micro_batch(self, address):
        self.address = address
        yield
        self.address = None


assert {"parameters", "groups", "start", "state", "restore", "step", "micro_batch"} <= {*dir(Trainable)}
