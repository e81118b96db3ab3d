"""The image that an explanation is of, and where a mask lies on it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagittal.client.errors import InvalidImage, InvalidRequest
from sagittal.client.images import ImageLike, UnreadableImage, encode_image, to_array
from sagittal.client.preprocessing import Preprocessing
from sagittal.imaging.fitting import Frame, fit_to_input, frame_of
from sagittal.imaging.reading import read_image
from sagittal.imaging.view import View, view_of
from sagittal.v1 import tensor_pb2


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ExplainedImage:
    """An image as it was sent, and how it became the model's input."""

    source: tensor_pb2.Image
    """The image as the API has it: a file, pixels, or a model's input."""
    preprocessing: Preprocessing | None = None
    """None if the image is what the model saw, whole."""
    baseline: tensor_pb2.Image | None = None
    """The baseline that was given, for the kind "image"."""

    def __repr__(self) -> str:
        return f"ExplainedImage({self.source.WhichOneof('source')}, {self.source.ByteSize():,} bytes)"

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The image as people see it: uint8 RGB of shape (height, width, 3), upright, alpha over white.

        Raises:
            UnreadableImage: the file is damaged.
        """
        return _pixels(self.source, self.preprocessing)

    @property
    def frame(self) -> Frame:
        """The part of the image that the model sees."""
        if self.preprocessing is None or self.source.WhichOneof("source") == "model_input":
            return Frame()
        return frame_of(self.pixels.shape[:2], self.preprocessing)

    def view(self, kind: str, blur_sigma: float) -> View:
        """Returns what the model saw, at its input's size, with the baseline of a kind that a job reported."""
        given = None if self.baseline is None else self._fitted(self.baseline)
        return view_of(self._fitted(self.source), kind, blur_sigma, given)

    def _fitted(self, image: tensor_pb2.Image) -> NDArray[np.float32]:
        pixels = _pixels(image, self.preprocessing)
        if self.preprocessing is not None and image.WhichOneof("source") != "model_input":
            pixels = fit_to_input(pixels, self.preprocessing)
        return np.asarray(pixels / 255, np.float32)


def explained_image(
    image: ImageLike | tensor_pb2.Image,
    preprocessing: Preprocessing | None,
    baseline: ImageLike | tensor_pb2.Image | None = None,
) -> ExplainedImage:
    """Returns an image to be drawn on.

    Raises:
        InvalidImage: it is no image, or cannot be read.
        InvalidRequest: it is not square, and nobody said how it became the model's input.
    """
    source = image if isinstance(image, tensor_pb2.Image) else encode_image(image, field="image")
    if baseline is not None and not isinstance(baseline, tensor_pb2.Image):
        baseline = encode_image(baseline, field="baseline")
    found = ExplainedImage(source, preprocessing, baseline)
    if preprocessing is None:
        height, width = found.pixels.shape[:2]
        if height != width:
            text = (
                f"the image has {width} x {height} pixels and nothing says which part of it the model saw: give "
                "preprocessing=Preprocessing(...), or the square image that the model saw"
            )
            raise InvalidRequest(text, field="preprocessing")
    return found


def _pixels(image: tensor_pb2.Image, preprocessing: Preprocessing | None) -> NDArray[np.uint8]:
    kind = image.WhichOneof("source")
    if kind == "encoded":
        try:
            return read_image(image.encoded)
        except (OSError, SyntaxError, ValueError) as error:
            raise UnreadableImage(f"cannot read the image: {error}", field="image") from error
    if kind == "pixels":
        array = to_array(image.pixels)
        scale = 1.0 if image.pixels.dtype == tensor_pb2.DATA_TYPE_UINT8 else 255.0
        return np.asarray(np.rint(array * scale), np.uint8)
    if kind == "model_input" and preprocessing is not None:
        return _seen_in(to_array(image.model_input), preprocessing)
    raise InvalidImage("a model's input is drawn by its preprocessing, which is not known here", field="preprocessing")


def _seen_in(values: NDArray[np.float32], how: Preprocessing) -> NDArray[np.uint8]:
    """Returns the picture that a model's input (3, height, width) stands for."""
    mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in (how.mean, how.std))
    scaled = (values * std + mean)[:: -1 if how.channel_order == "BGR" else 1]
    return np.asarray(np.rint(np.clip(scaled, 0, 1) * 255).transpose(1, 2, 0), np.uint8)
