"""Reads images in several threads, a bounded number ahead, so that a slow store does not delay a batch."""

import threading
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
        self._readers = readers
        self._ahead = ahead
        self._threads = ThreadPoolExecutor(readers, thread_name_prefix="sagittal-read")
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Item, Future[Read]]] = deque()
        self._active = 0
        self._reading: deque[Future[Read]] = deque()
        self._exhausted = False

    def take(self) -> Read | None:
        """Waits for the next item; None after the last one.

        An error of the iterator, such as a line that is no JSON, is raised after the items before it, and ends them.
        """
        if len(self._reading) <= self._ahead // 2:
            self._refill()
        self._start_readers()
        return self._reading.popleft().result() if self._reading else None

    def _refill(self) -> None:
        while not self._exhausted and len(self._reading) < self._ahead:
            future: Future[Read] = Future()
            try:
                item = next(self._items)
            except StopIteration:
                self._exhausted = True
                break
            except Exception as error:  # noqa: BLE001 - raised in its turn
                self._exhausted = True
                future.set_exception(error)
            else:
                self._waiting.append((item, future))
            self._reading.append(future)

    def _start_readers(self) -> None:
        """Starts threads for the items that wait: one while it keeps up, otherwise as many as there may be.

        Images that are read fast are read by one thread: to wake a thread for each costs more than to read it.
        """
        with self._lock:
            unread = len(self._waiting) + self._active
            wanted = 1 if len(self._reading) - unread >= self._ahead // 4 else self._readers
            missing = min(wanted - self._active, len(self._waiting))
            self._active += max(missing, 0)
        for _ in range(missing):
            self._threads.submit(self._read_waiting)

    def _read_waiting(self) -> None:
        """Reads items until none waits."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._active -= 1
                    return
                item, future = self._waiting.popleft()
            try:
                future.set_result(self._read(item))
            except BaseException as error:  # noqa: BLE001 - raised by `take`
                future.set_exception(error)

    def close(self) -> None:
        """Ends the threads; what they read is dropped."""
        with self._lock:
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)
