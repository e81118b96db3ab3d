"""A drawn world of birds in which every reason is known: parts, rules of classes, interventions and planted marks.

It needs numpy and Pillow only. What it draws depends on its seeds alone.
"""

from sagittal.synthetic.birds import BACKGROUNDS, PARTS, TRAITS, Drawing, Pose, Scene, draw, part_value, sample_scene
from sagittal.synthetic.classes import (
    CLASSES,
    MATTERING,
    RULES,
    Reason,
    Sample,
    class_of,
    sample_images,
    sample_traits,
    satisfies,
)
from sagittal.synthetic.files import write_samples
from sagittal.synthetic.marks import MARKS, Mark

__all__ = [
    "BACKGROUNDS",
    "CLASSES",
    "MARKS",
    "MATTERING",
    "PARTS",
    "RULES",
    "TRAITS",
    "Drawing",
    "Mark",
    "Pose",
    "Reason",
    "Sample",
    "Scene",
    "class_of",
    "draw",
    "part_value",
    "sample_images",
    "sample_scene",
    "sample_traits",
    "satisfies",
    "write_samples",
]
