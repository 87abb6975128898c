import jax
import jax.numpy as jnp
import numpy as np
import pytest

from effnet_jax.model import convolutions


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
def test_depthwise_on_the_cpu_equals_the_native_convolution(kernel_size, stride, size):
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[0], (2, *size, 6))
    kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, 1, 6))
    native, native_gradient = jax.vjp(lambda x, k: convolutions.native_conv(x, k, stride, groups=6), inputs, kernel)
    ours, our_gradient = jax.vjp(lambda x, k: convolutions.depthwise_conv(x, k, stride), inputs, kernel)
    np.testing.assert_allclose(ours, native, rtol=1e-5, atol=1e-5)
    cotangent = jax.random.normal(keys[2], native.shape)
    for mine, theirs in zip(our_gradient(cotangent), native_gradient(cotangent), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_pointwise_on_the_cpu_equals_the_native_convolution():
    keys = jax.random.split(jax.random.key(0), 3)
    inputs, kernel = jax.random.normal(keys[0], (2, 5, 7, 6)), jax.random.normal(keys[1], (1, 1, 6, 4))
    native, native_gradient = jax.vjp(convolutions.native_conv, inputs, kernel)
    ours, our_gradient = jax.vjp(convolutions.pointwise_conv, inputs, kernel)
    np.testing.assert_allclose(ours, native, rtol=1e-5, atol=1e-5)
    cotangent = jax.random.normal(keys[2], native.shape)
    for mine, theirs in zip(our_gradient(cotangent), native_gradient(cotangent), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_accelerators_get_the_native_depthwise_convolution():
    arguments = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 1, 6))
    lowered = {
        platform: jax.jit(convolutions.depthwise_conv).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert "stablehlo.convolution" not in lowered["cpu"]
    assert "stablehlo.convolution" in lowered["tpu"]
    assert "stablehlo.convolution" in lowered["cuda"]


def test_same_padding_is_tensorflows():
    assert convolutions.same_padding(8, 3, 2) == (0, 1)
    assert convolutions.same_padding(7, 3, 2) == (1, 1)
    assert convolutions.same_padding(8, 5, 2) == (1, 2)
    assert convolutions.same_padding(7, 5, 1) == (2, 2)


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 2), (3, 1), (5, 2)])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
def test_full_convolution_on_the_cpu_equals_the_native_one(kernel_size, stride, size):
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[0], (2, *size, 3))
    kernel = jax.random.normal(keys[1], (kernel_size, kernel_size, 3, 4))
    native, native_gradient = jax.vjp(lambda x, k: convolutions.native_conv(x, k, stride), inputs, kernel)
    ours, our_gradient = jax.vjp(lambda x, k: convolutions.full_conv(x, k, stride), inputs, kernel)
    np.testing.assert_allclose(ours, native, rtol=1e-5, atol=1e-5)
    cotangent = jax.random.normal(keys[2], native.shape)
    for mine, theirs in zip(our_gradient(cotangent), native_gradient(cotangent), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
