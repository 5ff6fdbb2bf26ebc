# SPDX-License-Identifier: Apache-2.0
"""Every graph of a number of vertices, one of each kind: as a graph a tuple of neighbour masks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

Graph = tuple[int, ...]

KINDS = [1, 1, 2, 4, 11, 34, 156, 1044, 12346]
"""How many graphs of 0, 1, 2 ... vertices there are up to isomorphism (OEIS A000088)."""


@cache
def graphs(count: int) -> tuple[Graph, ...]:
    """One graph of each kind."""
    return ((),) if count == 0 else tuple(dict.fromkeys(canonical(graph) for small in graphs(count - 1) for graph in larger(small)))


def larger(small: Graph) -> Iterator[Graph]:
    """The graphs that have one vertex more, where none has more neighbours than that one. Every graph is one of these for some smaller graph: the
    one without one of its vertices with the most neighbours."""
    for neighbours in range(1 << len(small)):
        graph = (*(mask | (neighbours >> v & 1) << len(small) for v, mask in enumerate(small)), neighbours)
        if max(mask.bit_count() for mask in graph) == neighbours.bit_count():
            yield graph


def canonical(graph: Graph) -> Graph:
    """The same for two graphs of one kind: of all ways to number the vertices that keep to their colours, the greatest graph."""
    return max(numbered(graph, order) for order in orders(graph, refined(graph, [0] * len(graph))))


def refined(graph: Graph, colours: list[int]) -> list[int]:
    """Colours told apart further by the colours of the neighbours, until that tells nothing new."""
    while True:
        seen = [(colours[v], sorted(colours[u] for u in range(len(graph)) if mask >> u & 1)) for v, mask in enumerate(graph)]
        ranks = sorted(range(len(graph)), key=lambda v: seen[v])
        finer = [0] * len(graph)
        for before, v in itertools.pairwise(ranks):
            finer[v] = finer[before] + (seen[v] != seen[before])
        if len(set(finer)) == len(set(colours)):
            return finer
        colours = finer


def orders(graph: Graph, colours: list[int]) -> Iterator[list[int]]:
    """The vertices in the order of their colours. Where several have one colour, each of them in turn is told apart, but for twins: vertices that
    may change places without any edge being different."""
    order = sorted(range(len(graph)), key=colours.__getitem__)
    alike = min((c for c in colours if colours.count(c) > 1), default=None)
    if alike is None:
        yield order
        return
    tried: list[int] = []
    for v in order:
        if colours[v] != alike or any((graph[v] ^ graph[u]) & ~(1 << v | 1 << u) == 0 for u in tried):
            continue
        tried.append(v)
        yield from orders(graph, refined(graph, [2 * c + (u != v and c == alike) for u, c in enumerate(colours)]))


def numbered(graph: Graph, order: list[int]) -> Graph:
    place = {v: i for i, v in enumerate(order)}
    return tuple(sum(1 << place[u] for u in range(len(graph)) if graph[v] >> u & 1) for v in order)
