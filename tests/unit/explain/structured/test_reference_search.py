"""The reference implementation of the beam search: what may be spared of it changes nothing but the evaluations."""

from reference.descent import Spared
from reference.search import ReferenceSearch


def test_it_finds_a_set_and_counts_every_evaluation(search, known):
    run = search(known.any_of([0, 1]), ReferenceSearch(grid=3))
    assert run.usage.evaluations > len(set(run.model.evaluated))


def test_it_finds_the_same_where_it_repeats_nothing(search, known):
    spared = Spared()
    whole, short = (
        search(known.any_of([0, 1], [4, 5]), ReferenceSearch(grid=3, spared=each)) for each in (None, spared)
    )
    assert list(whole.sets) == list(short.sets)
    assert whole.usage.evaluations == short.usage.evaluations + spared.evaluations
