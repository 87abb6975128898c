"""The config of a run: its defaults and its strict check.

A config is complete and valid before data is read or memory taken. A recipe (`configs/*.py`) starts from
`default_config()`, sets what it needs, and makes its phases with `phase(...)`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from effnet_jax.data.augment_settings import AugmentSettings
from effnet_jax.errors import ConfigError, nearest
from effnet_jax.train.config.checks import check_kept_optimizer, check_phase, check_run

AUGMENT_DEFAULTS = dataclasses.asdict(AugmentSettings())
_OPEN = ("zoom", "crop", "randaugment")  # a number, a pair or None


def _any(value: Any) -> Any:
    """A value whose type a recipe may change: a number or a pair."""
    return config_dict.FieldReference(value, field_type=object)


def default_config() -> ConfigDict:
    """Returns a complete config; only `data.name` and `phases` have no value that could work."""
    return ConfigDict(
        {
            "variant": "b0",
            "weights": "",  # a weights dir; "": from scratch
            "num_classes": 0,  # 0: from the data
            "resolution": 0,  # 0: the variant's
            "seed": 0,
            "batch_size": 64,  # of all devices together
            "eval_batch_size": 0,  # 0: batch_size
            "dtype": "float32",
            # Patterns of units to compute again in the backward pass, True: all. Less memory, but not on a CPU.
            "remat": _any(False),
            "microbatches": 1,  # pieces of a device's share of a batch, one after the other: less memory
            "class_weights": _any(""),  # of each image's loss: "balanced", or {class: weight}; "" or "none": none
            "sampling": "natural",  # "balanced": every class comes equally often, in place of every image
            "dropout": config_dict.placeholder(float),  # None: the variant's
            "survival_prob": 0.8,
            "batch_norm": "frozen",  # in trained units: "frozen" for transfer, "train" from scratch
            "batch_norm_momentum": 0.99,
            "ema": 0.0,  # decay of moving averages; 0: none
            "eval_every": 1,  # epochs
            "log_every": 10,  # steps
            # At the end a temperature is fitted on the validation split, and kept where it lowers the loss.
            "calibrate": True,
            "report": True,  # evaluation.json and report.html at the end
            "data": {
                "name": "",
                "data_dir": "",
                "train": "train",
                "validation": "validation",  # "": none
                "test": "test",  # "": none
                # "sharded": each host shuffles, decodes and keeps a part of its own, of a set that fits none of them.
                # What a step shows then depends on the number of hosts.
                "order": "global",
                "workers": 0,
                "cache_gib": 1.0,  # memory for decoded photographs: a set that fits is decoded once
                "on_bad_image": "error",  # "skip": go on without it, and list it
                "duplicates": "equal",  # what is looked for in two splits: also "similar" (slow), or "off"
                "size": 0,  # side of the squares of decoded photographs; 0: 8/7 of the resolution
                "evaluation": "auto",  # "crop" (photographs), "resize" (small images)
                # How photographs are evaluated: "auto" as they are trained, "bicubic" as the original does.
                "resize": "auto",  # "antialias" where they are larger than the resolution, else "bicubic"
                "crop": "",  # "": as the weights were evaluated; with "auto", at a lower resolution "frac"
            },
            "augment": {name: _any(value) if name in _OPEN else value for name, value in AUGMENT_DEFAULTS.items()},
            "partition": {
                "mode": "pjit",
                "fsdp": 1,  # devices that share one copy of the state; 1: each has all of it
                "sharded": "state",  # what of it they share: "state", or "optimizer" (its state and averages)
                "batch_norm_group": 0,  # replicas that share batch statistics under pmap; 0: all, 1: each has its own
            },
            "checkpoint": {
                "minutes": 10.0,  # between two checkpoints
                "steps": 0,  # a checkpoint at each multiple of so many steps besides; 0: none
                "keep": 2,  # the newest ones; the best is kept besides
            },
            "cache_dir": "",  # a local folder for trunk caches on disk; "": the run dir
            "compile_cache": "",  # a folder for compiled programs; "": ~/.cache/effnet_jax/xla; "off": none
            "profile_steps": (),  # (first, last): steps of the run to trace for JAX's profiler, such as (20, 24)
            "phases": (),
        }
    )


PHASE_DEFAULTS: dict[str, Any] = {
    "name": "",
    "train": ("classifier",),  # patterns of units
    "epochs": 0.0,  # or steps
    "steps": 0,
    "optimizer": "sgd",  # sgd, rmsprop (as the original), adam, adamw, lars, lamb
    "momentum": 0.9,  # Adam's and LAMB's first decay
    "nesterov": False,  # of sgd
    "learning_rate": 0.01,  # the peak
    "scale_learning_rate": False,  # learning_rate is for 256 images a step
    "schedule": "cosine",  # constant, cosine, exponential (a staircase), plateau (follows the validation loss)
    "warmup": 0.0,  # in epochs, or in steps where the phase is given in steps; decay_every too
    "decay_rate": 0.97,  # factor of the exponential schedule …
    "decay_every": 2.4,  # … at each of its stairs
    "plateau_factor": 0.3,  # of the learning rate, each time that the validation loss stops falling
    "plateau_patience": 3,  # evaluations without a lower validation loss, before that
    "weight_decay": 0.0,  # never of batch norm
    "decay_biases": True,  # of the classifier and of squeeze-and-excite
    "clip_norm": 0.0,  # 0: no clipping
    "sam": 0.0,  # radius rho of sharpness-aware minimisation, such as 0.05; 0: off. A step costs two gradients
    "layer_decay": 1.0,
    "factors": {},  # pattern of units → factor of the learning rate
    # Units trained in the phase before keep their moments. (RMSProp's momentum holds steps of the old rate.)
    "keep_optimizer": False,
    "batch_norm": "",  # "": the run's
    "resolution": 0,  # 0: the run's
    "views": 0,  # augmented views of each image, shown in turn; 0: a new one at every step
    "cache": "",  # "memory" or "disk": what the frozen units make of those views is computed once
    "cache_gib": 4.0,  # of each host: where the outputs are too large, the cache is cut elsewhere
    "cache_dtype": "float16",  # bfloat16, float32
    "class_weights": "",  # "": the run's; "none": none
    "sampling": "",  # "": the run's
    "augment": {},  # what differs from the run's
}


def phase(**keys: Any) -> ConfigDict:
    """Makes one phase, complete, from the keys that differ from `PHASE_DEFAULTS`.

    Raises:
      ConfigError: an unknown key or a wrong type, with the nearest names.
    """
    return _dotted(_complete(keys, PHASE_DEFAULTS, "phase"))


def _dotted(keys: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict that a recipe may change, in whose tables names of classes may have dots."""
    return ConfigDict(keys, type_safe=False, allow_dotted_keys=True)


def shrink(config: ConfigDict, *, resolution: int = 64, batch_size: int = 16) -> ConfigDict:
    """Makes a recipe so small that it runs in about a minute: small images, and a few steps of each phase.

    Args:
      config: complete; changed in place.
      resolution: of all phases.
      batch_size: at most.

    Returns:
      The config. Its `data` stays: a large set needs smaller splits, such as `train[:256]`.
    """
    config.resolution = resolution
    config.partition.fsdp = 1
    share = min(1.0, batch_size / config.batch_size)
    config.batch_size = round(config.batch_size * share)
    config.log_every = 1
    for keys in config.phases:
        keys.update(epochs=0.0, steps=4, resolution=0, warmup=min(keys["warmup"], 1.0))
        if not keys["scale_learning_rate"]:  # in proportion to the images of a step
            keys["learning_rate"] *= share
    return config


def check_config(config: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """Checks a config and completes it with defaults, without touching data or weights.

    Args:
      config: what a recipe gives; what it leaves out has its default.

    Returns:
      A complete, locked config; `phases` is a tuple of complete ConfigDicts.

    Raises:
      ConfigError: unknown keys (with the nearest names), wrong types, values that cannot work.
      PatternError: a pattern that matches no unit or splits one.
      PathError: a folder for compiled programs that is none.
      VariantError: an unknown variant.
    """
    given = plain(config)
    complete = _complete(given, plain(default_config()), "")
    complete["phases"] = tuple(
        _complete(_named(keys, index), PHASE_DEFAULTS, f"phases[{index}]")
        for index, keys in enumerate(complete["phases"])
    )
    check_run(complete)
    for index, keys in enumerate(complete["phases"]):
        check_phase(keys, complete, f"phases[{index}]")
        check_kept_optimizer(keys, complete["phases"][:index], f"phases[{index}]")
    names = [keys["name"] for keys in complete["phases"]]
    if len(set(names)) < len(names):
        raise ConfigError(f"phases need different names, not {', '.join(names)}")
    complete["phases"] = tuple(_dotted(keys).lock() for keys in complete["phases"])
    return _dotted(complete).lock()


def to_json(config: Any) -> Any:
    """Returns a config as JSON has it (tuples become lists), for `config.json` and for comparing."""
    return json.loads(json.dumps(plain(config)))


def plain(value: Any) -> Any:
    """Returns ConfigDicts, also those inside tuples, as dicts, and lists as tuples."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key of a config with its value: `data.name`, and so on, `phases[0].epochs`."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        for index, item in enumerate(value):
            yield from flat(item, f"{prefix}[{index}]")
    else:
        yield prefix, value


def _named(keys: Any, index: int) -> Any:
    if isinstance(keys, Mapping) and not keys.get("name"):
        return {**keys, "name": f"phase{index + 1}"}
    return keys


def _complete(given: Any, defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns `defaults` with what is given, recursively. Raises ConfigError for unknown keys and wrong types."""
    given = plain(given)
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where or 'the config'} is a dict of keys, not {given!r}")
    for key in given:
        if key not in defaults:
            place = f"{where}.{key}" if where else str(key)
            raise ConfigError(f"the config has no key {place!r}: {nearest(key, defaults)}")
    result = {}
    for key, default in defaults.items():
        place = f"{where}.{key}" if where else key
        value = given.get(key, default)
        if isinstance(default, Mapping) and default:
            result[key] = _complete(value, default, place)
        else:
            result[key] = _typed(value, default, place)
    return result


def _typed(value: Any, default: Any, place: str) -> Any:
    if default is None or place.endswith("augment.zoom"):  # whoever reads it checks it
        return value
    if place.rpartition(".")[2] == "class_weights":  # likewise
        return value
    if place == "remat":  # likewise; True and False, or patterns
        return (value,) if isinstance(value, str) else value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, str):  # one pattern of units
        return (value,)
    if not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool):
        raise ConfigError(f"{place}={value!r} is of type {type(value).__name__}, and needs {type(default).__name__}")
    return value
