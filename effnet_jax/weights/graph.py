"""A frozen TensorFlow graph read as the chain of layers that an EfficientNet is. Nothing of it is executed.

Names of nodes are whatever a converter made of them, so layers are told from the operations alone: from the image on,
each convolution has one place in the chain, and what follows it (a bias, a batch norm, an activation, a shortcut)
belongs to it. An operation that no EfficientNet has is an error.

Format: tensorflow/core/framework/graph.proto as JSON, as in TensorFlow.js' `model.json`.
"""

import base64
import dataclasses
import graphlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]
Read = Callable[[str], np.ndarray]

_LAYERS = {
    "Conv2D": "conv",
    "_FusedConv2D": "conv",
    "DepthwiseConv2dNative": "depthwise",
    "FusedDepthwiseConv2dNative": "depthwise",
    "MatMul": "dense",
    "_FusedMatMul": "dense",
}
_NORMS = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
_SUMS = {"BiasAdd", "Add", "AddV2"}
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Relu6": "relu6"}
_PASSED = {"Identity", "ReadVariableOp", "Cast"}
_AFFINE = {"Mul", "Sub", "RealDiv", "Add", "AddV2", "BiasAdd"}
_SHAPING = {"Shape", "StridedSlice", "Pack", "Reshape", "Squeeze", "ExpandDims", "BroadcastTo", "Pad"}
_KNOWN = {*_LAYERS, *_NORMS, *_SUMS, *_ACTIVATIONS, *_PASSED, *_AFFINE, *_SHAPING}
_KNOWN |= {"Const", "Placeholder", "Mean", "Softmax", "IdentityN", "NoOp"}


class GraphError(ValueError):
    """The graph is damaged, or of another network. The message says what of it."""


class Node(NamedTuple):
    """One operation: its name, its kind, the names of the nodes that it takes, and its settings."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attr: Mapping[str, Any]


@dataclasses.dataclass
class Layer:
    """One layer, by the names of the constants that it takes.

    Attributes:
      kind: `conv`, `depthwise`, `squeeze` (a convolution of pooled features) or `dense`.
      stride: 1 or 2.
      kernel: its constant.
      bias: its constant, where it has one.
      norm: the constants of a batch norm after it: scale, bias, mean and variance; empty where that is folded.
      epsilon: of that batch norm.
      activation: after it, `sigmoid` (also as a part of swish) or `relu6`.
      shortcut: whether something is added to its output.
    """

    kind: str
    stride: int
    kernel: str
    bias: str = ""
    norm: tuple[str, ...] = ()
    epsilon: float = 0.0
    activation: str = ""
    shortcut: bool = False


class Chain(NamedTuple):
    """What a graph is.

    Attributes:
      layers: from the image to the output.
      before: constants that scale the image.
      scaling: mean and scale of `(x - mean) / scale` before the first layer, three each; None where there is none.
      side: of the image in pixels; 0 where the graph takes any.
    """

    layers: tuple[Layer, ...]
    before: frozenset[str]
    scaling: tuple[tuple[float, ...], tuple[float, ...]] | None
    side: int


def parse_nodes(topology: Any) -> dict[str, Node]:
    """Returns the nodes by name, each after those that it takes.

    Args:
      topology: a GraphDef as JSON has it.

    Raises:
      GraphError: it is none, or runs in a circle.
    """
    nodes = {}
    for item in topology["node"]:
        inputs = tuple(name.partition(":")[0] for name in item.get("input", ()) if not name.startswith("^"))
        node = Node(item["name"], item["op"], inputs, item.get("attr", {}))
        if node.name in nodes:
            raise GraphError(f"two nodes are called {node.name}")
        nodes[node.name] = node
    for node in nodes.values():
        if missing := [name for name in node.inputs if name not in nodes]:
            raise GraphError(f"{node.name} takes {missing[0]}, which is not there")
    try:
        order = list(graphlib.TopologicalSorter({node.name: node.inputs for node in nodes.values()}).static_order())
    except graphlib.CycleError:
        raise GraphError("it runs in a circle") from None
    if odd := sorted({node.op for node in nodes.values()} - _KNOWN):
        raise GraphError(f"it has operations that no EfficientNet has: {', '.join(odd[:5])}")
    return {name: nodes[name] for name in order}


def read_chain(nodes: Mapping[str, Node], shapes: Shapes, read: Read) -> Chain:
    """Returns the layers of a graph in their order.

    Args:
      nodes: of `parse_nodes`.
      shapes: of the constants.
      read: what gives a constant's values, asked for small ones alone.

    Raises:
      GraphError: layers lie side by side, or do what no EfficientNet's do.
    """
    walk = _Walk(nodes, shapes, read)
    for node in nodes.values():
        walk.visit(node)
    if not walk.layers:
        raise GraphError("it has no convolution")
    return Chain(tuple(walk.layers), frozenset(walk.before), walk.scaling(), walk.image)


class _Walk:
    """What is known of the nodes that were visited."""

    def __init__(self, nodes: Mapping[str, Node], shapes: Shapes, read: Read) -> None:
        self.nodes, self.shapes, self.read = nodes, shapes, read
        self.layers: list[Layer] = []
        self.constants: dict[str, str] = {}  # node -> the constant that it passes on
        self.depth: dict[str, int] = {}  # node -> how many layers lie before it
        self.open: dict[str, Layer] = {}  # node -> the layer whose output it is, without an activation so far
        self.pooled: set[str] = set()
        self.affine: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # node -> what was done to the image: a x + b
        self.padded: dict[str, list[list[int]]] = {}
        self.entry: tuple[np.ndarray, np.ndarray] | None = None
        self.before: set[str] = set()
        self.image = self.side = 0

    def visit(self, node: Node) -> None:
        if node.op == "Const":
            self.constants[node.name] = node.name
            return
        sources = [self.constants[name] for name in node.inputs if name in self.constants]
        flowing = [name for name in node.inputs if name not in self.constants]
        passes = not flowing and node.op in _PASSED or node.op == "BroadcastTo"
        if passes and node.inputs and node.inputs[0] in self.constants:
            self.constants[node.name] = self.constants[node.inputs[0]]
            return
        self.depth[node.name] = depth = max((self.depth[name] for name in flowing), default=0)
        if node.op == "Mean" or (flowing and self.pooled.issuperset(flowing)):
            self.pooled.add(node.name)
        if node.op in _LAYERS:
            self._layer(node, flowing)
        elif depth:
            self._follow(node, flowing, sources, self.layers[depth - 1])
        else:
            self._image(node, flowing, sources)

    def _layer(self, node: Node, flowing: list[str]) -> None:
        kind, given = _LAYERS[node.op], [self.constants.get(name, "") for name in node.inputs]
        fused = [_text(item) for item in _listed(node, "fused_ops", "s")]
        if len(flowing) != 1 or len(given) != 2 + bool(fused) or not all(given[1:]) or given[0]:
            raise GraphError(f"{node.name} does not take one input and constants")
        if fused and (fused[0] != "BiasAdd" or not _ACTIVATIONS.keys() >= set(fused[1:])):
            raise GraphError(f"{node.name} does {' and '.join(fused)} as well, which no EfficientNet does")
        if self.depth[node.name] != len(self.layers):
            raise GraphError(f"{node.name} lies beside another layer instead of after it")
        if kind == "conv" and flowing[0] in self.pooled:
            kind = "squeeze"
        if not self.layers:
            self.entry = self.affine.get(flowing[0])
        bias = given[2] if fused else ""
        activation = "".join(_ACTIVATIONS[name] for name in fused[1:])
        layer = Layer(kind, self._stride(node, kind, given[1], flowing[0]), given[1], bias, activation=activation)
        self.layers.append(layer)
        self.depth[node.name] += 1
        if not layer.activation:
            self.open[node.name] = layer

    def _stride(self, node: Node, kind: str, kernel: str, source: str) -> int:
        """Returns the stride of a layer, once its padding is that of the original: SAME, or amounts that are alike."""
        if kind == "dense":
            if any(node.attr.get(key, {}).get("b") for key in ("transpose_a", "transpose_b")):
                raise GraphError(f"{node.name} is transposed")
            return 1
        size, wide = self.shapes[kernel][0], self.shapes[kernel][1]
        (_, stride, across, _) = map(int, _listed(node, "strides", "i"))
        dilations = {int(item) for item in _listed(node, "dilations", "i")}
        layout = _text(node.attr.get("data_format", {}).get("s", "")) or "NHWC"
        if stride != across or stride not in (1, 2) or size != wide or dilations - {1} or layout != "NHWC":
            raise GraphError(f"{node.name} has strides, dilations or an order of axes that no EfficientNet has")
        padding, amounts = _text(node.attr["padding"]["s"]), self.padded.get(source)
        # What SAME pads: one less before than after where the stride halves an even side.
        odd = stride == 1 or self.side % 2
        same = [size // 2 if odd else size // 2 - 1, size // 2]
        fits = padding == "SAME" and amounts is None
        fits = fits or padding == "VALID" and (amounts or [[0, 0]] * 4) == [[0, 0], same, same, [0, 0]]
        fits = fits or padding == "VALID" and size == 1 and amounts is None
        if not fits:
            raise GraphError(f"{node.name} pads its input by {amounts or padding}, as no EfficientNet of TensorFlow's")
        self.side = -(-self.side // stride)
        return stride

    def _follow(self, node: Node, flowing: list[str], sources: list[str], layer: Layer) -> None:
        """Takes a node that comes after a layer."""
        if node.op == "Pad":
            self.padded[node.name] = self._amounts(node)
        own = self.open.get(node.inputs[0]) if node.inputs else None
        own = own or (self.open.get(flowing[0]) if len(flowing) == 1 else None)
        if node.op in _ACTIVATIONS:
            layer.activation = layer.activation or _ACTIVATIONS[node.op]
        elif node.op in _SUMS and len(flowing) == 2:
            layer.shortcut = True
        elif node.op in _SUMS and own is layer and sources and not (layer.bias or layer.norm):
            layer.bias = sources[0]
            self.open[node.name] = layer
        elif node.op in _NORMS and own is layer and len(sources) == 4 and not layer.norm:
            layer.norm = tuple(sources)
            layer.epsilon = float(node.attr.get("epsilon", {}).get("f", 1e-4))
            self.open[node.name] = layer
        elif node.op in _PASSED and own is layer:
            self.open[node.name] = layer

    def _amounts(self, node: Node) -> list[list[int]]:
        constant = self.constants.get(node.inputs[1], "") if len(node.inputs) > 1 else ""
        if self.shapes.get(constant) != (4, 2):
            raise GraphError(f"{node.name} pads by what is no constant")
        return self.read(constant).astype(int).tolist()

    def _image(self, node: Node, flowing: list[str], sources: list[str]) -> None:
        """Takes a node that comes before the first layer."""
        if any(name in self.affine for name in flowing):
            self.before.update(sources)
        if node.op == "Placeholder":
            sizes = [int(item["size"]) for item in node.attr.get("shape", {}).get("shape", {}).get("dim", ())]
            if len(sizes) == 4 and sizes[3] == 3:
                self.affine[node.name] = np.ones(3), np.zeros(3)
                self.image = self.side = sizes[1] if sizes[1] == sizes[2] > 0 else 0
            return
        known = self.affine.get(flowing[0]) if len(flowing) == 1 else None
        if node.op == "Shape" or known is None:
            return
        if node.op == "Pad":
            self.padded[node.name] = self._amounts(node)
        if node.op in (*_PASSED, "Pad"):
            self.affine[node.name] = known
        elif node.op in _AFFINE and len(sources) == 1 and np.prod(self.shapes[sources[0]]) in (1, 3):
            first = node.inputs[0] == flowing[0]
            value = np.broadcast_to(self.read(sources[0]).astype(np.float64).reshape(-1), 3)
            self.affine[node.name] = _applied(node.op, known, value, first)

    def scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        if self.entry is None:
            raise GraphError("what it does to the image before the first convolution is no scaling")
        factor, shift = self.entry
        if not np.all(np.isfinite([factor, shift])) or not factor.all():
            raise GraphError(f"it scales the image by {factor.tolist()}")
        if (factor == 1).all() and not shift.any():
            return None
        mean, scale = -shift / factor, 1 / factor
        if (abs(scale) <= 1.01).all():  # hub modules take images from 0 to 1
            mean, scale = 255 * mean, 255 * scale
        return tuple(mean.tolist()), tuple(scale.tolist())


def _applied(
    op: str, known: tuple[np.ndarray, np.ndarray], value: np.ndarray, first: bool
) -> tuple[np.ndarray, np.ndarray]:
    """What `op` with a constant makes of a x + b; `first`: whether that stands before the constant."""
    factor, shift = known
    with np.errstate(all="ignore"):  # what is not finite is told at the end
        if op == "Mul":
            return factor * value, shift * value
        if op == "RealDiv":
            return (factor / value, shift / value) if first else (factor * np.nan, shift)
        if op == "Sub":
            return (factor, shift - value) if first else (-factor, value - shift)
        return factor, shift + value


def _listed(node: Node, key: str, kind: str) -> list[Any]:
    return node.attr.get(key, {}).get("list", {}).get(kind, [])


def _text(value: Any) -> str:
    """A text of the graph: base64 in JSON, or the numbers of its letters."""
    return (bytes(value) if isinstance(value, list) else base64.b64decode(value)).decode("ascii")


def names_of(layers: tuple[Layer, ...]) -> list[str]:
    """Returns a name for each layer that says what it is: `004_depthwise_stride2_sigmoid`."""
    return [
        layer_name(number, layer.kind, layer.stride, layer.activation, layer.shortcut)
        for number, layer in enumerate(layers)
    ]


def layer_name(number: int, kind: str, stride: int, activation: str, shortcut: bool) -> str:
    """Returns the name of a layer, in which all is that a shape does not say."""
    parts = [f"{number:03d}", kind, "stride2" if stride == 2 else "", "shortcut" if shortcut else ""]
    # What is made of the classifier's output, a softmax or nothing, is no part of the network.
    parts.insert(3, "" if kind == "dense" else activation)
    return "_".join(filter(None, parts))
