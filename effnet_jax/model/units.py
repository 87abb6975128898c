"""The units of the network: stem, blocks and top, each by XLA's forms or by the CPU's kernels.

Source: `efficientnet_model.py` in tensorflow/tpu, models/official/efficientnet.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from effnet_jax.model import by_kernels, layers
from effnet_jax.model.variants import NORMALIZATIONS, Block, Variant


def _activation(lite: bool) -> layers.Function:
    return nn.relu6 if lite else nn.swish


# Expansions of at least so many bytes do not stay on the chip: a quarter of a TPU v5e's on-chip memory.
_WIDE = 32 * 2**20


class Stem(nn.Module):
    """Normalisation of the pixels, a 3×3 convolution of stride 2, batch norm, activation."""

    variant: Variant
    normalization: str
    batch_norm: Any
    conv: Any
    dtype: Any
    kernels: bool = False

    @nn.compact
    def __call__(self, images: Array, update_batch_norm: bool = False) -> Array:
        mean, scale = NORMALIZATIONS[self.normalization]
        pixels = (images.astype(jnp.float32) - jnp.array(mean)) / jnp.array(scale)
        # [N, H, W, 3] → [N, H/2, W/2, stem]
        conv, batch_norm = self.conv(self.variant.stem_filters, 3, stride=2, name="conv"), self.batch_norm(name="bn")
        if self.kernels and not self.is_initializing():
            return by_kernels.convolution(pixels, conv, batch_norm, update_batch_norm, self.variant.lite)
        return batch_norm(conv(pixels), update_batch_norm, _activation(self.variant.lite))


class MBConv(nn.Module):
    """A mobile inverted bottleneck: expand, depthwise, squeeze-and-excite, project, and the input added."""

    block: Block
    lite: bool
    batch_norm: Any
    conv: Any
    survival_prob: float
    dtype: Any
    narrow_moments: bool = False
    kernels: bool = False

    @nn.compact
    def __call__(self, inputs: Array, update_batch_norm: bool = False, keys: Array | None = None) -> Array:
        block, parts, kept = self.block, self._parts(), None
        if block.skip and keys is not None and self.survival_prob < 1.0:
            kept = layers.survival(keys, self.survival_prob)
        if self.kernels and not self.is_initializing():
            return by_kernels.block(inputs, block, parts, update_batch_norm, self.lite, kept)
        outputs = self._branch(inputs, parts, update_batch_norm)
        if not block.skip:
            return outputs
        return (outputs if kept is None else layers.stochastic_depth(outputs, kept)) + inputs

    def _parts(self) -> by_kernels.Parts:
        """The layers of the branch, in their order."""
        block, conv, batch_norm, parts = self.block, self.conv, self.batch_norm, {}
        wide = block.expanded_filters
        if block.expand_ratio != 1:
            parts["expand_conv"] = conv(wide, name="expand_conv")
            parts["expand_bn"] = batch_norm(name="expand_bn")
        parts["depthwise_conv"] = conv(wide, block.kernel_size, block.stride, depthwise=True, name="depthwise_conv")
        parts["depthwise_bn"] = batch_norm(name="depthwise_bn")
        if block.se_filters:
            parts["se_reduce"] = layers.SqueezeExcite(block.se_filters, self.dtype, name="se_reduce")
            parts["se_expand"] = layers.SqueezeExcite(wide, self.dtype, name="se_expand")
        parts["project_conv"] = conv(block.out_filters, name="project_conv")
        parts["project_bn"] = batch_norm(name="project_bn")
        return parts

    def _branch(self, inputs: Array, parts: by_kernels.Parts, update_batch_norm: bool) -> Array:
        activation, outputs = _activation(self.lite), inputs
        if "expand_conv" in parts:  # [N, h, w, in] → [N, h, w, expanded]
            expand = parts["expand_conv"]
            outputs, source = expand(outputs), None
            if self.narrow_moments and update_batch_norm and outputs.nbytes >= _WIDE and not self.is_initializing():
                source = (inputs.astype(self.dtype), expand.weights(inputs.shape[-1])[0, 0])
            outputs = parts["expand_bn"](outputs, update_batch_norm, activation, source)
        # [N, h, w, expanded] → [N, h/stride, w/stride, expanded]
        outputs = parts["depthwise_bn"](parts["depthwise_conv"](outputs), update_batch_norm, activation)
        if "se_reduce" in parts:
            squeezed = jnp.mean(outputs, axis=(1, 2), dtype=jnp.float32)  # [N, expanded]
            gates = parts["se_expand"](nn.swish(parts["se_reduce"](squeezed)))
            outputs = outputs * nn.sigmoid(gates)[:, None, None, :]
        outputs = parts["project_conv"](outputs)  # → [N, h/stride, w/stride, out]
        return parts["project_bn"](outputs, update_batch_norm)


class Top(nn.Module):
    """The last 1×1 convolution, batch norm, activation: [N, h, w, C] → [N, h, w, top]."""

    variant: Variant
    batch_norm: Any
    conv: Any
    kernels: bool = False

    @nn.compact
    def __call__(self, inputs: Array, update_batch_norm: bool = False) -> Array:
        conv, batch_norm = self.conv(self.variant.top_filters, name="conv"), self.batch_norm(name="bn")
        if self.kernels and not self.is_initializing():
            return by_kernels.convolution(inputs, conv, batch_norm, update_batch_norm, self.variant.lite)
        return batch_norm(conv(inputs), update_batch_norm, _activation(self.variant.lite))
