"""The images that a run goes on without: told once, and listed in the run dir while the run goes on."""

import collections
from collections.abc import Callable, Mapping

from etils import epath

from effnet_jax import files, hosts

SKIPPED = "skipped_images.json"

Entries = list[dict[str, str]]


class SkippedImages:
    """`skipped_images.json`: {split: [{"id", "error"}]}, over all attempts and all processes of a run.

    Attributes:
      images: its content.
      met: {split: what this process met}, which loaders add to.
    """

    def __init__(self, workdir: epath.Path, say: Callable[[str], None]) -> None:
        """Reads what an earlier attempt listed.

        Args:
          workdir: the run dir.
          say: prints a line.
        """
        self._path = workdir / SKIPPED
        self._say = say
        self._seen: dict[str, int] = {}  # entries of each split that are listed already
        self.met: dict[str, Entries] = collections.defaultdict(list)
        self.images: dict[str, Entries] = hosts.on_first(SKIPPED, self._read)

    def _read(self) -> dict[str, Entries]:
        try:
            return files.read_json(self._path) or {}
        except ValueError as error:
            self._say(f"warning: {error}: it begins anew")
            return {}

    def update(self) -> None:
        """Adds what this process met since the last call."""
        self._add({split: self._fresh(split) for split in list(self.met)})

    def exchange(self) -> None:
        """Adds what all processes have listed. All of them call it together."""
        self.update()
        if hosts.count() > 1:
            for images in hosts.gather(SKIPPED, self.images):
                self._add(images)

    def _fresh(self, split: str) -> Entries:
        fresh = self.met[split][self._seen.get(split, 0) :]
        self._seen[split] = len(self.met[split])
        return fresh

    def _add(self, images: Mapping[str, Entries]) -> None:
        """Adds entries, prints the first of each split, and writes the file where there are new ones."""
        changed = False
        for split, entries in images.items():
            listed = self.images.get(split, [])
            known = {entry["id"] for entry in listed}
            new = [entry for entry in entries if entry["id"] not in known]
            if not new:
                continue
            if not listed:
                self._say(f"warning: skipped in {split}: {new[0]['error']} (all that are skipped: {self._path})")
            self.images[split] = [*listed, *new]
            changed = True
        if changed and hosts.is_first():
            files.write_json(self._path, self.images)

    def __str__(self) -> str:
        """The numbers in words: `3 of train, 1 of test`."""
        return ", ".join(f"{len(entries)} of {split}" for split, entries in self.images.items())
