"""Pictures of examples as parts of the page: JPEGs in `data:` addresses."""

import base64
import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from effnet_jax.data.sources.base import Source
from effnet_jax.errors import DataError, in_brief
from effnet_jax.report.html import Html, escape, tag

SIDE = 144  # pixels of the longer side, at most
_QUALITY = 80
_TINY = 64  # below, a picture is kept sharp and shown by whole pixels


@dataclasses.dataclass
class Gallery:
    """Pictures of a source's examples.

    Attributes:
      source: a split.
      gaps: why some have no picture, by the example's name.
    """

    source: Source
    gaps: dict[str, str] = dataclasses.field(default_factory=dict)
    _drawn: dict[int, Html] = dataclasses.field(default_factory=dict, repr=False)

    def image(self, index: int) -> np.ndarray | None:
        """The decoded image of an example, uint8 [h, w, 3]; None where it cannot be read, which is then a gap."""
        try:
            return self.source[index]["image"]
        except (DataError, OSError) as error:
            self.gaps[self.source.example_id(index)] = in_brief(error)
            return None

    def picture(self, index: int) -> Html:
        """The thumbnail of an example, or a frame that says that there is none."""
        if index not in self._drawn:
            image = self.image(index)
            gap = tag("div", "cannot be read", class_="gap")
            self._drawn[index] = gap if image is None else picture(image, self.source.example_id(index))
        return self._drawn[index]


def shrink(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Makes an image, uint8 [h, w, 3], smaller: its longer side gets `side` pixels at most."""
    drawn = Image.fromarray(image)
    drawn.thumbnail((side, side), Image.Resampling.BOX if min(image.shape[:2]) > 8 * side else Image.Resampling.LANCZOS)
    return np.asarray(drawn)


def to_levels(image: np.ndarray) -> np.ndarray:
    """Brings what a model sees, float [h, w, 3] in about 0..255, to uint8."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def picture(image: np.ndarray, words: str) -> Html:
    """Returns an `img` of an image, uint8 [h, w, 3].

    Args:
      image: what is shown, smaller where it is large.
      words: what it is, for who cannot see it.
    """
    tiny = max(image.shape[:2]) <= _TINY
    if max(image.shape[:2]) > SIDE:
        image = shrink(image)
    file = io.BytesIO()
    settings: dict[str, Any] = {"quality": 92, "subsampling": 0} if tiny else {"quality": _QUALITY}
    Image.fromarray(image).save(file, "JPEG", optimize=True, **settings)
    address = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    height, width = image.shape[:2]
    return tag("img", src=Html(address), alt=words, width=width, height=height, class_="tiny" if tiny else None)


def frame(shown: Html, *lines: Any, title: str = "") -> Html:
    """A picture with lines of words below it."""
    words = [tag("div", line) for line in lines]
    return tag("figure", shown, tag("figcaption", *words), title=escape(title) or None)
