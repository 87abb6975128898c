"""What a model sees of an image in evaluation: one rule for validation, test, export and predict."""

import dataclasses

import numpy as np

from effnet_jax.data.preprocess import crop_window
from effnet_jax.data.resize import resize_antialiased, resize_bicubic


@dataclasses.dataclass(frozen=True)
class EvaluationView:
    """How images become what the model sees. Config and metadata use the same words.

    Attributes:
      resolution: side of the result in pixels.
      evaluation: `"crop"`: a centre square; `"resize"`: the whole image.
      crop: the crop rule (`preprocess.crop_window`).
      resize: `"bicubic"`: the original's, four taps without smoothing, which published weights were measured with;
        `"antialias"`: over all pixels that are covered, as training brings photographs to their squares.
    """

    resolution: int
    evaluation: str = "crop"
    crop: str = "frac"
    resize: str = "bicubic"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Brings an image, uint8 [h, w, 3], to float32 [R, R, 3] in about 0..255."""
        if self.evaluation == "crop":
            top, left, side = crop_window(image.shape[0], image.shape[1], self.resolution, self.crop)
            image = image[top : top + side, left : left + side]
        resize = resize_antialiased if self.resize == "antialias" else resize_bicubic
        return resize(image, self.resolution, self.resolution)
