"""Classifies images: `python -m effnet_jax.predict WEIGHTS IMAGE…`.

WEIGHTS is a weights dir, or the name of published weights.

IMAGE is a file, a folder (every image in it and below), or a glob pattern in quotes.

    python -m effnet_jax.predict runs/mine/weights photos --out=answers.jsonl
    python -m effnet_jax.predict noisy_student_b0 photos --features=features.npz

A file that cannot be read is an entry with its error; the exit status is then 1, and 2 where the command itself could
not do its work. The same command goes on with an output that is half done, to the same bytes.
"""

import argparse
import contextlib
import io
import itertools
import json
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from effnet_jax import files
from effnet_jax.data.sources.listing import Unread
from effnet_jax.errors import ConfigError, Stopped, run_command
from effnet_jax.predict.classifier import TTA, Classifier, FeatureExtractor, load_classifier, load_features
from effnet_jax.predict.features_file import FeaturesOutput, check_kind, parts
from effnet_jax.predict.growing import local_path
from effnet_jax.predict.inputs import find_images
from effnet_jax.predict.outputs import UNKNOWN, TextOutput, Told, text_kind
from effnet_jax.predict.settings import check_same, keep_about, listing_identity, read_about, weights_identity
from effnet_jax.predict.stream import Result
from effnet_jax.train.compiling import keep_for_next_time

_SHOWN_FROM = 17  # images from which a terminal gets a progress bar


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit status: 1 where some images could not be read, else 0."""
    with _hearing_sigterm() as heard:
        return _run(_parse(arguments), heard)


def _run(options: argparse.Namespace, heard: threading.Event) -> int:
    out = local_path(options.features or options.out) if options.features or options.out not in ("", "-") else None
    if out is not None:  # before anything takes time
        check_kind(out) if options.features else text_kind(out)
    unread = Unread()
    images = find_images(options.images, unread)
    if unread.words():
        print(unread.words(), file=sys.stderr)
    keep_for_next_time()
    load: Any = load_features if options.features else load_classifier
    model: Classifier | FeatureExtractor = load(
        options.weights,
        resolution=options.resolution,
        batch_size=options.batch_size or _batch_size_before(out),
        tta=options.tta,
        workers=options.workers,
        dtype=options.dtype,
    )
    if out is None:
        assert isinstance(model, Classifier)
        told = Told(model.class_names, options.top, options.threshold)
        return _print(images, model, told, options, heard)
    return _write(images, model, out, options, heard)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="a weights dir, or the name of published weights")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, folders, or patterns in quotes")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to name for each image (5)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of text")
    parser.add_argument("--out", default="", metavar="OUT", help="write OUT.jsonl or OUT.csv; -: JSON lines to stdout")
    parser.add_argument("--features", default="", metavar="OUT", help="write pooled features, OUT.npz or OUT.parquet")
    parser.add_argument("--threshold", type=float, default=0.0, metavar="P", help=f'class "{UNKNOWN}" below it')
    parser.add_argument("--tta", default="", choices=TTA[1:], help="flip: the mean with the mirror image")
    parser.add_argument("--batch_size", type=int, default=0, help="images at a time, of all devices (by the device)")
    parser.add_argument("--resolution", type=int, default=0, help="of what the model sees (that of the weights)")
    parser.add_argument("--dtype", default="float32", help="of the model: float32 or bfloat16")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode (0: threads)")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error("--top must be 1 or more")
    if not 0 <= options.threshold < 1:
        parser.error("--threshold is a probability, from 0 to below 1")
    if bool(options.out) + bool(options.features) + options.json > 1:
        parser.error("--json, --out and --features exclude each other: give one of them")
    if options.features and options.threshold:
        parser.error("--threshold is of classes, and --features has none: leave it out")
    return options


@contextlib.contextmanager
def _hearing_sigterm() -> Iterator[threading.Event]:
    """Lets SIGTERM, by which clouds and queues end a process, stop as Ctrl-C does; a second one ends at once.

    What is yielded says that it came: in a callback of the garbage collector Python drops what a handler raises.
    """
    heard = threading.Event()
    # Signals reach the main thread only, and who called us may have another use for them.
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield heard
        return

    def receive(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        heard.set()
        raise Stopped("SIGTERM", "terminated")

    signal.signal(signal.SIGTERM, receive)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# ---- To the screen ----


def _print(
    images: list[str], model: Classifier, told: Told, options: argparse.Namespace, heard: threading.Event
) -> int:
    """Prints results as text, as a JSON list or as JSON lines, each group of them as soon as it is there."""
    bad = 0
    lines = _json_list if options.json else _json_lines if options.out else _text
    if lines is not _text and isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8, whatever a terminal takes
        sys.stdout.reconfigure(encoding="utf-8")
    with contextlib.closing(model.stream(images, on_error="entry")) as results:  # type: ignore[type-var]

        def entries() -> Iterator[dict[str, Any]]:
            nonlocal bad
            shown = _until(heard, _with_progress(results, len(images)))
            for path, result in zip(images, shown, strict=True):
                bad += result.values is None
                yield told(path, result)

        for number, line in enumerate(lines(entries(), options.threshold), 1):
            print(line, flush=number % model.batch_size == 0)
    print(end="", flush=True)
    return _end(len(images), bad)


def _json_list(entries: Iterable[dict[str, Any]], threshold: float) -> Iterator[str]:
    before = "["
    for entry in entries:
        text = json.dumps(entry, ensure_ascii=False, indent=1)
        yield before + "\n " + text.replace("\n", "\n ")
        before = ","
    yield "]"


def _json_lines(entries: Iterable[dict[str, Any]], threshold: float) -> Iterator[str]:
    for entry in entries:
        yield json.dumps(entry, ensure_ascii=False)


def _text(entries: Iterable[dict[str, Any]], threshold: float) -> Iterator[str]:
    for entry in entries:
        lines = [entry["image"]]
        if "error" in entry:
            lines.append(f"  error: {entry['error']}")
        elif entry.get("class") == UNKNOWN:
            lines.append(f"  {UNKNOWN}: no class has {threshold:.0%}")
        lines += [f"  {row['probability']:6.1%}  {row['class']}" for row in entry.get("predictions", ())]
        yield "\n".join(lines)


def _end(count: int, bad: int, where: str = "") -> int:
    if bad:
        print(f"{bad:,} of {count:,} images could not be read{where}", file=sys.stderr)
    return 1 if bad else 0


def _until(heard: threading.Event, results: Iterable[Result]) -> Iterator[Result]:
    for result in results:
        if heard.is_set():
            raise Stopped("SIGTERM", "terminated")
        yield result


def _with_progress(results: Iterable[Result], total: int, done: int = 0) -> Iterator[Result]:
    """Shows a progress bar on a terminal where there are more than a few."""
    if total < _SHOWN_FROM or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("classifying", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # On a terminal rich prints our lines above its bar; where stdout is a file or a pipe they must go there.
    console, above = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=above) as progress:
        task = progress.add_task("", total=total, completed=done)
        for result in results:
            progress.advance(task)
            yield result


# ---- To a file ----


def _filled(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _begun(out: Path) -> bool:
    """Whether there is something of an output."""
    return any(map(_filled, (out, *parts(out))))


def _batch_size_before(out: Path | None) -> int:
    """The batch size that an output was begun with, so that going on with it gives the same bytes; 0 for none."""
    about = read_about(out) if out is not None and _begun(out) else None
    size = about.get("batch_size", 0) if about else 0
    return size if isinstance(size, int) and size > 0 else 0


def _write(
    images: list[str],
    model: Classifier | FeatureExtractor,
    out: Path,
    options: argparse.Namespace,
    heard: threading.Event,
) -> int:
    """Writes results into a file, or goes on with it."""
    about = {
        "weights": weights_identity(model.metadata),
        "features": bool(options.features),
        "resolution": model.metadata.resolution,
        "dtype": options.dtype,
        "tta": options.tta,
        "batch_size": model.batch_size,
    }
    if isinstance(model, Classifier):
        about |= {"top": options.top, "threshold": options.threshold}
    if options.features and _filled(out):
        check_same(out, about)
        return _features_there(images, out)
    files.make_folder(out.parent)
    output: TextOutput | FeaturesOutput
    if isinstance(model, Classifier):
        output = TextOutput(out, Told(model.class_names, options.top, options.threshold), images)
    else:
        output = FeaturesOutput(out, model.width, images)
    with contextlib.closing(output):  # no other process's while it is open, so what is said of it is true
        if _begun(out):
            check_same(out, about)
        else:  # before the first result, which would be nobody's without it
            keep_about(out, about)
        output.resume(model.batch_size)
        keep_about(out, about)
        began, before = time.monotonic(), output.done
        if before:
            print(f"{out} has {before:,} of {len(images):,} images: going on from there", file=sys.stderr)
        try:
            _fill(output, model, images, heard)
            seconds = time.monotonic() - began
            if isinstance(output, FeaturesOutput):
                keep_about(out, about | {"finished": {"listing": listing_identity(images), "bad": output.bad}})
                output.finish()
        except KeyboardInterrupt as stop:
            raise Stopped(
                getattr(stop, "signal", "SIGINT"),
                f"{str(stop) or 'interrupted'}: {out} has the first {output.done:,} of {len(images):,} images; "
                "the same command goes on",
            ) from None
    speed = f" ({(len(images) - before) / seconds:,.1f} images/s)" if len(images) > before else ""
    print(f"wrote {out}: {len(images):,} images{speed}", file=sys.stderr)
    return _end(len(images), output.bad, f", listed with the reason in {out}")


def _fill(
    output: TextOutput | FeaturesOutput,
    model: Classifier | FeatureExtractor,
    images: list[str],
    heard: threading.Event,
) -> None:
    """Computes what an output lacks, and appends it batch by batch."""
    rest = itertools.islice(images, output.done, None)
    with contextlib.closing(model.stream(rest, on_error="entry")) as results:  # type: ignore[type-var]
        shown = _until(heard, _with_progress(results, len(images), output.done))
        while batch := list(itertools.islice(shown, model.batch_size)):
            output.write(batch)


def _features_there(images: list[str], out: Path) -> int:
    """Says that a file of features is there, and whether it is of these images."""
    finished = (read_about(out) or {}).get("finished") or {}
    if finished.get("listing") != listing_identity(images):
        raise ConfigError(f"{out} has the features of other images: give another name, or remove it")
    for part in parts(out):  # which a kill at the very end may have left
        files.remove(part)
    print(f"{out} is there already, of these images", file=sys.stderr)
    return _end(len(images), finished.get("bad", 0), f", listed with the reason in {out}")


if __name__ == "__main__":
    run_command(main)
