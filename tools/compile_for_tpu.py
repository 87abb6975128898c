"""Compiles a recipe's steps for a slice of Cloud TPU that is not there, and says what they would need and do.

    python tools/compile_for_tpu.py --config=configs/cifar100_b0.py --topology=v5e:2x2 --json=b0.json

The command is `python -m effnet_jax.tpu`; `--help` lists its flags.
"""

from effnet_jax.errors import run_command
from effnet_jax.tpu.__main__ import main

if __name__ == "__main__":
    run_command(main)
