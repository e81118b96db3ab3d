"""Draws an explanation in a notebook while it forms."""

import time
from dataclasses import replace
from typing import Any

from sagittal.client.events import Completed, Event, Mask
from sagittal.client.explanation import Explanation
from sagittal.client.extras import import_extra
from sagittal.client.gathering import Gathering
from sagittal.client.images import ImageLike


class LiveDisplay:
    """Draws the events that it is called with in the output of a notebook cell, replacing the previous drawing.

        client.explain("cat.jpg", model="efficientnet-lite0", partial_masks=True, on_event=LiveDisplay("cat.jpg"))

    Pass it as `on_event` to the client's or `sagittal.explain`'s `explain`, or call it with each event of a stream.
    """

    def __init__(self, image: ImageLike | None = None, *, interval: float = 0.5) -> None:
        """Constructs the display; the first event draws it.

        Args:
            image: The explained image; None shows only masks.
            interval: Minimum time between two drawings, in seconds.

        Raises:
            MissingExtra: IPython is not installed.
        """
        self._display = import_extra("IPython.display").display
        self._image = image
        self._interval = interval
        self._gathering = Gathering()
        self._partial: Mask | None = None
        self._handle: Any = None
        self._drawn = -float("inf")

    @property
    def explanation(self) -> Explanation:
        """The explanation so far, including an intermediate mask."""
        found = self._gathering.explanation("completed" if self._gathering.completed else "running")
        if self._partial is not None and not found.masks:
            found = replace(found, masks=(self._partial,))
        if self._image is not None and found.prediction is not None:
            found = found.with_image(self._image)
        return found

    def __call__(self, event: Event) -> None:
        """Adds an event, and draws the explanation unless the last drawing was within the interval."""
        self._gathering.add(event)
        if isinstance(event, Mask) and not event.final:
            self._partial = event
        now = time.monotonic()
        if isinstance(event, Completed) or now - self._drawn >= self._interval:
            self._drawn = now
            self._draw(self.explanation)

    def _draw(self, found: Explanation) -> None:
        if self._handle is None:
            self._handle = self._display(found, display_id=True)
        else:
            self._handle.update(found)
