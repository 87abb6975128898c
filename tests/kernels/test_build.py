"""Building the CPU's kernels, and doing without."""

import os
import shutil
import subprocess
import sys

import pytest

_TRY = """
import logging
logging.basicConfig()
import jax, jax.numpy as jnp
from effnet_jax import create_model
from effnet_jax.kernels.build import available

print(available())
model = create_model("b0")
images = jnp.zeros((1, 32, 32, 3))
variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), jax.eval_shape(model.init, jax.random.key(0), images))
print(jax.jit(lambda images: model.apply(variables, images, last="block1a", method="run"))(images).shape)
"""


def _tried(tmp_path, **settings):
    environment = {**os.environ, "EFFNET_JAX_CACHE": str(tmp_path / "cache"), **settings}
    return subprocess.run([sys.executable, "-c", _TRY], capture_output=True, text=True, env=environment)


def test_a_machine_without_a_compiler_does_without(tmp_path):
    done = _tried(tmp_path, PATH=str(tmp_path), CXX="")
    assert done.stdout.split("\n")[:2] == ["False", "(1, 16, 16, 16)"], done.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_a_compiler_that_fails_is_told_once(tmp_path):
    bad = tmp_path / "bad"
    bad.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    bad.chmod(0o755)
    first, second = (_tried(tmp_path, CXX=str(bad)) for _ in range(2))
    assert first.stdout.split("\n")[:2] == second.stdout.split("\n")[:2] == ["False", "(1, 16, 16, 16)"]
    assert "could not be built" in first.stderr and "could not be built" not in second.stderr
    (failure,) = (tmp_path / "cache" / "kernels").glob("*.failed")
    assert "it is broken" in failure.read_text()


def test_they_can_be_turned_off(tmp_path):
    done = _tried(tmp_path, EFFNET_JAX_KERNELS="0")
    assert done.stdout.split("\n")[:2] == ["False", "(1, 16, 16, 16)"], done.stderr


@pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler here")
def test_a_cache_that_cannot_be_written_does_not_stop_anything(tmp_path):
    (tmp_path / "cache").write_text("a file")
    done = _tried(tmp_path)
    assert done.stdout.split("\n")[:2] == ["False", "(1, 16, 16, 16)"], done.stderr
