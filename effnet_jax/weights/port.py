"""Translates a whole checkpoint into a weights dir, with every variable accounted for in both directions."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from effnet_jax.errors import CheckpointError
from effnet_jax.model.variants import VARIANTS, Variant, get_family, get_variant
from effnet_jax.trees import nest
from effnet_jax.weights.checkpoint import Checkpoint
from effnet_jax.weights.layouts import LAYOUTS, Layout, Stored, layout_of
from effnet_jax.weights.layouts.tf1 import EMA_ENDING, is_scope, variant_in_name
from effnet_jax.weights.metadata import Metadata, check_output
from effnet_jax.weights.published import Published
from effnet_jax.weights.readers import open_checkpoint
from effnet_jax.weights.recipes import describe_source

_LISTED = 6  # names of each kind in an error of one screen


class Plan(NamedTuple):
    """Which stored array becomes which parameter.

    Attributes:
      layout: whose names they are.
      variant: the architecture that the arrays have.
      num_classes: of the classifier; 0 where it is left out.
      names: the stored name for each row of the layout's table.
      averaged: how many of them are moving averages; None where the source does not say.
      unused: stored names that are not taken.
    """

    layout: Layout
    variant: Variant
    num_classes: int
    names: dict[Stored, str]
    averaged: int | None
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
    class_names: Sequence[str] | None = None,
    published: Published | None = None,
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
      class_names: one for each class; None: those that the file has, or ImageNet's where the source is known to be one
        of the published files. A number of classes says nothing about what they are.
      published: which of the published weights they are; None: told from the source.

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
        described = describe_source(checkpoint, Path(source), plan, family, published)
        names = _class_names(plan.num_classes, class_names, described.class_names, str(source))
        digest = pool.submit(checkpoint.sha256)
        variables = pool.submit(read_variables, checkpoint, plan)
        # JAX and orbax take a second to import: a mistake is told before, and the files are read meanwhile.
        from effnet_jax.weights.store import write_weights_alone

        metadata = Metadata(
            variant=plan.variant.name,
            family=described.family,
            normalization=described.normalization,
            crop=described.crop,
            evaluation=described.evaluation,
            resize=described.resize,
            resolution=described.resolution,
            num_classes=plan.num_classes,
            class_names=names,
            ema=None if plan.averaged is None else plan.averaged > 0,
            source={
                "name": Path(source).name,
                "published": described.published,
                "layout": plan.layout.name,
                "sha256": digest.result(),
                "tensors": len(plan.names),
                "ema": plan.averaged or 0,
                "raw": len(plan.names) - (plan.averaged or 0),
                "unused": len(plan.unused),
            },
        )
    return write_weights_alone(out, variables.result(), metadata)


def _class_names(num_classes: int, given: Sequence[str] | None, told: Sequence[str], where: str) -> tuple[str, ...]:
    names = tuple(told if given is None else given)
    if names and num_classes and len(names) != num_classes:
        raise CheckpointError(f"{where} has {num_classes} classes and {len(names)} class names: give one for each")
    return names if num_classes else ()


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
    layout = layout_of(checkpoint.entries)
    if layout is None:
        found = ", ".join(list(checkpoint.entries)[:5]) or "nothing"
        programs = ", ".join(dict.fromkeys(each.program for each in LAYOUTS.values()))
        raise CheckpointError(
            f"{checkpoint.source} holds no EfficientNet: found {found}; give weights as {programs} store them"
        )
    taken, unused, unexpected, named, averaged = layout.collect(checkpoint.entries, str(checkpoint.source), ema)
    shapes = {name: checkpoint.entries[stored].shape for name, stored in taken.items()}
    classes = 0 if notop else layout.classes_in(shapes)
    named = named or variant_in_name(checkpoint.source.name)
    chosen = _choose_variant(checkpoint.source, shapes, layout, variant, named)
    rows = {row.name: row for row in layout.table(chosen, classes or 1000)}
    top = {row.name for row in layout.classifier()}
    if notop:
        unused.extend(taken.pop(name) for name in top & taken.keys())
        rows = {name: row for name, row in rows.items() if name not in top}
    _check(checkpoint, chosen, rows, taken, unexpected, top, given=variant is not None, ema=ema)
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
    return Plan(layout, chosen, classes, {row: taken[name] for name, row in rows.items()}, averaged, tuple(unused))


def read_variables(checkpoint: Checkpoint, plan: Plan) -> dict:
    """Reads the planned arrays one by one, and verifies the checksums of the others.

    Returns:
      `{"params": …, "batch_stats": …}` as nested dicts of float32 arrays.

    Raises:
      CheckpointError: an array is damaged, or not finite.
    """
    variables = nest({row.tensor.path: row.decode(_read(checkpoint, stored)) for row, stored in plan.names.items()})
    for stored in plan.unused:
        checkpoint.verify(stored)
    return variables


def _read(checkpoint: Checkpoint, stored: str) -> np.ndarray:
    """Returns an array as float32."""
    with np.errstate(over="ignore"):  # of float64: told below
        array = checkpoint.read(stored).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise CheckpointError(
            f"{checkpoint.source}: {stored} has values that are no finite numbers: its training has diverged, or its "
            "type is too small for them; take an earlier checkpoint, or another file"
        )
    return array


def _disagreements(shapes: Mapping[str, tuple[int, ...]], variant: Variant, layout: Layout) -> int:
    """Counts the arrays of a trunk that are missing, unexpected or of another shape."""
    expected = {row.name: row.shape for row in layout.table(variant, 0)}
    trunk = shapes.keys() - {row.name for row in layout.classifier()}
    common = expected.keys() & trunk
    return len(expected.keys() ^ trunk) + sum(shapes[name] != expected[name] for name in common)


def _choose_variant(
    source: Path, shapes: Mapping[str, tuple[int, ...]], layout: Layout, given: str | None, named: str | None
) -> Variant:
    """Returns the variant that is given, or whose arrays these are, or the nearest: `_check` then says what is odd."""
    if given is not None and _disagreements(shapes, VARIANTS[given], layout) == 0:
        return VARIANTS[given]
    counts = {name: _disagreements(shapes, variant, layout) for name, variant in VARIANTS.items()}
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
    rows: Mapping[str, Stored],
    taken: Mapping[str, str],
    unexpected: Iterable[str],
    classifier: Collection[str],
    *,
    given: bool,
    ema: bool,
) -> None:
    """Raises a CheckpointError that lists every kind of disagreement."""
    missing = [name for name in rows if name not in taken]
    unexpected = [*unexpected, *(stored for name, stored in taken.items() if name not in rows)]
    shapes = [
        f"{taken[name]} is {checkpoint.entries[taken[name]].shape} instead of {row.shape}"
        for name, row in rows.items()
        if name in taken and checkpoint.entries[taken[name]].shape != row.shape
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
    if missing and all(name in classifier for name in missing):
        lines.append("the classifier is missing: port the rest with --notop")
    elif missing and not ema and any(name.endswith(EMA_ENDING) for name in checkpoint.entries):
        lines.append("some variables have moving averages only: leave --no_ema out")
    elif given:
        lines.append("give another --variant, or leave it out to have it told from the shapes")
    else:
        lines.append(f"give a checkpoint of one of {', '.join(VARIANTS)}")
    raise CheckpointError("\n".join(lines))


def _near(name: str, others: Iterable[str]) -> str:
    """Returns a clause with the most similar of the other names; a model's prefix in front does not count."""

    def tail(full: str) -> str:
        parts = full.split("/")
        return "/".join(parts[next((i for i, part in enumerate(parts) if is_scope(part)), 0) :])

    tails = {tail(other): other for other in list(others)[:200]}
    near = difflib.get_close_matches(tail(name), tails, n=1, cutoff=0.8)
    return f" (near: {tails[near[0]]})" if near else ""
