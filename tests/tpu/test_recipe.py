"""The command that compiles a recipe: with programs of no consequence, and where libtpu is installed a real one."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from effnet_jax.errors import ConfigError, EffnetError, WeightsError
from effnet_jax.tpu import AUTO, recipe
from effnet_jax.tpu.__main__ import main, parse_arguments
from effnet_jax.tpu.chips import CHIPS, Topology, parse_topology
from effnet_jax.tpu.recipe import _without_weights, compile_recipe, misfits
from effnet_jax.train.config import default_config
from effnet_jax.train.programs import PhasePrograms

RECIPE = """\
from effnet_jax.train.config import default_config, phase


def get_config(mode=""):
    config = default_config()
    config.update(variant="lite0", resolution=32, batch_size=32, dtype="bfloat16", weights="weights/none")
    config.data.name = "nowhere"
    config.phases = (phase(name="head", epochs=1), phase(name="blocks", train=("block7:",), epochs=1))
    return config
"""
WIDTH = 256  # a fake step holds so many floats an image


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def command(recipe_file, monkeypatch):
    """Runs the command with flags after the recipe's."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["effnet_jax.tpu", f"--config={recipe_file}", *flags])
        for name in ("JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE"):  # the command sets them for its own process
            monkeypatch.setenv(name, "cpu")
        return main()

    return run


@pytest.fixture
def fake_programs(monkeypatch):
    """Four devices of the CPU as chips, and steps that do next to nothing. Returns the batches that were asked for."""
    devices = jax.devices()[:4]
    asked = []

    def program(batch_size, depth=1):
        def lower():
            mesh = Mesh(np.array(devices), ("data",))
            rows = jax.ShapeDtypeStruct(
                (batch_size, WIDTH), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data"))
            )
            return jax.jit(lambda rows: jnp.sum(rows @ rows.T[:, :depth])).lower(rows)

        return lower

    def phase_programs(config, given, *, images, num_classes):
        assert list(given) == devices
        assert num_classes == 1000
        asked.append(config.batch_size)
        sizes = (config.batch_size, config.eval_batch_size or config.batch_size)
        return [
            PhasePrograms(keys["name"], *sizes, program(sizes[0], depth + 1), program(sizes[1]))
            for depth, keys in enumerate(config.phases)
        ]

    monkeypatch.setattr(recipe, "topology_devices", lambda name: tuple(devices))
    monkeypatch.setattr(recipe, "phase_programs", phase_programs)
    return asked


def test_what_the_command_writes(command, fake_programs, tmp_path, capsys):
    out = tmp_path / "new" / "figures.json"
    assert command("--topology=v5e:2x2", f"--json={out}", "--config.eval_batch_size=64") == 0
    result = json.loads(out.read_text())
    assert (result["topology"], result["chip"], result["chips"]) == ("v5e:2x2", "v5e", 4)
    assert result["config"]["variant"] == "lite0"
    assert result["config"]["weights"] == "weights/none"
    assert result["images"] == {"train": 1_281_167, "validation": 50_000, "test": 50_000}
    assert {"jax", "libtpu"} <= set(result["versions"])
    assert [phase["name"] for phase in result["phases"]] == ["head", "blocks"]
    for phase in result["phases"]:
        assert (phase["batch_size"], phase["train"]["images_per_chip"]) == (32, 8)
        assert (phase["eval_batch_size"], phase["evaluate"]["images_per_chip"]) == (64, 16)
        for step in ("train", "evaluate"):
            wanted = {
                "fits", "bytes_per_chip", "flops_per_image", "hbm_bytes_per_image", "bytes_accessed_per_image",
                "collective_bytes_per_image", "collectives", "images_per_second",
            }  # fmt: skip
            assert all(phase[step][key] is not None for key in wanted)
    printed = capsys.readouterr().out
    assert "note: weights/none is not here" in printed
    assert "the sizes of ImageNet are taken" in printed
    assert "head: training step, 8 images a chip: compiled in" in printed
    assert printed.count("evaluation step, 16 images a chip: compiled") == 1  # both phases evaluate alike
    assert "what moves most in the training step" in printed


def test_other_batches_and_images(command, fake_programs, tmp_path):
    out = tmp_path / "figures.json"
    assert command("--topology=v5e:2x2", f"--json={out}", "--batch_size=64", "--images=5000") == 0
    result = json.loads(out.read_text())
    assert fake_programs == [64]
    assert result["config"]["batch_size"] == result["phases"][0]["batch_size"] == 64
    assert result["images"]["train"] == 5000


def small_chips(usable):
    """A slice whose chips have next to no memory."""
    chip = types.SimpleNamespace(**{**vars(CHIPS["v5e"]), "usable_bytes": usable})
    return Topology(chip, (2, 2))


def test_the_largest_batch_of_all_phases(recipe_file, fake_programs):
    told = []
    config = parse_arguments(["", f"--config={recipe_file}", "--topology=v5e:2x2"]).config
    result = compile_recipe(config, small_chips(400_000), batch_size=AUTO, tell=told.append)
    best = result["phases"][0]["batch_size"]
    assert result["config"]["batch_size"] == best
    assert best % 32 == 0  # 8 a chip
    assert all(phase["train"]["fits"] for phase in result["phases"])
    assert max(asked for asked in fake_programs if asked <= best) == best
    assert min(asked for asked in fake_programs if asked > best) == best + 32  # which was compiled, and does not fit
    assert len(told) == len(set(told))  # nothing was compiled twice


def test_no_batch_fits(recipe_file, fake_programs):
    config = parse_arguments(["", f"--config={recipe_file}", "--topology=v5e:2x2"]).config
    with pytest.raises(ConfigError, match=r"1 images a chip are too many already.*v4 \(30.75 GiB\) or"):
        compile_recipe(config, small_chips(100), batch_size=AUTO, tell=lambda line: None)


def test_a_step_that_does_not_fit(command, fake_programs, monkeypatch, capsys):
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (31.00G) exceeds "
        "available HBM (15.75G)."
    )

    def refuse(*arguments):
        raise JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    assert command("--topology=v5e:2x2") == 1
    captured = capsys.readouterr()
    assert "does not fit: it needs 31 GiB a chip and has 15.75 GiB" in captured.err
    assert "--batch_size=auto" in captured.err
    assert "v5p (95 GiB) or v6e (31.25 GiB)" in captured.err
    assert "v4" not in captured.err
    assert " 31.00    no " in captured.out


def test_another_error_of_the_compiler_is_a_bug(command, fake_programs, monkeypatch):
    def fail(*arguments):
        raise JaxRuntimeError("INTERNAL: no")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    with pytest.raises(JaxRuntimeError, match="INTERNAL"):
        command("--topology=v5e:2x2")


def test_nothing_is_said_where_all_fits():
    fine = {"fits": True, "bytes_per_chip": 1, "usable_bytes": 2}
    assert misfits({"phases": [{"name": "head", "train": fine, "evaluate": fine}]}) == []


@pytest.mark.parametrize(
    ("flags", "cure"),
    [
        (["--topology=v5f:2x2"], r"no TPU 'v5f': did you mean"),
        (["--topology=v5e:3x3"], r"no such slice: use 1x1, 2x2"),
        ([], r"--topology=SLICE is missing"),
        (["--topology"], r"--topology has no value"),
        (["--topolgy=v5e:2x2"], r"--topolgy is no flag: did you mean 'topology'\?"),
        (["--topology=v5e:2x2", "--batch_size=many"], r"needs a whole number from 1, or auto"),
        (["--topology=v5e:2x2", "--images=0"], r"--images=0 needs a whole number from 1"),
        (["--topology=v5e:2x2", "--config.batch_sise=3"], r"did you mean 'batch_size'"),
        (["--topology=v5e:2x2", "--config.dtype=float8"], r"dtype='float8' is unknown"),
        (["--topology=v5e:2x2", "stray"], r"'stray' is not a flag"),
        (
            ["--topology=v5e:2x2", "--batch_size=30"],
            r"batch_size=30 cannot be shared evenly by 4 devices: use 28 or 32",
        ),
        (["--topology=v5e:2x2", "--config.eval_batch_size=6"], r"eval_batch_size=6 cannot be shared evenly"),
    ],
)
def test_mistakes_are_told(command, fake_programs, flags, cure):
    with pytest.raises(ConfigError, match=cure):
        command(*flags)
    assert fake_programs == []


def test_libtpu_is_missing(command, monkeypatch):
    def missing(name):
        raise EffnetError("libtpu is not installed")

    monkeypatch.setattr(recipe, "topology_devices", missing)
    monkeypatch.setattr(recipe, "open_sources", lambda config: pytest.fail("data was read before"))
    with pytest.raises(EffnetError, match="libtpu is not installed"):
        command("--topology=v5e:2x2")


def test_help(command, capsys):
    assert command("--help") == 0
    assert "--batch_size=256" in capsys.readouterr().out


def test_a_real_step(recipe_file, tpu_devices):
    """Lite0's classifier phase at 32 pixels for a v5e:2x2, by the TPU's compiler."""
    flags = ["", f"--config={recipe_file}", "--topology=v5e:2x2", "--config.num_classes=10"]
    config = parse_arguments(flags).config
    config.phases = config.phases[:1]
    result = compile_recipe(config, parse_topology("v5e:2x2"), tell=lambda line: None)
    train, evaluate = (result["phases"][0][step] for step in ("train", "evaluate"))
    assert train["fits"]
    assert evaluate["fits"]
    assert train["host_transfers"] == evaluate["host_transfers"] == train["unknown_loops"] == 0
    # Forward, and of the backward pass the classifier's kernel alone.
    assert 2 * 1280 * 10 <= train["flops_per_image"] - evaluate["flops_per_image"] < 1.05e6
    assert evaluate["flops_per_image"] > 10e6
    # What chips exchange is the classifier's gradient, and the loss and accuracy.
    assert train["collectives"] == 1
    assert 1281 * 10 * 4 <= 8 * train["collective_bytes_per_image"] < 1281 * 10 * 4 + 100
    assert {row["unit"] for row in train["dearest"]} & {"stem", "top", "classifier", "block7a"}
    assert not [row for row in train["dearest"] if row["direction"] == "backward" and row["unit"] != "classifier"]


def test_weights_by_name_of_another_variant_or_of_no_name():
    config = default_config()
    config.variant = "b3"
    for weights, message in (
        ("lite0", "weights of lite0, and config.variant is 'b3'"),
        ("litee0", "did you mean 'lite0'"),
    ):
        config.weights = weights
        with pytest.raises(WeightsError, match=message):
            _without_weights(config, print)
