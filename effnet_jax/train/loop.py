"""The story of a run: config → data → model → phases of epochs of steps → weights, curves, figures.

This page holds the order of things; what it calls are rooms of their own.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from effnet_jax.data.augment import make_augment
from effnet_jax.data.loader import evaluation_rule
from effnet_jax.disk import check_space
from effnet_jax.errors import RunError
from effnet_jax.train import advice, export
from effnet_jax.train.cache_fill import cache_folder, prepare_cache
from effnet_jax.train.checkpoints import Checkpoints, Progress, state_bytes
from effnet_jax.train.config import check_config
from effnet_jax.train.config_checks import augment_settings, check_devices
from effnet_jax.train.interrupt import stop_signals
from effnet_jax.train.meter import Meter, mean
from effnet_jax.train.optimizers import observe, plateau_scale, unit_factors
from effnet_jax.train.partition import anywhere, make_partition
from effnet_jax.train.report import Report, percent, write_json
from effnet_jax.train.run import Results, Run, evaluate, training_stream
from effnet_jax.train.setup import (
    Phase,
    check_weights,
    initial_variables,
    keeps_classifier,
    make_model,
    make_phases,
    open_sources,
)
from effnet_jax.train.skipped import SKIPPED, SkippedImages
from effnet_jax.train.state import TrainState, create_state, enter_phase
from effnet_jax.train.steps import make_eval_step, make_train_step
from effnet_jax.train.trunk_cache import TrunkCache, cached_inputs, drop_cache
from effnet_jax.train.workdir import CHECKPOINTS, SUMMARY, check_workdir, claim_workdir, has_checkpoints, provenance


def train(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Trains as a config says, or goes on where an earlier attempt in the same run dir stopped.

    Args:
      config: from a recipe; checked here.
      workdir: the run dir.

    Returns:
      The summary, as `summary.json` has it.

    Raises:
      EffnetError: what the user can cure: config, data, weights, run dir, a loss that is no number.
      KeyboardInterrupt: SIGTERM or SIGINT came; a checkpoint was saved, and the same call goes on from it.
    """
    began = time.monotonic()

    # ---- what can be checked before data is read and memory taken
    config = check_config(config)
    check_devices(config, jax.device_count())
    metadata = check_weights(config)
    workdir = Path(workdir)
    finished = check_workdir(workdir, config)
    if finished:
        print(f"{workdir} is finished: {export.figures(finished)}; see {workdir / SUMMARY}")
        return finished

    # ---- data, model, phases
    sources, warnings = open_sources(config)
    class_names = tuple(sources["train"].class_names)
    phases = make_phases(config, {split: len(source) for split, source in sources.items()})
    partition = make_partition(config.partition.mode)
    model = make_model(config, metadata, len(class_names))
    resolution = phases[-1].resolution
    kept = keeps_classifier(config, metadata, class_names)
    variables = None
    if not has_checkpoints(workdir):
        variables = initial_variables(config, model, len(class_names), keep_classifier=kept)
        saved = state_bytes(variables) * (config.checkpoint.keep + 2)
        cached = max((phase.cache.bytes for phase in phases if phase.cache and phase.cache.place == "disk"), default=0)
        check_space(workdir, saved + cached, "checkpoints and weights" + " and the trunk cache" * bool(cached))

    # ---- from here on the run dir is written to
    with contextlib.ExitStack() as stack:
        stack.enter_context(claim_workdir(workdir, config))
        stopped = stack.enter_context(stop_signals())
        checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=config.checkpoint.keep)
        stack.callback(checkpoints.close)

        # ---- the state: of the last checkpoint, else fresh
        def shape_at(progress: Progress) -> TrainState:
            def create() -> TrainState:
                variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
                return create_state(variables, phases[progress.phase].optimizer, ema=bool(config.ema))

            return partition.abstract_state(jax.eval_shape(create))

        restored = checkpoints.restore(shape_at, print)
        if variables is None:
            assert restored is not None
            state, progress = restored
            origin = f"resumed after step {int(state.step)}"
        else:
            state = partition.place_state(
                create_state(variables, phases[0].optimizer, ema=bool(config.ema), seed=config.seed)
            )
            progress = Progress()
            origin = f"{config.weights}{'' if kept else ', classifier fresh'}" if metadata else "from scratch"
        first_step = int(state.step)

        report = Report(
            workdir,
            step=first_step,
            active=jax.process_index() == 0,
            title=f"EfficientNet {config.variant} on {Path(config.data.name).name}",
        )
        stack.callback(report.close)
        report.start_run(config, sources, origin)
        for warning in warnings:
            report.say(f"warning: {warning}")
        skipped = SkippedImages(workdir, report.say, active=report.active)
        skipped.update(sources)

        @functools.cache
        def eval_step(resolution: int, first: str | None = None) -> Callable[..., Any]:
            step = make_eval_step(model, resolution=resolution, first=first, axis_name=partition.axis_name)
            return partition.compile_eval_step(step)

        run = Run(
            config=config,
            sources=sources,
            model=model,
            workdir=workdir,
            crop=config.data.crop or (metadata.crop if metadata else "frac"),
            partition=partition,
            eval_step=eval_step,
            checkpoints=checkpoints,
            report=report,
            skipped=skipped,
            stopped=stopped,
        )

        # ---- the phases
        for number in range(progress.phase, len(phases)):
            phase = phases[number]
            if number > progress.phase:
                state = partition.place_state(enter_phase(state, phase.optimizer, keep=phase.keys.keep_optimizer))
                progress = Progress(phase=number, validation=progress.validation, results=progress.results)
            state = train_phase(run, phase, state, progress)
            drop_cache(cache_folder(workdir))
            progress.results.append(finish_phase(run, phase, state, progress))

        # ---- what stays: weights, curves, figures
        direct = evaluation_rule(sources["train"], config.data.evaluation) == "resize"
        described = export.trained_metadata(
            workdir, config, metadata, class_names, resolution=resolution, crop=run.crop, direct=direct
        )
        weights = export.write_run_weights(workdir, state, described)
        report.draw(now=True)
        summary = {
            **{split: figures for split, figures in progress.results[-1].items() if split != "name"},
            "phases": progress.results,
            "steps": int(state.step),
            "class_names": class_names,
            "images": {split: len(source) for split, source in sources.items()},
            "skipped_images": skipped.images,
            "seconds": round(time.monotonic() - began, 1),
            "resumed_after_step": first_step or None,
            "weights_source": dict(metadata.source) if metadata else None,
            "provenance": provenance(),
        }
        if report.active:
            write_json(workdir / SUMMARY, summary)
        if skipped.images:
            report.say(f"skipped images: {skipped}, listed in {workdir / SKIPPED}")
        export.say_goodbye(report, summary, workdir, weights[0], sources)
    return summary


def train_phase(run: Run, phase: Phase, state: TrainState, progress: Progress) -> TrainState:
    """Runs the steps of a phase that are left; at each epoch's end it evaluates and saves.

    Args:
      run: what the run works with.
      phase: the phase.
      state: at its begin, or inside of it after a resume; given away.
      progress: kept up to date, for checkpoints.

    Returns:
      The state at the end of the phase.

    Raises:
      RunError: a loss that is no number.
      KeyboardInterrupt: a signal came; the state was saved.
    """
    config, report = run.config, run.report
    step = int(state.step)
    if step == phase.end:  # a resume at the very end
        return state
    factors = unit_factors(phase.plan, phase.keys.layer_decay, phase.keys.factors)
    report.start_phase(f"{phase.name}, {phase.resolution}×{phase.resolution}", phase.plan.table(state.params), factors)
    cache = prepare_cache(
        config,
        phase,
        run.model,
        state.variables,
        run.sources,
        crop=run.crop,
        workdir=run.workdir,
        report=report,
        stopped=run.stopped,
        after_batch=lambda: run.skipped.update(run.sources),
        averages=state.ema,
    )
    if phase.cache and anywhere(cache is not None and cache.missing > 0):
        stop(run, state, progress, run.stopped() or "a signal to another process")
    settings = augment_settings(config, phase.keys)
    if cache:
        augment = cached_inputs(run.model.num_classes, settings["label_smoothing"])
    else:
        augment = make_augment(settings, resolution=phase.resolution, num_classes=run.model.num_classes)
    train_step = run.partition.compile_train_step(
        make_train_step(
            run.model,
            phase.plan,
            phase.optimizer,
            augment,
            views=phase.views,
            first=cache.plan.first if cache else None,
            ema_decay=config.ema,
            axis_name=run.partition.axis_name,
        )
    )
    meter = Meter(config.batch_size, step)
    batches = training_stream(run, phase, step, cache)
    report.start_bar(phase.name, phase.end - phase.start, step - phase.start)
    try:
        while step < phase.end:
            state, metrics = train_step(state, next(batches))
            step += 1
            meter.add(step, metrics)
            reason = run.stopped()
            if len(meter) >= config.log_every or step in phase.epochs or reason:
                record_steps(run, phase, state, meter, progress)
            if step in phase.epochs:
                with meter.pause():
                    results = end_epoch(run, phase, state, progress, meter, step, cache)
                    state = follow_validation(run, phase, state, results)
                    run.checkpoints.save(state, progress, results.get("validation", {}).get("accuracy"))
            if reason and step < phase.end:
                stop(run, state, progress, reason)
    finally:
        batches.close()
        report.end_bar()
    return state


def stop(run: Run, state: TrainState, progress: Progress, reason: str) -> NoReturn:
    """Saves the state and leaves. Raises KeyboardInterrupt."""
    run.checkpoints.save(state, progress)
    run.report.say(f"stopped by {reason} after step {int(state.step)}; the same command goes on from there")
    raise KeyboardInterrupt


def record_steps(run: Run, phase: Phase, state: TrainState, meter: Meter, progress: Progress) -> None:
    """Fetches the metrics of the last steps, logs every `log_every`th, and stops at a loss that is no number."""
    for step, values in meter.collect(progress.sums):
        if not math.isfinite(values["loss"]):
            raise RunError(advice.not_finite(step, phase.keys, run.checkpoints.latest))
        if step % run.config.log_every == 0:
            run.report.record(
                step=step,
                epoch=step / run.steps_per_epoch,
                phase=phase.name,
                split="step",
                learning_rate=phase.learning_rate(step, state.opt_state),
                images_per_second=meter.images_per_second,
                **values,
            )
    run.report.advance(step - phase.start, f"loss {values['loss']:.3f}  {meter.images_per_second:.0f} images/s")
    run.skipped.update(run.sources)


def end_epoch(
    run: Run,
    phase: Phase,
    state: TrainState,
    progress: Progress,
    meter: Meter,
    step: int,
    cache: TrunkCache | None,
) -> Results:
    """Sums an epoch up, evaluates the validation split where it is due, records and advises. Returns its results."""
    place = {"step": step, "epoch": step / run.steps_per_epoch, "phase": phase.name}
    results: Results = {"train": mean(progress.sums, "loss", "accuracy")}
    rate = phase.learning_rate(step, state.opt_state)
    speed = {"learning_rate": rate, "images_per_second": meter.images_per_second}
    run.report.record(**place, split="train", **results["train"], **speed)
    if step in phase.evaluations:
        results |= evaluate(run, phase, state, "validation", cache)
        for split, figures in results.items():
            if split != "train":
                run.report.record(**place, split=split, **figures)
    run.report.end_epoch(phase.name, phase.epochs[step], len(phase.epochs), results, meter, phase.end)
    first = phase.epochs[step] == 1
    before = {} if first else progress.validation.get("train", {})
    run.report.advise(advice.above_guessing(phase.keys, before, results["train"], run.model.num_classes))
    if first and progress.results and not phase.resized:
        before, after = progress.validation.get("validation"), results.get("validation")
        run.report.advise(advice.at_border(before, after, phase.plan.batch_norm))
    run.report.draw()
    progress.sums = {}
    progress.validation = {**progress.validation, **results}
    return results


def follow_validation(run: Run, phase: Phase, state: TrainState, results: Results) -> TrainState:
    """Lets a plateau schedule see the validation loss, where it was evaluated, and tells when the rate falls."""
    if phase.keys.schedule != "plateau" or "validation" not in results:
        return state
    after = state.replace(opt_state=observe(phase.keys, state.opt_state, results["validation"]["loss"]))
    if plateau_scale(after.opt_state) < plateau_scale(state.opt_state):
        rate = phase.learning_rate(int(state.step) + 1, after.opt_state)
        run.report.say(
            f"{phase.name}: no lower validation loss in {phase.keys.plateau_patience} evaluations, "
            f"so the learning rate falls to {rate:.3g}"
        )
    return after


def finish_phase(run: Run, phase: Phase, state: TrainState, progress: Progress) -> dict[str, Any]:
    """Evaluates the test split at the end of a phase. Returns the phase's results for `summary.json`."""
    results = evaluate(run, phase, state, "test")
    for split, figures in results.items():
        epoch = phase.end / run.steps_per_epoch
        run.report.record(step=phase.end, epoch=epoch, phase=phase.name, split=split, **figures)
        run.report.say(f"{phase.name}: {split} accuracy {percent(figures['accuracy'])}, loss {figures['loss']:.3f}")
    train, validation = progress.validation.get("train"), progress.validation.get("validation")
    run.report.advise(advice.at_end(phase.keys, run.config.batch_size, train, validation))
    return {"name": phase.name, **progress.validation, **results}
