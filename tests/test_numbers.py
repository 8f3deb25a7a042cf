"""The numbers on the pages are those of metrics.json: the run's index and the page of 05 Evaluate, held against it."""

import json
import re

import pytest
from bs4 import BeautifulSoup

INTERVAL = re.compile(r"([+-]?\d+\.\d{3}) \(([+-]?\d+\.\d{3}) to ([+-]?\d+\.\d{3})\)")


def walk(content):
    """Every dict and every number inside a JSON content."""
    if isinstance(content, dict):
        yield content
    for part in content.values() if isinstance(content, dict) else content if isinstance(content, list) else []:
        yield from walk(part)
    if isinstance(content, int | float) and not isinstance(content, bool):
        yield content


@pytest.fixture(scope="module")
def metrics(first, folders):
    return json.loads((folders / "reports" / "demo" / "metrics.json").read_text(encoding="utf-8"))


def tables_of(folders, name):
    page = (folders / "reports" / "demo" / name).read_text(encoding="utf-8")
    tables = BeautifulSoup(page, "html.parser").select("table")
    return [table for table in tables if table.select("td")]


def caption(table):
    return table.caption.get_text() if table.caption else ""


def test_every_interval_on_the_evaluation_page_is_one_of_metrics_json(metrics, folders):
    records = [one for one in walk(metrics) if isinstance(one, dict) and {"value", "low", "high"} <= set(one)]
    known = {tuple(f"{one[key]:.3f}" for key in ("value", "low", "high")) for one in records if one["low"] is not None}
    shown = [
        (caption(table), tuple(text.lstrip("+") for text in match))
        for table in tables_of(folders, "05_evaluate.html")
        for match in INTERVAL.findall(table.get_text(" "))
    ]
    assert len(shown) > 100
    assert [one for one in shown if one[1] not in known] == []


@pytest.mark.parametrize("name", ["index.html", "05_evaluate.html"])
def test_every_exact_number_in_a_table_is_one_of_metrics_json(metrics, folders, name):
    known = {float(one) for one in walk(metrics) if not isinstance(one, dict)}
    left_out = ("Time and peak memory", "Parameters", "Versions")
    shown = [
        (caption(table), float(cell["data-value"]))
        for table in tables_of(folders, name)
        if not caption(table).startswith(left_out)
        for cell in table.select("[data-value]")
        if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell["data-value"])
    ]
    assert len(shown) > 30
    assert [one for one in shown if one[1] not in known] == []


def test_the_first_table_of_the_evaluation_page_is_the_leak(first, folders):
    head = [cell.get_text() for cell in tables_of(folders, "05_evaluate.html")[0].select("th")]
    assert head[:4] == ["task", "model", "metric", "random windows claim"]
    assert head[-1] == "leak"


def test_all_five_kinds_of_baseline_stand_in_metrics(metrics):
    models = {row["model"] for row in metrics["scores"]}
    assert {"majority", "baseline: mean F0", "baseline: duration and level", "baseline: MFCC"} <= models


def test_every_headline_names_a_model_chosen_on_validation(metrics):
    assert set(metrics["headline"]) == {row["task"] for row in metrics["trainings"]}
    for task, view in metrics["headline"].items():
        fits = [row for row in metrics["trainings"] if row["task"] == task and row["protocol"] == view["protocol"]]
        best = max(fits, key=lambda row: row["validation_uar"])
        assert view["model"] == best["network"]


def test_errors_are_listed_and_can_be_heard(metrics, folders):
    page = BeautifulSoup((folders / "reports" / "demo" / "05_evaluate.html").read_text(encoding="utf-8"), "html.parser")
    sounds = page.select("figure[data-sound^=error] audio")
    assert 1 <= len(sounds) <= 12
    assert metrics["errors"]
    for sound in sounds:
        assert (folders / "reports" / "demo" / sound["src"]).stat().st_size > 500


def test_the_run_folder_stays_small(first, folders):
    assert sum(path.stat().st_size for path in (folders / "reports" / "demo").rglob("*") if path.is_file()) < 3e6
