"""Shards: the results of many keys as a table of figures, a table of events, and the final masks.

Each result is parsed once, when it arrives; to write a shard parses nothing.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagittal.client.documents import explanation_row
from sagittal.client.explanation import Explanation
from sagittal.client.extras import import_extra
from sagittal.client.gathering import parse_explanation
from sagittal.v1 import batch_service_pb2 as service_pb
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import tensor_pb2

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

#: Columns of events with their Arrow types. An event is a message of the API, without the array of a mask.
EVENTS: Mapping[str, str] = {
    "key": "string",
    "sequence": "int64",
    "time": "timestamp",
    "kind": "string",
    "event": "binary",
}

#: Results that are parsed together, which takes less time than each by itself as it arrives.
PARSED_TOGETHER = 64

#: Events that no figure comes from.
_NOT_IN_FIGURES = frozenset({"mask", "curve", "graph_node", "graph_edge", "concept", "accepted"})

#: Data types of masks.
_DTYPES: Mapping[int, str] = {
    tensor_pb2.DATA_TYPE_FLOAT16: "<f2",
    tensor_pb2.DATA_TYPE_FLOAT32: "<f4",
    tensor_pb2.DATA_TYPE_UINT8: "u1",
}


class Shard:
    """The results of the next shard, as the rows of its tables and its masks by name."""

    def __init__(self) -> None:
        self._unparsed: deque[service_pb.BatchItem] = deque()
        self._figures: list[Mapping[str, Any]] = []
        self._events: list[tuple[str, int, int, str, bytes]] = []
        self._masks: dict[str, NDArray[np.generic]] = {}

    def __len__(self) -> int:
        """Returns the number of results."""
        return len(self._figures) + len(self._unparsed)

    def add(self, item: service_pb.BatchItem) -> None:
        """Adds a completed item."""
        self._unparsed.append(item)
        if len(self._unparsed) == PARSED_TOGETHER:
            self.parse()

    def parse(self) -> None:
        """Parses the items that were added and not parsed yet."""
        while self._unparsed:
            item = self._unparsed[0]
            figures = explanation_row(parse_explanation(item.explanation, without=_NOT_IN_FIGURES))
            masks = [_array(event.mask.saliency) for event in _final_masks(item.explanation)]
            self._figures.append({**figures, "key": item.key, "masks": len(masks)})
            self._events += [_event_row(item.key, event) for event in item.explanation.events]
            self._masks |= {f"{item.key}/{index}": mask for index, mask in enumerate(masks)}
            self._unparsed.popleft()

    def write_figures(self, path: Path) -> None:
        """Writes figures as Parquet: one row for each key, with the same columns in every shard."""
        _write_table(path, FIGURES, ([row[name] for row in self._figures] for name in FIGURES))

    def write_events(self, path: Path) -> None:
        """Writes events as Parquet: one row each."""
        _write_table(path, EVENTS, ([row[place] for row in self._events] for place in range(len(EVENTS))))

    def write_masks(self, path: Path) -> None:
        """Writes the final masks as safetensors, in the data type in which they came."""
        content = import_extra("safetensors.numpy", "bulk").save(self._masks)
        path.write_bytes(content)  # `save_file` hides it from other users


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


def _write_table(path: Path, kinds: Mapping[str, str], columns: Iterable[Sequence[Any]]) -> None:
    """Writes columns as Parquet, with the names of their Arrow types."""
    arrow, parquet = import_extra("pyarrow", "bulk"), import_extra("pyarrow.parquet", "bulk")
    arrays = [_column(arrow, kind, values) for kind, values in zip(kinds.values(), columns, strict=True)]
    repeated = [name for name, kind in kinds.items() if kind == "string"]
    table = arrow.Table.from_arrays(arrays, names=list(kinds))
    parquet.write_table(table, path, compression="zstd", use_dictionary=repeated)


def _column(arrow: Any, kind: str, values: Sequence[Any]) -> Any:
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


def _event_row(key: str, event: pb.ExplanationEvent) -> tuple[str, int, int, str, bytes]:
    kind = event.WhichOneof("event") or ""
    microseconds = event.time.seconds * 1_000_000 + event.time.nanos // 1_000
    content = _without_array(event) if kind == "mask" else event
    return key, event.sequence, microseconds, kind, content.SerializeToString()


def _without_array(event: pb.ExplanationEvent) -> pb.ExplanationEvent:
    plain = pb.ExplanationEvent()
    plain.CopyFrom(event)
    plain.mask.saliency.ClearField("data")
    return plain


def _final_masks(explanation: pb.Explanation) -> list[pb.ExplanationEvent]:
    """Returns the events of the final masks, by their index."""
    return sorted((each for each in explanation.events if _is_final(each)), key=lambda each: each.mask.index)


def _is_final(event: pb.ExplanationEvent) -> bool:
    return event.WhichOneof("event") == "mask" and event.mask.final


def _array(tensor: tensor_pb2.Tensor) -> NDArray[np.generic]:
    return np.frombuffer(tensor.data, _DTYPES[tensor.dtype]).reshape(tuple(tensor.shape))
