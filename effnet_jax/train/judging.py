"""The last look at a run's weights: what they answer to the splits that were held back, and their temperature."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from effnet_jax.metrics.answers import gather_answers, make_answer_step
from effnet_jax.metrics.asking import answer_rows, skipped_by_all
from effnet_jax.metrics.calibration import fit_temperature
from effnet_jax.metrics.evaluation import Evaluation
from effnet_jax.train.run import Run, Standing
from effnet_jax.train.rundir.export import WEIGHTS, WEIGHTS_EMA
from effnet_jax.train.step.state import Variables
from effnet_jax.train.step.steps import make_logits

HELD_BACK = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class Judged:
    """What is known of one of a run's weights at its end.

    Attributes:
      variables: the weights.
      temperature: that their logits are divided by: fitted on the validation split, 1 where it does not help.
      evaluations: by split, with that temperature; the validation split's were made before it was known.
    """

    variables: Variables
    temperature: float
    evaluations: Mapping[str, Evaluation]


def judge_run(run: Run, standing: Standing) -> dict[str, Judged]:
    """Asks the weights, and their moving averages, about the validation and the test split.

    Returns:
      By name of the weights dir. Without evaluations where the config wants neither a report nor a temperature.

    Raises:
      StopAsked: between two batches.
      DataError: an image that cannot be decoded.
    """
    state = standing.state
    choices = {WEIGHTS: state.variables} | ({WEIGHTS_EMA: state.ema} if state.ema is not None else {})
    if not (run.config.calibrate or run.config.report):
        return {name: Judged(variables, 1.0, {}) for name, variables in choices.items()}
    step = run.partition.compile_rows(make_answer_step(make_logits(run.model, resolution=run.phases[-1].resolution)))
    return {name: _judge(run, step, variables) for name, variables in choices.items()}


def _judge(run: Run, step: Callable[..., Any], variables: Variables) -> Judged:
    temperature, evaluations = 1.0, {}
    for split in HELD_BACK:
        if split not in run.sources or (split == "test" and not run.config.report):
            continue
        evaluations[split] = found = _ask(run, step, variables, split, temperature)
        fitted = fit_temperature(found.answers.tempered, len(found.answers)) if split == "validation" else None
        if run.config.calibrate and fitted and fitted.helps:
            temperature = round(fitted.value, 4)
    return Judged(variables, temperature, evaluations)


def _ask(run: Run, step: Callable[..., Any], variables: Variables, split: str, temperature: float) -> Evaluation:
    feed, source = run.phases[-1].feed, run.sources[split]
    size = feed.eval_batch_size
    batches = feed.evaluating(source, size, run.rows(size), run.skipped.met[split])
    values = (variables, np.float32(temperature))
    rows = answer_rows(step, values, batches, run.partition.place_batch, tell=lambda done: run.tick())
    answers = gather_answers(rows, len(run.class_names))
    return Evaluation(answers, run.class_names, source, temperature, skipped_by_all(run.skipped.met[split]))
