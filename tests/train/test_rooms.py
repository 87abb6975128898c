"""What the map promises about who may touch what."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "effnet_jax"
EFFECTS = {"os", "time", "json", "pathlib", "shutil", "logging", "tempfile", "random", "datetime"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted((PACKAGE / "train" / "step").glob("*.py")), ids=lambda path: path.name)
def test_a_pure_room_touches_no_file_and_no_clock(path):
    found = set(imports(path))
    assert not {name.partition(".")[0] for name in found} & EFFECTS
    assert not {name for name in found if name.startswith(("effnet_jax.files", "effnet_jax.hosts"))}


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"process_index\(|process_count\(|multihost_utils|sync_global", {"hosts"}),
        (r"(?<!functools)\.partial\b", {"files.py", "locks.py", "data/prepare.py"}),  # a data set is no run dir
    ],
)
def test_processes_and_partial_files_have_one_home(pattern, allowed):
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name in allowed or name.partition("/")[0] in allowed:
            continue
        assert not re.search(pattern, path.read_text()), name


def test_run_dirs_are_touched_through_files():
    for path in [*(PACKAGE / "train").rglob("*.py"), PACKAGE / "weights" / "store.py", PACKAGE / "export.py"]:
        found = set(imports(path))
        assert "shutil" not in found, path
        assert not re.search(
            r"\bos\.(replace|rename|remove|unlink|makedirs|mkdir|rmdir)\b|(?<!\.)\bopen\(", path.read_text()
        ), path


def test_no_function_of_training_takes_a_dozen_arguments():
    """What belongs to a run is passed as one object."""
    longest = {}
    for path in (PACKAGE / "train").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                longest[f"{path.name}:{node.name}"] = len([one for one in given if one.arg != "self"])
    most = max(longest, key=lambda name: longest[name])
    assert longest[most] <= 8, most
    assert sum(count > 5 for count in longest.values()) <= 6, {n: c for n, c in longest.items() if c > 5}


def test_a_mistyped_config_is_told_without_jax():
    code = (
        "import sys\n"
        "from effnet_jax.train.config import check_config\n"
        "from effnet_jax.errors import ConfigError\n"
        "try:\n"
        "    check_config({'data': {'name': 'x'}, 'weights': 'w', 'phases': [{'epochs': 1, 'optimizer': 'sgdd'}]})\n"
        "except ConfigError as error:\n"
        "    assert 'sgd' in str(error), error\n"
        "else:\n"
        "    raise AssertionError\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
