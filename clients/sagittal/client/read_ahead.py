"""Reads images in several threads, a bounded number ahead, so that a slow store does not delay a batch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")

#: Threads that read images, unless the caller gives another number.
READERS = 16


class ReadAhead(Generic[Item, Read]):
    """Applies a function to items in several threads, a bounded number ahead, and returns its results in their order.

    The iterator of the items is used by one thread at a time.
    """

    def __init__(self, items: Iterable[Item], read: Callable[[Item], Read], *, readers: int, ahead: int) -> None:
        """Starts no thread yet.

        Args:
            items: The items.
            read: Reads one item; called by several threads at once.
            readers: Largest number of threads.
            ahead: Largest number of items that are being read, or were read and not taken.
        """
        self._items: Iterator[Item] = iter(items)
        self._read = read
        self._ahead = ahead
        self._threads = ThreadPoolExecutor(readers, thread_name_prefix="sagittal-read")
        self._reading: deque[Future[Read]] = deque()
        self._exhausted = False

    def take(self) -> Read | None:
        """Waits for the next item; None after the last one.

        An error of the iterator, such as a line that is no JSON, is raised after the items before it, and ends them.
        """
        while not self._exhausted and len(self._reading) < self._ahead:
            try:
                item = next(self._items)
            except StopIteration:
                self._exhausted = True
            except Exception as error:  # noqa: BLE001 - raised in its turn
                self._exhausted = True
                self._reading.append(Future())
                self._reading[-1].set_exception(error)
            else:
                self._reading.append(self._threads.submit(self._read, item))
        return self._reading.popleft().result() if self._reading else None

    def close(self) -> None:
        """Ends the threads; what they read is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
