"""Measures exported weights a second time, by nothing of this package, and compares with what `evaluate` wrote.

In an environment with TensorFlow, Keras and scikit-learn, for B0 exported with `--format=keras` and a folder of images
by WordNet id, which `python -m effnet_jax.evaluate … --json=figures.json` measured:

    python tools/peers/evaluation.py out/model.weights.h5 IMAGENET/validation figures.json

Decoding, crop and resize are TensorFlow's as in the original's `preprocessing.py`, the network is Keras', the figures
are scikit-learn's.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn import metrics

SIZE, BATCH, BINS = 224, 50, 15
IDS = Path(__file__).parents[2] / "effnet_jax" / "weights" / "imagenet_ids.txt"


def see(path):
    """Brings an image file to float32 [224, 224, 3]: a centre crop with a padding of 32, TensorFlow 1's bicubic."""
    image = tf.image.decode_jpeg(path.read_bytes(), channels=3)
    height, width = image.shape[:2]
    side = int(SIZE / (SIZE + 32) * min(height, width))
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    crop = image[None, top : top + side, left : left + side]
    return tf.compat.v1.image.resize_bicubic(crop, (SIZE, SIZE))[0].numpy()


def calibration_error(confidence, correct):
    """Expected calibration error over equal bins, each with its upper edge."""
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    shares = [(bins == b) for b in range(BINS) if (bins == b).any()]
    return sum(here.sum() * abs(confidence[here].mean() - correct[here].mean()) for here in shares) / len(confidence)


def main():
    weights, folder, figures = map(Path, sys.argv[1:])
    classes = IDS.read_text().split()
    paths = sorted(folder.glob("*/*"))
    right = np.array([classes.index(path.parent.name) for path in paths])
    model = keras.applications.EfficientNetB0(weights=None, classes=len(classes), classifier_activation=None)
    model.load_weights(weights)
    starts = range(0, len(paths), BATCH)
    batches = (np.stack([see(path) for path in paths[start : start + BATCH]]) for start in starts)
    logits = np.concatenate([model(batch, training=False).numpy() for batch in batches]).astype(np.float64)

    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    answers, labels = shares.argmax(1), np.arange(len(classes))
    theirs = {
        "top1": metrics.accuracy_score(right, answers),
        "top5": metrics.top_k_accuracy_score(right, shares, k=5, labels=labels),
        "balanced": metrics.balanced_accuracy_score(right, answers),
        "loss": metrics.log_loss(right, shares, labels=labels),
        "ece": calibration_error(shares.max(1), answers == right),
    }
    ours = json.loads(figures.read_text())
    for name, value in theirs.items():
        print(f"{name:9} {value:.6f}, ours {ours[name]:.6f}, apart {abs(value - ours[name]):.1e}")
    matrix = metrics.confusion_matrix(right, answers, labels=labels)
    counts = [(row["count"], row["predicted"]) for row in ours["classes"]]
    print("counts and answers of each class are equal:", counts == list(zip(matrix.sum(1), matrix.sum(0), strict=True)))
    for name, score in (("recall", metrics.recall_score), ("precision", metrics.precision_score)):
        values = score(right, answers, labels=labels, average=None, zero_division=np.nan)
        found = np.array([np.nan if row[name] is None else row[name] for row in ours["classes"]])
        print(f"{name} of each class is apart by at most {np.nanmax(np.abs(values - found)):.1e}")
    np.fill_diagonal(matrix, 0)
    wrong = sorted(matrix[matrix > 0].tolist())
    print("counts of confusions are equal:", wrong == sorted(row["count"] for row in ours["confusions"]))


if __name__ == "__main__":
    main()
