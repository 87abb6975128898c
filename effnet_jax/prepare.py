"""Prepares data before a run: one set of tensorflow-datasets, or a folder or archive of your own.

    python -m effnet_jax.prepare cifar100 --data_dir=~/tensorflow_datasets     # needs TensorFlow and a network
    python -m effnet_jax.prepare photographs/ prepared/photographs             # needs neither
    python -m effnet_jax.prepare photographs/ prepared/photographs --short_side=320 --on_bad_image=skip
    python -m effnet_jax.prepare cifar-100-python.tar.gz prepared/cifar100
    python -m effnet_jax.prepare hf://user/photographs prepared/photographs

The first is read with data.name=cifar100 data.data_dir=…, the others with data.name=prepared/….
"""

import argparse
import sys

from effnet_jax.data.prepare import prepare_files, prepare_named
from effnet_jax.errors import run_command


def main() -> int:
    """Runs the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help="a tensorflow-datasets name, or with OUT whatever data.name takes")
    parser.add_argument("out", nargs="?", help="the folder to write a folder or archive to")
    parser.add_argument("--data_dir", default="", help="where tensorflow-datasets keeps its sets")
    parser.add_argument("--on_bad_image", choices=("error", "skip"), default="error", help="what to do with bad images")
    parser.add_argument("--splits", default="", help="which to write, such as train,validation; by default all")
    parser.add_argument(
        "--short_side",
        type=int,
        default=0,
        help="make larger photographs smaller, to this shorter side in pixels: 8/7 of the resolution and more will do",
    )
    args = parser.parse_args()
    if args.out is None:
        print(f"prepared {prepare_named(args.source, args.data_dir)}")
        return 0
    out, bad = prepare_files(
        args.source,
        args.out,
        on_bad_image=args.on_bad_image,
        short_side=args.short_side,
        splits=[split for split in args.splits.split(",") if split],
        progress=_progress,
    )
    print(f"\nwrote {out}: use it with data.name={out}")
    for entry in bad:
        print(f"left out {entry['error']}")
    return 0


def _progress(split: str, done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        print(f"\r{split}: {done:,} of {total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
