"""The config of a run: defaults, the strict check, and how two configs differ. No data is read, no JAX imported."""

from effnet_jax.train.config.defaults import (
    PHASE_DEFAULTS,
    check_config,
    default_config,
    flat,
    phase,
    plain,
    shrink,
    to_json,
)
from effnet_jax.train.config.differences import compare_configs, difference

__all__ = [
    "PHASE_DEFAULTS",
    "check_config",
    "compare_configs",
    "default_config",
    "difference",
    "flat",
    "phase",
    "plain",
    "shrink",
    "to_json",
]
