"""EfficientNet as Flax's guides would write it, with `nn.Conv` and `nn.BatchNorm`: a peer to measure against.

Units have the names that this package gives them; the inner names are Flax's.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from effnet_jax.model.variants import Block, Variant


class PlainBlock(nn.Module):
    """Expand, depthwise, squeeze-and-excite, project: [N, h, w, in] → [N, h/stride, w/stride, out]."""

    block: Block
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        block, outputs = self.block, inputs

        def norm(values: jax.Array) -> jax.Array:
            return nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3, dtype=self.dtype)(values)

        if block.expand_ratio != 1:
            outputs = nn.swish(norm(nn.Conv(block.expanded_filters, (1, 1), use_bias=False, dtype=self.dtype)(outputs)))
        size, stride, wide = (block.kernel_size,) * 2, (block.stride,) * 2, block.expanded_filters
        outputs = nn.Conv(wide, size, stride, use_bias=False, feature_group_count=wide, dtype=self.dtype)(outputs)
        outputs = nn.swish(norm(outputs))
        if block.se_filters:
            gates = jnp.mean(outputs, (1, 2), keepdims=True)
            gates = nn.swish(nn.Conv(block.se_filters, (1, 1), dtype=self.dtype)(gates))
            outputs = outputs * nn.sigmoid(nn.Conv(wide, (1, 1), dtype=self.dtype)(gates))
        outputs = norm(nn.Conv(block.out_filters, (1, 1), use_bias=False, dtype=self.dtype)(outputs))
        return outputs + inputs if block.skip else outputs


class PlainEfficientNet(nn.Module):
    """The whole network without noise: images [N, H, W, 3], 0..255 → logits [N, classes].

    Attributes:
      variant: of the family with squeeze-and-excite.
      num_classes: outputs.
      dtype: of convolutions and activations.
    """

    variant: Variant
    num_classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        mean, deviation = jnp.array((0.485, 0.456, 0.406)) * 255, jnp.array((0.229, 0.224, 0.225)) * 255
        outputs = ((images.astype(jnp.float32) - mean) / deviation).astype(self.dtype)
        outputs = PlainConvolution(self.variant.stem_filters, 3, 2, self.dtype, name="stem")(outputs, train)
        for block in self.variant.blocks:
            outputs = PlainBlock(block, self.dtype, name=block.name)(outputs, train)
        outputs = PlainConvolution(self.variant.top_filters, 1, 1, self.dtype, name="top")(outputs, train)
        return nn.Dense(self.num_classes, name="classifier")(jnp.mean(outputs, (1, 2)).astype(jnp.float32))


class PlainConvolution(nn.Module):
    """Convolution, batch norm, swish."""

    filters: int
    kernel_size: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        size, stride = (self.kernel_size,) * 2, (self.stride,) * 2
        outputs = nn.Conv(self.filters, size, stride, use_bias=False, dtype=self.dtype)(inputs)
        return nn.swish(nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3, dtype=self.dtype)(outputs))
