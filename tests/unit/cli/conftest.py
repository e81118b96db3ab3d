from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner, Result
from scripted_service import Script, served

from sagittal.cli.app import app
from sagittal.v1 import model_pb2


@pytest.fixture
def script() -> Script:
    """A service whose model sees 56 pixels."""
    seen = model_pb2.Preprocessing(input_size=56, resize=64, interpolation="bilinear")
    worker = model_pb2.WorkerModel(worker="w", state=model_pb2.MODEL_STATE_READY, device="cpu")
    size = model_pb2.ParameterDescription(name="mask_size", type="int", minimum=7, maximum=224, summary="Side.")
    method = model_pb2.MethodDescription(name="igos++", field="igos_plus_plus", summary="Two masks.", parameters=[size])
    model = model_pb2.Model(
        name="lamp", version="1", latest=True, preprocessing=seen, workers=[worker], methods=[method], classes=4
    )
    return Script(model=model)


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    with served(script) as where:
        yield where


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    path = tmp_path / "picture.png"
    PIL.Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run(address: str) -> Callable[..., Result]:
    """Runs `sagittal` with arguments against the scripted service."""
    return lambda *arguments: CliRunner(env={"SAGITTAL_ADDRESS": address}).invoke(
        app, [str(each) for each in arguments]
    )
