"""Runs side by side: pairs only where the clips are the same, exact differences, no names."""

import json

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from report_fixture import make_metrics

from lib import headlines, paths
from lib.report import compare, site


def run_of(name, predicted, clips=None, **parameters):
    clips = clips or [f"c{nth}" for nth in range(40)]
    answers = compare.summarise_answers(clips, [f"s{nth // 4}" for nth in range(40)], np.arange(40) % 2, predicted)
    record = site.shown_record({"parameters": {"train": parameters}}, name)
    return {"name": name, "record": record, "metrics": {"answers": [{"task": "age", "level": "clip", **answers}]}}


def test_paired_difference_of_the_same_clips_is_exact():
    right = np.arange(40) % 2
    wrong = right.copy()
    wrong[:10] = 1 - wrong[:10]
    rows = compare.compare_pairs([run_of("a", right), run_of("b", wrong)])
    assert {row["metric"]: row["value"] for row in rows} == pytest.approx({"accuracy": 0.25, "UAR": 0.25})
    assert all(row["low"] <= 0.25 <= row["high"] for row in rows)
    assert all(row["speakers"] == 10 for row in rows)


def test_runs_on_other_clips_are_not_paired():
    other = [f"d{nth}" for nth in range(40)]
    assert compare.compare_pairs([run_of("a", np.zeros(40)), run_of("b", np.zeros(40), other)]) == []


def test_answers_hold_no_names_and_do_not_depend_on_the_order():
    clips, speakers = ["b", "a", "c"], ["eve", "adam", "eve"]
    answers = compare.summarise_answers(clips, speakers, np.array([1, 0, 1]), np.array([1, 1, 0]))
    turned = compare.summarise_answers(clips[::-1], speakers[::-1], np.array([1, 0, 1]), np.array([0, 1, 1]))
    assert answers == turned
    assert "eve" not in json.dumps(answers)
    assert (answers["targets"], answers["predicted"], answers["speakers"]) == ("011", "110", "0 1 1")


def test_answers_are_those_of_the_network_on_unheard_test_speakers():
    common = {"window_id": "w", "clip_id": "c", "speaker_id": "s", "task": "age", "epoch": 0, "target": 1}
    rows = [
        {**common, "model": model, "protocol": protocol, "split": split, "seed": seed, "p_teen": 1 - chance, "p_adult": chance}
        for model, protocol, split, seed, chance in [
            ("majority", "speaker", "test", 0, 0.9), ("cnn", "paper", "test", 0, 0.9), ("cnn", "speaker", "validation", 0, 0.9),
            ("cnn", "speaker", "test", 4, 0.9), ("cnn", "speaker", "test", 3, 0.1),
        ]
    ]  # fmt: skip
    (answers,) = compare.collect_answers(pd.DataFrame(rows))
    assert (answers["task"], answers["level"], answers["targets"], answers["predicted"]) == ("age", "clip", "1", "0")


def test_a_run_without_a_task_is_left_blank_in_its_rows(tmp_path):
    full, part = make_metrics("full"), make_metrics("part")
    part["scores"] = [row for row in part["scores"] if row["task"] == "gender"]
    runs = [
        {"name": name, "record": site.shown_record({}, name), "metrics": metrics,
         "headlines": headlines.make_headlines(metrics)}
        for name, metrics in (("full", full), ("part", part))
    ]  # fmt: skip
    rows = compare.compare_scores(runs)
    assert {row["task"]: set(row["by_run"]) for row in rows} == {"Gender": {"full", "part"}, "Age": {"full"}}
    assert [row["metric"] for row in rows][:4] == ["model", "classes", "tested on", "UAR"]
    for name, metrics in (("full", full), ("part", part)):
        for file, content in (("metrics.json", metrics), ("run.json", {"title": name}), ("index.html", {})):
            paths.save_json(tmp_path / name / file, content)
    site.build_comparison(tmp_path)
    page = BeautifulSoup((tmp_path / "compare.html").read_text(encoding="utf-8"), "html.parser")
    blank = page.select('td[data-run="part"]')
    assert {cell.get_text() == "–" for cell in blank if cell.find_previous("h3").get_text() == "Age"} == {True}


def test_parameters_are_shown_only_where_runs_differ():
    rows = compare.compare_parameters(
        [run_of("a", np.zeros(40), epochs=3, seed=1), run_of("b", np.zeros(40), epochs=4, seed=1)]
    )
    assert rows == [{"name": "train.epochs", "by_run": {"a": "3", "b": "4"}}]
