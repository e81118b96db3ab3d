"""The model-randomisation check: a heatmap that does not depend on the weights explains nothing.

Adebayo et al.: Sanity Checks for Saliency Maps (NeurIPS 2018). The weights are replaced layer by layer from the output
down; each state keeps the earlier replacements (cascading). The heatmap of each state is compared with that of the
trained model by rank correlation. The random weights have the mean and standard deviation of the weights they replace:
the scale of activations remains, and what was learnt is lost.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from quality.statistics import spearman
from torch import Tensor, nn

from sagittal.explain.problem import derive_seed

UNCHANGED = 0.5
"""The check fails if the rank correlation with all weights replaced is above this."""


@dataclass(frozen=True, slots=True)
class Randomised:
    """Agreement of the heatmap after a layer and all later layers were randomised."""

    layer: str
    correlation: float
    """Spearman's rank correlation with the trained model's heatmap; 0 if one of the two is constant."""


def randomisation_check(
    load: Callable[[], nn.Module],
    heatmap: Callable[[nn.Module], Tensor],
    *,
    layers: int | None = None,
    seed: int = 0,
) -> Iterator[Randomised]:
    """Yields the agreement with the trained model's heatmap for each state, from the output down.

    Args:
        load: Returns the trained model in evaluation mode. It is called once, and its result is modified.
        heatmap: Returns the heatmap (height, width) of one image and class for the given model. The class must be that
            of the trained model: the top class of a random model is another question.
        layers: Number of evenly spread states, the last with all weights replaced; None for every layer.
        seed: Seed of the weights.
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
    """Returns the names of modules with weights of their own, in reverse order of definition."""
    names = [name for name, layer in module.named_modules() if any(True for _ in layer.parameters(recurse=False))]
    return tuple(reversed(names))


@torch.no_grad()
def randomise(layer: nn.Module, seed: int) -> None:
    """Replaces a layer's own weights by random weights of the same mean and standard deviation."""
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
