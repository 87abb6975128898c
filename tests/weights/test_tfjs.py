"""Graph models of TensorFlow.js: the same network comes out, and whatever is another, or half of one, is told."""

import functools
import json

import jax
import numpy as np
import pytest

from effnet_jax.errors import CheckpointError
from effnet_jax.model.batch_norm import normalise
from effnet_jax.model.variants import VARIANTS
from effnet_jax.trees import flatten, nest
from effnet_jax.weights.port import plan_port, port_checkpoint, read_variables
from effnet_jax.weights.readers import open_checkpoint
from effnet_jax.weights.store import load_weights
from effnet_jax.weights.tfjs import UNIT_VARIANCE
from tests import graph_model, synthetic


@pytest.fixture(scope="module")
def values():
    """A function from a variant to random values of it."""
    return functools.cache(lambda name: synthetic.variables(name, num_classes=10))


@pytest.fixture(scope="module")
def graphs(values):
    """A function from a variant and settings to its graph, which is not to be changed."""
    made: dict = {}

    def make(name="lite0", **settings):
        key = name, *settings.items()
        if key not in made:
            made[key] = graph_model.make_graph(values(name), name, **settings)
        return made[key]

    return make


def read(path):
    with open_checkpoint(path) as checkpoint:
        return read_variables(checkpoint, plan_port(checkpoint))


@pytest.mark.parametrize("variant", ["lite0", "b0"])
def test_a_folded_network_gives_the_same_logits(values, graphs, tmp_path, variant):
    graph_model.write(tmp_path / "efficientnet", graphs(variant, scaling="lite" if variant == "lite0" else "advprop"))
    metadata = port_checkpoint(tmp_path / "efficientnet", tmp_path / "out")
    scaling = {"lite0": "lite", "b0": "advprop"}[variant]
    assert (metadata.variant, metadata.normalization, metadata.num_classes) == (variant, scaling, 10)
    assert metadata.resolution == 224 and len(metadata.source["sha256"]) >= 5
    model, ported, _ = load_weights(tmp_path / "out")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    ours, theirs = (np.asarray(jax.jit(model.apply)(each, images)) for each in (values(variant), ported))
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(ours).max()


def test_the_batch_norm_of_a_folded_layer_multiplies_by_one():
    inputs = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    one, zero = np.ones(8, np.float32), np.zeros(8, np.float32)
    outputs = jax.jit(normalise, static_argnums=(5, 6))(inputs, one, zero, zero, one * UNIT_VARIANCE, None, "float32")
    assert np.array_equal(outputs, inputs)


@pytest.mark.parametrize("variant, settings", [("b0", {"padded": True}), ("lite0", {})])
def test_a_network_that_is_not_folded_comes_back_bit_for_bit(values, graphs, tmp_path, variant, settings):
    found = read(graph_model.write(tmp_path / "m", graphs(variant, fold=False, **settings)))
    jax.tree.map(np.testing.assert_array_equal, found, values(variant))


def test_biases_of_zeros_are_optimised_away(values, tmp_path):
    flat = flatten(values("b0"))
    zeros = [path for path in flat if path.startswith("params/block1a/se_") and path.endswith("/bias")]
    known = nest({**flat, **{path: np.zeros_like(flat[path]) for path in zeros}})
    found = read(graph_model.write(tmp_path / "m", graph_model.make_graph(known, "b0", fold=False)))
    assert len(zeros) == 2
    jax.tree.map(np.testing.assert_array_equal, found, known)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variant_is_told(values, variant):
    """From the table of names alone: the large ones take too long to write."""
    from effnet_jax.weights.graph import names_of, parse_nodes, read_chain
    from effnet_jax.weights.layouts import LAYOUTS

    graph = graph_model.make_graph(_Broadcast(variant), variant, fold=False)
    shapes = {name: array.shape for name, array in graph.constants.items()}
    chain = read_chain(parse_nodes({"node": graph.nodes}), shapes, graph.constants.__getitem__)
    table = LAYOUTS["tfjs"].table(VARIANTS[variant], 10)
    expected = [row.name.rsplit("/", 1)[0] for row in table if row.name.endswith("/kernel")]
    assert names_of(chain.layers)[:-1] == expected[:-1] and chain.layers[-1].kind == "dense"
    assert [shapes[layer.kernel] for layer in chain.layers] == [row.shape for row in table if "kernel" in row.name]


class _Broadcast(dict):
    """Values of a variant that take no memory."""

    def __init__(self, variant):
        from effnet_jax.weights.names import parameter_shapes

        shapes = parameter_shapes(VARIANTS[variant], 10)
        super().__init__(nest({p: np.broadcast_to(np.float32(1), s) for p, s in shapes.items()}))


@pytest.mark.parametrize("dtype, near", [("float16", 1e-3), ("uint16", 1e-4), ("uint8", 0.03)])
def test_weights_in_fewer_bits(values, graphs, tmp_path, dtype, near):
    found = read(graph_model.write(tmp_path / "m", graphs(fold=False), quantise=dtype))
    known = flatten(values("lite0"))
    for path, array in flatten(found).items():
        expected = known[path]
        assert np.abs(array - expected).max() <= near * np.ptp(expected), path


def edited(path, change):
    model = json.loads(path.read_text())
    change(model)
    path.write_text(json.dumps(model))
    return path


def nodes(model, op):
    return [node for node in model["modelTopology"]["node"] if node["op"] == op]


def test_shards_that_are_not_what_the_manifest_says(graphs, tmp_path):
    path = graph_model.write(tmp_path / "m", graphs())
    shard = sorted(path.parent.glob("*.bin"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"its weights have [\d,]+ bytes, and group1-shard1of\d.bin, .* hold"):
        open_checkpoint(path)
    shard.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="its weights have"):
        open_checkpoint(path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"needs group1-shard2of\d.bin, which is not beside it: copy or download"):
        open_checkpoint(path.parent)


@pytest.mark.parametrize("name", ["../group1-shard1of4.bin", "/etc/passwd", "a/../../b", "https://x/y", "..\\x", "c:x"])
def test_a_path_out_of_the_folder_is_refused(graphs, tmp_path, name):
    path = graph_model.write(tmp_path / "m", graphs())
    (tmp_path / "group1-shard1of4.bin").write_bytes(b"x")
    edited(path, lambda model: model["weightsManifest"][0]["paths"].__setitem__(0, name))
    with pytest.raises(CheckpointError, match="a path out of its folder, so nothing was read"):
        open_checkpoint(path)


def without_a_block(model):
    """A network whose second block's shortcut is gone: the same shapes."""
    (node, *_) = [node for node in nodes(model, "AddV2")]
    node["op"], node["input"] = "Identity", node["input"][:1]


def with_strides(model):
    depthwise = nodes(model, "FusedDepthwiseConv2dNative")
    depthwise[1]["attr"]["strides"] = graph_model.numbers(1, 1, 1, 1)


def with_relu(model):
    node = nodes(model, "_FusedConv2D")[0]
    node["attr"]["fused_ops"]["list"]["s"] = [graph_model.text(name)["s"] for name in ("BiasAdd", "Relu")]


def without_activation(model):
    node = nodes(model, "_FusedConv2D")[0]
    node["attr"]["fused_ops"]["list"]["s"] = [graph_model.text("BiasAdd")["s"]]


def with_pool(model):
    nodes(model, "Softmax")[0]["op"] = "MaxPool"


def with_padding(model):
    nodes(model, "FusedDepthwiseConv2dNative")[1]["attr"]["padding"] = graph_model.text("VALID")


def in_a_circle(model):
    first = nodes(model, "_FusedConv2D")[0]
    first["input"][0] = nodes(model, "Softmax")[0]["name"]


def side_by_side(model):
    convolutions = nodes(model, "_FusedConv2D")
    convolutions[2]["input"][0] = convolutions[1]["input"][0]


def without_a_constant(model):
    del nodes(model, "Const")[5]["name"]


def with_another_number(model):
    """A number that nothing of the network takes: what would become of it?"""
    said = {"name": "extra", "shape": [], "dtype": "float32"}
    model["weightsManifest"].append({"paths": ["extra.bin"], "weights": [said]})


def with_two_classifiers(model):
    """The first of which would be lost where they had one name."""
    matmul, softmax = nodes(model, "MatMul")[0], nodes(model, "Softmax")[0]
    model["modelTopology"]["node"].append({**matmul, "name": "second", "input": [softmax["name"], matmul["input"][1]]})


def with_an_empty_kernel(model):
    """Its other sizes may be any, and so what would be made up for its batch norm."""
    kernel, groups = nodes(model, "FusedDepthwiseConv2dNative")[1]["input"][1], model["weightsManifest"]
    (weight,) = [weight for group in groups for weight in group["weights"] if weight["name"] == kernel]
    groups.append({"paths": [], "weights": [{**weight, "shape": [0, 0, 2**24, 1]}]})
    weight["name"] = "other"


def with_a_shard_twice(model):
    """A small file could stand for any number of bytes."""
    said = {"name": "extra", "shape": [2], "dtype": "int32"}
    model["weightsManifest"].append({"paths": ["extra.bin"] * 2, "weights": [said]})


def of_keras(model):
    model["format"] = "layers-model"


@pytest.mark.parametrize(
    "change, message",
    [
        (without_a_block, r"no whole lite0:\n  missing: 006_conv_shortcut|missing: \d+_conv_shortcut/kernel"),
        (with_strides, r"missing: 004_depthwise_stride2_relu6/kernel \(near: 004_depthwise_relu6/kernel\)"),
        (with_relu, "does BiasAdd and Relu as well"),
        (without_activation, r"missing: 000_conv_stride2_relu6/kernel \(near: 000_conv_stride2/kernel\)"),
        (with_pool, "operations that no EfficientNet has: MaxPool"),
        (with_padding, "pads its input by VALID"),
        (in_a_circle, "it runs in a circle"),
        (side_by_side, "lies beside another layer instead of after it"),
        (without_a_constant, "no graph model, or damaged"),
        (with_another_number, "unexpected: extra/extra"),
        (with_two_classifiers, r"unexpected: \d+_dense/kernel"),
        (with_an_empty_kernel, r"is empty: \[0, 0, 16777216, 1\]"),
        (with_a_shard_twice, "a group has a shard twice"),
        (of_keras, "layers model, which is Keras' own: give the file of Keras"),
        (lambda model: model["modelTopology"]["node"].clear(), "it has no convolution"),
        (lambda model: model.pop("weightsManifest"), "no graph model, or damaged"),
        (lambda model: model["weightsManifest"][0]["weights"].pop(), "has no weights for|its weights have"),
        (lambda model: model["weightsManifest"][0]["weights"][0].update(dtype="string"), "of type string"),
        (lambda model: model["weightsManifest"][0]["weights"][0].update(shape=[-1, 2]), "cannot have the shape"),
        (lambda model: model["weightsManifest"][0]["weights"][0].update(shape=[True]), "cannot have the shape"),
        (lambda model: model["weightsManifest"][0]["weights"][0].update(shape=[10**9] * 3), "its weights have"),
    ],
)
def test_another_network_or_half_of_one(graphs, tmp_path, change, message):
    path = edited(graph_model.write(tmp_path / "m", graphs()), change)
    (tmp_path / "m" / "extra.bin").write_bytes(bytes(4))
    with pytest.raises(CheckpointError, match=message), open_checkpoint(path) as checkpoint:
        plan_port(checkpoint)


def test_another_variant_and_a_trunk_alone(graphs, tmp_path):
    path = graph_model.write(tmp_path / "m", graphs())
    with open_checkpoint(path) as checkpoint:
        with pytest.raises(CheckpointError, match="weights of lite0, not of b0"):
            plan_port(checkpoint, variant="b0")
        assert plan_port(checkpoint, notop=True).num_classes == 0
    with pytest.raises(CheckpointError, match="no graph model, or damaged"):
        open_checkpoint(edited(path, lambda model: model.clear()))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="no graph model, or damaged"):
        open_checkpoint(tmp_path / "deep.json")


def test_images_from_0_to_1(values, tmp_path):
    """What hub modules take: they multiply by 255 first."""
    graph = graph_model.make_graph(values("lite0"), "lite0", scaling="lite")
    graph.nodes[1:1] = [
        {"name": "times", "op": "Mul", "input": ["y", graph.nodes[0]["name"]]},
        {"name": "y", "op": "Const"},
    ]
    graph.constants["y"] = np.float32(255)
    graph.nodes[4]["input"][0] = "times"
    with open_checkpoint(graph_model.write(tmp_path / "m", graph)) as checkpoint:
        assert checkpoint.about.normalization("m") == "lite"


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_graphs(graphs, tmp_path, count):
    """An error, or the numbers that it held. Shards have no checksums, so that it is the graph which is damaged."""
    graph_model.write(tmp_path / "m", graphs())
    path, random, held = tmp_path / "m" / "model.json", np.random.default_rng(0), 0
    known, data = flatten(read(path)), path.read_bytes()
    for number in range(count):
        content = bytearray(data)
        for place in random.integers(len(data), size=random.integers(1, 4)):
            content[place] = random.integers(256) if number % 2 else random.choice(list(b'0123456789"[]{},:ae/_'))
        path.write_bytes(content[: random.integers(len(content))] if number % 10 == 0 else content)
        try:
            found = flatten(read(path))
        except CheckpointError:
            continue
        held += 1
        assert found.keys() == known.keys()
        for name, array in known.items():
            np.testing.assert_array_equal(found[name], array, err_msg=str((number, name)))
    assert held < count
