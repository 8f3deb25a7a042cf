import numpy as np
import pytest

from lib.trust.corpus_audit import score_across_corpora, score_corpus_only, score_corpus_probe, warn_confounded

CLASSES = ["teen", "adult"]


def make_corpora(confounded, speakers=300, windows=10, seed=0):
    """Two corpora whose vectors differ by channel only; where confounded, nearly all teens come from one of them."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(speakers), windows)
    corpus = np.array(["vox", "cv"])[speaker % 2]
    teen = (
        rng.random(speakers) < np.where(np.arange(speakers) % 2, 0.97, 0.03)
        if confounded
        else np.arange(speakers) % 4 < 2
    )
    teen[:4] = [True, True, False, False]
    targets = 1 - teen[speaker].astype(int)
    vectors = rng.normal(size=(len(speaker), 6)).astype(np.float32)
    vectors[:, 0] += 6 * (corpus == "cv")  # the channel
    vectors[:, 1] += 0.8 * targets  # the voice
    split = np.where(speaker % 10 < 6, "train", np.where(speaker % 10 < 7, "validation", "test"))
    return vectors, targets, corpus, split, np.array([f"s{s}" for s in speaker])


def test_confounded_label_gives_a_loud_line_and_a_fair_one_none():
    for confounded, expected in [(True, "CONFOUNDED"), (False, "")]:
        _, targets, corpus, split, speakers = make_corpora(confounded)
        scores = score_corpus_only(targets, corpus, split, CLASSES, speakers, draws=100)
        assert warn_confounded(scores, CLASSES).startswith(expected)
        assert bool(warn_confounded(scores, CLASSES)) == confounded


def test_pooled_score_of_a_shortcut_falls_within_each_corpus():
    vectors, targets, corpus, split, speakers = make_corpora(True)
    arrays = (vectors, targets, corpus, split, CLASSES, speakers)
    table = score_across_corpora(*arrays, draws=50).set_index(["train_corpus", "test_corpus"])
    assert len(table) == 6
    pooled = (
        score_corpus_only(targets, corpus, split, CLASSES, speakers, draws=0).set_index("metric").loc["uar", "value"]
    )
    assert pooled > 0.85
    assert table.loc[("cv", "cv"), "value"] < pooled - 0.1


def test_pair_without_a_class_keeps_its_row_and_says_why():
    vectors, targets, corpus, split, speakers = make_corpora(False)
    targets = np.where(corpus == "vox", 1, targets)
    arrays = (vectors, targets, corpus, split, CLASSES, speakers)
    table = score_across_corpora(*arrays, draws=0).set_index(["train_corpus", "test_corpus"])
    assert table.loc[("vox", "cv"), "reason"] == "no 'teen' to train on"
    assert table.loc[("cv", "vox"), "reason"] == "no 'teen' to test on"
    assert table["value"].isna().sum() == 4
    assert table.loc[("cv", "cv"), "value"] > 0.5


def test_probe_hears_the_corpus_of_unseen_speakers():
    vectors, _, corpus, split, speakers = make_corpora(False)
    scores = score_corpus_probe(vectors, corpus, split, speakers, draws=50).set_index("metric")
    assert scores.loc["uar", "value"] > 0.95
    vectors[:, 0] = 0
    blind = score_corpus_probe(vectors, corpus, split, speakers, draws=50).set_index("metric")
    assert blind.loc["uar", "value"] == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="one corpus only"):
        score_corpus_probe(vectors, np.full(len(corpus), "cv"), split, speakers)


def test_frames_are_averaged_and_rows_limited():
    vectors, _, corpus, split, speakers = make_corpora(False)
    frames = np.repeat(vectors[:, None], 3, axis=1)
    whole = score_corpus_probe(vectors, corpus, split, speakers, draws=0)
    assert whole["value"].equals(score_corpus_probe(frames, corpus, split, speakers, draws=0)["value"])
    limited = score_corpus_probe(vectors, corpus, split, speakers, limit=40, draws=0).set_index("metric")
    assert limited.loc["uar", "value"] > 0.9
