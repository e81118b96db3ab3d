"""Coverage-guided fuzzing of a target by atheris, in a process of its own: `python -m fuzzing.covered TARGET ...`.

Arguments after the target's name are libFuzzer's.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris


def main() -> None:
    """Fuzzes until libFuzzer's `-max_total_time`, or until the target fails."""
    name, corpus, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["sagittal", "PIL", "tomllib"], exclude=["sagittal.v1"]):
        target = importlib.import_module(f"fuzzing.{name}")
    for index, seed in enumerate(target.seeds()):
        Path(corpus, f"seed-{index:03}").write_bytes(seed)
    keywords: dict[str, Any] = {}
    if hasattr(target, "mutate"):
        keywords["custom_mutator"] = _mutator(target.mutate)
    atheris.Setup([sys.argv[0], f"-max_len={target.MAX_LENGTH}", *options, corpus], target.run, **keywords)
    atheris.Fuzz()


def _mutator(mutate: Callable[..., bytes]) -> Callable[[bytes, int, int], bytes]:
    def changed(data: bytes, max_size: int, seed: int) -> bytes:
        return mutate(data, max_size, seed, atheris.Mutate)

    return changed


if __name__ == "__main__":
    main()
