"""Translates a whole checkpoint into a weights dir, with every variable accounted for in both directions."""

import difflib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from effnet_jax.errors import CheckpointError
from effnet_jax.model.variants import VARIANTS, Variant, get_family, get_variant
from effnet_jax.weights import names
from effnet_jax.weights.checkpoint import Checkpoint
from effnet_jax.weights.metadata import Metadata, check_output, imagenet_class_names
from effnet_jax.weights.readers import open_checkpoint
from effnet_jax.weights.recipes import choose_family, choose_resolution

_LISTED = 6  # names of each kind in an error of one screen


class Plan(NamedTuple):
    """Which stored array becomes which parameter.

    Attributes:
      variant: the architecture that the arrays have.
      num_classes: of the classifier; 0 where it is left out.
      names: the stored name for each row of the table.
      ema: how many of them are moving averages.
      unused: stored names that are not taken.
    """

    variant: Variant
    num_classes: int
    names: dict[names.Tensor, str]
    ema: int
    unused: tuple[str, ...]


def port_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    variant: str | None = None,
    family: str | None = None,
    notop: bool = False,
    ema: bool = True,
    num_classes: int | None = None,
) -> Metadata:
    """Reads published weights and writes a weights dir.

    Args:
      source: what `readers.open_checkpoint` opens.
      out: the weights dir to make; it must not exist.
      variant: what the weights must be; None: told from names and shapes.
      family: the recipe that they were trained by; None: told from the file's name, or from the variant where only one
        family has it.
      notop: leave the classifier out.
      ema: take the moving average of each variable that has one; else the raw values.
      num_classes: the number of classes that the file must have; None: any.

    Returns:
      The metadata of the weights dir. `source["ema"]` and `source["raw"]` count the tensors of each kind.

    Raises:
      CheckpointError: the source is missing, damaged, or not a model of the variant.
      VariantError: an unknown variant or family, or a family that cannot be told.
      WeightsError: the output exists or cannot be written.
    """
    if variant is not None:
        get_variant(variant)
    if family is not None:
        get_family(family)
    out = check_output(out)
    with open_checkpoint(source) as checkpoint, ThreadPoolExecutor(2) as pool:
        plan = plan_port(checkpoint, variant=variant, notop=notop, ema=ema, num_classes=num_classes)
        recipe = choose_family(Path(source), plan.variant, family)
        digest = pool.submit(checkpoint.sha256)
        variables = pool.submit(read_variables, checkpoint, plan)
        # JAX and orbax take a second to import: a mistake is told before, and the files are read meanwhile.
        from effnet_jax.weights.store import write_weights

        metadata = Metadata(
            variant=plan.variant.name,
            family=recipe.name,
            normalization=recipe.normalization,
            crop=recipe.crop,
            resolution=choose_resolution(Path(source), plan.variant),
            num_classes=plan.num_classes,
            class_names=imagenet_class_names(plan.num_classes),
            ema=None if checkpoint.layout == "torch" else plan.ema > 0,
            source={
                "name": Path(source).name,
                "sha256": digest.result(),
                "tensors": len(plan.names),
                "ema": plan.ema,
                "raw": len(plan.names) - plan.ema,
                "unused": len(plan.unused),
            },
        )
    return write_weights(out, variables.result(), metadata)


def plan_port(
    checkpoint: Checkpoint,
    *,
    variant: str | None = None,
    notop: bool = False,
    ema: bool = True,
    num_classes: int | None = None,
) -> Plan:
    """Decides which array becomes which parameter, from names and shapes alone.

    Args and errors: as `port_checkpoint`.
    """
    taken, unused, unexpected, named = _collect(checkpoint, ema)
    shapes = {name: checkpoint.entries[stored].shape for name, stored in taken.items()}
    torch = checkpoint.layout == "torch"
    classes = 0 if notop else names.classes_in(shapes)
    chosen = _choose_variant(checkpoint.source, shapes, torch, variant, named)
    rows = {_name(row, torch): row for row in names.table(chosen, classes or 1000)}
    top = {name for name in rows if names.is_classifier(name)}
    if notop:
        unused.extend(taken.pop(name) for name in top & taken.keys())
        rows = {name: row for name, row in rows.items() if name not in top}
    _check(checkpoint, chosen, rows, taken, unexpected, torch, given=variant is not None, ema=ema)
    if num_classes is not None and num_classes != classes:
        extra = " (class 0 is the background)" if classes == 1001 else ""
        raise CheckpointError(
            f"{checkpoint.source} has {classes} classes{extra}, not {num_classes}: leave --num_classes out to port it "
            "as it is; a classifier of another size is made when the weights are loaded for training"
        )
    for stored in taken.values():
        if not re.fullmatch(r"b?float\d+", checkpoint.entries[stored].dtype):
            raise CheckpointError(
                f"{checkpoint.source}: {stored} is of type {checkpoint.entries[stored].dtype} instead of float32: "
                "these are no weights of a trained network (a quantised model cannot be ported)"
            )
    count = sum(stored.endswith(names.EMA_ENDING) for stored in taken.values())
    return Plan(chosen, classes, {row: taken[name] for name, row in rows.items()}, count, tuple(unused))


def read_variables(checkpoint: Checkpoint, plan: Plan) -> dict:
    """Reads the planned arrays one by one, and verifies the checksums of the others.

    Returns:
      `{"params": …, "batch_stats": …}` as nested dicts of float32 arrays.

    Raises:
      CheckpointError: an array is damaged.
    """
    variables: dict = {"params": {}, "batch_stats": {}}
    for row, stored in plan.names.items():
        array = checkpoint.read(stored).astype(np.float32, copy=False)
        *folders, leaf = row.path.split("/")
        inner = variables
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[leaf] = row.from_torch(array) if checkpoint.layout == "torch" else row.from_tf(array)
    for stored in plan.unused:
        checkpoint.verify(stored)
    return variables


def _name(row: names.Tensor, torch: bool) -> str:
    return row.torch_name if torch else row.tf_name


def _shape(row: names.Tensor, torch: bool) -> tuple[int, ...]:
    return row.torch_shape if torch else row.tf_shape


def _collect(checkpoint: Checkpoint, ema: bool) -> tuple[dict[str, str], list[str], list[str], str | None]:
    """Sorts the stored names.

    Returns:
      table's name -> stored name to take; stored names known but not taken; names of no known kind; and the variant
      that the model's prefix states.
    """
    taken: dict[str, str] = {}
    unused: list[str] = []
    unexpected: list[str] = []
    if checkpoint.layout == "torch":
        for name in checkpoint.entries:
            if names.is_torch_bookkeeping(name):
                unused.append(name)
            else:
                taken[name] = name
        return taken, unused, unexpected, names.variant_in_name(checkpoint.source.name)
    prefixes = names.model_prefixes(checkpoint.entries)
    if len(prefixes) != 1:
        found = ", ".join(repr(prefix) for prefix in prefixes) or ", ".join(list(checkpoint.entries)[:5]) or "nothing"
        what = f"{len(prefixes)} models" if prefixes else "no EfficientNet (no stem/conv2d/kernel)"
        raise CheckpointError(
            f"{checkpoint.source} holds {what}: found {found}; "
            "give a checkpoint of one model, as tensorflow/tpu's EfficientNet code writes it"
        )
    twins: dict[str, dict[bool, str]] = {}
    for name in checkpoint.entries:
        averaged = name.endswith(names.EMA_ENDING)
        known = names.canonical(name.removesuffix(names.EMA_ENDING), prefixes[0])
        if names.is_bookkeeping(name):
            unused.append(name)
        elif known is None:
            unexpected.append(name)
        else:
            twins.setdefault(known, {})[averaged] = name
    for known, stored in twins.items():
        if ema in stored or (ema and False in stored):
            taken[known] = stored.pop(ema) if ema in stored else stored.pop(False)
        unused.extend(stored.values())
    return taken, unused, unexpected, names.variant_in_name(prefixes[0])


def _disagreements(shapes: Mapping[str, tuple[int, ...]], variant: Variant, torch: bool) -> int:
    """Counts the arrays of a trunk that are missing, unexpected or of another shape."""
    expected = {_name(row, torch): _shape(row, torch) for row in names.table(variant, 0)}
    trunk = {name for name in shapes if not names.is_classifier(name)}
    common = expected.keys() & trunk
    return len(expected.keys() ^ trunk) + sum(shapes[name] != expected[name] for name in common)


def _choose_variant(
    source: Path, shapes: Mapping[str, tuple[int, ...]], torch: bool, given: str | None, named: str | None
) -> Variant:
    """Returns the variant that is given, or whose arrays these are, or the nearest: `_check` then says what is odd."""
    if given is not None and _disagreements(shapes, VARIANTS[given], torch) == 0:
        return VARIANTS[given]
    counts = {name: _disagreements(shapes, variant, torch) for name, variant in VARIANTS.items()}
    best = min(counts, key=counts.__getitem__)
    if given is not None:
        if counts[best] == 0:
            raise CheckpointError(
                f"{source} has weights of {best}, not of {given}: give --variant {best}, or leave it out"
            )
        return VARIANTS[given]
    return VARIANTS[best if counts[best] == 0 or named is None else named]


def _check(
    checkpoint: Checkpoint,
    variant: Variant,
    rows: Mapping[str, names.Tensor],
    taken: Mapping[str, str],
    unexpected: Iterable[str],
    torch: bool,
    *,
    given: bool,
    ema: bool,
) -> None:
    """Raises a CheckpointError that lists every kind of disagreement."""
    missing = [name for name in rows if name not in taken]
    unexpected = [*unexpected, *(stored for name, stored in taken.items() if name not in rows)]
    shapes = [
        f"{taken[name]} is {checkpoint.entries[taken[name]].shape} instead of {_shape(row, torch)}"
        for name, row in rows.items()
        if name in taken and checkpoint.entries[taken[name]].shape != _shape(row, torch)
    ]
    if not (missing or unexpected or shapes):
        return
    lines = [f"{checkpoint.source} is no whole {variant.name}:"]
    for kind, listed in (
        ("missing", [name + _near(name, unexpected) for name in missing[:_LISTED]]),
        ("unexpected", [name + _near(name, missing) for name in unexpected[:_LISTED]]),
        ("wrong shape", shapes[:_LISTED]),
    ):
        total = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}[kind]
        lines.extend(f"  {kind}: {item}" for item in listed)
        if len(total) > len(listed):
            lines.append(f"  {kind}: … and {len(total) - len(listed)} more")
    if missing and all(map(names.is_classifier, missing)):
        lines.append("the classifier is missing: port the rest with --notop")
    elif missing and not ema and any(name.endswith(names.EMA_ENDING) for name in checkpoint.entries):
        lines.append("some variables have moving averages only: leave --no-ema out")
    elif given:
        lines.append("give another --variant, or leave it out to have it told from the shapes")
    else:
        lines.append(f"give a checkpoint of one of {', '.join(VARIANTS)}")
    raise CheckpointError("\n".join(lines))


def _near(name: str, others: Iterable[str]) -> str:
    """Returns a clause with the most similar of the other names; a model's prefix in front does not count."""

    def tail(full: str) -> str:
        parts = full.split("/")
        return "/".join(parts[next((i for i, part in enumerate(parts) if names.is_scope(part)), 0) :])

    tails = {tail(other): other for other in list(others)[:200]}
    near = difflib.get_close_matches(tail(name), tails, n=1, cutoff=0.8)
    return f" (near: {tails[near[0]]})" if near else ""
