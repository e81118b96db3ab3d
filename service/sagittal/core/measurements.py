"""Checks what a request measures: curves, boxes, predictability, stability and the robustness of certificates.

An InvalidRequest names the field, the given value and the allowed values.
"""

from sagittal.core.enums import check_enum
from sagittal.core.errors import InvalidRequest
from sagittal.core.images import check_image_set
from sagittal.v1 import explanation_pb2, tensor_pb2

#: Steps of a curve at mask resolution.
MAX_CURVE_STEPS = 1_000

#: Steps of a curve if the request does not set them.
DEFAULT_CURVE_STEPS = 50

#: Occlusions of predictability, if it is measured: fewer say nothing.
MIN_OCCLUSIONS, MAX_OCCLUSIONS = 20, 2_000

#: Boxes of the pointing game.
MAX_BOXES = 1_000

#: Further runs with other seeds.
MAX_RUNS = 15

#: Defaults of a test of certificates.
DEFAULT_DELTA, DEFAULT_CONFIDENCE, DEFAULT_DRAWS = 0.1, 0.95, 40

#: Drawn backgrounds of a set, and images that are backgrounds.
MAX_DRAWS, MAX_BACKGROUNDS = 1_000, 8


def background_name(index: int) -> str:
    """Returns the name under which the image of a background is stored."""
    return f"background-{index}"


def check_metrics(metrics: explanation_pb2.Metrics, input_size: int, field: str) -> None:
    """Checks what to measure, for a model whose input has `input_size` pixels a side. Raises InvalidRequest."""
    check_enum(explanation_pb2.CurveProtocol.DESCRIPTOR, metrics.curve_protocol, f"{field}.curve_protocol")
    if metrics.curve_steps > MAX_CURVE_STEPS:
        text = (
            f"{field}.curve_steps is {metrics.curve_steps}; give 1 to {MAX_CURVE_STEPS:,}, or 0 for "
            f"{DEFAULT_CURVE_STEPS}"
        )
        raise InvalidRequest(text, field=f"{field}.curve_steps")
    if metrics.predictability and not MIN_OCCLUSIONS <= metrics.predictability <= MAX_OCCLUSIONS:
        text = (
            f"{field}.predictability is {metrics.predictability}; give {MIN_OCCLUSIONS} to {MAX_OCCLUSIONS:,} "
            "occlusions, or 0 not to measure it"
        )
        raise InvalidRequest(text, field=f"{field}.predictability")
    if len(metrics.boxes) > MAX_BOXES:
        text = f"{field}.boxes has {len(metrics.boxes)} boxes; give at most {MAX_BOXES:,}"
        raise InvalidRequest(text, field=f"{field}.boxes")
    for index, box in enumerate(metrics.boxes):
        _check_box(box, input_size, f"{field}.boxes[{index}]")
    if metrics.stability > MAX_RUNS:
        text = f"{field}.stability is {metrics.stability}; give 1 to {MAX_RUNS} further runs, or 0 for none"
        raise InvalidRequest(text, field=f"{field}.stability")
    if metrics.HasField("robustness"):
        _check_robustness(metrics.robustness, f"{field}.robustness")


def _check_robustness(test: explanation_pb2.RobustnessTest, field: str) -> None:
    for name, default in (("delta", DEFAULT_DELTA), ("confidence", DEFAULT_CONFIDENCE)):
        value = getattr(test, name)
        if not 0 <= value < 1:
            text = f"{field}.{name} is {value:g}; give a number above 0 and below 1, or 0 for {default:g}"
            raise InvalidRequest(text, field=f"{field}.{name}")
    if test.max_draws > MAX_DRAWS:
        text = f"{field}.max_draws is {test.max_draws}; give 1 to {MAX_DRAWS:,}, or 0 for {DEFAULT_DRAWS}"
        raise InvalidRequest(text, field=f"{field}.max_draws")
    if len(test.images) > MAX_BACKGROUNDS:
        text = f"{field}.images has {len(test.images)} images; give at most {MAX_BACKGROUNDS}"
        raise InvalidRequest(text, field=f"{field}.images")
    for index, image in enumerate(test.images):
        check_image_set(image, f"{field}.images[{index}]")


def _check_box(box: tensor_pb2.Box, input_size: int, field: str) -> None:
    for low, high in (("left", "right"), ("top", "bottom")):
        start, end = getattr(box, low), getattr(box, high)
        if end <= start:
            text = f"{field}.{high} is {end}; give more than {low}, which is {start}"
            raise InvalidRequest(text, field=f"{field}.{high}")
        if input_size and end > input_size:
            text = f"{field}.{high} is {end}; give at most {input_size}, the side of the model's input"
            raise InvalidRequest(text, field=f"{field}.{high}")
