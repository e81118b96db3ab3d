"""A directory of results has one row for each key, wherever its writer was killed."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy

from sagittal.bulk import Output, OutputError
from sagittal.bulk.shards import read_explanations
from sagittal.client.batches import BatchResult, parse_item
from sagittal.client.errors import InvalidImage, JobBuried
from sagittal.client.images import to_tensor
from sagittal.v1 import batch_service_pb2 as service_pb
from sagittal.v1 import explanation_pb2 as pb

MASK = np.linspace(0, 1, 4, dtype=np.float16).reshape(2, 2)


def completed(key: str) -> BatchResult:
    events = [
        pb.ExplanationEvent(
            job_id="j", sequence=1, prediction=pb.Prediction(target=pb.ClassScore(index=3, score=0.75))
        ),
        pb.ExplanationEvent(job_id="j", sequence=2, mask=pb.Mask(saliency=to_tensor(MASK), final=True)),
        pb.ExplanationEvent(job_id="j", sequence=3, completed=pb.Completed(insertion=0.5, evaluations=7)),
    ]
    explanation = pb.Explanation(job_id="j", state=pb.JOB_STATE_COMPLETED, model="lamp", events=events)
    item = service_pb.BatchItem(
        key=key, state=service_pb.BATCH_ITEM_STATE_COMPLETED, job_id="j", explanation=explanation
    )
    return parse_item(item)


def failed(key: str, error: Exception) -> BatchResult:
    return BatchResult(key=key, state="failed", job_id="j", error=error)


def rows(directory: Path, kind: str = "figures") -> list[dict]:
    found = [pyarrow.parquet.read_table(path).to_pylist() for path in sorted(directory.glob(f"{kind}-*.parquet"))]
    return list(itertools.chain(*found))


def test_a_shard_has_figures_events_and_masks_of_its_keys(tmp_path) -> None:
    with Output(tmp_path, results=2) as output:
        assert all(output.write(completed(key)) for key in ("a", "b/c", "d"))
        output.flush()
    assert [(row["key"], row["insertion"], row["target_index"]) for row in rows(tmp_path)] == [
        ("a", 0.5, 3), ("b/c", 0.5, 3), ("d", 0.5, 3),
    ]  # fmt: skip
    assert [row["kind"] for row in rows(tmp_path, "events")] == ["prediction", "mask", "completed"] * 3
    event = pb.ExplanationEvent.FromString(rows(tmp_path, "events")[1]["event"])
    assert (list(event.mask.saliency.shape), event.mask.saliency.data) == ([2, 2], b"")
    masks = safetensors.numpy.load_file(tmp_path / "masks-00000.safetensors")
    assert set(masks) == {"a/0", "b/c/0"}
    np.testing.assert_array_equal(masks["a/0"], MASK)


def test_a_result_without_events_has_a_row(tmp_path) -> None:
    with Output(tmp_path) as output:
        empty = pb.Explanation(job_id="j", state=pb.JOB_STATE_COMPLETED, model="lamp")
        assert output.write(BatchResult(key="a", state="completed", job_id="j", message=empty))
        output.flush()
    assert [(row["key"], row["state"], row["insertion"], row["masks"]) for row in rows(tmp_path)] == [
        ("a", "completed", None, 0)
    ]
    assert rows(tmp_path, "events") == []


def test_a_directory_that_was_deleted_is_named_with_a_remedy(tmp_path) -> None:
    place = tmp_path / "out"
    with Output(place) as output:
        output.write(completed("a"))
        shutil.rmtree(place)
        with pytest.raises(OutputError, match=r"out was deleted while its batch was running.*run the batch again"):
            output.flush()


def test_the_explanations_of_a_directory_are_those_that_were_written(tmp_path) -> None:
    written = [completed(key) for key in ("a", "b/c", "d")]
    with Output(tmp_path, results=2) as output:
        for each in written:
            output.write(each)
        output.flush()
    read = dict(read_explanations(tmp_path))
    assert list(read) == ["a", "b/c", "d"]
    for each in written:
        assert each.explanation is not None
        np.testing.assert_array_equal(read[each.key].mask, each.explanation.mask)
        assert (read[each.key].target, read[each.key].insertion) == (each.explanation.target, 0.5)


def test_results_without_a_shard_survive_in_the_journal(tmp_path) -> None:
    output = Output(tmp_path)
    output.write(completed("a"))
    output.write(completed("b"))
    output._lock.close()  # as where the program was killed
    assert rows(tmp_path) == []
    with Output(tmp_path) as again:
        assert "a" in again.done
        assert not again.write(completed("b"))
        again.write(completed("c"))
        again.flush()
    output.close()
    assert sorted(row["key"] for row in rows(tmp_path)) == ["a", "b", "c"]


def test_there_is_one_row_for_each_key_wherever_the_writer_was_killed(tmp_path) -> None:
    """Every prefix of the writes of a run: of the journal's bytes, and of the renames of a shard."""
    whole = tmp_path / "whole"
    with Output(whole) as output:
        for key in ("a", "b", "c"):
            output.write(completed(key))
        journal = (whole / "journal").read_bytes()
        output.flush()
    shard = ["events-00000.parquet", "masks-00000.safetensors", "figures-00000.parquet"]
    states = [([], journal[:length]) for length in range(0, len(journal), 37)]
    states += [(shard[:number], journal) for number in range(4)]
    for number, (names, bytes_of_journal) in enumerate(states):
        place = tmp_path / f"killed-{number}"
        place.mkdir()
        for name in names:
            shutil.copy(whole / name, place)
        (place / "journal").write_bytes(bytes_of_journal)
        (place / "events-00009.tmp").write_bytes(b"half")
        with Output(place) as again:
            for key in ("a", "b", "c", "a"):
                again.write(completed(key))
            again.flush()
        assert sorted(row["key"] for row in rows(place)) == ["a", "b", "c"], (number, names)
        assert len(rows(place, "events")) == 9
        assert not list(place.glob("*.tmp"))


def test_failures_have_reason_and_remedy_and_are_forgotten_for_a_retry(tmp_path) -> None:
    with Output(tmp_path) as output:
        assert output.write(failed("bad", InvalidImage("it is no image")))
        assert output.write(failed("deadly", JobBuried("it ended its workers")))
        assert not output.write(failed("bad", InvalidImage("it is no image")))
    with (tmp_path / "failures.jsonl").open("a") as lines:
        lines.write('{"key": "torn')
    with Output(tmp_path) as output:
        found = {each["key"]: each for each in output.failures()}
        assert set(found) == {"bad", "deadly"}
        assert (found["bad"]["reason"], found["deadly"]["reason"]) == ("INVALID_IMAGE", "JOB_BURIED")
        assert "Repair or replace the image" in found["bad"]["remedy"]
        assert output.forget_failures(["bad"]) == 1
        assert output.write(completed("bad"))
        assert not output.write(failed("deadly", JobBuried("again")))
        output.flush()
    lines = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["deadly"]
    assert [row["key"] for row in rows(tmp_path)] == ["bad"]


def test_only_one_program_writes_to_a_directory(tmp_path) -> None:
    with Output(tmp_path), pytest.raises(OutputError, match="another program"):
        Output(tmp_path)
