"""Writes an image folder again with its photographs as large as a camera's, and with the noise of a sensor.

python tools/enlarge.py examples/clothing /data/clothing_12mp --megapixels=12 --noise=20
"""

import argparse
import concurrent.futures
import functools
import os
import pathlib
import zlib

import numpy as np
from PIL import Image

from effnet_jax.errors import run_command


def enlarge(source: pathlib.Path, root: pathlib.Path, out: pathlib.Path, megapixels: float, noise: float) -> None:
    """Writes one photograph below `out`, at the place that it has below `root`.

    Args:
      source: the photograph.
      root: of the folder that it is in.
      out: of the folder to write.
      megapixels: of the result.
      noise: standard deviation of what each value of a pixel gets by itself, in levels of 255; the same at each call.
    """
    with Image.open(source) as image:
        scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        size = (round(image.width * scale), round(image.height * scale))
        large = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
    place = source.relative_to(root)
    random = np.random.default_rng(zlib.crc32(str(place).encode()))
    noisy = large + noise * random.standard_normal(large.shape, np.float32)
    target = (out / place).with_suffix(".jpg")
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).save(target, quality=90)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=pathlib.Path, help="an image folder")
    parser.add_argument("out", type=pathlib.Path, help="the folder to write")
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--noise", type=float, default=20.0, help="standard deviation, in levels of 255")
    args = parser.parse_args()
    photographs = sorted(args.root.glob("*/*/*.jpg"))
    write = functools.partial(enlarge, root=args.root, out=args.out, megapixels=args.megapixels, noise=args.noise)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, photographs))
    print(f"{len(photographs)} photographs of {args.megapixels:g} megapixels are in {args.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
