"""Paints saliency and sets of patches over an image, on a fixed scale, so an empty mask paints nothing."""

import io

import numpy as np
import PIL.Image
from numpy.typing import NDArray

Picture = NDArray[np.float32]


def _table(stops: str) -> NDArray[np.float32]:
    """Returns 256 colours, in steps between the given ones, as float32 of shape (256, 3)."""
    given = np.array([list(bytes.fromhex(stop)) for stop in stops.split()], np.float32) / 255
    places = np.linspace(0, len(given) - 1, 256)
    channels = [np.interp(places, np.arange(len(given)), given[:, channel]) for channel in range(3)]
    return np.stack(channels, 1).astype(np.float32)


#: Colours of saliency (inferno): 0 is dark, 1 is bright, and each step looks as large as any other.
HEAT = _table(
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 "
    "fcffa4"
)
#: Colours of signed saliency: blue is evidence against the class, red is evidence for it.
SIGNED = _table(
    "053061 175290 2a71b2 3f8ec0 6bacd1 9bc9e0 c2ddec e0ecf3 f7f6f6 fbe5d8 fbccb4 f5aa89 e48066 d05548 ba2832 930e26 "
    "67001f"
)

#: Contrast and grey level of hidden parts: those that the model does not see, or that a set of patches excludes.
_FAINT, _GREY = 0.25, 0.7


def overlay(image: Picture, saliency: NDArray[np.float32]) -> Picture:
    """Returns an image with saliency painted over it; where saliency is 0, the image is unchanged.

    Args:
        image: float32 RGB of shape (height, width, 3), 0 to 1.
        saliency: Shape (height, width), 0 to 1, or -1 to 1 if it is signed. NaN marks parts that the model does not
            see; the image is faint and grey there.
    """
    unseen = np.isnan(saliency)
    values = np.where(unseen, 0, saliency)
    signed = bool((values < 0).any())
    strength = np.clip(np.abs(values), 0, 1)
    shade = (np.clip(values, -1, 1) + 1) / 2 if signed else strength
    colours = (SIGNED if signed else HEAT)[(shade * 255).astype(np.uint8)]
    alpha = (0.85 * strength**0.8)[..., None]
    painted = image * (1 - alpha) + colours * alpha
    return np.asarray(np.where(unseen[..., None], faint(image), painted), np.float32)


def show_only(image: Picture, shown: NDArray[np.float32]) -> Picture:
    """Returns an image that is unchanged where `shown` (height, width) is 1, and faint elsewhere."""
    kept = np.where(np.isnan(shown), 0, shown)[..., None]
    return np.asarray(image * kept + faint(image) * (1 - kept), np.float32)


def faint(image: Picture) -> Picture:
    """Returns an image with low contrast, in light grey."""
    return np.asarray(image.mean(2, keepdims=True) * _FAINT + _GREY, np.float32)


def heatmap(saliency: NDArray[np.float32], signed: bool = False) -> Picture:
    """Returns saliency (height, width) as a picture, on a fixed scale."""
    shade = (saliency + 1) / 2 if signed else saliency
    return (SIGNED if signed else HEAT)[(np.clip(shade, 0, 1) * 255).astype(np.uint8)]


def to_image(picture: Picture) -> PIL.Image.Image:
    """Returns a picture as an image of Pillow."""
    return PIL.Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


def to_png(image: PIL.Image.Image) -> bytes:
    """Returns an image as the bytes of a PNG file; equal images give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()
