"""Data sets of Hugging Face's `datasets`: a hub id, a folder that `save_to_disk` wrote, or parquet files.

`datasets` opens them (extra `hf`). Their images are then read from its memory-mapped Arrow files, by position, so that
worker processes need pyarrow alone. Nothing is executed: sets that are a script are not read by `datasets` any more.
"""

import bisect
import dataclasses
import functools
import io
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from effnet_jax.data.sources.arrays import named_classes
from effnet_jax.data.sources.base import SMALL_SIDE, EncodedSource, Read, Source, check_labels, expand
from effnet_jax.data.sources.dataset import Dataset
from effnet_jax.data.sources.labels_csv import LABELS
from effnet_jax.data.sources.listing import read_file
from effnet_jax.data.sources.small import in_memory
from effnet_jax.data.sources.splits import CALLED, called, parse_split, split_names
from effnet_jax.errors import DataError, in_brief

HUB = "hf://"
_ID = re.compile(r"(datasets/)?(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?(:(?P<config>[\w.+-]+))?")
_SAVED = ("dataset_dict.json", "state.json")
_IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "png")
_LABELS = ("label", "labels", "fine_label", *LABELS)
_SAMPLE, _LOOKED_AT = 64, 100_000  # images of which the sizes are looked at, to tell small ones from photographs


def is_hugging_face(name: str) -> bool:
    """Whether a name or path is a set of this kind."""
    if name.startswith(HUB) or name.lower().endswith(".parquet"):
        return True
    path = expand(name)
    if not os.path.isdir(path):
        return False
    return any(os.path.isfile(os.path.join(path, file)) for file in _SAVED) or bool(_parquet_files(path))


def _parquet_files(path: str) -> list[str]:
    """The parquet files of a folder of them: in the root, or in `data` as on the hub; none where there are images."""
    found = []
    for folder in (path, os.path.join(path, "data")):
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        found += [os.path.join(folder, name) for name in names if name.lower().endswith(".parquet")]
        # A file of embeddings or labels beside the folders of classes makes no table of them.
        others = [name for name in names if name[0] != "." and os.path.isdir(os.path.join(folder, name))]
        if folder == path and set(others) - {"data"}:
            return []
    return found


def open_hugging_face(name: str, expressions: Iterable[str] = ("all",), *, on_bad_image: str = "error") -> Dataset:
    """Opens a set of Hugging Face's `datasets`.

    Args:
      name: `hf://user/name`, with `@revision` and `:configuration` where there are several; the folder that
        `save_to_disk` wrote; or a parquet file, or a folder of them, named after their splits as on the hub.
      expressions: that will be asked for.
      on_bad_image: `"error"` or `"skip"`.

    Returns:
      The data set. Classes have the names of the set's features, else those of the labels themselves.

    Raises:
      DataError: `datasets` is not installed; the set is not there, cannot be fetched or is damaged; or has no column of
        images or of labels.
    """
    splits = _load(name)
    asked = {name for expression in expressions for name in split_names(expression)}
    wanted = {there: one for one in sorted(asked) if (there := called(one, list(splits)))}
    if "all" in asked or not wanted:
        wanted = {part: wanted.get(part, part) for part in splits}
    # Splits that nobody asks for may lack labels, or other columns.
    tables = {one: splits[there] for there, one in wanted.items()}
    first = next(iter(tables.values()))
    columns = _columns(first.features, name)
    for part, table in tables.items():
        if table.features != first.features:
            raise DataError(f"{name}: the columns of {part} are not those of the other splits: give them the same")
    files = [os.fspath(file["filename"]) for table in tables.values() for file in table.cache_files]
    sizes = {part: len(table) for part, table in tables.items()}
    starts = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False))
    names, labels, texts = _classes(tables, columns[1], name)
    records = ArrowRecords(name, tuple(files), range(sum(sizes.values())), *columns, names if texts else None)
    if len(records) != records.length():
        raise DataError(f"{name}: its Arrow files do not hold what its splits say: save it again with save_to_disk")
    shape = _small_shape(records)

    def split(expression: str) -> Source:
        parts = parse_split(expression, sizes, name, known={*sizes, *splits})
        spans = [range(starts[part] + start, starts[part] + stop) for part, start, stop in parts]
        rows: Any = spans[0] if len(spans) == 1 else np.concatenate([np.arange(s.start, s.stop) for s in spans])
        mine = labels[rows.start : rows.stop] if isinstance(rows, range) else labels[rows]
        title = f"{name} {expression}"
        if mine.dtype.kind in "iu" and len(mine) and (mine == -1).all():
            raise DataError(f"{title} has no labels (all are -1): choose another split, or set its key to ''")
        checked = check_labels(mine, len(names), title)
        chosen = dataclasses.replace(records, name=title, rows=rows)
        return in_memory(EncodedSource(title, chosen, names, checked, on_bad_image=on_bad_image, fixed_shape=shape))

    notes = (f"images are taken from the column {columns[0]!r}, labels from {columns[1]!r}",)
    return Dataset(name, names, sizes, split, notes=notes)


def _load(name: str) -> Mapping[str, Any]:
    """Opens the set: {split: `datasets.Dataset`}, each in the order of its files."""
    try:
        import datasets  # a second to import, and only this kind needs it
    except ImportError:
        raise DataError(f"{name} needs Hugging Face's datasets: pip install 'effnet-jax[hf]'") from None
    try:
        found = _opened(datasets, name)
        splits = found if isinstance(found, Mapping) else {"train": found}
        # A set that was filtered or shuffled before it was saved is an index into its files: written out once.
        return {split: table.flatten_indices() if table._indices else table for split, table in splits.items()}
    except DataError:
        raise
    except Exception as error:  # networks, disks, and the readers of a dozen formats
        raise DataError(_not_opened(name, error)) from None


def _opened(datasets: Any, name: str) -> Any:
    path = expand(name)
    if name.startswith(HUB):
        match = _ID.fullmatch(name.removeprefix(HUB))
        if not match:
            raise DataError(f"{name} is no set of the hub: write hf://user/name, hf://user/name@revision:configuration")
        return datasets.load_dataset(match["id"], match["config"], revision=match["revision"], keep_in_memory=False)
    if name.lower().endswith(".parquet"):
        if not os.path.isfile(path):
            raise DataError(f"{path}: there is no such file: correct data.name")
        return datasets.load_dataset("parquet", data_files={"train": path}, keep_in_memory=False)
    if any(os.path.isfile(os.path.join(path, file)) for file in _SAVED):
        return datasets.load_from_disk(path, keep_in_memory=False)
    return datasets.load_dataset("parquet", data_files=_by_split(_parquet_files(path)), keep_in_memory=False)


def _by_split(files: Iterable[str]) -> dict[str, list[str]]:
    """Files by the split in their names, as on the hub (`train-00000-of-00002.parquet`); all train where none has."""
    splits: dict[str, list[str]] = {}
    for file in files:
        stem = re.sub(r"(-\d+-of-\d+)?(-[0-9a-f]{16})?$", "", os.path.splitext(os.path.basename(file))[0])
        splits.setdefault(re.sub(r"\W", "_", stem), []).append(file)
    if not any(stem.lower() in names for stem in splits for names in CALLED.values()):
        return {"train": sorted(file for named in splits.values() for file in named)}
    return splits


def _not_opened(name: str, error: Exception) -> str:
    why = in_brief(error)
    if not name.startswith(HUB):
        return f"{name} cannot be opened by Hugging Face's datasets ({why}): copy or save it again"
    match = _ID.fullmatch(name.removeprefix(HUB))
    return (
        f"{name} could not be fetched ({why}). Without a network: `hf download {match and match['id']} "
        "--repo-type=dataset --local-dir=FOLDER` where there is one, copy the folder, and set data.name to it"
    )


def _columns(features: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The columns of images and labels."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    images = [c for c, kind in kinds.items() if kind == "Image" or (c in _IMAGES and _holds_bytes(features[c]))]
    classes = [c for c, kind in kinds.items() if kind == "ClassLabel" or (c in _LABELS and _is_label(features[c]))]
    image, label = _chosen(images, _IMAGES), _chosen(classes, _LABELS)
    if image and label:
        return image, label
    listed = ", ".join(f"{column} ({getattr(features[column], 'dtype', kind)})" for column, kind in kinds.items())
    what, wanted = ("images", "image") if not image else ("labels", "label")
    raise DataError(
        f"{where} has the columns {listed}, and which of them holds the {what} is not clear: rename it to {wanted!r} "
        "(rename_column), and save the set with save_to_disk"
    )


def _chosen(columns: list[str], preferred: Iterable[str]) -> str:
    if len(columns) == 1:
        return columns[0]
    return next((name for name in preferred if name in columns), "")


def _holds_bytes(feature: Any) -> bool:
    """Whether a column has the bytes of image files, alone or beside a path, as `datasets` keeps images."""
    if isinstance(feature, Mapping):
        return getattr(feature.get("bytes"), "dtype", "") in ("binary", "large_binary")
    return getattr(feature, "dtype", "") in ("binary", "large_binary")


def _is_label(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return dtype in ("string", "large_string") or dtype.startswith(("int", "uint", "float"))


def _classes(tables: Mapping[str, Any], label: str, where: str) -> tuple[tuple[str, ...], np.ndarray, bool]:
    """The names of the classes; the labels of all splits one after the other, as numbers; whether they were texts."""
    columns = [table.data.column(label) for table in tables.values()]
    for split, column in zip(tables, columns, strict=True):
        if column.null_count:
            raise DataError(f"{where} {split}: {column.null_count:,} image(s) have no label: leave them out")
    labels = np.concatenate([column.to_numpy() for column in columns])
    if names := getattr(next(iter(tables.values())).features[label], "names", None):
        return tuple(names), labels, False
    if labels.dtype.kind == "O":
        numbers, names = named_classes(labels.astype(str), where)
        return names, numbers, True
    return named_classes(labels[labels != -1], where)[1], labels, False


def _small_shape(records: "ArrowRecords") -> tuple[int, int, int] | None:
    """The one shape of a set of small images; None: photographs.

    A few images tell photographs. Only where they are small and alike all are looked at, or many of a large set.
    """
    sizes: set[tuple[int, int]] = set()
    for count in (_SAMPLE, _LOOKED_AT):
        for position in np.unique(np.linspace(0, len(records) - 1, count).astype(int)):
            (read,) = records.read_many(np.array([position]))
            if isinstance(read, DataError):
                continue
            try:
                with Image.open(io.BytesIO(read[0])) as image:
                    sizes.add((image.height, image.width))
            except Exception:  # whoever decodes it is told
                continue
        if len(sizes) != 1 or max(max(size) for size in sizes) > SMALL_SIDE:
            return None
    ((height, width),) = sizes
    return height, width, 3


@dataclasses.dataclass(frozen=True)
class ArrowRecords:
    """Rows of Arrow files as records.

    Attributes:
      name: what messages call them.
      files: one after the other.
      rows: which of their rows.
      image: the column of images, bytes or `{bytes, path}`.
      label: the column of labels.
      names: of the classes, where the column has those; None where it has their numbers.
    """

    name: str
    files: tuple[str, ...]
    rows: range | np.ndarray
    image: str
    label: str
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> Any:  # without the files that are open
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _chunks(self) -> tuple[list[int], list[Any]]:
        """Where chunks of rows end, and each one's images and labels; they stay in the files."""
        import pyarrow

        ends, chunks = [0], []
        for file in self.files:
            table = pyarrow.ipc.open_stream(pyarrow.memory_map(file)).read_all().select([self.image, self.label])
            for batch in table.to_batches():
                ends.append(ends[-1] + len(batch))
                chunks.append((batch.column(0), batch.column(1)))
        return ends[1:], chunks

    def length(self) -> int:
        """The rows of all files."""
        ends, _ = self._chunks
        return ends[-1] if ends else 0

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names or ())}

    def _row(self, index: int) -> tuple[Any, Any, int]:
        row = int(self.rows[index])
        ends, chunks = self._chunks
        chunk = bisect.bisect_right(ends, row)
        return (*chunks[chunk], row - (ends[chunk - 1] if chunk else 0))

    def id(self, index: int) -> str:
        """The position of one row, which is there also where the row is damaged."""
        return f"{self.name}/{index}"

    def read_many(self, positions: np.ndarray) -> list[Read]:
        """The encoded images, their labels and names."""
        return [self._read(index) for index in positions.tolist()]

    def _read(self, index: int) -> Read:
        try:
            images, labels, row = self._row(index)
            value, label = images[row].as_py(), labels[row].as_py()
            number = self._numbers[str(label)] if self.names else int(label)
        except Exception as error:  # pyarrow's own errors, or a file that is gone
            return DataError(f"{self.id(index)} cannot be read ({error}): save the set again")
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is None and path:
            return read_file(path, number)
        if data is None:
            return DataError(f"{self.id(index)} has no image: leave it out of the set")
        return data, number, self.id(index)
