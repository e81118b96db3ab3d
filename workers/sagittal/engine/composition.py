"""From masks to a model's inputs, and from the gradient of the inputs back to the masks.

The way back is done by hand: the model's gradient ends at its inputs, and what lies before them is linear in the mask.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sagittal.engine.noise import NoiseTable
from sagittal.engine.requests import Evaluate, Subject, Upsampling
from sagittal.engine.stretching import Stretch, stretch_of

SUBJECTS_KEPT = 64
"""Subjects whose tensors stay on the device: as many as a worker runs jobs, and some."""

STRETCHES_KEPT = 64
"""Pairs of mask and image size whose matrices stay on the device: at most a megabyte each at common sizes."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows `start` to `stop` of a request."""

    request: Evaluate
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """A subject on the device."""

    subject: Subject
    baseline: Tensor
    difference: Tensor
    """Image less baseline: what a mask of 1 adds to the baseline."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.baseline.shape[-2], self.baseline.shape[-1]


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """What the way back from the inputs of one part needs."""

    rows: int
    stretch: Stretch
    difference: Tensor

    def gradient(self, of_inputs: Tensor) -> Tensor:
        """Returns the gradient with respect to the masks, given that with respect to the inputs."""
        of_pixels = of_inputs[:, 0] * self.difference[0]
        for channel in range(1, len(self.difference)):
            of_pixels.addcmul_(of_inputs[:, channel], self.difference[channel])
        return self.stretch.back(of_pixels)


@dataclass(slots=True, eq=False)
class Composer:
    """Makes inputs of masks on one device. Every row gets the same noise wherever it is evaluated."""

    device: torch.device
    layout: torch.memory_format = torch.contiguous_format
    """Layout of the inputs, as the model wants them."""
    _noise: NoiseTable = field(init=False)
    _canvases: OrderedDict[int, Canvas] = field(default_factory=OrderedDict)
    _stretches: dict[tuple[torch.Size, tuple[int, int], Upsampling], Stretch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._noise = NoiseTable(self.device)

    @torch.no_grad()
    def compose(self, part: Part, inputs: Tensor) -> Composed:
        """Writes `image * mask + baseline * (1 - mask)` into inputs (rows, ...), with noise where it is asked for."""
        request, canvas = part.request, self._canvas(part.request.subject)
        masks = self._moved(request.masks[part.start : part.stop].detach())
        stretch = self._stretch(masks.shape[1:], canvas.size, request.upsampling)
        torch.addcmul(canvas.baseline, stretch.up(masks).unsqueeze(1), canvas.difference, out=inputs)
        if request.noise > 0:
            rows = range(request.noise_seed + part.start, request.noise_seed + part.stop)
            self._noise.add(inputs, rows, request.noise)
        return Composed(part.rows, stretch, canvas.difference)

    def _stretch(self, cells: torch.Size, size: tuple[int, int], how: Upsampling) -> Stretch:
        """Returns how masks are brought to the image's size, kept from earlier requests."""
        key = (cells, size, how)
        if key not in self._stretches:
            if len(self._stretches) >= STRETCHES_KEPT:
                self._stretches.clear()
            # Outside inference mode, since requests with gradient use it too.
            with torch.inference_mode(False), torch.no_grad():
                self._stretches[key] = stretch_of((cells[0], cells[1]), size, how, self.device)
        return self._stretches[key]

    def _canvas(self, subject: Subject) -> Canvas:
        """Returns the subject on the device, kept from earlier requests; the least recently used goes first."""
        canvas = self._canvases.get(id(subject))
        if canvas is None:
            # Outside inference mode, since requests with gradient use it too.
            with torch.inference_mode(False), torch.no_grad():
                image, baseline = self._laid_out(subject.image), self._laid_out(subject.baseline)
                canvas = Canvas(subject, baseline, image - baseline)
            # The canvas holds the subject, so its id belongs to no other for as long as it is a key.
            self._canvases[id(subject)] = canvas
            while len(self._canvases) > SUBJECTS_KEPT:
                self._canvases.popitem(last=False)
        self._canvases.move_to_end(id(subject))
        return canvas

    def _laid_out(self, image: Tensor) -> Tensor:
        """Returns an image on the device; what is composed of it has the same layout."""
        return self._moved(image).unsqueeze(0).contiguous(memory_format=self.layout)[0]

    def _moved(self, tensor: Tensor) -> Tensor:
        """Returns a tensor on the device; from the host to CUDA through pinned memory, without waiting for the copy."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, torch.float32, non_blocking=True)
