"""State that another attempt goes on from: tensors by name, those of a part under its prefix."""

from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]


def prefixed(part: str, state: State) -> dict[str, Tensor]:
    """Returns a part's state under names that begin with the part's."""
    return {f"{part}.{name}": tensor for name, tensor in state.items()}


def within(state: State, part: str) -> dict[str, Tensor]:
    """Returns the state of a part, under its own names; empty where there is none."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
