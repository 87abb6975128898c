"""A model card in Markdown, from what the weights say of themselves."""

import re
from pathlib import Path

from effnet_jax import files
from effnet_jax.exports.base import Weights
from effnet_jax.weights.metadata import METADATA_FILE
from effnet_jax.weights.published import LICENSE, find_published

_SHOWN = 20


def write_card(weights: Weights, out: Path, library: str) -> None:
    """Writes `README.md`, as the hub shows it.

    Args:
      weights: what was written.
      out: the folder.
      library: of the format, such as `timm`.
    """
    files.write_bytes(out / "README.md", card(weights, library).encode())


def write_about(weights: Weights, out: Path, library: str) -> None:
    """Writes the card, and `metadata.json` for whoever uses a program; arguments as of `write_card`."""
    files.write_bytes(out / METADATA_FILE, weights.metadata.to_json().encode())
    write_card(weights, out, library)


def card(weights: Weights, library: str) -> str:
    """Returns the card."""
    metadata, source = weights.metadata, weights.metadata.source
    published = find_published(str(source.get("published", "")))
    head = ["---", "tags:", "- image-classification", f"- {library}", f"library_name: {library}"]
    head += [f"license: {LICENSE.lower()}"] if published else []
    lines = [*head, "---", f"# {_text(weights.name)}", ""]
    lines.append(
        f"EfficientNet-{metadata.variant.upper()} with {metadata.num_classes or 'no'} classes, for images of "
        f"{metadata.resolution} pixels. Written by effnet_jax."
    )
    kind = {True: "moving averages", False: "as trained", None: "as in their source"}[metadata.ema]
    rows = {
        "scaling of pixels from 0 to 1": "mean {}, divided by {}".format(
            *(", ".join(f"{value:.6g}" for value in part) for part in weights.scaling)
        ),
        "evaluation": f"{metadata.evaluation}, {metadata.resize}, crop {metadata.crop}",
        "weights": kind,
    }
    if published:
        rows["published as"] = f"{published.name} ({published.alias}), {published.top1} % top-1 on ImageNet"
    rows |= {key: str(source[key]) for key in ("run", "step", "commit", "name") if source.get(key) is not None}
    if isinstance(parent := source.get("parent"), dict):
        began = str(parent.get("weights") or parent.get("source", {}).get("name"))
        rows["fine-tuned from"] = Path(began).name if Path(began).is_absolute() else began  # a card is for others
    rows |= {f"accuracy, {split}": f"{100 * value:.1f} %" for split, value in weights.figures.items()}
    lines += ["", "| | |", "|---|---|", *(f"| {_text(key)} | {_text(value)} |" for key, value in rows.items())]
    if metadata.class_names:
        more = f", … ({len(metadata.class_names)} in all)" if len(metadata.class_names) > _SHOWN else ""
        lines += ["", "Classes, in order: " + ", ".join(map(_text, metadata.class_names[:_SHOWN])) + more]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A name in Markdown: in one line, with no character that means something there."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(value.split()))
