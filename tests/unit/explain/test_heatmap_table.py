"""Each heatmap method is a row whose parameters are those of its message."""

import pytest

from sagittal.explain import EXPLAINERS, parameters
from sagittal.v1 import method_pb2

NAMES = {
    "meaningful-perturbation": "meaningful_perturbation",
    "rise": "rise",
    "grad-cam": "grad_cam",
    "integrated-gradients": "integrated_gradients",
    "excitation-bp": "excitation_backprop",
    "occlusion": "occlusion",
    "occlusion-surrogate": "occlusion_surrogate",
    "ordered-region-search": "ordered_region_search",
    "evaluate-mask": "evaluate_mask",
}


@pytest.mark.parametrize(("name", "field"), NAMES.items())
def test_the_parameters_are_the_fields_of_the_message(name, field):
    row = EXPLAINERS[name]
    assert row.field == field
    message = method_pb2.Method.DESCRIPTOR.fields_by_name[field].message_type
    assert [declared.name for declared in parameters(row.explainer)] == [entry.name for entry in message.fields]


@pytest.mark.parametrize("name", NAMES)
def test_numbers_have_bounds_and_defaults_that_hold_them(name):
    for declared in parameters(EXPLAINERS[name].explainer):
        if declared.type in ("int", "float"):
            assert declared.bounds.minimum is not None
    if name != "evaluate-mask":
        EXPLAINERS[name].explainer()


@pytest.mark.parametrize("name", NAMES)
def test_every_method_says_what_it_does(name):
    assert EXPLAINERS[name].explainer.summary
