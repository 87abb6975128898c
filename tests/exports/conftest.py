"""Weights dirs of random values."""

import pytest

from tests import synthetic


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A function from a variant to a weights dir of it, made once."""
    made = {}

    def make(variant):
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp("weights") / variant
            synthetic.write_weights_dir(made[variant], variant)
        return made[variant]

    return make
