"""The parts that a network uses: the effects of parts on its scores, by interventions on the drawn scene."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from known_reasons.networks import SIZE, logits
from sagittal.synthetic import BACKGROUNDS, CLASSES, MATTERING, PARTS, TRAITS, Sample, Scene, draw


def neutral_scenes(scene: Scene, part: str) -> Sequence[Scene]:
    """Returns scenes in which a part says nothing.

    A part of a rule gets its plain trait, or is not drawn if it has that already. Other parts get each other trait.
    """
    if part not in MATTERING:
        return [scene.swap(part, trait) for trait in TRAITS[part] if trait != scene.traits[part]]
    plain = TRAITS[part][0]
    return [scene.remove(part) if scene.traits[part] == plain else scene.swap(part, plain)]


def part_effects(network: nn.Module, sample: Sample) -> Mapping[str, float]:
    """Returns for each part the fall of the logit of the image's class if the part says nothing."""
    target = CLASSES.index(sample.label)
    scenes = [(part, each) for part in PARTS for each in neutral_scenes(sample.scene, part)]
    images = np.stack([sample.drawing.image, *(draw(each, SIZE).image for _, each in scenes)])
    scores = logits(network, images)[:, target].numpy()
    falls: dict[str, list[float]] = {part: [] for part in PARTS}
    for (part, _), score in zip(scenes, scores[1:], strict=True):
        falls[part].append(float(scores[0] - score))
    return {part: float(np.mean(each)) for part, each in falls.items()}


def changed_by_background(network: nn.Module, sample: Sample) -> bool:
    """Returns whether the top class differs on some other background: the network's dependence on it."""
    others = [name for name in BACKGROUNDS if name != sample.scene.background]
    images = [sample.drawing.image, *(draw(replace(sample.scene, background=name), SIZE).image for name in others)]
    tops = logits(network, np.stack(images)).argmax(1)
    return bool((tops != tops[0]).any())
