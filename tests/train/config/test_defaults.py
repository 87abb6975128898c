import json
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from effnet_jax.errors import ConfigError, EffnetError, PatternError, run_command
from effnet_jax.train import __main__ as command
from effnet_jax.train.config import (
    PHASE_DEFAULTS,
    check_config,
    compare_configs,
    default_config,
    difference,
    phase,
    to_json,
)
from effnet_jax.train.config.checks import augment_settings, check_devices, make_plan, sampling_of, weights_asked


def a_config(**changes):
    config = default_config()
    config.weights = "weights/b0"
    config.data.name = "photographs"
    config.phases = (phase(name="head", epochs=2), phase(name="all", train=("all",), steps=10))
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = config
        for name in outer:
            place = place[int(name)] if name.isdigit() else place[name]
        place[last] = value
    return config


def test_a_checked_config_is_complete_and_locked():
    config = check_config({"weights": "w", "data": {"name": "x"}, "phases": [{"epochs": 1}]})
    assert set(config) == set(default_config())
    assert set(config.phases[0]) == set(PHASE_DEFAULTS)
    assert config.phases[0].name == "phase1"
    assert config.data.train == "train"
    with pytest.raises(AttributeError):
        config.batchsize = 3
    assert check_config(config) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batchsize": 8}, "no key 'batchsize': did you mean 'batch_size'"),
        ({"data__nmae": "x"}, "no key 'data.nmae': did you mean 'name'"),
        ({"augment__filp": True}, "no key 'augment.filp': did you mean 'flip'"),
        ({"phases__0__learning_rat": 1.0}, r"no key 'phases\[0\].learning_rat': did you mean 'learning_rate'"),
        ({"phases__1__train": ("block8",)}, "'block8' matches no unit of b0: did you mean 'block"),
        ({"phases__1__train": ("block7a/se_reduce",)}, "would split the unit 'block7a'"),
        ({"phases__0__optimizer": "adams"}, "did you mean 'adam'"),
        ({"profile_steps": (5,)}, r"profile_steps=\(5,\) needs the first and the last step to trace, such as"),
        ({"profile_steps": (0, 5)}, "needs the first and the last"),
        ({"profile_steps": (7, 5)}, "needs the first and the last"),
        ({"profile_steps": (1.0, 5)}, "needs the first and the last"),
        ({"compile_cache": "s3://bucket/xla"}, "s3:// is not supported: use a local folder, or gs://"),
        ({"phases__0__schedule": "cosin"}, r"phases\[0\].schedule='cosin' is unknown: did you mean 'cosine'"),
        ({"phases__0__learning_rate": 0.0}, "learning_rate=0.0 is out of range"),
        ({"phases__0__steps": 5}, "both epochs and steps: give one"),
        ({"phases__0__epochs": 0.0}, "neither epochs nor steps: give one"),
        ({"phases__0__warmup": 3.0}, r"warmup=3.0 is out of range: from 0.0 to 2"),
        ({"phases__0__nesterov": True, "phases__0__optimizer": "adam"}, "nesterov goes with optimizer='sgd'"),
        ({"phases__0__augment": {"flop": True}}, r"phases\[0\].augment has no setting 'flop': did you mean 'flip'"),
        ({"phases__0__factors": {"block9": 2.0}}, "'block9' matches no unit"),
        ({"phases__1__name": "head"}, "different names"),
        ({"phases__1__sam": -0.1}, r"phases\[1\].sam=-0.1 is out of range"),
        ({"phases__1__plateau_factor": 1.0}, r"phases\[1\].plateau_factor=1.0 is out of range"),
        ({"phases__1__schedule": "plateau", "data__validation": ""}, "data.validation is empty: name a split, such as"),
        ({"phases__0__keep_optimizer": True}, r"phases\[0\].keep_optimizer keeps.*there is none"),
        ({"phases__1__keep_optimizer": True, "phases__1__optimizer": "adam"}, "'sgd' and not 'adam': use one in both"),
        ({"phases": ()}, "phases is empty"),
        ({"variant": "b9"}, "variant='b9' is unknown: did you mean"),
        ({"dtype": "float16"}, "dtype='float16' is unknown: did you mean"),
        ({"batch_norm": "frozn"}, "did you mean 'frozen'"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
        ({"resolution": 8}, "resolution=8 is too small"),
        ({"ema": 1.0}, "ema=1.0 is out of range"),
        ({"weights": ""}, "from scratch with batch_norm='frozen'"),
        ({"data__name": ""}, "data.name is empty"),
        ({"data__crop": "center"}, "data.crop='center' is unknown"),
        ({"data__cache_gib": -1.0}, "data.cache_gib=-1.0 is out of range"),
        ({"partition__mode": "pjti"}, "did you mean 'pjit'"),
        ({"partition__batch_norm_group": 2}, "goes with partition.mode='pmap'.*Set it to 0"),
        ({"augment__label_smoothing": 1.5}, "label_smoothing is 1.5"),
        ({"class_weights": "balance"}, "class_weights='balance' needs '', 'none', 'balanced', or a table"),
        ({"class_weights": {"cat": -1}}, r"class_weights\['cat'\]=-1 needs a number from 0"),
        ({"phases__1__class_weights": {"cat": "2"}}, r"phases\[1\].class_weights\['cat'\]='2' needs a number"),
        ({"sampling": "balancd"}, "sampling='balancd' is unknown: did you mean 'balanced'"),
        ({"phases__1__sampling": "even"}, r"phases\[1\].sampling='even' is unknown"),
        (
            {"sampling": "balanced", "phases__1__class_weights": "balanced"},
            r"phases\[1\] has sampling=.* twice: take one",
        ),
        ({"sampling": "balanced", "data__order": "sharded"}, r"phases\[0\] has sampling=.*set data.order='global'"),
    ],
)
def test_a_mistake_is_told_with_its_cure(changes, message):
    with pytest.raises(EffnetError, match=message):
        check_config(a_config(**changes))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": "64"}, "batch_size='64' is of type str, and needs int"),
        ({"batch_size": True}, "needs int"),
        ({"augment": True}, "augment is a dict of keys"),
        ({"profile_steps": 5}, "profile_steps=5 is of type int, and needs tuple"),
        ({"phases": [{"epochs": "two"}]}, r"phases\[0\].epochs='two' is of type str, and needs float"),
    ],
)
def test_types_are_checked(given, message):
    with pytest.raises(ConfigError, match=message):
        check_config({"weights": "w", "data": {"name": "x"}, "phases": [{"epochs": 1}], **given})


def test_a_phase_changes_the_augmentation_of_the_run():
    config = check_config(a_config(augment__flip=True, phases__1__augment={"shift": 0.1}))
    assert augment_settings(config, config.phases[0])["flip"] is True
    assert augment_settings(config, config.phases[1])["flip"] is True
    assert augment_settings(config, config.phases[1])["shift"] == 0.1


def test_batch_norm_of_a_phase_overrides_the_run():
    config = check_config(a_config(phases__1__batch_norm="train"))
    assert [make_plan(config, keys).batch_norm for keys in config.phases] == ["frozen", "train"]


def test_a_phase_may_weigh_and_sample_classes_its_own_way():
    config = check_config(
        a_config(
            class_weights={"St. Bernard": 2, "cat": 0.5},
            phases__1__class_weights="none",
            phases__1__sampling="balanced",
        )
    )
    assert dict(weights_asked(config, config.phases[0])) == {"St. Bernard": 2, "cat": 0.5}
    assert [weights_asked(config, config.phases[1]), sampling_of(config, config.phases[0])] == ["", "natural"]
    assert sampling_of(config, config.phases[1]) == "balanced"
    assert check_config(to_json(config)) == config  # as a run dir has it
    phases = (phase(name="own", epochs=1, class_weights={"St. Bernard": 3.0}), phase(name="all", epochs=1))
    own = check_config(a_config(class_weights="balanced", phases=phases))
    assert dict(weights_asked(own, own.phases[0])) == {"St. Bernard": 3.0}
    assert weights_asked(own, own.phases[1]) == "balanced"


def test_what_weighs_and_samples_classes_changes_numbers():
    old = to_json(check_config(a_config()))
    for phase_keys in old["phases"]:  # of a version before the keys
        del phase_keys["class_weights"], phase_keys["sampling"]
    del old["class_weights"], old["sampling"]
    assert compare_configs(old, to_json(check_config(a_config()))) == ([], [])
    changed = a_config(class_weights="balanced", phases__1__class_weights="none", phases__1__sampling="balanced")
    changing, neutral = compare_configs(old, to_json(check_config(changed)))
    assert changing == [
        'class_weights: "" before, "balanced" now',
        'phases[1].class_weights: "" before, "none" now',
        'phases[1].sampling: "" before, "balanced" now',
    ]
    assert neutral == []


def test_a_batch_that_devices_cannot_share():
    with pytest.raises(ConfigError, match="batch_size=30 cannot be shared evenly by 8 devices: use 24 or 32"):
        check_devices(check_config(a_config(batch_size=30)), 8)


def test_groups_of_replicas_divide_the_devices():
    config = check_config(a_config(partition__mode="pmap", partition__batch_norm_group=3))
    with pytest.raises(ConfigError, match="batch_norm_group=3 does not divide the 8 devices.*use one of 1, 2, 4, 8"):
        check_devices(config, 8)
    check_devices(check_config(a_config(partition__mode="pmap", partition__batch_norm_group=4)), 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment__mixup": 0.2}, r"phases\[0\] \('head'\) uses mixup.*batch_size=32, or set augment.mixup=0"),
        ({"phases__1__augment": {"cutmix": 1.0}}, r"phases\[1\] \('all'\) uses cutmix"),
    ],
)
def test_mixing_needs_pairs_on_each_device(changes, message):
    config = check_config(a_config(batch_size=40, **changes))  # 5 on each of 8
    with pytest.raises(ConfigError, match=message):
        check_devices(config, 8)
    check_devices(check_config(a_config(batch_size=41, **changes)), 1)
    check_devices(check_config(a_config(batch_size=48, **changes)), 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition__fsdp": 3}, "partition.fsdp=3 does not divide the 8 devices into groups: use one of 1, 2, 4, 8$"),
        ({"microbatches": 3}, r"microbatches=3 does not divide the 4 images of each device .*: use one of 1, 2, 4$"),
        ({"partition__fsdp": 2, "partition__mode": "pmap"}, "goes with partition.mode='pjit'"),
        ({"partition__sharded": "optimiser"}, "did you mean 'optimizer'"),
        ({"remat": ("block9",)}, "'block9' matches no unit"),
        ({"remat": 3}, "remat=3 needs True, False, or patterns of units"),
    ],
)
def test_shares_of_a_batch_and_of_a_state_come_out_even(changes, message):
    with pytest.raises((ConfigError, PatternError), match=message):
        check_devices(check_config(a_config(batch_size=32, **changes)), 8)


def test_difference_names_keys_and_both_values():
    old, new = to_json(check_config(a_config())), to_json(check_config(a_config(seed=3, phases__1__steps=7)))
    assert difference(old, new) == ["phases[1].steps: 10 before, 7 now", "seed: 0 before, 3 now"]
    assert json.loads(json.dumps(old)) == old


RECIPE = """
from effnet_jax.train.config import default_config, phase
def get_config(mode=""):
    config = default_config()
    config.data.name = "photographs"
    config.seed = 5 if mode == "smoke" else 0
    config.phases = (phase(name="head", epochs=2.0),)
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


def test_the_command_line_overrides_keys_of_run_and_phases(recipe):
    config, workdir, *_ = command.parse_command(
        ["train", f"--config={recipe}:smoke", "--workdir=runs/a", "--config.batch_size=8",
         "--config.phases[0].learning_rate=0.5", "--config.augment.zoom=(0.9, 1.1)"]
    )  # fmt: skip
    assert isinstance(config, ConfigDict)
    assert (config.seed, config.batch_size, config.phases[0].learning_rate) == (5, 8, 0.5)
    assert config.augment.zoom == (0.9, 1.1)
    assert workdir == "runs/a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.batchsize=8"], "--config.batchsize: the config has no such key: did you mean 'batch_size'"),
        (["--config.varaint=b1"], "did you mean 'variant' or 'data.train'"),
        (["--config.phases[0].epoch=8"], "no such key: did you mean 'phases[0].epochs'"),
        (["--config.phases[4].epochs=8"], "--config.phases[4].epochs: the config has no such key"),
        (["--config.batch_size=many"], "many"),
        (["--wokdir=x"], "wokdir"),
        (["stray"], "'stray' is not a flag"),
    ],
)
def test_a_wrong_flag_ends_with_one_message(recipe, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["train", f"--config={recipe}", "--workdir=runs/a", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_command(command.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--config=FILE is missing"),
        (["--config=RECIPE"], "--workdir=DIR is missing"),
        (["--config=RECIPES.py", "--workdir=x"], "there is no such file: did you mean"),
        (["--config=BROKEN", "--workdir=x"], "no key 'phase.epoch': did you mean 'epochs'"),
    ],
)
def test_a_missing_or_broken_recipe(recipe, argv, message):
    broken = recipe.with_name("broken.py")
    broken.write_text(RECIPE.replace("epochs=", "epoch="))
    places = {"RECIPES.py": str(recipe.with_name("recipes.py")), "RECIPE": str(recipe), "BROKEN": str(broken)}
    arguments = []
    for argument in argv:
        for name, path in places.items():
            argument = argument.replace(name, path)
        arguments.append(argument)
    with pytest.raises(ConfigError, match=message):
        command.parse_command(["train", *arguments])


def test_the_command_as_users_start_it(recipe):
    arguments = ["-m", "effnet_jax.train", f"--config={recipe}", "--workdir=x", "--config.seeed=1"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config.seeed: the config has no such key: did you mean 'seed'")
    assert done.stdout == ""
