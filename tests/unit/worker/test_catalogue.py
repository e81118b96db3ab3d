"""What a worker publishes is enough for the service to check every method with its defaults."""

from dataclasses import replace

import pytest
import torch

from sagittal.core.methods import resolve
from sagittal.explain import EXPLAINERS, find_method, parameters
from sagittal.models.loaded import Found
from sagittal.v1 import method_pb2
from sagittal.worker.execution.requests import make_explainer
from sagittal.worker.hosting.description import describe_method

FOUND = Found(
    classes=2,
    supports_gradients=True,
    spatial_layers=("features",),
    feature_layers=("head",),
    steps=(),
    batch_size=8,
    evaluations_per_second=1.0,
    gradient_evaluations_per_second=1.0,
)
NEEDS_NO_TENSOR = [
    row for row in EXPLAINERS.values() if all(declared.type != "tensor" for declared in parameters(row.explainer))
]


@pytest.mark.parametrize("row", NEEDS_NO_TENSOR, ids=lambda row: row.name)
def test_every_method_runs_with_its_defaults(row):
    method = method_pb2.Method()
    getattr(method, row.field).SetInParent()
    if row.field == "custom":
        method.custom.name = row.name
    resolved = resolve(method, [describe_method(row, FOUND)])
    assert row.explainer(**resolved.parameters) == row.explainer()


def test_a_method_that_the_model_does_not_admit_says_what_works():
    blind = Found(
        classes=2,
        supports_gradients=False,
        spatial_layers=(),
        feature_layers=(),
        steps=(),
        batch_size=8,
        evaluations_per_second=1.0,
        gradient_evaluations_per_second=0.0,
    )
    assert "rise" in describe_method(EXPLAINERS["igos++"], blind).unavailable
    assert not describe_method(EXPLAINERS["rise"], blind).unavailable


@pytest.mark.parametrize(
    ("alias", "name"), [("mse", "minimal-sufficient-explanations"), ("sag", "structured-attention-graph")]
)
def test_a_method_is_the_same_by_its_alias(alias, name):
    described = describe_method(EXPLAINERS[name], FOUND)
    asked = method_pb2.Method(custom=method_pb2.CustomMethod(name=alias))
    resolved = resolve(asked, [described])
    assert resolved.name == name
    assert find_method(alias) is EXPLAINERS[name]
    assert make_explainer(replace(resolved, name=alias), torch.device("cpu")) == EXPLAINERS[name].explainer()
