"""Composition of a model's inputs from masks, and the gradient with respect to the masks.

The backward pass is explicit: autograd ends at the model's inputs, and the composition before them is linear in the
mask. On CUDA one compiled kernel composes the inputs; see `sagittal.engine.cuda.fusing`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from sagittal.engine.cuda.fusing import Fused, Taps, taps_of
from sagittal.engine.masking import upsample
from sagittal.engine.requests import Evaluate, Subject, Upsampling

OFFSETS = 2**20
"""Number of different windows."""

_MASK = 2**64 - 1


class NoiseTable:
    """Standard normal noise by seed, on one device, copied from a table instead of generated.

    Generating noise for an image costs several percent of a small network's forward pass. Rows are therefore windows of
    one long table, at offsets that are a hash of the seed. Overlapping windows are shifted against each other, so that
    the noise of two rows at one pixel is as independent as the entries of the table. The table is generated on the CPU,
    so that rows are the same on every device.
    """

    def __init__(self, device: torch.device) -> None:
        """Constructs an empty table."""
        self._device = device
        self._table = torch.empty(0)

    def rows(self, seeds: Sequence[int], shape: torch.Size) -> Tensor:
        """Returns noise of shape (seeds, *shape), float32; equal seeds and shapes give equal noise."""
        length = shape.numel()
        windows = self.table(length)[: OFFSETS + length - 1].unfold(0, length, 1)
        return windows.index_select(0, self.offsets(seeds)).view(len(seeds), *shape)

    def table(self, length: int) -> Tensor:
        """Returns the table, with windows of at least a length."""
        self._draw(length)
        return self._table

    def offsets(self, seeds: Sequence[int]) -> Tensor:
        """Returns where the window of each seed begins, int64 of shape (seeds,)."""
        return moved(torch.tensor([_hash(seed) % OFFSETS for seed in seeds]), self._device)

    def add(self, inputs: Tensor, seeds: Sequence[int], scale: float) -> None:
        """Adds noise, multiplied by `scale`, to inputs (seeds, ...)."""
        if self._device.type != "cpu":
            inputs.add_(self.rows(seeds, inputs.shape[1:]), alpha=scale)
            return
        # A call for each row is cheaper here than a copy of all noise.
        shape = inputs.shape[1:]
        self._draw(shape.numel())
        for row, seed in zip(inputs, seeds, strict=True):
            offset = _hash(seed) % OFFSETS
            row.add_(self._table[offset : offset + shape.numel()].view(shape), alpha=scale)

    def _draw(self, length: int) -> None:
        """Extends the table to a length. A longer table starts with the shorter one, so that seeds keep their noise."""
        if len(self._table) >= OFFSETS + length:
            return
        with torch.inference_mode(False), torch.no_grad():
            blocks = -(-(OFFSETS + length) // OFFSETS)
            generator = torch.Generator()
            drawn = [torch.randn(OFFSETS, generator=generator.manual_seed(block)) for block in range(blocks)]
            self._table = torch.cat(drawn).to(self._device)


def _hash(seed: int) -> int:
    """Returns a 64-bit hash that separates neighbouring seeds (the finalizer of SplitMix64)."""
    value = (seed + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


ALIGNED = 16
"""Sizes are padded to multiples of this many numbers, a cache line: kernels round differently at other alignments, and
the result of a row should not depend on its position in the batch."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Upsamples masks of one size to images of another, and returns gradients.

    Two small matrix products upsample a mask, and their transposes return the gradient. On a CPU that is several times
    as fast as interpolation and its backward pass. On CUDA it is deterministic; the backward pass of interpolation is
    not, because it adds in the order of its threads.
    """

    rows: Tensor
    """Float32 of shape (height, mask height), both padded with zeros."""
    columns: Tensor
    """Float32 of shape (width, mask width), both padded with zeros."""
    cells: tuple[int, int]
    size: tuple[int, int]

    def up(self, masks: Tensor) -> Tensor:
        """Returns masks (n, h, w) as (n, height, width)."""
        if self.cells == self.size:
            return masks
        stretched = _between(self.rows, _padded(masks), self.columns.T)
        return stretched[:, : self.size[0], : self.size[1]]

    def back(self, of_pixels: Tensor) -> Tensor:
        """Returns the gradient with respect to masks (n, h, w), given that of the upsampled masks."""
        if self.cells == self.size:
            return of_pixels
        gradient = _between(self.rows.T, _padded(of_pixels), self.columns)
        return gradient[:, : self.cells[0], : self.cells[1]].contiguous()

    @cached_property
    def taps(self) -> Taps:
        """The same upsampling as weighted sums of cells."""
        (height, width), (h, w) = self.size, self.cells
        return taps_of(self.rows[:height, :h], self.columns[:width, :w])


def stretch_of(cells: tuple[int, int], size: tuple[int, int], how: Upsampling, device: torch.device) -> Stretch:
    """Returns the upsampling from masks of `cells` to images of `size`, in pixels."""
    rows, columns = (_along_axis(few, many, how, device) for few, many in zip(cells, size, strict=True))
    return Stretch(rows, columns, cells, size)


def _along_axis(cells: int, pixels: int, how: Upsampling, device: torch.device) -> Tensor:
    """Returns the upsampled unit vectors, as columns."""
    units = torch.eye(cells, device=device).unsqueeze(-1)
    return _padded(upsample(units, (pixels, 1), how).view(1, cells, pixels).mT)[0].contiguous()


def _padded(batch: Tensor) -> Tensor:
    """Pads (n, h, w) with zeros to aligned sizes."""
    below, beside = -batch.shape[-2] % ALIGNED, -batch.shape[-1] % ALIGNED
    return F.pad(batch, (0, beside, 0, below)) if below or beside else batch


def _between(left: Tensor, batch: Tensor, right: Tensor) -> Tensor:
    """Multiplies each matrix of a batch from both sides, one by one: a joint product would round by the batch size."""
    half = torch.bmm(left.expand(len(batch), *left.shape), batch)
    return torch.bmm(half, right.expand(len(batch), *right.shape))


SUBJECTS_KEPT = 64
"""Number of subjects whose tensors stay on the device: a few more than a worker's concurrent jobs."""

STRETCHES_KEPT = 64
"""Number of pairs of mask and image size whose matrices stay on the device: at most 1 MB each at common sizes."""


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
    """Image minus baseline: the contribution of a mask of 1."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.baseline.shape[-2], self.baseline.shape[-1]


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """Data that the gradient of one part needs."""

    rows: int
    stretch: Stretch
    difference: Tensor
    fused: Fused | None = None

    def gradient(self, of_inputs: Tensor) -> Tensor:
        """Returns the gradient with respect to the masks, given that with respect to the inputs."""
        if self.fused is not None:
            return self.stretch.back(self.fused.by_pixel(of_inputs, self.difference))
        of_pixels = of_inputs[:, 0] * self.difference[0]
        for channel in range(1, len(self.difference)):
            of_pixels.addcmul_(of_inputs[:, channel], self.difference[channel])
        return self.stretch.back(of_pixels)


@dataclass(slots=True, eq=False)
class Composer:
    """Composes inputs from masks on one device. Every row has the same noise in every evaluation."""

    device: torch.device
    layout: torch.memory_format = torch.contiguous_format
    """Memory layout of the inputs that the model needs."""
    fused: Fused | None = None
    """Compiled functions that compose; None for matrix products."""
    _noise: NoiseTable = field(init=False)
    _canvases: OrderedDict[int, Canvas] = field(default_factory=OrderedDict)
    _stretches: dict[tuple[torch.Size, tuple[int, int], Upsampling], Stretch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._noise = NoiseTable(self.device)

    @torch.no_grad()
    def compose(self, part: Part, inputs: Tensor) -> Composed:
        """Writes `image * mask + baseline * (1 - mask)` into inputs (rows, ...), with noise and alterations.

        Raises ValueError for alterations of a request with gradient: the gradient does not pass through them.
        """
        request, canvas = part.request, self._canvas(part.request.subject)
        if request.gradient and request.alterations:
            raise ValueError("alterations have no gradient; request scores without gradient")
        masks = self.moved(request.masks[part.start : part.stop].detach().to(torch.float32))
        stretch = self._stretch(masks.shape[1:], canvas.size, request.upsampling)
        seeds = range(request.noise_seed + part.start, request.noise_seed + part.stop) if request.noise > 0 else ()
        if self.fused is not None:
            self._compose_fused(self.fused, inputs, masks, stretch, canvas, seeds, request.noise)
        else:
            torch.addcmul(canvas.baseline, stretch.up(masks).unsqueeze(1), canvas.difference, out=inputs)
            if seeds:
                self._noise.add(inputs, seeds, request.noise)
        for alter in request.alterations:
            alter(inputs)
        return Composed(part.rows, stretch, canvas.difference, self.fused)

    def _compose_fused(
        self,
        fused: Fused,
        inputs: Tensor,
        masks: Tensor,
        stretch: Stretch,
        canvas: Canvas,
        seeds: Sequence[int],
        noise: float,
    ) -> None:
        arguments = (inputs, masks, stretch.taps, canvas.baseline, canvas.difference)
        if seeds:
            table, offsets = self._noise.table(canvas.difference.numel()), self._noise.offsets(seeds)
            # A tensor, because each other number would be compiled again.
            fused.compose_noisy(*arguments, noise=(table, offsets, self.moved(torch.tensor(noise))))
        else:
            fused.compose(*arguments)

    def _stretch(self, cells: torch.Size, size: tuple[int, int], how: Upsampling) -> Stretch:
        """Returns the upsampling for a mask and image size, cached from earlier requests."""
        key = (cells, size, how)
        if key not in self._stretches:
            if len(self._stretches) >= STRETCHES_KEPT:
                self._stretches.clear()
            # Outside inference mode, because requests with gradient use it too.
            with torch.inference_mode(False), torch.no_grad():
                self._stretches[key] = stretch_of((cells[0], cells[1]), size, how, self.device)
        return self._stretches[key]

    def _canvas(self, subject: Subject) -> Canvas:
        """Returns the subject on the device, cached from earlier requests; the least recently used is evicted."""
        canvas = self._canvases.get(id(subject))
        if canvas is None:
            # Outside inference mode, because requests with gradient use it too.
            with torch.inference_mode(False), torch.no_grad():
                image, baseline = self._laid_out(subject.image), self._laid_out(subject.baseline)
                canvas = Canvas(subject, baseline, image - baseline)
            # The canvas references the subject, so that its id is unique while it is a key.
            self._canvases[id(subject)] = canvas
            while len(self._canvases) > SUBJECTS_KEPT:
                self._canvases.popitem(last=False)
        self._canvases.move_to_end(id(subject))
        return canvas

    def _laid_out(self, image: Tensor) -> Tensor:
        """Returns an image on the device, in the layout that composed inputs will have."""
        return self.moved(image.to(torch.float32)).unsqueeze(0).contiguous(memory_format=self.layout)[0]

    def moved(self, tensor: Tensor) -> Tensor:
        """Returns a tensor on the device; see `moved`."""
        return moved(tensor, self.device)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device; from the host to CUDA through pinned memory, without waiting for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
