"""The head of JSON documents, and tables."""

from __future__ import annotations

import json

import pytest

from ssm_export.documents import document
from ssm_export.documents.tables import bar, plain, render, size, table


def test_the_head_comes_first_and_a_body_cannot_replace_it():
    body = {"ok": False, "checks": [], "schema": "mine", "versions": {"x": "1"}}
    made = document("verify", ["ssm-export", "verify", "a b"], body)
    assert list(made)[:4] == ["schema", "ok", "command", "versions"]
    assert made["schema"] == "ssm-export/verify@1"
    assert made["ok"] is False
    assert made["command"] == "ssm-export verify 'a b'"
    assert made["versions"]["python"].count(".") == 2
    assert made["checks"] == []
    assert json.loads(json.dumps(made)) == made


def test_a_body_without_ok_is_ok():
    assert document("list", "ssm-export list ops", {"items": []})["ok"] is True


@pytest.mark.parametrize(
    ("value", "length"), [(0, 0), (1, 1), (50, 5), (100, 10), (400, 10), (-3, 0)]
)
def test_bars_are_as_long_as_their_share(value, length):
    assert len(bar(value, 100, 10)) == length


def test_a_bar_of_nothing_is_empty():
    assert bar(1.0, 0.0) == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1400, "1.4 kB"), (516_700_000, "517 MB"), (5.6e9, "5.60 GB")],
)
def test_sizes_are_decimal(count, text):
    assert size(count) == text


LONG = "engines/jetson-orin-nano-super/prefill.engine"


@pytest.mark.parametrize("width", [20, 60, 100, 300])
def test_tables_cut_nothing(width):
    words = "a sentence with Words_that_are_longer_than_any_column_could_be in it"
    made = table("t", ("name", "text", "file!", "size>"), [(LONG, words, LONG[::-1], "1.25 MB")])
    text = render(made, width)
    (line,) = (line for line in text.splitlines() if LONG in line)
    assert LONG[::-1] in line and line.endswith("1.25 MB")
    start = line.index(LONG) + len(LONG)
    end = line.index(LONG[::-1])
    column = "".join(one[start:end] for one in text.splitlines()[3:])
    assert words.replace(" ", "") in "".join(column.split())


def test_a_table_takes_the_width_it_is_given_and_no_more():
    made = table("t", ("name", "text"), [("scan", "seven words " * 9)])
    for width in (30, 70):
        assert width - 12 < max(map(len, render(made, width).splitlines())) <= width


def test_tables_keep_foreign_brackets():
    text = render(table("t", ("name", "n>"), [(plain("logits[1, 2]"), "3")]))
    assert "logits[1, 2]" in text
