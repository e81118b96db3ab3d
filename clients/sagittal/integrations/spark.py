"""Explains the rows of a Spark data frame.

images = spark.read.format("binaryFile").load("s3a://bucket/images")
found = explain_dataframe(
    images, lambda: Client("sagittal:50051"), batch="night", image="content", key="path", model="efficientnet-lite0"
)
found.write.parquet("s3a://bucket/explanations")
"""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

from sagittal.client import Client
from sagittal.client.requests import BatchOptions
from sagittal.integrations.arrow import COLUMNS, RowExplainer

_TYPES: Mapping[str, str] = {
    "string": "string",
    "int64": "bigint",
    "float64": "double",
    "bool": "boolean",
    "list<list<float>>": "array<array<float>>",
}

#: Schema of the result, in Spark's words.
SCHEMA = ", ".join(f"{name} {_TYPES[kind]}" for name, kind in COLUMNS.items())


def explain_dataframe(
    frame: Any,
    connect: Callable[[], Client],
    *,
    batch: str,
    image: str = "",
    key: str = "key",
    in_flight: int = 128,
    **options: Unpack[BatchOptions],
) -> Any:
    """Returns a data frame with one row of `arrow.COLUMNS` for each key, by `mapInArrow`.

    While the service has no room, the tasks wait. A row that fails has a `reason` and a `message`. Computing the data
    frame again, or a task that Spark repeats, computes no image again as long as the service keeps its result.

    Args:
        frame: A data frame with the columns of a manifest: an image, a key, and options of a row.
        connect: Makes a client; called in each task.
        batch: Name of the batch, which is created if it does not exist.
        image: Column with the image; empty for the first of image, path, file and url that a row has.
        key: Column with the key; a row without one has its path or URL as its key.
        in_flight: Largest number of images that one task has sent without a result.
        options: Options common to all images; see `BatchOptions`.

    Raises:
        AlreadyExists: the batch has other options.
    """
    explainer = RowExplainer(connect=connect, batch=batch, image=image, key=key, in_flight=in_flight)
    explainer.create_batch(**options)
    return frame.mapInArrow(explainer, schema=SCHEMA)
