"""Compiles training steps for a slice of Cloud TPU that is not there, this package's beside plain Flax's.

    python tools/compile_against_flax.py --topology=v5e:2x2 --json=b0.json b0,all,train,64 b0,all,frozen,64,4

A step is VARIANT,TRAINED,BATCH NORM,IMAGES A CHIP[,MICROBATCHES[,remat]]; each is compiled in both forms (microbatches
and remat here alone): bfloat16, SGD with momentum, uint8 squares in, no augmentation. A compilation takes minutes.
"""

import argparse
import json
import os
import time
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from peers.plain_flax import PlainEfficientNet

from effnet_jax.errors import ConfigError, run_command
from effnet_jax.model.variants import get_variant
from effnet_jax.tpu.chips import parse_topology, topology_devices
from effnet_jax.tpu.report import report, too_large
from effnet_jax.train.config import check_config, default_config, phase
from effnet_jax.train.programs import phase_programs
from effnet_jax.train.step.freeze import FreezePlan

CLASSES = 1000


def lower_here(devices: tuple, variant: str, trained: str, mode: str, images: int, pieces: int, remat: bool) -> Any:
    """Lowers this package's step."""
    config = default_config()
    config.update(variant=variant, weights="any", dtype="bfloat16", batch_size=images * len(devices), remat=remat)
    config.microbatches = pieces
    config.data.update(name="none", size=get_variant(variant).resolution)
    config.phases = (phase(train=(trained,), batch_norm=mode, steps=100),)
    counts = dict.fromkeys(("train", "validation", "test"), 10**6)
    config = check_config(config).copy_and_resolve_references()
    config.weights = ""  # as if there were some: values do not decide on what is compiled
    [programs] = phase_programs(config, devices, images=counts, num_classes=CLASSES)
    return programs.train()


def lower_plain(devices: tuple, variant: str, trained: str, mode: str, images: int) -> Any:
    """Lowers the step as Flax's guides write it: one `jax.jit`, replicated parameters, a batch shared by rows."""
    architecture = get_variant(variant)
    model = PlainEfficientNet(architecture, CLASSES, jnp.bfloat16)
    units = FreezePlan(variant, (trained,)).trained_units
    train = mode == "train"
    optimizer = optax.sgd(0.01, momentum=0.9)

    def create() -> tuple:
        variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        parts = [{k: v for k, v in variables["params"].items() if (k in units) == own} for own in (True, False)]
        return parts[0], parts[1], variables["batch_stats"], optimizer.init(parts[0])

    def step(state: tuple, batch: tuple) -> tuple:
        trained, frozen, statistics, momentum = state
        images, labels = batch

        def loss_of(trained: Any) -> tuple:
            variables = {"params": trained | frozen, "batch_stats": statistics}
            logits, updated = model.apply(variables, images, train, mutable=["batch_stats"])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), updated["batch_stats"]

        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
        updates, momentum = optimizer.update(gradients, momentum)
        return (optax.apply_updates(trained, updates), frozen, statistics, momentum), loss

    mesh, side = Mesh(devices, "data"), architecture.resolution

    def placed(spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    count = images * len(devices)
    batch = jax.ShapeDtypeStruct((count, side, side, 3), jnp.uint8), jax.ShapeDtypeStruct((count,), jnp.int32)
    state = jax.tree.map(placed(PartitionSpec()), jax.eval_shape(create))
    return jax.jit(step, donate_argnums=0).lower(state, jax.tree.map(placed(PartitionSpec("data")), batch))


def measure(lowered: Any, chip: Any, images: int) -> dict[str, Any]:
    """Compiles and reports."""
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = too_large(str(error), chip, images)
        if found is None:
            raise
        return found.to_json()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return report(compiled, chip, images, time.monotonic() - began).to_json() | {"temporary_bytes": temporaries}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="+")
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--json", default="")
    parser.add_argument("--forms", default="here,plain")
    arguments = parser.parse_args()
    chip, devices = parse_topology(arguments.topology).chip, topology_devices(arguments.topology)
    results = []
    for name in arguments.steps:
        match [*name.split(","), "1", ""][: max(6, name.count(",") + 1)]:
            case [variant, trained, mode, images, pieces, remat]:
                share = int(images)
            case _:
                raise ConfigError(f"{name}: write VARIANT,TRAINED,BATCH NORM,IMAGES[,MICROBATCHES[,remat]]")
        for form in arguments.forms.split(","):
            if form == "here":
                lowered = lower_here(devices, variant, trained, mode, share, int(pieces), remat == "remat")
            else:
                lowered = lower_plain(devices, variant, trained, mode, share)
            row = {"step": name, "form": form, "topology": arguments.topology, **measure(lowered, chip, share)}
            results.append(row)
            print(_line(row), flush=True)
            if arguments.json:
                with open(arguments.json, "w") as file:
                    json.dump(results, file, indent=2)


def _line(row: dict[str, Any]) -> str:
    name = f"{row['step']:30} {row['form']:6}"
    if row["flops_per_image"] is None:
        return f"{name} does not fit: {row['bytes_per_chip'] / 2**30:.1f} GiB a chip"
    hbm, accessed = row["hbm_bytes_per_image"] / 1e6, row["bytes_accessed_per_image"] / 1e6
    return (
        f"{name} HBM {hbm:7.1f} MB, accessed {accessed:7.1f} MB, {row['flops_per_image'] / 1e9:6.2f} GFLOP an image; "
        f"{row['collectives']} collectives, {row['collective_bytes_per_image'] / 1e6:.2f} MB an image; "
        f"temporaries {row['temporary_bytes'] / 1e9:.2f} GB; {row['images_per_second_per_chip']:.0f} images/s a chip; "
        f"{row['compile_seconds']:.0f} s"
    )


if __name__ == "__main__":
    run_command(main)
