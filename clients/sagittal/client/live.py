"""An explanation that is drawn in a notebook while it forms."""

import time
from dataclasses import replace
from typing import Any

from sagittal.client.events import Completed, Event, Mask
from sagittal.client.explanation import Explanation, Gathering
from sagittal.client.extras import import_extra
from sagittal.client.images import ImageLike


class LiveDisplay:
    """Draws the events that it is called with in the output of a notebook's cell, in place of what was there.

        client.explain("cat.jpg", model="efficientnet-lite0", partial_masks=True, on_event=LiveDisplay("cat.jpg"))

    It is called with each event: by `explain(on_event=...)` of the client and of `sagittal.explain`, or by the code
    that reads a stream.
    """

    def __init__(self, image: ImageLike | None = None, *, interval: float = 0.5) -> None:
        """Shows nothing yet.

        Args:
            image: What is explained; None shows masks alone.
            interval: Least time between two drawings, in seconds.

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
        """What is known so far, a mask that is still forming included."""
        found = self._gathering.explanation("completed" if self._gathering.completed else "running")
        if self._partial is not None and not found.masks:
            found = replace(found, masks=(self._partial,))
        if self._image is not None and found.prediction is not None:
            found = found.with_image(self._image)
        return found

    def __call__(self, event: Event) -> None:
        """Takes an event in, and draws what is known unless it was drawn just now."""
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
