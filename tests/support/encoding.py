"""A visit encoder over a family and a dataset that are read at a glance, and what it must give."""

import numpy as np

from engine.core import rng
from engine.data.media import image
from engine.data.media.geometry import UnreadableImage, geometry
from engine.data.media.image import IMAGE
from engine.task.plan.steps import StepRange
from engine.task.plan.visits import VisitStream
from engine.task.task import Dataset, Model, Task, TrainArgs, Transforms
from engine.training.distributed.processes import Processes
from engine.training.encoding.build import build_visit_encoder
from engine.training.encoding.cache import EncodingCache
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.encoding.visit_encoder import Example
from tests.support.fakes import CPU, FakeDataset, LinearFamily, png

SIZES = ((8, 8), (16, 8), (8, 12))
RESOLUTION = 8
STEPS, BATCH = 12, 2


def good(count=7):
    return [png(k, SIZES[k % 3]) for k in range(count)]


def with_unreadable(count=7):
    images = good(count)
    images[1] = None  # no file
    images[3] = b"not an image"  # no header
    images[4] = images[4][:90]  # a header, but it cannot be decoded
    images[5] = images[5][:-30]
    return images


class Setup:
    def __init__(
        self,
        images,
        cache_dir,
        *,
        workers=0,
        start=0,
        flip=True,
        center_crop=False,
        texts=None,
        seed=0,
        masks=None,
        order=None,
        dataset=None,
        micro_batches=1,
        text_encoder=False,
        processes=None,
        loading_again=None,
        max_bytes=1 << 24,
        starts_small=False,
        device=CPU,
        stays=False,
        medium=IMAGE,
        num_frames=1,
        **wanted,
    ):
        self.task = Task(
            model=Model(name="m"),
            dataset=Dataset(name="d", **wanted),
            train_args=TrainArgs(
                resolution=RESOLUTION, batch_size=BATCH, num_frames=num_frames, train_text_encoder=text_encoder
            ),
            transforms=Transforms(random_flip=flip, center_crop=center_crop),
            dataloader_num_workers=workers,
            seed=seed,
        )
        self.dataset = dataset or FakeDataset(images, texts, masks=masks)
        self.family = LinearFamily(width=48)
        self.family.latent_shape = lambda extent: (3, extent.height // 2, extent.width // 2)
        self.stream = VisitStream(
            seed=seed, num_rows=len(images), random_flip=flip, num_train_timesteps=1000, order=order
        )
        self.start = start
        self.said, self.stops, self.on_stop = [], 0, lambda: None
        self.encoder = build_visit_encoder(
            self.task,
            self.dataset,
            medium,
            stream=self.stream,
            step_range=StepRange(
                num_rows=len(images),
                batch_size=BATCH,
                micro_batches=micro_batches,
                start_step=start,
                stop_step=STEPS,
                max_steps=STEPS,
            ),
            family=self.family,
            cache=EncodingCache(cache_dir, {}, max_bytes=max_bytes),
            placement=EncoderPlacement(self.family, device, loading_again=loading_again, stays=stays),
            processes=processes or Processes(),
            check_stop=self.count_stop,
            starts_small=starts_small,
            say=self.said.append,
        )

    def count_stop(self):
        self.stops += 1
        self.on_stop()

    def run(self):
        return [self.encoder.examples(step) for step in range(self.start, STEPS)]


def frozen(steps):
    """Examples as values that compare."""
    return [
        [
            (
                example.visit,
                {name: tensor.numpy().tobytes() for name, tensor in example.moments.items()},
                {name: tensor.numpy().tobytes() for name, tensor in example.conditioning.items()},
                {name: tensor.numpy().tobytes() for name, tensor in example.tokens.items()},
            )
            for example in examples
        ]
        for examples in steps
    ]


def reference(setup):
    """One visit after the other, straight from the definition: no windows, no cache, nothing remembered."""
    result = []
    family = LinearFamily(width=48)
    images = setup.dataset.images

    def readable(sample):
        try:
            data = images[sample] or b""
            size = image.image_size(data)
            view = geometry(size, target=(8, 8), center_crop=True, crop_words=(0, 0), flip=False)
            image.render(data, view)
        except UnreadableImage:
            return False
        return True

    usable = {sample for sample in range(len(images)) if readable(sample)}
    for visit in setup.stream.visits(setup.start * BATCH, (STEPS - setup.start) * BATCH):
        order = rng.permutation(setup.task.seed, "permutation", visit.epoch, len(images)).tolist()
        place = order.index(visit.sample)
        sample = next(s for s in order[place:] + order[:place] if s in usable)
        view = geometry(
            image.image_size(images[sample]),
            target=(RESOLUTION, RESOLUTION),
            center_crop=setup.task.transforms.center_crop,
            crop_words=visit.crop_words,
            flip=visit.flip,
        )
        captions = setup.dataset.captions(sample)
        caption = captions[int(rng.below(np.array([visit.caption_word], dtype=np.uint64), len(captions))[0])]
        moments = family.encode_pixels(image.render(images[sample], view))
        result.append(Example(visit, moments, family.encode_caption(caption) | family.place(view)))
    return [result[k : k + BATCH] for k in range(0, len(result), BATCH)]
