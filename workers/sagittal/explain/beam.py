"""Two searches for small sufficient sets: elimination from above and growth from below.

Elimination starts from a sufficient region, where scores are high and differences mean something, and drops the
patches that matter least, as many at a time as stay sufficient: about 150 evaluations on 49 patches. Growth is a beam
search from single patches that finds what elimination misses: each level scores only the successors that a surrogate,
fitted to all scores known so far, ranks highest. Neither proves anything: see `certificates`.
"""

from sagittal.explain.patches import bits_of, members, removals
from sagittal.explain.scoring import Memo
from sagittal.explain.seam import Progress, Steps
from sagittal.explain.surrogate import contributions, log_odds

DROP_SHARES = (0.75, 0.6, 0.45, 0.3, 0.2, 0.1)
"""Shares of a region that are dropped at once, least harmful patches first."""

SUCCESSORS = 6
"""Successors scored at each level of growth for each state of the beam."""

TYPICAL = 400
"""Evaluations of a typical job, for progress."""


def progress(memo: Memo, phase: str) -> Progress:
    """Returns how far a search is whose end nobody knows: half at a typical job's evaluations, never quite 1."""
    return Progress(memo.evaluations / (memo.evaluations + TYPICAL), phase=phase)


def eliminate(memo: Memo, region: int) -> Steps:
    """Returns a sufficient set within a sufficient region, of which no single patch can go."""
    while region:
        yield from memo.evaluate(removals(region))
        smaller = _drops(memo, region)
        yield from memo.evaluate(smaller)
        yield progress(memo, "eliminate")
        sufficient = [bits for bits in (*smaller, *removals(region)) if memo.sufficient(bits)]
        if not sufficient:
            break
        region = min(sufficient, key=lambda bits: (bits.bit_count(), -memo.merit(bits)))
    return region


def _drops(memo: Memo, region: int) -> list[int]:
    """Returns the region less ever fewer of the patches that matter least to it."""
    harmless = sorted(members(region), key=lambda patch: -memo.merit(region & ~(1 << patch)))
    counts = (max(1, int(len(harmless) * share)) for share in DROP_SHARES)
    return [region & ~bits_of(harmless[:count]) for count in counts]


def grow(memo: Memo, region: int, *, width: int, below: int, bound: int) -> Steps:
    """Returns a sufficient set within a region with fewer than `below` patches, or None.

    Args:
        memo: Scores known so far; more are added.
        region: Patches that may be used.
        width: States kept at each level.
        below: Size that the set must stay under.
        bound: Most evaluations.
    """
    end = memo.evaluations + bound
    level = [1 << patch for patch in members(region)]
    for size in range(1, below):
        if memo.evaluations + len(memo.unseen(level)) > end:
            return None
        yield from memo.evaluate(level)
        yield progress(memo, "grow")
        sufficient = [bits for bits in level if memo.sufficient(bits)]
        if sufficient:
            return max(sufficient, key=memo.merit)
        beam = sorted(level, key=memo.merit, reverse=True)[:width]
        level = _successors(memo, beam, region, SUCCESSORS * width) if size + 1 < below else []
    return None


def _successors(memo: Memo, beam: list[int], region: int, count: int) -> list[int]:
    """Returns the most promising sets with one patch more than a state of the beam, each once.

    States take turns, so that one high score does not fill the level with its own successors.
    """
    gains = contributions(memo.scores, memo.grid**2)
    turns: dict[int, tuple[int, float]] = {}
    for state in beam:
        ranked = sorted(members(region & ~state), key=lambda patch: -gains[patch])
        for turn, patch in enumerate(ranked):
            guess = log_odds(memo[state].score) + gains[patch]
            place = (turn, -guess)
            turns[state | 1 << patch] = min(place, turns.get(state | 1 << patch, place))
    return sorted(turns, key=turns.__getitem__)[:count]
