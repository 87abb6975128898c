import jax
import jax.numpy as jnp
import pytest

from effnet_jax import create_model, summary
from effnet_jax.errors import EffnetError, VariantError
from effnet_jax.model.variants import VARIANTS
from tests.model.test_variants import COUNTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_totals_are_the_originals(variant):
    rows = summary.summarise(variant)
    assert (sum(row.parameters for row in rows), sum(row.statistics for row in rows)) == COUNTS[variant][:2]


# Multiply-accumulates as published: 407 M for lite0 and 0.39 G for b0 (Tan and Le 2019; README of lite/).
@pytest.mark.parametrize(("variant", "millions"), [("lite0", 407), ("lite4", 2640), ("b0", 390), ("b7", 37000)])
def test_multiply_accumulates_are_the_published(variant, millions):
    assert sum(row.macs for row in summary.summarise(variant)) / 1e6 == pytest.approx(millions, rel=0.06)


@pytest.mark.parametrize(("variant", "resolution"), [("b0", 75), ("lite1", 64)])
def test_shapes_are_the_models(variant, resolution):
    model = create_model(variant)
    images = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.uint8)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    ends = jax.eval_shape(lambda v, x: model.apply(v, x, method="endpoints"), variables, images)
    assert {row.name: (1, *row.shape) for row in summary.summarise(variant, resolution)} == {
        name: end.shape for name, end in ends.items()
    }


def test_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["summary", "lite0", "--num_classes", "10"])
    summary.main()
    printed = capsys.readouterr().out
    assert "block7a" in printed and "3,383,818" in printed


def test_mistakes():
    with pytest.raises(VariantError, match="'b1'"):
        summary.summarise("b11")
    with pytest.raises(EffnetError, match="num_classes=0"):
        summary.summarise("b0", num_classes=0)
