"""What is judged is what was written: rendering must not change what a text says."""

import re
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.text import visible
from trimtab.web.text import LONGEST, render, render_all

TAGS = re.compile(r"<[^>]+>")


def seen(text: str) -> str:
    """The rendered text as a browser shows it, white space and all."""
    html = str(render(text)).replace("<br />\n", "\n").replace("\u00a0", " ")
    html = re.sub(r"</(p|li)>\n", "\n", html)
    plain = TAGS.sub("", html).strip("\n")
    for name, character in (
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#34;", '"'),
        ("&quot;", '"'),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ):
        plain = plain.replace(name, character)
    return plain


@pytest.mark.parametrize(
    "text",
    [
        "2*3*4",
        "2**3**4 = 2**(3**4)",
        "(2)*3*(4)",
        "x*(a+b)*c",
        "ширина*высота*глубина",
        "__init__ and __main__ and __a_b__",
        "snake_case_name",
        "*args, **kwargs",
        "2 * 3 * 4",
        r"\(x^2\) and \[a_1\] and \$5 and 50\% of \{a\}",
        r"C:\.git\_x\-y",
        r"\*not emphasis\*",
        "a \\\\ b",
        "&amp; &lt;b&gt; &copy; &#35;",
        "<b>bold</b> <!-- note --> <http://example.org>",
        "~~struck~~ ==marked== ^up^ ~down~",
        "old pond\nfrog leaps in\nwater's sound",
        "Ada Lovelace\n12 St James's Square\nLondon SW1",
        "a\n  indented\n      more\nback",
        "  first line indented\nnext",
        "wide   gaps    stay",
        "text ends\nwith  \ntwo spaces".replace("  \n", "\n"),
        "Total\n===",
        "[ref]: http://example.org",
        "a\\\nb",
        "10:30 - 11:00\n12:00 - 13:00",
    ],
)
def test_it_reads_as_written(text: str):
    assert seen(text) == text


def test_numbers_and_marks_of_lists_are_their_own():
    html = str(render("1986. one\n1990. two\n1990. three"))
    assert re.findall(r'value="(\d+)"', html) == ["1986", "1990", "1990"]
    assert 'class="paren"' in str(render("1) one\n2) two")) and "paren" not in str(render("1. one"))


def test_emphasis_is_still_rendered():
    html = str(render("**bold**, *it*, (**x**), 这是**重点**内容, 중요**합니다**요, **Note:** y, __Bold__ _it_"))
    assert html.count("<strong>") == 6 and html.count("<em>") == 2 and "*" not in html


def test_a_line_of_dashes_is_a_rule_and_no_heading():
    assert "<h2" not in str(render("Dear all\n---\nyours")) and "<hr" in str(render("Dear all\n---\nyours"))


def test_fences_name_their_language():
    for fence in ("```", "~~~"):
        html = str(render(f"{fence}python title=x\nprint(1)\n{fence}"))
        assert ">python title=x</span><pre" in html
    assert "<span" not in str(render("```\nx\n```"))
    assert "&lt;script&gt;" in str(render("```<script>\nx\n```"))


def test_each_block_has_its_own_direction_and_code_runs_left_to_right():
    html = str(render("שלום `a = 1` עולם\n\nHello\n\n- שלום\n- hello\n\n1. `x` מספר\n\n> עברית\n\n```\nשלום = 1\n```"))
    assert html.count('<p dir="auto">') == 3
    assert '<code dir="ltr">a = 1</code>' in html and '<pre tabindex="0" dir="ltr">' in html
    assert '<ul dir="rtl">' in html and '<li dir="rtl">שלום' in html and '<li dir="ltr">hello' in html
    assert '<ol dir="rtl">' in html and '<blockquote dir="rtl">' in html


@pytest.mark.parametrize("length", [19_999, 20_001, LONGEST, LONGEST + 1])
def test_rivals_are_shown_alike_at_every_length(length: int):
    texts = ["**short**", ("word " * (length // 5 + 1))[:length], "*other*"]
    html = [str(h) for h in render_all(texts)]
    assert len({h.startswith('<div class="plain">') for h in html}) == 1
    assert ("**short**" in html[0]) == (length > LONGEST)


def test_links_show_where_they_lead_as_written():
    assert seen('[b](http://example.org/ü "title")') == 'b (http://example.org/ü "title")'


PIECES = [
    *(
        "*",
        "**",
        "_",
        "`",
        "```",
        "~~~",
        "|",
        "-",
        "+",
        "#",
        ">",
        "1.",
        "2)",
        "[",
        "](",
        "![",
        "x)",
        "\\",
        "<b>",
        "&amp;",
    ),
    *(
        "$",
        "a",
        "b1",
        "שלום",
        "e\u0301",
        "\u200b",
        "\n",
        "\n\n",
        "  ",
        "    ",
        "\t",
        "---",
        "|---|---|",
        "| a | b |",
        ":-:",
    ),
    *("| a | b | c |", "| a |", "\n|---|---|\n", "<!--", "http://x.y", "- [ ]", "[^1]:", "===", "\r\n"),
]


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_no_letter_is_lost_or_changes_its_place(text: str):
    html = re.sub(r'<li\b[^>]*\bvalue="(\d+)"[^>]*>', r"\1", str(render(text)))
    assert letters(unescape(TAGS.sub("", html))) == letters(visible(text))


def test_a_row_with_more_cells_than_columns_is_shown_whole():
    table = "| a | b |\n|---|---|\n| c | d |"
    assert "<table" in str(render(table)) and "<table" in str(render(f"{table}\n| e |"))
    for row in ("| c | d | more |", "c | d | more", "| `x|y` | d |"):
        html = str(render(f"| a | b |\n|---|---|\n{row}"))
        assert "<table" not in html and letters(TAGS.sub("", html)) == "ab" + letters(row)
    assert "<table" in str(render(f"> {table}".replace("\n", "\n> ")))


def test_what_cannot_be_rendered_whole_is_plain_and_so_are_its_rivals():
    deep, other = ">" * 300 + " deep", "**short**"
    assert "deep" in render(deep) and str(render(deep)).startswith('<div class="plain">')
    assert [str(shown)[:19] for shown in render_all([other, deep])] == ['<div class="plain">'] * 2
    assert "<strong>" in render_all([other, other])[0]
    assert str(render("![" * 24_000)).startswith('<div class="plain">')
