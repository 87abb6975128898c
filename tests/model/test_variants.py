import gzip
import json

import pytest

from effnet_jax.errors import VariantError
from effnet_jax.model.variants import VARIANTS, get_family, get_variant, round_filters

# name: (parameters, statistics, trainable tensors, statistic tensors, blocks), 1000 classes; the original's counts.
COUNTS = {
    "b0": (5_288_548, 42_016, 213, 98, 16),
    "b1": (7_794_184, 62_048, 301, 138, 23),
    "b2": (9_109_994, 67_568, 301, 138, 23),
    "b3": (12_233_232, 87_296, 340, 156, 26),
    "b4": (19_341_616, 125_200, 418, 192, 32),
    "b5": (30_389_784, 172_736, 506, 232, 39),
    "b6": (43_040_704, 224_432, 584, 268, 45),
    "b7": (66_347_960, 310_720, 711, 326, 55),
    "b8": (87_413_142, 380_032, 789, 362, 61),
    "l2": (480_309_308, 1_090_688, 1134, 520, 88),
    "lite0": (4_652_008, 42_016, 149, 98, 16),
    "lite1": (5_416_680, 53_664, 194, 128, 21),
    "lite2": (6_092_072, 58_096, 194, 128, 21),
    "lite3": (8_197_096, 76_672, 221, 146, 24),
    "lite4": (13_006_568, 112_368, 275, 182, 30),
}


def test_every_variant_is_counted():
    assert set(COUNTS) == set(VARIANTS)


def original_table(shared, name):
    content = gzip.decompress((shared / "golden" / "variables.json.gz").read_bytes())
    return json.loads(content)["variants"][f"efficientnet-{name}"]


@pytest.mark.parametrize("name", VARIANTS)
def test_stages_blocks_and_rates_equal_the_originals(name, shared):
    table = original_table(shared, name)
    variant = VARIANTS[name]
    assert (variant.resolution, variant.dropout) == (table["resolution"], table["dropout_rate"])
    assert (variant.stem_filters, variant.top_filters) == (table["stem_filters"], table["head_filters"])
    assert len(variant.blocks) == len(table["blocks"])
    for block, original in zip(variant.blocks, table["blocks"], strict=True):
        ours = (block.in_filters, block.out_filters, block.expanded_filters, block.kernel_size, block.stride)
        assert ours == tuple(original[key] for key in ("in", "out", "expanded", "kernel", "stride"))
        assert (block.se_filters, block.skip) == (original["se"], original["skip"])
        assert block.name.startswith(f"block{original['stage'] + 1}")
        assert block.survival_prob == pytest.approx(original["survival_prob"], abs=1e-12)


def test_unit_names():
    units = VARIANTS["b0"].units
    assert units[:4] == ("stem", "block1a", "block2a", "block2b")
    assert units[-3:] == ("block7a", "top", "classifier")


def test_rounding_never_loses_more_than_a_tenth():
    assert [round_filters(filters, 1.1) for filters in (16, 24, 40)] == [16, 24, 48]
    assert round_filters(32, 4.3) == 136


def test_mistyped_names_get_the_nearest():
    with pytest.raises(VariantError, match="'lite0'"):
        get_variant("light0")
    with pytest.raises(VariantError, match="'noisy_student'"):
        get_family("noisystudent")
