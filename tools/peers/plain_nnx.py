"""EfficientNet in Flax NNX as jax-ml/bonsai writes its networks: `nnx.Conv`, `nnx.BatchNorm`, no more."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from effnet_jax.model.variants import Block, Variant


class _Convolution(nnx.Module):
    """Convolution, batch norm, and swish where asked for."""

    def __init__(self, channels: int, filters: int, size: int, stride: int, groups: int, dtype: Any, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            channels,
            filters,
            (size, size),
            (stride, stride),
            feature_group_count=groups,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(filters, momentum=0.99, epsilon=1e-3, dtype=dtype, rngs=rngs)

    def __call__(self, inputs: jax.Array, train: bool, activate: bool = True) -> jax.Array:
        outputs = self.norm(self.conv(inputs), use_running_average=not train)
        return nnx.swish(outputs) if activate else outputs


class _Block(nnx.Module):
    def __init__(self, block: Block, dtype: Any, rngs: nnx.Rngs):
        wide, self.skip = block.expanded_filters, block.skip
        self.expands = block.expand_ratio != 1
        if self.expands:
            self.expand = _Convolution(block.in_filters, wide, 1, 1, 1, dtype, rngs)
        self.depthwise = _Convolution(wide, wide, block.kernel_size, block.stride, wide, dtype, rngs)
        self.reduce = nnx.Conv(wide, block.se_filters, (1, 1), dtype=dtype, rngs=rngs)
        self.excite = nnx.Conv(block.se_filters, wide, (1, 1), dtype=dtype, rngs=rngs)
        self.project = _Convolution(wide, block.out_filters, 1, 1, 1, dtype, rngs)

    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        outputs = self.expand(inputs, train) if self.expands else inputs
        outputs = self.depthwise(outputs, train)
        gates = nnx.swish(self.reduce(jnp.mean(outputs, (1, 2), keepdims=True)))
        outputs = self.project(outputs * nnx.sigmoid(self.excite(gates)), train, activate=False)
        return outputs + inputs if self.skip else outputs


class NNXEfficientNet(nnx.Module):
    """The whole network without noise: images [N, H, W, 3], 0..255 → logits [N, 1000]."""

    def __init__(self, variant: Variant, dtype: Any, rngs: nnx.Rngs):
        self.names = tuple(block.name for block in variant.blocks)
        self.stem = _Convolution(3, variant.stem_filters, 3, 2, 1, dtype, rngs)
        for block in variant.blocks:
            setattr(self, block.name, _Block(block, dtype, rngs))
        self.top = _Convolution(variant.blocks[-1].out_filters, variant.top_filters, 1, 1, 1, dtype, rngs)
        self.classifier = nnx.Linear(variant.top_filters, 1000, rngs=rngs)

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        mean, deviation = jnp.array((0.485, 0.456, 0.406)) * 255, jnp.array((0.229, 0.224, 0.225)) * 255
        outputs = self.stem((images - mean) / deviation, train)
        for name in self.names:
            outputs = getattr(self, name)(outputs, train)
        outputs = self.top(outputs, train)
        return self.classifier(jnp.mean(outputs, (1, 2)).astype(jnp.float32))
