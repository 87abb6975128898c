"""Writes a graph model of TensorFlow.js, as its converter does, of our own weights: batch norm folded or not."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from effnet_jax.model.variants import NORMALIZATIONS, VARIANTS
from effnet_jax.trees import flatten

EPSILON = 1e-3


def text(value: str) -> dict:
    return {"s": base64.b64encode(value.encode()).decode()}


def numbers(*values: int) -> dict:
    return {"list": {"i": [str(value) for value in values]}}


class Graph:
    """Nodes and constants as they come."""

    def __init__(self) -> None:
        self.nodes: list[dict] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, op: str, *inputs: str, **attr: Any) -> str:
        name = f"model/{op}_{len(self.nodes)}"
        self.nodes.append({"name": name, "op": op, "input": list(inputs), "attr": attr})
        return name

    def constant(self, value: Any, dtype: str = "float32") -> str:
        name = f"Func/input/_{len(self.nodes)}"
        self.nodes.append({"name": name, "op": "Const", "attr": {}})
        self.constants[name] = np.asarray(value, dtype)
        return name


def make_graph(variables: dict, variant_name: str, *, fold: bool = True, scaling: str = "", padded: bool = False):
    """Returns the graph of a network of a variant.

    Args:
      variables: its values.
      variant_name: which.
      fold: whether batch norm is folded and fused, as grappler does; else each operation stands alone.
      scaling: a key of NORMALIZATIONS that the graph applies itself, or nothing.
      padded: whether strides come with a Pad of their own, as Keras has them.
    """
    graph, variant, leaves = Graph(), VARIANTS[variant_name], flatten(variables)
    side, swish = variant.resolution, not variant.lite
    last = graph.add("Placeholder", shape={"shape": {"dim": [{"size": str(s)} for s in (-1, side, side, 3)]}})
    if scaling:
        mean, scale = NORMALIZATIONS[scaling]
        last = graph.add("Sub", last, graph.constant(mean))
        last = graph.add("RealDiv", last, graph.constant(scale))

    def activated(node: str) -> str:
        return graph.add("Mul", node, graph.add("Sigmoid", node)) if swish else graph.add("Relu6", node)

    def convolution(node: str, path: str, stride: int = 1, norm: str = "", active: bool = True) -> str:
        kernel = leaves[f"params/{path}/kernel"]
        depthwise = path.endswith("depthwise_conv")
        attr: dict = {"strides": numbers(1, stride, stride, 1), "dilations": numbers(1, 1, 1, 1)}
        attr |= {"padding": text("SAME"), "data_format": text("NHWC")}
        if padded and stride == 2:
            half = kernel.shape[0] // 2
            amounts = [[0, 0], [half - 1, half], [half - 1, half], [0, 0]]
            node = graph.add("Pad", node, graph.constant(amounts, "int32"))
            attr["padding"] = text("VALID")
        values = {leaf: leaves[f"params/{norm}/{leaf}"] for leaf in ("scale", "bias")} if norm else {}
        values |= {leaf: leaves[f"batch_stats/{norm}/{leaf}"] for leaf in ("mean", "var")} if norm else {}
        if norm and fold:
            factor = values["scale"] / np.sqrt(values["var"].astype(np.float64) + EPSILON)
            kernel, bias = kernel.astype(np.float64) * factor, values["bias"] - values["mean"] * factor
        elif not norm:
            bias = leaves[f"params/{path}/bias"]
        if depthwise:
            kernel = kernel.transpose(0, 1, 3, 2)
        inputs = [node, graph.constant(kernel)]
        if fold or not norm:
            op = "FusedDepthwiseConv2dNative" if depthwise else "_FusedConv2D"
            if not np.any(bias):  # optimised away
                node = graph.add("DepthwiseConv2dNative" if depthwise else "Conv2D", *inputs, **attr)
                return activated(node) if active else node
            fused = ["BiasAdd"] + ["Relu6"] * (active and not swish and fold)
            attr["fused_ops"] = {"list": {"s": [text(name)["s"] for name in fused]}}
            node = graph.add(op, *inputs, graph.constant(bias), **attr)
            return node if not active or len(fused) == 2 else activated(node)
        node = graph.add("DepthwiseConv2dNative" if depthwise else "Conv2D", *inputs, **attr)
        taken = [graph.constant(values[leaf]) for leaf in ("scale", "bias", "mean", "var")]
        node = graph.add("FusedBatchNormV3", node, *taken, epsilon={"f": EPSILON})
        return activated(node) if active else node

    last = convolution(last, "stem/conv", 2, "stem/bn")
    axes = graph.constant([1, 2], "int32")
    for block in variant.blocks:
        begin, name = last, block.name
        if block.expand_ratio != 1:
            last = convolution(last, f"{name}/expand_conv", 1, f"{name}/expand_bn")
        last = convolution(last, f"{name}/depthwise_conv", block.stride, f"{name}/depthwise_bn")
        if block.se_filters:
            pooled = graph.add("Mean", last, axes, keep_dims={"b": True})
            gate = convolution(convolution(pooled, f"{name}/se_reduce"), f"{name}/se_expand", active=False)
            last = graph.add("Mul", last, graph.add("Sigmoid", gate))
        last = convolution(last, f"{name}/project_conv", 1, f"{name}/project_bn", active=False)
        if block.skip:
            last = graph.add("AddV2", last, begin)
    last = convolution(last, "top/conv", 1, "top/bn")
    last = graph.add("Mean", last, axes)
    kernel, bias = (graph.constant(leaves[f"params/classifier/{leaf}"]) for leaf in ("kernel", "bias"))
    last = graph.add("BiasAdd", graph.add("MatMul", last, kernel), bias)
    graph.add("Softmax", last)
    return graph


def quantised(array: np.ndarray, dtype: str) -> tuple[dict, np.ndarray]:
    """Returns what the manifest says of an array that is stored in fewer bits, and what is stored."""
    if dtype == "float16":
        return {"dtype": dtype}, array.astype(np.float16)
    lowest, most = float(array.min()), np.iinfo(dtype).max
    scale = (float(array.max()) - lowest) / most or 1.0
    return {"dtype": dtype, "scale": scale, "min": lowest}, np.round((array - lowest) / scale).astype(dtype)


def write(folder: Path, graph: Graph, *, shard: int = 4 * 2**20, quantise: str = "") -> Path:
    """Writes `model.json` and shards of so many bytes; returns the former's path."""
    folder.mkdir()
    weights, raw = [], bytearray()
    for name, array in graph.constants.items():
        said: dict = {"name": name, "shape": list(array.shape), "dtype": array.dtype.name}
        if quantise and array.dtype == np.float32:
            said["quantization"], array = quantised(array, quantise)
        weights.append(said)
        raw += array.tobytes()
    count = math.ceil(len(raw) / shard)
    paths = [f"group1-shard{number + 1}of{count}.bin" for number in range(count)]
    for number, path in enumerate(paths):
        (folder / path).write_bytes(raw[number * shard : (number + 1) * shard])
    manifest = [{"paths": paths, "weights": weights}]
    model = {"format": "graph-model", "modelTopology": {"node": graph.nodes}, "weightsManifest": manifest}
    (folder / "model.json").write_text(json.dumps(model))
    return folder / "model.json"
