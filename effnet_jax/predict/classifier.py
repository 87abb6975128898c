"""A model with its weights and its preprocessing, as a function from images to probabilities or to features."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax.data.view import EvaluationView
from effnet_jax.errors import ConfigError, DataError, WeightsError, nearest
from effnet_jax.model import by_kernels
from effnet_jax.model.efficientnet import EfficientNet, pool
from effnet_jax.model.folding import fold_batch_norm
from effnet_jax.predict.buckets import bucket_sizes, default_batch_size
from effnet_jax.predict.inputs import ImageLike, ViewedImages, is_one
from effnet_jax.predict.stream import Result, stream_batches
from effnet_jax.train.step.partition import make_partition
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.store import load_weights

TTA = ("", "flip")  # test-time augmentation: none, or the mean with the mirror image
ON_ERROR = ("raise", "entry")

Outputs = Callable[[Any, jax.Array], jax.Array]  # (variables, images [B, R, R, 3]) → float32 [B, …]


class _Predictor:
    """What classifying and extracting features have in common."""

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        resolution: int = 0,
        batch_size: int = 0,
        tta: str = "",
        workers: int = 0,
        devices: Sequence[jax.Device] | None = None,
        **settings: Any,
    ) -> None:
        if resolution < 0 or batch_size < 0 or workers < 0:
            raise ConfigError(
                f"resolution={resolution}, batch_size={batch_size}, workers={workers}: all count from 0 up"
            )
        if tta not in TTA:
            raise ConfigError(f"tta={tta!r}: {nearest(tta, TTA[1:])}")
        model, variables, metadata = load_weights(path, **settings)
        assert isinstance(model, EfficientNet)
        self.metadata: Metadata = dataclasses.replace(metadata, resolution=resolution or metadata.resolution)
        self._path = path
        self._check(path)
        # Of this process alone: others may classify other images, or none.
        partition = make_partition("pjit", jax.local_devices() if devices is None else devices)
        count = partition.mesh.size
        size = batch_size or default_batch_size(partition.platform, count, self.metadata.resolution)
        self.batch_sizes = bucket_sizes(size, count)
        if not by_kernels.chosen(model.lowering, model.dtype):  # which fold by themselves
            model, variables = model.clone(folded=True), fold_batch_norm(variables)
        outputs = self._outputs(model)
        step = partition.compile_rows(
            lambda variables, batch: (_with_mirrored(outputs) if tta else outputs)(variables, batch["image"])
        )
        self._variables = partition.place_state(variables)
        self._compute = lambda images: step(self._variables, partition.place_batch({"image": images}))
        self._workers = workers
        seen = self.metadata
        self._viewed = ViewedImages(EvaluationView(seen.resolution, seen.evaluation, seen.crop, seen.resize))

    width: int  # of a row of the outputs

    def _check(self, path: str | os.PathLike) -> None:
        """Raises WeightsError where the weights do not serve."""
        raise NotImplementedError

    def _outputs(self, model: EfficientNet) -> Outputs:
        raise NotImplementedError

    @property
    def batch_size(self) -> int:
        """Images that are computed at a time, by all devices together."""
        return self.batch_sizes[-1]

    def __call__(self, images: Iterable[ImageLike] | ImageLike) -> np.ndarray:
        """Computes the rows of all images at once.

        Args:
          images: paths, bytes of image files, open binary files, or arrays of [h, w, 3] with levels 0..255 in RGB, each
            of any size; also one array [N, h, w, 3], or one image.

        Returns:
          float32 [N, classes] or [N, features].

        Raises:
          DataError: an image that cannot be decoded, or an array of another shape or range.
          WeightsError: the model gives values that are no finite numbers.
        """
        rows = [result.values for result in self.stream(images) if result.values is not None]  # else it raises
        return np.stack(rows) if rows else np.empty((0, self.width), np.float32)

    def stream(self, images: Iterable[ImageLike] | ImageLike, *, on_error: str = "raise") -> Iterator[Result]:
        """Yields a result for each image, in order, without waiting for the last image: they may be endless.

        Decoding runs ahead of the devices, by at most five batches; with images that come slowly, one by one, take
        `batch_size=1`.

        Args:
          images: as of a call, drawn one by one in the caller's thread.
          on_error: of an image that cannot be read: `"raise"`, or `"entry"`: a result with `error` set.

        Raises:
          DataError: an image that cannot be read, after the results of those before it.
          WeightsError: the model gives values that are no finite numbers.
          ConfigError: another `on_error`.
        """
        if on_error not in ON_ERROR:
            raise ConfigError(f"on_error={on_error!r}: {nearest(on_error, ON_ERROR)}")
        return self._stream(images, on_error)

    def _stream(self, images: Any, on_error: str) -> Iterator[Result]:
        batches = stream_batches(
            [images] if is_one(images) else images,
            self._viewed,
            self._compute,
            self.batch_sizes,
            workers=self._workers,
        )
        with contextlib.closing(batches):  # type: ignore[type-var]
            for batch in batches:
                for result in batch:
                    if result.error and on_error == "raise":
                        raise DataError(result.error)
                    if result.values is not None and not np.isfinite(result.values).all():
                        raise WeightsError(
                            f"{self._path} gives values that are no finite numbers, as weights do whose training came "
                            "to a loss that was none: take them from an earlier checkpoint, or other weights"
                        )
                    yield result


class Classifier(_Predictor):
    """Images → probabilities. Made by `load_classifier`.

    Attributes:
      class_names: the name of each class; numbers where the weights dir has no names.
      metadata: what the weights dir says about itself, with the resolution that is used.
      batch_sizes: the sizes that are compiled, the largest last.
    """

    def _check(self, path: str | os.PathLike) -> None:
        if not self.metadata.num_classes:
            raise WeightsError(
                f"{path} has no classifier (it was ported with --notop): port it again without, train one with "
                "python -m effnet_jax.train, or take its features (--features, load_features)"
            )
        self.width = self.metadata.num_classes
        self.class_names = self.metadata.class_names or tuple(str(index) for index in range(self.width))

    def _outputs(self, model: EfficientNet) -> Outputs:
        temperature = self.metadata.temperature

        def probabilities(variables: Any, images: jax.Array) -> jax.Array:
            return jax.nn.softmax(jnp.asarray(model.apply(variables, images)) / temperature)

        return probabilities


class FeatureExtractor(_Predictor):
    """Images → the pooled features that a classifier takes. Made by `load_features`.

    Attributes:
      metadata: what the weights dir says about itself, with the resolution that is used.
      batch_sizes: the sizes that are compiled, the largest last.
      width: how many features an image has.
    """

    def _check(self, path: str | os.PathLike) -> None:
        pass  # a classifier is not needed

    def _outputs(self, model: EfficientNet) -> Outputs:
        self.width = model.variant.top_filters

        def features(variables: Any, images: jax.Array) -> jax.Array:
            return pool(jnp.asarray(model.apply(variables, images, last="top", method="run")))

        return features


def _with_mirrored(outputs: Outputs) -> Outputs:
    """The mean of what comes of images and of their mirror images."""

    def mean(variables: Any, images: jax.Array) -> jax.Array:
        both = outputs(variables, jnp.concatenate([images, images[:, :, ::-1]]))
        return (both[: images.shape[0]] + both[images.shape[0] :]) / 2

    return mean


def load_classifier(
    path: str | os.PathLike,
    *,
    resolution: int = 0,
    batch_size: int = 0,
    tta: str = "",
    workers: int = 0,
    devices: Sequence[jax.Device] | None = None,
    **settings: Any,
) -> Classifier:
    """Loads a weights dir as a function from images to probabilities.

    Args:
      path: the weights dir, or the name of published weights.
      resolution: side in pixels of what the model sees; 0: what its weights were made for.
      batch_size: the most images that are computed at a time, by all devices together; 0: by kind and number of the
        devices. Fewer images take a smaller batch, of 1, 4, 16, … a device; each size is compiled at its first use.
      tta: `"flip"`: the mean of the probabilities of each image and of its mirror image.
      workers: processes that decode, started anew by each call and each stream; 0: threads of this one.
      devices: of this process, to share each batch; None: all of them.
      settings: of the model, as `create_model` takes them: `dtype="bfloat16"`, …

    Returns:
      `classify(images)` -> probabilities [N, classes], `classify.stream(images)` -> one result after the other;
      `class_names` name the columns.

    Raises:
      WeightsError: no weights dir, a damaged one, or one without a classifier.
      ConfigError: a setting that cannot be.
    """
    return Classifier(
        path,
        resolution=resolution,
        batch_size=batch_size,
        tta=tta,
        workers=workers,
        devices=devices,
        **settings,
    )


def load_features(path: str | os.PathLike, **options: Any) -> FeatureExtractor:
    """Loads a weights dir, with a classifier or without, as a function from images to pooled features [N, C].

    Args:
      path: the weights dir, or the name of published weights.
      options: as of `load_classifier`; with `tta="flip"` features are averaged.

    Raises:
      WeightsError: no weights dir, or a damaged one.
      ConfigError: a setting that cannot be.
    """
    return FeatureExtractor(path, **options)


def predictions(probabilities: np.ndarray, class_names: Sequence[str], top: int) -> list[dict[str, Any]]:
    """Returns the likeliest classes of one image, the likeliest first.

    Args:
      probabilities: float32 [classes].
      class_names: one for each.
      top: how many to return.
    """
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [
        {"class": class_names[index], "index": int(index), "probability": round(float(probabilities[index]), 6)}
        for index in order
    ]
