"""Labels that follow the corpus are called out; a score over all corpora falls apart within each."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lib.tasks import Task
from lib.trust import corpus_audit

AGE = Task("age", ["teen", "adult"], [20])


def make_corpora(confounded, speakers=300, windows=6):
    """Two corpora whose vectors differ by channel and, less, by voice; where confounded, most teens come from one of them."""
    rng, speaker = np.random.default_rng(0), np.repeat(np.arange(speakers), windows)
    teen = np.arange(speakers) % 4 < 2
    if confounded:
        teen = rng.random(speakers) < np.where(np.arange(speakers) % 2, 0.92, 0.08)
    corpus, targets = np.array(["vox", "cv"])[speaker % 2], 1 - teen[speaker].astype(int)
    vectors = rng.normal(size=(len(speaker), 6)).astype(np.float32)
    vectors[:, 0] += 6 * (corpus == "cv")
    vectors[:, 1] += 0.8 * targets
    part = np.array(["train"] * 6 + ["validation"] + ["test"] * 3)[speaker % 10]
    table = pd.DataFrame({"corpus": corpus, "target": targets, "split": part, "task": "age", "protocol": "speaker"})
    ids = {"speaker_id": [f"s{one}" for one in speaker], "window_id": [f"w{row}" for row in range(len(table))]}
    return table.assign(fold=0, **ids), vectors


def audit(table, vectors):
    frame = pd.DataFrame(vectors, index=table["window_id"].unique())
    store = SimpleNamespace(statistics=lambda window_ids: frame.loc[window_ids].to_numpy())
    return corpus_audit.audit_corpora(table, store, [AGE], "speaker", 50, 0)


def uar_of(records, check):
    return records.set_index("check")["value"][check]


def pairs_of(records):
    return records[records["check"] == "across corpora"].set_index(["train_corpus", "test_corpus"])


def test_a_label_that_follows_the_corpus_gives_a_loud_line_and_falls_within_each():
    table, vectors = make_corpora(True)
    records, (line,) = audit(table, vectors)
    test = table[table["split"] == "test"]
    by_corpus = (test["corpus"] == "vox").astype(int)  # teens come from "cv"
    uar = np.mean([(by_corpus[test["target"] == k] == k).mean() for k in (0, 1)])
    assert line.startswith(f"age: CONFOUNDED: knowing the corpus and nothing else already scores a UAR of {uar:.3f}")
    assert uar_of(records, "corpus only") == pytest.approx(uar)
    pairs = pairs_of(records)
    assert pairs.index.tolist() == [(train, test) for train in ("cv", "vox", "all") for test in ("cv", "vox")]
    assert pairs.loc[("cv", "cv"), "value"] < uar - 0.1
    assert pairs[["low", "high"]].notna().all(axis=None)


def test_a_fair_label_gives_no_warning_and_the_probe_hears_the_corpus_of_unseen_speakers():
    table, vectors = make_corpora(False)
    records, (line,) = audit(table, vectors)
    assert line == "age: knowing the corpus alone scores no better than chance."
    assert uar_of(records, "corpus only") == pytest.approx(0.5, abs=corpus_audit.MARGIN)
    assert uar_of(records, "corpus probe") > 0.95
    probe = records[records["check"] == "corpus probe"]
    assert probe[["task", "labels_of"]].to_numpy().tolist() == [["corpus", "age"]]
    vectors[:, 0] = np.random.default_rng(1).normal(size=len(vectors))
    assert uar_of(audit(table, vectors)[0], "corpus probe") == pytest.approx(0.5, abs=0.1)


def test_a_pair_without_a_class_keeps_its_row_and_says_why():
    table, vectors = make_corpora(False)
    table["target"] = table["target"].where(table["corpus"] == "cv", 1)  # nobody of "vox" is a teen
    records, _ = audit(table, vectors)
    pairs = pairs_of(records)
    assert pairs.loc[("vox", "cv"), "reason"] == "no 'teen' to train on"
    assert pairs.loc[("cv", "vox"), "reason"] == "no 'teen' to test on"
    assert pairs["value"].isna().sum() == 4
    assert pairs.loc[("cv", "cv"), "value"] > 0.5
    shown = corpus_audit.tabulate_audit(records).set_index("check")
    assert shown["why not"].tolist().count("no 'teen' to test on") == 2
    assert shown.loc["corpus only", ["labels of", "learned from", "tested on"]].tolist() == ["age", "all", "all"]


def test_other_protocols_and_folds_are_not_looked_at_and_a_single_corpus_allows_no_shortcut():
    table, vectors = make_corpora(False)
    changed = table.assign(target=(table["corpus"] == "vox").astype(int))
    more = pd.concat([table, changed.assign(fold=1), changed.assign(protocol="paper")])
    pd.testing.assert_frame_equal(audit(table, vectors)[0], audit(more, vectors)[0])
    records, lines = audit(table.assign(corpus="cv"), vectors)
    assert records.empty
    assert lines == ["age: all its labels come from cv, so no shortcut through it is possible."]
    assert corpus_audit.tabulate_audit(records).columns.tolist() == list(corpus_audit.SHOWN.values())
