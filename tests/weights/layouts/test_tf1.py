"""TensorFlow's names: all tensors of all variants, in the original's order."""

import gzip
import json

import pytest

from effnet_jax.model.variants import VARIANTS
from effnet_jax.weights.layouts import LAYOUTS
from effnet_jax.weights.layouts.tf1 import EMA_ENDING, canonical, model_prefixes
from effnet_jax.weights.tensor_bundle import read_index

TABLE = LAYOUTS["tf1"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_name_shape_and_order_of_the_original(name, shared):
    with gzip.open(shared / "golden" / "variables.json.gz") as file:
        original = json.load(file)["variants"][f"efficientnet-{name}"]["variables"]
    rows = TABLE.table(VARIANTS[name], 1000)
    assert [(f"efficientnet-{name}/{row.name}", list(row.shape)) for row in rows] == [
        (variable, shape) for variable, shape, _ in original
    ]
    assert [row.tensor.path.startswith("params/") for row in rows] == [trainable for *_, trainable in original]


def test_every_entry_of_a_published_index_is_accounted_for(golden):
    entries = read_index(golden / "real_index" / "model.ckpt.index").entries
    assert model_prefixes(entries) == ["efficientnet-b0/"]
    rows = {row.name: row for row in TABLE.table(VARIANTS["b0"], 1000)}
    raw, averaged, skipped = set(), set(), []
    for name, entry in entries.items():
        if TABLE.is_bookkeeping(name):
            skipped.append(name)
            continue
        known = canonical(name.removesuffix(EMA_ENDING), "efficientnet-b0/")
        assert entry.shape == rows[known].shape, name
        (averaged if name.endswith(EMA_ENDING) else raw).add(known)
    assert raw == averaged == rows.keys()
    assert skipped == ["global_step"]


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
    assert canonical(name, prefix) == expected
