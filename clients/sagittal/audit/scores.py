"""Scores of changed images by the service, kept in a file so that an interrupted audit asks for none twice."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from sagittal.audit.evidence import Pixels
from sagittal.client import Client, ImageLike, Model, ModelInput, Preprocessing

#: Predictions that are in flight at a time.
IN_FLIGHT = 16

#: Largest number of classes of a prediction; a class that is not among them has at most 1 / MOST_CLASSES.
MOST_CLASSES = 1_000


class ServiceScores:
    """Returns probabilities of classes, from a file of earlier ones or by predictions of the service."""

    def __init__(self, client: Client, model: Model, path: Path) -> None:
        self._client, self._model, self._path = client, model, path
        self._known: dict[str, float] = {}
        self.evaluations = 0
        """Predictions of this run."""
        if path.exists():
            whole = path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]
            path.write_bytes(whole)  # without a last line that an interrupted write left
            self._known = dict(json.loads(line) for line in whole.splitlines())

    def __call__(self, edited: Sequence[tuple[Pixels, int]]) -> Sequence[float]:
        """Returns the probability of a class for each image; each equal pair is scored once."""
        keys = [self._key(picture, label) for picture, label in edited]
        missing = {key: pair for key, pair in zip(keys, edited, strict=True) if key not in self._known}
        with ThreadPoolExecutor(IN_FLIGHT) as threads, self._path.open("a", encoding="utf-8") as file:
            asked = {threads.submit(self._predict, *pair): key for key, pair in missing.items()}
            try:
                for each in as_completed(asked):
                    self._known[asked[each]] = each.result()
                    file.write(json.dumps([asked[each], self._known[asked[each]]]) + "\n")
                    self.evaluations += 1
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return [self._known[key] for key in keys]

    def _predict(self, picture: Pixels, label: int) -> float:
        image, model = as_sent(picture, self._model.preprocessing), self._model
        top = min(model.classes, MOST_CLASSES)
        found = self._client.predict(image, model=model.name, model_version=model.version, top=top)
        return next((each.score for each in found if each.index == label), 0.0)

    def _key(self, picture: Pixels, label: int) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(picture).tobytes())
        digest.update(f"{self._model.version} {self._model.digest} {label}".encode())
        return digest.hexdigest()[:32]


def as_sent(picture: Pixels, how: Preprocessing) -> ImageLike:
    """Returns an image from which the service makes exactly this model's input.

    It is sent as pixels, with a border that the service crops. If the crop is not on whole pixels, the input itself is
    sent, which takes four times the space.
    """
    border, half = divmod(max(how.resize - how.input_size, 0) if how.fit == "crop" else 0, 2)
    if not half:
        return np.pad(picture, ((border, border), (border, border), (0, 0)), mode="edge") if border else picture
    values = picture[..., :: -1 if how.channel_order == "BGR" else 1].astype(np.float32) / 255
    return ModelInput(np.asarray((values - how.mean) / how.std, np.float32).transpose(2, 0, 1))
