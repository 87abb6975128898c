"""What the figures of a run say to somebody who knows the field: pure functions from figures to sentences."""

import math
from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, float]  # accuracy and loss

OVERFITTING = 0.15  # training accuracy above validation
BORDER_LOSS = 0.02  # of validation accuracy, at an unfreezing
SMALL_BATCH = 64  # images a step, whose noise regularises


def above_guessing(phase: Mapping[str, Any], before: Figures, after: Figures, num_classes: int) -> list[str]:
    """Advice on the mean training loss of an epoch: worse than guessing means too fast.

    Args:
      phase: its keys.
      before: training figures of the epoch before in this phase, or none: advice is given once, not in every epoch.
      after: training figures of this epoch.
      num_classes: of the data.
    """
    guessing, loss = math.log(num_classes), after["loss"]
    limit = 1.1 * guessing
    if num_classes < 2 or loss <= limit or before.get("loss", 0.0) > limit:
        return []
    cause, cure = "the learning rate is", f"learning_rate={phase['learning_rate'] / 10:g}"
    if phase["optimizer"] == "rmsprop" and phase["momentum"]:
        cause = (
            f"rmsprop with momentum={phase['momentum']:g}, the recipe for training from scratch, is the usual culprit: "
            "its learning rate or momentum is"
        )
        cure = f"optimizer='sgd' or 'adamw', or momentum=0.0, with {cure}"
    elif phase["momentum"] > 0.9:
        cause, cure = "the learning rate or the momentum is", f"{cure}, momentum=0.9"
    return [
        f"the training loss of an epoch, {loss:.4g}, is above log(classes) = {guessing:.2f}, which guessing reaches: "
        f"{cause} too high for these weights. Try {cure}, or a warm-up of an epoch"
    ]


def at_border(before: Figures | None, after: Figures | None, batch_norm: str) -> list[str]:
    """Advice on validation before an unfreezing and after its first epoch."""
    if not before or not after:
        return []
    fall = before["accuracy"] - after["accuracy"]
    # A few hundred images say little: the standard error of their accuracy is allowed besides.
    error = math.sqrt(before["accuracy"] * (1 - before["accuracy"]) / before.get("count", math.inf))
    if fall <= BORDER_LOSS + error:
        return []
    cure = "the learning rate is too high for units that were not trained before. Try a third of it"
    if batch_norm == "train":
        cure = "keep batch_norm='frozen' for transferred weights; if it is not that, try a third of the learning rate"
    return [
        f"validation accuracy fell by {100 * fall:.1f} points at the unfreezing "
        f"({100 * before['accuracy']:.1f} % → {100 * after['accuracy']:.1f} %): {cure}, and a warm-up of an epoch"
    ]


def at_end(phase: Mapping[str, Any], batch_size: int, train: Figures | None, validation: Figures | None) -> list[str]:
    """Advice on the last epoch of a phase: training far above validation."""
    if not train or not validation:
        return []
    gap = train["accuracy"] - validation["accuracy"]
    if gap <= OVERFITTING:
        return []
    batch = f", batch_size={SMALL_BATCH}" if batch_size > SMALL_BATCH else ""
    return [
        f"training accuracy is {100 * gap:.0f} points above validation: the phase learns its images by heart "
        f"(overfitting). What helps: a lower rate (learning_rate={phase['learning_rate'] / 3:.2g}); stronger augment "
        f"(shift, zoom, randaugment, mixup, label_smoothing=0.1), more weight_decay and dropout{batch}; fewer epochs; "
        "units that are unfrozen phase by phase, and fewer of them. More images help most"
    ]


def not_finite(what: str, step: int, phase: Mapping[str, Any], saved: str) -> str:
    """The message of a run that stops because a loss or gradient is no number; `saved` says what is left, if known."""
    cures = [f"learning_rate={phase['learning_rate'] / 10:g}"]
    if phase["optimizer"] == "rmsprop" and phase["momentum"]:
        cures.append("optimizer='sgd' or 'adamw'")
    cures.append("a warm-up of an epoch")
    if not phase["clip_norm"]:
        cures.append("clip_norm=1.0")
    return (
        f"the {what} is not finite at step {step} of phase {phase['name']!r}{saved and f'; {saved}'}. The learning "
        f"rate is the first suspect: try {', '.join(cures[:-1])} or {cures[-1]}, and another --workdir, since the "
        "config differs"
    )
