"""An EfficientNet in training mode in float64, written a second time in the plainest way: no modules, no own gradients.

What the package computes in float32 is compared with this. It takes the parameters' names and the variant's table from
the package and nothing else.
"""

import jax
import jax.numpy as jnp

from effnet_jax.model.variants import NORMALIZATIONS, Variant

EPSILON = 1e-3  # of batch norm


def windows(inputs, size, stride):
    """TensorFlow's SAME windows: [N, H, W, C] → [size * size, N, ceil(H / stride), ceil(W / stride), C]."""
    pads, outs = [], []
    for side in inputs.shape[1:3]:
        outs.append(-(-side // stride))
        total = max((outs[-1] - 1) * stride + size - side, 0)
        pads.append((total // 2, total - total // 2))
    padded = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
    reach = [(out - 1) * stride + 1 for out in outs]
    taps = [(u, v) for u in range(size) for v in range(size)]
    return jnp.stack([padded[:, u : u + reach[0] : stride, v : v + reach[1] : stride] for u, v in taps])


def full_conv(inputs, kernel, stride=1):
    size, _, channels, filters = kernel.shape
    if size == 1:
        return inputs @ kernel[0, 0]
    return jnp.einsum("tnhwi,tio->nhwo", windows(inputs, size, stride), kernel.reshape(-1, channels, filters))


def depthwise_conv(inputs, kernel, stride):
    size = kernel.shape[0]
    return jnp.einsum("tnhwc,tc->nhwc", windows(inputs, size, stride), kernel.reshape(size * size, -1))


def batch_norm(inputs, params):
    mean = inputs.mean((0, 1, 2))
    var = jnp.square(inputs - mean).mean((0, 1, 2))
    return (inputs - mean) / jnp.sqrt(var + EPSILON) * params["scale"] + params["bias"]


def swish(inputs):
    return inputs / (1.0 + jnp.exp(-inputs))


def squeeze_excite(inputs, reduce, expand):
    hidden = swish(inputs.mean((1, 2)) @ reduce["kernel"][0, 0] + reduce["bias"])
    gates = hidden @ expand["kernel"][0, 0] + expand["bias"]
    return inputs / (1.0 + jnp.exp(-gates))[:, None, None, :]


def train_logits(params, images, variant: Variant):
    """Logits [N, classes] with batch norm on the batch, no dropout and no stochastic depth.

    Args:
      params: float64, named as the package's.
      images: [N, H, W, 3], pixels 0..255, float64.
      variant: with squeeze-and-excite: not a lite one.
    """
    mean, deviation = NORMALIZATIONS["imagenet"]
    stem, top, classifier = params["stem"], params["top"], params["classifier"]
    outputs = full_conv((images - jnp.array(mean)) / jnp.array(deviation), stem["conv"]["kernel"], stride=2)
    outputs = swish(batch_norm(outputs, stem["bn"]))
    for block in variant.blocks:
        layer, inputs = params[block.name], outputs
        if block.expand_ratio != 1:
            outputs = swish(batch_norm(full_conv(outputs, layer["expand_conv"]["kernel"]), layer["expand_bn"]))
        outputs = depthwise_conv(outputs, layer["depthwise_conv"]["kernel"], block.stride)
        outputs = swish(batch_norm(outputs, layer["depthwise_bn"]))
        outputs = squeeze_excite(outputs, layer["se_reduce"], layer["se_expand"])
        outputs = batch_norm(full_conv(outputs, layer["project_conv"]["kernel"]), layer["project_bn"])
        outputs = outputs + inputs if block.skip else outputs
    outputs = swish(batch_norm(full_conv(outputs, top["conv"]["kernel"]), top["bn"]))
    return outputs.mean((1, 2)) @ classifier["kernel"] + classifier["bias"]


def cross_entropy(logits, targets):
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
