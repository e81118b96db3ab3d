"""Suggestions for a label that does not exist take bounded work, however many and long the labels are."""

import difflib
from collections.abc import Sequence

import pytest

from sagittal.core import targets
from sagittal.core.errors import FailedPrecondition, InvalidRequest
from sagittal.core.models import read_labels
from sagittal.core.targets import resolve_target
from sagittal.v1 import explanation_pb2, model_pb2


def refusal(label: str, labels: Sequence[str]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        resolve_target(explanation_pb2.Target(label=label), model_pb2.Model(name="lamp", labels=labels), "spec.target")
    assert caught.value.field == "spec.target.label"
    return str(caught.value)


@pytest.mark.parametrize("label", ["ab" * 30, "ab" * 500])
def test_few_labels_are_compared_letter_by_letter(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(wanted: str, candidates: Sequence[str], n: int) -> list[str]:
        compared.extend([wanted, *candidates])
        return []

    monkeypatch.setattr(difflib, "get_close_matches", compare)
    text = refusal(label, [f"{'ba' * 28}{number}" for number in range(20_000)] + ["ba" * 100_000])
    assert len(compared) <= 1 + targets._CANDIDATES
    assert sum(map(len, compared)) <= 128 * (1 + targets._CANDIDATES)
    assert len(text) < 512


@pytest.mark.parametrize(
    ("label", "meant"),
    [("goldfich", "goldfish"), ("Persian catt", "Persian cat"), ("labrador retreiver", "Labrador retriever")],
)
def test_a_misspelt_label_is_suggested_among_a_thousand(label: str, meant: str) -> None:
    assert repr(meant) in refusal(label, read_labels("imagenet-1k"))


def test_a_label_of_a_model_that_is_yet_to_be_loaded_is_asked_for_again() -> None:
    """A model that was just registered has no labels yet; one that a worker has loaded will never have any."""
    loaded = model_pb2.Model(name="lamp", methods=[model_pb2.MethodDescription(name="rise")])
    for model, again in ((model_pb2.Model(name="lamp"), True), (loaded, False)):
        with pytest.raises(FailedPrecondition, match="`index`") as caught:
            resolve_target(explanation_pb2.Target(label="on"), model)
        assert bool(caught.value.retry_after) is again


def test_a_label_of_many_classes_names_a_few_of_them() -> None:
    assert len(refusal("on", ["on"] * 50_000)) < 200
