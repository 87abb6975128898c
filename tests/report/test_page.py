"""The page: what is in it, and what a browser makes of it."""

import io
import re
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from effnet_jax.data.sources.base import ArraySource
from effnet_jax.data.view import EvaluationView
from effnet_jax.metrics.evaluation import Evaluation
from effnet_jax.report import page, sections
from effnet_jax.report.story import TrainingViews
from tests.browser import chromium
from tests.report import made

VIEW = EvaluationView(64)


@pytest.fixture
def nasty(tmp_path):
    """A page about a set whose names try to break out of it, in a run dir."""
    sources = made.folder(tmp_path / "data", made.NASTY)
    evaluations = {"weights": {"test": made.evaluation(sources["test"], temperature=0.8)}}
    evaluations["weights_ema"] = {"test": made.evaluation(sources["test"], seed=1)}
    views = TrainingViews("step 0 <b>", [np.zeros((64, 64, 3), np.uint8)] * 2, ["<b>\n&", "dog"])
    text = page.make_page(
        made.story(), page.Material(evaluations, sources, VIEW, training=views, root=str(tmp_path / "data"))
    )
    path = tmp_path / "run" / "report.html"
    page.write_page(path, text)
    (tmp_path / "run" / "summary.json").write_text("{}")
    return path


def test_nothing_breaks_out_and_nothing_is_fetched(nasty):
    text = nasty.read_text("utf-8")
    assert text.count("<script>") == 1 and "alert(1)" in text and "<script>alert" not in text
    assert "<b>bold" not in text and "&lt;b&gt;bold&lt;" in text and "n\\xe9e" in text
    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\(""", text)
    assert not re.search(r"<[^>]*\son\w+=", text)
    for wanted in ("slower &lt;b&gt;", "&#39;a b&#39;", "&lt;cpu&gt;", "weights_ema", "temperature 0.800"):
        assert wanted in text
    assert str(nasty.parent.parent / "data") not in re.sub(
        r'title="[^"]*"|alt="[^"]*"', "", text.partition("config")[0]
    )


def test_a_damaged_photograph_is_a_listed_gap(nasty):
    text = nasty.read_text("utf-8")
    assert "cannot be read" in text and "Images that cannot be read" in text


def test_links_lead_somewhere(nasty):
    text = nasty.read_text("utf-8")
    links = re.findall(r'<a href="([^"]+)"', text)
    assert "summary.json" in links
    for link in links:
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in text
        else:
            assert (nasty.parent / urllib.parse.unquote(link)).exists()


def test_a_page_elsewhere_has_no_links_to_files_beside_it(tmp_path):
    sources = made.folder(tmp_path / "data", ("cat", "dog"))
    own = {"weights": {"test": made.evaluation(sources["test"])}}
    text = page.make_page(made.story(), page.Material(own, sources, VIEW), beside=False).decode()
    assert all(link.startswith("#") for link in re.findall(r'<a href="([^"]+)"', text))


def _large(classes, count, name="set"):
    shares, labels = made.guesses(count, classes, sure=5.0) if classes < 1000 else (None, None)
    if shares is None:
        labels = np.arange(count) % classes
        shares = np.zeros((1, 1))
    names = tuple(f"class {index}" for index in range(classes))
    source = ArraySource(name, np.zeros((count, 32, 32, 3), np.uint8), labels.astype(np.int32), names)
    return shares, labels, names, source


def test_a_hundred_classes_are_a_small_page_with_a_matrix_of_all():
    shares, labels, names, source = _large(100, 10_000)
    evaluation = Evaluation(made.answers(shares, labels), names, source, 1.0, [])
    own = {"weights": {"test": evaluation}}
    text = page.make_page(made.story(), page.Material(own, {"test": source}, VIEW, duplicates=False))
    assert len(text) < 2e6
    matrix = text.decode().partition('class="matrix"')[2].partition("</svg>")[0]
    assert sum(int(count) for count in re.findall(r": (\d+) \(", matrix)) == 10_000
    assert text.count(b"data:image/jpeg") <= 60
    assert b"Not looked for" in text and b"None was found" not in text


def test_very_many_classes_are_cut_off_and_the_page_says_where_they_are():
    count = classes = 21_000
    _, labels, names, source = _large(classes, count)
    answered = made.answers(np.eye(6)[np.zeros(count, int)], np.zeros(count, int))
    changed = {"label": labels, "top": np.stack([(labels + shift) % classes for shift in (1, 0, 2, 3, 4)], 1)}
    answered = type(answered)(**{**vars(answered), **changed, "classes": classes})
    own = {"weights": {"test": Evaluation(answered, names, source, 1.0, [])}}
    text = page.make_page(
        made.story(files=["evaluation.json"]), page.Material(own, {"test": source}, VIEW, duplicates=False)
    ).decode()
    assert len(text) < 2e6 and "The 1,000 of 21,000 classes with the lowest recall" in text
    assert '<a href="evaluation.json">' in text and 'class="matrix"' not in text


def test_without_a_test_split_the_page_is_about_validation(tmp_path):
    sources = made.folder(tmp_path / "data", ("cat", "dog"))
    own = {"weights": {"validation": made.evaluation(sources["test"])}}
    text = page.make_page(made.story(), page.Material(own, {"validation": sources["test"]}, VIEW)).decode()
    assert (
        "about the validation split, which settings may have been chosen by" in text and "validation images of" in text
    )


def test_figures_say_where_the_temperature_is_left_out(tmp_path):
    """The validation split is asked before its temperature is known; a page that is made anew knows it."""
    sources = made.folder(tmp_path / "data", ("cat", "dog"))
    own = {"validation": made.evaluation(sources["train"]), "test": made.evaluation(sources["test"], temperature=0.8)}
    anew = {**own, "validation": made.evaluation(sources["train"], temperature=0.8)}
    drawn = [str(sections.figures({"weights": of}, "test")) for of in (own, anew)]
    assert ["without the temperature, which was fitted on it" in text for text in drawn] == [True, False]


def test_all_right_and_nothing_at_all_are_no_errors(tmp_path):
    sources = made.folder(tmp_path / "data", ("cat", "dog"))
    labels = np.asarray(sources["test"].labels)
    for shares, those in ((np.eye(2)[labels], labels), (np.zeros((0, 2)), np.zeros(0, int))):
        evaluation = Evaluation(made.answers(shares, those), ("cat", "dog"), sources["test"], 1.0, [])
        text = page.make_page(
            made.story(rows=[], phases=[], advice=[]), page.Material({"weights": {"test": evaluation}}, sources, VIEW)
        )
        assert (b"Every answer is right" in text and b"Nothing was mistaken" in text) == bool(len(those))
        assert text.count(b"No image of this split could be read") == (0 if len(those) else 2)
        assert not re.search(rb"\bnan\b", re.sub(rb'src="[^"]*"', b"", text))


def test_where_no_test_image_could_be_read_the_page_is_about_validation(tmp_path):
    sources = made.folder(tmp_path / "data", ("cat", "dog"))
    unread = Evaluation(made.answers(np.zeros((0, 2)), np.zeros(0, int)), ("cat", "dog"), sources["test"], 1.0, [])
    own = {"weights": {"validation": made.evaluation(sources["train"]), "test": unread}}
    material = page.Material(own, {"validation": sources["train"], "test": sources["test"]}, VIEW)
    text = page.make_page(made.story(), material).decode()
    assert "8 validation images of 2 classes" in text and "No image of the test split could be read" in text


@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_it_without_complaint_or_request(nasty, tmp_path, width):
    with chromium(tmp_path) as browser:
        browser.open(nasty, width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
        assert browser.evaluate("document.querySelectorAll('section > h2').length") == len(page.PARTS)
        with Image.open(io.BytesIO(browser.screenshot())) as shot:
            assert shot.size[0] == width
        assert browser.printed().startswith(b"%PDF")
        assert browser.complaints == [] and set(browser.requests) == {nasty.as_uri()}


def test_tables_sort_by_pointer_and_by_keyboard_and_cells_tell_themselves(nasty, tmp_path):
    shown = "[...document.querySelectorAll('#classes tbody tr')].map(row => Number(row.cells[2].dataset.value))"
    heads = "[...document.querySelectorAll('#classes thead th')].map(one => one.getAttribute('aria-sort'))"
    with chromium(tmp_path) as browser:
        browser.open(nasty, 1000)
        before = browser.evaluate(shown)
        assert before == sorted(before) and len(set(before)) > 1
        browser.evaluate("document.querySelectorAll('#classes th button')[2].click()")
        assert browser.evaluate(shown) == sorted(before, reverse=True)
        assert browser.evaluate(heads)[:3] == ["none", "none", "descending"]
        browser.evaluate("document.querySelectorAll('#classes th button')[1].focus()")
        browser.press("Tab")
        browser.press("Enter")
        assert browser.evaluate(shown) == before and browser.evaluate(heads)[2] == "ascending"
        browser.evaluate(
            "document.querySelector('svg.matrix rect.miss').dispatchEvent(new Event('pointerover', {bubbles: true}))"
        )
        assert "taken for" in browser.evaluate("document.querySelector('.readout').textContent")
        assert browser.complaints == []
