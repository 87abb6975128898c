"""The checks of a complete config: values out of range, and settings that cannot work together."""

from collections.abc import Mapping, Sequence
from typing import Any

from effnet_jax import choices, files
from effnet_jax.data.augment_settings import AugmentSettings, read_settings
from effnet_jax.errors import ConfigError, nearest
from effnet_jax.model.variants import VARIANTS
from effnet_jax.train.step.freeze import FreezePlan, units_of


def make_plan(config: Mapping[str, Any], phase: Mapping[str, Any]) -> FreezePlan:
    """Returns the freeze plan of a phase of a checked config."""
    return FreezePlan(config["variant"], tuple(phase["train"]), phase["batch_norm"] or config["batch_norm"])


def augment_settings(config: Mapping[str, Any], phase: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the augmentation of a phase: the run's, with what the phase changes."""
    return {**config["augment"], **phase["augment"]}


def weights_asked(config: Mapping[str, Any], phase: Mapping[str, Any]) -> str | dict[str, float]:
    """Returns the class weights of a phase: `""` for none, `"balanced"`, or a table."""
    asked = phase["class_weights"] or config["class_weights"]
    if not isinstance(asked, str):
        return dict(asked.items())
    return "" if asked == "none" else asked


def sampling_of(config: Mapping[str, Any], phase: Mapping[str, Any]) -> str:
    """Returns the sampling of a phase: `"natural"` or `"balanced"`."""
    return phase["sampling"] or config["sampling"]


def _choose(value: str, names: Sequence[str], place: str) -> None:
    if value not in names:
        raise ConfigError(f"{place}={value!r} is unknown: {nearest(value, names)}")


def _within(value: float, low: float, high: float, place: str) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{place}={value} is out of range: from {low} to {high:g}")


_HUGE = 1e12


def check_run(config: Mapping[str, Any]) -> None:
    """Checks what belongs to the whole run. Raises ConfigError, VariantError, PathError."""
    _choose(config["variant"], tuple(VARIANTS), "variant")
    _choose(config["dtype"], choices.DTYPES, "dtype")
    _choose(config["batch_norm"], choices.BATCH_NORM_MODES, "batch_norm")
    _choose(config["partition"]["mode"], choices.PARTITION_MODES, "partition.mode")
    _choose(config["partition"]["sharded"], choices.SHARDED, "partition.sharded")
    _check_class_weights(config["class_weights"], "class_weights")
    _choose(config["sampling"], choices.SAMPLINGS, "sampling")
    _check_remat(config["remat"], config["variant"])
    _choose(config["data"]["crop"], ("", *choices.CROPS), "data.crop")
    _choose(config["data"]["order"], choices.ORDERS, "data.order")
    _choose(config["data"]["evaluation"], choices.EVALUATIONS, "data.evaluation")
    _choose(config["data"]["resize"], ("auto", *choices.RESIZES), "data.resize")
    _choose(config["data"]["on_bad_image"], choices.ON_BAD_IMAGE, "data.on_bad_image")
    _choose(config["data"]["duplicates"], choices.DUPLICATES, "data.duplicates")
    for key, low, high in (
        ("seed", 0, 2**31 - 1),
        ("num_classes", 0, _HUGE),
        ("batch_size", 1, _HUGE),
        ("eval_batch_size", 0, _HUGE),
        ("eval_every", 1, _HUGE),
        ("log_every", 1, _HUGE),
        ("survival_prob", 0.05, 1.0),
        ("batch_norm_momentum", 0.0, 1.0),
        ("ema", 0.0, 0.999999),
        ("microbatches", 1, _HUGE),
    ):
        _within(config[key], low, high, key)
    _within(config["partition"]["batch_norm_group"], 0, _HUGE, "partition.batch_norm_group")
    _within(config["partition"]["fsdp"], 1, _HUGE, "partition.fsdp")
    if config["partition"]["fsdp"] > 1 and config["partition"]["mode"] != "pjit":
        raise ConfigError(
            f"partition.fsdp={config['partition']['fsdp']} goes with partition.mode='pjit': under pmap each device has "
            "the whole state. Set it to 1, or take pjit"
        )
    if config["partition"]["batch_norm_group"] and config["partition"]["mode"] != "pmap":
        raise ConfigError(
            f"partition.batch_norm_group={config['partition']['batch_norm_group']} goes with partition.mode='pmap': "
            "under pjit batch norm sees the global batch. Set it to 0, or take pmap"
        )
    _within(config["data"]["workers"], 0, _HUGE, "data.workers")
    _within(config["data"]["cache_gib"], 0.0, _HUGE, "data.cache_gib")
    _check_resolution(config["resolution"], "resolution")
    if config["dropout"] is not None:
        if isinstance(config["dropout"], bool) or not isinstance(config["dropout"], int | float):
            raise ConfigError(f"dropout={config['dropout']!r} needs a number below 1, or None for the variant's")
        _within(config["dropout"], 0.0, 0.99, "dropout")
    read_settings(config["augment"])
    _within(config["checkpoint"]["keep"], 1, _HUGE, "checkpoint.keep")
    _within(config["checkpoint"]["minutes"], 0.0, _HUGE, "checkpoint.minutes")
    _within(config["checkpoint"]["steps"], 0, _HUGE, "checkpoint.steps")
    _check_profile(config["profile_steps"])
    if config["compile_cache"] and files.is_local(config["compile_cache"]):  # a bucket is looked at by who uses it
        files.as_path(config["compile_cache"])
    if not config["data"]["name"]:
        raise ConfigError("data.name is empty: name an image folder, an archive or a prepared data set")
    if not config["data"]["train"]:
        raise ConfigError("data.train is empty: name the split to train on")
    if not config["phases"]:
        raise ConfigError("phases is empty: give at least one, such as (phase(train=('classifier',), epochs=5),)")


def check_batch_size(batch_size: int, devices: int, name: str = "batch_size") -> None:
    """Raises ConfigError where a batch cannot be shared evenly by the devices."""
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        sizes = " or ".join(str(size) for size in (below, below + devices) if size)
        raise ConfigError(f"{name}={batch_size} cannot be shared evenly by {devices} devices: use {sizes}")


def check_devices(config: Mapping[str, Any], devices: int) -> None:
    """Raises ConfigError where devices, pieces and pairs of a batch, or shares of a state do not come out even."""
    check_batch_size(config["batch_size"], devices)
    for key in ("batch_norm_group", "fsdp"):
        size = config["partition"][key]
        if size and devices % size:
            sizes = ", ".join(str(size) for size in range(1, devices + 1) if devices % size == 0)
            raise ConfigError(
                f"partition.{key}={size} does not divide the {devices} devices into groups: use one of {sizes}"
                + ", or 0 for all together" * (key == "batch_norm_group")
            )
    if config["eval_batch_size"]:
        check_batch_size(config["eval_batch_size"], devices, "eval_batch_size")
    share, pieces = config["batch_size"] // devices, config["microbatches"]
    if share % pieces:
        sizes = ", ".join(str(size) for size in range(1, share + 1) if share % size == 0)
        raise ConfigError(
            f"microbatches={pieces} does not divide the {share} images of each device (batch_size="
            f"{config['batch_size']} over {devices}): use one of {sizes}"
        )
    if share // pieces % 2 == 0 or config["batch_size"] == share // pieces:
        return
    for index, keys in enumerate(config["phases"]):
        settings = augment_settings(config, keys)
        used = [name for name in ("mixup", "cutmix") if settings[name]]
        if used:
            raise ConfigError(
                f"phases[{index}] ({keys['name']!r}) uses {' and '.join(used)}, which mixes pairs of neighbours, and "
                f"{share // pieces} images at a time on each of {devices} devices make no pairs: take an even number, "
                f"such as batch_size={2 * pieces * devices * max(1, round(share / pieces / 2))}, or set "
                f"{' and '.join(f'augment.{name}=0' for name in used)}"
            )


def _check_class_weights(asked: Any, place: str) -> None:
    if isinstance(asked, Mapping):
        for name, weight in asked.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < _HUGE:
                raise ConfigError(f"{place}[{name!r}]={weight!r} needs a number from 0")
    elif asked not in ("", "none", "balanced"):
        raise ConfigError(f"{place}={asked!r} needs '', 'none', 'balanced', or a table of classes and numbers")


def _check_balance(phase: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    _check_class_weights(phase["class_weights"], f"{where}.class_weights")
    _choose(phase["sampling"], ("", *choices.SAMPLINGS), f"{where}.sampling")
    if sampling_of(config, phase) == "natural":
        return
    if weights_asked(config, phase) == "balanced":
        raise ConfigError(
            f"{where} has sampling='balanced' and class_weights='balanced', so that rare classes would be made up for "
            f"twice: take one of them, such as {where}.class_weights='none' or {where}.sampling='natural'"
        )
    if config["data"]["order"] == "sharded":
        raise ConfigError(
            f"{where} has sampling='balanced', which draws from all images, and data.order='sharded' gives each host a "
            "part of them: set data.order='global', or weigh the classes (class_weights='balanced')"
        )


def _check_remat(remat: Any, variant: str) -> None:
    if not isinstance(remat, bool | list | tuple):
        raise ConfigError(f"remat={remat!r} needs True, False, or patterns of units, such as ('stem', 'block1')")
    units_of(remat, variant)


def _check_profile(steps: Sequence[Any]) -> None:
    numbers = [step for step in steps if isinstance(step, int) and not isinstance(step, bool)]
    if steps and not (len(numbers) == len(steps) == 2 and 1 <= numbers[0] <= numbers[1]):
        raise ConfigError(f"profile_steps={steps!r} needs the first and the last step to trace, such as (20, 24)")


def _check_resolution(resolution: int, place: str) -> None:
    if resolution and resolution < 32:
        raise ConfigError(f"{place}={resolution} is too small: use 32 or more")


def check_phase(phase: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Checks one phase of a complete config. Raises ConfigError, PatternError."""
    _choose(phase["optimizer"], choices.OPTIMIZERS, f"{where}.optimizer")
    _choose(phase["schedule"], choices.SCHEDULES, f"{where}.schedule")
    if phase["batch_norm"]:
        _choose(phase["batch_norm"], choices.BATCH_NORM_MODES, f"{where}.batch_norm")
    if bool(phase["epochs"]) == bool(phase["steps"]):
        both = "both epochs and steps" if phase["epochs"] else "neither epochs nor steps"
        raise ConfigError(f"{where} ({phase['name']!r}) has {both}: give one of them")
    for key, low, high in (
        ("epochs", 0.0, _HUGE),
        ("steps", 0, _HUGE),
        ("momentum", 0.0, 0.9999),
        ("learning_rate", 1e-12, 1e4),
        ("warmup", 0.0, phase["epochs"] or phase["steps"]),
        ("decay_rate", 1e-6, 1.0),
        ("decay_every", 1e-6, _HUGE),
        ("plateau_factor", 0.001, 0.999),
        ("plateau_patience", 1, _HUGE),
        ("weight_decay", 0.0, _HUGE),
        ("clip_norm", 0.0, _HUGE),
        ("sam", 0.0, 10.0),
        ("layer_decay", 1e-6, 1.0),
        ("views", 0, _HUGE),
        ("cache_gib", 0.0, _HUGE),
    ):
        _within(phase[key], low, high, f"{where}.{key}")
    _check_resolution(phase["resolution"], f"{where}.resolution")
    if phase["nesterov"] and (phase["optimizer"] != "sgd" or not phase["momentum"]):
        raise ConfigError(f"{where}.nesterov goes with optimizer='sgd' and a momentum, not with {phase['optimizer']!r}")
    if phase["schedule"] == "plateau" and not config["data"]["validation"]:
        raise ConfigError(
            f"{where}.schedule='plateau' follows the validation loss, and data.validation is empty: name a split, such "
            "as data.validation='train[90%:]' with data.train='train[:90%]', or take schedule='cosine'"
        )
    plan = make_plan(config, phase)
    if not config["weights"] and plan.batch_norm == "frozen" and plan.trains_trunk:
        raise ConfigError(
            f"{where} trains {plan.first_trained!r} from scratch with batch_norm='frozen', whose statistics would "
            "stay as initialised: set batch_norm='train', or give config.weights"
        )
    for pattern, factor in phase["factors"].items():
        FreezePlan(config["variant"], (pattern,))
        if isinstance(factor, bool) or not isinstance(factor, int | float) or factor < 0:
            raise ConfigError(f"{where}.factors[{pattern!r}]={factor!r} needs a number from 0")
    read_settings(phase["augment"], where=f"{where}.augment")
    read_settings(augment_settings(config, phase), where=f"augment with {where}.augment")
    _check_balance(phase, config, where)
    if phase["cache"]:
        if config["data"]["order"] == "sharded":
            raise ConfigError(
                f"{where}.cache={phase['cache']!r} keeps the outputs of all images on every host, and "
                f"data.order='sharded' is for sets that fit none: set {where}.cache='', or data.order='global'"
            )
        _check_cache(phase, plan, read_settings(augment_settings(config, phase)), where)


def _check_cache(phase: Mapping[str, Any], plan: FreezePlan, augment: AugmentSettings, where: str) -> None:
    _choose(phase["cache"], choices.CACHE_PLACES, f"{where}.cache")
    _choose(phase["cache_dtype"], choices.CACHE_DTYPES, f"{where}.cache_dtype")
    if plan.cut is None:
        raise ConfigError(f"{where} trains the stem, so that no frozen output could be kept: set {where}.cache=''")
    if not phase["views"]:
        raise ConfigError(
            f"{where}.cache={phase['cache']!r} keeps a fixed number of augmented views of each image, and views=0 "
            f"makes a new one at every step: set {where}.views=1 or more, or cache=''"
        )
    mixed = [name for name in ("mixup", "cutmix") if getattr(augment, name)]
    if mixed:
        raise ConfigError(
            f"{where}.cache={phase['cache']!r} keeps what the frozen units make of single images, and "
            f"{' and '.join(mixed)} mixes images at every step: turn it off in {where}.augment, or set cache=''"
        )


def check_kept_optimizer(phase: Mapping[str, Any], before: Sequence[Mapping[str, Any]], where: str) -> None:
    """Raises ConfigError where a phase would keep the moments of none or of another optimizer."""
    if not phase["keep_optimizer"]:
        return
    if not before:
        raise ConfigError(f"{where}.keep_optimizer keeps the moments of the phase before, and there is none: remove it")
    if before[-1]["optimizer"] != phase["optimizer"]:
        raise ConfigError(
            f"{where}.keep_optimizer keeps the moments of the phase before, whose optimizer is "
            f"{before[-1]['optimizer']!r} and not {phase['optimizer']!r}: use one in both, or keep_optimizer=False"
        )
