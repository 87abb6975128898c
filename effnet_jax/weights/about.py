"""What a file says of the weights in it, beside the weights."""

import dataclasses

from effnet_jax.errors import CheckpointError
from effnet_jax.model.variants import NORMALIZATIONS

Levels = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class About:
    """What a file says; empty where it says nothing.

    Attributes:
      name: that its weights are published under.
      scaling: what the network does to pixels 0..255 of each channel: (what is subtracted, what it is divided by).
      resolution: side of the images in pixels.
      crop: the evaluation's rule.
      evaluation: `"crop"` or `"resize"`, as in `Metadata`.
      resize: how images are resized.
      class_names: one for each class.
    """

    name: str = ""
    scaling: tuple[Levels, Levels] | None = None
    resolution: int = 0
    crop: str = ""
    evaluation: str = ""
    resize: str = ""
    class_names: tuple[str, ...] = ()

    def normalization(self, where: str) -> str:
        """The name of its scaling; "" where it says nothing.

        Args:
          where: the file, for messages.

        Raises:
          CheckpointError: it is none of `NORMALIZATIONS`.
        """
        if self.scaling is None:
            return ""
        found = [value for part in self.scaling for value in part]
        for name, known in NORMALIZATIONS.items():
            ours = [value for part in known for value in part]
            if max(abs(a - b) for a, b in zip(ours, found, strict=True)) < 0.13:  # files give three digits of 1
                return name
        mean, scale = ([round(value, 3) for value in values] for values in self.scaling)
        raise CheckpointError(
            f"{where} scales pixels as (x - {mean}) / {scale}, which is none of {', '.join(NORMALIZATIONS)}"
        )
