"""An evaluation: a model's answers to a split, their figures, and what they are of."""

import dataclasses
import functools
from typing import Any

from effnet_jax import files
from effnet_jax.data.loader import BadImages
from effnet_jax.data.sources.base import Source
from effnet_jax.metrics.answers import Answers
from effnet_jax.metrics.figures import Figures, figures, percent

_HARDEST = 5  # classes and confusions that are told


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
      answers: by example.
      class_names: of the model.
      source: the split.
      temperature: that the answers were given with.
      skipped: images that could not be read.
    """

    answers: Answers
    class_names: tuple[str, ...]
    source: Source
    temperature: float
    skipped: BadImages

    @functools.cached_property
    def figures(self) -> Figures:
        """What the answers come to."""
        return figures(self.answers)

    def as_json(self) -> dict[str, Any]:
        """Returns the figures as plain values, with what they are of."""
        return {
            **self.figures.as_json(self.class_names),
            "data": self.source.name,
            "skipped": len(self.skipped),
            "temperature": self.temperature,
        }

    def as_csv(self) -> str:
        """Returns a table with a line for each example: its name, right class, answers, probabilities, loss."""
        answers, names = self.answers, self.class_names
        ranks = range(1, answers.top.shape[1] + 1)
        columns = [f"{what}{rank}" for rank in ranks for what in ("answer", "probability")]
        lines = [files.to_csv_line(["image", "class", "class_probability", "loss", *columns])]
        for row in range(len(answers)):
            pairs = zip(answers.top[row], answers.probability[row], strict=True)
            values = [
                self.source.example_id(int(answers.index[row])),
                names[answers.label[row]],
                f"{answers.label_probability[row]:.6g}",
                f"{answers.loss[row]:.6g}",
                *(value for index, share in pairs for value in (names[index], f"{share:.6g}")),
            ]
            lines.append(files.to_csv_line(values))
        return "".join(lines)

    def words(self) -> list[str]:
        """Says the figures."""
        found, names = self.figures, self.class_names
        lines = [f"{self.source.name}: {found.count:,} images of {int((found.support > 0).sum())} classes"]
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} images that cannot be read, {self.skipped[0]['id']} first")
        for name, share, interval in (
            ("top 1", found.top1, found.top1_interval),
            ("top 5", found.top5, found.top5_interval),
            ("balanced", found.balanced, found.balanced_interval),
        ):
            lines.append(f"  {name:9} {percent(share)} ({percent(interval[0])} to {percent(interval[1])})")
        lines.append(f"  loss      {found.loss:.4f} ({found.loss_interval[0]:.4f} to {found.loss_interval[1]:.4f})")
        without = ""
        if self.temperature != 1.0:
            without = f" ({percent(found.untempered.ece, 2)} without the temperature {self.temperature:.3f})"
        lines.append(f"  ECE       {percent(found.reliability.ece, 2)}{without}")
        there, recall = [index for index in range(len(names)) if found.support[index]], found.recall
        hardest = sorted(there, key=lambda index: (recall[index], names[index]))[:_HARDEST]
        told = [f"{names[index]} ({percent(recall[index], 0)} of {found.support[index]})" for index in hardest]
        lines.append(f"hardest: {', '.join(told)}")
        told = [f"{names[right]} as {names[answer]} ({n})" for right, answer, n in found.confusions[:_HARDEST]]
        if told:
            lines.append(f"most often mistaken: {', '.join(told)}")
        return lines
