from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lib.tasks import Task
from lib.trust import corpus_audit

AGE = Task("age", ["teen", "adult"], [20])


def make_corpora(confounded, speakers=300):
    """Two corpora whose vectors differ by channel and, less, by voice; where confounded, most teens come from one of them."""
    rng, speaker = np.random.default_rng(0), np.repeat(np.arange(speakers), 6)
    teen = np.arange(speakers) % 4 < 2
    if confounded:
        teen = rng.random(speakers) < np.where(np.arange(speakers) % 2, 0.92, 0.08)
    corpus, targets = np.array(["vox", "cv"])[speaker % 2], 1 - teen[speaker].astype(int)
    vectors = rng.normal(size=(len(speaker), 6)).astype(np.float32)
    vectors[:, :2] += np.stack([6 * (corpus == "cv"), 0.8 * targets], axis=1)
    part = np.array(["train"] * 6 + ["validation"] + ["test"] * 3)[speaker % 10]
    table = pd.DataFrame({"corpus": corpus, "target": targets, "split": part, "speaker_id": speaker.astype(str)})
    return table.assign(task="age", protocol="speaker", fold=0, window_id=table.index), vectors


def audit(table, vectors):
    """Records, those across corpora by their pair, the value of each check, and the lines."""
    store = SimpleNamespace(statistics=lambda window_ids: vectors[window_ids.to_numpy()])
    records, lines = corpus_audit.audit_corpora(table, store, [AGE], "speaker", 50, 0)
    pairs = records[records["check"] == "across corpora"].set_index(["train_corpus", "test_corpus"])
    return records, pairs, records.set_index("check")["value"], lines


def test_a_label_that_follows_the_corpus_gives_a_loud_line_and_falls_within_each():
    table, vectors = make_corpora(True)
    _, pairs, values, (line,) = audit(table, vectors)
    test = table[table["split"] == "test"]
    by_corpus = (test["corpus"] == "vox").astype(int)  # teens come from "cv"
    uar = np.mean([(by_corpus[test["target"] == k] == k).mean() for k in (0, 1)])
    assert line.startswith(f"age: CONFOUNDED: knowing the corpus and nothing else already scores a UAR of {uar:.3f}")
    assert values["corpus only"] == pytest.approx(uar)
    assert pairs.index.tolist() == [(train, test) for train in ("cv", "vox", "all") for test in ("cv", "vox")]
    assert (pairs.loc[("cv", "cv"), "value"] < uar - 0.1, pairs[["low", "high"]].isna().sum().sum()) == (True, 0)


def test_a_fair_label_gives_no_warning_and_the_probe_hears_the_corpus_of_unseen_speakers():
    table, vectors = make_corpora(False)
    records, _, values, (line,) = audit(table, vectors)
    assert line == "age: knowing the corpus alone scores no better than chance."
    assert values["corpus only"] == pytest.approx(0.5, abs=corpus_audit.MARGIN)
    assert values["corpus probe"] > 0.95
    assert records.iloc[-1][["task", "labels_of"]].tolist() == ["corpus", "age"]
    changed = table.assign(target=(table["corpus"] == "vox").astype(int))
    more = pd.concat([table, changed.assign(fold=1), changed.assign(protocol="paper")])  # which are not looked at
    pd.testing.assert_frame_equal(records, audit(more, vectors)[0])
    vectors[:, 0] = np.random.default_rng(1).normal(size=len(vectors))
    assert audit(table, vectors)[2]["corpus probe"] == pytest.approx(0.5, abs=0.1)


def test_a_pair_without_a_class_keeps_its_row_and_says_why_and_a_single_corpus_allows_no_shortcut():
    table, vectors = make_corpora(False)
    table["target"] = table["target"].where(table["corpus"] == "cv", 1)  # nobody of "vox" is a teen
    records, pairs, _, _ = audit(table, vectors)
    reasons = pairs["reason"]
    assert (reasons["vox", "cv"], reasons["cv", "vox"]) == ("no 'teen' to train on", "no 'teen' to test on")
    assert (pairs["value"].isna().sum(), pairs.loc[("cv", "cv"), "value"] > 0.5) == (4, True)
    shown = corpus_audit.tabulate_audit(records).set_index("check")
    assert shown["why not"].tolist().count("no 'teen' to test on") == 2
    assert shown.loc["corpus only", ["labels of", "learned from", "tested on"]].tolist() == ["age", "all", "all"]
    records, lines = corpus_audit.audit_corpora(table.assign(corpus="cv"), None, [AGE], "speaker", 50, 0)
    assert lines == ["age: all its labels come from cv, so no shortcut through it is possible."]
    shown = corpus_audit.tabulate_audit(records)
    assert (len(shown), [*shown]) == (0, [*corpus_audit.SHOWN.values()])
