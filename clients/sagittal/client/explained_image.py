"""The image of an explanation, and the position of a mask on it."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from sagittal.client.errors import InvalidImage, InvalidRequest
from sagittal.client.images import ImageLike, UnreadableImage, encode_image, to_array
from sagittal.client.preprocessing import Preprocessing
from sagittal.client.requests import check_kind
from sagittal.imaging.fitting import Frame, fit_to_input, frame_of, picture_of_input
from sagittal.imaging.overlays import to_png
from sagittal.imaging.reading import read_image
from sagittal.imaging.view import View, view_of
from sagittal.v1 import explanation_service_pb2, tensor_pb2


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ExplainedImage:
    """An image as it was sent, and its conversion to the model's input."""

    source: tensor_pb2.Image
    """The image as the API's message: a file, pixels, or a model's input."""
    preprocessing: Preprocessing | None = None
    """None if the image is exactly what the model saw."""
    baseline: tensor_pb2.Image | None = None
    """The given baseline, for the kind "image"."""

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
        """Returns what the model saw, at its input size, with a baseline of the kind that a job reported."""
        given = None if self.baseline is None else self._fitted(self.baseline)
        return view_of(self._fitted(self.source), kind, blur_sigma, given)

    def _fitted(self, image: tensor_pb2.Image) -> NDArray[np.float32]:
        pixels = _pixels(image, self.preprocessing)
        if self.preprocessing is not None and image.WhichOneof("source") != "model_input":
            pixels = fit_to_input(pixels, self.preprocessing)
        return np.asarray(pixels / 255, np.float32)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class JobImage:
    """An image of a stored job."""

    source: tensor_pb2.Image
    """The image as the API's message."""
    exact: bool
    """Whether it is what was tested, up to rounding; see the API's `GetExplanationImageResponse`."""

    def __repr__(self) -> str:
        return f"JobImage({self.source.WhichOneof('source')}, {self.source.ByteSize():,} bytes, exact={self.exact})"

    @staticmethod
    def of(message: explanation_service_pb2.GetExplanationImageResponse) -> "JobImage":
        """Returns an image that the service sent."""
        return JobImage(message.image, message.exact)

    @property
    def encoded(self) -> bytes:
        """The bytes of the file; empty for an image that was sent as an array."""
        return self.source.encoded

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The image as uint8 RGB of shape (height, width, 3). Raises InvalidImage for a model's input."""
        return _pixels(self.source, None)

    def _repr_png_(self) -> bytes:
        return to_png(PIL.Image.fromarray(self.pixels))


def explained_image(
    image: ImageLike | tensor_pb2.Image,
    preprocessing: Preprocessing | None,
    baseline: ImageLike | tensor_pb2.Image | None = None,
) -> ExplainedImage:
    """Returns an image to draw on.

    Raises:
        InvalidImage: it is no image, or cannot be read.
        InvalidRequest: it is not square, and its conversion to the model's input is unknown.
    """
    source = image if isinstance(image, tensor_pb2.Image) else encode_image(image, field="image")
    if baseline is not None and not isinstance(baseline, tensor_pb2.Image):
        baseline = encode_image(baseline, field="baseline")
    if preprocessing is not None:
        check_kind(preprocessing, Preprocessing, "preprocessing", "Preprocessing(...)")
    found = ExplainedImage(source, preprocessing, baseline)
    if preprocessing is None:
        height, width = found.pixels.shape[:2]
        if height != width:
            text = (
                f"the image has {width} x {height} pixels, and the part that the model saw is unknown: give "
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
        return picture_of_input(to_array(image.model_input), preprocessing)
    raise InvalidImage("drawing a model's input requires its preprocessing, which is unknown", field="preprocessing")
