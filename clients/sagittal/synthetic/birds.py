"""Drawn birds of which every pixel's part is known.

A `Scene` describes a drawing by names and numbers; `draw` makes its image and its map of parts at any size. A scene
with one part swapped, recoloured or removed is drawn with everything else unchanged. The effect of a part on a
classifier is therefore the difference between its scores on two drawings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

TRAITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tail": ("plain", "red", "long"),
        "legs": ("grey", "orange"),
        "body": ("brown", "grey", "tan"),
        "belly": ("plain", "spotted", "yellow"),
        "wing": ("brown", "grey", "tan"),
        "wing bars": ("plain", "white"),
        "crown": ("plain", "red", "blue"),
        "beak": ("short", "long"),
        "eye": ("dark", "pale"),
    }
)
"""The parts in the order of painting, and the traits of each; the first trait is its plainest."""

PARTS = tuple(TRAITS)

BACKGROUND, CLUTTER = 0, 1
"""Values of pixels of a map of parts that belong to no part."""

BACKGROUNDS: Mapping[str, Colour] = MappingProxyType(
    {
        "sky": (172, 200, 226),
        "meadow": (142, 170, 110),
        "forest": (84, 104, 78),
        "sand": (208, 190, 152),
        "water": (106, 142, 158),
    }
)
"""Backgrounds with their mean colours."""

_OVERSAMPLING = 3
"""Side of the square of drawn pixels that become one."""

_PLUMAGE: Mapping[str, Colour] = {"brown": (124, 88, 58), "grey": (122, 126, 132), "tan": (176, 148, 112)}
_RED, _BLUE, _YELLOW, _WHITE = (214, 30, 34), (40, 78, 214), (244, 206, 36), (244, 244, 240)
_CLUTTER: tuple[Colour, ...] = (
    (74, 110, 52), (110, 78, 50), (150, 150, 140), (196, 178, 96), (160, 86, 80), (92, 108, 150), (222, 220, 214)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pose:
    """Place and attitude of a bird."""

    x: float = 0.5
    """Centre of the body from the left, relative to the width."""
    y: float = 0.52
    """Centre of the body from the top, relative to the height."""
    scale: float = 0.25
    """Half the length of the body, relative to the size."""
    angle: float = 0.0
    """Rotation in radians."""
    mirrored: bool = False
    """Whether the bird looks to the left."""
    head: float = 0.0
    """Height of the head, -1 (low) to 1 (high)."""

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Pose":
        """Returns a random pose in which the whole bird is visible."""
        scale = rng.uniform(0.2, 0.26)
        return cls(
            x=0.5 + rng.uniform(-1, 1) * (0.5 - 1.9 * scale),
            y=0.5 + rng.uniform(-1, 1) * (0.42 - 1.25 * scale),
            scale=scale,
            angle=rng.uniform(-0.3, 0.3),
            mirrored=bool(rng.random() < 0.5),
            head=rng.uniform(-1, 1),
        )


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a drawing shows."""

    traits: Mapping[str, str]
    """The trait of each part."""
    pose: Pose = Pose()
    background: str = "sky"
    """A name in `BACKGROUNDS`."""
    seed: int = 0
    """Seed of clutter, light, texture and tints."""
    removed: frozenset[str] = frozenset()
    """Parts that are not drawn."""
    recoloured: Mapping[str, Colour] = field(default_factory=dict)
    """Colours of parts that replace those of their traits."""

    def __post_init__(self) -> None:
        """Raises ValueError for a part, trait or background that does not exist."""
        for part in {*self.traits, *self.removed, *self.recoloured}:
            if part not in TRAITS:
                raise ValueError(f"{part!r} is no part; the parts are {', '.join(PARTS)}")
        for part in PARTS:
            if self.traits.get(part) not in TRAITS[part]:
                known = ", ".join(TRAITS[part])
                raise ValueError(f"{part}: {self.traits.get(part)!r} is no trait of it; give one of {known}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"{self.background!r} is no background; give one of {', '.join(BACKGROUNDS)}")

    def swap(self, part: str, trait: str) -> "Scene":
        """Returns the scene with another trait of a part."""
        return replace(self, traits={**self.traits, part: trait})

    def recolour(self, part: str, colour: Colour) -> "Scene":
        """Returns the scene with a part in another colour."""
        return replace(self, recoloured={**self.recoloured, part: colour})

    def remove(self, part: str) -> "Scene":
        """Returns the scene without a part."""
        return replace(self, removed=self.removed | {part})

    def rng(self, purpose: int) -> np.random.Generator:
        """Returns the random numbers of one purpose, which do not depend on those of others."""
        return np.random.default_rng((self.seed, purpose))


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """An image, and the part that each of its pixels shows."""

    image: NDArray[np.uint8]
    """RGB of shape (size, size, 3)."""
    parts: NDArray[np.uint8]
    """The map of parts, of shape (size, size): BACKGROUND, CLUTTER, or 2 + the index of the part in `PARTS`."""

    def mask(self, part: str) -> NDArray[np.bool_]:
        """Returns the visible pixels of a part."""
        mask: NDArray[np.bool_] = self.parts == part_value(part)
        return mask

    @property
    def bird(self) -> NDArray[np.bool_]:
        """The pixels of all parts."""
        mask: NDArray[np.bool_] = self.parts > CLUTTER
        return mask


def part_value(part: str) -> int:
    """Returns the value of a part in maps of parts."""
    return PARTS.index(part) + 2


def sample_scene(traits: Mapping[str, str], rng: np.random.Generator) -> Scene:
    """Returns a scene of a bird with these traits, and all else at random."""
    pose, background = Pose.sample(rng), str(rng.choice(list(BACKGROUNDS)))
    return Scene(traits=dict(traits), pose=pose, background=background, seed=int(rng.integers(2**31)))


def draw(scene: Scene, size: int = 64) -> Drawing:
    """Returns the drawing of a scene, of `size` x `size` pixels."""
    side = size * _OVERSAMPLING
    canvas = _Canvas(_scenery(scene, size).resize((side, side), PIL.Image.Resampling.NEAREST), scene.pose, side)
    _clutter(canvas, scene)
    for part in PARTS:
        if part not in scene.removed:
            _PAINTERS[part](canvas, scene, part)
    return Drawing(_lit(canvas.image, scene, size), _majority(canvas.parts, size))


class _Canvas:
    """An image and its map of parts, painted together."""

    def __init__(self, image: PIL.Image.Image, pose: Pose, side: int) -> None:
        self.image, self.parts, self.side = image, PIL.Image.new("L", image.size, BACKGROUND), side
        self._pose = pose
        self._painted, self._mapped = PIL.ImageDraw.Draw(image), PIL.ImageDraw.Draw(self.parts)

    def polygon(self, points: NDArray[np.float64], colour: Colour, value: int) -> None:
        """Paints a polygon whose corners (n, 2) are in pixels."""
        corners = [(float(x), float(y)) for x, y in points]
        self._painted.polygon(corners, fill=colour)
        self._mapped.polygon(corners, fill=value)

    def on_bird(self, points: NDArray[np.float64], colour: Colour, part: str) -> None:
        """Paints a polygon whose corners (n, 2) are in half lengths of the body, from its centre."""
        pose, turned = self._pose, np.asarray(points, dtype=float)
        cosine, sine = math.cos(pose.angle), math.sin(pose.angle)
        turned = turned @ np.array([[cosine, sine], [-sine, cosine]])
        if pose.mirrored:
            turned = turned * (-1, 1)
        self.polygon((turned * pose.scale + (pose.x, pose.y)) * self.side, colour, part_value(part))


def _ellipse(x: float, y: float, width: float, height: float, angle: float = 0.0) -> NDArray[np.float64]:
    """Returns the corners (24, 2) of an ellipse with these half axes."""
    turns = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    points = np.stack([np.cos(turns) * width, np.sin(turns) * height], 1)
    cosine, sine = math.cos(angle), math.sin(angle)
    turned: NDArray[np.float64] = points @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y)
    return turned


def _head(scene: Scene) -> tuple[float, float]:
    return 0.86, -0.62 - 0.12 * scene.pose.head


def _tinted(scene: Scene, part: str, colour: Colour) -> Colour:
    """Returns the colour of a part in this scene: a shade of `colour`."""
    if part in scene.recoloured:
        return scene.recoloured[part]
    shade = scene.rng(10 + PARTS.index(part)).normal(0, 7, 3)
    red, green, blue = (int(value) for value in np.clip(np.array(colour) + shade, 0, 255))
    return red, green, blue


def _paint_tail(canvas: _Canvas, scene: Scene, part: str) -> None:
    trait = scene.traits[part]
    end = {"long": 1.05, "red": 0.5}.get(trait, 0.2)
    plain = _PLUMAGE[scene.traits["body"]]
    colour = _tinted(scene, part, _RED if trait == "red" else plain)
    canvas.on_bird(np.array([(-0.72, -0.2), (-0.85 - end, 0.02), (-0.85 - end, 0.32), (-0.66, 0.24)]), colour, part)


def _paint_legs(canvas: _Canvas, scene: Scene, part: str) -> None:
    colour = _tinted(scene, part, (232, 138, 40) if scene.traits[part] == "orange" else (96, 96, 100))
    for x in (-0.08, 0.22):
        canvas.on_bird(np.array([(x, 0.45), (x + 0.11, 0.45), (x + 0.11, 1.05), (x, 1.05)]), colour, part)


def _paint_body(canvas: _Canvas, scene: Scene, part: str) -> None:
    colour = _tinted(scene, part, _PLUMAGE[scene.traits[part]])
    x, y = _head(scene)
    canvas.on_bird(_ellipse(0, 0, 1.0, 0.6, -0.15), colour, part)
    canvas.on_bird(_ellipse(x - 0.2, y + 0.26, 0.36, 0.42), colour, part)
    canvas.on_bird(_ellipse(x, y, 0.4, 0.36), colour, part)


def _paint_belly(canvas: _Canvas, scene: Scene, part: str) -> None:
    trait = scene.traits[part]
    plain = _PLUMAGE[scene.traits["body"]]
    light = (min(plain[0] + 34, 255), min(plain[1] + 34, 255), min(plain[2] + 34, 255))
    colour = _tinted(scene, part, {"yellow": _YELLOW, "spotted": _WHITE}.get(trait, light))
    canvas.on_bird(_ellipse(0.28, 0.27, 0.6, 0.33, -0.3), colour, part)
    if trait == "spotted" and part not in scene.recoloured:
        for x, y in ((0.0, 0.3), (0.22, 0.42), (0.24, 0.16), (0.46, 0.28), (0.5, 0.02), (0.7, 0.12)):
            canvas.on_bird(_ellipse(x, y, 0.085, 0.085), (18, 18, 22), part)


def _paint_wing(canvas: _Canvas, scene: Scene, part: str) -> None:
    canvas.on_bird(_ellipse(-0.3, -0.14, 0.62, 0.34, 0.1), _wing_colour(scene, part), part)


def _wing_colour(scene: Scene, part: str) -> Colour:
    red, green, blue = _PLUMAGE[scene.traits["wing"]]
    return _tinted(scene, part, (int(red * 0.72), int(green * 0.72), int(blue * 0.72)))


def _paint_bars(canvas: _Canvas, scene: Scene, part: str) -> None:
    white = scene.traits[part] == "white"
    colour = _tinted(scene, part, _WHITE) if white or part in scene.recoloured else _wing_colour(scene, "wing")
    for x in (-0.5, -0.14):
        canvas.on_bird(np.array([(x, -0.38), (x + 0.2, -0.38), (x + 0.12, 0.14), (x - 0.08, 0.14)]), colour, part)


def _paint_crown(canvas: _Canvas, scene: Scene, part: str) -> None:
    trait, (x, y) = scene.traits[part], _head(scene)
    plain = _PLUMAGE[scene.traits["body"]]
    colour = _tinted(scene, part, {"red": _RED, "blue": _BLUE}.get(trait, plain))
    cap = _ellipse(x - 0.06, y - 0.16, 0.38, 0.3)
    canvas.on_bird(cap[cap[:, 1] < y - 0.02], colour, part)


def _paint_beak(canvas: _Canvas, scene: Scene, part: str) -> None:
    x, y = _head(scene)
    end = 0.95 if scene.traits[part] == "long" else 0.32
    colour = _tinted(scene, part, (206, 156, 58))
    canvas.on_bird(np.array([(x + 0.32, y - 0.15), (x + 0.32 + end, y + 0.08), (x + 0.3, y + 0.2)]), colour, part)


def _paint_eye(canvas: _Canvas, scene: Scene, part: str) -> None:
    x, y = _head(scene)
    colour = _tinted(scene, part, (232, 226, 190) if scene.traits[part] == "pale" else (20, 18, 18))
    canvas.on_bird(_ellipse(x + 0.16, y + 0.03, 0.075, 0.075), colour, part)


_PAINTERS = {
    "tail": _paint_tail,
    "legs": _paint_legs,
    "body": _paint_body,
    "belly": _paint_belly,
    "wing": _paint_wing,
    "wing bars": _paint_bars,
    "crown": _paint_crown,
    "beak": _paint_beak,
    "eye": _paint_eye,
}


def _scenery(scene: Scene, size: int) -> PIL.Image.Image:
    """Returns the background: its colour, brighter at the top or the bottom, with a smooth texture."""
    rng = scene.rng(0)
    texture = PIL.Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((size, size), _SMOOTH)
    slope = np.linspace(-1, 1, size)[:, None, None] * rng.uniform(-28, 28)
    tint = rng.normal(0, 12, 3)
    grain = (np.asarray(texture, dtype=float) - 128) * rng.uniform(0.05, 0.22)
    values = np.clip(np.array(BACKGROUNDS[scene.background]) + tint + slope + grain, 0, 255)
    return PIL.Image.fromarray(values.astype(np.uint8))


_SMOOTH = PIL.Image.Resampling.BICUBIC


def _clutter(canvas: _Canvas, scene: Scene) -> None:
    """Paints leaves, twigs and stones behind the bird."""
    rng = scene.rng(1)
    for _ in range(int(rng.integers(2, 8))):
        x, y = rng.uniform(0, 1, 2)
        width, height = rng.uniform(0.02, 0.09), rng.uniform(0.015, 0.05)
        leaf = _ellipse(x, y, width, height, rng.uniform(0, math.pi))
        canvas.polygon(leaf * canvas.side, _CLUTTER[int(rng.integers(len(_CLUTTER)))], CLUTTER)
    if rng.random() < 0.5:
        left, right, thick = *rng.uniform(0.2, 1, 2), rng.uniform(0.015, 0.03)
        twig = np.array([(0, left), (1, right), (1, right + thick), (0, left + thick)])
        canvas.polygon(twig * canvas.side, _CLUTTER[1], CLUTTER)


def _lit(image: PIL.Image.Image, scene: Scene, size: int) -> NDArray[np.uint8]:
    """Returns the image in its size, under the scene's light, with noise of a camera."""
    rng = scene.rng(2)
    pixels = np.asarray(image.resize((size, size), PIL.Image.Resampling.BOX), dtype=float)
    direction, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.18)
    place = np.linspace(-1, 1, size)
    falling = 1 + strength * (math.cos(direction) * place + math.sin(direction) * place[:, None])
    warmth = np.array([1, 1, 1]) + rng.uniform(-0.06, 0.06) * np.array([1, 0, -1])
    lit = pixels * rng.uniform(0.78, 1.12) * warmth * falling[..., None]
    noisy = lit + rng.normal(0, rng.uniform(1, 5), lit.shape)
    seen: NDArray[np.uint8] = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return seen


def _majority(parts: PIL.Image.Image, size: int) -> NDArray[np.uint8]:
    """Returns the part that covers most of each pixel."""
    values = len(PARTS) + 2
    drawn = np.asarray(parts, dtype=np.int64).reshape(size, _OVERSAMPLING, size, _OVERSAMPLING)
    places = np.arange(size * size).reshape(size, 1, size, 1) * values
    covered = np.bincount((places + drawn).ravel(), minlength=size * size * values)
    most: NDArray[np.uint8] = covered.reshape(size, size, values).argmax(2).astype(np.uint8)
    return most
