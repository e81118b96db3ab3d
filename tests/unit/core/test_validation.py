from typing import Any

import pytest
from google.protobuf import duration_pb2

from sagittal.core.errors import FailedPrecondition, InvalidRequest, SagittalError
from sagittal.core.requests import TimeLimits, check_spec
from sagittal.v1 import explanation_pb2 as api
from sagittal.v1 import method_pb2, model_pb2, tensor_pb2

LIMITS = TimeLimits(default=100.0, maximum=1000.0)
IMAGE = tensor_pb2.Image(encoded=b"any")


def bird_model() -> model_pb2.Model:
    methods = [model_pb2.MethodDescription(name="igos++", field="igos_plus_plus")]
    return model_pb2.Model(
        name="birds",
        version="3",
        classes=4,
        labels=["Crane", "House finch", "crane", "Robin"],
        methods=methods,
        preprocessing=model_pb2.Preprocessing(input_size=224),
    )


def spec(**fields: Any) -> api.ExplanationSpec:
    return api.ExplanationSpec(**{"model": "birds", "image": IMAGE} | fields)


def seconds(value: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration


def baseline(**fields: Any) -> dict[str, Any]:
    return {"baseline": api.Baseline(**fields)}


def metrics(**fields: Any) -> dict[str, Any]:
    return {"metrics": api.Metrics(**fields)}


def box(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    return metrics(boxes=[tensor_pb2.Box(left=left, top=top, right=right, bottom=bottom)])


def label(text: str) -> dict[str, Any]:
    return {"target": api.Target(label=text)}


def test_the_least_that_must_be_said_is_enough() -> None:
    checked = check_spec(spec(), bird_model(), LIMITS)
    assert checked.method.name == "igos++"
    assert checked.target is None
    assert checked.deadline == 100.0


@pytest.mark.parametrize("target", [{"index": 3}, {"label": "Robin"}, {"label": " ROBIN "}])
def test_a_class_is_found_by_index_or_label(target: dict[str, Any]) -> None:
    assert check_spec(spec(target=api.Target(**target)), bird_model(), LIMITS).target == 3


def test_everything_that_may_be_said_is_accepted() -> None:
    full = spec(
        target=api.Target(index=0),
        baseline=api.Baseline(kind=api.BASELINE_KIND_IMAGE, image=IMAGE),
        metrics=api.Metrics(
            curve_steps=1000, predictability=2000, boxes=[tensor_pb2.Box(left=0, top=0, right=224, bottom=1)]
        ),
        lane=api.LANE_BATCH,
        cache_policy=api.CACHE_POLICY_BYPASS,
        deadline=seconds(1000),
        progress_interval=seconds(0),
        request_id="x" * 128,
    )
    assert check_spec(full, bird_model(), LIMITS).deadline == 1000.0


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"image": tensor_pb2.Image()}, "image", "JPEG, PNG or WebP"),
        ({"target": api.Target()}, "target", "`index` or `label`"),
        ({"target": api.Target(index=4)}, "target.index", "is 4; birds has 4 classes: give 0 to 3"),
        (label("robins"), "target.label", "did you mean 'Robin'?"),
        (label("finch"), "target.label", "'House finch'"),
        (label("zzz"), "target.label", "GetModel lists its labels"),
        (label(""), "target.label", "is not a label"),
        (label("crane"), "target.label", "names the classes 0, 2"),
        ({"lane": 9}, "lane", "LANE_INTERACTIVE, LANE_BATCH"),
        ({"cache_policy": 9}, "cache_policy", "CACHE_POLICY_REFRESH"),
        ({"request_id": "x" * 129}, "request_id", "at most 128"),
        ({"deadline": seconds(0)}, "deadline", "up to 1000 s"),
        ({"deadline": seconds(-1)}, "deadline", "is -1 s; give 0 to 1000 s"),
        ({"deadline": seconds(1001)}, "deadline", "0 to 1000 s"),
        ({"progress_interval": seconds(-1)}, "progress_interval", "0 to 3600 s"),
        (baseline(kind=9), "baseline.kind", "BASELINE_KIND_BLUR"),
        (baseline(kind=api.BASELINE_KIND_IMAGE), "baseline.image", "is not set"),
        (baseline(image=IMAGE), "baseline.image", "set spec.baseline.kind to BASELINE_KIND_IMAGE"),
        (baseline(blur_sigma=-1), "baseline.blur_sigma", "0 (automatic)"),
        (baseline(blur_sigma=float("nan")), "baseline.blur_sigma", "0 (automatic)"),
        (baseline(blur_sigma=1e9), "baseline.blur_sigma", "1000 pixels"),
        (baseline(kind=api.BASELINE_KIND_BLACK, blur_sigma=1), "baseline.blur_sigma", "leave it out"),
        ({"max_evaluations": 1_000_000_001}, "max_evaluations", "1 to 1,000,000,000, or 0"),
        ({"max_evaluations": 2**64 - 1}, "max_evaluations", "1 to 1,000,000,000, or 0"),
        (metrics(curve_protocol=9), "metrics.curve_protocol", "CURVE_PROTOCOL_MASK"),
        (metrics(curve_steps=1001), "metrics.curve_steps", "1 to 1,000"),
        (metrics(predictability=19), "metrics.predictability", "20 to 2,000 occlusions, or 0"),
        (metrics(predictability=2001), "metrics.predictability", "20 to 2,000 occlusions, or 0"),
        (metrics(stability=16), "metrics.stability", "1 to 15 further runs, or 0"),
        (metrics(robustness={"delta": 1}), "metrics.robustness.delta", "above 0 and below 1, or 0 for 0.1"),
        (metrics(robustness={"delta": float("nan")}), "metrics.robustness.delta", "above 0 and below 1"),
        (metrics(robustness={"confidence": -1}), "metrics.robustness.confidence", "below 1, or 0 for 0.95"),
        (metrics(robustness={"max_draws": 1001}), "metrics.robustness.max_draws", "1 to 1,000, or 0 for 40"),
        (metrics(robustness={"images": [IMAGE] * 9}), "metrics.robustness.images", "at most 8"),
        (metrics(robustness={"images": [{}]}), "metrics.robustness.images[0]", "is not set"),
        (metrics(boxes=[tensor_pb2.Box()] * 1001), "metrics.boxes", "at most 1,000"),
        (box(5, 0, 5, 1), "metrics.boxes[0].right", "more than left, which is 5"),
        (box(0, 2, 1, 1), "metrics.boxes[0].bottom", "more than top"),
        (box(0, 0, 225, 1), "metrics.boxes[0].right", "give at most 224"),
    ],
)
def test_a_fault_names_its_field_and_the_remedy(fields: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_spec(spec(**fields), bird_model(), LIMITS)
    assert caught.value.field == f"spec.{field}"
    assert caught.value.message.startswith(f"spec.{field}")
    assert says in caught.value.message


def test_the_methods_fault_has_its_whole_path() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_spec(spec(method=method_pb2.Method(igos_plus_plus={"mask_size": 3})), bird_model(), LIMITS)
    assert caught.value.field == "spec.method.igos_plus_plus.mask_size"


def test_a_model_without_labels_asks_for_an_index() -> None:
    model = bird_model()
    model.ClearField("labels")
    with pytest.raises(FailedPrecondition, match="`index`"):
        check_spec(spec(**label("robin")), model, LIMITS)


def test_the_question_is_the_same_with_defaults_spelled_out() -> None:
    model = bird_model()
    model.methods[0].parameters.add(name="mask_size", type="int", summary="").default.number_value = 28
    spelled = spec(
        method=method_pb2.Method(igos_plus_plus={"mask_size": 28}),
        **baseline(kind=api.BASELINE_KIND_BLUR),
        **metrics(curve_protocol=api.CURVE_PROTOCOL_MASK, curve_steps=50),
    )
    assert question(spelled, model) == question(spec(), model)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"max_evaluations": 10},
        {"target": api.Target(index=1)},
        baseline(kind=api.BASELINE_KIND_BLACK),
        metrics(curve_steps=10),
        metrics(predictability=20),
        metrics(robustness={}),
        metrics(stability=3),
    ],
)
def test_what_changes_the_answer_changes_the_question(fields: dict[str, Any]) -> None:
    assert question(spec(**fields), bird_model()) != question(spec(), bird_model())


@pytest.mark.parametrize("fields", [{"lane": api.LANE_BATCH}, {"request_id": "a"}, {"deadline": seconds(5)}])
def test_what_does_not_change_the_answer_does_not_change_the_question(fields: dict[str, Any]) -> None:
    assert question(spec(**fields), bird_model()) == question(spec(), bird_model())


def test_predictability_counts_for_cost_only_if_it_is_asked_for() -> None:
    plain = check_spec(spec(max_evaluations=100), bird_model(), LIMITS)
    asked = check_spec(spec(max_evaluations=100, **metrics(predictability=200)), bird_model(), LIMITS)
    assert asked.most_evaluations == plain.most_evaluations + 200
    assert asked.setting != plain.setting
    assert plain.question is not None
    assert len(plain.question["metrics"]) == 4  # as in stored answers of earlier versions


def question(asked: api.ExplanationSpec, model: model_pb2.Model) -> dict[str, Any]:
    return dict(check_spec(asked, model, LIMITS).question or {})


def test_every_enum_of_the_specification_is_checked() -> None:
    """A field added to the API with an enum must not slip through unchecked."""
    for name, descriptor in api.ExplanationSpec.DESCRIPTOR.fields_by_name.items():
        if descriptor.enum_type is not None:
            with pytest.raises(SagittalError) as caught:
                check_spec(spec(**{name: 999}), bird_model(), LIMITS)
            assert caught.value.field == f"spec.{name}"


def test_what_is_queued_leaves_nothing_to_the_defaults_of_who_reads_it() -> None:
    asked = spec(target=api.Target(label="robin"), request_id="mine", seed=7)
    checked = check_spec(asked, bird_model(), LIMITS)
    queued = checked.request
    assert queued.target.index == 3
    assert queued.model_version == bird_model().version
    assert checked.method is not None
    assert queued.method == checked.method.message()
    assert (queued.metrics.curve_steps, queued.metrics.curve_protocol) == (50, api.CURVE_PROTOCOL_MASK)
    assert queued.baseline.kind == api.BASELINE_KIND_BLUR
    assert (queued.request_id, queued.seed) == ("mine", 7)
    assert not queued.HasField("image")
    assert checked.images["image"] == ("spec.image", IMAGE)


def test_a_test_of_certificates_is_queued_with_its_defaults_and_its_images_beside_it() -> None:
    checked = check_spec(spec(**metrics(robustness={"images": [IMAGE]})), bird_model(), LIMITS)
    queued = checked.request.metrics.robustness
    assert (queued.delta, queued.confidence, queued.max_draws, len(queued.images)) == (0.1, 0.95, 40, 0)
    assert checked.images["background-0"] == ("spec.metrics.robustness.images[0]", IMAGE)
    assert "robustness_draws" in checked.setting
    assert check_spec(spec(**metrics(robustness={}), max_evaluations=9), bird_model(), LIMITS).most_evaluations == 0


def test_a_request_that_names_its_defaults_is_the_same_question() -> None:
    bare = check_spec(spec(), bird_model(), LIMITS)
    whole = check_spec(spec(method=bare.request.method, metrics=bare.request.metrics), bird_model(), LIMITS)
    assert whole.question == bare.question
    assert whole.request == bare.request
