"""An explanation with its image: its figures, and its heatmaps on the image."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from sagittal.client.errors import FailedPrecondition, InvalidRequest, SagittalError
from sagittal.client.events import (
    Accepted,
    ClassScore,
    Completed,
    ConceptContribution,
    ConceptPrediction,
    Curve,
    GraphEdge,
    GraphNode,
    Mask,
    PatchSet,
    Prediction,
    Progress,
    Stability,
    Started,
    SufficientSet,
    Surrogate,
    Warning,
)
from sagittal.client.explained_image import ExplainedImage, explained_image
from sagittal.client.extras import import_extra
from sagittal.client.images import ImageLike
from sagittal.client.preprocessing import Preprocessing
from sagittal.client.requests import check_kind, shown
from sagittal.imaging.fitting import shrink
from sagittal.imaging.masks import place_mask, place_patches
from sagittal.imaging.overlays import overlay, show_only, to_image
from sagittal.imaging.view import View


@dataclass(frozen=True, slots=True, repr=False)
class Graph:
    """The structured attention graph: sets of patches, and edges that each remove one patch."""

    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]

    @property
    def roots(self) -> tuple[GraphNode, ...]:
        """The minimal sufficient explanations at the top of the graph."""
        return tuple(node for node in self.nodes if node.root)

    def __repr__(self) -> str:
        return f"Graph({len(self.nodes)} nodes, {len(self.edges)} edges, {len(self.roots)} roots)"

    def to_networkx(self) -> Any:
        """Returns a `networkx.DiGraph`: nodes by id with their patches and scores, edges with the patch removed.

        Raises:
            MissingExtra: networkx is not installed.
        """
        from sagittal.client.documents import node_document  # noqa: PLC0415 - a circular import

        found = import_extra("networkx").DiGraph()
        for node in self.nodes:
            found.add_node(node.id, **node_document(node))
        for edge in self.edges:
            found.add_edge(edge.parent, edge.child, removed_patch=edge.removed_patch)
        return found


#: Maximum number of characters of one name in the text of an explanation, and of the whole text.
_MAX_NAME, _MAX_TEXT = 32, 300


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Explanation:
    """An explanation of a model's prediction, with the measurements of its quality.

    If the job has not ended, it holds the results so far; see `state`.
    """

    job_id: str
    state: str
    model: str = ""
    prediction: Prediction | None = None
    masks: tuple[Mask, ...] = ()
    """The final masks, one for each start; the first is `mask`."""
    curves: tuple[Curve, ...] = ()
    sufficient_sets: tuple[SufficientSet, ...] = ()
    graph: Graph | None = None
    concepts: tuple[ConceptContribution, ...] = ()
    concept_prediction: ConceptPrediction | None = None
    surrogate: Surrogate | None = None
    """What predicts the score of any occlusion; None for a method without a surrogate."""
    stability: Stability | None = None
    """How much the heatmap changes with the seed; None if it was not measured: see `Metrics.stability`."""
    warnings: tuple[Warning, ...] = ()
    completed: Completed | None = None
    """The figures at the end; None if the job has not ended with a result."""
    accepted: Accepted | None = None
    started: Started | None = None
    progress: Progress | None = None
    error: SagittalError | None = None
    """Why the job failed or was cancelled; otherwise None."""
    image: ExplainedImage | None = field(default=None, compare=False)
    """The explained image; None if it is unknown, see `with_image`. Not part of equality."""

    def __repr__(self) -> str:
        return f"Explanation({', '.join(filter(None, _facts(self)))})"[:_MAX_TEXT]

    def _repr_html_(self) -> str:
        from sagittal.client.html import explanation_html  # noqa: PLC0415 - a circular import

        return explanation_html(self)

    def with_image(
        self, image: ImageLike, *, preprocessing: Preprocessing | None = None, baseline: ImageLike | None = None
    ) -> Self:
        """Returns this explanation with its image, so that it can be drawn.

        Args:
            image: The explained image.
            preprocessing: Its conversion to the model's input; by default that of the job's prediction. If both are
                unknown, the image must be square, and is taken as what the model saw.
            baseline: The image that replaced the hidden part, if the baseline was an image.

        Raises:
            InvalidImage: it is no image, or cannot be read.
            InvalidRequest: the part of the image that the model saw is unknown.
        """
        known = self.prediction.preprocessing if self.prediction is not None else None
        return replace(self, image=explained_image(image, preprocessing or known, baseline))

    def saliency_on_image(self, mask: int = 0, *, shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Returns a mask on the original image, of its shape (height, width); NaN outside the part that the model saw.

        Args:
            mask: Index of the final mask.
            shape: Another height and width of the same image, such as a thumbnail's.

        Raises:
            FailedPrecondition: there is no such mask, or no image.
            InvalidRequest: `shape` is no height and width.
        """
        image = self._image()
        whole = image.pixels.shape[:2] if shape is None else _checked_shape(shape)
        return place_mask(self._mask(mask).saliency, image.frame, whole)

    def overlay(self, of: int | PatchSet | NDArray[np.float32] = 0, *, longest: int | None = None) -> PIL.Image.Image:
        """Returns the original image with an overlay; parts that the model did not see are faint.

        Args:
            of: The index of a final mask; a set of patches, outside of which the image is faint; or a heatmap, such as
                a concept's.
            longest: Maximum longer side in pixels; None keeps the image's size.

        Raises:
            FailedPrecondition: there is no such mask, or no image: see `with_image`.
            InvalidRequest: `of` or `longest` has another type.
        """
        image = self._image()
        pixels = image.pixels
        if longest is not None and check_kind(longest, int, "longest", "a number of pixels, or None") < 1:
            raise InvalidRequest(f"got {longest}; expected at least 1 pixel", field="longest")
        frame, small = image.frame, pixels if longest is None else shrink(pixels, longest)
        shape, picture = small.shape[:2], np.asarray(small / 255, np.float32)
        if isinstance(of, PatchSet):
            size = image.preprocessing.input_size if image.preprocessing else pixels.shape[0]
            return to_image(show_only(picture, place_patches(of.patches, of.grid, size, frame, shape)))
        saliency = of if isinstance(of, np.ndarray) else self._mask(of).saliency
        if saliency.ndim != 2:
            raise InvalidRequest(f"got an array of shape {saliency.shape}; expected (height, width)", field="of")
        return to_image(overlay(picture, place_mask(saliency, frame, shape)))

    def view(self) -> View:
        """Returns what the model saw, with the baseline that the job reported (`exact` states whether it is the same).

        Raises:
            FailedPrecondition: there is no image, or no prediction yet.
        """
        image = self._image()
        if self.prediction is None:
            raise FailedPrecondition("there is no prediction yet", field="prediction", job_id=self.job_id)
        return image.view(self.prediction.baseline, self.prediction.blur_sigma)

    def plot(self) -> Any:
        """Returns a `matplotlib.figure.Figure` of everything: image, masks, sets, concepts, curves and warnings.

        Raises:
            FailedPrecondition: there is no image: see `with_image`.
            MissingExtra: matplotlib is not installed.
        """
        import_extra("matplotlib")
        from sagittal.client.drawing.summary import draw_summary  # noqa: PLC0415 - matplotlib is slow to load

        return draw_summary(self, self.view())

    def plot_graph(self) -> Any:
        """Returns a `matplotlib.figure.Figure` of the attention graph.

        Raises:
            FailedPrecondition: there is no graph, or no image.
            MissingExtra: matplotlib is not installed.
        """
        if self.graph is None:
            raise FailedPrecondition("this explanation has no graph", field="graph", job_id=self.job_id)
        import_extra("matplotlib")
        from sagittal.client.drawing.graph import draw_graph  # noqa: PLC0415 - matplotlib is slow to load

        target = self.target
        title = f"Why {target.label or f'class {target.index}'}?" if target else "Why?"
        return draw_graph(self.graph, self.view(), title)

    def show(self) -> None:
        """Shows the explanation: as HTML in a notebook, otherwise as an overlay in the system's image viewer."""
        if "IPython" in sys.modules and import_extra("IPython").get_ipython() is not None:
            import_extra("IPython.display").display(self)
        else:
            self.overlay().show(title=repr(self))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the explanation with its image to a file, which `Explanation.load` reads without a service.

        Raises:
            InvalidRequest: the file cannot be written.
        """
        from sagittal.client.storage import save_explanation  # noqa: PLC0415 - a circular import

        return save_explanation(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Explanation":
        """Returns an explanation that `save` wrote, equal to the original.

        Raises:
            InvalidRequest: the file cannot be read, or has other content.
        """
        from sagittal.client.storage import load_explanation  # noqa: PLC0415 - a circular import

        return load_explanation(path)

    def report(self) -> str:
        """Returns a report: one HTML document with everything, which needs no network and prints well."""
        from sagittal.client.report import digest_of, report_html  # noqa: PLC0415 - a circular import

        if self.image is None:
            return report_html(self)
        seen = None if self.prediction is None else self.view()
        return report_html(self, seen, image_digest=digest_of(self.image.source))

    def to_dict(self) -> dict[str, Any]:
        """Returns the content as plain values for JSON, without masks, the points of curves and the image."""
        from sagittal.client.documents import explanation_document  # noqa: PLC0415 - a circular import

        return explanation_document(self)

    def _image(self) -> ExplainedImage:
        if self.image is None:
            text = "the image is unknown: give it by with_image(...), or explain with a client that sends it"
            raise FailedPrecondition(text, field="image", job_id=self.job_id)
        return self.image

    def _mask(self, number: int) -> Mask:
        check_kind(number, int, "mask", "the index of a final mask, a PatchSet or a heatmap")
        if not 0 <= number < len(self.masks):
            text = f"there is no final mask {number}: the explanation has {len(self.masks)}"
            raise FailedPrecondition(text, field="mask", job_id=self.job_id)
        return self.masks[number]

    @property
    def mask(self) -> NDArray[np.float32] | None:
        """The saliency of shape (size, size), 0 to 1, 1 = most salient; None for a method without a heatmap."""
        return self.masks[0].saliency if self.masks else None

    @property
    def target(self) -> ClassScore | None:
        """The explained class, with its probability on the unmasked image."""
        return self.prediction.target if self.prediction else None

    @property
    def score(self) -> float | None:
        """The unmasked score: the target's probability on the image."""
        return self.prediction.target.score if self.prediction else None

    @property
    def baseline_score(self) -> float | None:
        """The target's probability on the baseline, which should be near 0; None if nothing was hidden."""
        return self.prediction.baseline_score if self.prediction and self.prediction.baseline else None

    @property
    def insertion(self) -> float | None:
        """Area under the insertion curve, 0 to 1: high is good."""
        return self.completed.insertion if self.completed else None

    @property
    def deletion(self) -> float | None:
        """Area under the deletion curve, 0 to 1: low is good, but only together with a high insertion."""
        return self.completed.deletion if self.completed else None

    @property
    def relative_insertion(self) -> float | None:
        """Insertion over the unmasked score, comparable between images. Above 1 if a part alone scores higher."""
        return _relative(self.insertion, self.score)

    @property
    def relative_deletion(self) -> float | None:
        """Deletion over the unmasked score."""
        return _relative(self.deletion, self.score)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.completed.method if self.completed else ""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The method's parameters with defaults filled in."""
        text = self.completed.parameters_json if self.completed else ""
        return MappingProxyType(json.loads(text) if text else {})

    @property
    def model_version(self) -> str:
        """Version of the model."""
        return self.completed.model_version if self.completed else ""

    @property
    def model_digest(self) -> str:
        """Digest of the model's weights and preprocessing."""
        return self.completed.model_digest if self.completed else ""

    @property
    def seed(self) -> int | None:
        """Seed of the job."""
        return self.completed.seed if self.completed else None

    @property
    def evaluations(self) -> int:
        """Model evaluations so far, including those with gradient and those for the metrics."""
        if self.completed:
            return self.completed.evaluations
        return self.progress.evaluations if self.progress else 0

    @property
    def gradient_evaluations(self) -> int:
        """Model evaluations with gradient."""
        return self.completed.gradient_evaluations if self.completed else 0

    @property
    def seconds(self) -> float | None:
        """Time on the worker, from start to end, in seconds."""
        return self.completed.run_seconds if self.completed else None


def _relative(area: float | None, unmasked: float | None) -> float | None:
    return area / unmasked if area is not None and unmasked else None


def _checked_shape(shape: object) -> tuple[int, int]:
    match shape:
        case (int(height), int(width)) if height > 0 and width > 0:
            return height, width
    raise InvalidRequest(f"got {shown(shape)}; expected (height, width) in pixels", field="shape")


def _facts(explanation: Explanation) -> Iterable[str]:
    """Yields the most important results, each in a few words."""
    target, method = explanation.target, explanation.method[:_MAX_NAME]
    if target is not None:
        yield f"{(target.label or f'class {target.index}')[:_MAX_NAME]!r} {target.score:.1%}"
    version = explanation.model_version[:_MAX_NAME]
    model = f"{explanation.model[:_MAX_NAME]}@{version}".rstrip("@") if explanation.model else ""
    yield " on ".join(filter(None, (method, model)))
    if explanation.insertion is not None:
        yield f"insertion {explanation.insertion:.3f}"
    if explanation.deletion is not None:
        yield f"deletion {explanation.deletion:.3f}"
    counts = (("mask", explanation.masks), ("set", explanation.sufficient_sets), ("concept", explanation.concepts))
    for name, found in counts:
        if found:
            yield f"{len(found)} {name}{'s' if len(found) > 1 else ''}"
    if explanation.graph is not None:
        yield f"graph of {len(explanation.graph.nodes)}"
    if explanation.warnings:
        yield f"{len(explanation.warnings)} warning{'s' if len(explanation.warnings) > 1 else ''}"
    yield explanation.state
    yield explanation.job_id[:_MAX_NAME] and f"job {explanation.job_id[:_MAX_NAME]}"
