"""Small real tokenizers for tests, from bytes: those of T5, Llama 3 and Qwen2. CLIP's is `tiny.build_tokenizer`."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast, T5TokenizerFast

from tests.support.tiny import byte_letters

QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""What Qwen3's own template makes of messages of users and systems."""


def build_t5(model_max_length: int = 512) -> T5TokenizerFast:
    """T5's tokenizer (Unigram): a token for each printable character of ASCII, `<unk>` for others, no sentinels."""
    letters = [(chr(code), -5.0) for code in range(33, 127)]
    return T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters],
        extra_ids=0,
        extra_special_tokens=[],  # otherwise it makes a hundred sentinels
        model_max_length=model_max_length,
    )


def write_spiece(folder: Path) -> Path:
    """Write T5's tokenizer to `folder` as `spiece.model` alone, as older repositories have it, and return the folder.

    It has a hundred tokens of its own, and a normaliser (NFKC) like the real one.
    """
    sentences = [f"{chr(a)}{chr(b)} a cat on the mat" for a in range(33, 127) for b in range(33, 127)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=110,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder


def build_llama(instruction: str, tokens: int) -> PreTrainedTokenizerFast:
    """Llama 3's tokenizer: the bytes, no merges, its special tokens; `instruction` is of so many, with the first one.

    So many tokens of what captions are put into are cut off, whatever they are.
    """
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(byte_letters())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
        padding_side="right",
        model_max_length=2048,
    )
    found.add_tokens([instruction[tokens - 2 :], "<|eot_id|>"])
    first = (found.bos_token, found.bos_token_id)
    template = processors.TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    found.backend_tokenizer.post_processor = template
    assert len(found(instruction).input_ids) == tokens
    return found


def build_qwen(model_max_length: int = 131072) -> Qwen2TokenizerFast:
    """Qwen2's tokenizer, which Qwen3 has too: the bytes, no merges, its special tokens and a chat template."""
    vocabulary = {token: index for index, token in enumerate((*byte_letters(), *QWEN_SPECIAL))}
    tokenizer = Qwen2TokenizerFast(
        vocab=vocabulary,
        merges=[],
        extra_special_tokens=list(QWEN_SPECIAL[1:]),
        model_max_length=model_max_length,
        padding_side="right",
    )
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer
