import numpy as np
import pandas as pd
import pytest
from checks import refused

from lib.splits import split_windows
from lib.trust.leakage import audit_splits, stop_on_leakage

LANGUAGES = ["cy", "de", "eu", "fr", "it", "sw", "ta", "th"]


def make_table(speakers=60, windows=20, seed=0, rare=0.2):
    """Windows of `speakers` voices from two corpora; every clip gives two windows; audio is all different."""
    rng, rows = np.random.default_rng(seed), []
    for s in range(speakers):
        label = "teen" if rng.random() < rare or s < 6 else "adult"
        for w in range(int(rng.integers(2, windows))):
            clip = f"s{s:03d}-c{w // 2}"
            rows.append((f"{clip}@{w % 2}", clip, f"s{s:03d}", clip, "ab"[s % 2], "en", label))
    columns = ["window_id", "clip_id", "speaker_id", "recording_id", "corpus", "language", "label"]
    return pd.DataFrame(rows, columns=columns).assign(content_hash=[f"h{i}" for i in range(len(rows))])


def split_once(table, protocol="speaker", seed=0):
    return split_windows(table, protocol, "label", seed)[0]


def audit(table, split, protocol="speaker"):
    return audit_splits(table.assign(task="age", protocol=protocol, fold=0, split=table["window_id"].map(split)))


def test_speakers_and_recordings_stay_in_one_part():
    table = make_table()
    chain = ["s001", "s002", "s003", "s004"]  # each shares a video with the next
    rows = table[table["speaker_id"].isin(chain)].groupby("speaker_id").nth([0, -1]).index[1:-1]
    table.loc[rows, "recording_id"] = ["1 and 2", "1 and 2", "2 and 3", "2 and 3", "3 and 4", "3 and 4"]
    split = split_once(table, seed=3)
    assert split[table["speaker_id"].isin(chain).to_numpy()].nunique() == 1
    for column in ("speaker_id", "recording_id"):
        assert (split.groupby(table[column].to_numpy()).nunique() == 1).all()
    stop_on_leakage(audit(table, split))


@pytest.mark.parametrize("seed", range(6))
def test_every_part_holds_every_class_at_about_its_share(seed):
    table = make_table(speakers=80, seed=seed)
    split = split_once(table, seed=seed)
    shares = split.value_counts(normalize=True)
    assert [*shares[["train", "test"]]] == [pytest.approx(0.68, abs=0.06), pytest.approx(0.20, abs=0.05)]
    assert (pd.crosstab(table["label"].to_numpy(), split.to_numpy()) > 0).all().all()
    assert [split_once(table, seed=seed + more).equals(split) for more in (0, 1)] == [True, False]


def test_three_speakers_of_a_class_reach_three_parts_and_two_are_refused_by_name():
    table = make_table(rare=0).assign(label="adult")
    table.loc[table["speaker_id"].isin(["s000", "s001", "s002"]), "label"] = "teen"
    split = split_once(table)
    assert set(split[(table["label"] == "teen").to_numpy()]) == {"train", "validation", "test"}
    table.loc[table["speaker_id"] == "s002", "label"] = "adult"
    refused("class 'teen' of label has 2 speakers", split_once, table)
    refused("unknown protocol 'random'", split_once, table, "random")


def test_folds_test_everyone_once_and_hold_every_class():
    table = make_table(speakers=80)
    splits = split_windows(table, "speaker", "label", 0, folds=4)
    tested = pd.concat([split[split == "test"] for split in splits])
    assert sorted(tested.index) == sorted(table["window_id"])
    for split in splits:
        stop_on_leakage(audit(table, split))
        assert (pd.crosstab(table["label"].to_numpy(), split.to_numpy()) > 0).all().all()
        assert (split[split != "test"] == "validation").mean() == pytest.approx(0.15, abs=0.05)
    assert len(split_windows(table, "paper", "label", 0, folds=4)) == 1
    for folds in (-1, 1, 2):
        refused(f"folds = {folds}: take 3 or more", split_windows, table, "speaker", "label", 0, folds=folds)


def make_languages(speakers=160):
    """A corpus of eight languages, a language a speaker, but s020, a guest in all others; and two corpora of one language."""
    table = make_table(speakers=speakers, windows=6).assign(corpus="many")
    table["language"] = [LANGUAGES[int(name[1:]) % 8] for name in table["speaker_id"]]
    names = [f"s020-c{number}" for number in range(100, 120)]
    guest = table[table["speaker_id"] == "s020"].iloc[[0] * 20]
    guest = guest.assign(**dict.fromkeys(["window_id", "clip_id", "recording_id", "content_hash"], names))
    guest["language"] = [LANGUAGES[4]] * 13 + [name for name in LANGUAGES if name != LANGUAGES[4]]
    single = make_table(40).replace({"^s": "t", "^h": "u"}, regex=True)  # other voices, other audio
    return pd.concat([table, guest, single], ignore_index=True)


@pytest.mark.parametrize("folds", [0, 3])
def test_languages_held_out_are_not_heard_and_guests_are_left_out(folds):
    table = make_languages()
    for split in split_windows(table, "language", "label", 0, folds=folds):
        known = table.set_index("window_id").loc[split.index]
        many = (known["corpus"] == "many").to_numpy()
        assert (split[many].groupby(known["language"][many]).nunique() == 1).all()
        assert (split.groupby(known["speaker_id"]).nunique() == 1).all()
        assert set(split[~many]) == {"train", "validation", "test"}  # of one language: split by speakers
        stop_on_leakage(audit(known.reset_index(), split, "language"))
        part_of = dict(zip(known["language"][many], split[many]))
        guest = table[table["speaker_id"] == "s020"]
        away = guest[guest["language"].map(part_of) != part_of[LANGUAGES[4]]]
        assert len(away) > 0  # what the guest says in languages of the other parts: that is left out, no more
        assert set(table["window_id"]) - set(split.index) == set(away["window_id"])
    refused("no corpus has 3 languages", split_once, make_table(), "language")
    split = split_once(table)  # by speaker: languages are shared, which is a leak only where they are held out
    stop_on_leakage(audit(table, split))
    refused(r"language\(s\) in both train, validation: many: ", stop_on_leakage, audit(table, split, "language"))


def test_the_papers_protocol_cuts_random_windows_as_published_and_leaks_and_identical_audio_stops_the_run():
    table = make_table(speakers=200)
    split = split_once(table, "paper")
    assert split.value_counts(normalize=True).round(2).to_dict() == {"train": 0.68, "test": 0.20, "validation": 0.12}
    leaks = audit(table, split)
    assert leaks.loc[leaks["kind"] == "clip", "count"].min() > 0
    refused(r"speaker\(s\) in both train, test: s0", stop_on_leakage, leaks)
    table = make_table()
    split = split_once(table)
    train, test = (np.flatnonzero(split == name)[0] for name in ("train", "test"))
    table.loc[test, "content_hash"] = table.loc[train, "content_hash"]
    refused(f"identical audio.*{table.loc[train, 'content_hash']}", stop_on_leakage, audit(table, split))
