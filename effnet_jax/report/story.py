"""What a page is made of: a finished run, told in plain values."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class PhaseStory:
    """One phase.

    Attributes:
      name: of the phase.
      settings: what it did, in words: `{"optimizer": "sgd", …}`.
      units: a row for each unit: `unit`, `parameters`, `trained`, `batch_norm` (`FreezePlan.table`), `factor` of the
        learning rate or None.
      results: accuracy, loss and count by split, at its end.
    """

    name: str
    settings: Mapping[str, str]
    units: Sequence[Mapping[str, Any]]
    results: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Story:
    """A finished run.

    Attributes:
      name: of the run dir.
      data: name of the data set as the run was given it.
      config: as `config.json` has it.
      summary: as `summary.json` has it.
      rows: of `metrics.jsonl`.
      phases: in order.
      advice: what the figures suggest, a sentence each.
      commands: (what it does, the command), those that come next.
      provenance: (what, value), where the figures come from.
      files: names of the files of the run dir that are worth a look.
    """

    name: str
    data: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    phases: Sequence[PhaseStory]
    advice: Sequence[str]
    commands: Sequence[tuple[str, str]]
    provenance: Sequence[tuple[str, str]]
    files: Sequence[str]


@dataclasses.dataclass(frozen=True)
class TrainingViews:
    """Augmented views as one step of training shows them.

    Attributes:
      title: which step of which phase, with what augmentation.
      images: uint8 [h, w, 3] each.
      captions: their classes.
    """

    title: str
    images: Sequence[Any]
    captions: Sequence[str]
