"""Explains the rows of a Ray dataset.

found = explain_dataset(
    ray.data.read_parquet("s3://bucket/images"), lambda: Client("sagittal:50051"),
    batch="night", model="efficientnet-lite0",
)
found.write_parquet("s3://bucket/explanations")
"""

from collections.abc import Callable, Iterator
from typing import Any, Unpack

from sagittal.client import Client
from sagittal.client.extras import import_extra
from sagittal.client.requests import BatchOptions
from sagittal.integrations.arrow import RowExplainer

#: Share of a processor core that Ray reserves for a task: most of the time it waits for the service.
CORES = 0.25


def explain_dataset(
    dataset: Any,
    connect: Callable[[], Client],
    *,
    batch: str,
    image: str = "",
    key: str = "key",
    in_flight: int = 128,
    concurrency: int = 4,
    rows: int = 512,
    **options: Unpack[BatchOptions],
) -> Any:
    """Returns a dataset with one row of `arrow.COLUMNS` for each key; as all datasets, it is computed when it is read.

    While the service has no room, the tasks wait, and Ray with them. A row that fails has a `reason` and a `message`.
    Reading the dataset again computes nothing again, as long as the service keeps the results.

    Args:
        dataset: A `ray.data.Dataset` with the columns of a manifest: an image, a key, and options of a row.
        connect: Makes a client; called in each task.
        batch: Name of the batch, which is created if it does not exist.
        image: Column with the image; empty for the first of image, path, file and url that a row has.
        key: Column with the key; a row without one has its path or URL as its key.
        in_flight: Largest number of images that one task has sent without a result.
        concurrency: Number of tasks.
        rows: Rows of a task.
        options: Options common to all images; see `BatchOptions`.

    Raises:
        AlreadyExists: the batch has other options.
        MissingExtra: ray is not installed.
    """
    import_extra("ray.data", "ray")
    explainer = RowExplainer(connect=connect, batch=batch, image=image, key=key, in_flight=in_flight)
    explainer.create_batch(**options)
    return dataset.map_batches(
        _explain_table,
        fn_kwargs={"explainer": explainer},
        batch_format="pyarrow",
        batch_size=rows,
        concurrency=concurrency,
        num_cpus=CORES,
    )


def _explain_table(table: Any, explainer: RowExplainer) -> Iterator[Any]:
    arrow = import_extra("pyarrow", "ray")
    for found in explainer(table.to_batches()):
        yield arrow.Table.from_batches([found])
