"""The story of a run: config → data → model → phases of epochs of steps → weights, curves, figures.

This page holds the order of things; what it calls are rooms of their own.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from effnet_jax import hosts
from effnet_jax.data.loader import prefetch
from effnet_jax.errors import DataError, DiskError, PathError, RunError, Stopped
from effnet_jax.metrics.figures import percent
from effnet_jax.train import advice
from effnet_jax.train.cache.fill import prepare_cache, sweep_caches
from effnet_jax.train.cache.store import TrunkCache
from effnet_jax.train.compiling import CompileClock, first_step_words
from effnet_jax.train.evaluation import Results, evaluate
from effnet_jax.train.finish import finish_run, finished_words
from effnet_jax.train.judging import judge_run
from effnet_jax.train.meter import Meter, mean
from effnet_jax.train.phases import Phase
from effnet_jax.train.profiling import Profile
from effnet_jax.train.programs import training_program
from effnet_jax.train.run import Run, Standing, StopAsked
from effnet_jax.train.rundir.export import trained_metadata
from effnet_jax.train.rundir.progress import Progress
from effnet_jax.train.rundir.snapshot import Snapshot
from effnet_jax.train.screen import phase_table, slowest_input
from effnet_jax.train.start import check_run, open_run
from effnet_jax.train.step.optimizers import observe, plateau_scale
from effnet_jax.train.step.state import TrainState, enter_phase


def train(config: Any, workdir: epath.PathLike, *, devices: Sequence[jax.Device] | None = None) -> dict[str, Any]:
    """Trains as a config says, or goes on where an earlier attempt in the same run dir stopped.

    Args:
      config: from a recipe; checked here.
      workdir: the run dir: a local folder, or `gs://…`.
      devices: to train on, in the order of the mesh; None: all of all processes.

    Returns:
      The summary, as `summary.json` has it.

    Raises:
      EffnetError: what the user can cure: config, data, weights, run dir, a loss that is no number, another process.
      Stopped: SIGTERM or SIGINT came; a checkpoint was saved, and the same call goes on from it.
    """
    with hosts.watch(), contextlib.ExitStack() as stack:
        # ---- checked and agreed upon, before anything is written
        clock = stack.enter_context(CompileClock())
        checked = check_run(config, workdir, devices)
        if checked.finished:
            print("\n".join([*checked.notes, finished_words(checked.workdir, checked.finished)]))
            return dict(checked.finished)

        # ---- the run dir is claimed; the state is that of the last checkpoint, else fresh
        run, standing = open_run(checked, clock, stack)
        try:
            for phase in run.phases[standing.progress.phase :]:
                train_phase(run, phase, standing)
                close_phase(run, phase, standing)
            judged = judge_run(run, standing)

        # ---- nothing that was trained is lost
        except StopAsked as asked:
            save(run, standing)
            run.checkpoints.close()
            hosts.wait("the checkpoint is written")
            step = int(standing.state.step)
            words = f"stopped by {asked.signal} after step {step}; the same command goes on from there"
            raise Stopped(asked.signal, words) from None
        except (DataError, DiskError, PathError, OSError):
            save_before_leaving(run, standing)
            raise

        # ---- what stays: weights, curves, figures, the report
        return finish_run(run, standing, judged)


def train_phase(run: Run, phase: Phase, standing: Standing) -> None:
    """Runs what is left of a phase: its steps, and at each epoch's end an evaluation.

    Args:
      run: what the run works with.
      phase: the phase.
      standing: at its begin, or inside of it after a resume; kept up to date.

    Raises:
      RunError: a loss or gradient that is no number.
      DataError: an image that cannot be decoded.
      DiskError: no room for a checkpoint or a cache.
      StopAsked: between two steps, or two batches of a fill or an evaluation.
    """
    if standing.entered < phase.number:
        enter = functools.partial(enter_phase, optimizer=phase.optimizer, keep=phase.keys.keep_optimizer)
        standing.state = run.partition.make_state(enter, standing.state, donate=True)
        standing.entered = phase.number
    step = int(standing.state.step)
    unclosed = step in phase.epochs and bool(standing.progress.sums)  # an earlier attempt was stopped in an evaluation
    if step == phase.end and not unclosed:  # a resume at the very end
        return
    title = f"{phase.name}, {phase.resolution}×{phase.resolution}"
    run.screen.show(phase_table(title, phase.plan.table(standing.state.params), phase.factors))
    cache = prepare_cache(run, phase, standing.state)
    train_step = training_program(run.model, phase, run.partition, ema=run.config.ema, cache=cache)
    meter = standing.meter = Meter(phase.feed.batch_size, step)
    if unclosed:
        close_epoch(run, phase, standing, cache)
    run.screen.start_bar(phase.name, phase.end - phase.start, step - phase.start)
    stream = training_stream(run, phase, step, cache)
    with contextlib.closing(stream) as batches, contextlib.closing(meter), Profile(run, standing) as profile:
        while step < phase.end:
            run.tick()
            with profile.step(step + 1), on_devices_only():
                standing.state, metrics = train_step(standing.state, meter.take(batches))
            step += 1
            meter.add(step, metrics)
            tell_first_step(run, standing)
            if len(meter) >= run.config.log_every:
                record_steps(run, phase, standing)
            if step in phase.epochs:
                end_epoch(run, phase, standing, cache)
            elif is_due(run, step):
                save(run, standing)
    run.screen.end_bar()


@contextlib.contextmanager
def on_devices_only() -> Iterator[None]:
    """Makes it an error that a step is given what is not where it runs: a hidden copy would cost time in each."""
    with jax.transfer_guard_host_to_device("disallow"), jax.transfer_guard_device_to_device("disallow"):
        yield


def tell_first_step(run: Run, standing: Standing) -> None:
    """Says once what it took until a step was done."""
    if standing.first_step is None:
        standing.first_step = run.clock.read()
        run.screen.say(first_step_words(standing.first_step))


def training_stream(run: Run, phase: Phase, step: int, cache: TrunkCache | None):
    """Batches on the devices, from the one of the step after `step` on."""
    feed, rows = phase.feed, run.rows(phase.feed.batch_size)
    if cache:
        batches = cache.train_batches(start_step=step, rows=rows, **feed.order)
    else:
        batches = feed.training(run.sources["train"], step, rows, run.skipped.met["train"])
    with contextlib.closing(batches):
        yield from prefetch(batches, run.partition.place_batch)


def record_steps(run: Run, phase: Phase, standing: Standing, *, all_of_them: bool = False) -> None:
    """Fetches metrics of steps, logs every `log_every`th, and stops at one that is no number.

    Args:
      run: what the run works with.
      phase: the phase.
      standing: its meter and sums.
      all_of_them: also of the newest steps, for which the device has to be waited for.
    """
    meter = standing.meter
    assert meter is not None
    for step, values in meter.collect(standing.progress.sums, wait=all_of_them):
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            what = "gradient" if math.isfinite(values["loss"]) else "loss"
            raise RunError(advice.not_finite(what, step, phase.keys, run.checkpoints.last_good()))
        if step % run.config.log_every == 0:
            run.log.record(
                step=step,
                epoch=run.epoch_at(step),
                phase=phase.name,
                split="step",
                learning_rate=phase.learning_rate(step, standing.state.opt_state),
                images_per_second=meter.images_per_second,
                **values,
            )
        standing.progress.rows = run.log.count
        figures = f"loss {values['loss']:.3f}  {meter.images_per_second:.0f} images/s"
        run.screen.advance(step - phase.start, figures)
    run.skipped.update()


def end_epoch(run: Run, phase: Phase, standing: Standing, cache: TrunkCache | None) -> None:
    """Saves at an epoch's end, before its evaluation, and evaluates."""
    record_steps(run, phase, standing, all_of_them=True)
    step = int(standing.state.step)
    if step == phase.end or on_all(run, "an epoch's checkpoint is due", run.checkpoints.due_at_epoch, step):
        save(run, standing)
    close_epoch(run, phase, standing, cache)


def close_epoch(run: Run, phase: Phase, standing: Standing, cache: TrunkCache | None) -> None:
    """Sums an epoch up, evaluates the validation split where it is due, records and advises."""
    progress, meter = standing.progress, standing.meter
    assert meter is not None
    step = int(standing.state.step)
    results: Results = {"train": mean(progress.sums, "loss", "accuracy")}
    with meter.pause():
        if step in phase.evaluations:
            results |= evaluate(run, phase, standing.state, "validation", cache)
        run.skipped.exchange()
        record_epoch(run, phase, standing, results)
        standing.state = follow_validation(run, phase, standing.state, results)
        progress.sums = {}
        progress.validation = {**progress.validation, **results}
        progress.rows = run.log.count
        if "validation" in results and on_all(run, "it is the best", run.checkpoints.is_unsaved_best, step):
            run.checkpoints.hold(snapshot(run, standing))


def record_epoch(run: Run, phase: Phase, standing: Standing, results: Results) -> None:
    """Writes an epoch's figures to the log and the screen, with what they suggest."""
    progress, meter, step = standing.progress, standing.meter, int(standing.state.step)
    assert meter is not None
    place = {"step": step, "epoch": run.epoch_at(step), "phase": phase.name}
    rate = phase.learning_rate(step, standing.state.opt_state)
    waits = hosts.gather("waits for images", meter.input_wait)
    speed = {
        "learning_rate": rate,
        "images_per_second": meter.images_per_second,
        "images_per_second_per_chip": meter.images_per_second / run.chips,
        "input_wait": max(waits),  # all have to wait for the slowest
    }
    for split, figures in results.items():
        run.log.record(**place, split=split, **figures, **(speed if split == "train" else {}))
    epoch = phase.epochs[step]
    run.screen.end_epoch(phase.name, (epoch, len(phase.epochs)), results, meter, phase.end)
    if slowest := slowest_input(waits):
        run.screen.say(slowest)
    before: Mapping[str, float] = {} if epoch == 1 else progress.validation.get("train", {})
    run.screen.advise(advice.above_guessing(phase.keys, before, results["train"], run.model.num_classes))
    if epoch == 1 and progress.results and not phase.resized:
        known, now = progress.validation.get("validation"), results.get("validation")
        run.screen.advise(advice.at_border(known, now, phase.plan.batch_norm))
    if trouble := run.log.draw():
        run.screen.say(f"warning: {trouble}")


def follow_validation(run: Run, phase: Phase, state: TrainState, results: Results) -> TrainState:
    """Lets a plateau schedule see the validation loss, where it was evaluated, and tells when the rate falls."""
    if phase.keys.schedule != "plateau" or "validation" not in results:
        return state
    after = state.replace(opt_state=observe(phase.keys, state.opt_state, results["validation"]["loss"]))
    if plateau_scale(after.opt_state) < plateau_scale(state.opt_state):
        rate = phase.learning_rate(int(state.step) + 1, after.opt_state)
        run.screen.say(
            f"{phase.name}: no lower validation loss in {phase.keys.plateau_patience} evaluations, "
            f"so the learning rate falls to {rate:.3g}"
        )
    return after


def close_phase(run: Run, phase: Phase, standing: Standing) -> None:
    """Evaluates the test split at the end of a phase, and goes over to the next one."""
    progress = standing.progress
    save(run, standing)  # a step that is saved already: only that its validation is known
    results = evaluate(run, phase, standing.state, "test")
    for split, figures in results.items():
        run.log.record(step=phase.end, epoch=run.epoch_at(phase.end), phase=phase.name, split=split, **figures)
        run.screen.say(f"{phase.name}: {split} accuracy {percent(figures['accuracy'])}, loss {figures['loss']:.3f}")
    known = progress.validation
    run.screen.advise(advice.at_end(phase.keys, phase.feed.batch_size, known.get("train"), known.get("validation")))
    done = {"name": phase.name, **known, **results}
    standing.progress = Progress(
        phase=phase.number + 1, validation=known, results=[*progress.results, done], rows=run.log.count
    )
    save(run, standing)
    sweep_caches(run)


def is_due(run: Run, step: int) -> bool:
    """Whether it is time for a checkpoint between two epochs' ends.

    Where all have to bring their pieces, they are asked at steps that they know of: at those of `checkpoint.steps`, and
    where metrics are fetched, for which each waits anyway.
    """
    steps = run.config.checkpoint.steps
    if run.partition.spread and step % run.config.log_every and (not steps or step % steps):
        return False
    return on_all(run, "a checkpoint is due", run.checkpoints.due, step)


def on_all(run: Run, what: str, decide: Callable[[int], bool], step: int) -> bool:
    """What the process that writes checkpoints decides; where pieces of the state are on others, they follow it."""
    if run.partition.spread:
        return hosts.on_first(what, functools.partial(decide, step))
    return decide(step)


def save(run: Run, standing: Standing) -> None:
    """Writes a checkpoint of where the run stands; of a step that has one, only how far it is since."""
    if standing.meter is not None and len(standing.meter):
        record_steps(run, run.phases[standing.entered], standing, all_of_them=True)
    run.log.flush()  # no checkpoint counts a row that a crash could lose
    run.checkpoints.save(snapshot(run, standing))


def save_before_leaving(run: Run, standing: Standing) -> None:
    """Saves what can be saved when an image or a disk fails: the error that ends the run is told in any case."""
    if int(standing.state.step) == 0 or run.partition.spread:  # alone, a process cannot read the state
        return
    try:
        save(run, standing)
        run.checkpoints.close()
        run.screen.say(f"saved after step {int(standing.state.step)}; the same command goes on from there")
    except Exception as error:  # the same disk, most likely
        run.screen.say(f"warning: not saved on leaving: {error}")


def snapshot(run: Run, standing: Standing) -> Snapshot:
    """What a checkpoint holds, with the time as it is now."""
    progress, feed = standing.progress, run.phases[standing.entered].feed
    progress.seconds, progress.entered = round(time.monotonic() - standing.began, 3), standing.entered
    metadata = trained_metadata(run.workdir.name, run.config, run.weights, run.sources["train"], feed)
    return Snapshot(standing.state, progress, metadata)
