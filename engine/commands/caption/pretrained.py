"""Load a captioner of transformers with its processor, and let it write."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from engine.commands.caption.source import Source, captioning, loading
from engine.core.errors import DeviceError, DeviceMemoryError

_VIDEOS: Final = "video_processor"

Precision = Literal["float32", "auto"]
"""`auto` is the precision in which the weights are stored."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A model in evaluation mode on its device, and its processor."""

    name: str
    model: Any
    processor: Any
    missing: frozenset[str]
    """Weights of the architecture that are not in the files, so that they are random."""

    def write(self, prepare: Callable[[], Any], *, max_tokens: int, keeps_prompt: bool) -> str:
        """Return the text that the model writes. It decodes greedily.

        Args:
            prepare: returns the processor's output for one image, tensors of batch size 1.
            max_tokens: maximum number of new tokens.
            keeps_prompt: keep the prompt at the beginning of the text, where the model repeats it.

        Raises:
            ModelError: the processor or the model fails.
            DeviceMemoryError: the GPU's memory does not suffice.
        """
        import torch

        with captioning(self.name), _enough_memory(self.name), torch.no_grad():
            inputs = prepare().to(self.model.device, self.model.dtype)  # the dtype is that of floating-point tensors
            tokens = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, num_beams=1)
            # The result of a decoder alone begins with its input.
            is_repeated = not (keeps_prompt or self.model.config.is_encoder_decoder)
            new = tokens[:, inputs["input_ids"].shape[1] :] if is_repeated else tokens
            text: str = self.processor.batch_decode(new, skip_special_tokens=True)[0]
        return " ".join(text.split())


def load_pretrained(source: Source, *, device: str | None, on_cuda: Precision) -> Pretrained:
    """Load a model and its processor: in float32 on the CPU, on a GPU in the precision `on_cuda`.

    Raises:
        ModelError: a file is missing or damaged, there are no safetensors, or it needs code from its repository.
        DeviceError: there is no GPU.
        DeviceMemoryError: it does not fit on the GPU.
    """
    import torch
    from transformers import AutoModelForImageTextToText, dynamic_module_utils
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = (
        0  # refuse code from a repository at once, instead of asking for consent
    )
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise DeviceError("--device is cuda, but no GPU is visible; leave it out, or use --device cpu")
    where = device or ("cuda" if has_cuda else "cpu")
    name, revision = (str(source.folder), "main") if source.commit is None else (source.name, source.commit)
    with loading(source.name), _enough_memory(source.name):
        model, report = AutoModelForImageTextToText.from_pretrained(
            name,
            revision=revision,
            dtype=on_cuda if where == "cuda" else "float32",
            use_safetensors=True,
            output_loading_info=True,
        )
        processor = _processor(model.config, name, revision)
        model.to(where).eval()
    return Pretrained(source.name, model, processor, frozenset(report["missing_keys"]))


@contextlib.contextmanager
def _enough_memory(name: str) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(f"the captioner {name!r} does not fit on the GPU; use --device cpu") from error


def _processor(config: Any, name: str, revision: str) -> Any:
    """Load a model's processor: without its part for videos, if the package of that, torchvision, is not installed."""
    from transformers import PROCESSOR_MAPPING, AutoProcessor
    from transformers.utils import is_torchvision_available

    usual = PROCESSOR_MAPPING.get(type(config), None)
    parts = [] if usual is None else usual.get_attributes()
    if _VIDEOS not in parts or is_torchvision_available():
        return AutoProcessor.from_pretrained(name, revision=revision)
    left = [part for part in parts if part != _VIDEOS]
    for_images: Any = type(usual.__name__, (usual,), {"get_attributes": classmethod(lambda _: left)})
    return for_images.from_pretrained(name, revision=revision)
