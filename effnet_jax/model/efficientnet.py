"""EfficientNet as a Flax Linen module: MBConv blocks between a stem, a top and a classifier.

Source: `efficientnet_model.py` in tensorflow/tpu, models/official/efficientnet; Tan and Le, "EfficientNet" (2019).
"""

import functools
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from effnet_jax.choices import DTYPES, LOWERINGS
from effnet_jax.errors import ConfigError, VariantError, nearest
from effnet_jax.model import by_kernels, layers
from effnet_jax.model.units import MBConv, Stem, Top
from effnet_jax.model.variants import NORMALIZATIONS, SURVIVAL_PROB, Variant, get_variant

POOLINGS = ("avg", "max", "none")

Units = bool | Collection[str]  # True: all units; False: none; else their names


class EfficientNet(nn.Module):
    """EfficientNet on images of pixels 0..255, uint8 or float, of any height and width. Make it with `create_model`.

    Called without further arguments it runs in inference mode: batch norm on stored statistics, no noise. In training:

        logits, updates = model.apply(variables, images, train=True, update_batch_norm=True, key=key,
                                      mutable=["batch_stats"])

    `train` and `update_batch_norm` take names of units instead of True, so that a frozen unit stays as in inference.

    Attributes: those of `create_model`.
    """

    variant: Variant
    num_classes: int = 1000
    include_top: bool = True
    pooling: str = "avg"
    normalization: str = "imagenet"
    dtype: Any = jnp.float32
    remat: Units = False
    dropout: float = 0.2
    survival_prob: float = SURVIVAL_PROB
    batch_norm_momentum: float = layers.BATCH_NORM_MOMENTUM
    batch_norm_axis: str | tuple[str, ...] | None = None
    batch_norm_groups: tuple[tuple[int, ...], ...] | None = None
    batch_norm_narrow_moments: bool = False
    lowering: str = "auto"
    folded: bool = False

    def setup(self) -> None:
        batch_norm = functools.partial(
            layers.BatchNorm,
            momentum=self.batch_norm_momentum,
            dtype=self.dtype,
            axis_name=self.batch_norm_axis,
            axis_groups=self.batch_norm_groups,
            native=self.lowering == "native",
            folded=self.folded,
        )
        conv = functools.partial(layers.Conv, dtype=self.dtype, native=self.lowering == "native")

        def kind(module: Any, unit: str) -> Any:
            # Computed again in the backward pass; `update_batch_norm` is not an array.
            return nn.remat(module, static_argnums=(2,)) if _includes(self.remat, unit) else module

        kernels = not self.folded and by_kernels.chosen(self.lowering, self.dtype, self.batch_norm_axis)
        self.stem = kind(Stem, "stem")(self.variant, self.normalization, batch_norm, conv, self.dtype, kernels)
        for block in self.variant.blocks:
            # The variant's rates belong to a deepest survival probability of 0.8; another one scales them.
            survival_prob = 1.0 - (1.0 - block.survival_prob) * (1.0 - self.survival_prob) / (1.0 - SURVIVAL_PROB)
            block_type = kind(MBConv, block.name)
            module = block_type(
                block,
                self.variant.lite,
                batch_norm,
                conv,
                survival_prob,
                self.dtype,
                self.batch_norm_narrow_moments,
                kernels,
            )
            setattr(self, block.name, module)
        self.top = kind(Top, "top")(self.variant, batch_norm, conv, kernels)
        if self.include_top:
            self.classifier = layers.Dense(self.num_classes)

    @property
    def units(self) -> tuple[str, ...]:
        """The units of this model, from the input to the output."""
        return self.variant.units if self.include_top else self.variant.units[:-1]

    def __call__(
        self, images: Array, *, train: Units = False, update_batch_norm: Units = False, key: Array | None = None
    ) -> Array:
        """Computes logits [N, classes] in float32; without top pooled features [N, C], or [N, h, w, C] unpooled.

        Args:
          images: [N, H, W, 3], 0..255, RGB.
          train: units where stochastic depth and dropout act; these need `key`.
          update_batch_norm: units whose batch norm uses and updates batch statistics.
          key: one random key, or N of them, one for each example.
        """
        outputs = self.run(images, train=train, update_batch_norm=update_batch_norm, key=key)
        return outputs if self.include_top else pool(outputs, self.pooling)

    def features(
        self, images: Array, *, train: Units = False, update_batch_norm: Units = False, key: Array | None = None
    ) -> Array:
        """Computes the trunk's output before pooling: [N, H/32, W/32, top]. Arguments as for a call."""
        return self.run(images, last="top", train=train, update_batch_norm=update_batch_norm, key=key)

    def endpoints(
        self,
        images: Array,
        *,
        units: Collection[str] | None = None,
        train: Units = False,
        update_batch_norm: Units = False,
        key: Array | None = None,
    ) -> dict[str, Array]:
        """Computes the outputs of units, by name.

        Args:
          images: as for a call.
          train: as for a call.
          update_batch_norm: as for a call.
          key: as for a call.
          units: whose; None: all. Those after the last of them are not run. `Variant.levels` has the last one of each
            stride, which detection and segmentation take.

        Raises:
          VariantError: no such unit.
        """
        asked = set(self.units if units is None else units)
        last = max((self._index(unit, 0) for unit in asked), default=-1)
        ends: dict[str, Array] = {}
        outputs = images
        for unit in self.units[: last + 1]:
            outputs = self.run(
                outputs, first=unit, last=unit, train=train, update_batch_norm=update_batch_norm, key=key
            )
            if unit in asked:
                ends[unit] = outputs
        return ends

    def run(
        self,
        inputs: Array,
        *,
        first: str | None = None,
        last: str | None = None,
        train: Units = False,
        update_batch_norm: Units = False,
        key: Array | None = None,
    ) -> Array:
        """Runs the units from `first` up to and with `last`.

        Args:
          inputs: what `first` takes: images, or the output of the unit before it. The classifier takes features
            [N, h, w, top], which it pools, or pooled ones [N, top].
          first: a unit; None is the stem.
          last: a unit; None is the last of this model.
          train: units where stochastic depth and dropout act; these need `key`.
          update_batch_norm: units whose batch norm uses and updates batch statistics.
          key: one random key, or N of them, one for each example.

        Raises:
          VariantError: no such unit, or `last` lies before `first`.
          ConfigError: noise asked for without a key.
        """
        start, stop = (self._index(unit, default) for unit, default in ((first, 0), (last, len(self.units) - 1)))
        if start > stop:
            raise VariantError(f"run(first={first!r}, last={last!r}): the last unit lies before the first; swap them")
        if inputs.ndim != 4 and not (self.units[start] == "classifier" and inputs.ndim == 2):
            raise ConfigError(
                f"{self.units[start]} takes a batch [N, height, width, channels], not an array of shape "
                f"{inputs.shape}; add a leading axis to a single image"
            )
        keys = _example_keys(key, inputs.shape[0])
        outputs = inputs
        for index, unit in enumerate(self.units[start : stop + 1], start):
            unit_keys = None
            if _includes(train, unit):
                if keys is None:
                    raise ConfigError(
                        f"train= needs key= for the noise of unit {unit!r}: pass key=jax.random.key(seed)"
                    )
                unit_keys = jax.vmap(functools.partial(jax.random.fold_in, data=index))(keys)
            outputs = self._run_unit(unit, outputs, _includes(update_batch_norm, unit), unit_keys)
        return outputs

    def _run_unit(self, unit: str, inputs: Array, update_batch_norm: bool, keys: Array | None) -> Array:
        if unit == "classifier":
            pooled = inputs if inputs.ndim == 2 else pool(inputs, self.pooling)  # [N, top]
            if keys is not None and self.dropout:
                pooled = layers.dropout(pooled, keys, self.dropout)
            return self.classifier(pooled)
        module = getattr(self, unit)
        if unit in ("stem", "top"):
            return module(inputs, update_batch_norm)
        return module(inputs, update_batch_norm, keys)

    def _index(self, unit: str | None, default: int) -> int:
        if unit is None:
            return default
        if unit not in self.units:
            raise VariantError(f"{self.variant.name} has no unit {unit!r}: {nearest(unit, self.units)}")
        return self.units.index(unit)


def pool(features: Array, pooling: str = "avg") -> Array:
    """Pools features [N, h, w, C] to [N, C] in float32; `"none"` returns them as they are."""
    if pooling == "none":
        return features
    if pooling == "max":
        return jnp.max(features, axis=(1, 2)).astype(jnp.float32)
    return jnp.mean(features, axis=(1, 2), dtype=jnp.float32)


def create_model(
    variant: str,
    *,
    num_classes: int = 1000,
    include_top: bool = True,
    pooling: str = "avg",
    normalization: str | None = None,
    dtype: str = "float32",
    remat: Units = False,
    dropout: float | None = None,
    survival_prob: float = SURVIVAL_PROB,
    batch_norm_momentum: float = layers.BATCH_NORM_MOMENTUM,
    batch_norm_axis: str | tuple[str, ...] | None = None,
    batch_norm_groups: tuple[tuple[int, ...], ...] | None = None,
    batch_norm_narrow_moments: bool = False,
    lowering: str = "auto",
    folded: bool = False,
) -> EfficientNet:
    """Makes an EfficientNet.

    Args:
      variant: `"b0"` … `"b8"`, `"l2"`, `"lite0"` … `"lite4"`.
      num_classes: outputs of the classifier.
      include_top: whether the model ends with the classifier; else with pooled features.
      pooling: `"avg"`, `"max"`, or without the classifier `"none"`.
      normalization: how pixels 0..255 are scaled: `"imagenet"`, `"advprop"`, `"lite"` or `"none"`. None: the
        variant's own, `"lite"` for the lite ones and `"imagenet"` for the others.
      dtype: of convolutions and activations: `"float32"` or `"bfloat16"`. Parameters, batch norm, pooling and logits
        are float32 in both.
      remat: units that are computed again in the backward pass instead of keeping their inner activations.
      dropout: rate before the classifier; None: the variant's.
      survival_prob: of the deepest block in stochastic depth; 1.0 turns it off.
      batch_norm_momentum: share of the old statistics kept at an update.
      batch_norm_axis: name or names of the mapped axes of devices that share batch statistics (`jax.shard_map`), or
        None.
      batch_norm_groups: device numbers of each group that shares them, or None for all together.
      batch_norm_narrow_moments: whether batch statistics of expansions too wide for a chip's own memory come from the
        moments of their inputs: less traffic on TPU, the same numbers up to rounding.
      lowering: `"platform"`: for each platform the form that XLA runs fastest there, with gradients of its own.
        `"auto"`: the same, but where a process computes on one CPU in float32, and has a C++ compiler, by kernels of
        this package: much faster, for this machine alone. `"kernels"`: by these in any case. `"native"`: XLA's own
        convolutions everywhere and nothing but JAX's own derivatives, so that `jax.jvp`, `jacfwd` and `hessian` work,
        and programs that know no more than plain operations can be made of it. Much slower on the CPU.
      folded: for inference with variables of `folding.fold_batch_norm`, whose convolutions have batch norm in them. The
        CPU's kernels fold by themselves, and are not used then.

    Returns:
      A Linen module; `model.init(key, images)` makes `{"params": …, "batch_stats": …}`.

    Raises:
      VariantError: an unknown variant or normalisation.
      ConfigError: a value that cannot work.
    """
    architecture = get_variant(variant)
    normalization = normalization or ("lite" if architecture.lite else "imagenet")
    if normalization not in NORMALIZATIONS:
        raise VariantError(f"there is no normalization {normalization!r}: {nearest(normalization, NORMALIZATIONS)}")
    if pooling not in POOLINGS:
        raise ConfigError(f"there is no pooling {pooling!r}: {nearest(pooling, POOLINGS)}")
    if include_top and pooling == "none":
        raise ConfigError("a classifier needs pooled features: pooling='none' goes with include_top=False")
    if _name_of(dtype) not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}: {nearest(str(dtype), DTYPES)} (float16 overflows in these networks)")
    if include_top and num_classes < 1:
        raise ConfigError(f"num_classes={num_classes}: a classifier needs at least 1; include_top=False has none")
    if lowering not in LOWERINGS:
        raise ConfigError(f"lowering={lowering!r}: {nearest(lowering, LOWERINGS)}")
    if folded and lowering == "kernels":
        raise ConfigError("lowering='kernels' folds batch norm by itself: leave out folded=True, or the lowering")
    dropout = architecture.dropout if dropout is None else dropout
    for name, value, low in (("dropout", dropout, 0.0), ("survival_prob", survival_prob, 0.05)):
        if not low <= value <= 1.0 or (name == "dropout" and value == 1.0):
            raise ConfigError(f"{name}={value} is a probability from {low} to {'below ' * (name == 'dropout')}1")
    return EfficientNet(
        variant=architecture,
        num_classes=num_classes,
        include_top=include_top,
        pooling=pooling,
        normalization=normalization,
        dtype=jnp.dtype(dtype),
        remat=remat if isinstance(remat, bool) else tuple(remat),
        dropout=dropout,
        survival_prob=survival_prob,
        batch_norm_momentum=batch_norm_momentum,
        batch_norm_axis=batch_norm_axis,
        batch_norm_groups=batch_norm_groups,
        batch_norm_narrow_moments=batch_norm_narrow_moments,
        lowering=lowering,
        folded=folded,
    )


def _name_of(dtype: Any) -> str:
    try:
        return str(jnp.dtype(dtype))
    except TypeError:  # a word that means none
        return str(dtype)


def _includes(units: Units, unit: str) -> bool:
    return units if isinstance(units, bool) else unit in units


def _example_keys(key: Array | None, count: int) -> Array | None:
    """One key for each example: [N] keys as they are, or the example's number folded into a single key."""
    if key is None or key.ndim == 1 and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))
