"""Preparing data before a run, so that a job on many hosts never downloads and reads few large files.

Sets that tensorflow-datasets knows are prepared by it, which needs TensorFlow and a network. Folders, archives and
tables are written in the same format (ArrayRecord with `dataset_info.json` and `features.json`), which needs neither.
"""

import collections
import concurrent.futures
import dataclasses
import importlib.util
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from effnet_jax import files
from effnet_jax.data.decode import decode_image
from effnet_jax.data.decoders import cores
from effnet_jax.data.sources import open_dataset
from effnet_jax.data.sources.base import ArraySource, Read, Source, expand
from effnet_jax.data.sources.listing import displayed
from effnet_jax.data.sources.prepared import default_data_dir
from effnet_jax.errors import DataError, nearest

VERSION = "1.0.0"
SHARD_BYTES = 2**28
_CHUNK = 256
_QUALITY = 95  # of JPEGs that are made smaller


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
    source: str,
    out: str,
    *,
    on_bad_image: str = "error",
    short_side: int = 0,
    splits: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[str, list[dict[str, str]]]:
    """Writes an image folder, `.npz`, CIFAR archive or set of Hugging Face as ArrayRecord.

    The result opens as `data.name = out`, and with `tensorflow_datasets.builder_from_directory` too. Files keep their
    bytes; arrays become PNG. Every image is decoded once, so that damaged ones are met here and not in a run.

    Args:
      source: what `sources.open_dataset` opens.
      out: the folder to make; it must not exist.
      on_bad_image: `"error"`, or `"skip"` to leave out what cannot be read.
      short_side: larger photographs become JPEGs of this shorter side in pixels, the right way up, larger arrays PNGs;
        0: none does.
      splits: which to write; by default all that there are.
      progress: called with split, examples done and examples in all.

    Returns:
      The folder, and what was left out: dicts of `id` and `error`.

    Raises:
      DataError: the source or a split of it cannot be read, or `out` exists; or class names that the format would
        change.
    """
    if not files.is_local(out):
        raise DataError(f"{out} is a bucket: prepare the set in a local folder, and copy that")
    out = os.fspath(files.as_path(out.rstrip(os.sep)))
    if os.path.exists(out):
        raise DataError(f"{out} exists: choose another folder, or remove it")
    name = re.sub(r"\W+", "_", os.path.basename(out)).strip("_").lower() or "images"
    bad: list[dict[str, str]] = []
    dataset = open_dataset({"name": source, "on_bad_image": on_bad_image}, splits or ["all"])
    _check_names(dataset.class_names, dataset.name)
    try:
        sources = {split: dataset.split(split) for split in splits or [s for s, size in dataset.sizes.items() if size]}
    except DataError as error:
        raise DataError(f"{error} (--splits=train,validation writes only those)") from None
    bad += [entry for opened in sources.values() for entry in opened.left_out]
    with files.new_folder(out) as partial:
        folder = os.path.join(partial, VERSION)
        os.makedirs(folder)
        written = [
            _write_split(folder, name, split, _Encoder(opened, expand(source), short_side), bad, progress)
            for split, opened in sources.items()
        ]
        _write_info(folder, name, os.path.basename(expand(source)), next(iter(sources.values())), written)
    return out, bad


def _check_names(names: Sequence[str], where: str) -> None:
    """Raises DataError where a file of a name a line would change the names of classes, and so their numbers."""
    for name, times in collections.Counter(names).items():
        if name != name.strip() or not name or len(name.splitlines()) != 1 or times > 1:
            raise DataError(
                f"{where} has a class {name!r}, which the format cannot hold: it keeps one name a line, without spaces "
                "around it, each once. Rename it"
            )


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """Gives the images of a source as they are written."""

    source: Source
    root: str
    short_side: int

    def at(self, positions: np.ndarray, pool: concurrent.futures.Executor) -> list[Read]:
        """Encoded images with labels and ids, checked by decoding them."""
        return list(pool.map(self._encoded, positions.tolist(), self.source.read_many(positions)))

    def _encoded(self, index: int, read: Read) -> Read:
        if isinstance(read, DataError):
            return read
        data, label, name = read
        try:
            if isinstance(self.source, ArraySource):
                return _saved(_shrunk(data, self.short_side), "PNG"), label, name
            data = _smaller(data, self.short_side, name)
        except DataError as error:
            return error
        # Of a file's path what lies below the root: split/class/file.
        below = name.removeprefix(displayed(os.path.join(self.root, "")))
        return data, label, below.replace(os.sep, "/")


def _smaller(data: bytes, short_side: int, name: str) -> bytes:
    """An image file with a shorter side of at most `short_side` pixels: itself where that holds, or where it is 0."""
    image = decode_image(data, name=name, min_side=2 * short_side)
    if not short_side or min(image.shape[:2]) <= short_side:
        return data
    return _saved(_shrunk(image, short_side), "JPEG", quality=_QUALITY)


def _shrunk(image: np.ndarray, short_side: int) -> Image.Image:
    height, width = image.shape[:2]
    if not short_side or min(height, width) <= short_side:
        return Image.fromarray(image)
    scale = short_side / min(height, width)
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)


def _saved(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _write_split(
    folder: str,
    name: str,
    split: str,
    encoder: _Encoder,
    bad: list[dict[str, str]],
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Any]:
    """Writes the shards of one split; returns its entry for `dataset_info.json`."""
    from array_record.python import array_record_module

    source, lengths, written = encoder.source, [], 0
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        shards = max(1, -(-_bytes_estimate(encoder, pool) // SHARD_BYTES))
        ends = [len(source) * shard // shards for shard in range(shards + 1)]
        for shard, (begin, end) in enumerate(itertools.pairwise(ends)):
            path = os.path.join(folder, f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}")
            writer, length = array_record_module.ArrayRecordWriter(path, "group_size:1"), 0
            try:
                for start in range(begin, end, _CHUNK):
                    positions = np.arange(start, min(start + _CHUNK, end))
                    for index, read in zip(positions.tolist(), encoder.at(positions, pool), strict=True):
                        if progress:
                            progress(split, index + 1, len(source))
                        if isinstance(read, DataError):
                            if source.on_bad_image != "skip":
                                raise read
                            bad.append({"id": source.example_id(index), "error": str(read)})
                            continue
                        writer.write(_serialized(*read))
                        written += len(read[0])
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


def _serialized(data: bytes, label: int, name: str) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(data)
    feature["label"].int64_list.value.append(label)
    feature["id"].bytes_list.value.append(name.encode())
    return example.SerializeToString()


def _bytes_estimate(encoder: _Encoder, pool: concurrent.futures.Executor) -> int:
    """Bytes of all images as they are written, told from some of them."""
    count = len(encoder.source)
    sample = encoder.at(np.arange(0, count, max(1, count // 100)), pool)
    sizes = [len(read[0]) for read in sample if not isinstance(read, DataError)]
    return count * sum(sizes) // max(1, len(sizes))


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
        "description": f"Written from {origin} by effnet_jax.prepare.",
        "fileFormat": "array_record",
        "splits": splits,
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
    }
    with open(os.path.join(folder, "dataset_info.json"), "w") as file:
        json.dump(info, file, indent=1)
