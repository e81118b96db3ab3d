"""The search for small sufficient sets: proposals learnt from what was scored, swaps in a beam, then elimination.

Refinement starts from a sufficient region and scores sets smaller than the best one. A surrogate that is fitted to all
scores known so far proposes some from nothing; the others are the sets that fall short by least, a beam of them, with
patches swapped as the surrogate advises. The longer nothing is found, the bolder the guesses. Elimination drops the
patches that matter least, as many at a time as stay sufficient. Neither proves anything: see `certificates`.

A beam that grows from single patches, as published, gropes in the dark at first: below some size all scores are near
zero and say little. Measured on photographs, it needs several times the evaluations for sets of the same size.
"""

from collections.abc import Iterator
from heapq import nlargest
from itertools import count
from math import ceil

from sagittal.explain.patches import bits_of, members, removals
from sagittal.explain.scoring import Memo
from sagittal.explain.seam import Progress, Steps
from sagittal.explain.surrogate import best_patches, guesses, swapped

DROP_SHARES = (0.75, 0.6, 0.45, 0.3, 0.2, 0.1)
"""Shares of a region that are dropped at once, least harmful patches first."""

FIRST_NOISE = 0.5
"""Boldness of the first proposals, in log-odds of one observation."""

BOLDER = 1.15
"""Factor of the boldness from round to round while nothing is found."""

LAST_NOISE = 8.0
"""Boldness at which proposals are no better than chance, and refinement ends."""

SMALLEST_SHARE = 0.6
"""Proposals have from this share of the best set's patches to one patch less."""

FRESH_SHARE = 0.25
"""Share of the proposals that are made from nothing; the others are swaps in sets that fall short."""

BEAM_SHARE = 0.25
"""Sets of the beam for each proposal of a round."""

SHORT_SHARE = 0.8
"""Sets of the beam have at least this share of the best set's patches."""

SWAPS = (1, 2)
"""Patches that are swapped, in turn."""

SMALL = 14
"""Sets of up to this many patches are worth the single removals that eliminate what they can spare."""

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


def refine(memo: Memo, region: int, *, width: int, bound: float) -> Steps:
    """Returns a small sufficient set within a sufficient region, of which no single patch can go.

    Args:
        memo: Scores known so far; more are added.
        region: Patches that may be used.
        width: Proposals scored together in a round.
        bound: Evaluations after which no round begins.
    """
    best, noise, end = region, FIRST_NOISE, memo.evaluations + bound
    for turn in count():
        if memo.evaluations >= end or best.bit_count() < 2 or noise > LAST_NOISE:
            break
        proposals = memo.unseen(_proposals(memo, region, best, width, noise, turn))
        yield from memo.evaluate(proposals)
        yield progress(memo, "refine")
        noise *= BOLDER
        sufficient = [bits for bits in proposals if memo.sufficient(bits)]
        if sufficient:
            best, noise = min(sufficient, key=lambda bits: (bits.bit_count(), -memo.merit(bits))), FIRST_NOISE
            if best.bit_count() <= SMALL:
                best = yield from eliminate(memo, best)
    return (yield from eliminate(memo, best))


def _proposals(memo: Memo, region: int, best: int, width: int, noise: float, turn: int) -> Iterator[int]:
    """Yields sets within a region that are smaller than the best one: some from nothing, then swaps in the beam."""
    beam = _beam(memo, region, best, max(1, round(width * BEAM_SHARE)))
    fresh = max(1, round(width * FRESH_SHARE)) if beam else width
    sizes = _sizes(best.bit_count(), fresh)
    generator = memo.problem.generator("propose", region, turn)
    drawn = guesses(memo.scores, memo.grid, sum(sizes) / fresh, width, noise, generator)
    for guess, size in zip(drawn, sizes, strict=False):
        yield best_patches(guess, region, size)
    for place, guess in enumerate(drawn[fresh:]):
        swaps, member = divmod(place, len(beam))
        yield swapped(guess, region, beam[member], SWAPS[swaps % len(SWAPS)])


def _beam(memo: Memo, region: int, best: int, count: int) -> list[int]:
    """Returns the sets within a region, a little smaller than the best one, that fall short of sufficient by least."""
    sizes = range(ceil(SHORT_SHARE * best.bit_count()), best.bit_count())
    inside = (bits for bits in memo.scores if not bits & ~region and bits.bit_count() in sizes)
    return nlargest(count, (bits for bits in inside if not memo.sufficient(bits)), key=memo.merit)


def _sizes(best: int, count: int) -> list[int]:
    """Returns sizes from a share of the best one to one patch less."""
    steps = (SMALLEST_SHARE + (1 - SMALLEST_SHARE) * place / max(1, count - 1) for place in range(count))
    return [max(1, min(best - 1, round(best * step))) for step in steps]
