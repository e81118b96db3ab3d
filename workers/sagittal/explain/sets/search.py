"""The search for small sufficient sets: proposals learnt from earlier scores, exchanges in a beam, then elimination.

Refinement starts from a sufficient region and scores sets smaller than the best one. A surrogate that is fitted to all
known scores proposes them. Some proposals are made from nothing, some drop patches of the best set, and some exchange
patches of the sets in a beam: the sets that fall short by least. While no smaller set is found, proposals become more
random. Once few patches are left, a first attempt scores all sets of the most promising patches instead. Elimination
drops the patches that matter least, as many at a time as the set stays sufficient. Neither proves anything: see
`certificates`.

The published beam grows from single patches and starts without guidance: below some size all scores are near zero and
carry little information. Measured on photographs, it takes several times the evaluations for sets of the same size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest
from itertools import count, product
from math import ceil, comb
from statistics import fmean

import torch
from torch import Tensor

from sagittal.explain.events import Progress
from sagittal.explain.sets.patches import masks_of, members, removals, subsets
from sagittal.explain.sets.scoring import Memo, Scored, log_odds
from sagittal.explain.steps import Steps
from sagittal.imaging.patch_sets import bits_of

RIDGE = 1.0
"""Weight of the squared coefficients, in units of one observation."""

REACH = 8.0
"""Difference in patches from the size of interest at which a set's weight is 1/e ..."""

LEAST_WEIGHT = 0.02
"""... and the lowest weight of any set."""


def guesses(
    scores: Mapping[int, Scored], grid: int, size: float, count: int, noise: float, generator: torch.Generator
) -> Tensor:
    """Returns draws of the effect of each patch in log-odds, of shape (count, patches).

    It is a ridge regression of the log-odds on the shown patches, in which sets near the size of interest weigh most.
    Estimates are drawn from the posterior (Thompson sampling): patches with few observations get explored, and the more
    certain the regression is, the less random the proposals are. An estimate proposes a set of its best patches, or
    exchanges the worst patches of a known set for better ones. The regression is linear and the model is not: exchanges
    find the patches that act together.

    Args:
        scores: Known scores.
        grid: Side of the grid.
        size: Number of patches of the sets of interest.
        count: Number of draws.
        noise: Standard deviation of an observation in log-odds; larger values give more random draws.
        generator: Random number generator of the draws.
    """
    shown = masks_of(list(scores), grid, torch.device("cpu")).flatten(1).to(torch.float64)
    odds = torch.tensor([log_odds(scored.score) for scored in scores.values()], dtype=torch.float64)
    weights = torch.exp(-(((shown.sum(1) - size) / REACH) ** 2)) + LEAST_WEIGHT
    centre = weights / weights.sum()
    features, values = shown - centre @ shown, odds - centre @ odds
    weighted = weights.unsqueeze(1) * features
    factor = torch.linalg.cholesky(weighted.T @ features + RIDGE * torch.eye(grid**2, dtype=torch.float64))
    mean = torch.cholesky_solve((weighted.T @ values).unsqueeze(1), factor)
    normal = torch.randn(grid**2, count, generator=generator).to(torch.float64)
    draws: Tensor = mean + noise * torch.linalg.solve_triangular(factor.T, normal, upper=True)
    return draws.T


def best_patches(guess: Tensor, region: int, count: int) -> int:
    """Returns the set of the `count` best patches of a region by an estimate."""
    patches = torch.tensor(members(region), dtype=torch.long)
    return bits_of(patches[guess[patches].topk(count).indices].tolist())


def exchanged(guess: Tensor, region: int, bits: int, *, out: int, into: int) -> int:
    """Returns a set of a region without its worst patches by an estimate, and with the best others instead."""
    outside = region & ~bits
    kept = bits & ~best_patches(-guess, bits, min(out, bits.bit_count()))
    return kept | best_patches(guess, outside, min(into, outside.bit_count()))


DROP_SHARES = (0.75, 0.6, 0.45, 0.3, 0.2, 0.1)
"""Shares of a region that elimination drops at once, least important patches first."""

FIRST_NOISE = 0.5
"""Noise of the first proposals, in log-odds of one observation."""

BOLDER = 1.15
"""Growth factor of the noise per round without success."""

LAST_NOISE = 8.0
"""Maximum noise: at this value proposals are no better than chance."""

PATIENCE, LEAST_PATIENCE = 25, 125
"""Evaluations without success after which refinement ends: per patch of the best set, and the minimum."""

OPENING = 4
"""First rounds, whose proposals are all made from nothing, in widely different sizes: few scores are known yet."""

OPENING_SHARE = 0.2
"""Smallest proposals of those rounds, as a share of the best set's patches; the largest have one patch less."""

FRESH_SHARE = 0.85
"""Share of the best set's patches in the one proposal of each later round that is made from nothing."""

DROPPED = (0.1, 0.05, 0.0, 0.0, 0.0)
"""Shares of a large best set that are dropped from it, at least one patch. A small set can spare none."""

BEAM = 6
"""Number of sets in the beam."""

SHORT_SHARE = 0.8
"""Minimum size of sets in the beam, as a share of the best set's patches."""

SWAPS = (2, 1, 3)
"""Patches exchanged into a set of the beam, alternating; a set that may grow loses one patch less than it gains."""

SMALL = 14
"""Maximum number of patches up to which elimination scores all single removals of a set."""

FEW = 4
"""Maximum number of patches of a best set for which all sets of promising patches with one patch less are scored."""

FEW_BOUND = 120
"""Maximum number of these sets; it limits the number of promising patches."""

TYPICAL = 600
"""Evaluations of a typical job, for progress."""


def progress(memo: Memo, phase: str) -> Progress:
    """Returns the progress of a search of unknown length: half at a typical job's evaluations, never quite 1."""
    return Progress(memo.evaluations / (memo.evaluations + TYPICAL), phase=phase)


def eliminate(memo: Memo, region: int) -> Steps[int]:
    """Returns a sufficient set within a sufficient region from which no single patch can be removed."""
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
    """Returns the region without decreasing numbers of its least important patches."""
    harmless = sorted(members(region), key=lambda patch: -memo.merit(region & ~(1 << patch)))
    counts = (max(1, int(len(harmless) * share)) for share in DROP_SHARES)
    return [region & ~bits_of(harmless[:count]) for count in counts]


def refine(memo: Memo, region: int, *, width: int, bound: float, best: int = 0, attempt: int = 0) -> Steps[int]:
    """Returns a small sufficient set within a sufficient region from which no single patch can be removed.

    Args:
        memo: Known scores; new scores are added.
        region: Patches that may be used.
        width: Proposals scored together in a round.
        bound: Number of evaluations after which no round starts.
        best: The smallest known sufficient set within the region; by default the region itself.
        attempt: Number of this attempt at the region: each attempt draws other proposals.
    """
    best, noise = best or region, FIRST_NOISE
    end, found_at = memo.evaluations + bound, memo.evaluations
    for turn in count():
        patience = max(LEAST_PATIENCE, PATIENCE * best.bit_count())
        if memo.evaluations >= min(end, found_at + patience) or best.bit_count() < 2:
            break
        if best.bit_count() <= FEW and not attempt:
            smaller = yield from _smaller_among_promising(memo, region, best, width, end)
            if not smaller:
                break
            best = smaller
            continue
        generator = memo.problem.generator("propose", region, turn, attempt)
        opening = turn < OPENING and not attempt
        proposer = _Proposer(width=width, noise=noise, opening=opening, generator=generator)
        proposals = memo.unseen(proposer.proposals(memo, region, best))
        if not proposals and noise == LAST_NOISE:
            break
        yield from memo.evaluate(proposals)
        yield progress(memo, "refine")
        noise = min(noise * BOLDER, LAST_NOISE)
        sufficient = [bits for bits in proposals if memo.sufficient(bits)]
        if sufficient:
            best, noise = min(sufficient, key=lambda bits: (bits.bit_count(), -memo.merit(bits))), FIRST_NOISE
            if best.bit_count() <= SMALL:
                best = yield from eliminate(memo, best)
            found_at = memo.evaluations
    return (yield from eliminate(memo, best))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proposer:
    """Proposes the sets of one round."""

    width: int
    noise: float
    opening: bool
    """Whether all are made from nothing."""
    generator: torch.Generator

    def proposals(self, memo: Memo, region: int, best: int) -> Iterator[int]:
        """Yields sets within a region that are smaller than the best one, each by another estimate."""
        patches = best.bit_count()
        sizes = _sizes(patches, self.width) if self.opening else [min(patches - 1, round(FRESH_SHARE * patches))]
        advice = iter(guesses(memo.scores, memo.grid, fmean(sizes), self.width, self.noise, self.generator))
        for size, guess in zip(sizes, advice, strict=False):
            yield best_patches(guess, region, max(1, size))
        for share, guess in zip(DROPPED if patches > SMALL else (), advice, strict=False):
            yield exchanged(guess, region, best, out=max(1, round(share * patches)), into=0)
        for (swaps, member), guess in zip(product(SWAPS, _beam(memo, region, best)), advice, strict=False):
            grown = swaps > 1 and member.bit_count() < patches - 1
            yield exchanged(guess, region, member, out=swaps - grown, into=swaps)


def _smaller_among_promising(memo: Memo, region: int, best: int, width: int, end: float) -> Steps[int]:
    """Returns a sufficient set of promising patches with one patch less than a small best set; 0 if there is none."""
    sets = _promising(memo, region, best.bit_count() - 1)
    for start in range(0, len(sets), width):
        batch = sets[start : start + width]
        if memo.evaluations >= end:
            break
        yield from memo.evaluate(batch)
        yield progress(memo, "refine")
        sufficient = [bits for bits in batch if memo.sufficient(bits)]
        if sufficient:
            return max(sufficient, key=memo.merit)
    return 0


def _promising(memo: Memo, region: int, size: int) -> list[int]:
    """Returns all sets of a size of the most promising patches of a region, likeliest to be sufficient first."""
    worth = guesses(memo.scores, memo.grid, size, 1, 0.0, torch.Generator())[0].tolist()
    ranked = sorted(members(region), key=worth.__getitem__, reverse=True)
    count = next(count for count in range(len(ranked), 0, -1) if comb(count, size) <= FEW_BOUND)
    sets = subsets(bits_of(ranked[:count]), size)
    return sorted(sets, key=lambda bits: sum(worth[patch] for patch in members(bits)), reverse=True)


def _beam(memo: Memo, region: int, best: int) -> list[int]:
    """Returns the sets within a region, slightly smaller than the best one, that fall short by least."""
    sizes = range(ceil(SHORT_SHARE * best.bit_count()), best.bit_count())
    inside = (bits for bits in memo.scores if not bits & ~region and bits.bit_count() in sizes)
    return nlargest(BEAM, (bits for bits in inside if not memo.sufficient(bits)), key=memo.merit)


def _sizes(best: int, count: int) -> list[int]:
    """Returns the sizes of the first rounds' proposals, up to one patch less than the best set."""
    steps = (OPENING_SHARE + (1 - OPENING_SHARE) * place / max(1, count - 1) for place in range(count))
    return [max(1, min(best - 1, round(best * step))) for step in steps]
