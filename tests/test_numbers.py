"""The numbers on the pages of a run are those of its metrics.json: 05 Evaluate held against it, and what must be in it."""

import re

import pytest
from bs4 import BeautifulSoup

from lib import paths, results

INTERVAL = re.compile(r"[+-]?\d+(?:\.\d+)?(?: %)? \([+-]?\d+(?:\.\d+)? to [+-]?\d+(?:\.\d+)?\)")


def records_of(content):
    """Every score record inside a JSON content."""
    if isinstance(content, dict) and {"metric", "value", "low", "high"} <= set(content):
        yield content
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else []:
        yield from records_of(part)


@pytest.fixture(scope="module")
def metrics(first, folders):
    return paths.load_json(folders / "reports" / "demo" / "metrics.json")


@pytest.fixture(scope="module")
def page(first, folders):
    return BeautifulSoup((folders / "reports" / "demo" / "05_evaluate.html").read_text(encoding="utf-8"), "html.parser")


def test_every_interval_in_a_table_of_the_evaluation_page_is_one_of_metrics_json(metrics, page):
    known = set()
    for record in records_of(metrics):
        for protocol in (record["protocol"], "leak"):
            known.update(INTERVAL.findall(results.format_score(record | {"protocol": protocol})))
    text = " | ".join(table.get_text(" | ") for table in page.select("table.table")).replace("\xa0", " ")
    shown = INTERVAL.findall(text)
    assert len(shown) > 100
    assert [interval for interval in shown if interval not in known] == []


def test_the_first_numbers_of_the_evaluation_page_are_the_leak_sentences_follow_and_errors_can_be_heard(metrics, page):
    table = next(table for table in page.select("table.table") if "leak (points)" in table.get_text())
    assert not INTERVAL.findall(table.find_previous("table", class_="table").get_text(" "))
    text = " ".join(one.get_text(" ") for one in page.select(".said"))
    for words in ("random windows claim", "of 100 clips", "windows told right", "after temperature", "paper reports"):
        assert words in text, words
    assert metrics["errors"]
    assert 1 <= len(page.select("figure.sound audio[src^='data:audio/mpeg']")) <= 12


def test_all_kinds_of_baseline_and_a_model_chosen_on_validation_stand_in_metrics(metrics):
    models = {row["model"] for row in metrics["scores"]}
    assert {"majority", "baseline: mean F0", "baseline: duration and level", "baseline: MFCC"} <= models
    assert set(metrics["headline"]) == {row["task"] for row in metrics["trainings"]}
    for task, view in metrics["headline"].items():
        fits = [row for row in metrics["trainings"] if row["task"] == task and row["protocol"] == view["protocol"]]
        assert view["model"] == max(fits, key=lambda row: row["validation_uar"])["network"]
