import importlib.util

import jax
import pytest

from effnet_jax.tpu.chips import topology_devices


@pytest.fixture
def tpu_devices():
    """The chips of a v5e:2x2, to compile for; a test that needs them is skipped where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'effnet-jax[tpu]'")
    # JAX can keep such programs, and not read them again.
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield topology_devices("v5e:2x2")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
