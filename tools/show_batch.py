"""Draws what the model sees: a batch of training views beside the same examples in evaluation, with labels.

python tools/show_batch.py --config=configs/quickstart.py --out=batch.png [--phase=blocks] [--step=0] [--count=24]
    [--config.augment.flip=False …]
"""

import argparse
import sys

from effnet_jax.errors import ConfigError, run_command
from effnet_jax.preview import collect_views, draw_views
from effnet_jax.train.__main__ import parse_command


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", default="batch.png", help="the PNG file to write")
    parser.add_argument("--phase", default="", help="whose augmentation is shown; the first phase's by default")
    parser.add_argument("--step", type=int, default=0, help="the step of the run whose batch is shown")
    parser.add_argument("--count", type=int, default=24, help="how many examples at most")
    args, others = parser.parse_known_args()
    if args.count < 1 or args.step < 0:
        raise ConfigError("--count must be at least 1, --step at least 0")
    # The recipe and its overrides are read as in training; nothing is written to a run dir.
    config = parse_command([sys.argv[0], *others, "--workdir=unused"]).config
    draw_views(collect_views(config, phase=args.phase, step=args.step, count=args.count), args.out)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
