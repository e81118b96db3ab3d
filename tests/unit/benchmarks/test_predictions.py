"""The report on predictability says what the records hold, and judges the goals by it."""

import re
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from quality import cache
from quality.prediction_measures import EACH, KINDS, METHODS, place
from quality.predictions import OURS, RISE, SCORES, Records, report

COUNT = EACH * len(KINDS)
FIRST, SECOND = ("one", "two"), ("three", "four", "five")


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Iterator[tuple[Records, Records]]:
    """Records in which the surrogate is always right, and everything else is always wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "ROOT", tmp_path_factory.mktemp("records"))
        folders = {name: place(name, "digest") for name in (SCORES, *METHODS)}
        for number, image in enumerate((*FIRST, *SECOND)):
            scores = np.random.default_rng(number).random(COUNT)
            wrong = dict.fromkeys(("SaliencyMask", "SufficientSet", "GraphNode", "area", "Surrogate"), -scores)
            found = {name: {"evaluations": 500} | wrong for name in METHODS}
            found[OURS]["Surrogate"] = scores
            found[SCORES] = {"blur": scores, "black": scores}
            for name, folder in folders.items():
                if (name, image) != (RISE, "five"):
                    cache.recorded(folder, image, partial(found.get, name))
        yield Records(FIRST, "digest"), Records(SECOND, "digest")


def test_goals_are_judged_by_the_figures_of_the_second_half(records) -> None:
    text = report(*records)
    assert (
        "| an explanation is read with AUROC at least 0.98 | 1.000 [1.000, 1.000] | 3 (of 40 required) | yes |" in text
    )
    assert re.search(r"and balanced accuracy at least 0.92 \| (0\.9[2-9]|1\.0).* \| yes \|", text)
    assert "| it is read better than: iGOS++ | +1.000 [+1.000, +1.000] | 3 (of 40 required) | yes |" in text
    better = "| the graph with its surrogate is read better than: iGOS++ | +0.000 [+0.000, +0.000] |"
    assert f"{better} 3 (of 40 required) | **no** |" in text
    assert "the best common one on 2 images of the first half" in text


def test_methods_are_compared_on_the_images_that_both_explained(records) -> None:
    text = report(*records)
    assert f"| {RISE} | 2 | 500 | 0.000 [0.000, 0.000] |" in text
    assert f"| it is read better than: {RISE} | +1.000 [+1.000, +1.000] | 2 (of 40 required) | yes |" in text
