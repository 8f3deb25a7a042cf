"""Labels that follow the corpus are called out; a score over all corpora falls apart within each."""

import numpy as np
import pandas as pd
import pytest

from lib.tasks import Task
from lib.trust import corpus_audit

AGE = Task("age", ["teen", "adult"], [20])
OPTIONS = {"draws": 50, "seed": 0}


class Statistics:
    """Stands in for a store: statistics of windows by id."""

    def __init__(self, table, vectors):
        self.rows, self.vectors = dict(zip(table["window_id"], range(len(table)))), vectors

    def statistics(self, window_ids):
        return self.vectors[[self.rows[name] for name in window_ids]]


def make_corpora(confounded, speakers=300, windows=6, seed=0):
    """Two corpora whose vectors differ by channel; where confounded, nearly all teens come from one of them."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(speakers), windows)
    corpus = np.array(["vox", "cv"])[speaker % 2]
    teen = np.arange(speakers) % 4 < 2
    if confounded:
        teen = rng.random(speakers) < np.where(np.arange(speakers) % 2, 0.92, 0.08)
    teen[:4] = [True, True, False, False]
    targets = 1 - teen[speaker].astype(int)
    vectors = rng.normal(size=(len(speaker), 6)).astype(np.float32)
    vectors[:, 0] += 6 * (corpus == "cv")  # the channel
    vectors[:, 1] += 0.8 * targets  # the voice
    part = np.where(speaker % 10 < 6, "train", np.where(speaker % 10 < 7, "validation", "test"))
    table = pd.DataFrame({"corpus": corpus, "target": targets, "split": part})
    table["speaker_id"] = [f"s{number}" for number in speaker]
    table["window_id"] = [f"w{number}" for number in range(len(table))]
    return table.assign(task="age", protocol="speaker", fold=0), vectors


def audit(table, vectors):
    return corpus_audit.audit_corpora(table, Statistics(table, vectors), [AGE], "speaker", 50, 0)


def uar_of(records, check, **wanted):
    rows = records[records["check"] == check]
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows["value"].iloc[0]


def test_a_label_that_follows_the_corpus_gives_a_loud_line_and_a_fair_one_none():
    records, (line,) = audit(*make_corpora(True))
    assert line.startswith("age: CONFOUNDED: knowing the corpus and nothing else")
    table, _ = make_corpora(True)
    test = table[table["split"] == "test"]
    by_corpus = (test["corpus"] == "vox").astype(int)  # teens come from "cv"
    recalls = [(by_corpus[test["target"] == k] == k).mean() for k in (0, 1)]
    assert uar_of(records, "corpus only") == pytest.approx(np.mean(recalls))
    assert f"{np.mean(recalls):.3f}" in line
    records, (line,) = audit(*make_corpora(False))
    assert line == "age: knowing the corpus alone scores no better than chance."
    assert uar_of(records, "corpus only") == pytest.approx(0.5, abs=corpus_audit.MARGIN)


def test_the_pooled_score_of_a_shortcut_falls_within_each_corpus():
    records, _ = audit(*make_corpora(True))
    across = records[records["check"] == "across corpora"]
    assert across[["train_corpus", "test_corpus"]].to_numpy().tolist() == [
        ["cv", "cv"], ["cv", "vox"], ["vox", "cv"], ["vox", "vox"], ["all", "cv"], ["all", "vox"],
    ]  # fmt: skip
    assert uar_of(records, "corpus only") > 0.8
    within = uar_of(records, "across corpora", train_corpus="cv", test_corpus="cv")
    assert within < uar_of(records, "corpus only") - 0.1
    assert (across["reason"] == "").all()
    assert across[["low", "high"]].notna().all(axis=None)


def test_a_pair_without_a_class_keeps_its_row_and_says_why():
    table, vectors = make_corpora(False)
    table["target"] = table["target"].where(table["corpus"] == "cv", 1)  # nobody of "vox" is a teen
    records, _ = audit(table, vectors)
    pairs = records[records["check"] == "across corpora"].set_index(["train_corpus", "test_corpus"])
    assert pairs.loc[("vox", "cv"), "reason"] == "no 'teen' to train on"
    assert pairs.loc[("cv", "vox"), "reason"] == "no 'teen' to test on"
    assert pairs["value"].isna().sum() == 4
    assert pairs.loc[("cv", "cv"), "value"] > 0.5
    shown = corpus_audit.tabulate_audit(records)
    assert shown.columns.tolist() == corpus_audit.COLUMNS
    assert shown["why not"].tolist().count("no 'teen' to test on") == 2
    assert shown.loc[shown["check"] == "corpus only", ["learned from", "tested on"]].to_numpy().tolist() == [
        ["all", "all"]
    ]


def test_the_probe_hears_the_corpus_of_unseen_speakers_where_it_can_be_heard():
    table, vectors = make_corpora(False)
    records, _ = audit(table, vectors)
    assert uar_of(records, "corpus probe") > 0.95
    assert records.loc[records["check"] == "corpus probe", ["task", "labels_of"]].to_numpy().tolist() == [
        ["corpus", "age"]
    ]
    vectors[:, 0] = np.random.default_rng(1).normal(size=len(vectors))
    records, _ = audit(table, vectors)
    assert uar_of(records, "corpus probe") == pytest.approx(0.5, abs=0.1)


def test_the_audit_looks_at_one_protocol_and_the_first_fold_alone():
    table, vectors = make_corpora(False)
    records, lines = audit(table, vectors)
    changed = table.assign(target=(table["corpus"] == "vox").astype(int))
    other = pd.concat([table, changed.assign(fold=1), changed.assign(protocol="paper")], ignore_index=True)
    again, same = corpus_audit.audit_corpora(other, Statistics(table, vectors), [AGE], "speaker", 50, 0)
    pd.testing.assert_frame_equal(records, again)
    assert lines == same


def test_a_probe_learns_from_a_drawn_part_of_many_rows(monkeypatch):
    table, vectors = make_corpora(False)
    sizes, fit = [], corpus_audit.fit_probe
    monkeypatch.setattr(corpus_audit, "LIMIT", 60)
    monkeypatch.setattr(corpus_audit, "fit_probe", lambda rows, *rest: sizes.append(len(rows)) or fit(rows, *rest))
    scores = corpus_audit.score_probe(table, vectors, table["split"] == "train", AGE.classes, {}, **OPTIONS)
    assert sizes == [60]
    assert scores["n"].tolist() == [(table["split"] == "test").sum()]


def test_a_single_corpus_allows_no_shortcut():
    table, vectors = make_corpora(False)
    records, lines = audit(table.assign(corpus="cv"), vectors)
    assert records.empty
    assert lines == ["age: all its labels come from cv, so no shortcut through it is possible."]
    assert corpus_audit.tabulate_audit(records).columns.tolist() == corpus_audit.COLUMNS
