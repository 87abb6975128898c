import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from effnet_jax import FreezePlan, create_model
from effnet_jax.errors import ConfigError, PatternError


@pytest.fixture(scope="module")
def params():
    return jax.eval_shape(create_model("b0").init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]


def test_patterns_name_whole_units():
    assert FreezePlan("b0", ("classifier",)).trained_units == ("classifier",)
    assert FreezePlan("b0", ("block7", "top")).trained_units == ("block7a", "top")
    assert FreezePlan("b0", ("classifier", "block2")).trained_units == ("block2a", "block2b", "classifier")
    assert FreezePlan("b0", ("block6d:",)).trained_units == ("block6d", "block7a", "top", "classifier")
    assert FreezePlan("b0", ("block6:",)).trained_units[0] == "block6a"
    assert FreezePlan("b0", ("block7:",)).trains_classifier and FreezePlan("b0", ("block7:",)).trains_trunk
    assert not FreezePlan("b0", ("classifier",)).trains_trunk and not FreezePlan("b0", ("top",)).trains_classifier
    assert FreezePlan("b0", "all").trained_units == FreezePlan("b0", ("stem:",)).trained_units


def test_the_cut_is_the_end_of_the_frozen_prefix():
    assert FreezePlan("b0", ("classifier",)).cut == "top"
    assert FreezePlan("b0", ("block6:",)).cut == "block5c"
    assert FreezePlan("b0", ("stem", "classifier")).cut is None
    assert FreezePlan("b0", ("block3a", "classifier")).cut == "block2b"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("block6a/expand_conv", "whole or not at all.*write 'block6a'"),
        ("block7a.project_bn", "write 'block7a'"),
        ("block8", "matches no unit"),
        ("clasifier", "'classifier'"),
        ("block6e:", "'block6"),
        ("", "matches no unit"),
        ("head", "choose from|did you mean"),
    ],
)
def test_patterns_that_name_no_unit_or_split_one(pattern, message):
    with pytest.raises(PatternError, match=message):
        FreezePlan("b0", (pattern,))


def test_nothing_to_train_and_unknown_modes():
    with pytest.raises(PatternError, match="nothing to train"):
        FreezePlan("b0", ())
    with pytest.raises(ConfigError, match="'frozen'"):
        FreezePlan("b0", ("all",), batch_norm="freeze")


def test_batch_norm_of_trained_units_is_still_unless_trained(params):
    frozen = traverse_util.flatten_dict(FreezePlan("b0", ("block6:",)).labels(params))
    assert {label for path, label in frozen.items() if path[1].endswith("bn")} == {"frozen"}
    assert frozen["block6a", "expand_conv", "kernel"] == "trained"
    assert frozen["block5c", "expand_conv", "kernel"] == "frozen"
    plan = FreezePlan("b0", ("block6:",), batch_norm="train")
    trained = traverse_util.flatten_dict(plan.labels(params))
    assert trained["block6a", "expand_bn", "scale"] == "trained"
    assert trained["block5c", "expand_bn", "scale"] == "frozen"
    assert plan.batch_norm_units == plan.trained_units == plan.stochastic_units


def test_split_and_merge_are_inverse_and_cover_everything(params):
    plan = FreezePlan("b0", ("block3", "top"), batch_norm="train")
    trained, frozen = plan.split(params)
    assert set(trained) == {"block3a", "block3b", "top"}
    assert jax.tree.structure(plan.merge(trained, frozen)) == jax.tree.structure(dict(params))
    assert len(jax.tree.leaves(trained)) + len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(params)) == 213


def test_the_original_decays_everything_but_batch_norm(params):
    plan = FreezePlan("b0", ("all",), batch_norm="train")
    assert sum(jax.tree.leaves(plan.decay_mask(params))) == 115
    assert sum(jax.tree.leaves(plan.decay_mask(params, biases=False))) == 115 - 33


def test_table_counts_every_parameter(params):
    plan = FreezePlan("b0", ("top", "classifier"))
    rows = {row["unit"]: row for row in plan.table(params)}
    assert sum(row["parameters"] for row in rows.values()) == 5_288_548
    assert rows["classifier"]["trained"] == 1_281_000
    assert rows["top"]["trained"] == 1280 * 320
    assert rows["block6a"]["trained"] == 0
    assert rows["top"]["batch_norm"] == "frozen"
    assert rows["classifier"]["batch_norm"] == ""
