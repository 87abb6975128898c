"""Reader of Keras' files: `.h5` of any age, `.weights.h5` and `.keras`. Nothing in them is executed.

A file names its arrays by layers (`weight_names` attributes, Keras 2 and whole models) or by their places in the model
(`layers/conv2d_3/vars/0`, Keras 3). Links to other files and arrays that unpack to many times the file are refused.
"""

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from effnet_jax.archives import ArchiveError, is_damage, most_unpacked
from effnet_jax.errors import CheckpointError
from effnet_jax.weights.about import About
from effnet_jax.weights.checkpoint import Checkpoint, Entry, needs

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_AGAIN = "save it again in Keras, or download it again"
_NORMALIZATION = re.compile(r"(layers/)?normalization(_\d+)?/((?P<named>mean|variance)|vars/(?P<number>[01]))")
# keras.applications' own files hold the standard deviation of ImageNet's channels where the layer expects a variance,
# and a second Rescaling layer of the network, which has no weights, makes up for it (tensorflow#49930).
_DEVIATION = (0.229, 0.224, 0.225)


class KerasFile(Checkpoint):
    """The arrays of a Keras file.

    Raises:
      CheckpointError: it is damaged, no file of Keras, or h5py is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        h5py = needs("h5py", path)
        self.source = path
        self.files = (path,)
        self._room = most_unpacked(path)
        config: Any = None
        try:
            content: Any = path
            if path.suffix == ".keras":
                content, config = self._unzip(path)
            file = h5py.File(content, "r")
            self.keep(file)
            if "model_config" in file.attrs:
                config = json.loads(file.attrs["model_config"])
            self._arrays = dict(_arrays(h5py, _root(h5py, file)))
            for name, array in self._arrays.items():
                if array.size * array.dtype.itemsize > self._room or array.is_virtual or array.external:
                    raise ArchiveError(f"{name} is not in the file, or many times its size")
            self.entries = {name: Entry(tuple(a.shape), a.dtype.name) for name, a in self._arrays.items()}
            self.about = About(scaling=self._scaling(config))
        except (CheckpointError, MemoryError):
            self.close()
            raise
        except Exception as error:  # h5py raises what its C library meets, as nearly any type
            self.close()
            if isinstance(error, OSError) and not is_damage(error):
                raise
            raise CheckpointError(f"{path} is no file of Keras, or damaged ({error}): {_AGAIN}") from None

    def _unzip(self, path: Path) -> tuple[io.BytesIO, Any]:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(_WEIGHTS).file_size + archive.getinfo(_CONFIG).file_size > self._room:
                raise ArchiveError("it unpacks to many times its size")
            return io.BytesIO(archive.read(_WEIGHTS)), json.loads(archive.read(_CONFIG))

    def read(self, name: str) -> np.ndarray:
        """Returns one array. The format has no checksums."""
        self._entry(name)
        try:
            return np.asarray(self._arrays[name][()])
        except Exception as error:
            raise CheckpointError(f"{self.source}: {name} is damaged ({error}): {_AGAIN}") from None

    def _scaling(self, config: Any) -> Any:
        """What the network does to pixels: its layers Rescaling, Normalization and, in some, another Rescaling."""
        found = {}
        for name in self.entries:
            if match := _NORMALIZATION.fullmatch(name):
                found[match["named"] or ("mean", "variance")[int(match["number"])]] = (
                    self.read(name).reshape(-1).tolist()
                )
        if found.keys() != {"mean", "variance"}:
            return None
        mean, variance = found["mean"], found["variance"]
        if len(mean) != 3 or len(variance) != 3 or not all(math.isfinite(v) and v >= 0 for v in (*mean, *variance)):
            raise CheckpointError(f"{self.source}: its normalization is not of three channels: {mean}, {variance}")
        scalings = list(_rescalings(config))
        after = scalings[1] if len(scalings) > 1 else [1.0] * 3
        if config is None and all(abs(a - b) < 1e-3 for a, b in zip(variance, _DEVIATION, strict=True)):
            after = [1 / math.sqrt(value) for value in _DEVIATION]
        first = scalings[0][0] if scalings else 1 / 255
        deviation = [math.sqrt(max(value, 1e-14)) for value in variance]
        return (
            tuple(value / first for value in mean),
            tuple(value / first / factor for value, factor in zip(deviation, after, strict=True)),
        )


def _root(h5py: Any, file: Any) -> Any:
    """Where the arrays are: in the file itself, or in a whole model's `model_weights`."""
    link = file.get("model_weights", getlink=True, default=None)
    if link is not None and not isinstance(link, h5py.HardLink):
        raise ArchiveError("model_weights is a link")
    return file if link is None else file["model_weights"]


def _arrays(h5py: Any, root: Any) -> Iterator[tuple[str, Any]]:
    """Yields name and array of all that is stored, by layers' names where the file has them."""

    def inside(group: Any, path: str) -> Any:
        """What lies at a path, no part of which is a link."""
        for part in path.split("/"):
            if not isinstance(group.get(part, getlink=True), h5py.HardLink):
                raise ArchiveError(f"{part} of {path} is a link, or missing")
            group = group[part]
        return group

    groups = {name: inside(root, name) for name in root if isinstance(root.get(name, getlink=True), h5py.HardLink)}
    named = {name: group for name, group in groups.items() if "weight_names" in group.attrs}
    for group in named.values():
        for stored in group.attrs["weight_names"]:
            full = stored.decode() if isinstance(stored, bytes) else str(stored)
            # A network within a network is a layer whose weights have their own layers' names.
            yield "/".join(full.partition(":")[0].split("/")[-2:]), inside(group, full)
    if named:
        return

    seen = {root.id}  # groups in one another would have no end

    def walk(group: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name in group:
            link = group.get(name, getlink=True)
            item = group[name] if isinstance(link, h5py.HardLink) else None
            if item is None or item.id in seen:
                raise ArchiveError(f"{path}{name} is a link")
            seen.add(item.id)
            if isinstance(item, h5py.Dataset):
                yield f"{path}{name}", item
            else:
                yield from walk(item, f"{path}{name}/")

    yield from walk(root, "")


def _rescalings(config: Any) -> Iterator[list[float]]:
    """Yields the factors of each Rescaling layer of a model's config, three each, in order."""
    if isinstance(config, Mapping):
        if config.get("class_name") == "Rescaling":
            scale = config.get("config", {}).get("scale", 1.0)
            values = [float(value) for value in (scale if isinstance(scale, list) else [scale] * 3)]
            yield values if len(values) == 3 else values[:1] * 3
            return
        for value in config.values():
            yield from _rescalings(value)
    elif isinstance(config, list):
        for value in config:
            yield from _rescalings(value)
