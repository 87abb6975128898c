"""Reader of `.safetensors` files, and of what timm's `config.json` beside one says."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from effnet_jax.choices import RESIZES
from effnet_jax.errors import CheckpointError
from effnet_jax.weights.about import About
from effnet_jax.weights.checkpoint import Checkpoint, Entry, needs

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
_DOWNLOAD_AGAIN = "download it again"


class SafetensorsFile(Checkpoint):
    """The tensors of a `.safetensors` file. Its header is checked against its size by the library.

    Raises:
      CheckpointError: it is damaged, or the package is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        safetensors = needs("safetensors", path)
        self.source = path
        self.files = (path,)
        try:
            self._file = safetensors.safe_open(path, framework="numpy")
            self.keep(self._file)
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118, no mapping
            self.entries = {
                name: Entry(tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype()))
                for name, part in slices.items()
            }
        except OSError:
            raise
        except Exception as error:  # SafetensorError, and what a header that is no JSON leads to
            raise CheckpointError(f"{path} is no .safetensors, or damaged ({error}): {_DOWNLOAD_AGAIN}") from None
        self.about = about_timm(path.with_name("config.json"))

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor. The format has no checksums."""
        self._entry(name)
        try:
            return np.array(self._file.get_tensor(name))
        except Exception as error:
            raise CheckpointError(f"{self.source}: {name} is damaged ({error}): {_DOWNLOAD_AGAIN}") from None


def about_timm(path: Path) -> About:
    """Returns what timm's `config.json` says of the weights beside it; nothing where there is none.

    Raises:
      CheckpointError: it is damaged, or of another network.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return About()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): {_DOWNLOAD_AGAIN}, or remove it") from None
    if not isinstance(config, dict) or "architecture" not in config:
        return About()  # another program's
    architecture = str(config["architecture"])
    if not architecture.startswith("tf_efficientnet_"):
        raise CheckpointError(
            f"{path} says that the weights are of timm's {architecture}: only tf_efficientnet_* have the original's "
            "padding and batch norm, and the same tensors in another network give other numbers"
        )
    try:
        given: dict[str, Any] = {**config, **(config.get("pretrained_cfg") or {})}
        names = given.get("label_names") or ()
        ours = dict(given.get("effnet_jax") or {})  # what timm has no word for
        size = int(given["input_size"][-1]) if given.get("input_size") else 0
        if not 0 <= size < 2**15:
            raise ValueError(f"input_size is {given['input_size']}")
        return About(
            name=f"{architecture}.{given['tag']}" if given.get("tag") else architecture,
            scaling=(_levels(given["mean"]), _levels(given["std"])) if "mean" in given and "std" in given else None,
            resolution=size,
            crop=_crop_rule(float(given["crop_pct"]), size) if size and given.get("crop_pct") else "",
            evaluation="resize" if given.get("crop_mode") == "squash" else "crop",
            resize=ours["resize"] if ours.get("resize") in RESIZES else "antialias",
            class_names=tuple(map(str, names.values() if isinstance(names, dict) else names)),
        )
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}): {_DOWNLOAD_AGAIN}, or remove it") from None


def _levels(values: Any) -> tuple[float, float, float]:
    """Timm's scaling is for pixels from 0 to 1."""
    red, green, blue = (255.0 * float(value) for value in values)
    return red, green, blue


def _crop_rule(share: float, size: int) -> str:
    """The rule that gives this share of the side, as near as timm's two or three digits are; "" where none does."""
    shares = {"none": 1.0, "pad32": size / (size + 32), "frac": size / (size + round(size / 7))}
    near = min(shares, key=lambda rule: abs(shares[rule] - share))
    return near if abs(shares[near] - share) < 0.003 else ""
