"""How the configs of two attempts at one run differ, and whether the second may go on with the first's checkpoints."""

import json
import re
from collections.abc import Mapping
from typing import Any

from effnet_jax.train.config.checks import make_plan
from effnet_jax.train.config.defaults import PHASE_DEFAULTS, default_config, flat, plain

# Keys that change no number that a run has come to: what time and memory it takes, what it writes when and where, and
# whether it goes on without a damaged image, which ended it.
_NEUTRAL = re.compile(
    r"remat|partition\.(fsdp|sharded)|cache_dir|compile_cache|profile_steps|log_every|calibrate|report|checkpoint\..*|"
    r"data\.(workers|cache_gib|on_bad_image|duplicates)"
)
# Where data and weights lie: whether they are the same is judged by their contents, where the run dir knows these.
_PLACES = re.compile(r"weights|data\.(name|data_dir)")

# What keys meant before they were there, where that is not their default.
BEFORE = {"data": {"resize": "bicubic"}}


def difference(old: Any, new: Any) -> list[str]:
    """Returns one line for each key that differs between two configs: `batch_size: 64 before, 32 now`."""
    before, after = dict(flat(old)), dict(flat(new))
    missing = object()
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        was, now = before.get(key, missing), after.get(key, missing)
        if was != now:
            lines.append(
                f"{key}: {'absent' if was is missing else json.dumps(was)} before, "
                f"{'absent' if now is missing else json.dumps(now)} now"
            )
    return lines


def compare_configs(
    old: Mapping[str, Any], new: Mapping[str, Any], *, places_differ: bool = True
) -> tuple[list[str], list[str]]:
    """Compares the config of a run's first attempt with that of another one.

    A key that the old one lacks, since a later version of this package added it, has its default there.

    Args:
      old: as `config.json` has it.
      new: likewise, of this attempt.
      places_differ: whether data and weights may lie elsewhere than before.

    Returns:
      The differences that change numbers, and those that change none, one line for each key.
    """
    lines = difference(with_defaults(old), new)
    kinds = [_NEUTRAL, _PLACES] if places_differ else [_NEUTRAL]
    # Where no batch norm normalises with the batch, it does not count what is taken together.
    if not any(make_plan(new, keys).batch_norm_units for keys in new["phases"]):
        kinds.append(re.compile("microbatches"))
    neutral = [line for line in lines if any(kind.fullmatch(line.partition(": ")[0]) for kind in kinds)]
    return [line for line in lines if line not in neutral], neutral


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config out of `config.json` with the defaults of the keys that it lacks; unknown keys stay."""
    complete = _filled(_filled(config, BEFORE), json.loads(json.dumps(plain(default_config()))))
    complete["phases"] = [_filled(keys, json.loads(json.dumps(PHASE_DEFAULTS))) for keys in complete["phases"]]
    return complete


def _filled(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    result = {**defaults, **given}
    for key, default in defaults.items():
        if isinstance(default, Mapping) and default and isinstance(result[key], Mapping):
            result[key] = _filled(result[key], default)
    return result
