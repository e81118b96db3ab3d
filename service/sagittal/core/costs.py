"""What a job will cost, learned from jobs that ended: model evaluations and seconds, by model, method and setting.

A *setting* is what of a request decides its cost: the method's plain parameters, the budget and the curves. What a
setting cost before is the estimate of the next job with it. A setting that was never seen is estimated from those of
the same method that were, by a line through their logarithms: costs are mostly products of the numbers asked for
(iterations times points). Ridge regression keeps that line flat where nothing is known.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Model evaluations that a request may ask for, and that an estimate may reach.
MAX_EVALUATIONS = 1_000_000_000

#: Characters of a setting; longer ones, of methods with many parameters, are cut off and so told apart less well.
MAX_SETTING = 512

#: Strength with which slopes are held to 0, against squared differences of logarithms.
RIDGE = 0.05

#: Furthest that an estimate leaves what was observed, as a factor.
FURTHEST = 100.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job takes."""

    evaluations: float
    """Model evaluations, metrics included."""
    seconds: float
    """Time from start to end on a worker that runs other jobs beside it; 0 where not known."""


def setting_of(parameters: Mapping[str, Any], **others: float | str) -> str:
    """Returns the setting of a request as text: equal texts cost the same."""
    plain = {name: value for name, value in parameters.items() if isinstance(value, bool | int | float | str)}
    return json.dumps(plain | others, sort_keys=True, separators=(",", ":"))[:MAX_SETTING]


def estimate(setting: str, observed: Mapping[str, Cost]) -> Cost | None:
    """Returns what a job with this setting will cost, from the settings of its model and method seen before.

    None where nothing was seen.
    """
    if not observed:
        return None
    if setting in observed:
        return observed[setting]
    evaluations = _extrapolate(_numbers(setting), [_numbers(each) for each in observed], list(observed.values()))
    spent = sum(cost.evaluations for cost in observed.values())
    return Cost(evaluations, sum(cost.seconds for cost in observed.values()) * evaluations / max(spent, 1.0))


def _extrapolate(wanted: Mapping[str, float], settings: Sequence[Mapping[str, float]], costs: Sequence[Cost]) -> float:
    """Returns the evaluations on the line through what was observed."""
    names = sorted({name for setting in settings for name in setting} & set(wanted))
    points = np.array([[_log(setting.get(name, wanted[name])) for name in names] for setting in settings])
    values = np.log([max(cost.evaluations, 1.0) for cost in costs])
    middle = points.mean(0)
    slopes = _slopes(points - middle, values - values.mean())
    found = values.mean() + (np.array([_log(wanted[name]) for name in names]) - middle) @ slopes
    reach = math.log(FURTHEST)
    return max(math.exp(float(np.clip(found, values.min() - reach, values.max() + reach))), 1.0)


def _slopes(points: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the slopes of ridge regression, of shape (names,)."""
    normal = points.T @ points + RIDGE * np.eye(points.shape[1])
    return np.asarray(np.linalg.solve(normal, points.T @ values))


def _numbers(setting: str) -> Mapping[str, float]:
    """Returns the finite numbers of a setting by name; none where it was cut off."""
    try:
        values = json.loads(setting)
    except json.JSONDecodeError:
        return {}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _log(number: float) -> float:
    return math.copysign(math.log1p(abs(number)), number)
