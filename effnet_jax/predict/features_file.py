"""Features in `.npz` or Parquet, of more images than fit the memory, and gone on with after a kill.

While they are computed rows are appended to `OUT.rows`, and names to `OUT.names`; the file itself is made of both at
the end, whole, and they are removed.
"""

import contextlib
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from effnet_jax import files
from effnet_jax.data.sources.listing import displayed
from effnet_jax.errors import ConfigError, DataError, DiskError
from effnet_jax.predict.growing import GrowingFile, whole_records
from effnet_jax.predict.stream import Result
from effnet_jax.weights.checkpoint import needs

_CHUNK = 1024  # rows that are copied at a time
KINDS = (".npz", ".parquet")

_Told = Callable[[], Iterable[dict[str, str]]]  # what `OUT.names` says of each image, from the first


class FeaturesOutput:
    """Rows of features on their way into a file."""

    def __init__(self, out: Path, width: int, images: Sequence[str]) -> None:
        """Opens the two files, which are this process's alone from then on. What is in them stays as it is.

        Args:
          out: what they become, `.npz` or `.parquet`.
          width: features of an image.
          images: paths of all images, in order.

        Raises:
          ConfigError: another ending, or Parquet without pyarrow.
          PathError: they cannot be written.
          RunError: another process writes them.
        """
        check_kind(out)
        self._out, self._width, self._images = out, width, images
        with contextlib.ExitStack() as opened:
            names, rows = parts(out)
            self._names = GrowingFile(names)
            opened.callback(self._names.close)
            self._rows = GrowingFile(rows)
            opened.callback(self._rows.close)
            self._opened = opened.pop_all()
        self.done = self.bad = 0

    def resume(self, batch_size: int) -> None:
        """Goes on where the files end.

        Args:
          batch_size: images that are computed together: the files are cut to whole batches.

        Raises:
          DataError: what is in them are not features of the first of these images.
        """
        rows = os.path.getsize(self._rows.path) // (4 * self._width)
        kept = (0, 0, 0)
        count = bad = size = 0
        for record in self._records():
            try:
                told = json.loads(record)
                path, failed = told["image"], "error" in told
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{self._names.path} has lines that are no names: remove it") from None
            if count == len(self._images) or path != displayed(self._images[count]):
                raise DataError(
                    f"{self._names.path} has {path} as image {count + 1:,}, which is not so in what is to be computed "
                    "now: give the images as they were, or another name"
                )
            count, bad, size = count + 1, bad + failed, size + len(record)
            if count - bad > rows:  # names were written whose rows a kill or a full disk kept off
                break
            if count % batch_size == 0 or count == len(self._images):
                kept = count, bad, size
        self._names.cut(kept[2])
        self._rows.cut((kept[0] - kept[1]) * 4 * self._width)
        self.done, self.bad = kept[:2]

    def _records(self) -> Iterator[bytes]:
        with open(self._names.path, "rb") as file:
            yield from whole_records(file)

    def write(self, results: Sequence[Result]) -> None:
        """Appends the features of the next images.

        Raises:
          DiskError: there is no room for them; what was there stays.
        """
        so_far = f"the first {self.done:,} of {len(self._images):,} images"
        paths = self._images[self.done : self.done + len(results)]
        told = [
            {"image": displayed(path)} | ({"error": result.error} if result.values is None else {})
            for path, result in zip(paths, results, strict=True)
        ]
        values = b"".join(result.values.astype("<f4").tobytes() for result in results if result.values is not None)
        self._rows.write(values, so_far)
        self._names.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told).encode(), so_far)
        self.done += len(results)
        self.bad += sum(result.values is None for result in results)

    def finish(self) -> None:
        """Makes the file, and removes what it was made of.

        Raises:
          DiskError: there is no room for it; the rows stay, so that the same command makes it.
        """
        files.drop_partials(self._out)  # no other process has the rows
        try:
            with files.new_file(self._out) as place, open(self._rows.path, "rb") as rows:
                write = _write_npz if self._out.suffix.lower() == ".npz" else _write_parquet
                write(place, rows, self._told, self.done - self.bad, self._width)
        except OSError as error:
            if not files.full_disk(error):
                raise
            raise DiskError(
                f"no space left on the disk for {self._out}: its rows are in {self._rows.path}, all of them; free "
                "some, and give the same command again, which then makes the file of them"
            ) from None
        self.close()
        for path in (self._rows.path, self._names.path):
            files.remove(path)

    def _told(self) -> Iterator[dict[str, str]]:
        return map(json.loads, self._records())

    def close(self) -> None:
        """Flushes and closes what is open."""
        self._opened.close()


def parts(out: Path) -> tuple[Path, Path]:
    """Where names and rows of a file of features are until it is made of them."""
    return out.with_name(f"{out.name}.names"), out.with_name(f"{out.name}.rows")


def check_kind(out: Path) -> None:
    """Raises where features cannot be written to a file of this name.

    Raises:
      ConfigError: another ending.
      CheckpointError: Parquet without pyarrow.
    """
    if out.suffix.lower() not in KINDS:
        raise ConfigError(f"{out}: the ending of a file of features says what is written: .npz or .parquet")
    if out.suffix.lower() == ".parquet":
        needs("pyarrow", f"Parquet ({out})", "parquet")


def _write_npz(path: Path, rows: BinaryIO, told: _Told, count: int, width: int) -> None:
    """`features` float32 [N, C] and `images` [N]; of those that could not be read `unread_images` and `errors`."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with _member(archive, "features", np.dtype("<f4"), (count, width)) as file:
            while data := rows.read(4 * width * _CHUNK):
                file.write(data)
        _write_texts(archive, "images", lambda: (line["image"] for line in told() if "error" not in line))
        _write_texts(archive, "unread_images", lambda: (line["image"] for line in told() if "error" in line))
        _write_texts(archive, "errors", lambda: (line["error"] for line in told() if "error" in line))


def _write_texts(archive: zipfile.ZipFile, name: str, texts: Callable[[], Iterable[str]]) -> None:
    """Writes an array of texts, all as wide as the longest; `texts()` gives them anew."""
    count = longest = 0
    for text in texts():
        count, longest = count + 1, max(longest, len(text))
    dtype = np.dtype(f"<U{max(longest, 1)}")
    with _member(archive, name, dtype, (count,)) as file:
        for part in _batched(texts(), _CHUNK):
            file.write(np.array(part, dtype).tobytes())


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Iterator[Any]:
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _write_parquet(path: Path, rows: BinaryIO, told: _Told, count: int, width: int) -> None:
    """Columns `image`, `features` (a list of C float32; null where it could not be read) and `error`."""
    del count
    import pyarrow
    import pyarrow.parquet

    kind = pyarrow.list_(pyarrow.float32(), width)
    schema = pyarrow.schema([("image", pyarrow.string()), ("features", kind), ("error", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part in _batched(told(), _CHUNK):
            good = sum("error" not in line for line in part)
            values = np.frombuffer(rows.read(4 * width * good), "<f4").reshape(good, width)
            placed = iter(values)
            columns = [
                pyarrow.array([line["image"] for line in part]),
                pyarrow.array([None if "error" in line else next(placed) for line in part], kind),
                pyarrow.array([line.get("error") for line in part], pyarrow.string()),
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while part := list(itertools.islice(items, size)):
        yield part
