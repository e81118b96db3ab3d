"""`sagittal batch` on a real service: a manifest in, one row for each key out."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import structlog
from click.testing import CliRunner, Result

from sagittal.bulk import Output
from sagittal.cli.app import app

from .support import Stack, eventually, explain_readably, picture


@pytest.fixture(autouse=True)
def _service_logs_elsewhere() -> Iterator[None]:
    """Keeps the log of the service, which runs in this process, out of what a command is captured to print."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    yield
    structlog.reset_defaults()


def write_images(folder: Path, number: int) -> Path:
    folder.mkdir(exist_ok=True)
    for each in range(number):
        (folder / f"{each:03d}.png").write_bytes(picture(8 + each).encoded)
    return folder


def keys(out: Path) -> list[str]:
    found = []
    for shard in sorted(out.glob("figures-*.parquet")):
        found += pyarrow.parquet.read_table(shard, columns=["key"]).column("key").to_pylist()
    return found


async def sagittal(stack: Stack, *arguments: object) -> Result:
    runner = CliRunner(env={"SAGITTAL_ADDRESS": f"127.0.0.1:{stack.port}"})
    return await asyncio.to_thread(runner.invoke, app, ["batch", *map(str, arguments)])


async def test_a_folder_becomes_rows_and_running_it_again_does_nothing(stack, tmp_path) -> None:
    images, out = write_images(tmp_path / "images", 5), tmp_path / "out"
    async with stack.worker(explain_readably).at_work() as worker:
        first = await sagittal(stack, "run", images, "--out", out, "--model", "lamp")
        again = await sagittal(stack, "run", images, "--out", out, "--model", "lamp")
    assert first.exit_code == again.exit_code == 0, first.output
    assert sorted(keys(out)) == [f"{each:03d}.png" for each in range(5)]
    assert len(worker.leases) == 5
    assert "5 completed, 0 failed" in again.output
    assert "<h1>" in (out / "summary.html").read_text()
    state = json.loads((await sagittal(stack, "status", out, "--json")).stdout)
    assert (state["state"], state["completed"], state["model_version"]) == ("completed", 5, "1")


async def test_failures_are_listed_with_remedies_and_retried_after_the_repair(stack, tmp_path) -> None:
    images, out = write_images(tmp_path / "images", 2), tmp_path / "out"
    (images / "bad.png").write_bytes(b"no image")
    async with stack.worker(explain_readably).at_work():
        first = await sagittal(stack, "run", images, "--out", out, "--model", "lamp")
        listed = await sagittal(stack, "failures", out)
        by_name = await sagittal(stack, "failures", json.loads((out / "batch.json").read_text())["name"])
        (images / "bad.png").write_bytes(picture(40).encoded)
        last = await sagittal(stack, "retry", out)
    assert first.exit_code == 1
    assert json.loads(listed.stdout)["remedy"].startswith("Repair or replace the image")
    assert json.loads(by_name.stdout)["key"] == "bad.png"
    assert (last.exit_code, sorted(keys(out))) == (0, ["000.png", "001.png", "bad.png"])
    assert (out / "failures.jsonl").read_text() == ""


async def test_a_mistaken_command_leaves_nothing_and_wrong_rows_fail_alone(stack, tmp_path) -> None:
    images, out, manifest = write_images(tmp_path / "images", 2), tmp_path / "out", tmp_path / "list.csv"
    manifest.write_text(
        "image,key,seed\nimages/000.png,a,\nimages/001.png,b,1\nimages/000.png,a,\nimages/000.png,bad,x\n,none,\n"
    )
    command = ("run", manifest, "--out", out, "--model", "lamp")
    async with stack.worker(explain_readably).at_work():
        mistaken = await sagittal(stack, *command, "--method", "igos++", "--set", "mask_sise=7")
        assert not out.exists(), images
        found = await sagittal(stack, *command)
        state = json.loads((await sagittal(stack, "status", out, "--json")).stdout)
    assert (mistaken.exit_code, found.exit_code) == (2, 1), found.output
    assert "2 completed, 2 failed, 1 repeated keys" in found.output
    failures = {each["key"]: each for each in map(json.loads, (out / "failures.jsonl").read_text().splitlines())}
    assert failures.keys() == {"bad", "none"}
    assert "seed" in failures["bad"]["message"]
    assert {each["remedy"].partition(",")[0] for each in failures.values()} == {"Correct the row of the manifest"}
    assert (state["state"], state["expected_items"], state["remaining_evaluations"]) == ("completed", 4, None)
    modes = {path.stat().st_mode & 0o777 for path in out.glob("*-00000.*")}
    assert len(modes) == 1, "whoever may read the figures may read the masks"


async def test_a_directory_is_for_one_batch_and_other_options_are_refused(stack, tmp_path) -> None:
    images, out = write_images(tmp_path / "images", 1), tmp_path / "out"
    async with stack.worker(explain_readably).at_work():
        await sagittal(stack, "run", images, "--out", out, "--model", "lamp", "--name", "one")
        other = await sagittal(stack, "run", images, "--out", out, "--model", "lamp", "--seed", 7)
        listed = await sagittal(stack, "list")
        paused = await sagittal(stack, "pause", "one")
        with Output(out):  # as the program that runs it does
            while_running = await sagittal(stack, "resume", out)
        resumed = await sagittal(stack, "resume", out)
        cancelled = await sagittal(stack, "cancel", out)
    assert "other options" in other.output
    assert "one  completed" in listed.output
    assert "one is paused" in paused.output
    assert (while_running.exit_code, resumed.exit_code) == (0, 0)
    assert "one is resumed; the program that writes" in while_running.output
    assert "one is cancelled" in cancelled.output


async def test_a_run_that_is_killed_continues_and_computes_again_at_most_what_was_in_flight(stack, tmp_path) -> None:
    images, out, in_flight = write_images(tmp_path / "images", 40), tmp_path / "out", 4
    command = [sys.executable, "-m", "sagittal.cli.main", "batch", "run", str(images), "--out", str(out)]
    command += ["--model", "lamp"]
    environment = os.environ | {"SAGITTAL_ADDRESS": f"127.0.0.1:{stack.port}"}
    async with stack.worker(explain_readably).at_work() as worker:
        running = await asyncio.create_subprocess_exec(*command, "--in-flight", str(in_flight), env=environment)
        await eventually(lambda: len(worker.leases) > 8)
        running.kill()
        await running.wait()
        # as if hours had passed: what the service keeps of ended jobs is gone
        for job in [lease.job.job_id for lease in worker.leases]:
            await eventually(lambda job=job: _ended(stack, job))
            await stack.queue.jobs.delete(job)
        before = len(worker.leases)
        assert (await sagittal(stack, "resume", out)).exit_code == 0
    assert sorted(keys(out)) == [f"{each:03d}.png" for each in range(40)]
    assert len(worker.leases) <= 40 + in_flight, before


async def _ended(stack: Stack, job_id: str) -> bool:
    return (await stack.queue.jobs.get(job_id)).state.ended


async def test_the_programs_of_the_page_run(stack, tmp_path, monkeypatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "batches.md").read_text()
    reading, running, *_ = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    running = running.replace("localhost:50051", f"127.0.0.1:{stack.port}").replace("efficientnet-lite0", "lamp")
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 3)
    (tmp_path / "manifest.csv").write_text("image,key\n" + "".join(f"images/{n:03d}.png,{n}\n" for n in range(3)))
    found: dict[str, Any] = {}
    async with stack.worker(explain_readably).at_work():
        await asyncio.to_thread(exec, running, {})
    await asyncio.to_thread(exec, reading, found)
    assert sorted(found["figures"].column("key").to_pylist()) == ["0", "1", "2"]
    assert {mask.shape for mask in found["masks"].values()} == {(2, 2)}
