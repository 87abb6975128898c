"""The TPU tool: the commands it prints, a run on a host of this machine, and what it says when gcloud refuses.

`gcloud` here is a small script on PATH. It keeps a list of what it was told, and its `ssh` runs the command in a folder
that stands for a host's home.
"""

import importlib
import os
import re
import shlex
import stat
import time
from pathlib import Path

import pytest
import yaml

from effnet_jax.errors import run_command
from effnet_jax.train.__main__ import parse_command
from effnet_jax.train.config import check_config
from tests.scripts import REPOSITORY

QUEUE = "gcloud compute tpus queued-resources"
PLACE = "--quiet --zone=us-west4-a"
BUSY = "set -e; flock --nonblock --close effnet.lock true || { echo 'a run goes on here already' >&2; exit 3; }; "
SLICE = ["--zone=us-west4-a", "--topology=v5e-16"]
RUN = [
    "--package=effnet-jax",
    "--config=configs/cifar100_b0.py",
    "--workdir=gs://bucket/run",
    "--config.weights=gs://bucket/b0",
    "--config.data.data_dir=gs://bucket/data",
]

GCLOUD = """#!/bin/bash
cd "$(dirname "$0")/.."
echo "gcloud $*" >> said
case "$4" in
  describe)  # the next of the states; the last one stays
    state=$(head -n 1 states)
    [ "$(wc -l < states)" -le 1 ] || sed -i 1d states
    [ "$state" != none ] || { echo "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found" >&2; exit 1; }
    echo "$state" ;;
  scp | ssh)
    if [ -f gone ]; then  # as the Cloud SDK does it: a trace of a thread, a warning, and success
      { cat gone; echo "WARNING: Could not prepare all 1 nodes, attempting to ssh into the rest."; } >&2
      rm gone
      exit 0
    fi ;;&
  scp) shift 4; for file; do case "$file" in *:) break ;; *) cp "$OLDPWD/$file" home/ ;; esac; done ;;
  ssh)
    for flag; do case "$flag" in --command=*) cd home; bash -c "${flag#--command=}"; exit $? ;; esac; done ;;
esac
"""
# The host's own Python, which only installs, and the one that it installs, whose training ends when it is told to.
HOST_PYTHON = """#!/bin/bash
echo "python3 $*" >> ../said
[ "$3" != venv ] || { mkdir -p effnet/bin; cp ../training effnet/bin/python; }
"""
TRAINING = """#!/bin/bash
echo "trains on ${JAX_PLATFORMS}: $*"
[ ! -f mistake ] || { echo "error: batch_size=0: give 1 or more"; exit 2; }
for _ in $(seq 300); do [ ! -f end ] || { echo finished; exit 0; }; sleep 0.05; done
"""


PREEMPTED = 'TPUInUnusableTerminalState: This TPU has terminal state "PREEMPTED", so it cannot be used anymore.\n'


@pytest.fixture
def tpu_pod(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "tools")
    monkeypatch.chdir(REPOSITORY)
    module = importlib.import_module("tpu_pod")
    monkeypatch.setattr("tpu_queue.SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(module, "LOOKS", 1)
    return module


@pytest.fixture
def call(tpu_pod, monkeypatch):
    """A function that runs the tool as a command and returns its exit status."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["tpu_pod.py", *arguments])
        with pytest.raises(SystemExit) as exit_:
            run_command(tpu_pod.main)
        return exit_.value.code or 0

    return run


@pytest.fixture
def lines(call, monkeypatch, capsys):
    """A function that returns what a dry run prints: without gcloud, and within the time of a test."""
    monkeypatch.setenv("PATH", "")

    def run(*arguments: str) -> list[str]:
        status = call(*arguments, "--dry-run")
        out, err = capsys.readouterr()
        assert (status, err) == (0, "")
        return out.splitlines()

    return run


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A folder with gcloud, one host's `home`, the `states` still to come, and in `said` what was run."""
    write_script(tmp_path / "bin" / "gcloud", GCLOUD)
    write_script(tmp_path / "bin" / "python3", HOST_PYTHON)
    write_script(tmp_path / "training", TRAINING)
    (tmp_path / "home").mkdir()
    (tmp_path / "states").write_text("ACTIVE\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    yield tmp_path
    (tmp_path / "home" / "end").touch()


def verbs(cloud: Path) -> list[str]:
    """The gcloud commands that were run since the last call."""
    said = (cloud / "said").read_text().splitlines()
    (cloud / "said").write_text("")
    return [line.split()[4] for line in said if line.startswith("gcloud")]


def wait_for(log: str, cloud: Path) -> None:
    until = time.monotonic() + 20
    while (written := (cloud / "home" / "effnet.log").read_text()) != log:
        assert time.monotonic() < until, written
        time.sleep(0.02)


# ---- what is printed


def test_create_asks_for_one_slice(lines):
    assert lines("create", "pod", *SLICE) == [
        f"{QUEUE} create pod --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=pod "
        f"{PLACE}"
    ]


def test_create_asks_for_several_slices_and_hands_flags_on(lines):
    flags = ["--project=mine", "--topology=v4-32", "--runtime-version=new", "--spot", "--node-count=2"]
    assert lines("create", "pod", *flags, "--create-flag=--network=a b") == [
        f"{QUEUE} create pod --accelerator-type=v4-32 --runtime-version=new --node-count=2 --node-prefix=pod --spot "
        "'--network=a b' --quiet --project=mine"
    ]
    assert "--node-count=2 --node-prefix=slice " in lines("create", "pod", *flags, "--node-prefix=slice")[0]


def started(requirement: str, files: str, fetched: str = "", environment: str = "", config: str = "", more: str = ""):
    install = (
        f"{BUSY}python3 -m pip install --quiet --user uv; "
        "python3 -m uv venv --quiet --allow-existing --python 3.12 effnet; "
        "python3 -m uv pip install --quiet --python effnet/bin/python --reinstall-package effnet-jax "
        f"{requirement}{fetched}"
    )
    train = (
        f"{BUSY}nohup setsid flock --nonblock --close effnet.lock env JAX_PLATFORMS=tpu,cpu {environment}"
        f"effnet/bin/python -u -m effnet_jax.train --config=cifar100_b0.py{config} --workdir=gs://bucket/run "
        f"--config.weights=gs://bucket/b0 {more}>> effnet.log 2>&1 < /dev/null & echo $! > effnet.pid; "
        "for _ in $(seq 1); do sleep 0.2; kill -0 $! 2> /dev/null || break; done; "
        "kill -0 $! 2> /dev/null || wait $! || { tail -n 10 effnet.log >&2; exit 1; }"
    )
    return [
        f"{QUEUE} describe pod '--format=value(state.state)' {PLACE}",
        f"{QUEUE} scp {files} pod: --node=all --worker=all {PLACE}",
        f"{QUEUE} ssh pod --node=all --worker=all {shlex.quote(f'--command={install}')} {PLACE}",
        f"{QUEUE} ssh pod --node=all --worker=all {shlex.quote(f'--command={train}')} {PLACE}",
    ]


DATA = "--config.data.data_dir=gs://bucket/data "


def test_start_uploads_installs_and_starts_detached(lines):
    expected = started("'effnet-jax[tpu,gcs]'", "configs/cifar100_b0.py", more=DATA)
    assert lines("start", "pod", *SLICE, *RUN) == expected


def test_start_with_a_wheel_data_and_environment(lines, tmp_path):
    wheel = tmp_path / "effnet_jax-0.1.0-py3-none-any.whl"
    wheel.touch()
    flags = [f"--package={wheel}", "--fetch=gs://bucket/my sets/", "--env=JAX_COMPILATION_CACHE_DIR=gs://bucket/xla"]
    flags += ["--config=configs/cifar100_b0.py:smoke", "--workdir=gs://bucket/run", "--config.weights=gs://bucket/b0"]
    assert lines("start", "pod", *SLICE, *flags, "--config.data.data_dir=my sets") == started(
        "'./effnet_jax-0.1.0-py3-none-any.whl[tpu,gcs]'",
        f"configs/cifar100_b0.py {wheel}",
        "; mkdir -p 'my sets'; gcloud storage rsync --recursive 'gs://bucket/my sets/' 'my sets'",
        "JAX_COMPILATION_CACHE_DIR=gs://bucket/xla ",
        ":smoke",
        "'--config.data.data_dir=my sets' ",
    )


@pytest.mark.parametrize(
    ("package", "requirement"),
    [
        ("effnet-jax==0.1.0", "'effnet-jax[tpu,gcs]==0.1.0'"),
        ("git+https://example.org/it.git@v1", "'effnet-jax[tpu,gcs] @ git+https://example.org/it.git@v1'"),
    ],
)
def test_start_takes_a_version_or_a_git_address(lines, package, requirement):
    expected = started(requirement, "configs/cifar100_b0.py", more=DATA)
    assert lines("start", "pod", *SLICE, *RUN, f"--package={package}") == expected


def test_watch_follows_the_first_host(lines):
    script = "test -f effnet.pid || { echo 'no run was started here' >&2; exit 3; }; "
    script += 'exec tail -n 40 -F effnet.log --pid="$(cat effnet.pid)"'
    assert lines("watch", "pod", "--zone=us-west4-a", "--connect-flag=--tunnel-through-iap") == [
        f"{QUEUE} describe pod '--format=value(state.state)' {PLACE}",
        f"{QUEUE} ssh pod --node=0 --worker=0 {shlex.quote(f'--command={script}')} --tunnel-through-iap {PLACE}",
    ]


def test_resume_makes_a_preempted_slice_anew_and_starts_the_same_command(lines):
    resumed = lines("resume", "pod", *SLICE, "--spot", *RUN)
    assert resumed[:3] == [
        f"{QUEUE} describe pod '--format=value(state.state)' {PLACE}",
        f"{QUEUE} delete pod --force {PLACE}",
        *lines("create", "pod", *SLICE, "--spot"),
    ]
    assert resumed[3:] == lines("start", "pod", *SLICE, "--spot", *RUN)


def test_delete_takes_the_slices_with_it(lines):
    assert lines("delete", "pod", "--zone=us-west4-a") == [f"{QUEUE} delete pod --force {PLACE}"]


def test_status_asks_for_the_state(lines):
    assert lines("status", "pod", "--zone=us-west4-a") == [
        f"{QUEUE} describe pod '--format=value(state.state)' {PLACE}"
    ]


@pytest.mark.parametrize(
    ("topology", "accelerator", "chips", "hosts"),
    [
        ("v4-8", "v4-8", 4, 1),
        ("v4-32", "v4-32", 16, 4),
        ("v5e-8", "v5litepod-8", 8, 1),
        ("v5e-256", "v5litepod-256", 256, 64),
        ("v5litepod-16", "v5litepod-16", 16, 4),
        ("v5e:4x4", "v5litepod-16", 16, 4),
        ("v4:4x4x8", "v4-256", 128, 32),
        ("v5p-128", "v5p-128", 64, 16),
        ("v5p-12288", "v5p-12288", 6144, 1536),
        ("v6e-1", "v6e-1", 1, 1),
        ("v6e-32", "v6e-32", 32, 8),
    ],
)
def test_slices(tpu_pod, topology, accelerator, chips, hosts):
    slice_ = tpu_pod.find_slice(topology)
    assert (slice_.accelerator, slice_.chips, slice_.hosts) == (accelerator, chips, hosts)


# ---- a run on a host


def test_create_says_what_was_asked_for(call, cloud, capfd):
    assert (call("create", "pod", *SLICE), call("create", "pod", "--topology=v6e-8", "--node-count=2")) == (0, 0)
    said = "asked for v5litepod-16 (16 chips on 4 hosts)\nasked for 2 × v6e-8 (8 chips on 1 host)\n"
    assert capfd.readouterr().out == said


def test_status(call, cloud, capfd):
    (cloud / "states").write_text("WAITING_FOR_RESOURCES\nnone\n")
    assert (call("status", "pod"), call("status", "pod")) == (0, 0)
    assert capfd.readouterr().out == "pod: WAITING_FOR_RESOURCES\npod: there is none\n"


def test_a_run_outlives_its_terminal_is_watched_and_is_not_started_twice(call, cloud, capfd):
    (cloud / "states").write_text("WAITING_FOR_RESOURCES\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    assert call("start", "pod", *SLICE, *RUN) == 0
    out = capfd.readouterr().out
    assert out.count("pod is WAITING_FOR_RESOURCES") == out.count("pod is PROVISIONING") == 1
    assert "started, and independent of this terminal" in out
    assert (cloud / "home" / "cifar100_b0.py").read_bytes() == Path("configs/cifar100_b0.py").read_bytes()
    arguments = f"--config=cifar100_b0.py {' '.join(RUN[2:])}"
    said = "trains on tpu,cpu: -u -m effnet_jax.train " + arguments + "\n"
    wait_for(said, cloud)

    verbs(cloud)
    assert call("start", "pod", *SLICE, *RUN) == 2
    assert "  a run goes on here already\n`watch` it" in capfd.readouterr().err
    assert "\npython3 " not in (cloud / "said").read_text()  # what it runs with is left alone
    assert call("resume", "pod", *SLICE, *RUN) == 0
    assert "there is nothing to resume" in capfd.readouterr().out

    (cloud / "home" / "end").touch()
    assert call("watch", "pod") == 0
    assert capfd.readouterr().out == said + "finished\nthe run has ended\n"
    (cloud / "home" / "end").unlink()
    assert call("resume", "pod", *SLICE, *RUN) == 0
    wait_for(f"{said}finished\n{said}", cloud)


def test_a_run_that_fails_at_once_is_quoted(call, tpu_pod, cloud, capfd, monkeypatch):
    monkeypatch.setattr(tpu_pod, "LOOKS", 300)
    (cloud / "home" / "mistake").touch()
    assert call("start", "pod", *SLICE, *RUN) == 2
    err = capfd.readouterr().err
    assert "error: gcloud ssh pod ended with status 1:" in err
    assert "  error: batch_size=0: give 1 or more" in err


@pytest.mark.parametrize(
    "states", ["SUSPENDED\nACTIVE\n", "SUSPENDING\nSUSPENDED\nPROVISIONING\nACTIVE\n", "FAILED\nACTIVE\n"]
)
def test_a_slice_that_is_gone_is_made_anew(call, cloud, states):
    (cloud / "states").write_text(states)
    assert call("resume", "pod", *SLICE, "--spot", *RUN) == 0
    assert [verb for verb in verbs(cloud) if verb != "describe"] == ["delete", "create", "scp", "ssh", "ssh"]


def test_a_slice_that_was_never_there_is_made(call, cloud):
    (cloud / "states").write_text("none\nACTIVE\n")
    assert call("resume", "pod", *SLICE, *RUN) == 0
    assert [verb for verb in verbs(cloud) if verb != "describe"] == ["create", "scp", "ssh", "ssh"]


def test_a_slice_that_is_gone_before_its_queued_resource_says_so(call, cloud):
    (cloud / "gone").write_text(PREEMPTED)
    assert call("resume", "pod", *SLICE, *RUN) == 0
    assert [verb for verb in verbs(cloud) if verb != "describe"] == ["scp", "delete", "create", "scp", "ssh", "ssh"]


def test_no_run_starts_on_a_part_of_the_slices(call, cloud, capfd):
    (cloud / "gone").write_text('TPUInUnusableState: This TPU has state "STOPPED", so it cannot be connected to.\n')
    assert call("start", "pod", *SLICE, *RUN, "--node-count=2") == 2
    message = capfd.readouterr().err.partition("error: ")[2]
    assert message.startswith('gcloud scp pod left hosts out:\n  TPUInUnusableState: This TPU has state "STOPPED"')
    assert "a slice cannot be reached" in message


def test_watch_tells_of_a_preempted_slice(call, cloud, capfd):
    (cloud / "states").write_text("ACTIVE\nSUSPENDED\n")
    (cloud / "gone").write_text(PREEMPTED)
    assert call("watch", "pod") == 2
    assert "error: pod is SUSPENDED: `resume` makes it anew" in capfd.readouterr().err


def test_watch_without_a_run_or_a_slice(call, cloud, capfd):
    assert call("watch", "pod") == 2
    assert "no run was started here\n`start` it first" in capfd.readouterr().err
    (cloud / "states").write_text("none\n")
    assert call("watch", "pod") == 2
    assert "error: there is no pod: `create` it first" in capfd.readouterr().err


# ---- mistakes


def test_gcloud_is_missing(call, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call("create", "pod", *SLICE) == 2
    assert "error: gcloud is not on PATH: install it" in capfd.readouterr().err


REFUSED = "ERROR: (gcloud.compute.tpus.queued-resources.create) "


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        (REFUSED + "You do not currently have an active account selected.", "log in: gcloud auth login"),
        (REFUSED + "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZone' exceeded", "iam-admin/quotas"),
        (REFUSED + 'INVALID_ARGUMENT: The requested zone "moon-1a" is not supported.', "tpu/docs/regions-zones"),
        (
            REFUSED + "PERMISSION_DENIED: Permission denied on 'locations/moon-1' (or it may not exist).",
            "regions-zones",
        ),
        (REFUSED + "PERMISSION_DENIED: 'tpu.nodes.create' denied", "ask for the roles TPU Admin"),
        (REFUSED + "ALREADY_EXISTS: Resource 'pod' already exists", "`delete` it first"),
        (REFUSED + "PERMISSION_DENIED: Cloud TPU API has not been used in project 1", "gcloud services enable tpu"),
        (REFUSED + "The required property [project] is not currently set.", "give --project=ID"),
        (REFUSED + "Error parsing [queued_resource].\nFailed to find attribute [project].", "give --project=ID"),
        ('SSH Key is not present in the SSH agent. Please run "ssh-add x"', "ssh-add ~/.ssh/google_compute_engine"),
        ("SSH key found in project metadata.\nConnection closed by 192.0.2.1 port 22", "goes on: try again"),
        ("ERROR: (gcloud.storage.rsync) HTTPError 403: no permission", "Storage Object Admin on the bucket"),
        ("ERROR: Could not find a version: zone not found", "its own words say why"),  # not gcloud's: a host's pip
    ],
)
def test_gcloud_refuses(call, tmp_path, monkeypatch, capfd, said, cure):
    write_script(tmp_path / "bin" / "gcloud", f"#!/bin/sh\necho {shlex.quote(said)} >&2\nexit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert call("create", "pod", *SLICE) == 2
    message = capfd.readouterr().err.partition("error: ")[2]
    quoted = "".join(f"  {line}\n" for line in said.splitlines())
    assert message.startswith(f"gcloud create pod ended with status 1:\n{quoted}")
    assert cure in message.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["create", "pod"], "`create` needs --topology"),
        (["create", "pod", "--topology=v5e-17"], "did you mean 'v5e-1' or 'v5e-16'"),
        (["create", "pod", "--topology=v4:4x4x32"], "v4-1024, is v4:8x8x8: use that"),
        (["create", "pod", "--topology=h100"], "there is no such slice: choose from v4-8, "),
        (["create", "pod", *SLICE, "--node-count=0"], "--node-count=0: give how many slices"),
        (["create", "pod", *SLICE, "--node-cuont=2"], "--node-cuont=2 is no flag: did you mean '--node-count'"),
        (["start", "pod", *SLICE], "`start` needs --package"),
        (["start", "pod", *SLICE, *RUN, "--workdir=runs/b0"], "the hosts have no disk in common: give gs://BUCKET/"),
        (["start", "pod", *SLICE, *RUN, "--topology=v5e-1", "--node-count=2", "--workdir=a"], "no disk in common"),
        (["start", "pod", *SLICE, *RUN, "--topology=v5e-1", "--spot", "--workdir=a"], "loses its disk"),
        (["start", "pod", *SLICE, *RUN, "--config=configs/cifar100_b9.py"], "did you mean 'configs/cifar100_"),
        (["start", "pod", *SLICE, *RUN, "--config.batch_sze=8"], "did you mean 'batch_size'"),
        (["start", "pod", *SLICE, *RUN, "--config.batch_size=0"], "batch_size"),
        (["start", "pod", *SLICE, *RUN, "--config.weights=weights/b0"], "weights='weights/b0' is not on the hosts"),
        (["start", "pod", *SLICE, *RUN, "--config.data.data_dir="], "data.name='cifar100' is not on the hosts"),
        (["start", "pod", *SLICE, *RUN, "--package=none.whl"], "there is no such wheel: pip wheel"),
        (["start", "pod", *SLICE, *RUN, "--env=FAST"], "--env=FAST: write NAME=VALUE"),
        (["start", "pod", *SLICE, *RUN, "--package=flax"], "give a wheel's file, git+https://"),
    ],
)
def test_mistakes_are_told_before_anything_is_run(call, cloud, capfd, flags, said):
    assert call(*flags) == 2
    assert said in capfd.readouterr().err
    assert not (cloud / "said").exists()


def test_one_host_may_write_to_its_own_disk(lines):
    flags = ["--topology=v5e-8", "--workdir=runs/b0", "--config.data.data_dir=/mnt/disk"]
    assert "--workdir=runs/b0 " in lines("start", "pod", *SLICE, *RUN, *flags)[-1]


# ---- the docs


def test_the_documented_commands_work(lines):
    text = (REPOSITORY / "docs" / "tpu.md").read_text().replace("\\\n", "")
    flags = re.search(r'tools/tpu_pod\.py "\$@" (.*)\n\}', text)
    assert flags
    common = re.sub(r"--package=\S+", "--package=effnet-jax", flags[1])  # no wheel was made here
    commands = re.findall(r"^(?:while .*; do )?tpu ([^;\n]+)", text, re.MULTILINE)
    assert {command.split()[0] for command in commands} == {"create", "start", "watch", "resume", "delete"}
    for command in commands:
        assert lines(*shlex.split(f"{command} {common}"))


def test_the_jobset_is_a_whole_slice_and_its_command_is_valid(tpu_pod):
    jobset = yaml.safe_load((REPOSITORY / "docs" / "tpu_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")

    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    slice_ = tpu_pod.find_slice(f"v5e-{rows * columns}")
    assert job["completions"] == job["parallelism"] == slice_.hosts
    container = pod["containers"][0]
    chips = {"google.com/tpu": slice_.chips // slice_.hosts}
    assert container["resources"] == {"requests": chips, "limits": chips}

    program, arguments = container["command"][:3], container["command"][3:]
    assert program == ["python", "-m", "effnet_jax.train"]
    command = parse_command(["train", *arguments])
    check_config(command.config)
    assert command.workdir.startswith("gs://")
