"""Everything up to the first step: checks, data, model, the run dir, and the state to begin with."""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from effnet_jax import files, hosts
from effnet_jax.data.balance import words_on_balance
from effnet_jax.data.decode import range_note
from effnet_jax.data.duplicates import find_in_two_splits
from effnet_jax.data.sources import open_dataset
from effnet_jax.data.sources.base import ArraySource, Source, typical_side
from effnet_jax.data.sources.checks import check_classes, check_splits, overlaps
from effnet_jax.data.sources.dataset import ALPHABETICAL
from effnet_jax.errors import ConfigError, DataError, EffnetError, RunError
from effnet_jax.train.compiling import CompileClock
from effnet_jax.train.config import check_config, to_json
from effnet_jax.train.config.checks import check_devices, sampling_of, weights_asked
from effnet_jax.train.initial import check_weights, initial_variables, keeps_classifier, make_model
from effnet_jax.train.phases import Phase, make_phases
from effnet_jax.train.programs import evaluation_program, partition_of, state_shapes
from effnet_jax.train.run import Run, Standing
from effnet_jax.train.rundir.attempts import add_attempt, commit
from effnet_jax.train.rundir.checkpoints import Checkpoints
from effnet_jax.train.rundir.identity import DATA, describe_run, identity_changes, read_identity, without_names
from effnet_jax.train.rundir.log import Log, read_rows, rows_until
from effnet_jax.train.rundir.progress import Progress
from effnet_jax.train.rundir.skipped import SkippedImages
from effnet_jax.train.rundir.workdir import CONFIG, as_begun, check_workdir, claim_workdir
from effnet_jax.train.screen import Counting, Screen
from effnet_jax.train.step.optimizers import observe
from effnet_jax.train.step.partition import Partition, check_cut
from effnet_jax.train.step.state import TrainState, create_state
from effnet_jax.weights.metadata import Metadata, current_versions

_SAMPLED = 16  # images that are looked at when a set is opened
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Checked:
    """A run that is checked and agreed upon by all processes, before its run dir is written to.

    Attributes:
      config: checked and complete.
      workdir: the run dir.
      weights: metadata of the weights that it starts from, or None.
      sources: by split.
      identity: of data and weights.
      partition: how steps run on the devices.
      notes: what its user should know: keys that differ from an earlier attempt's, warnings about the data.
      finished: the summary, where the run finished earlier.
    """

    config: ConfigDict
    workdir: epath.Path
    weights: Metadata | None
    sources: Mapping[str, Source]
    identity: Mapping[str, Any]
    partition: Partition
    notes: Sequence[str]
    finished: Mapping[str, Any] | None


def check_run(config: Any, workdir: epath.PathLike, devices: Sequence[jax.Device] | None = None) -> Checked:
    """Checks what can be checked before memory is taken and files are written, and that all processes agree.

    Args:
      config: from a recipe.
      workdir: the run dir.
      devices: to train on, in the order of the mesh; None: all.

    Raises:
      EffnetError: what the user can cure.
    """
    folder = files.as_path(workdir)
    config = as_begun(folder, check_config(config))
    with hosts.agree("config and run dir are checked"):
        check_devices(config, len(devices) if devices else jax.device_count())
        _check_cache_folder(config, folder)
        weights = check_weights(config)
        notes, finished = check_workdir(folder, config)
    with hosts.agree("the data is opened"):
        try:
            known = read_identity(folder)
            sources, warnings = open_sources(config, class_names=_known_classes(folder, known, weights))
            if not known:
                warnings += find_in_two_splits(sources, config.data.duplicates)
            identity = describe_run(sources, config.data.name, weights)
        except EffnetError:
            if not finished:
                raise
            sources, warnings, identity = {}, [], {}  # the data of a finished run need not be there any more
        else:
            warnings = [*warnings, *_check_identity(folder, identity, finished)]
    checked = Checked(
        config=config,
        workdir=folder,
        weights=weights,
        sources=sources,
        identity=identity,
        partition=partition_of(config, devices),
        notes=[*(f"note: {line}" for line in notes), *(f"warning: {line}" for line in warnings)],
        finished=finished,
    )
    hosts.compare(
        {
            "config": to_json(config),
            "commit": commit(),
            "versions": current_versions(),
            "data": without_names(identity) if identity else None,
            "finished": bool(finished),
        }
    )
    return checked


def _check_cache_folder(config: Mapping[str, Any], workdir: epath.Path) -> None:
    if config["cache_dir"]:
        if not files.is_local(config["cache_dir"]):
            raise ConfigError(f"cache_dir={config['cache_dir']!r} is a bucket: trunk caches need a local folder")
    elif not files.is_local(workdir) and any(keys["cache"] == "disk" for keys in config["phases"]):
        raise ConfigError(
            f"the run dir {workdir} is a bucket, and a trunk cache on disk needs a local folder: set cache_dir to one "
            "with room, or cache='memory'"
        )


def _known_classes(workdir: epath.Path, known: Mapping[str, Any] | None, weights: Metadata | None) -> Sequence[str]:
    """The order of classes that is kept where they are the same: the run's, else that of weights that know them.

    Of a run dir of a version that wrote none, it is the alphabet's.
    """
    if known:
        return known["class_names"]
    if (workdir / CONFIG).exists():
        return ALPHABETICAL
    return weights.class_names if weights else ()


def open_sources(config: Mapping[str, Any], class_names: Sequence[str] = ()) -> tuple[dict[str, Source], list[str]]:
    """Opens the splits that the config names and checks that they fit one another.

    Args:
      config: checked.
      class_names: an order of the classes that is kept where they are the same.

    Returns:
      {split: source}, and warnings for the user.

    Raises:
      DataError: a split is missing, empty or of other classes, or `config.num_classes` is another number.
    """
    data = config["data"]
    expressions = {split: data[split] for split in SPLITS if data[split]}
    dataset = open_dataset(data, list(expressions.values()), class_names=class_names, tell=Counting("listing images"))
    sources = {split: dataset.split(expression) for split, expression in expressions.items()}
    for split, source in sources.items():
        if not len(source):
            raise DataError(f"the {split} split of {config['data']['name']} is empty")
    if config["num_classes"]:
        check_classes(sources["train"], config["num_classes"])
    notes = [*dataset.notes, *_range_notes(sources["train"]), *overlaps(dataset, expressions)]
    return sources, [*notes, *check_splits(sources)]


def _range_notes(source: Source) -> list[str]:
    """Says once where images are nearly black or of one colour because of their number type, by a few of them."""
    if isinstance(source, ArraySource):
        return []
    sample = source.read_many(np.unique(np.linspace(0, len(source) - 1, _SAMPLED).astype(int)))
    found = [(read[2], note) for read in sample if not isinstance(read, DataError) and (note := range_note(read[0]))]
    if not found:
        return []
    name, note = found[0]
    return [f"{len(found)} of {len(sample)} images that were looked at are hardly seen as they are, {name}: {note}"]


def _check_identity(workdir: epath.Path, identity: Mapping[str, Any], finished: Mapping[str, Any] | None) -> list[str]:
    """Compares data and weights with those that the run began with: differences end a run that would go on.

    Returns:
      What a finished run has to be told.
    """
    old = read_identity(workdir)
    changes = identity_changes(old, json.loads(json.dumps(identity))) if old else []
    if not changes:
        return []
    listed = "\n  ".join(changes)
    if finished:
        return [f"data or weights have changed since {workdir} was trained:\n  {listed}"]
    raise RunError(
        f"{workdir} began with other data or weights:\n  {listed}\nbring them back to go on, or give another --workdir"
    )


def open_run(checked: Checked, clock: CompileClock, stack: contextlib.ExitStack) -> tuple[Run, Standing]:
    """Claims the run dir and brings the state onto the devices: of the last checkpoint, else fresh.

    Args:
      checked: from `check_run`.
      clock: of this attempt.
      stack: closes what is opened.

    Raises:
      EffnetError: what the user can cure.
    """
    began = time.monotonic()
    config, workdir, sources = checked.config, checked.workdir, checked.sources
    classes = len(sources["train"].class_names)
    counts = {split: len(source) for split, source in sources.items()}
    with hosts.agree("the phases are made"):
        phases = make_phases(config, counts, checked.weights, typical_side(sources["train"]), sources["train"])
    if config.profile_steps and config.profile_steps[0] > phases[-1].end:
        raise ConfigError(f"profile_steps={config.profile_steps} begins after the last step, which is {phases[-1].end}")
    model = make_model(config, checked.weights, classes, checked.partition.mesh.size, checked.partition.platform)
    screen = Screen(active=hosts.is_first())

    def state_at(progress: Progress) -> TrainState:
        return state_shapes(model, phases[progress.of_state], ema=bool(config.ema))

    kept = keeps_classifier(config, checked.weights, tuple(sources["train"].class_names))
    with hosts.agree("the state is cut"):
        check_cut(checked.partition, state_at(Progress()).params)
    with hosts.agree("room on the disk"):
        if hosts.is_first():
            _check_room(checked, phases, max(state_bytes(state_at(Progress(phase=p.number))) for p in phases))

    # ---- from here on the run dir is written to
    claim = stack.enter_context(claim_workdir(workdir, config))
    stop = stack.enter_context(hosts.stop_signals())
    with hosts.agree("checkpoints are opened"):
        checkpoints = Checkpoints(workdir, claim=claim, tell=screen.say, **config.checkpoint)
    stack.callback(checkpoints.close)
    stack.callback(screen.end_bar)
    restored = checkpoints.restore(state_at, screen.say)
    if restored:
        state, saved, progress = restored
        standing = Standing(checked.partition.place_state(state), progress, saved.of_state, began - progress.seconds)
        standing.state = catch_up(phases[saved.of_state], standing.state, saved, progress)
        origin = f"resumed after step {int(state.step)}"
    else:
        with hosts.agree("weights are read"):
            variables = initial_variables(config, model, classes, keep_classifier=kept)
        create = functools.partial(create_state, optimizer=phases[0].optimizer, ema=bool(config.ema), seed=config.seed)
        state = checked.partition.make_state(create, checked.partition.place_state(variables))
        standing = Standing(state, Progress(), 0, began)
        origin = f"{config.weights}{'' if kept else ', classifier fresh'}" if checked.weights else "from scratch"

    log = _open_log(checked, standing)
    stack.callback(log.close)
    checkpoints.accuracies = log.accuracies
    skipped = SkippedImages(workdir, screen.say)
    if hosts.is_first():
        if read_identity(workdir) is None:
            files.write_json(workdir / DATA, checked.identity)
        devices = checked.partition.mesh.size
        add_attempt(workdir, devices=devices, after_step=int(standing.state.step), notes=list(checked.notes))
    for line in _opening_words(checked, origin):
        screen.say(line)

    run = Run(
        config=config,
        phases=phases,
        sources=sources,
        model=model,
        partition=checked.partition,
        workdir=workdir,
        weights=checked.weights,
        checkpoints=checkpoints,
        log=log,
        screen=screen,
        skipped=skipped,
        stop=stop,
        eval_step=functools.cache(functools.partial(evaluation_program, model, checked.partition)),
        clock=clock,
    )
    for split, source in sources.items():
        skipped.met[split] += source.left_out
    skipped.update()
    return run, standing


def catch_up(phase: Phase, state: TrainState, saved: Progress, since: Progress) -> TrainState:
    """Shows a plateau schedule the evaluation that came after the checkpoint of its step, which has no second one.

    Args:
      phase: of the checkpoint.
      state: of the checkpoint, on the devices.
      saved: the progress that it was saved with.
      since: the progress since then that took no step.
    """
    evaluated = bool(saved.sums) and not since.sums and int(state.step) in phase.evaluations
    if not evaluated or since.phase != saved.phase or phase.keys.schedule != "plateau":
        return state
    return state.replace(opt_state=observe(phase.keys, state.opt_state, since.validation["validation"]["loss"]))


def state_bytes(tree: Any) -> int:
    """Returns the bytes of all leaves, arrays or their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _check_room(checked: Checked, phases: Sequence[Phase], state: int) -> None:
    """Asks for the room of a new run: checkpoints of the largest state, weights, and the largest trunk cache."""
    config, workdir = checked.config, checked.workdir
    if workdir.exists() and files.visible(workdir):
        return  # what it needs lies there, for the larger part; each save asks again
    cached = max((phase.cache.bytes for phase in phases if phase.cache and phase.cache.place == "disk"), default=0)
    if config.cache_dir:
        files.check_space(config.cache_dir, cached, "the trunk cache")
        cached = 0
    # The newest, the best, one that is being written; the weights are smaller than another state.
    states = config.checkpoint.keep + 3
    what = "checkpoints and weights" + " and the trunk cache" * bool(cached)
    files.check_space(workdir, state * states + cached, what)


def _open_log(checked: Checked, standing: Standing) -> Log:
    """Opens the log with the rows up to the checkpoint; on processes other than the first only to count them."""

    def rows() -> list[dict[str, Any]]:
        earlier = read_rows(checked.workdir)
        progress = standing.progress
        if progress.rows is None:
            return rows_until(earlier, int(standing.state.step))
        return earlier[: progress.rows]

    title = f"EfficientNet {checked.config.variant} on {epath.Path(checked.config.data.name).name}"
    kept = rows() if hosts.is_first() else []
    standing.progress.rows = len(kept)
    return Log(checked.workdir, kept, active=hosts.is_first(), title=title)


def _opening_words(checked: Checked, origin: str) -> list[str]:
    config, sources = checked.config, checked.sources
    images = ", ".join(f"{len(source):,} {split}" for split, source in sources.items())
    name = epath.Path(config.data.name).name
    phases = config.phases
    cared_for = any(weights_asked(config, keys) or sampling_of(config, keys) == "balanced" for keys in phases)
    return [
        f"EfficientNet {config.variant} on {name}: {images} images, {len(sources['train'].class_names)} classes",
        f"{origin}; {config.dtype} on {checked.partition.mesh.size} × {jax.devices()[0].device_kind} "
        f"({_layout_words(config)})",
        *words_on_balance(sources["train"], cared_for),
        *checked.notes,
    ]


def _layout_words(config: Mapping[str, Any]) -> str:
    """Says how steps run on the devices: `pjit, state over 8 devices, 4 microbatches`."""
    fsdp, what = config["partition"]["fsdp"], config["partition"]["sharded"]
    words = [config["partition"]["mode"]]
    words += [f"{what if what == 'state' else 'state of the optimizer'} over {fsdp} devices"] if fsdp > 1 else []
    words += [f"{config['microbatches']} microbatches"] if config["microbatches"] > 1 else []
    return ", ".join(words)
