"""The table of names: all tensors of all variants, in the original's order."""

import gzip
import json

import numpy as np
import pytest

from effnet_jax.model.variants import VARIANTS
from effnet_jax.weights import names
from effnet_jax.weights.tensor_bundle import read_index


@pytest.mark.parametrize("name", VARIANTS)
def test_every_name_shape_and_order_of_the_original(name, shared):
    with gzip.open(shared / "golden" / "variables.json.gz") as file:
        original = json.load(file)["variants"][f"efficientnet-{name}"]["variables"]
    rows = names.table(VARIANTS[name])
    assert [(f"efficientnet-{name}/{row.tf_name}", list(row.tf_shape)) for row in rows] == [
        (variable, shape) for variable, shape, _ in original
    ]
    assert [row.path.startswith("params/") for row in rows] == [trainable for *_, trainable in original]


def test_every_entry_of_a_published_index_is_accounted_for(golden):
    entries = read_index(golden / "real_index" / "model.ckpt.index").entries
    assert names.model_prefixes(entries) == ["efficientnet-b0/"]
    rows = {row.tf_name: row for row in names.table(VARIANTS["b0"])}
    raw, averaged, skipped = set(), set(), []
    for name, entry in entries.items():
        if names.is_bookkeeping(name):
            skipped.append(name)
            continue
        known = names.canonical(name.removesuffix(names.EMA_ENDING), "efficientnet-b0/")
        assert entry.shape == rows[known].tf_shape, name
        (averaged if name.endswith(names.EMA_ENDING) else raw).add(known)
    assert raw == averaged == rows.keys()
    assert skipped == ["global_step"]


def test_no_two_variants_have_the_same_tensors():
    tables = {tuple((row.tf_name, row.tf_shape) for row in names.table(variant, 0)) for variant in VARIANTS.values()}
    assert len(tables) == len(VARIANTS)


def test_layouts():
    rows = {row.path: row for row in names.table(VARIANTS["b0"])}
    depthwise = rows["params/block2a/depthwise_conv/kernel"]
    assert (depthwise.tf_shape, depthwise.shape, depthwise.torch_shape) == ((3, 3, 96, 1), (3, 3, 1, 96), (96, 1, 3, 3))
    values = np.arange(3 * 3 * 96, dtype=np.float32).reshape(3, 3, 96, 1)
    assert depthwise.from_tf(values)[1, 2, 0, 5] == values[1, 2, 5, 0]
    assert depthwise.from_torch(values.transpose(2, 3, 0, 1))[1, 2, 0, 5] == values[1, 2, 5, 0]
    dense = rows["params/classifier/kernel"]
    assert (dense.tf_shape, dense.torch_shape) == ((1280, 1000), (1000, 1280))
    conv = rows["params/stem/conv/kernel"]
    assert conv.torch_shape == (32, 3, 3, 3)
    values = np.random.default_rng(0).random(conv.torch_shape)
    assert conv.from_torch(values)[0, 2, 1, 7] == values[7, 1, 0, 2]


@pytest.mark.parametrize(
    "name, prefix, expected",
    [
        ("efficientnet-b0/blocks_3/conv2d_1/kernel", "efficientnet-b0/", "blocks_3/conv2d_1/kernel"),
        ("a/b/stem/batch_normalization/gamma", "a/b/", "stem/tpu_batch_normalization/gamma"),
        ("blocks_0/batch_normalization_1/beta", "", "blocks_0/tpu_batch_normalization_1/beta"),
        ("head/tpu_batch_normalization/beta", "", "head/tpu_batch_normalization/beta"),
        ("other/head/dense/bias", "efficientnet-b0/", None),
        ("efficientnet-b0/something", "efficientnet-b0/", None),
    ],
)
def test_canonical_names(name, prefix, expected):
    assert names.canonical(name, prefix) == expected
