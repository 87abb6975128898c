"""Published weights: what there is, what one asks for, and fetching it.

python -m effnet_jax.weights list
python -m effnet_jax.weights show noisy_student_b1
python -m effnet_jax.weights get noisy_student_b1 [OUT]
"""

import argparse

from effnet_jax.errors import run_command
from effnet_jax.weights.by_name import get_weights, place_of
from effnet_jax.weights.metadata import check_output
from effnet_jax.weights.published import LICENSE, README, Published, get_published, table


def main() -> int:
    """Runs the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all published weights")
    for name, what in (("show", "one of them"), ("get", "fetch one into the cache, or into a weights dir of its own")):
        command = commands.add_parser(name, help=what)
        command.add_argument("name", help="ours or timm's")
    command.add_argument("out", nargs="?", help="the weights dir to make; by default it is kept in the cache")
    args = parser.parse_args()
    if args.command == "list":
        print(f"{'name':22} {'top-1':>6}  {'pixels':>6}  timm's name")
        for row in table().values():
            here = "  (here)" if place_of(row).is_dir() else ""
            print(f"{row.name:22} {row.top1:6.1f}  {row.resolution:6}  {row.alias}{here}")
        return 0
    published = get_published(args.name)
    if args.command == "show":
        print(describe(published))
        return 0
    if args.out:
        check_output(args.out)
    place = get_weights(published)
    if args.out:
        from effnet_jax.weights.store import read_weights, write_weights

        write_weights(args.out, *read_weights(place))
    print(f"{published.name}: {args.out or place}")
    return 0


def describe(published: Published) -> str:
    """Returns what is known of published weights, a line each."""
    recipe, place = published.recipe, place_of(published)
    sources = [
        f"package {source.package} ({source.file})" if source.package else source.url for source in published.sources
    ]
    checksums = [f"{source.file}: {source.sha256}…" for source in published.sources if source.sha256]
    rows = {
        "name": f"{published.name}; timm's {published.alias}",
        "variant": f"{published.variant}, family {published.family}: {recipe.description}",
        "ImageNet top-1": f"{published.top1} %, as published at {README}",
        "resolution": f"{published.resolution} pixels, crop {recipe.crop}, {published.interpolation}",
        "normalization": recipe.normalization,
        "licence": LICENSE,
        "from": "\n                ".join(sources),
        "SHA-256 begins": "\n                ".join(checksums) or "not published; remembered when it is first fetched",
        "here": str(place) if place.is_dir() else "not yet",
    }
    return "\n".join(f"{key:15} {value}" for key, value in rows.items())


if __name__ == "__main__":
    run_command(main)
