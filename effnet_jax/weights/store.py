"""Weights dirs: parameters and batch statistics of one model in orbax form, with `metadata.json`.

orbax restores a flipped bit without a word, so each leaf's CRC-32C is kept in the metadata and compared at reading.
"""

import dataclasses
import functools
import logging
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import google_crc32c
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from effnet_jax import files, hosts
from effnet_jax.errors import WeightsError
from effnet_jax.model.efficientnet import create_model
from effnet_jax.model.variants import get_variant
from effnet_jax.trees import flatten, nest
from effnet_jax.weights import names
from effnet_jax.weights.by_name import weights_dir
from effnet_jax.weights.metadata import METADATA_FILE, Metadata, check_output, cure_of, current_versions

Variables = dict[str, Any]

VARIABLES_FOLDER = "variables"


def write_weights(path: epath.PathLike, variables: Mapping[str, Any], metadata: Metadata) -> Metadata:
    """Writes a weights dir: whole, or not at all.

    In a run of several processes all of them call this with the same arguments, and the first one writes.

    Args:
      path: the folder to make; it must not exist.
      variables: `{"params": …, "batch_stats": …}` as nested mappings of arrays, sharded in any way.
      metadata: what they are. Its versions and checksums are filled in here.

    Returns:
      The metadata as it was written.

    Raises:
      DiskError: there is too little room.
      WeightsError: the folder exists, the arrays are not those of the variant, or it cannot be written.
    """
    with hosts.agree("the output is free"):
        place = check_output(path)
    leaves, metadata = _gathered(path, variables, metadata)
    with hosts.agree("the weights dir is written"):
        if hosts.is_first():
            _write(place, nest(leaves), metadata)
    return metadata


def write_weights_alone(path: epath.PathLike, variables: Mapping[str, Any], metadata: Metadata) -> Metadata:
    """`write_weights` by this process, whatever others do: each may fill a cache of its own. Not for sharded arrays."""
    place = check_output(path)
    leaves, metadata = _gathered(path, variables, metadata)
    _write(place, nest(leaves), metadata)
    return metadata


def _gathered(
    path: epath.PathLike, variables: Mapping[str, Any], metadata: Metadata
) -> tuple[dict[str, np.ndarray], Metadata]:
    """Returns whole arrays on this host by their paths, checked, and the metadata with their checksums."""
    leaves = {name: _to_host(leaf) for name, leaf in flatten(variables).items()}
    _check_shapes({name: leaf.shape for name, leaf in leaves.items()}, metadata, str(path))
    checksums = {name: _checksum(leaf) for name, leaf in leaves.items()}
    return leaves, dataclasses.replace(metadata, versions=current_versions(), checksums=checksums)


def _write(path: epath.Path, tree: Variables, metadata: Metadata) -> None:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    files.check_space(path, size, "the weights")
    try:
        with files.new_folder(path) as folder:
            with ocp.Checkpointer(array_handler(), multiprocessing_options=alone()) as checkpointer:
                checkpointer.save(folder / VARIABLES_FOLDER, args=ocp.args.PyTreeSave(tree))
            # Last: on a bucket, where nothing is renamed, it is what makes the folder a weights dir.
            files.write_bytes(folder / METADATA_FILE, metadata.to_json().encode())
    except Exception as error:
        if files.full_disk(error):
            raise WeightsError(
                f"cannot write {path}: no space left on the disk, and {size / 1e6:.0f} MB are needed; "
                "free some or write elsewhere (nothing was left behind)"
            ) from error
        if isinstance(error, OSError):
            raise WeightsError(f"cannot write {path}: {error.strerror or error} (nothing was left behind)") from error
        raise


def read_metadata(path: epath.PathLike) -> Metadata:
    """Reads what a weights dir says about itself, without its arrays.

    Args:
      path: of the weights dir, or the name of published weights (`by_name.weights_dir`).

    Raises:
      WeightsError: it is missing, no weights dir, damaged, or of a newer format.
    """
    path = weights_dir(path)
    file = path / METADATA_FILE
    try:
        return Metadata.from_json(file.read_text(encoding="utf-8"), file)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        port = f"port it first: python -m effnet_jax.port {path} OUT"
        raise WeightsError(f"{path} is a file, not a weights dir: {port}") from None
    except UnicodeDecodeError as error:
        raise WeightsError(f"{file} is damaged ({error}): {cure_of(path)}") from None
    if not path.exists():
        raise WeightsError(
            f"there is no weights dir {path}: check the path, or make one with python -m effnet_jax.port"
        )
    for inner in ("weights", "weights_ema"):
        if (path / inner / METADATA_FILE).exists():
            raise WeightsError(f"{path} is a run dir: its weights dir is {path / inner}")
    if (path / "config.json").exists() and files.visible(path / "checkpoints"):
        raise WeightsError(
            f"{path} is the run dir of a run that is not finished: finish it with the command that started it, or take "
            f"the weights of its newest checkpoint with python -m effnet_jax.export {path} OUT"
        )
    raise WeightsError(f"{path} is no weights dir (it has no {METADATA_FILE}): make one with python -m effnet_jax.port")


def read_weights(path: epath.PathLike) -> tuple[Variables, Metadata]:
    """Reads a weights dir; every leaf's checksum is verified.

    Args:
      path: the folder, or the name of published weights (`by_name.weights_dir`).

    Returns:
      `{"params": …, "batch_stats": …}` as nested dicts of NumPy arrays, and the metadata.

    Raises:
      WeightsError: it is missing, no weights dir, damaged (the message names the leaf), or of a newer format.
    """
    path = files.absolute(weights_dir(path))
    metadata = read_metadata(path)
    restore = cure_of(path)
    folder = path / VARIABLES_FOLDER
    if not folder.is_dir():
        raise WeightsError(f"{path} is damaged: {VARIABLES_FOLDER}/ is missing; {restore}")
    shapes = names.parameter_shapes(get_variant(metadata.variant), metadata.num_classes)
    if sorted(metadata.checksums) != sorted(shapes):
        raise WeightsError(f"{path} is damaged: its checksums are not those of {metadata.variant}; {restore}")
    try:
        with ocp.Checkpointer(array_handler(), multiprocessing_options=alone()) as checkpointer:
            args = nest(dict.fromkeys(shapes, ocp.RestoreArgs(restore_type=np.ndarray)))
            restored = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
        leaves = flatten(restored)
    except Exception as error:  # damage shows as nearly any exception of orbax, tensorstore or json
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path} is damaged ({reason}): {restore}") from error
    _check_shapes({name: np.shape(leaf) for name, leaf in leaves.items()}, metadata, str(path))
    for name, leaf in leaves.items():
        if _checksum(leaf) != metadata.checksums[name]:
            raise WeightsError(f"{path} is damaged: the checksum of {name} is wrong; {restore}")
    return nest(leaves), metadata


def load_weights(
    path: epath.PathLike, num_classes: int | None = None, *, new_classifier: bool = True, **settings: Any
) -> tuple[nn.Module, Variables, Metadata]:
    """Makes the model of a weights dir, with its values.

    Args:
      path: the weights dir, or the name of published weights: `noisy_student_b1`, `tf_efficientnet_b1.ns_jft_in1k`.
      num_classes: outputs that the classifier shall have; None: as stored.
      new_classifier: whether a classifier of another size than stored may be made, as training begins with
        (`fresh_classifier`). The metadata returned then has no class names.
      settings: of the model, as `create_model` takes them: `dtype="bfloat16"`, `lowering="native"`, …

    Returns:
      The model, `{"params": …, "batch_stats": …}` as NumPy arrays, and the metadata, which is that of the variables
      returned.

    Raises:
      WeightsError: no weights dir, or a damaged one; or another number of classes is asked for than it has, and
        `new_classifier` is False.
    """
    variables, metadata = read_weights(path)
    if num_classes is not None and num_classes != metadata.num_classes:
        if not new_classifier or num_classes < 1:
            stored = f"{metadata.num_classes} classes" if metadata.num_classes else "no classifier"
            raise WeightsError(
                f"{path} has {stored}, not {num_classes} classes: "
                "allow a new classifier (new_classifier=True), which has to be trained, or use other weights"
            )
        features = get_variant(metadata.variant).top_filters
        variables["params"]["classifier"] = fresh_classifier(features, num_classes)
        metadata = dataclasses.replace(metadata, num_classes=num_classes, class_names=())
    model = create_model(
        metadata.variant,
        # Without a classifier the number is not used.
        num_classes=metadata.num_classes or 1,
        include_top=metadata.num_classes > 0,
        normalization=metadata.normalization,
        **settings,
    )
    return model, variables, metadata


def fresh_classifier(features: int, classes: int) -> dict[str, np.ndarray]:
    """A classifier that says nothing yet: every class is as likely, the loss starts at log(classes).

    The original's initial kernel is made for training from scratch: over pretrained features, which are large, it
    starts at several times that loss, and a short head phase ends before it has unlearnt its noise.

    Args:
      features: that it takes.
      classes: that it tells apart.
    """
    return {"kernel": np.zeros((features, classes), np.float32), "bias": np.zeros(classes, np.float32)}


def array_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns what writes and reads trees of NumPy arrays, for weights dirs and for checkpoints of a run."""
    _say_errors_once()
    registry = ocp.type_handlers.create_type_handler_registry(
        # Nothing changes the arrays while they are written, so they need no second copy in memory.
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    # Compression would save an eighth of the disk and cost most of the time.
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        use_zarr3=True,
        use_compression=False,
        type_handler_registry=registry,
        multiprocessing_options=alone(),
    )


@functools.cache
def _say_errors_once() -> None:
    """Keeps orbax and tensorstore from telling each error of a save, which is raised, in thousands of lines besides."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax: every step of every save, tracebacks of each thread
    before = sys.unraisablehook

    def hook(told: Any) -> None:
        # Of arrays that are on their way when a save fails tensorstore's threads tell a loop that has ended meanwhile.
        if str(told.exc_value) != "Event loop is closed":
            before(told)

    sys.unraisablehook = hook


def alone() -> ocp.options.MultiprocessingOptions:
    """Returns what lets orbax work in this process alone: it then waits for no other, which may have failed."""
    return ocp.options.MultiprocessingOptions(primary_host=hosts.index(), active_processes={hosts.index()})


def _check_shapes(found: Mapping[str, tuple[int, ...]], metadata: Metadata, where: str) -> None:
    """Raises WeightsError unless the leaves are those of the variant."""
    expected = names.parameter_shapes(get_variant(metadata.variant), metadata.num_classes)
    what = f"{where}: the arrays are not those of {metadata.variant} with {metadata.num_classes} classes"
    if odd := sorted(expected.keys() ^ found.keys()):
        listed = ", ".join(f"{name} ({'missing' if name in expected else 'unexpected'})" for name in odd[:5])
        raise WeightsError(f"{what}: {listed}{' …' if len(odd) > 5 else ''}")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise WeightsError(f"{what}: {name} is {tuple(found[name])} instead of {shape}")


def _to_host(leaf: Any) -> np.ndarray:
    """Returns the whole of an array on this host, in C order."""
    whole = hosts.whole_array(leaf)
    return np.ascontiguousarray(whole).reshape(whole.shape)  # which has made a scalar a vector


def _checksum(leaf: np.ndarray) -> str:
    """Returns the CRC-32C of an array's bytes, little-endian in C order, as eight hex digits."""
    raw = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return f"{google_crc32c.value(raw):08x}"  # type: ignore[arg-type]
