"""Where results go: JSON lines and CSV, appended by whole records, so that what is there is valid at any moment.

A file that is half done is gone on with from the last whole batch. Which images share a batch is then what it would
have been, so that the file is in the end the same to the byte.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effnet_jax import files
from effnet_jax.data.sources.listing import displayed
from effnet_jax.errors import ConfigError, DataError
from effnet_jax.predict.classifier import predictions
from effnet_jax.predict.growing import GrowingFile, whole_records
from effnet_jax.predict.stream import Result

UNKNOWN = "unknown"
_ENDINGS = {".jsonl": "json", ".ndjson": "json", ".csv": "csv"}


@dataclasses.dataclass(frozen=True)
class Told:
    """How the result of an image is told.

    Attributes:
      class_names: of the model.
      top: how many classes are named.
      threshold: below this probability of the likeliest class the image is of class "unknown"; 0: nothing is.
    """

    class_names: Sequence[str]
    top: int
    threshold: float = 0.0

    def __call__(self, path: str, result: Result) -> dict[str, Any]:
        """Returns `image`, and `predictions` or `error`; with a threshold also `class`, which may be "unknown"."""
        told: dict[str, Any] = {"image": displayed(path)}
        if result.values is None:
            return told | {"error": result.error}
        listed = predictions(result.values, self.class_names, self.top)
        if self.threshold:
            known = float(result.values.max()) >= self.threshold
            told["class"] = listed[0]["class"] if known else UNKNOWN
        return told | {"predictions": listed}


class _JsonLines:
    header = b""

    def record(self, told: dict[str, Any]) -> str:
        return json.dumps(told, ensure_ascii=False) + "\n"

    def is_whole(self, record: bytes) -> bool:
        return True

    def read(self, record: bytes) -> tuple[str, bool]:
        """The image of a record, and whether it could not be read."""
        told = json.loads(record)
        return told["image"], "error" in told


class _Csv:
    def __init__(self, told: Told) -> None:
        count = min(told.top, len(told.class_names))
        self._columns = ["image", *["class"] * bool(told.threshold)]
        self._count = count
        numbered = [f"{key}_{rank}" for rank in range(1, count + 1) for key in ("class", "index", "probability")]
        self.header = files.to_csv_line([*self._columns, *numbered, "error"]).encode()

    def record(self, told: dict[str, Any]) -> str:
        listed = [value for row in told.get("predictions", ()) for value in row.values()] or [""] * (3 * self._count)
        return files.to_csv_line([*(told.get(key, "") for key in self._columns), *listed, told.get("error", "")])

    def is_whole(self, record: bytes) -> bool:
        return record.count(b'"') % 2 == 0  # a line end within quotes ends no record

    def read(self, record: bytes) -> tuple[str, bool]:
        (values,) = csv.reader(io.StringIO(record.decode(), newline=""))
        return values[0], bool(values[-1])


def text_kind(out: Path) -> str:
    """Returns `"json"` or `"csv"`, by a file's ending.

    Raises:
      ConfigError: another ending.
    """
    kind = _ENDINGS.get(out.suffix.lower())
    if kind is None:
        raise ConfigError(f"{out}: the ending says what is written: .jsonl or .csv (of features .npz or .parquet)")
    return kind


class TextOutput:
    """JSON lines or CSV."""

    def __init__(self, out: Path, told: Told, images: Sequence[str]) -> None:
        """Opens the file, which is this process's alone from then on. What is in it stays as it is.

        Args:
          out: its ending says which of the two it is.
          told: how results are told.
          images: paths of all images that it will have, in order.

        Raises:
          PathError: it cannot be written.
          RunError: another process writes it.
        """
        self._out, self._told, self._images = out, told, images
        self._format: _JsonLines | _Csv = _JsonLines() if text_kind(out) == "json" else _Csv(told)
        self._file = GrowingFile(out)
        self.done = self.bad = 0

    def resume(self, batch_size: int) -> None:
        """Goes on where the file ends.

        Args:
          batch_size: images that are computed together: it is cut to whole batches.

        Raises:
          DataError: what is in it are not results of the first of these images.
        """
        out, count, bad = self._out, 0, 0
        with open(out, "rb") as file:
            records = whole_records(file, self._format.is_whole)
            if self._format.header:
                header = next(records, b"")
                if header not in (b"", self._format.header):
                    raise DataError(f"{out} is no CSV file of these columns: give another name, or remove it")
            size = len(self._format.header)
            kept = (0, 0, size)
            for record in records:
                path, failed = self._read(record, out)
                if count == len(self._images) or path != displayed(self._images[count]):
                    raise DataError(
                        f"{out} has {path} as image {count + 1:,} of it, which is not so in what is to be classified "
                        "now: give the images as they were, or another name"
                    )
                count, bad, size = count + 1, bad + failed, size + len(record)
                if count % batch_size == 0 or count == len(self._images):
                    kept = count, bad, size
        if not kept[0]:
            self._file.cut(0)
            self._write(self._format.header)
        else:
            self._file.cut(kept[2])
        self.done, self.bad = kept[:2]

    def _read(self, record: bytes, out: Path) -> tuple[str, bool]:
        try:
            return self._format.read(record)
        except (ValueError, KeyError, TypeError, IndexError):
            raise DataError(f"{out} has lines that are no results: give another name, or remove it") from None

    def _write(self, data: bytes) -> None:
        self._file.write(data, f"the first {self.done:,} of {len(self._images):,} images")

    def write(self, results: Sequence[Result]) -> None:
        """Appends the results of the next images.

        Raises:
          DiskError: there is no room for them; the file is as it was.
        """
        paths = self._images[self.done : self.done + len(results)]
        told = [self._told(path, result) for path, result in zip(paths, results, strict=True)]
        self._write("".join(map(self._format.record, told)).encode())
        self.done += len(results)
        self.bad += sum(result.values is None for result in results)

    def close(self) -> None:
        """Flushes and closes."""
        self._file.close()
