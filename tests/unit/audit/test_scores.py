"""Scores of changed images are asked for once, also over an interruption, and for exactly the model's input."""

from types import SimpleNamespace

import numpy as np
import pytest

from sagittal.audit.scores import ServiceScores, as_sent
from sagittal.client import ClassScore, ModelInput, Preprocessing
from sagittal.imaging.fitting import fit_to_input

HOW = Preprocessing(
    input_size=8, resize=8, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3, channel_order="RGB",
    fit="squash",
)  # fmt: skip
MODEL = SimpleNamespace(name="lamp", version="1", digest="d", classes=2, preprocessing=HOW)


class Predictions:
    """A client that answers with the brightness, and is interrupted at a call."""

    def __init__(self, stops_at: int = 1_000) -> None:
        self.calls, self.stops_at = 0, stops_at

    def predict(self, image, **_: object):
        self.calls += 1
        if self.calls > self.stops_at:
            raise KeyboardInterrupt
        return [ClassScore(index=1, label="on", score=float(image.mean()) / 255)]


def pictures(count: int) -> list:
    return [(np.full((8, 8, 3), number, np.uint8), 1) for number in range(count)]


def test_equal_images_are_scored_once_and_scores_are_kept(tmp_path) -> None:
    client = Predictions()
    first = ServiceScores(client, MODEL, tmp_path / "scores")(pictures(5) * 2)
    again = ServiceScores(client, MODEL, tmp_path / "scores")(pictures(5))
    assert client.calls == 5
    assert first == again * 2 == pytest.approx([number / 255 for number in range(5)] * 2)


def test_a_class_that_is_not_predicted_has_no_probability(tmp_path) -> None:
    assert ServiceScores(Predictions(), MODEL, tmp_path / "scores")([(pictures(1)[0][0], 0)]) == [0.0]


def test_an_interrupted_audit_asks_only_for_what_is_missing(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ServiceScores(Predictions(stops_at=3), MODEL, tmp_path / "scores")(pictures(40))
    kept = (tmp_path / "scores").read_text().count("\n")
    with (tmp_path / "scores").open("a") as file:
        file.write('["half a li')
    client = Predictions()
    ServiceScores(client, MODEL, tmp_path / "scores")(pictures(40))
    assert client.calls == 40 - kept


def fitted(sent: object, how: Preprocessing) -> np.ndarray:
    """Returns the model's input that the service makes of an image."""
    if isinstance(sent, ModelInput):
        return sent.array
    picture = fit_to_input(sent, how).astype(np.float32) / 255
    return ((picture - how.mean) / how.std).transpose(2, 0, 1)


@pytest.mark.parametrize(("fit", "resize"), [("squash", 8), ("pad", 8), ("crop", 8), ("crop", 10), ("crop", 9)])
def test_the_service_makes_the_same_input_of_what_is_sent(fit: str, resize: int) -> None:
    how = Preprocessing(8, resize, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "RGB", fit)
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    expected = ((picture / 255 - how.mean) / how.std).transpose(2, 0, 1)
    np.testing.assert_allclose(fitted(as_sent(picture, how), how), expected, atol=1e-6)
