"""Split expressions mean what they mean in tensorflow-datasets."""

import pytest

from effnet_jax.data.sources.splits import parse_split
from effnet_jax.errors import DataError

SIZES = {"train": 1013, "test": 37, "validation": 5}


@pytest.mark.parametrize(
    "expression",
    [
        "train",
        "train[:90%]",
        "train[90%:]",
        "train[:33.3%]",
        "train[-10%:]",
        "train[10%:-5%]",
        "train[:500]",
        "train[500:]",
        "train[-100:]",
        "train[5_00:6_00]",
        "train[10:20%]",
        "test[50%:]",
        "test[:50%]",
        "train + validation",
        "test[:5]+validation[2:]",
        "all",
    ],
)
def test_agrees_with_tensorflow_datasets(expression):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import splits as tfds_splits

    infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0) for name, size in SIZES.items()}
    theirs = tfds_splits.AbstractSplit.from_spec(expression).to_absolute(infos)
    expected = [(p.splitname, p.from_ or 0, SIZES[p.splitname] if p.to is None else p.to) for p in theirs]
    assert parse_split(expression, SIZES) == expected


def test_complementary_slices_share_nothing_and_miss_nothing():
    for size in range(1, 300):
        for percent in (1, 10, 33, 50, 66.6, 90):
            sizes = {"train": size}
            ends = []
            for expression in (f"train[:{percent}%]", f"train[{percent}%:]"):
                try:
                    ends += parse_split(expression, sizes)
                except DataError as error:  # rounding left nothing on this side
                    assert "holds no examples" in str(error)
            assert [index for _, start, stop in ends for index in range(start, stop)] == list(range(size))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("tran", "no split 'tran' .*did you mean 'train'"),
        ("train+valid", "no split 'valid' .*did you mean 'validation'"),
        ("val_10", "no split 'val_10' .*data.validation='train.90%:.'.*'' for none"),
        ("train[:90", "not a split expression"),
        ("train[90%]", "not a split expression"),
        ("train[:]", "not a split expression"),
        ("train[:x]", "not a split expression"),
        ("train[:1.5]", "not a split expression"),
        ("train[:120%]", "beyond 100 %"),
        ("train[:2000]", "beyond the split's 1,013 examples"),
        ("train[500:500]", "holds no examples"),
        ("all[:50%]", "'all' cannot be sliced"),
        ("", "not a split expression"),
    ],
)
def test_mistakes(expression, message):
    with pytest.raises(DataError, match=message):
        parse_split(expression, SIZES)
