"""Batch norm folded into the convolutions: the same answers, and no way to train what has no statistics."""

import jax
import numpy as np
import pytest

from effnet_jax.errors import ConfigError
from effnet_jax.model.efficientnet import create_model
from effnet_jax.model.folding import fold_batch_norm
from effnet_jax.trees import flatten
from tests import synthetic


@pytest.mark.parametrize(("variant", "lowering"), [("b0", "platform"), ("lite0", "platform"), ("lite0", "native")])
def test_folded_gives_the_same_probabilities_and_features(variant, lowering):
    variables = synthetic.variables(variant)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    plain, folded = (create_model(variant, lowering=lowering, folded=fold) for fold in (False, True))
    expected, found = (
        jax.jit(lambda v, x, m=model: (jax.nn.softmax(m.apply(v, x)), m.apply(v, x, method="features")))(values, images)
        for model, values in ((plain, variables), (folded, fold_batch_norm(variables)))
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
    assert np.linalg.norm(found[1] - expected[1]) <= 1e-5 * np.linalg.norm(expected[1])


def test_a_folded_model_has_the_folded_tree_and_leaves_the_original_alone():
    variables = synthetic.variables("lite0")
    before = {name: leaf.copy() for name, leaf in flatten(variables).items()}
    folded = fold_batch_norm(variables)
    model = create_model("lite0", folded=True)
    wanted = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    assert {name: leaf.shape for name, leaf in flatten(folded).items()} == {
        name: leaf.shape for name, leaf in flatten(wanted).items()
    }
    assert all((leaf == before[name]).all() for name, leaf in flatten(variables).items())


def test_what_is_folded_is_not_trained():
    model = create_model("lite0", folded=True)
    images = np.zeros((1, 32, 32, 3), np.float32)
    with pytest.raises(ConfigError, match="has no statistics that a batch could update"):
        jax.eval_shape(
            lambda v: model.apply(v, images, update_batch_norm=True, mutable=["batch_stats"]),
            fold_batch_norm(synthetic.variables("lite0")),
        )
    with pytest.raises(ConfigError, match="folds batch norm by itself"):
        create_model("lite0", folded=True, lowering="kernels")
