"""Explains an image of any PyTorch classifier in this process, without service, queue or registration."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import torch
from torch import Tensor, nn

from sagittal.client.events import Event
from sagittal.client.explanation import Explanation
from sagittal.client.gathering import Gathering
from sagittal.client.parsing import parse_event
from sagittal.engine import Budget, Engine, Output, Task, TorchEvaluator, Usage
from sagittal.engine.alterations import PixelScale
from sagittal.explain import events
from sagittal.explain.baselines import Baseline, Blur
from sagittal.explain.explainer import Explainer
from sagittal.explain.explanation import explanation_steps, measurements
from sagittal.explain.masks.igos import IGOSPlusPlus
from sagittal.explain.measures.curves import Metrics
from sagittal.explain.messages import EventMessages, Summary
from sagittal.explain.methods import EXPLAINERS
from sagittal.explain.parameters import InvalidParameter
from sagittal.explain.problem import Question
from sagittal.v1 import explanation_pb2 as pb

OnEvent = Callable[[Event], None]


def explain(
    model: nn.Module,
    image: Tensor,
    method: Explainer | None = None,
    *,
    target: int | str | None = None,
    labels: Sequence[str] = (),
    output: Output | str = Output.LOGITS,
    baseline: Baseline = Blur(),
    black: Tensor | None = None,
    pixels: PixelScale | None = None,
    metrics: Metrics = Metrics(),
    seed: int = 0,
    max_evaluations: int | None = None,
    seconds: float | None = None,
    batch_size: int = 16,
    progress: bool = False,
    on_event: OnEvent | None = None,
) -> Explanation:
    """Returns the explanation of a model's prediction on an image, of the same type as the service's client returns.

    The model runs in evaluation mode. Its modes and gradient flags are restored afterwards.

    Args:
        model: Maps float32 (n, 3, height, width) to (n, classes). It runs on the device of its parameters.
        image: The model's input, resized and normalised: float32 of shape (3, height, width), or a batch of one.
        method: The method with its parameters; `IGOSPlusPlus()` by default.
        target: The class to explain, as an index or as a label in `labels`; by default the model's top class.
        labels: Class names by index.
        output: Type of the model's output: "logits", "probabilities", "multi-label-logits" or
            "multi-label-probabilities".
        baseline: Replaces the hidden part of the image.
        black: Normalised value of black, of shape (3, 1, 1), for the baseline `Black`; by default that of `pixels`, or
            zero.
        pixels: Values of black and white pixels in the model's input. If they are given, masked images have 8-bit
            pixels, and certificates can be tested with `Metrics(robustness=RobustnessTest())`.
        metrics: Measurements of each final heatmap and each sufficient set.
        seed: Seed of all random choices.
        max_evaluations: Maximum number of model evaluations in the search, at least 1; measurements do not count.
        seconds: Maximum time for the search and the curves, in seconds.
        batch_size: Number of masked images per forward pass.
        progress: Whether to show a progress bar (requires `tqdm`).
        on_event: Called with each event of `sagittal.client` when it occurs.

    Raises:
        InvalidParameter: the image, the target or the output is invalid; the message states the expected form.
        Unsupported: the method is not defined for this model.
        EvaluationFailed: the model raised an exception, or returned no scores.
        OutOfBudget: the budget ended before there was a first result.
        ImportError: `progress` is set and `tqdm` is not installed.
    """
    device = next((each.device for each in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    method = IGOSPlusPlus() if method is None else method
    shown, index = _checked_image(image).to(device), _index_of(target, labels)
    if black is None and pixels is not None:
        black = torch.tensor(pixels.black, device=device).view(3, 1, 1)
    question = Question(image=shown, target=index, baseline=baseline, black=black, pixels=pixels, seed=seed)
    budget = Budget(
        evaluations=max_evaluations,
        deadline=None if seconds is None else time.monotonic() + seconds,
        measurements=measurements(metrics, question.image.shape[-1]),
    )
    evaluator = TorchEvaluator(module=model, device=device, output=_output(output))
    with _as_evaluated(model), _bar(progress) as show:
        run = _Run(labels, (show, on_event))
        steps = explanation_steps(question, method, metrics)
        task = Task(steps=steps, on_event=run.note, on_end=run.end, budget=budget)
        run.usage = task.usage
        Engine(evaluator, batch_size=batch_size).run(task)
    return run.explanation(method, seed)


class _Run:
    """Collects the events of one explanation as client events."""

    def __init__(self, labels: Sequence[str], listeners: Sequence[OnEvent | None]) -> None:
        self.usage = Usage()
        self._messages = EventMessages(labels, digest="")
        self._gathering = Gathering()
        self._listeners = [each for each in listeners if each is not None]
        self._summary = Summary()
        self._error: BaseException | None = None
        self._began = time.monotonic()
        self._sequence = 0

    def note(self, event: events.Event) -> None:
        """Adds an event of the explainer."""
        self._summary.note(event)
        message = self._messages.message(event, self.usage.evaluations)
        if message is not None:
            self._add(message)

    def end(self, error: BaseException | None) -> None:
        """Records the outcome of the task."""
        self._error = error

    def explanation(self, method: Explainer, seed: int) -> Explanation:
        """Returns the explanation. Raises the error that ended the task, if any."""
        if self._error is not None:
            raise self._error
        completed = self._summary.message(
            self.usage,
            {field.name: getattr(method, field.name) for field in dataclasses.fields(method)},
            method=next((row.name for row in EXPLAINERS.values() if row.explainer is type(method)), ""),
            seed=seed,
        )
        completed.run_time.FromNanoseconds(int((time.monotonic() - self._began) * 1e9))
        self._add(pb.ExplanationEvent(completed=completed))
        return self._gathering.explanation()

    def _add(self, message: pb.ExplanationEvent) -> None:
        self._sequence += 1
        message.sequence = self._sequence
        message.time.GetCurrentTime()
        event = parse_event(message)
        self._gathering.add(event)
        for listener in self._listeners:
            listener(event)


def _checked_image(image: Tensor) -> Tensor:
    found = image[0] if image.ndim == 4 and len(image) == 1 else image
    if found.ndim != 3 or found.shape[0] != 3 or not found.is_floating_point():
        raise InvalidParameter(
            "image",
            f"is {image.dtype} of shape {tuple(image.shape)}; give floating-point numbers of shape (3, height, width), "
            "resized and normalised for the model",
        )
    if not bool(found.isfinite().all()):
        raise InvalidParameter("image", "has values that are not finite; give finite numbers")
    return found.detach().float()


def _index_of(target: int | str | None, labels: Sequence[str]) -> int | None:
    if not isinstance(target, str):
        return target
    if target not in labels:
        raise InvalidParameter(
            "target", f"is {target!r}, which is not in labels ({len(labels)} given); give one of them, or an index"
        )
    return list(labels).index(target)


def _output(output: Output | str) -> Output:
    try:
        return Output(output)
    except ValueError as error:
        known = ", ".join(each.value for each in Output)
        raise InvalidParameter("output", f"is {output!r}; give one of {known}") from error


@contextmanager
def _as_evaluated(model: nn.Module) -> Iterator[None]:
    """Sets a model to evaluation mode with frozen parameters, and restores it on exit."""
    training = [module for module in model.modules() if module.training]
    trained = [each for each in model.parameters() if each.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for each in trained:
            each.requires_grad_(True)


@contextmanager
def _bar(wanted: bool) -> Iterator[OnEvent | None]:
    """Yields a listener that updates a progress bar, or None without a progress bar."""
    if not wanted:
        yield None
        return
    try:
        tqdm = import_module("tqdm.auto").tqdm
    except ImportError as error:
        raise ImportError("progress=True requires tqdm; install it with: pip install tqdm") from error
    with tqdm(total=100, unit="%", bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}") as bar:

        def show(event: Event) -> None:
            fraction = getattr(event, "fraction", None)
            if fraction is not None:
                bar.set_description_str(f"{getattr(event, 'phase', '')}: ", refresh=False)
                bar.update(max(0.0, 100 * fraction - bar.n))

        yield show
