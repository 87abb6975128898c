"""Measures ways to make a training square of a large photograph, and prints a table as Markdown (docs/images.md).

    python tools/benchmark_squares.py examples/clothing

Photographs are enlarged to 12 megapixels, given a sensor's noise and saved as JPEG. Each way is timed on one core and
compared with the exact square: every pixel decoded, then averaged in floating point.
"""

import argparse
import glob
import os
import time

import numpy as np
import simplejpeg
from PIL import Image

from effnet_jax.data import jpeg
from effnet_jax.errors import DataError, run_command

FILTERS = Image.Resampling
# What is said of it, the filter, reducing_gap, and how many times the square's side a decoded side must have.
WAYS = (
    ("all pixels, bicubic", FILTERS.BICUBIC, None, 0),
    ("all pixels, bicubic, reducing_gap 3", FILTERS.BICUBIC, 3.0, 0),
    ("twice the side, bicubic", FILTERS.BICUBIC, None, 2),
    ("twice the side, bicubic, reducing_gap 3 (used)", FILTERS.BICUBIC, 3.0, 2),
    ("twice the side, bicubic, reducing_gap 2", FILTERS.BICUBIC, 2.0, 2),
    ("twice the side, Hamming", FILTERS.HAMMING, None, 2),
    ("twice the side, bilinear", FILTERS.BILINEAR, None, 2),
    ("twice the side, box", FILTERS.BOX, None, 2),
    ("once the side, bicubic", FILTERS.BICUBIC, None, 1),
    ("three times the side, bicubic", FILTERS.BICUBIC, None, 3),
)


def photographs(folder: str, count: int) -> list[bytes]:
    """Photographs of a folder as JPEGs of 12 megapixels."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), "**", "*.jpg"), recursive=True))
    if not paths:
        raise DataError(f"{folder} holds no .jpg files: name a folder of photographs")
    random = np.random.default_rng(0)
    files = []
    for path in paths[:: -(-len(paths) // count)]:
        image = Image.open(path).convert("RGB")
        scale = (12e6 / (image.width * image.height)) ** 0.5
        image = image.resize((round(image.width * scale), round(image.height * scale)), FILTERS.LANCZOS)
        pixels = np.asarray(image, np.float32) + random.normal(0, 6, (image.height, image.width, 1))
        pixels = np.clip(pixels, 0, 255).astype(np.uint8)
        files.append(simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420"))
    return files


def decoded(data: bytes, min_side: int) -> np.ndarray:
    """A JPEG as `decode_image` decodes it."""
    header = jpeg.read_jpeg(data, whole=False)
    return jpeg.decode_jpeg(data, header, jpeg.reduction(header.height, header.width, min_side))


def exact(data: bytes, size: int) -> np.ndarray:
    """The square as float [size, size, 3]."""
    planes = [Image.fromarray(plane).convert("F") for plane in np.moveaxis(decoded(data, 0), 2, 0)]
    return np.stack([np.asarray(plane.resize((size, size), FILTERS.BICUBIC)) for plane in planes], 2).clip(0, 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=8, help="photographs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 224, 256, 448], help="sides of the square")
    args = parser.parse_args()
    files = photographs(args.folder, args.count)
    print("| side | way | decoded at | ms/image | PSNR, mean | PSNR, least |\n|---|---|---|---|---|---|")
    for size in args.sizes:
        squares = [exact(data, size) for data in files]
        for what, filter_, gap, times in WAYS:
            best, ratios, factors = float("inf"), [], set()
            for _ in range(3):
                start = time.process_time()
                images = [decoded(data, times * size) for data in files]
                made = [Image.fromarray(x).resize((size, size), filter_, reducing_gap=gap) for x in images]
                best = min(best, (time.process_time() - start) / len(files))
            for data, image, square, truth in zip(files, images, made, squares, strict=True):
                factors.add(round(jpeg.read_jpeg(data, whole=False).height / image.shape[0]))
                ratios.append(10 * np.log10(255**2 / np.mean((np.asarray(square) - truth) ** 2)))
            at = ", ".join("1/" + str(factor) if factor > 1 else "1" for factor in sorted(factors))
            figures = f"{1e3 * best:.0f} | {np.mean(ratios):.1f} | {np.min(ratios):.1f}"
            print(f"| {size} | {what} | {at} | {figures} |", flush=True)


if __name__ == "__main__":
    run_command(main)
