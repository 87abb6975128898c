"""Every layout: one name a tensor, and values that come back as they were."""

import numpy as np
import pytest

from effnet_jax.model.variants import VARIANTS
from effnet_jax.weights import names
from effnet_jax.weights.layouts import LAYOUTS, layout_of


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_tensor_has_one_name_and_comes_back(layout, variant):
    rows = layout.table(VARIANTS[variant], 7)
    assert [row.tensor for row in rows] == list(names.table(VARIANTS[variant], 7))
    assert len({row.name for row in rows}) == len(rows)
    assert layout_of([row.name for row in rows]) is layout
    assert layout.classes_in({row.name: row.shape for row in rows}) == 7
    assert layout.classes_in({row.name: row.shape for row in rows[:-2]}) == 0
    for row in rows[:20]:
        value = np.arange(np.prod(row.tensor.shape), dtype=np.float32).reshape(row.tensor.shape)
        stored = row.encode(value)
        assert stored.shape == row.shape and np.array_equal(row.decode(stored), value)


def test_axes():
    depthwise, dense = ({name: each for name in LAYOUTS} for each in ("block2a/depthwise_conv", "classifier"))
    for name, path in depthwise.items():
        (row,) = (row for row in LAYOUTS[name].table(VARIANTS["b0"], 1000) if path in row.tensor.path)
        values = np.random.default_rng(0).random(row.shape)
        theirs = values[5, 0, 1, 2] if name in ("timm", "lukemelas") else values[1, 2, 5, 0]
        assert row.decode(values)[1, 2, 0, 5] == theirs
    for name, path in dense.items():
        row = next(row for row in LAYOUTS[name].table(VARIANTS["b0"], 1000) if f"{path}/kernel" in row.tensor.path)
        values = np.random.default_rng(0).random(row.shape)
        assert row.decode(values)[3, 4] == (values[4, 3] if name in ("timm", "lukemelas") else values[3, 4])
