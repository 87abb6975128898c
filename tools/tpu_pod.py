"""Trains on a Cloud TPU slice, or on several as one: creates them, starts the run, watches, resumes and deletes it.

    python tools/tpu_pod.py create pod --zone=us-west4-a --topology=v5e-16 --spot
    python tools/tpu_pod.py start pod --zone=us-west4-a --topology=v5e-16 --spot --package=dist/effnet_jax-0.1.0-….whl
        --config=configs/cifar100_b7.py --workdir=gs://BUCKET/runs/b7 [--config.KEY=VALUE …]
    python tools/tpu_pod.py watch pod --zone=us-west4-a
    python tools/tpu_pod.py resume … the flags of `start`
    python tools/tpu_pod.py delete pod --zone=us-west4-a

Every verb takes all flags and uses those that it needs: keep one line, and change the verb. With --dry-run each gcloud
command is printed, and none is run. docs/tpu.md tells the whole way.
"""

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from tpu_queue import BUSY, NO_RUN, PREEMPTED, QUEUED, GcloudError, Pod
from tpu_slices import GENERATIONS, find_slice

from effnet_jax.errors import ConfigError, nearest, run_command
from effnet_jax.train.__main__ import parse_command
from effnet_jax.train.config import check_config
from effnet_jax.weights.published import find_published

LOOKS = 75  # at a run that has begun, for 15 seconds: one that fails so soon has met a mistake in what it was given

# ---- what the hosts run, in their home folder

# The lock is held as long as the run lives; the flag keeps it from being handed on to what the run starts.
_LOCK = "flock --nonblock --close effnet.lock"
_UNLESS_BUSY = f"set -e; {_LOCK} true || {{ echo '{BUSY}' >&2; exit 3; }}"


def install_script(requirement: str, fetch: Sequence[str]) -> str:
    """Returns the script that installs the package and copies data. The hosts' own Python is too old: uv brings one."""
    lines = [
        _UNLESS_BUSY,
        "python3 -m pip install --quiet --user uv",
        "python3 -m uv venv --quiet --allow-existing --python 3.12 effnet",
        # A wheel may be another one of the same version.
        "python3 -m uv pip install --quiet --python effnet/bin/python --reinstall-package effnet-jax "
        + shlex.quote(requirement),
    ]
    for url in fetch:
        folder = shlex.quote(_folder(url))
        lines += [f"mkdir -p {folder}", f"gcloud storage rsync --recursive {shlex.quote(url)} {folder}"]
    return "; ".join(lines)


def start_script(arguments: Sequence[str], environment: Sequence[str]) -> str:
    """Returns the script that starts the run in a session of its own, which outlives the connection."""
    # Without its TPU a host would train on its CPU, and be paid for.
    run = ["env", "JAX_PLATFORMS=tpu,cpu", *environment, "effnet/bin/python", "-u", "-m", "effnet_jax.train"]
    return (
        f"{_UNLESS_BUSY}; nohup setsid {_LOCK} {shlex.join([*run, *arguments])} >> effnet.log 2>&1 < /dev/null & "
        f"echo $! > effnet.pid; for _ in $(seq {LOOKS}); do sleep 0.2; kill -0 $! 2> /dev/null || break; done; "
        "kill -0 $! 2> /dev/null || wait $! || { tail -n 10 effnet.log >&2; exit 1; }"
    )


WATCH_SCRIPT = (
    f"test -f effnet.pid || {{ echo '{NO_RUN}' >&2; exit 3; }}; "
    'exec tail -n 40 -F effnet.log --pid="$(cat effnet.pid)"'
)


def make_requirement(package: str) -> str:
    """Returns what is installed for `--package`: a wheel's file, a git address, or a name on the package index."""
    if package.endswith(".whl"):
        if not os.path.isfile(package):
            raise ConfigError(f"--package={package}: there is no such wheel: pip wheel --no-deps -w dist . makes it")
        return f"./{os.path.basename(package)}[tpu,gcs]"
    if package.startswith("git+"):
        return f"effnet-jax[tpu,gcs] @ {package}"
    if named := re.fullmatch(r"effnet[-_]jax((?:[<>=!~]=?[^;@]+)?)", package):
        return f"effnet-jax[tpu,gcs]{named[1]}"
    raise ConfigError(f"--package={package}: give a wheel's file, git+https://…, or effnet-jax==VERSION")


class Training(NamedTuple):
    """What the hosts get and run: files of this machine, what to install, arguments of the training command."""

    uploads: list[str]
    requirement: str
    arguments: list[str]


def check_training(args: argparse.Namespace, overrides: Sequence[str]) -> Training:
    """Checks a run before anything is paid for.

    Raises:
      ConfigError: the config has a mistake, or names what the hosts will not have.
    """
    requirement = make_requirement(args.package)
    for variable in args.env:
        if not re.match(r"[A-Za-z_]\w*=", variable):
            raise ConfigError(f"--env={variable}: write NAME=VALUE")
    slice_ = find_slice(args.topology)
    several = slice_.hosts * args.node_count > 1
    if not args.workdir.startswith("gs://") and (several or args.spot):
        why = "the hosts have no disk in common" if several else "a preempted slice loses its disk"
        raise ConfigError(f"--workdir={args.workdir}: {why}: give gs://BUCKET/FOLDER")
    command = parse_command(["train", f"--config={args.config}", f"--workdir={args.workdir}", *overrides])
    config = check_config(command.config)
    places = {"data.data_dir": config.data.data_dir}
    if not find_published(config.weights):  # those have names: each host fetches them
        places["weights"] = config.weights
    if not config.data.data_dir:
        places["data.name"] = config.data.name
    for key, place in places.items():
        there = place.startswith(("gs://", "/", "~")) or place.split("/")[0] in map(_folder, args.fetch)
        if place and not there:
            raise ConfigError(
                f"{key}={place!r} is not on the hosts: copy it to a bucket (gcloud storage cp --recursive), and give "
                f"--config.{'data.data_dir' if key == 'data.name' else key}=gs://…, or --fetch=gs://… and its folder"
            )
    path, colon, argument = args.config.partition(":")
    return Training(
        uploads=[path, *[args.package] * args.package.endswith(".whl")],
        requirement=requirement,
        arguments=[f"--config={os.path.basename(path)}{colon}{argument}", f"--workdir={args.workdir}", *overrides],
    )


def _folder(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]


# ---- verbs


def create(pod: Pod, args: argparse.Namespace) -> None:
    slice_ = find_slice(args.topology)
    flags = [f"--accelerator-type={slice_.accelerator}", f"--runtime-version={args.runtime_version or slice_.runtime}"]
    if args.node_count > 1:
        flags += [f"--node-count={args.node_count}", f"--node-prefix={args.node_prefix or pod.name}"]
    else:
        flags += [f"--node-id={pod.name}"]
    pod.gcloud("create", pod.name, *flags, *["--spot"] * args.spot, *args.create_flag)
    count, hosts = f"{args.node_count} × " * (args.node_count > 1), f"{slice_.hosts} host{'s' * (slice_.hosts > 1)}"
    pod.tell(f"asked for {count}{slice_.accelerator} ({slice_.chips} chips on {hosts})")


def start(pod: Pod, args: argparse.Namespace, training: Training) -> None:
    pod.wait_until_ready()
    pod.upload(training.uploads)
    # On all hosts before the first one starts: it waits for the others, but only for minutes.
    pod.ssh(install_script(training.requirement, args.fetch))
    pod.ssh(start_script(training.arguments, args.env))
    pod.tell(f"started, and independent of this terminal: `watch` shows its log, and it writes to {args.workdir}")


def watch(pod: Pod) -> None:
    pod.wait_until_ready()
    try:
        pod.ssh(WATCH_SCRIPT, hosts="0")  # the first host of the first slice is the process that tells
    except GcloudError:
        pod.wait_until_ready()  # tells where the slice is gone
        raise
    pod.tell("the run has ended")


def resume(pod: Pod, args: argparse.Namespace, training: Training) -> None:
    state = pod.wait(("ACTIVE", "SUSPENDED", "FAILED", "", *QUEUED), supposed="SUSPENDED")
    if state in ("ACTIVE", *QUEUED):
        try:
            return start(pod, args, training)
        except GcloudError as error:
            if BUSY in error.said:
                return pod.tell(f"the run on {pod.name} goes on: there is nothing to resume")
            if PREEMPTED not in error.said:
                raise
    if state:
        delete(pod)
    create(pod, args)
    start(pod, args, training)


def delete(pod: Pod) -> None:
    pod.gcloud("delete", pod.name, "--force")


NEEDS = {  # the flags that a verb cannot do without
    "create": ("topology",),
    "start": ("topology", "package", "config", "workdir"),
    "status": (),
    "watch": (),
    "resume": ("topology", "package", "config", "workdir"),
    "delete": (),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("verb", choices=NEEDS)
    add("name", help="of the queued resource, and of its node or nodes")
    add("--dry-run", action="store_true", help="print the gcloud commands, and run none")
    add("--zone", default="", help="where the slice is (default: gcloud's own compute/zone)")
    add("--project", default="", help="whose it is (default: gcloud's own project)")
    add("--topology", default="", help=f"such as v5e-16: {', '.join(GENERATIONS)} with a size as Cloud TPU has it")
    add("--runtime-version", default="", help="of the machines' software (default: the one for the topology)")
    add("--spot", action="store_true", help="cheaper, and may be taken away at any time; then `resume` it")
    add("--node-count", type=int, default=1, metavar="N", help="N slices, which train as one")
    add("--node-prefix", default="", help="of the names of N slices (default: NAME)")
    add("--create-flag", action="append", default=[], metavar="FLAG", help="one more of `create`, such as --reserved")
    add("--connect-flag", action="append", default=[], metavar="FLAG", help="one more of `ssh`: --tunnel-through-iap")
    add("--package", default="", help="a wheel's file, git+https://…[@REVISION], or effnet-jax==VERSION")
    add("--config", default="", metavar="FILE[:ARGUMENT]", help="the recipe, a file of this machine")
    add("--workdir", default="", help="the run dir, gs://…")
    add("--fetch", action="append", default=[], metavar="gs://…/FOLDER", help="copied to every host, as FOLDER")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="one more environment variable of the run")
    args, others = parser.parse_known_args()
    for other in others:
        if not other.startswith("--config."):
            known = [f"--{name.replace('_', '-')}" for name in vars(args)]
            raise ConfigError(f"{other} is no flag: {nearest(other.partition('=')[0], known)}")
    for flag in NEEDS[args.verb]:
        if not getattr(args, flag):
            raise ConfigError(f"`{args.verb}` needs --{flag}: --help says what it is")
    if args.node_count < 1:
        raise ConfigError(f"--node-count={args.node_count}: give how many slices, 1 or more")
    place = [f"--{flag}={value}" for flag in ("zone", "project") if (value := getattr(args, flag))]
    pod = Pod(args.name, place, args.connect_flag, dry_run=args.dry_run)
    if args.verb == "create":
        create(pod, args)
    elif args.verb == "start":
        start(pod, args, check_training(args, others))
    elif args.verb == "status":
        state = pod.state(supposed="")
        pod.tell(f"{pod.name}: {state or 'there is none'}")
    elif args.verb == "watch":
        watch(pod)
    elif args.verb == "resume":
        resume(pod, args, check_training(args, others))
    else:
        delete(pod)


if __name__ == "__main__":
    run_command(main)
