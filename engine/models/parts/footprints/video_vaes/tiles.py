"""Predict the memory of decoding a clip in tiles, as validation clips are decoded. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tiles:
    """The size of a VAE's tiles and the distances between them, in pixels of a frame.

    They are those of its class in Diffusers by default, which `enable_tiling` leaves as they are.
    """

    height: int
    width: int
    stride_height: int
    stride_width: int

    def largest(self, side: int) -> int:
        """Return the pixels of the largest tile of frames that have as many pixels as `side` x `side`."""
        return min(side**2, self.height * self.width)

    def peak(self, side: int, tile_bytes: int, pixel_bytes: int, *, copies: int) -> int:
        """Return the bytes that decoding a clip of `side` x `side` takes at most.

        All decoded tiles are kept until they are joined. The peak is either in the last tile of the full size or at the
        end.

        Args:
            side: height and width in pixels.
            tile_bytes: what it takes to decode the largest tile.
            pixel_bytes: bytes of a position in all frames that are decoded.
            copies: how many copies of the clip there are at the end, besides the tiles.
        """
        if side**2 <= self.height * self.width:
            return tile_bytes
        heights, widths = _lengths(side, self.height, self.stride_height), _lengths(side, self.width, self.stride_width)
        tall, wide = (lengths.count(lengths[0]) - 1 for lengths in (heights, widths))
        before = sum(heights[:tall]) * sum(widths) + heights[0] * sum(widths[:wide])
        at_the_end = sum(heights) * sum(widths) + copies * side**2
        return max(tile_bytes + before * pixel_bytes, at_the_end * pixel_bytes)


def _lengths(side: int, tile: int, stride: int) -> list[int]:
    """Return the lengths of the tiles along a side; those of the full length are first."""
    return [min(tile, side - start) for start in range(0, side, stride)]
