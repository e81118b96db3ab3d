"""The results of a batch in a directory, one row for each key however often the program is killed.

    figures-00000.parquet      one row for each key: scores, areas, costs
    events-00000.parquet       the events of these keys, as messages of the API without the arrays of masks
    masks-00000.safetensors    their final masks: tensors KEY/0, KEY/1 and so on
    failures.jsonl             one line for each key that failed, with reason and remedy
    journal                    results that are not in a shard yet

A result is appended to the journal before the next one is taken, so nothing that arrived is computed again. A shard
consists of the three files with the same number. They are written under other names and renamed, figures last: a shard
exists once its figures do, and what an interrupted write left is deleted.
"""

import fcntl
import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from google.protobuf.message import DecodeError

from sagittal.bulk.failures import failure_document, failure_line, read_failures
from sagittal.bulk.shards import Shard, read_column
from sagittal.client.batches import BatchResult, ItemState
from sagittal.client.errors import SagittalError
from sagittal.v1 import batch_service_pb2 as service_pb

#: Results and bytes of results in a shard; whichever is reached first ends it.
SHARD_RESULTS, SHARD_BYTES = 1_000, 16 * 2**20

_HEADER = struct.Struct("<II")


class OutputError(SagittalError):
    """The directory cannot be used: another program writes to it, or it holds something else."""

    reason = "OUTPUT_UNUSABLE"


class OutputInUse(OutputError):
    """Another program writes to the directory."""


@contextmanager
def naming_deleted(directory: Path) -> Iterator[None]:
    """Raises OutputError if something cannot be written because the directory was deleted meanwhile."""
    try:
        yield
    except FileNotFoundError as error:
        if directory.is_dir():
            raise
        text = f"{directory} was deleted while its batch was running, with its results: run the batch again"
        raise OutputError(text, field="out") from error


class Keys:
    """A set of keys on disk, whose memory does not grow."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA cache_size = -4096",  # KiB
            "CREATE TABLE keys (key TEXT PRIMARY KEY) WITHOUT ROWID",
            "BEGIN",
        ):
            self._base.execute(statement)

    def add(self, key: str) -> bool:
        """Adds a key; returns whether it is new."""
        return self._base.execute("INSERT OR IGNORE INTO keys VALUES (?)", (key,)).rowcount == 1

    def __contains__(self, key: str) -> bool:
        return self._base.execute("SELECT 1 FROM keys WHERE key = ?", (key,)).fetchone() is not None

    def __len__(self) -> int:
        return int(self._base.execute("SELECT count(*) FROM keys").fetchone()[0])

    def close(self) -> None:
        """Deletes the set."""
        self._base.close()


class Output:
    """A directory with the results of one batch, for one program at a time; use it in a `with` statement."""

    def __init__(
        self, directory: str | os.PathLike[str], *, results: int = SHARD_RESULTS, max_bytes: int = SHARD_BYTES
    ) -> None:
        """Opens the directory and completes what an interrupted program left.

        Args:
            directory: The directory; created if it does not exist.
            results: Largest number of results in a shard.
            max_bytes: Bytes of results after which a shard ends.

        Raises:
            OutputInUse: another program writes to it.
        """
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._results, self._max_bytes = results, max_bytes
        self._lock = self._locked()
        self.done = Keys()
        """Keys of completed items."""
        self.failed = Keys()
        """Keys of failed items."""
        self._shard, self._bytes = Shard(), 0
        self._number = self._recover()
        self._journal = self._replayed()
        self._failures = (self.directory / "failures.jsonl").open("a", encoding="utf-8")

    def write(self, result: BatchResult) -> bool:
        """Stores a result; returns False if its key has one already."""
        if result.state != ItemState.COMPLETED or result.message is None:
            return self._fail(result)
        if not self.done.add(result.key):
            return False
        item = service_pb.BatchItem(key=result.key, state=service_pb.BATCH_ITEM_STATE_COMPLETED, job_id=result.job_id)
        item.explanation.CopyFrom(result.message)
        record = item.SerializeToString()
        self._journal.write(_HEADER.pack(len(record), zlib.crc32(record)) + record)
        self._hold(item, len(record))
        if len(self._shard) >= self._results or self._bytes >= self._max_bytes:
            self.flush()
        return True

    def flush(self) -> None:
        """Writes the results in the journal to a shard. Raises OutputError if the directory was deleted."""
        if not len(self._shard):
            return
        self._shard.parse()
        self._write("events", "parquet", self._shard.write_events)
        self._write("masks", "safetensors", self._shard.write_masks)
        self._write("figures", "parquet", self._shard.write_figures)
        self._journal.truncate(0)
        self._journal.seek(0)
        self._shard, self._bytes = Shard(), 0
        self._number += 1

    def forget_failures(self, keys: Iterable[str] = ()) -> int:
        """Removes the failures of some keys, or of all; returns their number."""
        wanted = set(keys)
        kept = [line for line in self.failures() if wanted and line["key"] not in wanted]
        before = len(self.failed)
        self._failures.close()
        path = self.directory / "failures.jsonl"
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(failure_line(each) for each in kept), encoding="utf-8")
        temporary.replace(path)
        self.failed.close()
        self.failed = Keys()
        for each in kept:
            self.failed.add(each["key"])
        self._failures = path.open("a", encoding="utf-8")
        return before - len(kept)

    def failures(self) -> Iterator[dict[str, Any]]:
        """Yields the failures, as in `failures.jsonl`."""
        return read_failures(self.directory)

    def close(self) -> None:
        """Closes the directory; what is in the journal stays there."""
        self._journal.close()
        self._failures.close()
        self.done.close()
        self.failed.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _locked(self) -> IO[str]:
        lock = (self.directory / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            text = f"another program writes to {self.directory}: wait for it, or choose another directory"
            raise OutputInUse(text, field="out") from error
        return lock

    def _recover(self) -> int:
        """Deletes what interrupted writes left, and reads the keys; returns the number of the next shard."""
        for path in self.directory.glob("*.tmp"):
            path.unlink()
        whole = {path.stem.partition("-")[2] for path in self.directory.glob("figures-*.parquet")}
        for path in (*self.directory.glob("events-*.parquet"), *self.directory.glob("masks-*.safetensors")):
            if path.stem.partition("-")[2] not in whole:
                path.unlink()
        for path in sorted(self.directory.glob("figures-*.parquet")):
            for key in read_column(path, "key"):
                self.done.add(key)
        for each in self._mended_failures():
            if each["key"] not in self.done:
                self.failed.add(each["key"])
        return max((int(number) for number in whole), default=-1) + 1

    def _mended_failures(self) -> Iterator[dict[str, Any]]:
        """Yields the failures, and cuts off a last line that an interrupted write left."""
        path = self.directory / "failures.jsonl"
        if path.exists():
            content = path.read_bytes()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                os.truncate(path, end)
        yield from read_failures(self.directory)

    def _replayed(self) -> IO[bytes]:
        """Opens the journal after its last whole record, and buffers the results that are in no shard."""
        path = self.directory / "journal"
        journal = path.open("r+b" if path.exists() else "w+b", buffering=0)
        end = 0
        for size, item in _records(journal):
            end += _HEADER.size + size
            if self.done.add(item.key):
                self._hold(item, size)
        journal.truncate(end)
        journal.seek(end)
        return journal

    def _hold(self, item: service_pb.BatchItem, size: int) -> None:
        self._shard.add(item)
        self._bytes += size

    def _fail(self, result: BatchResult) -> bool:
        if result.key in self.done or not self.failed.add(result.key):
            return False
        self._failures.write(failure_line(failure_document(result)))
        self._failures.flush()
        return True

    def _write(self, what: str, ending: str, write: Callable[[Path], None]) -> None:
        path = self.directory / f"{what}-{self._number:05d}.{ending}"
        temporary = path.with_suffix(".tmp")
        with naming_deleted(self.directory):
            write(temporary)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)


def _records(journal: IO[bytes]) -> Iterator[tuple[int, service_pb.BatchItem]]:
    """Yields the sizes and items of the whole records of a journal up to one that is incomplete."""
    while len(header := journal.read(_HEADER.size)) == _HEADER.size:
        size, checksum = _HEADER.unpack(header)
        record = journal.read(size)
        if len(record) < size or zlib.crc32(record) != checksum:
            return
        try:
            item = service_pb.BatchItem.FromString(record)
        except DecodeError:
            return
        yield size, item
