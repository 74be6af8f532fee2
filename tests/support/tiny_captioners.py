"""Tiny captioners with random weights, each of the real classes: BLIP, LLaVA, Qwen2.5-VL, and a tagger in ONNX."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import BertTokenizerFast as BertTokenizer
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from tests.support.tiny_qwen_image import build_text_encoder
from tests.support.tiny_tokenizers import build_qwen

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{k}" for k in range(40))]
IMAGE = "<|image_pad|>"
"""The placeholder for an image."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}" + IMAGE + "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def build_blip(folder: Path) -> Path:
    """Write a BLIP whose words are `word0` to `word39` to `folder`, and return the folder."""
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizer(vocab_file=str(folder / "vocab.txt"), vocab={w: k for k, w in enumerate(WORDS)})
    config = BlipConfig(
        text_config={
            **_SMALL,
            "encoder_hidden_size": 32,
            "vocab_size": len(WORDS),
            "max_position_embeddings": 64,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={**_SMALL, "image_size": 32, "patch_size": 16},
        projection_dim=32,
    )
    _save(BlipForConditionalGeneration, config, folder, seed=4)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def build_llava(folder: Path) -> Path:
    """Write a LLaVA with Qwen2's tokenizer and without a chat template to `folder`, and return the folder."""
    tokenizer = build_qwen()
    tokenizer.chat_template = None
    config = LlavaConfig(
        text_config={
            **_SMALL,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_key_value_heads": 2,
            "eos_token_id": None,
            "bos_token_id": None,
        },
        vision_config={**_SMALL, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 16},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    _save(LlavaForConditionalGeneration, config, folder, seed=1)
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
    ).save_pretrained(folder)
    return folder


def build_qwen_vl(folder: Path) -> Path:
    """Write a Qwen2.5-VL to `folder` with the files that its repository has, and return the folder."""
    tokenizer = build_qwen()
    tokenizer.chat_template = TEMPLATE
    _save(Qwen2_5_VLForConditionalGeneration, build_text_encoder(tokenizer).config, folder, seed=2)
    tokenizer.save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=4 * 28 * 28)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(images.to_dict() | {"processor_class": "Qwen2_5_VLProcessor"})
    )
    return folder


def _save(kind: type[PreTrainedModel], config: object, folder: Path, *, seed: int) -> None:
    """Write a model whose captions differ between images: the seeds are found by trying."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        for parameter in model.parameters():  # as initialised it says the same of every image
            parameter.data.normal_(std=1.0)
    model.save_pretrained(folder)


def build_tagger(
    folder: Path, tags: Sequence[tuple[str, int]], *, side: int = 8, outputs: int | None = None, op: str = "Sigmoid"
) -> Path:
    """Write a tagger to `folder`, and return the folder.

    Tag k sees only value k of the image flattened, (row, column, channel), and has the probability
    sigmoid(value / 64 - 2).

    Args:
        folder: is made.
        tags: names and categories.
        side: of the images, in pixels.
        outputs: number of the model's outputs, as many as tags by default.
        op: ONNX's name of the last operation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{1000 + k},{name},{category},{9 - k}" for k, (name, category) in enumerate(tags)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows, ""]))
    weights = np.eye(side * side * 3, len(tags) if outputs is None else outputs, dtype="<f4") / 64
    (folder / "model.onnx").write_bytes(_onnx(weights, side, op))
    return folder


def _onnx(weights: np.ndarray, side: int, op: str) -> bytes:
    """An ONNX model: op(flatten(image) @ weights - 2). The fields' numbers are those of onnx.proto."""
    nodes = [
        ("Flatten", ["image"], "flat"),
        ("MatMul", ["flat", "weights"], "products"),
        ("Sub", ["products", "two"], "logits"),
        (op, ["logits"], "tags"),
    ]
    tensors = [("weights", weights), ("two", np.array([2], dtype="<f4"))]
    graph = b"".join(
        [
            *(
                _field(1, *(_field(1, name.encode()) for name in inputs), _field(2, output.encode()), _field(4, of))
                for of, inputs, output in ((of.encode(), inputs, output) for of, inputs, output in nodes)
            ),
            _field(2, b"graph"),
            *(_field(5, *_tensor(name, values)) for name, values in tensors),
            _field(11, *_value("image", [None, side, side, 3])),
            _field(12, *_value("tags", [None, weights.shape[1]])),
        ]
    )
    return _number(1, 8) + _field(7, graph) + _field(8, _field(1, b""), _number(2, 13))


def _tensor(name: str, values: np.ndarray) -> Iterator[bytes]:
    yield from (_number(1, length) for length in values.shape)
    yield _number(2, 1) + _field(8, name.encode()) + _field(9, values.tobytes())


def _value(name: str, shape: Sequence[int | None]) -> Iterator[bytes]:
    lengths = [_field(1, _field(2, b"N") if length is None else _number(1, length)) for length in shape]
    yield _field(1, name.encode())
    yield _field(2, _field(1, _number(1, 1), _field(2, *lengths)))


def _varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return _varint(field << 3 | 2) + _varint(len(data)) + data
