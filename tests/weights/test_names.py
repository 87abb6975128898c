"""The table of tensors: all of all variants, in the original's order."""

import pytest

from effnet_jax.model.variants import VARIANTS
from effnet_jax.weights import names


def test_no_two_variants_have_the_same_tensors():
    assert len({names.table(variant, 0) for variant in VARIANTS.values()}) == len(VARIANTS)


@pytest.mark.parametrize(
    ("path", "unit", "layer", "leaf", "is_norm"),
    [
        ("params/stem/conv/kernel", "stem", "conv", "kernel", False),
        ("batch_stats/top/bn/var", "top", "bn", "var", True),
        ("params/block1a/se_reduce/bias", "block1a", "se_reduce", "bias", False),
        ("params/block2b/depthwise_bn/scale", "block2b", "depthwise_bn", "scale", True),
        ("params/classifier/kernel", "classifier", "classifier", "kernel", False),
    ],
)
def test_what_a_path_says(path, unit, layer, leaf, is_norm):
    row = next(row for row in names.table(VARIANTS["b0"]) if row.path == path)
    assert (row.unit, row.layer, row.leaf, row.is_norm) == (unit, layer, leaf, is_norm)


def test_places():
    places = names.places(VARIANTS["b0"])
    assert places["block2b"][:3] == (2, 1, 1) and places["block7a"][:3] == (15, 6, 0)
