"""The model-randomisation check: a heatmap that stays when the weights go explains nothing.

Adebayo et al.: Sanity Checks for Saliency Maps (NeurIPS 2018). The weights are replaced layer by layer from the
output down, each state keeping what was replaced before (cascading), and the heatmap of each state is compared with
that of the trained model by rank correlation. Weights are drawn from a normal distribution with the mean and standard
deviation of those they replace: the scale of activations stays, and what was learnt goes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sagittal.explain.measures.statistics import spearman
from sagittal.explain.problem import derive_seed

UNCHANGED = 0.5
"""A rank correlation with the trained model's heatmap above this, with all weights replaced, fails the check."""


@dataclass(frozen=True, slots=True)
class Randomised:
    """The heatmap's fate when a layer and all after it have lost their weights."""

    layer: str
    correlation: float
    """Spearman's rank correlation with the trained model's heatmap; 0 where one of the two is constant."""


def randomisation_check(
    load: Callable[[], nn.Module],
    heatmap: Callable[[nn.Module], Tensor],
    *,
    layers: int | None = None,
    seed: int = 0,
) -> Iterator[Randomised]:
    """Yields, from the output down, how far the heatmap still agrees with the trained model's.

    Args: load: Returns the trained model, in evaluation mode; called once, and what it returns is changed. heatmap:
        Returns the heatmap (height, width) of one image, for one class, of the model it is given. The class must be
        the trained model's: a random model's own top class is another question.
        layers: Number of states to look at, evenly spread, the last with all weights replaced; None for every layer.
        seed: Of the weights.
    """
    module = load()
    trained = heatmap(module).detach().cpu().numpy()
    names = weighted_layers(module)
    shown = _spread(len(names), layers)
    for index, name in enumerate(names):
        randomise(module.get_submodule(name), derive_seed(seed, name))
        if index in shown:
            yield Randomised(name, spearman(trained, heatmap(module).detach().cpu().numpy()))


def weighted_layers(module: nn.Module) -> tuple[str, ...]:
    """Returns the names of modules with weights of their own, last first in order of definition."""
    names = [name for name, layer in module.named_modules() if any(True for _ in layer.parameters(recurse=False))]
    return tuple(reversed(names))


@torch.no_grad()
def randomise(layer: nn.Module, seed: int) -> None:
    """Replaces a layer's own weights by random ones of the same mean and standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    for weight in layer.parameters(recurse=False):
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        weight.copy_(weight.mean() + weight.std(correction=0) * noise)


def _spread(count: int, wanted: int | None) -> frozenset[int]:
    if wanted is None or wanted >= count:
        return frozenset(range(count))
    if wanted < 1:
        raise ValueError(f"layers is {wanted}; give at least 1")
    return frozenset(count - 1 - (count * step) // wanted for step in range(wanted))
