"""Several processes (hosts) as one run: they join, agree, wait, stop and fail together.

The one place that knows how many processes there are. With one process everything here returns at once.

Processes talk through the key-value store of JAX's coordination service, which lives in the first process, and never
through a device computation, which would wait for a process that failed. Around a run, `watch` keeps a thread that
tells the others each second that this process lives, and hears who failed, fell silent or wishes to stop.
"""

from effnet_jax.hosts.agreeing import (
    agree,
    anywhere,
    compare,
    gather,
    is_readable,
    on_first,
    readable,
    wait,
    whole_array,
)
from effnet_jax.hosts.joining import join
from effnet_jax.hosts.names import count, describe, index, is_first, who
from effnet_jax.hosts.stopping import Stop, stop_signals
from effnet_jax.hosts.watching import watch

__all__ = [
    "Stop",
    "agree",
    "anywhere",
    "compare",
    "count",
    "describe",
    "gather",
    "index",
    "is_first",
    "join",
    "on_first",
    "is_readable",
    "readable",
    "stop_signals",
    "wait",
    "watch",
    "who",
    "whole_array",
]
