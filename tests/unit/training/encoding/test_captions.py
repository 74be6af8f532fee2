"""Captions: which of an image's a visit has, and what is encoded or tokenised of it."""

import hashlib
import json
from itertools import chain

import pytest
import torch

from engine.core.errors import NonFiniteError
from engine.data.media import image
from engine.data.media.geometry import geometry
from tests.support.encoding import RESOLUTION, Setup, frozen, good, reference
from tests.support.fakes import LinearFamily


def test_captions_are_drawn_by_the_visit_from_the_samples_own(tmp_path):
    texts = [tuple(f"{k} {'x' * i}" for i in range(1 + k % 3)) for k in range(6)]
    setup = Setup(good(6), tmp_path, texts=texts)
    seen = {}
    family = LinearFamily()
    known = {family.encode_caption(t)["states"].numpy().tobytes(): t for own in texts for t in own}
    for examples in setup.run():
        for example in examples:
            text = known[example.conditioning["states"].numpy().tobytes()]
            assert text in texts[example.visit.sample]
            seen.setdefault(example.visit.sample, set()).add(text)
    assert any(len(found) > 1 for found in seen.values()), "more than one of a list is used"


def test_a_conditioning_that_is_not_finite_names_the_caption_and_is_not_stored(tmp_path):
    setup = Setup(good(2), tmp_path, texts=[("a cat",), ("a cat",)])
    setup.family.encode_caption = lambda caption: {"states": torch.tensor([1.0, torch.inf])}
    with pytest.raises(NonFiniteError, match=r"from the caption 'a cat': .*mixed_precision"):
        setup.run()
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) <= 2, "images alone"


def test_captions_are_tokenised_only_where_the_text_encoders_are_trained(tmp_path):
    texts = [(f"one {k}", f"other {k}") for k in range(7)]
    frozen_text = Setup(good(), tmp_path / "frozen", texts=texts)
    trained = Setup(good(), tmp_path / "trained", texts=texts, text_encoder=True)
    for ahead, later in zip(chain(*frozen_text.run()), chain(*trained.run()), strict=True):
        assert later.visit == ahead.visit and ahead.tokens == {}
        assert later.conditioning.keys() == {"corner"} == ahead.conditioning.keys() - {"states"}
        family = trained.family
        embedded = family.embed({name: ids[None] for name, ids in later.tokens.items()})
        assert torch.equal(embedded["states"][0], ahead.conditioning["states"])
    assert trained.family.encoded_captions == []


class TestWording:
    def test_captions_are_worded_and_shuffled_ones_leave_the_disk_alone(self, tmp_path):
        texts = [(f"a{k}, b, c, d",) for k in range(7)]
        wanted = {"trigger_word": "sks", "shuffle_tags": True, "keep_tokens": 1}
        setup = Setup(good(), tmp_path, texts=texts, **wanted)
        setup.run()
        said = setup.family.encoded_captions
        assert all(text.startswith("sks, a") and sorted(text[9:].split(", ")) == ["b", "c", "d"] for text in said)
        assert len(set(said)) > 7
        again = Setup(good(), tmp_path, texts=texts, **wanted)
        again.run()
        assert again.family.encoded_captions == said  # nothing was stored
        fixed = [Setup(good(), tmp_path, texts=texts, trigger_word="sks") for _ in range(2)]
        assert frozen(fixed[0].run()) == frozen(fixed[1].run()) and fixed[1].family.encoded_captions == []

    def test_the_cache_knows_captions_of_several_rows_apart(self, tmp_path):
        """Equal captions, another length: 75 is the default."""
        encoded = {}
        for tokens in (None, 75, 150, 225):
            setup = Setup(good(), tmp_path, max_caption_tokens=tokens)
            setup.run()
            encoded[tokens] = len(setup.family.encoded_captions)
        assert encoded[75] == 0 and encoded[None] == encoded[150] == encoded[225] > 0


def test_a_caption_spelled_like_an_images_address_is_still_a_caption(tmp_path):
    """The keys of images and captions share one cache, which jobs of strangers share too."""
    images = good(3)
    plain = Setup(images, tmp_path / "reference", center_crop=True, flip=False)
    plain.run()
    digest, size = hashlib.sha256(images[0]).hexdigest(), image.image_size(images[0])
    view = geometry(size, target=(RESOLUTION, RESOLUTION), center_crop=True, crop_words=(0, 0), flip=False)
    address = json.dumps([digest, view.target[0], view.top, view.left, view.flip], separators=(",", ":"))
    Setup(images, tmp_path / "cache", texts=[(address,)] * 3, center_crop=True, flip=False).run()
    honest = Setup(images, tmp_path / "cache", center_crop=True, flip=False)
    assert frozen(honest.run()) == frozen(reference(honest))
