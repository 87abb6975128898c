"""The images that a run goes on without: told once, and listed in the run dir while the run goes on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from effnet_jax.data.sources.base import Source
from effnet_jax.train.report import write_json

SKIPPED = "skipped_images.json"


class SkippedImages:
    """`skipped_images.json`: {split: [{"id", "error"}]}, over all attempts of a run.

    Attributes:
      images: its content.
    """

    def __init__(self, workdir: str | Path, say: Callable[[str], None], *, active: bool = True) -> None:
        """Reads what an earlier attempt listed.

        Args:
          workdir: the run dir.
          say: prints a line.
          active: whether this process writes the file.
        """
        self.images: dict[str, list[dict[str, str]]] = {}
        self._path = Path(workdir) / SKIPPED
        self._say = say
        self._active = active
        self._seen: dict[str, int] = {}  # entries of each source that are listed already
        if self._path.exists():
            self.images = json.loads(self._path.read_text(encoding="utf-8"))

    def update(self, sources: Mapping[str, Source]) -> None:
        """Adds what the sources skipped since the last call; the first image of each split is printed."""
        changed = False
        for split, source in sources.items():
            fresh = source.bad[self._seen.get(split, 0) :]
            self._seen[split] = len(source.bad)
            listed = self.images.get(split, [])
            known = {entry["id"] for entry in listed}
            new = [entry for entry in fresh if entry["id"] not in known]
            if not new:
                continue
            if not listed:
                self._say(f"warning: skipped in {split}: {new[0]['error']} (all that are skipped: {self._path})")
            self.images[split] = [*listed, *new]
            changed = True
        if changed and self._active:
            write_json(self._path, self.images)

    def __str__(self) -> str:
        """The numbers in words: `3 of train, 1 of test`."""
        return ", ".join(f"{len(entries)} of {split}" for split, entries in self.images.items())
