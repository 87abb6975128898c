"""Text becomes HTML once, whatever it holds."""

from effnet_jax.report.html import Html, escape, join, table, tag


def test_text_is_escaped_once_and_what_is_html_stays():
    assert escape("<a href=\"x\">'&'</a>") == "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;&lt;/a&gt;"
    assert tag("p", "1 < 2", tag("b", "&"), None) == "<p>1 &lt; 2<b>&amp;</b></p>"
    assert escape(escape("&")) == "&amp;" and join(["<", Html("<br>")]) == "&lt;<br>"


def test_what_is_no_character_is_replaced():
    assert escape("caf\udce9\x00\x1b[1m\ud800") == "caf\ufffd\ufffd\ufffd[1m\ufffd"
    escape("caf\udce9").encode("utf-8")


def test_attributes():
    made = tag("img", alt='"><script>', class_="tiny", data_value=0, hidden=False, title=None, inert=True)
    assert made == '<img alt="&quot;&gt;&lt;script&gt;" class="tiny" data-value="0" inert>'


def test_cells_have_what_they_are_sorted_by():
    made = table(["class", "share"], [["<x>", ("50 %", 0.5)]], label="l", numbers=(1,), sorts=True)
    assert '<th scope="row">&lt;x&gt;</th><td class="number" data-value="0.5">50 %</td>' in made
    assert 'aria-sort="none"><button type="button">class</button>' in made
