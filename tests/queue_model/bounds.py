"""The bounds within which every interleaving is checked: at most two jobs, two workers, and two attempts."""

from collections.abc import Mapping

from queue_model.clients import Bounds

#: Enough for every fault of `mutations.py` to show.
SMALL: Mapping[str, Bounds] = {
    "one job and two workers": Bounds((("t:k", None),), budget=(("tick", 2),)),
    "one job that is cancelled and released": Bounds(
        (("t:k", None),), workers="a", budget=(("cancel", 1), ("release", 1), ("tick", 1))
    ),
    "a lost answer": Bounds((("t:k", None),), workers="a", budget=(("again", 1), ("release", 1), ("append", 1))),
    "a job with a deadline": Bounds((("t:k", 10),), workers="a", budget=(("tick", 4),)),
    "a job that kills its workers": Bounds((("t:k", None),), workers="a", budget=(("tick", 5), ("die", 2))),
    "two equal jobs and a cancellation": Bounds(
        (("t:k", None), ("t:k", 10)), workers="a", budget=(("cancel", 1), ("tick", 1))
    ),
    "two equal jobs with deadlines": Bounds((("t:k", 10), ("t:k", 30)), workers="a", budget=(("tick", 2),)),
    "a job that fails or is deleted, and an equal one": Bounds(
        (("t:k", None), ("t:k", None)), workers="a", budget=(("settle failed", 1), ("delete", 1))
    ),
    "a lost answer and two workers": Bounds((("t:k", None),), budget=(("again", 1), ("tick", 2))),
}

#: What `make model-check` explores.
DEEP: Mapping[str, Bounds] = SMALL | {
    "two equal jobs, a cancellation and a crash": Bounds(
        (("t:k", None), ("t:k", 30)), budget=(("cancel", 1), ("tick", 2), ("die", 1))
    ),
    "jobs of two tenants and a release": Bounds((("t:k", None), ("u:k", 20)), budget=(("release", 1), ("tick", 2))),
    "a lost answer, a cancellation and a crash": Bounds(
        (("t:k", None),), budget=(("again", 1), ("die", 1), ("cancel", 1), ("tick", 2))
    ),
    "crashes and a retry": Bounds((("t:k", None),), budget=(("die", 2), ("tick", 4), ("retry", 1))),
    "two equal jobs and the cache": Bounds(
        (("t:k", None), ("t:k", None)), workers="a", budget=(("tick", 5), ("delete", 1), ("settle failed", 1))
    ),
}
