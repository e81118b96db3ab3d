"""Structured attention graphs: the fall of the confidence as patches are removed (Shitole et al., NeurIPS 2021).

The graph is directed and acyclic. Its nodes are patch sets, one node per set, whatever path leads to it. Its roots are
diverse minimal sufficient sets; an edge removes one patch. Difference from the reference implementation: all single
removals of an expanded node are scored, and those that lower the score most are shown, instead of the first three in
row-major order.
"""

from dataclasses import dataclass

import torch

from sagittal.engine.requests import OutOfBudget, Upsampling
from sagittal.explain.events import CausalTriple, GraphEdge, GraphNode, Progress, Truncated, Warning
from sagittal.explain.occlusions import occlusions
from sagittal.explain.parameters import parameter
from sagittal.explain.problem import Problem
from sagittal.explain.sets.patches import masks_of, members, removals
from sagittal.explain.sets.scoring import Memo
from sagittal.explain.sets.search import progress
from sagittal.explain.sets.sufficient_sets import PatchSearch, SetSearch, warn_of_tiny_score
from sagittal.explain.steps import Steps
from sagittal.explain.surrogate import MOST, fit
from sagittal.imaging.surrogates import pooled


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredAttentionGraph(PatchSearch):
    """A graph from diverse sufficient sets down to sets that lose the confidence."""

    summary = "Structured attention graph: diverse sufficient sets, and how the score falls as patches are removed"

    max_roots: int = parameter(3, "Most roots", minimum=1, maximum=20)
    expand_above: float = parameter(
        0.4, "Nodes are expanded if their score is above this share of the unmasked score", minimum=0, maximum=1
    )
    children: int = parameter(3, "Children shown for each expanded node", minimum=1, maximum=196)
    max_nodes: int = parameter(60, "Maximum number of nodes", minimum=1, maximum=1000)
    occlusions: int = parameter(
        0,
        "Random occlusions scored for a surrogate, with the scores of the search; 0 for none",
        minimum=0,
        maximum=MOST // 2,
    )

    def explain(self, problem: Problem) -> Steps[None]:
        """Yields each certified sufficient set, then the nodes, each before its edges."""
        yield from warn_of_tiny_score(problem)
        search = self.search(problem, self.max_roots)
        yield from search.run()
        graph = _Graph(settings=self, memo=search.memo, nodes=set())
        try:
            yield from graph.draw(search)
            if self.occlusions:
                yield from _surrogate(search.memo, self.occlusions)
        except OutOfBudget as spent:
            if not search.truncated:
                yield Truncated(spent.limit)
        yield Progress(1.0, phase="expand")


def _surrogate(memo: Memo, count: int) -> Steps[None]:
    """Yields the surrogate of scores of the search and of random occlusions, which are unlike its sets.

    Of a long search, evenly spread scores are taken, as many as a surrogate is fitted to.
    """
    problem = memo.problem
    masks = occlusions(problem.generator("occlusions"), count, problem.image)
    found = yield from problem.evaluate(masks.to(problem.image.device), upsampling=Upsampling.BOX)
    step = -(-len(memo.scores) // max(1, MOST - count))
    scored = list(memo.scores.items())[::step]
    sets = masks_of([bits for bits, _ in scored], memo.grid, torch.device("cpu")).double()
    shown = torch.cat([sets, torch.from_numpy(pooled(masks.numpy(), memo.grid))])
    scores = torch.tensor([each.score for _, each in scored])
    yield fit(shown, torch.cat([scores, found.target.cpu().to(scores)]), problem.unmasked_score)


@dataclass(slots=True, kw_only=True)
class _Graph:
    """The graph while it grows."""

    settings: StructuredAttentionGraph
    memo: Memo
    nodes: set[int]
    full: bool = False
    """Whether a node was omitted because the graph was full."""

    def draw(self, search: SetSearch) -> Steps[None]:
        """Yields nodes and edges, level by level."""
        frontier = []
        for bits in search.family:
            if self._admit(bits):
                frontier.append(bits)
                yield self._node(bits, root=True, causal=search.found[bits].causal)
        while frontier:
            yield from self.memo.evaluate(child for parent in frontier for child in removals(parent))
            yield progress(self.memo, "expand")
            frontier = yield from self._descend(frontier)
        if self.full:
            yield Warning(
                "NODES_BOUND", f"The graph was cut at {self.settings.max_nodes} nodes; increase max_nodes for more."
            )

    def _descend(self, parents: list[int]) -> Steps[list[int]]:
        """Yields the shown children of each parent, and returns those to be expanded next."""
        expanded = []
        for parent in parents:
            for child in self._shown(parent):
                new = child not in self.nodes
                if not self._admit(child):
                    continue
                if new:
                    yield self._node(child, root=False, causal=None)
                    if child and self._relative(child) > self.settings.expand_above:
                        expanded.append(child)
                yield GraphEdge(f"{parent:x}", f"{child:x}", (parent & ~child).bit_length() - 1)
        return expanded

    def _shown(self, parent: int) -> list[int]:
        """Returns the children that lower the score most."""
        return sorted(removals(parent), key=lambda child: self.memo[child].score)[: self.settings.children]

    def _admit(self, bits: int) -> bool:
        """Adds a set if there is room; returns whether it is in the graph."""
        if bits not in self.nodes and len(self.nodes) >= self.settings.max_nodes:
            self.full = True
            return False
        self.nodes.add(bits)
        return True

    def _node(self, bits: int, *, root: bool, causal: CausalTriple | None) -> GraphNode:
        scored = self.memo[bits]
        return GraphNode(self.memo.grid, members(bits), scored.score, self._relative(bits), root, causal, scored.top)

    def _relative(self, bits: int) -> float:
        return self.memo[bits].score / max(self.memo.problem.unmasked_score, 1e-12)
