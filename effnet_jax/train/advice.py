"""What the figures of a run say to somebody who knows the field: pure functions from figures to sentences."""

import math
from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, float]  # accuracy and loss

OVERFITTING = 0.15  # training accuracy above validation
BORDER_LOSS = 0.02  # of validation accuracy, at an unfreezing


def after_first_epoch(phase: Mapping[str, Any], loss: float, num_classes: int) -> list[str]:
    """Advice on the mean training loss of a phase's first epoch: worse than guessing means too fast."""
    guessing = math.log(num_classes)
    if num_classes < 2 or loss <= 1.1 * guessing:
        return []
    rate = phase["learning_rate"]
    lower = f"learning_rate={rate / 10:g}"
    momentum = " and momentum=0.9" if phase["momentum"] > 0.9 else ""
    rule = " with optimizer='sgd' or 'adam'" if phase["optimizer"] == "rmsprop" else ""
    return [
        f"the loss after the first epoch, {loss:.2f}, is above log(classes) = {guessing:.2f}, which guessing reaches: "
        f"the learning rate is too high for these weights. Try {lower}{momentum}{rule}, or a warm-up of an epoch"
    ]


def at_border(before: Figures | None, after: Figures | None, batch_norm: str) -> list[str]:
    """Advice on validation before an unfreezing and after its first epoch."""
    if not before or not after:
        return []
    fall = before["accuracy"] - after["accuracy"]
    if fall <= BORDER_LOSS:
        return []
    cure = "try a third of the learning rate"
    if batch_norm == "train":
        cure = "keep batch_norm='frozen' for transferred weights"
    return [
        f"validation accuracy fell by {100 * fall:.1f} points at the unfreezing "
        f"({100 * before['accuracy']:.1f} % → {100 * after['accuracy']:.1f} %): {cure}, and a warm-up of an epoch"
    ]


def at_end(train: Figures | None, validation: Figures | None) -> list[str]:
    """Advice on the last epoch of a phase: training far above validation."""
    if not train or not validation:
        return []
    gap = train["accuracy"] - validation["accuracy"]
    if gap <= OVERFITTING:
        return []
    return [
        f"training accuracy is {100 * gap:.0f} points above validation: the phase learns its images by heart. Stronger "
        "augment (shift, zoom, randaugment, mixup), label_smoothing=0.1, weight_decay, fewer epochs or fewer trained "
        "units help; more images help most"
    ]


def not_finite(step: int, phase: Mapping[str, Any], last_good: int | None) -> str:
    """The message of a run that stops because its loss is no number."""
    saved = f"the last good checkpoint is step {last_good}" if last_good is not None else "no checkpoint was saved yet"
    return (
        f"the loss is not finite at step {step} of phase {phase['name']!r}; {saved}. The learning rate is the first "
        f"suspect: try learning_rate={phase['learning_rate'] / 10:g}, a warm-up of an epoch or clip_norm=1.0, and "
        "another --workdir, since the config differs"
    )
