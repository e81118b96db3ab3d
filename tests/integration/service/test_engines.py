"""Ray and Spark explain the rows of their data sets; both really run, in the environment that `make engines` makes."""

import asyncio
import json
import os
import pickle
import shutil
import sys
from functools import partial
from pathlib import Path

import pyarrow.dataset
import pytest
from embedded_queue import Queue, own_settings

from sagittal.bulk import ManifestError
from sagittal.client import Client, MissingExtra
from sagittal.integrations.arrow import COLUMNS, RowExplainer
from sagittal.integrations.ray import explain_dataset
from sagittal.v1 import explanation_pb2

from .support import Run, Stack, explain_readably, picture, running

ROOT = Path(__file__).parents[3]
ENVIRONMENT = Path(os.environ.get("SAGITTAL_TEST_ENGINES", ROOT / ".venv-engines"))
IMAGES = 30


def needs(package: str) -> str:
    """Returns the Python that has a package; skips the test if there is none."""
    if not list(ENVIRONMENT.glob(f"lib/python*/site-packages/{package}")):
        pytest.skip(f"{package} is not installed: make engines")
    return str(ENVIRONMENT / "bin" / "python")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Different images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number:02d}.png").write_bytes(picture(8 + number).encoded)
    return folder


def narrow_queue() -> Queue:
    """A queue with room for three jobs, so that it is full most of the time."""
    narrow = {"interactive": 1, "batch": 3}
    return Queue(own_settings(max_queued=narrow, max_queued_per_tenant={"batch": 3}, overload_retry_after=0.05))


async def run(stack: Stack, python: str, script: str, *paths: Path) -> list[dict[str, object]]:
    """Runs a program of tests/engines, and returns the rows that it wrote the first time; checks the second time."""
    program = str(ROOT / "tests" / "engines" / script)
    process = await asyncio.create_subprocess_exec(
        python, program, f"127.0.0.1:{stack.port}", *map(str, paths),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    rows = pyarrow.dataset.dataset(paths[-1]).to_table().to_pylist()
    again = pyarrow.dataset.dataset(f"{paths[-1]}-again").to_table().to_pylist()
    assert sorted(each["job_id"] for each in again) == sorted(each["job_id"] for each in rows)
    return rows


def check(rows: list[dict[str, object]], jobs: int) -> None:
    """Checks that each image has one row with its figures, and that each was computed once."""
    assert [list(row) for row in rows] == [list(COLUMNS)] * IMAGES
    assert sorted(Path(str(row["key"])).name for row in rows) == [f"{number:02d}.png" for number in range(IMAGES)]
    assert {(row["insertion"], row["masks"], row["reason"]) for row in rows} == {(0.5, 1, None)}
    assert all(row["saliency"] == [[0.0, 0.0], [0.0, 0.0]] for row in rows)
    assert jobs == IMAGES


async def test_ray_explains_a_dataset_and_waits_for_room_in_the_queue(folder, tmp_path) -> None:
    python = needs("ray")
    async with running(queue=narrow_queue()) as stack, stack.worker(explain_readably).at_work() as worker:
        rows = await run(stack, python, "explain_by_ray.py", folder, tmp_path / "out")
        check(rows, len(worker.leases))


async def test_spark_explains_a_data_frame_and_waits_for_room_in_the_queue(folder, tmp_path) -> None:
    python = needs("pyspark")
    if shutil.which("java") is None:
        pytest.skip("java is not installed: apt-get install default-jre-headless")
    async with running(queue=narrow_queue()) as stack, stack.worker(explain_readably).at_work() as worker:
        rows = await run(stack, python, "explain_by_spark.py", folder, tmp_path / "out")
        check(rows, len(worker.leases))


def batches_of(*rows: dict[str, object]) -> list[pyarrow.RecordBatch]:
    """Record batches of two rows each."""
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    return table.to_batches(max_chunksize=2)


def explained(explainer: RowExplainer, *rows: dict[str, object]) -> dict[str, dict[str, object]]:
    """Creates the batch, and returns the rows of results by their keys."""
    explainer.create_batch(model="lamp")
    return {row["key"]: row for found in explainer(batches_of(*rows)) for row in found.to_pylist()}


async def test_rows_are_explained_by_their_own_options_and_a_bad_one_fails_alone(stack, folder) -> None:
    requests = []

    def keep(one: Run) -> None:
        requests.append(explanation_pb2.ExplanationSpec.FromString(one.lease.request))
        one.settle(completed=explanation_pb2.Completed(seed=2**64 - 1, method="igos++"))

    explainer = RowExplainer(connect=partial(Client, f"127.0.0.1:{stack.port}"), batch="rows")
    pickled = pickle.loads(pickle.dumps(explainer))  # noqa: S301 - as an engine does
    rows = [
        {"image": (folder / "00.png").as_uri(), "key": "url", "target": "off"},
        {"image": str(folder / "01.png"), "target": None},
        {"image": str(folder / "none.png"), "key": "missing"},
        {"image": str(folder / "02.png"), "key": "option", "boxes": "[[1, 2]]"},
    ]
    async with stack.worker(keep).at_work():
        found = await asyncio.to_thread(explained, pickled, *rows)
    assert set(found) == {"url", rows[1]["image"], "missing", "option"}
    assert {key for key, row in found.items() if row["state"] == "failed"} == {"missing", "option"}
    assert "none.png" in str(found["missing"]["message"])
    assert "boxes" in str(found["option"]["message"])
    assert found["url"]["seed"] == str(2**64 - 1)
    assert found["url"]["saliency"] is None
    assert json.loads(str(found["url"]["document"]))["method"] == "igos++"
    assert sorted(each.target.index for each in requests if each.HasField("target")) == [0]


async def test_rows_without_an_image_or_a_key_end_the_call(stack) -> None:
    explainer = RowExplainer(connect=partial(Client, f"127.0.0.1:{stack.port}"), batch="rows", image="picture")
    with pytest.raises(ManifestError, match="row 1 has no image; give one of the columns picture"):
        await asyncio.to_thread(explained, explainer, {"image": "a.png"})
    with pytest.raises(ManifestError, match="neither a key nor a path; give the column key"):
        await asyncio.to_thread(explained, explainer, {"picture": b"png"})


def test_a_missing_ray_is_named_with_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"sagittal\[ray\]"):
        explain_dataset(None, Client, batch="night", model="lamp")
