"""Data sets of any kind behind one interface, opened by `open_dataset`."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from effnet_jax.choices import ON_BAD_IMAGE
from effnet_jax.data.sources.arrays import open_npz
from effnet_jax.data.sources.base import Source, expand
from effnet_jax.data.sources.cifar import is_cifar_folder, open_cifar
from effnet_jax.data.sources.dataset import Dataset
from effnet_jax.data.sources.folder import open_folder
from effnet_jax.data.sources.hugging_face import is_hugging_face, open_hugging_face
from effnet_jax.data.sources.listing import Tell
from effnet_jax.data.sources.prepared import find_prepared, open_prepared, prepared_below
from effnet_jax.errors import ConfigError, DataError, nearest

ROLES = ("train", "validation", "test")

_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tar.xz")
_PREPARED_NAME = re.compile(r"[a-zA-Z]\w*(/[\w.-]+)?(:\d+\.\d+\.\d+)?")  # set[/config][:version]


def open_dataset(
    data: Mapping[str, Any],
    expressions: Sequence[str] | None = None,
    *,
    class_names: Sequence[str] = (),
    tell: Tell | None = None,
) -> Dataset:
    """Opens a data set.

    Args:
      data: the config's `data`: `name` (a tensorflow-datasets name; `hf://` and a hub id; or a path to an image folder,
        an `.npz`, a CIFAR archive or its unpacked folder, a set written by effnet_jax.prepare, a folder that
        Hugging Face's `save_to_disk` wrote, or parquet files), `data_dir` (where tensorflow-datasets' prepared sets
        are), `train`, `validation`, `test` (split expressions), `on_bad_image`.
      expressions: that will be asked for; None: those of `data`.
      class_names: an order of the classes to keep where they are the same, as an earlier start of a run had it.
      tell: hears of the images of a folder while they are listed: their number so far.

    Returns:
      The data set.

    Raises:
      DataError: it does not exist, or is not what it should be.
      ConfigError: an unknown value of `on_bad_image`.
    """
    on_bad_image = data.get("on_bad_image") or "error"
    if on_bad_image not in ON_BAD_IMAGE:
        raise ConfigError(f"data.on_bad_image is {on_bad_image!r}: {nearest(on_bad_image, ON_BAD_IMAGE)}")
    name, data_dir = str(data.get("name") or ""), str(data.get("data_dir") or "")
    if not name:
        raise DataError("data.name is empty: give a tensorflow-datasets name, or the path of a folder or file")
    if expressions is None:
        expressions = [str(data[role]) for role in ROLES if data.get(role)]
    path = expand(name)
    if is_hugging_face(name):
        return open_hugging_face(name, expressions, on_bad_image=on_bad_image)
    if data_dir and os.path.isdir(os.path.join(expand(data_dir), name.partition(":")[0])):
        return open_prepared(find_prepared(name, data_dir), on_bad_image=on_bad_image)
    if os.path.isdir(path):
        prepared = prepared_below(path)
        if len(prepared) > 1:
            raise DataError(f"{path} holds several prepared sets or versions: give one of {', '.join(prepared)}")
        if prepared:
            return open_prepared(prepared[0], on_bad_image=on_bad_image)
        if is_cifar_folder(path):
            return open_cifar(path)
        return open_folder(path, expressions, on_bad_image=on_bad_image, class_names=class_names, tell=tell)
    lower = path.lower()
    if lower.endswith(".npz"):
        return open_npz(path)
    if lower.endswith(_TAR_SUFFIXES):
        return open_cifar(path)
    if os.path.exists(path):
        raise DataError(f"{path} is neither a folder, an .npz nor a CIFAR archive: unpack it and give the folder")
    if not _PREPARED_NAME.fullmatch(name):
        raise DataError(f"{path}: there is no such file or folder: correct data.name; {_where_sought(path)}")
    return open_prepared(find_prepared(name, data_dir), on_bad_image=on_bad_image)


def open_source(data: Mapping[str, Any], split: str) -> Source:
    """Opens one split of a data set.

    Args:
      data: as of `open_dataset`.
      split: a role (`"train"`, `"validation"`, `"test"`: the expression that `data` gives it) or a split expression.

    Raises:
      DataError: the set or split does not exist, or is not what it should be.
      ConfigError: an unknown value of `on_bad_image`.
    """
    expression = str(data.get(split) or split) if split in ROLES else split
    return open_dataset(data, [expression]).split(expression)


def _where_sought(path: str) -> str:
    if not os.path.isabs(path):
        return f"it was looked for from {os.getcwd()}"
    folder = os.path.dirname(path)
    return f"{folder} {'exists' if os.path.isdir(folder) else 'does not exist either'}"
