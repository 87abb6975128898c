"""Sets that tensorflow-datasets has prepared as ArrayRecord, read without TensorFlow.

A prepared set is a folder `data_dir/name[/config]/version` with `dataset_info.json`, `features.json` and the records.
Sets of small images (`base.SMALL_SIDE`) are decoded when they are opened and stay in memory.
"""

import contextlib
import dataclasses
import os
import re
from typing import Any

import numpy as np

from effnet_jax.data.sources.base import SMALL_SIDE, EncodedSource, Read, Source, expand
from effnet_jax.data.sources.dataset import Dataset
from effnet_jax.data.sources.small import in_memory
from effnet_jax.data.sources.splits import parse_split
from effnet_jax.errors import DataError, nearest

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def default_data_dir() -> str:
    """Where tensorflow-datasets keeps prepared sets when nothing is said."""
    return os.environ.get("TFDS_DATA_DIR") or os.path.join(os.path.expanduser("~"), "tensorflow_datasets")


def find_prepared(name: str, data_dir: str = "") -> str:
    """Finds the folder of a prepared set.

    Args:
      name: as tensorflow-datasets writes it: `cifar100`, `cifar100:3.0.2`, `set/config`, `set/config:1.0.0`; without a
        version the newest is taken.
      data_dir: where prepared sets are; "" for `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
      The folder that holds `dataset_info.json`.

    Raises:
      DataError: it is not there; with the command that prepares it.
    """
    from etils import epath  # reads gs:// too; only this kind of source needs it

    base = epath.Path(expand(data_dir) if data_dir else default_data_dir())
    stem, _, version = name.partition(":")
    root = base / stem
    folders = prepared_below(root)
    if version:
        folders = [folder for folder in folders if os.path.basename(folder) == version]
    if not folders:
        near = [entry.name for entry in base.iterdir() if entry.is_dir()] if base.exists() else []
        hint = f" That folder holds {', '.join(sorted(near))}: {nearest(stem, sorted(near))}." if near else ""
        hint += f" A set of Hugging Face's hub is hf://{stem}" if "/" in stem else ""
        raise DataError(
            f"{base} does not hold the set {name!r} prepared by tensorflow-datasets. Prepare it with "
            f"`python -m effnet_jax.prepare {stem} --data_dir={base}`, or set data.data_dir to where it is.{hint}"
        )
    configs = sorted({os.path.dirname(folder) for folder in folders})
    if len(configs) > 1:
        names = [f"{stem}/{os.path.basename(config)}" for config in configs]
        raise DataError(f"{root} holds several configurations: name one of {', '.join(names)}")
    return max(folders, key=lambda folder: tuple(int(part) for part in os.path.basename(folder).split(".")))


def prepared_below(root: Any) -> list[str]:
    """Folders of prepared sets at `root`, `root/version` or `root/config/version`."""
    from etils import epath

    root = epath.Path(root)
    if (root / "dataset_info.json").exists():
        return [os.fspath(root)]
    found = []
    for first in _folders(root):
        inner = [first] if _VERSION.fullmatch(first.name) else _folders(first)
        found += [
            os.fspath(place)
            for place in inner
            if _VERSION.fullmatch(place.name) and (place / "dataset_info.json").exists()
        ]
    return found


def _folders(folder: Any) -> list[Any]:
    """The folders in a folder that holds nothing else but a few files, as those of prepared sets do.

    A class of a million images is left at its first ones; what cannot be listed is none.
    """
    found, others = [], 0
    try:
        with contextlib.closing(os.scandir(folder) if "://" not in os.fspath(folder) else folder.iterdir()) as entries:
            for entry in entries:
                if entry.is_dir():
                    found.append(folder / entry.name)
                else:
                    others += 1
                if others > 20:
                    return []
    except OSError:
        return []
    return sorted(found)


@dataclasses.dataclass
class PreparedRecords:
    """Records of one split expression: serialized `tf.train.Example`s by position.

    Attributes:
      data: array_record's data source; it pickles by its file names.
      name: what messages call them.
      image_key: of the image's bytes in an example.
      label_key: of its class.
      id_key: of its name, if it has one.
      in_bulk: many at once, by threads that array_record starts for it. From a bucket they hide its delay; on a disk
        they cost three times what reading one after the other does.
    """

    data: Any
    name: str
    image_key: str
    label_key: str
    id_key: str | None
    in_bulk: bool = False

    def __len__(self) -> int:
        return len(self.data)

    def id(self, index: int) -> str:
        """The position of one record, which is there also where the record is damaged."""
        return f"{self.name}/{index}"

    def read_many(self, positions: np.ndarray) -> list[Read]:
        """The encoded images, their labels and names."""
        indices = positions.tolist()
        if self.in_bulk and len(indices) > 1:
            with contextlib.suppress(Exception):  # one by one tells which of them it was
                records = self.data.__getitems__(indices)
                return [self._parse(record, index) for record, index in zip(records, indices, strict=True)]
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> Read:
        try:
            record = self.data[index]
        except Exception as error:  # array_record raises plain RuntimeErrors and ValueErrors for damaged files
            return DataError(f"{self.name}: record {index} cannot be read ({error}): copy the set again")
        return self._parse(record, index)

    def _parse(self, record: bytes, index: int) -> Read:
        from tensorflow_datasets.proto import tf_example_pb2  # 0.3 s to import, and only this kind needs it

        try:
            features = tf_example_pb2.Example.FromString(record).features.feature
            image = features[self.image_key].bytes_list.value[0]
            label = features[self.label_key].int64_list.value[0]
            ids = features[self.id_key].bytes_list.value if self.id_key else ()
        except Exception as error:  # the parser's own error type, or an index error where a field is empty
            return DataError(f"{self.name}: record {index} is damaged ({error}): prepare the set again")
        return image, label, ids[0].decode(errors="replace") if ids else f"{self.name}/{index}"


def open_prepared(folder: str, *, on_bad_image: str = "error") -> Dataset:
    """Opens a prepared set.

    Args:
      folder: what `find_prepared` returns.
      on_bad_image: `"error"` or `"skip"`.

    Returns:
      The data set; its sources are in memory where the images are small.

    Raises:
      DataError: another file format than ArrayRecord, no image or label; and when a split is opened, missing files.
    """
    import tensorflow_datasets as tfds  # 0.4 s to import, and only this kind needs it

    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # whatever its JSON readers raise
        raise DataError(f"{folder} is no set of tensorflow-datasets ({error}): prepare it again") from None
    info = builder.info
    form = getattr(info.file_format, "value", str(info.file_format))
    if form != "array_record":
        raise DataError(
            f"{folder} was prepared as {form}, which has no random access. Prepare it as array_record: `python "
            f"-m effnet_jax.prepare {info.name} --data_dir=DIR`, or convert it with `tfds convert_format "
            f"--dataset_dir={folder} --out_file_format=array_record --out_path=DIR`"
        )
    image_key, label_key = _keys(info, folder)
    feature = info.features[image_key]
    class_names = tuple(info.features[label_key].names or map(str, range(info.features[label_key].num_classes)))
    id_key = next((key for key in ("id", "file_name", "image/filename") if key in info.features), None)
    sizes = {name: split.num_examples for name, split in info.splits.items()}
    # What a set is follows from its images: a slice that is too large for the memory is small images all the same.
    small = None not in feature.shape and max(feature.shape[:2]) <= SMALL_SIDE
    shape = (*feature.shape[:2], 3) if small else None

    def split(expression: str) -> Source:
        parts = parse_split(expression, sizes, info.name)
        for name in {part[0] for part in parts}:
            for path in info.splits[name].filepaths:
                if not path.exists():
                    raise DataError(f"{path} is missing: copy or prepare {info.name} again")
        spec = "+".join(f"{name}[{start}:{stop}]" for name, start, stop in parts)
        data, name = builder.as_data_source(split=spec).data_source, f"{info.name} {expression}"
        records = PreparedRecords(data, name, image_key, label_key, id_key, in_bulk="://" in os.fspath(folder))
        return in_memory(EncodedSource(name, records, class_names, on_bad_image=on_bad_image, fixed_shape=shape))

    return Dataset(info.name, class_names, sizes, split)


def _keys(info: Any, folder: str) -> tuple[str, str]:
    features = info.features
    image, label = info.supervised_keys if len(info.supervised_keys or ()) == 2 else ("image", "label")
    kinds = {key: type(feature).__name__ for key, feature in features.items()} if hasattr(features, "items") else {}
    if kinds.get(image) != "Image" or kinds.get(label) != "ClassLabel":
        raise DataError(f"{folder} is no classification set: it needs an image and a class label, and has {kinds}")
    return image, label
