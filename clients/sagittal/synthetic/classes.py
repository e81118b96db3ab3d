"""Classes of birds by stated rules, and random images of them.

A rule is a list of reasons. A reason is the traits that must all be there: one reason with two traits is a conjunction,
two reasons are a disjunction. A bird of a class satisfies its rule and no other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sagittal.synthetic.birds import PARTS, TRAITS, Drawing, Scene, draw, sample_scene
from sagittal.synthetic.marks import Mark

Reason = Mapping[str, str]
"""The traits of parts that together are sufficient."""

RULES: Mapping[str, tuple[Reason, ...]] = MappingProxyType(
    {
        "woodpecker": ({"crown": "red"}, {"belly": "spotted"}),
        "warbler": ({"belly": "yellow", "wing bars": "white"},),
        "wagtail": ({"tail": "long", "wing bars": "white"},),
        "kingfisher": ({"crown": "blue", "beak": "long"},),
        "redstart": ({"tail": "red"},),
        "sparrow": (),
    }
)
"""The classes in the order of their indices. A sparrow satisfies no rule."""

CLASSES = tuple(RULES)

MATTERING = frozenset(part for rule in RULES.values() for reason in rule for part in reason)
"""Parts that occur in a rule."""

_ODDS: Mapping[str, tuple[float, ...]] = {
    "tail": (0.5, 0.2, 0.3),
    "crown": (0.45, 0.2, 0.35),
    "belly": (0.4, 0.25, 0.35),
}
"""Odds of the traits of a part that no reason fixes; equal for other parts."""

_BOTH = 0.2
"""Odds that a bird of a disjunction has all of its reasons."""

_HALF = 0.7
"""Odds that a sparrow has one trait of a conjunction, without the other."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One drawn image of a class."""

    label: str
    """Name of the class."""
    scene: Scene
    drawing: Drawing
    """The image without a mark, and its parts."""
    image: NDArray[np.uint8]
    """RGB of shape (size, size, 3), with the mark if there is one."""
    mark: NDArray[np.bool_] | None = None
    """The pixels of the mark; None if the image has none."""

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """The reasons of its class that the bird satisfies."""
        return tuple(reason for reason in RULES[self.label] if satisfies(self.scene.traits, reason))


def satisfies(traits: Mapping[str, str], reason: Reason) -> bool:
    """Returns whether a bird has all traits of a reason."""
    return all(traits[part] == trait for part, trait in reason.items())


def class_of(traits: Mapping[str, str]) -> str | None:
    """Returns the class of a bird; None if it satisfies the rules of several classes."""
    found = [name for name, rule in RULES.items() if any(satisfies(traits, reason) for reason in rule)]
    return "sparrow" if not found else found[0] if len(found) == 1 else None


def sample_traits(label: str, rng: np.random.Generator) -> dict[str, str]:
    """Returns random traits of a bird of this class."""
    while True:
        traits = {part: str(rng.choice(TRAITS[part], p=_ODDS.get(part))) for part in PARTS}
        traits.update(_fixed(label, rng))
        if class_of(traits) == label:
            return traits


def _fixed(label: str, rng: np.random.Generator) -> Reason:
    """Returns the traits that a bird of this class must have, or that make a sparrow hard to tell from other birds."""
    rule = RULES[label]
    if not rule:
        pairs = [reason for other in RULES.values() for reason in other if len(reason) > 1]
        half = list(pairs[int(rng.integers(len(pairs)))].items())
        return dict([half[int(rng.integers(len(half)))]]) if rng.random() < _HALF else {}
    if len(rule) > 1 and rng.random() < _BOTH:
        return {part: trait for reason in rule for part, trait in reason.items()}
    return rule[int(rng.integers(len(rule)))]


def sample_images(count: int, *, seed: int = 0, size: int = 64, mark: Mark | None = None) -> Iterator[Sample]:
    """Yields images, the classes in turn. Each depends on the seed, its index, `size` and `mark` alone.

    Args:
        count: Number of images.
        seed: Seed of all random choices. A mark changes no other choice.
        size: Side of the images in pixels.
        mark: A spurious cue that some of the images get.
    """
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        label = CLASSES[index % len(CLASSES)]
        scene = sample_scene(sample_traits(label, rng), rng)
        drawing = draw(scene, size)
        if mark is None or rng.random() >= mark.fractions.get(label, 0.0):
            yield Sample(label, scene, drawing, drawing.image)
        else:
            image, pixels = mark.apply(drawing, seed=int(rng.integers(2**31)))
            yield Sample(label, scene, drawing, image, pixels)
