"""A run and its answers, made up: quick, and with everything that could break a page."""

import numpy as np
from PIL import Image

from effnet_jax.data.sources import open_source
from effnet_jax.metrics.answers import Answers
from effnet_jax.metrics.calibration import TEMPERATURES
from effnet_jax.metrics.evaluation import Evaluation
from effnet_jax.report.story import PhaseStory, Story

NASTY = ("<b>bold</b>", "a & 'b' \"c\"", "</script><script>alert(1)</script>", "n\udce9e")


def answers(shares, labels):
    """The `Answers` of probabilities [N, classes] to labels [N]."""
    shares, labels = np.asarray(shares, np.float32), np.asarray(labels)
    top = np.argsort(-shares, 1, kind="stable")[:, :5]
    own = shares[np.arange(len(labels)), labels]
    return Answers(
        index=np.arange(len(labels)),
        label=labels,
        top=top,
        probability=np.take_along_axis(shares, top, 1),
        untempered=shares.max(1, initial=0),
        label_probability=own,
        loss=-np.log(np.maximum(own, 1e-9)),
        tempered=np.zeros((2, len(TEMPERATURES))),
        classes=shares.shape[1],
    )


def guesses(count, classes, seed=0, sure=2.0):
    """Probabilities [count, classes] and labels [count] of a fair model."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    logits = random.normal(0, 1, (count, classes))
    logits[np.arange(count), labels] += sure
    shares = np.exp(logits)
    return shares / shares.sum(1, keepdims=True), labels


def folder(root, names, per_class=4):
    """An image folder whose classes and files have the names that are given; a photograph of the last is damaged."""
    random = np.random.default_rng(1)
    for split in ("train", "test"):
        for number, name in enumerate(names):
            place = root / split / name.replace("/", "∕")
            place.mkdir(parents=True)
            for index in range(per_class):
                pixels = random.integers(0, 256, (4, 5, 3), np.uint8)
                Image.fromarray(pixels).resize((200, 160)).save(place / f"{number}<i>&{index}\udce9.jpg")
    damaged = sorted(place.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:300])
    return {split: open_source({"name": str(root), "on_bad_image": "skip"}, split) for split in ("train", "test")}


def evaluation(source, seed=0, temperature=1.0):
    """Answers of a fair model to all examples of a source."""
    shares, _ = guesses(len(source), len(source.class_names), seed)
    return Evaluation(answers(shares, np.asarray(source.labels)), tuple(source.class_names), source, temperature, [])


def story(**changed):
    """Two phases of a run of the given name and data."""
    rows = [
        {"step": step, "epoch": float(step), "phase": "head" if step < 4 else "<i>blocks", "split": split,
         "loss": 2 / step, "accuracy": 1 - 0.5 / step}
        for step in range(1, 7)
        for split in ("train", "validation")
    ]  # fmt: skip
    rows.append({**rows[-1], "split": "test", "loss": None})
    units = [
        {"unit": "stem", "parameters": 928, "trained": 0, "batch_norm": "frozen", "factor": None},
        {"unit": "classifier", "parameters": 30, "trained": 30, "batch_norm": "", "factor": 0.5},
    ]
    results = {"train": {"accuracy": 0.9}, "test": {"accuracy": 0.8, "count": 10}}
    phases = [PhaseStory(name, {"optimizer": "sgd <b>"}, units, results) for name in ("head", "<i>blocks")]
    given = {
        "name": "<run> & Co",
        "data": "data",
        "config": {"variant": "lite0", "data": {"name": "</script><b>"}},
        "summary": {},
        "rows": rows,
        "phases": phases,
        "advice": ["blocks: slower <b>."],
        "commands": [("classify", "python -m effnet_jax.predict 'a b' '<i>'")],
        "provenance": [("machine", "<cpu>")],
        "files": ["summary.json"],
    }
    return Story(**(given | changed))
