"""What a layout is: the names, shapes and orders of axes that another program stores a model's tensors under."""

import abc
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from effnet_jax.model.variants import VARIANTS, Variant
from effnet_jax.weights import names
from effnet_jax.weights.checkpoint import Entry


class Stored(NamedTuple):
    """One tensor as another program stores it.

    Attributes:
      tensor: it, as this package has it.
      name: theirs.
      shape: theirs.
      axes: the transposition that brings their axes into this package's order; None where the order in memory is the
        same.
    """

    tensor: names.Tensor
    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None

    def decode(self, array: np.ndarray) -> np.ndarray:
        """Their array in this package's layout."""
        if self.axes is None:
            return array.reshape(self.tensor.shape)
        return np.ascontiguousarray(array.transpose(self.axes))

    def encode(self, array: np.ndarray) -> np.ndarray:
        """This package's array in theirs."""
        if self.axes is None:
            return array.reshape(self.shape)
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))


class Collected(NamedTuple):
    """The names in a file, sorted.

    Attributes:
      taken: the layout's name -> the name in the file that is taken for it.
      unused: names in the file that are known and not taken.
      unexpected: names in the file that are not known.
      variant: what the names themselves say of the variant, if they do.
      averaged: how many of those taken are moving averages; None where files of this layout never say.
    """

    taken: dict[str, str]
    unused: list[str]
    unexpected: list[str]
    variant: str | None = None
    averaged: int | None = None


class Layout(abc.ABC):
    """One program's way to store EfficientNet.

    Attributes:
      name: of the layout.
      program: whose it is, for messages.
    """

    name: str
    program: str

    @abc.abstractmethod
    def recognises(self, stored: Iterable[str]) -> bool:
        """Whether names in a file are of this layout."""

    @abc.abstractmethod
    def table(self, variant: Variant, num_classes: int) -> tuple[Stored, ...]:
        """Every tensor of a variant as it is stored, in the order of `names.table`."""

    def collect(self, entries: Mapping[str, Entry], where: str, ema: bool) -> Collected:
        """Sorts the names in a file.

        Args:
          entries: of the file.
          where: it, for messages.
          ema: whether moving averages are taken where there are.

        Raises:
          CheckpointError: the file holds no model, or several.
        """
        del where, ema
        unused = [name for name in entries if self.is_bookkeeping(name)]
        return Collected({name: name for name in entries if not self.is_bookkeeping(name)}, unused, [])

    def is_bookkeeping(self, name: str) -> bool:
        """Whether a name is of training alone, or of the input."""
        del name
        return False

    def classifier(self) -> tuple[Stored, Stored]:
        """Kernel and bias of a classifier, whose names are the same in all variants."""
        kernel, bias = self.table(VARIANTS["b0"], 1000)[-2:]
        return kernel, bias

    def classes_in(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The number of the classifier's outputs; 0 where there is none.

        Args:
          shapes: by the layout's names.
        """
        kernel, _ = self.classifier()
        shape = shapes.get(kernel.name, ())
        return shape[kernel.axes[1] if kernel.axes else 1] if len(shape) == 2 else 0
