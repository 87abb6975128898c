"""The notebook runs from top to bottom, on a small archive in CIFAR-100's form, without a network."""

import ast
import io
import json
import pickle
import tarfile

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tests import synthetic
from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "colabs" / "cifar100_transfer.ipynb"
CLASSES = ["apple", "bear", "cup", "dinosaur"]
COUNTS = {"train": 40, "test": 20}


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def write_archive(path):
    """Writes what `cifar-100-python.tar.gz` has, in small: noise about a colour, which two classes share."""
    random = np.random.default_rng(0)
    colours = np.array([[170, 60, 60], [60, 80, 170], [70, 150, 60], [170, 60, 60]])
    files = {"meta": {"fine_label_names": CLASSES}}
    for split, count in COUNTS.items():
        labels = np.arange(count) % len(CLASSES)
        images = np.clip(colours[labels][:, :, None] + random.normal(0, 40, (count, 3, 32 * 32)), 0, 255)
        files[split] = {b"data": images.astype(np.uint8).reshape(count, -1), b"fine_labels": labels.tolist()}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = pickle.dumps(content, protocol=2)
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def assigned(source):
    """The names that a cell assigns."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return {target.id for node in nodes for target in node.targets}


def pictures(cell):
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_it_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 60_000
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.id


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # of Jupyter's packages
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    weights = tmp_path / "lite0"
    synthetic.write_weights_dir(weights)
    write_archive(tmp_path / "cifar-100-python.tar.gz")
    values = {
        "WEIGHTS": str(weights),
        "DATA": str(tmp_path / "cifar-100-python.tar.gz"),
        "TRAIN": "train[:32]",
        "VALIDATION": "train[32:]",
        "TEST": "test",
        "RESOLUTION": 32,
        "BATCH_SIZE": 8,
        "HEAD_EPOCHS": 1,
        "UNFREEZE": "block7:",
        "UNFREEZE_EPOCHS": 1,
        "WORKDIR": str(tmp_path / "run"),
    }
    place = next(index for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    assert set(values) <= assigned(notebook.cells[place].source)
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines, id="injected"))

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as a runtime has
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises where a cell does
    cells = {cell.id: cell for cell in notebook.cells}

    assert len(pictures(cells["look"])) == 1
    assert len(pictures(cells["views"])) == 2  # of each phase
    assert len(pictures(cells["curves"])) == 1
    assert len(pictures(cells["confusions"])) == len(pictures(cells["mistakes"])) == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [result["name"] for result in summary["phases"]] == ["head", "unfrozen"]
    hits = round(summary["test"]["accuracy"] * COUNTS["test"])
    assert 0 < hits < COUNTS["test"]  # apples and dinosaurs look alike: there are mistakes to show
    assert printed(cells["predict"]).startswith(f"{COUNTS['test'] - hits} of {COUNTS['test']} test images")
