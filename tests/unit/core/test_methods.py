import numpy as np
import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from sagittal.core.errors import FailedPrecondition, InvalidRequest, NotServed
from sagittal.core.methods import resolve, shortest
from sagittal.v1 import method_pb2, model_pb2, tensor_pb2

OPTIMIZERS = ["adam", "line-search", "nesterov"]


def parameter(name: str, kind: str, default: object = None, **rules: object) -> model_pb2.ParameterDescription:
    description = model_pb2.ParameterDescription(name=name, type=kind, summary=f"the {name}", **rules)
    if default is not None:
        description.default.CopyFrom(json_format.ParseDict(default, struct_pb2.Value()))
    return description


def catalogue() -> list[model_pb2.MethodDescription]:
    igos = [
        parameter("mask_size", "int", 28, minimum=7, maximum=224),
        parameter("l1_weight", "float", 0.1, minimum=0),
        parameter("step_size", "float", 0.5, minimum=0, exclusive_minimum=True),
        parameter("optimizer", "str", "adam", choices=OPTIMIZERS),
    ]
    rise = [
        parameter("probability", "float", 0.5, minimum=0, maximum=1, exclusive_minimum=True, exclusive_maximum=True)
    ]
    glow = [
        parameter("colour", "str", "red"),
        parameter("steps", "int", 3, maximum=9),
        parameter("bright", "bool", default=False),
        parameter("needed", "float"),
    ]
    layer = parameter("layer", "str")
    layer.default.null_value = struct_pb2.NULL_VALUE
    return [
        model_pb2.MethodDescription(name="igos++", field="igos_plus_plus", parameters=igos),
        model_pb2.MethodDescription(name="rise", field="rise", parameters=rise),
        model_pb2.MethodDescription(name="glow", field="custom", parameters=glow),
        model_pb2.MethodDescription(name="eb", field="excitation_backprop", parameters=[layer]),
        model_pb2.MethodDescription(name="grad-cam", field="grad_cam", unavailable="it has no layers; try rise"),
        model_pb2.MethodDescription(
            name="evaluate-mask", field="evaluate_mask", parameters=[parameter("heatmap", "tensor")]
        ),
    ]


@pytest.mark.parametrize("asked", ["igos++", "igos-plus-plus"])
def test_a_method_by_an_alias_is_the_listed_method(asked: str) -> None:
    listed = catalogue()
    listed[0].aliases.append("igos-plus-plus")
    resolved = resolve(custom(asked, mask_size=7), listed)
    assert (resolved.name, resolved.field, resolved.parameters["mask_size"]) == ("igos++", "igos_plus_plus", 7)


def of(**method: object) -> method_pb2.Method:
    return method_pb2.Method(**method)


def custom(name: str, **parameters: object) -> method_pb2.Method:
    method = method_pb2.Method(custom=method_pb2.CustomMethod(name=name))
    method.custom.parameters.update(parameters)
    return method


def test_no_method_means_igos_plus_plus_with_its_defaults() -> None:
    resolved = resolve(method_pb2.Method(), catalogue())
    assert resolved.name == "igos++"
    assert resolved.parameters == {"mask_size": 28, "l1_weight": 0.1, "step_size": 0.5, "optimizer": "adam"}
    assert isinstance(resolved.parameters["mask_size"], int)


def test_what_is_set_replaces_the_default() -> None:
    given = method_pb2.IGOSPlusPlus(mask_size=7, l1_weight=0.0, optimizer=method_pb2.OPTIMIZER_LINE_SEARCH)
    parameters = resolve(of(igos_plus_plus=given), catalogue()).parameters
    assert parameters["mask_size"] == 7
    assert parameters["l1_weight"] == 0.0
    assert parameters["optimizer"] == "line-search"


def test_an_unspecified_enum_is_not_set() -> None:
    given = method_pb2.IGOSPlusPlus(optimizer=method_pb2.OPTIMIZER_UNSPECIFIED)
    assert resolve(of(igos_plus_plus=given), catalogue()).parameters["optimizer"] == "adam"


def test_a_float_is_the_decimal_that_was_typed() -> None:
    given = method_pb2.IGOSPlusPlus(l1_weight=0.3)
    assert resolve(of(igos_plus_plus=given), catalogue()).parameters["l1_weight"] == 0.3


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_the_shortest_decimal_is_the_same_in_single_precision(value: float) -> None:
    assert np.float32(shortest(value)) == np.float32(value)


def test_an_optional_parameter_without_a_value_is_none() -> None:
    assert resolve(of(excitation_backprop={}), catalogue()).parameters == {"layer": None}


def test_a_method_by_name_takes_its_parameters_by_name() -> None:
    resolved = resolve(custom("glow", colour="blue", steps=4, bright=True, needed=0.25), catalogue())
    assert resolved.parameters == {"colour": "blue", "steps": 4, "bright": True, "needed": 0.25}
    assert isinstance(resolved.parameters["steps"], int)


def test_a_typed_method_may_also_be_given_by_name() -> None:
    assert resolve(custom("igos++", mask_size=9), catalogue()).parameters["mask_size"] == 9


def test_a_tensor_is_kept_as_it_was_sent() -> None:
    heatmap = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 1], data=bytes(4))
    resolved = resolve(of(evaluate_mask={"heatmap": heatmap}), catalogue())
    assert resolved.parameters["heatmap"] == heatmap.SerializeToString()


def igos(**parameters: object) -> method_pb2.Method:
    return of(igos_plus_plus=method_pb2.IGOSPlusPlus(**parameters))


NAN_MASK = tensor_pb2.Tensor(
    dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 1], data=np.array([np.nan], np.float32).tobytes()
)


@pytest.mark.parametrize(
    ("method", "field", "says"),
    [
        (igos(mask_size=6), "igos_plus_plus.mask_size", "is 6; give a whole number from 7 to 224"),
        (igos(mask_size=225), "igos_plus_plus.mask_size", "from 7 to 224"),
        (igos(l1_weight=-0.1), "igos_plus_plus.l1_weight", "is -0.1; give a number of at least 0"),
        (igos(l1_weight=float("nan")), "igos_plus_plus.l1_weight", "finite"),
        (igos(l1_weight=float("inf")), "igos_plus_plus.l1_weight", "finite"),
        (igos(step_size=0), "igos_plus_plus.step_size", "is 0.0; give a number above 0"),
        (igos(optimizer=77), "igos_plus_plus.optimizer", "OPTIMIZER_ADAM"),
        (igos(tv_weight=1), "igos_plus_plus.tv_weight", "give one of mask_size, l1_weight"),
        (of(rise={"probability": 0.0}), "rise.probability", "above 0 and below 1"),
        (of(rise={"probability": 1.0}), "rise.probability", "above 0 and below 1"),
        (of(evaluate_mask={}), "evaluate_mask.heatmap", "has no default"),
        (of(evaluate_mask={"heatmap": NAN_MASK}), "evaluate_mask.heatmap.data", "NaN"),
        (custom("dream"), "custom.name", "evaluate-mask, glow, igos++, rise"),
        (custom("glow", needed=1, shade=1), "custom.parameters.shade", "colour, steps"),
        (custom("glow"), "custom.parameters.needed", "has no default"),
        (custom("glow", needed="x"), "custom.parameters.needed", "finite number"),
        (custom("glow", needed=True), "custom.parameters.needed", "finite number"),
        (custom("glow", needed=1, steps=1.5), "custom.parameters.steps", "whole number"),
        (custom("glow", needed=1, steps=10), "custom.parameters.steps", "of at most 9"),
        (custom("glow", needed=1, colour=5), "custom.parameters.colour", "a text"),
        (custom("glow", needed=1, bright="yes"), "custom.parameters.bright", "true or false"),
        (custom("igos++", optimizer="magic"), "custom.parameters.optimizer", "adam, line-search, nesterov"),
        (custom("evaluate-mask", heatmap=[1]), "custom.parameters.heatmap", "must be a tensor"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_admitted(method: method_pb2.Method, field: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(method, catalogue(), field="spec.method")
    assert caught.value.field.startswith(f"spec.method.{field}")
    assert says in caught.value.message


def test_a_typed_method_that_no_worker_offers_is_not_served() -> None:
    with pytest.raises(NotServed, match="they serve eb, evaluate-mask, glow, igos\\+\\+, rise") as caught:
        resolve(of(occlusion={}), catalogue(), field="spec.method")
    assert caught.value.field == "spec.method.occlusion"


def test_a_method_that_the_model_does_not_admit_says_why() -> None:
    with pytest.raises(FailedPrecondition, match="no layers; try rise"):
        resolve(of(grad_cam={}), catalogue())


def test_a_method_that_a_worker_adds_needs_nothing_here() -> None:
    new = model_pb2.MethodDescription(name="occlusion", field="occlusion", parameters=[parameter("grid", "int", 8)])
    assert resolve(of(occlusion={"grid": 4}), [*catalogue(), new]).parameters == {"grid": 4}


def test_a_model_that_no_worker_has_loaded_says_so() -> None:
    with pytest.raises(FailedPrecondition, match="no worker has loaded this model yet") as caught:
        resolve(method_pb2.Method(), [])
    assert caught.value.retry_after


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_custom_parameter_that_json_does_not_have_is_refused_by_its_name(number: float) -> None:
    for nested in (number, [1.0, number], {"deep": [number]}):
        with pytest.raises(InvalidRequest, match="finite") as caught:
            resolve(custom("glow", needed=1.0, colour=nested), catalogue(), field="spec.method")
        assert caught.value.field == "spec.method.custom.parameters.colour"


def drifted() -> list[model_pb2.MethodDescription]:
    """The catalogue of another worker, whose defaults are others."""
    others = {"mask_size": 7, "l1_weight": 9.5, "step_size": 3.25, "optimizer": "nesterov", "probability": 0.125}
    others |= {"colour": "blue", "steps": 9, "bright": True}
    changed = catalogue()
    for description in changed:
        for each in description.parameters:
            if each.name in others:
                each.default.CopyFrom(json_format.ParseDict(others[each.name], struct_pb2.Value()))
    return changed


@pytest.mark.parametrize(
    "method",
    [
        of(),
        of(igos_plus_plus={"mask_size": 14}),
        of(igos_plus_plus={"optimizer": method_pb2.OPTIMIZER_LINE_SEARCH, "l1_weight": 0.3}),
        of(rise=method_pb2.RISE()),
        of(excitation_backprop=method_pb2.ExcitationBackprop()),
        of(excitation_backprop={"layer": "features"}),
        of(
            evaluate_mask=method_pb2.EvaluateMask(
                heatmap=tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 1], data=bytes(4))
            )
        ),
        custom("glow", needed=2.5),
        custom("glow", needed=2.5, colour="green", steps=2),
        custom("igos++", mask_size=14),
    ],
)
def test_a_resolved_method_means_the_same_to_a_worker_with_other_defaults(method: method_pb2.Method) -> None:
    resolved = resolve(method, catalogue())
    again = resolve(resolved.message(), drifted())
    assert (again.name, again.field, again.parameters) == (resolved.name, resolved.field, resolved.parameters)
    assert resolve(again.message(), catalogue()).parameters == resolved.parameters
