"""Preparing data before a run, so that a job on many hosts never downloads and reads few large files.

Sets that tensorflow-datasets knows are prepared by it, which needs TensorFlow and a network. Folders and archives are
written in the same format (ArrayRecord with `dataset_info.json` and `features.json`), which needs neither.
"""

import importlib.util
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from effnet_jax import files
from effnet_jax.data.decode import decode_image
from effnet_jax.data.sources import open_dataset
from effnet_jax.data.sources.base import ArraySource, Source, expand
from effnet_jax.data.sources.prepared import default_data_dir
from effnet_jax.errors import DataError, nearest

VERSION = "1.0.0"
SHARD_BYTES = 2**28


def prepare_named(name: str, data_dir: str = "") -> str:
    """Downloads and prepares a set that tensorflow-datasets knows, as ArrayRecord.

    Args:
      name: such as `cifar100`.
      data_dir: where prepared sets go; "" for `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
      The folder of the prepared set.

    Raises:
      DataError: TensorFlow is not installed, the name is unknown, or the download or preparation fails.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"preparing {name!r} needs TensorFlow and a network: `pip install 'effnet-jax[tensorflow]'` on some "
            "machine, prepare it there and copy the folder. A folder or archive that you have already needs neither: "
            "give its path and an output folder"
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=expand(data_dir or default_data_dir()), file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        raise DataError(f"tensorflow-datasets does not know {name!r}: {nearest(name, tfds.list_builders())}") from None
    except Exception as error:  # downloads, checksums, parsers of a thousand sets: all of it is outside this package
        raise DataError(f"{name!r} could not be prepared: {type(error).__name__}: {error}") from None
    return str(builder.data_dir)


def prepare_files(
    source: str, out: str, *, on_bad_image: str = "error", progress: Callable[[str, int, int], None] | None = None
) -> tuple[str, list[dict[str, str]]]:
    """Writes an image folder, `.npz` or CIFAR archive as ArrayRecord.

    The result opens as `data.name = out`, and with `tensorflow_datasets.builder_from_directory` too. Files keep their
    bytes; arrays become PNG. Every image is decoded once, so that damaged ones are met here and not in a run.

    Args:
      source: what `sources.open_dataset` opens by path.
      out: the folder to make; it must not exist.
      on_bad_image: `"error"`, or `"skip"` to leave out what cannot be decoded.
      progress: called with split, examples done and examples in all.

    Returns:
      The folder, and what was left out: dicts of `id` and `error`.

    Raises:
      DataError: the source cannot be read, or `out` exists.
    """
    if not files.is_local(out):
        raise DataError(f"{out} is a bucket: prepare the set in a local folder, and copy that")
    out = os.fspath(files.as_path(out.rstrip(os.sep)))
    if os.path.exists(out):
        raise DataError(f"{out} exists: choose another folder, or remove it")
    name = re.sub(r"\W+", "_", os.path.basename(out)).strip("_").lower() or "images"
    partial = f"{out}.partial-{os.getpid()}"
    folder = os.path.join(partial, VERSION)
    os.makedirs(folder)
    bad: list[dict[str, str]] = []
    try:
        dataset = open_dataset({"name": source}, ["all"])
        sources = {split: dataset.split(split) for split, size in dataset.sizes.items() if size}
        splits = [
            _write_split(folder, name, split, opened, on_bad_image, bad, progress) for split, opened in sources.items()
        ]
        _write_info(folder, name, os.path.basename(expand(source)), next(iter(sources.values())), splits)
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out, bad


def _write_split(
    folder: str,
    name: str,
    split: str,
    source: Source,
    on_bad_image: str,
    bad: list[dict[str, str]],
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Any]:
    """Writes the shards of one split; returns its entry for `dataset_info.json`."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    total = _bytes_estimate(source)
    shards = max(1, -(-total // SHARD_BYTES))
    ends = [len(source) * (shard + 1) // shards for shard in range(shards)]
    lengths, written, position = [], 0, 0
    examples = _examples(source)
    for shard, end in enumerate(ends):
        path = os.path.join(folder, f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}")
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
        length = 0
        try:
            while position < end:
                position += 1
                data, label, example_id = next(examples)
                if progress:
                    progress(split, position, len(source))
                try:
                    decode_image(data, name=example_id)
                except DataError as error:
                    if on_bad_image != "skip":
                        raise
                    bad.append({"id": example_id, "error": str(error)})
                    continue
                example = tf_example_pb2.Example()
                feature = example.features.feature
                feature["image"].bytes_list.value.append(data)
                feature["label"].int64_list.value.append(label)
                feature["id"].bytes_list.value.append(example_id.encode())
                writer.write(example.SerializeToString())
                written += len(data)
                length += 1
        finally:
            writer.close()
        lengths.append(str(length))
    return {
        "name": split,
        "numBytes": str(written),
        "shardLengths": lengths,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }


def _examples(source: Source) -> Iterator[tuple[bytes, int, str]]:
    for index in range(len(source)):
        if isinstance(source, ArraySource):
            buffer = io.BytesIO()
            Image.fromarray(source.images[index]).save(buffer, "PNG")
            yield buffer.getvalue(), int(source.labels[index]), source.example_id(index)
        else:
            data, label, path = source.encoded(index)
            # Of a file's path what lies below the root: split/class/file.
            yield data, label, "/".join(path.replace(os.sep, "/").split("/")[-3:])


def _bytes_estimate(source: Source) -> int:
    if isinstance(source, ArraySource):
        return source.images.nbytes
    sample = range(0, len(source), max(1, len(source) // 100))
    return len(source) * sum(len(source.encoded(index)[0]) for index in sample) // len(sample)


def _write_info(folder: str, name: str, origin: str, source: Source, splits: list[dict[str, Any]]) -> None:
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=source.fixed_shape or (None, None, 3)),
            "label": tfds.features.ClassLabel(names=list(source.class_names)),
            "id": tfds.features.Text(),
        }
    )
    features.save_config(folder)
    info = {
        "name": name,
        "version": VERSION,
        "description": f"Written from {origin} by tools/prepare_data.py.",
        "fileFormat": "array_record",
        "splits": splits,
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
    }
    with open(os.path.join(folder, "dataset_info.json"), "w") as file:
        json.dump(info, file, indent=1)
