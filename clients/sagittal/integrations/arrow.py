"""Explains the rows of Arrow record batches as items of one batch: the function that Ray Data and Spark run.

For example::

    explainer = RowExplainer(lambda: Client("sagittal:50051"), batch="night")
    for explained in explainer(record_batches): ...

Rows have the columns of a manifest: an image (a path, a URL, the bytes of a file, or pixels), a key, and options of
their own. The service's queue is the only scheduler: while it is full, the function waits, and its engine with it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from sagittal.bulk.failures import failure_document
from sagittal.bulk.manifests import Row, row_items
from sagittal.bulk.shards import FIGURES
from sagittal.client import Client
from sagittal.client.batches import BatchResult
from sagittal.client.documents import explanation_row
from sagittal.client.extras import import_extra
from sagittal.client.requests import BatchOptions

#: Rows that are converted to Python at a time, and that a record batch of results has at most.
ROWS_AT_ONCE = 64

#: Columns of the results with the names of their Arrow types: figures, the first mask, the explanation as JSON without
#: arrays, and why an item failed. Seeds are text, because Spark has no unsigned integers.
COLUMNS: Mapping[str, str] = {
    **FIGURES,
    "seed": "string",
    "saliency": "list<list<float>>",
    "document": "string",
    "reason": "string",
    "message": "string",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowExplainer:
    """Explains record batches; it can be sent to other machines if `connect` can."""

    connect: Callable[[], Client]
    """Makes a client; called on the machine that runs it."""
    batch: str
    """Name of the batch, which exists."""
    image: str = ""
    """Column with the image; empty for the first of image, path, file and url that a row has."""
    key: str = "key"
    """Column with the key; a row without one has its path or URL as its key."""
    in_flight: int = 128
    """Largest number of items that one call has sent without a result."""

    def create_batch(self, **options: Unpack[BatchOptions]) -> None:
        """Creates the batch, or continues the existing one with equal options. Raises AlreadyExists for other ones."""
        with self.connect() as client:
            client.batches.create(self.batch, **options)

    def __call__(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yields record batches with one row of `COLUMNS` for each key, in the order in which the items end."""
        arrow = import_extra("pyarrow", "bulk")
        schema = arrow.schema([(name, _type(arrow, kind)) for name, kind in COLUMNS.items()])
        items = row_items(_rows(batches), source=self.batch, image=self.image, key=self.key)
        rows: list[Row] = []
        with self.connect() as client:
            for result in client.batches.run(self.batch, items, in_flight=self.in_flight):
                rows.append(result_row(result))
                if len(rows) == ROWS_AT_ONCE:
                    yield arrow.RecordBatch.from_pylist(rows, schema)
                    rows = []
        if rows:
            yield arrow.RecordBatch.from_pylist(rows, schema)


def result_row(result: BatchResult) -> dict[str, Any]:
    """Returns a result as a row of `COLUMNS`; without figures if the item failed."""
    explanation = result.explanation
    if explanation is None:
        return {name: text for name, text in failure_document(result).items() if name in COLUMNS}
    return {
        "key": result.key,
        **explanation_row(explanation),
        "masks": len(explanation.masks),
        "seed": None if explanation.seed is None else str(explanation.seed),
        "saliency": None if explanation.mask is None else explanation.mask.tolist(),
        "document": json.dumps(explanation.to_dict(), ensure_ascii=False),
    }


def _rows(batches: Iterable[Any]) -> Iterator[Row]:
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            yield from batch.slice(start, ROWS_AT_ONCE).to_pylist()


def _type(arrow: Any, kind: str) -> Any:
    nested = {"list<list<float>>": arrow.list_(arrow.list_(arrow.float32()))}
    return nested[kind] if kind in nested else arrow.type_for_alias(kind)
