"""How far a run is: all that a resume needs besides the state, as plain numbers with a checksum."""

import dataclasses
import json
import zlib
from typing import Any

from etils import epath

from effnet_jax import files

PROGRESS = "progress.json"


@dataclasses.dataclass
class Progress:
    """How far a run is.

    Attributes:
      phase: number of the current phase; the number of all phases, once the last one is finished.
      sums: of `loss` and `accuracy` over the `steps` of the current epoch so far. At an epoch's end they stay until its
        evaluation is done; at a phase's end without them, the test split comes next.
      validation: results at the end of the last epoch, by split.
      results: of the finished phases, as `summary.json` has them.
      rows: of `metrics.jsonl` that belong to all this; None in checkpoints of a format that did not count them.
      seconds: that all attempts have taken so far.
      entered: number of the phase whose optimizer the state has: the one before `phase`, where a checkpoint could not
        be written until the phase was closed. None in checkpoints of a format that did not say.
    """

    phase: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    validation: dict[str, Any] = dataclasses.field(default_factory=dict)
    results: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    rows: int | None = None
    seconds: float = 0.0
    entered: int | None = None

    @property
    def of_state(self) -> int:
        """Number of the phase whose optimizer the state has."""
        return self.phase if self.entered is None else self.entered


def make_progress(values: dict[str, Any]) -> Progress:
    """Returns the progress out of JSON; keys of other versions are left out."""
    names = {field.name for field in dataclasses.fields(Progress)}
    return Progress(**{name: value for name, value in values.items() if name in names})


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with its own checksum, without which a flipped bit in a number would pass."""
    return {**value, "checksum": _checksum(value)}


def is_sealed(value: Any) -> bool:
    """Whether an object is as `sealed` made it."""
    if not isinstance(value, dict) or "checksum" not in value:
        return False
    rest = {key: item for key, item in value.items() if key != "checksum"}
    return value["checksum"] == _checksum(rest)


def _checksum(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def write_progress(folder: epath.Path, step: int, progress: Progress) -> None:
    """Writes that a run has come further since the checkpoint of `step`, without a step: a split is evaluated, say.

    Args:
      folder: the run dir.
      step: of the state, of which there is a checkpoint.
      progress: since then.
    """
    files.write_json(folder / PROGRESS, sealed({"step": step, "progress": dataclasses.asdict(progress)}))


def read_progress(folder: epath.Path, step: int) -> Progress | None:
    """Returns what `write_progress` wrote about the checkpoint of `step`; None where it wrote nothing, or was cut off.

    That costs no more than what is evaluated again.
    """
    try:
        value = files.read_json(folder / PROGRESS)
    except ValueError:
        return None
    if not is_sealed(value) or value["step"] != step:
        return None
    return make_progress(value["progress"])


def drop_progress(folder: epath.Path, *, unless: int) -> None:
    """Removes what `write_progress` wrote about another checkpoint than that of a step."""
    if read_progress(folder, unless) is None:
        files.remove(folder / PROGRESS)
