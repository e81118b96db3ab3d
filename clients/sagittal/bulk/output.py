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
import json
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from google.protobuf.message import DecodeError

from sagittal.client.batches import BatchResult, ItemState
from sagittal.client.documents import explanation_row
from sagittal.client.errors import (
    Expired,
    InvalidImage,
    InvalidRequest,
    JobBuried,
    JobCancelled,
    ModelFailed,
    SagittalError,
)
from sagittal.client.explanation import Explanation
from sagittal.client.extras import import_extra
from sagittal.client.gathering import parse_explanation
from sagittal.v1 import batch_service_pb2 as service_pb
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import tensor_pb2

#: Results and bytes of results in a shard; whichever is reached first ends it.
SHARD_RESULTS, SHARD_BYTES = 1_000, 16 * 2**20

_HEADER = struct.Struct("<II")

#: Data types of masks.
_DTYPES: Mapping[int, str] = {
    tensor_pb2.DATA_TYPE_FLOAT16: "<f2",
    tensor_pb2.DATA_TYPE_FLOAT32: "<f4",
    tensor_pb2.DATA_TYPE_UINT8: "u1",
}

#: Remedy for each class of error; the first match applies.
_REMEDIES: tuple[tuple[type[SagittalError], str], ...] = (
    (InvalidImage, "Repair or replace the image, then run `sagittal batch retry`."),
    (InvalidRequest, "Correct the row of the manifest, then run `sagittal batch retry`."),
    (JobBuried, "Workers died with this image: look at the log of the workers, then run `sagittal batch retry`."),
    (ModelFailed, "Check `sagittal models show`, then run `sagittal batch retry`."),
    (Expired, "Allow a longer deadline or fewer iterations, then run `sagittal batch retry`."),
    (JobCancelled, "Run `sagittal batch retry`; if the batch was cancelled, start another."),
)


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
        self._buffer: list[bytes] = []
        self._bytes = 0
        self._number = self._recover()
        self._journal = self._replayed()
        self._failures = (self.directory / "failures.jsonl").open("a", encoding="utf-8")

    def write(self, result: BatchResult) -> bool:
        """Stores a result; returns False if its key has one already."""
        if result.state != ItemState.COMPLETED or result.message is None:
            return self._fail(result)
        if not self.done.add(result.key):
            return False
        item = service_pb.BatchItem(
            key=result.key,
            state=service_pb.BATCH_ITEM_STATE_COMPLETED,
            job_id=result.job_id,
            explanation=result.message,
        )
        record = item.SerializeToString()
        self._journal.write(_HEADER.pack(len(record), zlib.crc32(record)) + record)
        self._hold(record)
        if len(self._buffer) >= self._results or self._bytes >= self._max_bytes:
            self.flush()
        return True

    def flush(self) -> None:
        """Writes the results in the journal to a shard. Raises OutputError if the directory was deleted."""
        if not self._buffer:
            return
        items = [service_pb.BatchItem.FromString(record) for record in self._buffer]
        name = f"{self._number:05d}"
        self._write("events", name, "parquet", lambda path: write_events(path, items))
        self._write("masks", name, "safetensors", lambda path: write_masks(path, items))
        self._write("figures", name, "parquet", lambda path: write_figures(path, items))
        self._journal.truncate(0)
        self._journal.seek(0)
        self._buffer, self._bytes = [], 0
        self._number += 1

    def forget_failures(self, keys: Iterable[str] = ()) -> int:
        """Removes the failures of some keys, or of all; returns their number."""
        wanted = set(keys)
        kept = [line for line in self.failures() if wanted and line["key"] not in wanted]
        before = len(self.failed)
        self._failures.close()
        path = self.directory / "failures.jsonl"
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(_line(each) for each in kept), encoding="utf-8")
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
        for record in _records(journal):
            end += _HEADER.size + len(record)
            item = service_pb.BatchItem.FromString(record)
            if self.done.add(item.key):
                self._hold(record)
        journal.truncate(end)
        journal.seek(end)
        return journal

    def _hold(self, record: bytes) -> None:
        self._buffer.append(record)
        self._bytes += len(record)

    def _fail(self, result: BatchResult) -> bool:
        if result.key in self.done or not self.failed.add(result.key):
            return False
        self._failures.write(_line(failure_document(result)))
        self._failures.flush()
        return True

    def _write(self, what: str, number: str, ending: str, write: Any) -> None:
        path = self.directory / f"{what}-{number}.{ending}"
        temporary = self.directory / f"{what}-{number}.tmp"
        with naming_deleted(self.directory):
            write(temporary)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)


def _records(journal: IO[bytes]) -> Iterator[bytes]:
    """Yields the whole records of a journal up to one that is incomplete."""
    while len(header := journal.read(_HEADER.size)) == _HEADER.size:
        size, checksum = _HEADER.unpack(header)
        record = journal.read(size)
        if len(record) < size or zlib.crc32(record) != checksum:
            return
        try:
            service_pb.BatchItem.FromString(record)
        except DecodeError:
            return
        yield record


def _line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


def read_failures(directory: Path) -> Iterator[dict[str, Any]]:
    """Yields the failures in a directory, one for each key."""
    path = directory / "failures.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def failure_document(result: BatchResult) -> dict[str, Any]:
    """Returns why an item failed, and what to do."""
    error = result.error
    return {
        "key": result.key,
        "state": result.state,
        "reason": error.reason if error else "RESULT_DELETED",
        "message": error.message if error else "its result was deleted before it was stored",
        "field": error.field if error else "",
        "remedy": remedy_for(error),
        "job_id": result.job_id,
    }


def remedy_for(error: SagittalError | None) -> str:
    """Returns what to do about an error of an item."""
    if error is not None and error.field == "unreadable":
        return "Correct the row of the manifest, or the file that it names, then run `sagittal batch retry`."
    return next((text for kind, text in _REMEDIES if isinstance(error, kind)), "Run `sagittal batch retry`.")


def figures_of(item: service_pb.BatchItem) -> dict[str, Any]:
    """Returns the figures of a completed item; what only fills other files is not parsed."""
    plain = pb.Explanation(job_id=item.explanation.job_id, state=item.explanation.state, model=item.explanation.model)
    plain.events.extend(each for each in item.explanation.events if each.WhichOneof("event") not in _NOT_IN_FIGURES)
    masks = sum(_is_final(each) for each in item.explanation.events)
    return {"key": item.key, **explanation_row(parse_explanation(plain)), "masks": masks}


_NOT_IN_FIGURES = frozenset({"mask", "curve", "graph_node", "graph_edge", "concept", "accepted"})


def write_figures(path: Path, items: list[service_pb.BatchItem]) -> None:
    """Writes figures as Parquet, with the same columns in every shard."""
    rows = [figures_of(item) for item in items]
    write_table(path, {name: (kind, [row.get(name) for row in rows]) for name, kind in FIGURES.items()})


def read_explanations(directory: Path) -> Iterator[tuple[str, Explanation]]:
    """Yields the keys and explanations in the shards of a directory, one shard at a time."""
    for path in sorted(directory.glob("events-*.parquet")):
        masks = import_extra("safetensors.numpy", "bulk").load_file(directory / f"masks-{path.stem[7:]}.safetensors")
        rows = zip(read_column(path, "key"), read_column(path, "event"), strict=True)
        for key, group in groupby(rows, key=itemgetter(0)):
            found = pb.Explanation(state=pb.JOB_STATE_COMPLETED)
            found.events.extend(pb.ExplanationEvent.FromString(content) for _, content in group)
            for index, event in enumerate(_final_masks(found)):
                event.mask.saliency.data = masks[f"{key}/{index}"].tobytes()
            yield key, parse_explanation(found)


def read_column(path: Path, name: str) -> list[Any]:
    """Returns a column of a Parquet file. `parquet.read_table` would also load the data set library."""
    with import_extra("pyarrow.parquet", "bulk").ParquetFile(path) as opened:
        values: list[Any] = opened.read(columns=[name], use_threads=False).column(name).to_pylist()
        return values


def write_table(path: Path, columns: Mapping[str, tuple[str, list[Any]]]) -> None:
    """Writes columns as Parquet, each with the name of its Arrow type."""
    arrow, parquet = import_extra("pyarrow", "bulk"), import_extra("pyarrow.parquet", "bulk")
    arrays = [_column(arrow, kind, values) for kind, values in columns.values()]
    parquet.write_table(arrow.Table.from_arrays(arrays, names=list(columns)), path, compression="zstd")


def _column(arrow: Any, kind: str, values: list[Any]) -> Any:
    """Returns an array of Arrow from its buffers: `arrow.array` imports pandas, which takes 50 MiB."""
    given = np.array([value is not None for value in values], dtype=bool)
    missing = int(len(values) - given.sum())
    valid = arrow.py_buffer(np.packbits(given, bitorder="little").tobytes()) if missing else None
    if kind in ("string", "binary"):
        parts = [b"" if value is None else value.encode() if kind == "string" else value for value in values]
        ends = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)]).astype(np.int32)
        buffers = [valid, arrow.py_buffer(ends.tobytes()), arrow.py_buffer(b"".join(parts))]
    else:
        plain = np.array([0 if value is None else value for value in values], dtype=_NUMBERS[kind])
        bits = np.packbits(plain, bitorder="little") if kind == "bool" else plain
        buffers = [valid, arrow.py_buffer(bits.tobytes())]
    names = {"timestamp": ("timestamp", "us"), "bool": ("bool_",)}
    name, *unit = names.get(kind, (kind,))
    return arrow.Array.from_buffers(getattr(arrow, name)(*unit), len(values), buffers, missing)


_NUMBERS: Mapping[str, str] = {"int64": "<i8", "uint64": "<u8", "float64": "<f8", "timestamp": "<i8", "bool": "?"}


#: Columns of figures with their Arrow types.
FIGURES: Mapping[str, str] = {
    "key": "string",
    "job_id": "string",
    "state": "string",
    "model": "string",
    "model_version": "string",
    "method": "string",
    "target": "string",
    "target_index": "int64",
    "score": "float64",
    "baseline_score": "float64",
    "insertion": "float64",
    "deletion": "float64",
    "relative_insertion": "float64",
    "relative_deletion": "float64",
    "sufficient_sets": "int64",
    "smallest_set": "int64",
    "evaluations": "int64",
    "seconds": "float64",
    "seed": "uint64",
    "truncated": "bool",
    "warnings": "string",
    "masks": "int64",
}


def write_events(path: Path, items: list[service_pb.BatchItem]) -> None:
    """Writes events as Parquet: one row each, with the event as a message of the API without the array of a mask."""
    rows = [(item.key, event) for item in items for event in item.explanation.events]
    columns: Mapping[str, tuple[str, list[Any]]] = {
        "key": ("string", [key for key, _ in rows]),
        "sequence": ("int64", [event.sequence for _, event in rows]),
        "time": ("timestamp", [event.time.ToMicroseconds() for _, event in rows]),
        "kind": ("string", [event.WhichOneof("event") or "" for _, event in rows]),
        "event": ("binary", [_without_array(event) for _, event in rows]),
    }
    write_table(path, columns)


def _without_array(event: pb.ExplanationEvent) -> bytes:
    if event.WhichOneof("event") != "mask":
        return event.SerializeToString()
    plain = pb.ExplanationEvent()
    plain.CopyFrom(event)
    plain.mask.saliency.ClearField("data")
    return plain.SerializeToString()


def write_masks(path: Path, items: list[service_pb.BatchItem]) -> None:
    """Writes the final masks as safetensors, in the data type in which they came."""
    tensors = {
        f"{item.key}/{index}": _array(event.mask.saliency)
        for item in items
        for index, event in enumerate(_final_masks(item.explanation))
    }
    path.write_bytes(import_extra("safetensors.numpy", "bulk").save(tensors))  # `save_file` hides it from other users


def _final_masks(explanation: pb.Explanation) -> list[pb.ExplanationEvent]:
    """Returns the events of the final masks, by their index."""
    return sorted((each for each in explanation.events if _is_final(each)), key=lambda each: each.mask.index)


def _is_final(event: pb.ExplanationEvent) -> bool:
    return event.WhichOneof("event") == "mask" and event.mask.final


def _array(tensor: tensor_pb2.Tensor) -> Any:
    return np.frombuffer(tensor.data, _DTYPES[tensor.dtype]).reshape(tuple(tensor.shape))
