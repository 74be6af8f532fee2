"""The device memory and main memory of a job's phases, with text encoders kept or freed. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from engine.models.spec import ImageEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Bytes of one memory at the peak of each phase."""

    encode: int
    """The encoders are loaded, and encode images and captions."""
    load: int
    """The denoiser is loaded, and what is trained."""
    train: int
    validation: int
    """Validation images are drawn."""

    @property
    def peak(self) -> int:
        """The peak of the whole job, in bytes."""
        return max(self.encode, self.load, self.train, self.validation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of which the phases consist, in bytes."""

    denoiser: int
    """Its frozen weights on the device."""
    offloaded: int
    """Weights of its blocks, if they are in main memory."""
    inputs: int
    """Inputs of its blocks, which a step keeps in main memory until the backward pass."""
    texts: int
    """Frozen weights of the text encoders that can be trained."""
    fixed: int
    """Weights of those that cannot."""
    encode: int
    """Peak of encoding a caption, besides the weights."""
    lasting: int
    """Trained values, slots and copies, which are kept between steps."""
    step: int
    """The peak of a training step: `lasting`, activations and gradients."""
    unchanged: int
    """Weights that are read again, to draw images without the training."""


def kept_together(sizes: Sizes, images: ImageEncoder, *, is_cuda: bool, trains_texts: bool) -> tuple[Phases, Phases]:
    """Return the device's memory and a GPU machine's main memory if the encoders are kept.

    They are on the device while they encode and draw. While a GPU trains, they are in main memory.
    """
    encoders = sizes.texts + sizes.fixed + images.weight_bytes
    leaving = encoders - sizes.texts * trains_texts if is_cuda else 0
    resting, working = sizes.denoiser + encoders - leaving, sizes.denoiser + encoders + sizes.lasting
    own = Phases(
        encode=working + max(images.encode_bytes, sizes.encode),
        load=resting + sizes.lasting,
        train=resting + sizes.step,
        validation=working + sizes.unchanged + max(images.decode_bytes, sizes.encode),
    )
    return own, _main(sizes, leaving)


def freed_before(sizes: Sizes, images: ImageEncoder, *, is_cuda: bool, trains_texts: bool) -> tuple[Phases, Phases]:
    """Return the same if the text encoders that cannot be trained are freed before the denoiser is loaded.

    They encode the captions and the prompts before. The others and the VAE stay: text encoders that are trained are
    needed in each step, and images may be encoded later.
    """
    trained_texts = sizes.texts * trains_texts
    staying = sizes.texts - trained_texts + images.weight_bytes
    leaving, loaded = staying if is_cuda else 0, sizes.denoiser + trained_texts
    resting, working = loaded + staying - leaving, loaded + staying + sizes.lasting
    own = Phases(
        encode=max(
            sizes.texts + sizes.fixed + images.weight_bytes + sizes.encode,
            working + images.encode_bytes,
        ),
        load=resting + sizes.lasting,
        train=resting + sizes.step,
        validation=working + sizes.unchanged + images.decode_bytes,
    )
    return own, _main(sizes, leaving)


def _main(sizes: Sizes, leaving: int) -> Phases:
    """Return the main memory, where `leaving` bytes of encoders are outside of the device."""
    held = leaving + sizes.offloaded
    return Phases(encode=held, load=held, train=held + sizes.inputs, validation=held + sizes.unchanged)
