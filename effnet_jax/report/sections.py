"""The parts of the page, one function each: from a run's story and its evaluations to HTML."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from effnet_jax.data.view import EvaluationView
from effnet_jax.metrics.evaluation import Evaluation
from effnet_jax.metrics.figures import confusion_matrix, percent, wilson
from effnet_jax.report.charts import curves, reliability_chart
from effnet_jax.report.confusions import DRAWN, draw_matrix
from effnet_jax.report.html import Html, join, section, table, tag
from effnet_jax.report.pictures import Gallery, frame, picture, to_levels
from effnet_jax.report.story import PhaseStory, Story, TrainingViews
from effnet_jax.report.suspects import label_errors, spread, worst_mistakes
from effnet_jax.report.twins import Twins

CLASSES, CONFUSIONS = 1000, 40  # rows of tables, at most
MISTAKES, SUSPECTS, TWINS, SEEN = 20, 20, 6, 10  # examples that are shown
NOTHING = "No image of this split could be read."

Evaluations = Mapping[str, Evaluation]


def share(value: float, interval: tuple[float, float] | None = None) -> str:
    """A share in words, with its 95 % interval; `–` where nothing is known."""
    if not np.isfinite(value):
        return "–"
    if interval is None:
        return percent(value)
    return f"{percent(value)} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def headline(story: Story, split: str, evaluation: Evaluation) -> Html:
    """The title, and the figures that everybody asks for."""
    found = evaluation.figures
    cards = [
        ("top 1", share(found.top1), f"{100 * found.top1_interval[0]:.1f} to {100 * found.top1_interval[1]:.1f}"),
        ("top 5", share(found.top5), f"{100 * found.top5_interval[0]:.1f} to {100 * found.top5_interval[1]:.1f}"),
        ("balanced", share(found.balanced), "mean over classes"),
        ("loss", f"{found.loss:.3f}", f"{found.loss_interval[0]:.3f} to {found.loss_interval[1]:.3f} nats"),
        ("calibration error", share(found.reliability.ece), "ECE, 15 bins"),
    ]
    if not found.count:
        cards = []
    shown = [
        tag("div", tag("div", name, class_="what"), tag("div", value, class_="value"), tag("div", rest, class_="what"),
            class_="card")
        for name, value, rest in cards
    ]  # fmt: skip
    config = story.config
    words = (
        f"EfficientNet {config.get('variant', '')} on {story.data}: {found.count:,} {split} images of "
        f"{int((found.support > 0).sum())} classes, at the run's end. Intervals hold 95 %."
    )
    return join([tag("h1", story.name), tag("p", words), tag("div", *shown, class_="cards")])


def figures(evaluations: Mapping[str, Evaluations], shown: str) -> Html:
    """A table of all splits and weights."""
    rows = []
    for weights, splits in evaluations.items():
        for split, evaluation in splits.items():
            found = evaluation.figures
            rows.append(
                [
                    split,
                    weights,
                    f"{found.count:,}" + (f" ({len(evaluation.skipped)} skipped)" if evaluation.skipped else ""),
                    share(found.top1, found.top1_interval),
                    share(found.top5, found.top5_interval),
                    share(found.balanced, found.balanced_interval),
                    f"{found.loss:.4f}" if found.count else "–",
                    percent(found.reliability.ece, 2) if found.count else "–",
                ]
            )
    heads = ["split", "weights", "images", "top 1", "top 5", "balanced", "loss", "ECE"]
    sentence = f"What follows is about the {shown} split, which the weights were not trained on."
    if shown == "validation":
        unread = any("test" in splits for splits in evaluations.values())
        why = "No image of the test split could be read" if unread else "This run has no test split"
        sentence = f"{why}: what follows is about the validation split, which settings may have been chosen by."
    drawn = table(heads, rows, label="figures of all splits", numbers=range(2, 8))
    temperatures = [(split, of.temperature) for splits in evaluations.values() for split, of in splits.items()]
    if ("validation", 1.0) in temperatures and any(value != 1.0 for _, value in temperatures):
        sentence += " Loss and ECE of the validation split are without the temperature, which was fitted on it."
    return section("figures", "Figures", drawn, tag("p", sentence))


def learning(story: Story) -> Html:
    """The curves."""
    return section("curves", "Curves", curves(story.rows))


def phases(story: Story) -> Html:
    """What each phase did, and which units it trained."""
    names = [phase.name for phase in story.phases]
    settings = list(dict.fromkeys(key for phase in story.phases for key in phase.settings))
    rows = [[key, *(phase.settings.get(key, "") for phase in story.phases)] for key in settings]
    splits = list(dict.fromkeys(split for phase in story.phases for split in phase.results))
    for split in splits:
        words = f"{split.replace('_ema', ' (EMA)')} accuracy"
        rows.append([words, *(_accuracy(phase, split) for phase in story.phases)])
    units = []
    for index, row in enumerate(story.phases[0].units if story.phases else []):
        cells = [_trained(phase.units[index]) for phase in story.phases]
        units.append([row["unit"], f"{row['parameters']:,}", *cells])
    parts = [table(["phase", *names], rows, label="settings of the phases")]
    if units:
        drawn = table(["unit", "parameters", *names], units, label="units of the phases", numbers=(1,))
        parts.append(tag("details", tag("summary", "units: what was trained"), drawn))
    return section("phases", "Phases", *parts)


def _accuracy(phase: PhaseStory, split: str) -> str:
    found = phase.results.get(split, {}).get("accuracy")
    return "" if found is None else percent(found)


def _trained(row: Mapping[str, Any]) -> Any:
    if not row["trained"]:
        return tag("span", "frozen", class_="dim")
    words = f"{row['trained']:,} trained"
    if row["factor"] is not None and row["factor"] != 1:
        words += f", rate × {row['factor']:.3g}"
    return words + (f", batch norm {row['batch_norm']}" if row["batch_norm"] else "")


def classes(evaluation: Evaluation, elsewhere: Html) -> Html:
    """The table of classes, the hardest first.

    Args:
      evaluation: of the split.
      elsewhere: where all classes are, for a table that is cut off.
    """
    found, names = evaluation.figures, evaluation.class_names
    recall, precision = found.recall, found.precision
    there = [index for index in range(len(names)) if found.support[index]]
    order = sorted(there, key=lambda index: (recall[index], names[index]))
    mistaken: dict[int, tuple[int, int]] = {}
    for right, answer, count in found.confusions:
        mistaken.setdefault(right, (answer, count))
    rows = []
    for index in order[:CLASSES]:
        low, high = wilson(int(found.hits[index]), int(found.support[index]))
        other = mistaken.get(index)
        bar = tag("span", tag("span", class_="bar", style=f"width:{4 * recall[index]:.2f}em"), class_="track")
        rows.append(
            [
                (names[index], names[index]),
                (f"{found.support[index]:,}", int(found.support[index])),
                (join([bar, percent(recall[index])]), f"{recall[index]:.4f}"),
                (f"{100 * low:.0f} to {100 * high:.0f}", f"{low:.4f}"),
                (share(precision[index]), f"{precision[index]:.4f}" if np.isfinite(precision[index]) else "-1"),
                (f"{names[other[0]]} ({other[1]})", other[1]) if other else ("", 0),
            ]
        )
    heads = ["class", "images", "recall", "95 %", "precision", "most often taken for"]
    parts = [
        tag("p", "Recall is the share of a class's images that are recognised, precision the share of its answers that "
                 "are right. A click on a head sorts."),
        tag("div", table(heads, rows, label="classes", numbers=(1, 2, 3, 4), sorts=True), class_="tall"),
    ]  # fmt: skip
    if len(order) > CLASSES:
        words = f"The {CLASSES:,} of {len(order):,} classes with the lowest recall are shown; all: "
        parts.append(tag("p", words, elsewhere, "."))
    if absent := len(names) - len(there):
        parts.append(tag("p", f"{absent:,} class{'es' * (absent > 1)} of the model have no image in this split."))
    return section("classes", "Classes", *parts)


def confusions(evaluation: Evaluation) -> Html:
    """The confusion matrix, and the most frequent confusions."""
    found, names = evaluation.figures, evaluation.class_names
    parts, drawn = [], []
    if not found.confusions:
        words = "Nothing was mistaken for anything." if found.count else NOTHING
        return section("confusions", "Confusions", tag("p", words))
    if len(names) <= DRAWN:
        words = (
            "Rows are right classes, columns answers; classes that are mistaken for each other stand together. "
            "The darker, the larger the share of the right class."
        )
        parts.append(tag("p", words))
        drawn.append(tag("div", draw_matrix(confusion_matrix(evaluation.answers), names)))
    else:
        parts.append(tag("p", f"A matrix of {len(names):,} classes could not be read: these are its largest cells."))
    rows = [
        [names[right], names[answer], count, (percent(count / found.support[right]), count / found.support[right])]
        for right, answer, count in found.confusions[:CONFUSIONS]
    ]
    heads = ["right class", "taken for", "images", "of the class"]
    listed = table(heads, rows, label="most frequent confusions", numbers=(2, 3), sorts=True)
    drawn.append(tag("div", tag("h3", "Most frequent"), listed, class_="tall"))
    return section("confusions", "Confusions", *parts, tag("div", *drawn, class_="beside"))


def calibration(evaluation: Evaluation) -> Html:
    """How far probabilities can be believed."""
    found = evaluation.figures
    words = [f"The expected calibration error is {percent(found.reliability.ece, 2)}."]
    if evaluation.temperature != 1.0:
        words.append(
            f"Probabilities are given with the temperature {evaluation.temperature:.3f}, which was fitted on the "
            f"validation split; without it the error is {percent(found.untempered.ece, 2)}."
        )
    words.append("On the diagonal, an answer of 80 % confidence is right in 80 % of all cases.")
    return section("calibration", "Calibration", tag("p", " ".join(words)), reliability_chart(found.reliability))


def mistakes(evaluation: Evaluation, gallery: Gallery, root: str) -> Html:
    """The wrong answers with the highest loss, as images."""
    answers, names = evaluation.answers, evaluation.class_names
    rows = worst_mistakes(answers, MISTAKES)
    if not len(rows):
        words = "Every answer is right." if len(answers) else NOTHING
        return section("mistakes", "Worst mistakes", tag("p", words))
    shown = [_example(evaluation, gallery, row, root, f"label {names[answers.label[row]]}") for row in rows]
    words = f"The {len(rows)} of {int((~answers.correct).sum()):,} wrong answers with the highest loss."
    return section("mistakes", "Worst mistakes", tag("p", words), tag("div", *shown, class_="grid"))


def _example(evaluation: Evaluation, gallery: Gallery, row: int, root: str, *lines: Any) -> Html:
    """An example with its three likeliest classes."""
    answers, names = evaluation.answers, evaluation.class_names
    index, label = int(answers.index[row]), answers.label[row]
    told = [
        tag("span", f"{names[kind]} {_together(chance)}", class_="right" if kind == label else None)
        for kind, chance in zip(answers.top[row, :2].tolist(), answers.probability[row, :2].tolist(), strict=True)
    ]
    if label not in answers.top[row, :2]:
        told.append(tag("span", f"{names[label]} {_small(answers.label_probability[row])}", class_="right"))
    name = gallery.source.example_id(index)
    answered = [tag("span", line, class_="answer") for line in told]
    return frame(
        gallery.picture(index), *(tag("strong", line) for line in lines), *answered, file_name(name, root), title=name
    )


def _together(chance: float) -> str:
    """A whole percentage that no line's end takes apart."""
    return percent(chance, 0).replace(" ", "\u00a0")


def _small(chance: float) -> str:
    """A percentage that may be far below one."""
    return "under\u00a00.001\u00a0%" if chance < 1e-5 else f"{100 * chance:.2g}\u00a0%"


def file_name(name: str, root: str) -> Html:
    """The name of an image, below the folder of its data set."""
    return tag("span", name.removeprefix(root).lstrip("/"), class_="file")


def suspects(evaluations: Evaluations, galleries: Mapping[str, Gallery], twins: Twins, root: str) -> Html:
    """Labels that are likely wrong: confident answers against them, and images that are there with two labels."""
    found = label_errors({split: of.answers for split, of in evaluations.items()})
    parts: list[Html] = []
    of = " and ".join(evaluations)
    if found:
        shown = []
        for suspect in found[:SUSPECTS]:
            evaluation = evaluations[suspect.split]
            names, label = evaluation.class_names, evaluation.answers.label[suspect.row]
            likeliest = evaluation.answers.top[suspect.row, 0] == suspect.other
            lines = [f"label {names[label]}", *([] if likeliest else [f"rather {names[suspect.other]}"])]
            shown.append(_example(evaluation, galleries[suspect.split], suspect.row, root, *lines))
        words = (
            f"{len(found):,} images of {of} are answered with more confidence than their likelier class gets where it "
            f"is the label (confident learning, Northcutt et al. 2021). The first {min(SUSPECTS, len(found))} are "
            "shown, the least likely label first. They are mistakes of the model or of the label: look at them."
        )
        parts += [tag("p", words), tag("div", *shown, class_="grid")]
    else:
        parts.append(tag("p", f"No label of {of} is contradicted with confidence."))
    parts.append(tag("h3", "The same image with two labels"))
    if twins.pairs:
        pairs = []
        for pair in twins.pairs[:TWINS]:
            sides = [
                frame(galleries[one.split].picture(one.index), tag("strong", one.label), one.split,
                      file_name(galleries[one.split].source.example_id(one.index), root))
                for one in (pair.first, pair.second)
            ]  # fmt: skip
            pairs.append(tag("div", *sides, tag("p", "equal" if pair.equal else "similar"), class_="pair"))
        more = f"; {TWINS} are shown" if len(twins.pairs) > TWINS else ""
        words = f"{len(twins.pairs):,} pair{'s' * (len(twins.pairs) > 1)} with different labels{more}."
        parts += [tag("p", words), tag("div", *pairs, class_="grid wide")]
        listed = [
            [twins_name(pair.first, galleries, root), pair.first.label,
             twins_name(pair.second, galleries, root), pair.second.label]
            for pair in twins.pairs[TWINS:100]
        ]  # fmt: skip
        if listed:
            drawn = table(["image", "label", "image", "label"], listed, label="images with two labels")
            parts.append(tag("details", tag("summary", "more of them"), drawn))
    elif twins.searched:
        parts.append(tag("p", "None was found."))
    parts += [tag("p", note, class_="dim") for note in twins.notes]
    return section("labels", "Likely label errors", *parts)


def twins_name(one: Any, galleries: Mapping[str, Gallery], root: str) -> Html:
    """The name of an image in a list of pairs."""
    return file_name(galleries[one.split].source.example_id(one.index), root)


def seen(evaluation: Evaluation, gallery: Gallery, view: EvaluationView, training: TrainingViews | None) -> Html:
    """What the model sees of ten examples in evaluation, and of ten in training."""
    answers, names = evaluation.answers, evaluation.class_names
    shown = []
    for row in spread(answers, SEEN):
        index, label, answer = int(answers.index[row]), answers.label[row], answers.top[row, 0]
        image = gallery.image(index)
        if image is None:
            continue
        square = picture(to_levels(view(image)), f"what the model sees of {gallery.source.example_id(index)}")
        told = tag("span", f"{names[answer]} {_together(answers.probability[row, 0])}", class_="answer")
        verdict = "right" if label == answer else "wrong"
        shown.append(frame(square, tag("strong", names[label]), tag("span", told, class_=verdict)))
    side = f"{view.resolution}×{view.resolution} pixels"
    words = f"In evaluation, {side}: the label, the answer and its probability."
    parts = [tag("p", words), tag("div", *shown, class_="grid")]
    if training is not None:
        drawn = [
            frame(picture(image, f"a training view of {caption}"), *caption.splitlines())
            for image, caption in zip(training.images, training.captions, strict=True)
        ]
        parts += [tag("h3", "In training"), tag("p", training.title), tag("div", *drawn, class_="grid")]
    return section("seen", "What the model sees", *parts)


def advice(story: Story) -> Html:
    """What the figures suggest."""
    if not story.advice:
        return section("advice", "Advice", tag("p", "The figures of this run give no cause for any."))
    return section("advice", "Advice", tag("ul", *(tag("li", sentence) for sentence in story.advice)))


def commands(story: Story) -> Html:
    """The commands that come next."""
    shown = [
        tag("div", tag("p", what), tag("div", tag("pre", command), tag("button", "copy", type="button", class_="copy"),
                                       class_="command"))
        for what, command in story.commands
    ]  # fmt: skip
    words = "In the folder that the training was started in:"
    return section("next", "What comes next", tag("p", words), *shown)


def provenance(story: Story, gaps: Mapping[str, str], beside: bool) -> Html:
    """Where the figures come from.

    Args:
      story: of the run.
      gaps: images that cannot be shown, and why.
      beside: whether the page lies in the run dir, so that it can link to its files.
    """
    parts = [table(["what", "is"], story.provenance, label="provenance")]
    if story.files:
        links = [tag("li", tag("a", name, href=name) if beside else name) for name in story.files]
        parts += [tag("h3", "Files of the run dir"), tag("ul", *links, class_="files")]
    if gaps:
        listed = [[name, error] for name, error in gaps.items()]
        parts += [tag("h3", "Images that cannot be read"), table(["image", "why"], listed, label="unread images")]
    text = json.dumps(story.config, indent=1, ensure_ascii=False)
    parts.append(tag("details", tag("summary", "the config"), tag("pre", text), class_="config"))
    return section("provenance", "Provenance", *parts)


def navigation(sections: Sequence[tuple[str, str]]) -> Html:
    """Links to the parts."""
    return tag("nav", *(tag("a", title, href=f"#{name}") for name, title in sections), aria_label="parts of the page")
