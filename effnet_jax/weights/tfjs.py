"""Reader of TensorFlow.js' graph models: `model.json` and the shards beside it. Nothing in them is executed.

Format: `tfjs-core/src/io/types.ts` (`WeightsManifestConfig`) and `io_utils.ts` (`decodeWeights`) in tensorflow/tfjs. A
manifest lists groups of weights; a group's shards, one after the other, hold its weights one after the other. Weights
that are stored as uint8, uint16 or float16 are brought back as TensorFlow.js does it: value · scale + min.
"""

import json
import math
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from effnet_jax.errors import CheckpointError
from effnet_jax.weights.about import About
from effnet_jax.weights.checkpoint import Checkpoint, Entry
from effnet_jax.weights.graph import GraphError, Layer, Node, names_of, parse_nodes, read_chain
from effnet_jax.weights.layouts.tfjs import CONSTANTS, EXTRA

FILE = "model.json"
_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "?"}
_QUANTISED = {"uint8": "u1", "uint16": "<u2", "float16": "<f2"}
_MOST_JSON = 2**26  # bytes; B7's is 1 MB
_EPSILON = 1e-3  # of every batch norm of the original
_AGAIN = "convert or download it again"
# With the epsilon that is added to it in float32 exactly 1, so that a batch norm multiplies by exactly 1.
UNIT_VARIANCE = np.float32(1) - np.float32(_EPSILON)


class _Weight(NamedTuple):
    """Where one stored array is: its group of shards, the first byte in it, and what the manifest says of it."""

    group: tuple[Path, ...]
    start: int
    shape: tuple[int, ...]
    dtype: str
    stored: np.dtype
    scale: float
    lowest: float


class GraphModelFile(Checkpoint):
    """The layers of a graph model, batch norm folded or not.

    Raises:
      CheckpointError: it is damaged, incomplete, or another network.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path
        if path.stat().st_size > _MOST_JSON:
            raise CheckpointError(f"{path} is larger than any model's: {_AGAIN}")
        try:
            model = json.loads(path.read_bytes())
            if model.get("format") == "layers-model" or "model_config" in model["modelTopology"]:
                raise CheckpointError(
                    f"{path} is a layers model, which is Keras' own: give the file of Keras that it was made of"
                )
            self._weights = _weights(path, model["weightsManifest"])
            nodes = parse_nodes(model["modelTopology"])
            self._arrays = self._named(nodes)
        except CheckpointError:
            raise
        except (GraphError, _ManifestError) as error:
            raise CheckpointError(f"{path} holds no EfficientNet, or is damaged: {error}; {_AGAIN}") from None
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{path} is no graph model, or damaged ({error!r}): {_AGAIN}") from None
        shards = dict.fromkeys(shard for weight in self._weights.values() for shard in weight.group)
        self.files = (path, *shards)

    def _named(self, nodes: dict[str, Node]) -> dict[str, str | np.ndarray]:
        """Returns the stored name, or the values, of each array by its name in the layout; fills `entries`."""
        shapes = {name: weight.shape for name, weight in self._weights.items()}
        if missing := [node.name for node in nodes.values() if node.op == "Const" and node.name not in shapes]:
            raise GraphError(f"the manifest has no weights for {missing[0]}")
        chain = read_chain(nodes, shapes, self._read)
        found: dict[str, str | np.ndarray] = {}
        for name, layer in zip(names_of(chain.layers), chain.layers, strict=True):
            found |= {f"{name}/{leaf}": array for leaf, array in _leaves(layer, shapes).items()}
        layers = {array for array in found.values() if isinstance(array, str)}
        for name, weight in self._weights.items():
            if name not in layers:
                plain = weight.dtype != "float32" or name in chain.before
                found[f"{CONSTANTS if plain else EXTRA}{name}"] = name
        self.about = About(scaling=chain.scaling, resolution=chain.side)  # type: ignore[arg-type]
        self.entries = {name: self._entry_of(array) for name, array in found.items()}
        return found

    def _entry_of(self, array: str | np.ndarray) -> Entry:
        if isinstance(array, np.ndarray):
            return Entry(array.shape, array.dtype.name)
        return Entry(self._weights[array].shape, self._weights[array].dtype)

    def read(self, name: str) -> np.ndarray:
        """Returns one array. The format has no checksums."""
        self._entry(name)
        array = self._arrays[name]
        return array.copy() if isinstance(array, np.ndarray) else self._read(array)

    def _read(self, name: str) -> np.ndarray:
        weight = self._weights[name]
        size = math.prod(weight.shape) * weight.stored.itemsize
        raw, start = bytearray(), weight.start
        for shard in weight.group:
            length = shard.stat().st_size
            if start < length and len(raw) < size:
                with shard.open("rb") as file:
                    file.seek(start)
                    raw += file.read(min(size - len(raw), length - start))
                start = length
            start -= length
        if len(raw) != size:
            raise CheckpointError(f"{self.source}: {name} is cut off: {_AGAIN}")
        array = np.frombuffer(bytes(raw), weight.stored).reshape(weight.shape)
        if weight.scale == 1.0 and weight.lowest == 0.0:
            return array.astype(weight.dtype)
        levels = array.astype(np.float64) * weight.scale + weight.lowest
        return (np.floor(levels + 0.5) if weight.dtype == "int32" else levels).astype(weight.dtype)


class _ManifestError(ValueError):
    """The manifest says what cannot be, or what is not so of the shards."""


def _leaves(layer: Layer, shapes: dict[str, tuple[int, ...]]) -> dict[str, str | np.ndarray]:
    """Returns a layer's arrays by our names of them: stored names, and the values of a batch norm that is folded."""
    leaves: dict[str, str | np.ndarray] = {"kernel": layer.kernel}
    if 0 in shapes[layer.kernel]:  # whose other sizes may then be any
        raise GraphError(f"{layer.kernel} is empty: {list(shapes[layer.kernel])}")
    if layer.norm:
        if abs(layer.epsilon - _EPSILON) > 1e-6:
            raise GraphError(f"the epsilon of a batch norm is {layer.epsilon:g} instead of {_EPSILON:g}")
        leaves |= dict(zip(("scale", "bias", "mean", "var"), layer.norm, strict=True))
        return leaves if not layer.bias else {**leaves, "bias of the convolution": layer.bias}
    # A bias of zeros is optimised away by converters, as the addition that it is.
    *_, inputs, outputs = shapes[layer.kernel]
    size = inputs * outputs if layer.kind == "depthwise" else outputs
    leaves["bias"] = layer.bias or np.zeros(size, np.float32)
    if layer.kind in ("conv", "depthwise"):
        leaves |= {"scale": np.ones(size, np.float32), "mean": np.zeros(size, np.float32)}
        leaves["var"] = np.full(size, UNIT_VARIANCE)
    return leaves


def _weights(path: Path, manifest: Any) -> dict[str, _Weight]:
    """Returns where each stored array is, once the shards are as long as the manifest says."""
    found: dict[str, _Weight] = {}
    for group in manifest:
        shards = tuple(_shard(path, name) for name in group["paths"])
        if len(set(shards)) < len(shards):
            raise _ManifestError("a group has a shard twice")
        start = 0
        for item in group["weights"]:
            weight = _weight(shards, start, item)
            if item["name"] in found:
                raise _ManifestError(f"two weights are called {item['name']}")
            found[item["name"]] = weight
            start += math.prod(weight.shape) * weight.stored.itemsize
        held = sum(shard.stat().st_size for shard in shards)
        if held != start:
            listed = ", ".join(shard.name for shard in shards[:6])
            raise _ManifestError(f"its weights have {start:,} bytes, and {listed or 'no shards'} hold {held:,}")
    return found


def _weight(shards: tuple[Path, ...], start: int, item: dict[str, Any]) -> _Weight:
    shape = tuple(item["shape"])
    if not all(type(size) is int and 0 <= size < 2**40 for size in shape) or len(shape) > 8:
        raise _ManifestError(f"{item['name']} cannot have the shape {list(shape)}")
    quantised = item.get("quantization") or {}
    kinds, kind = (_QUANTISED, quantised["dtype"]) if quantised else (_DTYPES, item["dtype"])
    if kind not in kinds or item["dtype"] not in _DTYPES:
        raise _ManifestError(f"{item['name']} is of type {kind}, which no weights are")
    scale, lowest = float(quantised.get("scale", 1.0)), float(quantised.get("min", 0.0))
    if not (math.isfinite(scale) and math.isfinite(lowest)):
        raise _ManifestError(f"{item['name']} is quantised by {scale} and {lowest}")
    return _Weight(shards, start, shape, item["dtype"], np.dtype(kinds[kind]), scale, lowest)


def _shard(path: Path, name: Any) -> Path:
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name or "\0" in name:
        raise _ManifestError(f"the manifest names {name!r}, a path out of its folder, so nothing was read")
    shard = path.parent / place
    if not shard.is_file():
        raise CheckpointError(f"{path} needs {name}, which is not beside it: copy or download all shards")
    return shard
