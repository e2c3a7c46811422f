"""A lineage as a drawing in layers, from what there was first on the left to what was made last on the right.

The method is Sugiyama's (1981): each artifact stands one layer behind the last of its inputs, an edge over several
layers passes through empty places in them, and the order inside a layer follows the neighbours' mean place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mixwright.schemas.catalog import Lineage, LineageNode
from mixwright.schemas.references import Kind

PLURALS: Mapping[Kind, str] = {
    "mixture": "mixtures",
    "corpus": "corpora",
    "datastore": "datastores",
    "evaluation": "evaluations",
    "attributes": "attributes",
    "embeddings": "embeddings",
    "index": "indexes",
    "results": "results",
}
"""The kinds in the order in which pages list them, each with its word in addresses."""

MAX_NODES = 48
"""A drawing of more is no help: those nearest to the artifact are drawn."""

_BOX_WIDTH, _BOX_HEIGHT = 188, 44
_GAP_X, _GAP_Y = 52, 14
_PASSAGE_HEIGHT = 6
_LETTERS = 25
_SWEEPS = 6


def page_address(kind: Kind, ref: str) -> str:
    """Where an artifact's page is."""
    return f"/{PLURALS[kind]}/{ref}"


@dataclass(frozen=True)
class Box:
    """An artifact on the drawing; ``address`` is None where it is no longer there."""

    x: float
    y: float
    kind: Kind
    ref: str
    label: str
    address: str | None
    here: bool


@dataclass(frozen=True)
class Relative:
    """A line of the list that says the same as the drawing."""

    kind: Kind
    ref: str
    address: str | None
    made_from: tuple[str, ...]


@dataclass(frozen=True)
class LineageDrawing:
    """Boxes and paths in pixels, and the lists beside them."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    paths: tuple[str, ...]
    n_left_out: int
    ancestors: tuple[Relative, ...]
    descendants: tuple[Relative, ...]
    box_width: int = _BOX_WIDTH
    box_height: int = _BOX_HEIGHT


@dataclass
class _Graph:
    """Ids, with the ids of their inputs and of what was made from them."""

    inputs: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    outputs: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, source: str, target: str) -> None:
        self.outputs[source].append(target)
        self.inputs[target].append(source)


def lineage_drawing(lineage: Lineage, kind: Kind, ref: str) -> LineageDrawing:
    """The lineage of ``ref`` with links to every artifact that is there."""
    here = f"{kind}:{ref}"
    nodes = {node.id: node for node in lineage.nodes}
    graph = _Graph()
    for edge in lineage.edges:
        graph.add(edge.source, edge.target)
    shown = _nearest(graph, here)
    drawn = _Graph()
    for edge in lineage.edges:
        if edge.source in shown and edge.target in shown:
            drawn.add(edge.source, edge.target)
    layers, chains = _layers(drawn, shown)
    _reorder(layers, drawn, chains)
    places, width, height = _places(layers)
    boxes = [_box(nodes[each], *places[each], here=each == here) for each in shown]
    ancestors, descendants = (_reached(links, here) for links in (graph.inputs, graph.outputs))
    return LineageDrawing(
        width=width,
        height=height,
        boxes=tuple(sorted(boxes, key=lambda box: (box.x, box.y))),
        paths=tuple(_path([places[each] for each in chain], chain) for chain in chains),
        n_left_out=len(nodes) - len(shown),
        ancestors=tuple(_relative(nodes, graph, each) for each in ancestors),
        descendants=tuple(_relative(nodes, graph, each) for each in descendants),
    )


def _reached(links: Mapping[str, Sequence[str]], start: str) -> list[str]:
    """All ids that the links lead to from ``start``, the nearest first."""
    found: dict[str, None] = {}
    frontier = [start]
    while frontier:
        frontier = list(dict.fromkeys(other for id in frontier for other in links.get(id, ())))
        frontier = [each for each in frontier if each not in found and each != start]
        found.update(dict.fromkeys(frontier))
    return list(found)


def _nearest(graph: _Graph, here: str) -> list[str]:
    up, down = _reached(graph.inputs, here), _reached(graph.outputs, here)
    room = MAX_NODES - 1
    # What it was made from says more; what was made from it takes the places that are left.
    n_up = min(len(up), max(room - len(down), room * 2 // 3))
    return [here, *up[:n_up], *down[: room - n_up]]


def _layers(graph: _Graph, shown: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Ids by layer, and for each edge the ids that it passes, those of empty places among them."""
    depth: dict[str, int] = {}

    def depth_of(id: str) -> int:
        if id not in depth:
            depth[id] = 1 + max((depth_of(each) for each in graph.inputs.get(id, ())), default=-1)
        return depth[id]

    for each in shown:
        depth_of(each)
    # An input stands right before the first artifact made from it, not at the far left.
    for each in sorted(shown, key=lambda id: -depth[id]):
        if graph.outputs.get(each):
            depth[each] = min(depth[output] for output in graph.outputs[each]) - 1
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for each in sorted(shown):
        layers[depth[each]].append(each)
    chains = []
    for source in sorted(shown):
        for target in graph.outputs.get(source, ()):
            passages = [f"{source}>{target}>{layer}" for layer in range(depth[source] + 1, depth[target])]
            for layer, passage in enumerate(passages, depth[source] + 1):
                layers[layer].append(passage)
            chains.append([source, *passages, target])
    return layers, chains


def _reorder(layers: list[list[str]], graph: _Graph, chains: Sequence[Sequence[str]]) -> None:
    """Sort each layer by the mean place of its neighbours, forth and back, so that few edges cross."""
    before: dict[str, list[str]] = defaultdict(list)
    behind: dict[str, list[str]] = defaultdict(list)
    for chain in chains:
        for source, target in pairwise(chain):
            before[target].append(source)
            behind[source].append(target)
    for sweep in range(_SWEEPS):
        forth = sweep % 2 == 0
        links = before if forth else behind
        for layer in layers if forth else reversed(layers):
            place = {id: index / max(len(each), 1) for each in layers for index, id in enumerate(each)}
            layer.sort(
                key=lambda id: (
                    sum(place[each] for each in links[id]) / len(links[id]) if links[id] else place[id],
                    place[id],
                )
            )


def _places(layers: Sequence[Sequence[str]]) -> tuple[dict[str, tuple[float, float]], float, float]:
    """Upper left corners, and the size of the drawing. Layers are centred."""
    heights = [sum(_height(id) + _GAP_Y for id in layer) - _GAP_Y for layer in layers]
    tallest = max(heights)
    places: dict[str, tuple[float, float]] = {}
    for number, (layer, height) in enumerate(zip(layers, heights, strict=True)):
        y = (tallest - height) / 2
        for id in layer:
            places[id] = (2 + number * (_BOX_WIDTH + _GAP_X), 2 + y)
            y += _height(id) + _GAP_Y
    width = len(layers) * (_BOX_WIDTH + _GAP_X) - _GAP_X
    return places, width + 4, tallest + 4


def _height(id: str) -> int:
    return _PASSAGE_HEIGHT if ">" in id else _BOX_HEIGHT


def _path(places: Sequence[tuple[float, float]], chain: Sequence[str]) -> str:
    """Curves from the right side of the first box to the left side of the last."""
    middles = [(x, y + _height(id) / 2) for (x, y), id in zip(places, chain, strict=True)]
    x, y = middles[0]
    parts = [f"M{x + _BOX_WIDTH:g} {y:g}"]
    for x, y in middles[1:]:
        parts.append(f"C{x - _GAP_X / 2:g} {_last_y(parts):g} {x - _GAP_X / 2:g} {y:g} {x:g} {y:g}")
        if (x, y) != middles[-1]:
            parts.append(f"L{x + _BOX_WIDTH:g} {y:g}")
    return "".join(parts)


def _last_y(parts: Sequence[str]) -> float:
    return float(parts[-1].rsplit(" ", 1)[1])


def _box(node: LineageNode, x: float, y: float, *, here: bool) -> Box:
    label = node.ref if len(node.ref) <= _LETTERS else f"{node.ref[:10]}…{node.ref[-(_LETTERS - 11) :]}"
    address = page_address(node.kind, node.ref) if node.exists and not here else None
    return Box(x, y, node.kind, node.ref, label, address, here)


def _relative(nodes: Mapping[str, LineageNode], graph: _Graph, id: str) -> Relative:
    node = nodes[id]
    made_from = tuple(f"{nodes[each].kind} {nodes[each].ref}" for each in graph.inputs.get(id, ()))
    return Relative(node.kind, node.ref, page_address(node.kind, node.ref) if node.exists else None, made_from)
