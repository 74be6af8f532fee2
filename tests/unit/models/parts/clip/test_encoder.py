"""Captions beyond one row of tokens, in both families, against transformers and Diffusers alone."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from engine.core.errors import ModelError
from engine.models import registry
from engine.models.family import LoadArgs
from engine.models.parts.clip.encoder import load_tokenizer, token_ids
from tests.support import tiny

CPU = torch.device("cpu")
BUILDERS = {StableDiffusionPipeline: tiny.build_sd, StableDiffusionXLPipeline: tiny.build_sdxl}
CHUNKS = 3
CAPTIONS = [" ".join("abcdefghij"[k % 10] for k in range(count)) for count in (0, 1, 74, 75, 76, 150, 225, 226, 400)]
"""A token for each letter."""


@pytest.fixture(scope="module", params=list(BUILDERS), ids=["sd", "xl"])
def cls(request):
    return request.param


@pytest.fixture(scope="module")
def folder(cls, tmp_path_factory):
    return BUILDERS[cls](tmp_path_factory.mktemp("model"))


def load(folder, chunks):
    entry = registry.detect(json.loads((folder / "model_index.json").read_text()))
    variants = dict.fromkeys(entry.weighted)
    args = LoadArgs(
        folder=folder,
        variants=variants,
        dtype=torch.float32,
        device=CPU,
        prediction_type="epsilon",
        caption_tokens=75 * chunks,
    )
    return registry.load(entry, args)


@pytest.fixture(scope="module")
def family(folder):
    return load(folder, CHUNKS)


def reference_rows(tokenizer, caption, chunks=CHUNKS):
    """One long row of 75 tokens a chunk between a start and an end, cut up afterwards, as sd-scripts does."""
    size = 75 * chunks + 2
    long = tokenizer(caption, max_length=size, padding="max_length", truncation=True).input_ids
    rows = []
    for first in range(1, size - 1, 75):
        row = [long[0], *long[first : first + 75], long[-1]]
        if row[-2] not in (tokenizer.eos_token_id, tokenizer.pad_token_id):
            row[-1] = tokenizer.eos_token_id
        if row[1] == tokenizer.pad_token_id:
            row[1] = tokenizer.eos_token_id
        rows.append(row)
    return torch.tensor(rows)


class TestTokens:
    @pytest.mark.parametrize("padding", ["<|endoftext|>", "!"])
    @pytest.mark.parametrize("caption", CAPTIONS, ids=[str(len(caption.split())) for caption in CAPTIONS])
    def test_rows_are_those_of_sd_scripts(self, caption, padding):
        tokenizer = tiny.build_tokenizer(pad_token=padding)
        found = token_ids(tokenizer, caption, CHUNKS)
        assert found.dtype == torch.int64 and torch.equal(found, reference_rows(tokenizer, caption))
        inner = [i for row in found.tolist() for i in row if i not in (row[0], row[-1], tokenizer.eos_token_id)]
        plain = tokenizer(caption, add_special_tokens=False).input_ids
        assert inner == plain[: 75 * CHUNKS]  # nothing lost, nothing twice

    def test_a_caption_of_one_row_is_that_row_and_empty_ones(self):
        tokenizer = tiny.build_tokenizer()
        empty = token_ids(tokenizer, "")
        assert torch.equal(token_ids(tokenizer, "a b", 2), torch.stack([token_ids(tokenizer, "a b"), empty]))
        assert torch.equal(token_ids(tokenizer, "", 2), torch.stack([empty, empty]))


@torch.no_grad()
def reference_embedding(folder, cls, caption):
    """By transformers alone, a row at a time."""
    first = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    rows = reference_rows(first, caption)
    if cls is StableDiffusionPipeline:
        states = torch.cat([encoder(row[None]).last_hidden_state[0] for row in rows])
        return {"encoder_hidden_states": states}
    second = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    other = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    narrow = [encoder(row[None], output_hidden_states=True).hidden_states[-2][0] for row in rows]
    outputs = [other(row[None], output_hidden_states=True) for row in reference_rows(second, caption)]
    wide = [output.hidden_states[-2][0] for output in outputs]
    states = torch.cat([torch.cat(narrow), torch.cat(wide)], dim=-1)
    return {"encoder_hidden_states": states, "text_embeds": outputs[0].text_embeds[0]}


class TestEmbedding:
    @pytest.mark.parametrize("caption", [CAPTIONS[0], CAPTIONS[4], CAPTIONS[-1]], ids=["empty", "76", "400"])
    def test_is_transformers_own_row_by_row(self, folder, cls, family, caption):
        found = family.encode_caption(caption)
        assert found["encoder_hidden_states"].shape[0] == 77 * CHUNKS
        torch.testing.assert_close(found, reference_embedding(folder, cls, caption))

    def test_bits_do_not_depend_on_what_else_is_encoded(self, family):
        def encoded(captions):
            found = [family.encode_caption(caption) for caption in captions]
            return [{name: tensor.numpy().tobytes() for name, tensor in one.items()} for one in found]

        assert encoded(CAPTIONS[::-1]) == encoded(CAPTIONS)[::-1]

    def test_a_batch_is_its_captions(self, family):
        """However long they are: captions of a batch have equal shapes."""
        tokens = [family.tokenize(caption) for caption in CAPTIONS]
        assert {ids.shape for own in tokens for ids in own.values()} == {(CHUNKS, 77)}
        with torch.no_grad():
            embedded = family.embed({name: torch.stack([own[name] for own in tokens]) for name in tokens[0]})
        for k, caption in enumerate(CAPTIONS):
            alone = family.encode_caption(caption)
            torch.testing.assert_close({name: rows[k] for name, rows in embedded.items()}, alone)

    def test_words_of_later_rows_count_and_those_beyond_the_last_do_not(self, family):
        def states(caption):
            return family.encode_caption(caption)["encoder_hidden_states"]

        long = CAPTIONS[-1].split()
        late, beyond = [*long], [*long]
        late[224], beyond[225] = "z", "z"
        assert torch.equal(states(" ".join(long))[:154], states(" ".join(late))[:154])
        assert not torch.equal(states(" ".join(long))[154:], states(" ".join(late))[154:])
        assert torch.equal(states(" ".join(long)), states(" ".join(beyond)))


class TestPipeline:
    @pytest.mark.parametrize("negative", [None, "", CAPTIONS[4]], ids=["none", "empty", "76 tokens"])
    def test_it_draws_what_diffusers_draws_from_these_embeddings(self, folder, cls, family, negative):
        def drawn(pipeline, **prompts):
            pipeline.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(1)
            sizes = {"height": 64, "width": 64, "num_inference_steps": 2}
            return np.asarray(pipeline(**prompts, **sizes, generator=generator).images[0])

        prompt, plain = CAPTIONS[5], cls.from_pretrained(folder)
        names = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}
        own, other = reference_embedding(folder, cls, prompt), reference_embedding(folder, cls, negative or "")
        if negative is None and cls is StableDiffusionXLPipeline:  # as its configuration says
            other = {name: torch.zeros_like(tensor) for name, tensor in other.items()}
        given = {names[name]: tensor[None] for name, tensor in own.items()}
        given |= {f"negative_{names[name]}": tensor[None] for name, tensor in other.items()}
        chunked = drawn(family.pipeline, prompt=prompt, negative_prompt=negative)
        assert np.abs(chunked.astype(int) - drawn(plain, **given)).max() <= 1
        assert not np.array_equal(chunked, drawn(plain, prompt=prompt, negative_prompt=negative))  # cut at 77

    def test_one_row_leaves_the_pipeline_alone(self, folder, cls):
        assert type(load(folder, 1).pipeline) is cls


@pytest.mark.parametrize("length", [10**30, 78, 2, 0])
def test_rows_that_the_text_encoder_has_no_place_for(length, tmp_path):
    tiny.build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for name, change in (
        ("tokenizer/tokenizer_config.json", {"model_max_length": length}),
        ("text_encoder/config.json", {}),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | change))
    args = LoadArgs(
        folder=tmp_path, variants={}, dtype=torch.float32, device=CPU, prediction_type="epsilon", caption_tokens=75
    )
    with pytest.raises(ModelError, match=r"tokenizer makes rows of .* takes 77"):
        load_tokenizer(args, "tokenizer")
