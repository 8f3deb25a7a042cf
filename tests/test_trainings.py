from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from checks import refused
from learning_fixture import make_corpus, make_stage, make_store

from lib import config, linear, paths, train, trainings
from lib.compute import Compute, torch_threads
from lib.splits import split_windows
from lib.tasks import Task
from lib.trust.leakage import audit_splits, stop_on_leakage

CLIPS, WINDOWS = make_corpus()
GENDER = Task("gender", ["male", "female"])
AGE = Task("age", ["child", "teen", "adult"], [14, 22])
LANGUAGES = ["cy", "de", "eu", "fr", "it", "sw", "ta", "th"]
EXACT = Compute("cpu", "float32", "")
RECIPE = train.Recipe(epochs=3, learning_rate=1e-3, batch=32, width=0.03, normalisation="standard")
NETWORKS = ["paper", "linear", "linear:bank", "age=steps:layer:0|layer:1+bank"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return [make_store(folder / "0", WINDOWS, CLIPS), make_store(folder / "1", WINDOWS, CLIPS, seed=1, noise=0.8)]


@pytest.fixture(scope="module")
def splits():
    return trainings.split_tasks(WINDOWS, CLIPS, [GENDER, AGE], ["speaker", "paper"], seed=0)


@pytest.fixture(scope="module")
def trained(stores, splits, tmp_path_factory):
    """(stage, fits) of every network for gender and age by unseen speakers, two seeds; frames are too small for age."""
    stage = make_stage(tmp_path_factory.mktemp("trained"))
    rows, wanted = splits[splits["protocol"] == "speaker"], ["gender=paper", *NETWORKS[1:]]
    with torch_threads(1):
        fits = trainings.train_networks(stage, rows, stores, [GENDER, AGE], wanted, [0, 1], RECIPE, EXACT)
    pd.testing.assert_frame_equal(pd.read_csv(stage.path("fits.csv")), fits)
    return stage, fits


def test_quarters_name_stages_so_far_up_any_encoder():
    asked = ["gender=experts:quarter:1+bank|quarter:3+quarter:4", "linear:quarter:2", "paper"]
    for stages, expected in {
        "embedding": ["gender=experts:embedding+bank|embedding", "linear:embedding", "paper"],
        "conv layer:0 layer:1 layer:2 layer:3 emission":
            ["gender=experts:layer:0+bank|layer:3+emission", "linear:layer:1", "paper"],
    }.items():  # fmt: skip
        store = SimpleNamespace(parts=dict.fromkeys([*stages.split(), "bank"]))
        assert trainings.place_networks(asked, store) == expected
    shipped = paths.load_json(paths.ASSETS / "ready" / "model.json")
    networks = config.load_run(paths.PARAMS / "ready.yaml")["train"]["networks"]
    placed = trainings.place_networks(networks, SimpleNamespace(parts=shipped["encoder"]["parts"]))
    assert placed == [f"{task}={head['network']}" for task, head in shipped["heads"].items()]


def test_the_audit_finds_nothing_in_an_honest_split_and_names_a_planted_speaker(splits):
    honest = splits[splits["protocol"] == "speaker"]
    assert honest.groupby(["task", "speaker_id"])["split"].nunique().max() == 1
    stop_on_leakage(audit_splits(honest))
    moved = honest.query("task == 'gender' and split == 'test'").iloc[0]
    leaky = honest.assign(split=honest["split"].mask(honest.index == moved.name, "train"))
    told = rf"task gender, protocol speaker, fold 0: .*speaker.* in both .*{moved['speaker_id']}"
    refused(told, stop_on_leakage, audit_splits(leaky))


def test_every_network_is_trained_once_and_what_tells_is_told(trained, stores, splits, monkeypatch):
    stage, fits = trained
    assert len(fits.drop_duplicates(trainings.KEYS)) == len(fits) == 2 + 2 + 3
    assert set(fits.loc[fits["network"].str.startswith(("linear", "steps")), "seed"]) == {0}
    scores = fits.groupby(["task", "network"])["validation_uar"].mean()
    assert scores["gender", "linear:bank"] < 0.75  # noise
    assert (scores["gender", "linear"] > 0.9, scores["age", "linear"] > 0.5) == (True, True)
    for fit in fits.itertuples():
        assert train.checkpoint_path(stage.path(fit.folder), fit.best_epoch).exists()
    assert trainings.load_history(stage, fits).groupby(trainings.KEYS)["chosen"].sum().eq(1).all()
    for module, name in ((train, "train_epoch"), (linear, "list_problems")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("trained again"))
    rows = splits[(splits["protocol"] == "speaker") & (splits["task"] == "gender")]
    again = trainings.train_networks(stage, rows, stores, [GENDER], NETWORKS, [0, 1], RECIPE, EXACT)
    columns = [*trainings.KEYS, "best_epoch", "validation_uar", "folder"]
    pd.testing.assert_frame_equal(again[columns], fits.loc[fits["task"] == "gender", columns])


@pytest.mark.parametrize(("copies", "everybody"), [(1, False), (2, False), (1, True)])
def test_linear_models_learn_from_training_copies_included_or_from_all(stores, splits, tmp_path, copies, everybody):
    rows = splits[(splits["protocol"] == "speaker") & (splits["task"] == "gender")]
    rows = rows.assign(split="train") if everybody else rows
    _, best = trainings.train_linear(tmp_path, rows, stores[:copies], GENDER, "linear", 0, [[1e-3]])
    heard = rows.loc[rows["split"] == "train", "window_id"]
    expected = np.mean([store.statistics(heard)[:].mean(axis=0) for store in stores[:copies]], axis=0)
    model, _ = train.load_model(train.checkpoint_path(tmp_path, best))
    np.testing.assert_allclose(model.normaliser.mean, expected, atol=1e-4)
    with mock.patch.object(trainings, "balance_rows", side_effect=ValueError("asked")) as asked:
        for network in ("steps:bank", "linear"):
            refused("asked", trainings.train_linear, tmp_path / "other", rows, stores, GENDER, network, 0)
    assert [one.args[1:] for one in asked.call_args_list] == [(0.0, 0.25), (0.0, 0.5)]  # steps by another root


def test_rows_weigh_alike_by_class_and_by_the_root_of_their_number_within():
    speakers = pd.DataFrame({
        "speaker_id": list("abcdet"), "target": [0, 0, 1, 0, 0, 0], "corpus": list("xxxyyx"), "windows": [16, 4, 2, 1, 5, 1],
        "age_years": [30.0, 30, 30, 8, 30, 30], "split": ["train"] * 5 + ["test"],
    })  # fmt: skip
    table = speakers.loc[speakers.index.repeat(speakers["windows"])].reset_index(drop=True)
    table = table.assign(window_id=table.index).sample(frac=1, random_state=0)
    weights = pd.Series(trainings.balance_rows(table), index=table.index)
    by_speaker = weights.groupby(table["speaker_id"]).sum()
    assert (weights.groupby(table["target"]).sum().tolist(), by_speaker["t"]) == (pytest.approx([1, 1]), 0)
    by_number = weights * table["target"].map({0: 2, 1: 1})  # of years: the root of four speakers and of one
    np.testing.assert_allclose(trainings.balance_rows(table, 0.5), by_number)
    assert by_speaker["a"] / by_speaker["b"] == pytest.approx(2)  # 16 windows against 4
    assert (by_speaker["a"] + by_speaker["b"]) / by_speaker["d"] == pytest.approx(2**0.5)  # two voices against one
    alike = pd.Series(trainings.balance_rows(table, share=0.0), table.index).groupby(table["speaker_id"]).sum()
    assert alike["a"] + alike["b"] == pytest.approx(alike["d"])  # where groups weigh alike
    assert by_speaker["d"] == pytest.approx(by_speaker["e"])  # a child and an adult of one corpus: groups of one voice


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
    assert set(split_once(table)[(table["label"] == "teen").to_numpy()]) == {"train", "validation", "test"}
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
