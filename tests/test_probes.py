"""Probes on generated speakers: what is told is told, what is not is not, and speakers stay apart."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from lib import probes
from lib.paths import load_json
from lib.pretraining import CONFIG, build_model
from lib.units import RATE_HZ

matplotlib.use("agg")


@pytest.fixture
def table():
    """40 speakers of 5 utterances, half of them children, genders in turn."""
    speakers = np.repeat(np.arange(40), 5)
    genders = np.where(speakers % 2, "female", "male")
    ages = np.where(speakers < 20, 8, 30)
    return pd.DataFrame({"speaker_id": speakers.astype(str), "gender": genders, "age_years": ages})


def informative(table: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """Three features that tell gender plainly, age a little, and nothing."""
    noise = np.random.default_rng(seed).normal(0, 1, (len(table), 3))
    noise[:, 0] += 6 * (table.gender == "female")
    noise[:, 1] += 6 * (table.age_years > 16)
    return noise.astype(np.float32)


def test_tasks_take_the_right_speakers(table):
    rows, labels = probes.task_labels(table, "gender of children")
    assert (table.age_years[rows] < 16).all()
    assert labels.tolist() == (table.gender[rows] == "female").astype(int).tolist()
    with pytest.raises(ValueError, match="favourite colour"):
        probes.task_labels(table, "favourite colour")


def test_informative_features_beat_noise_and_majority(table):
    noise = np.random.default_rng(1).normal(0, 1, (len(table), 3))
    scores = probes.score_representations(table, {"good": informative(table), "noise": noise}, kinds=("logistic",))
    uar = scores.set_index(["feature", "task"]).uar
    for task in probes.TASKS:
        assert uar["good", task] > 0.95
        assert uar["noise", task] < 0.75
        assert uar["majority", task] == 0.5
    assert ((scores.low <= scores.uar) & (scores.uar <= scores.high)).all()


def test_a_feature_that_names_the_speaker_tells_nothing_of_a_new_one(table):
    identity = np.eye(40)[table.speaker_id.astype(int)]
    shuffled = np.random.default_rng(0).permutation(40)[table.speaker_id.astype(int)] % 2
    predicted = probes.predict_folds(identity, shuffled, table.speaker_id.to_numpy(), "svm")
    assert probes.score_uar(shuffled, predicted, table.speaker_id.to_numpy())["uar"] < 0.7


def test_interval_is_wider_for_fewer_speakers():
    labels = np.tile([0, 1], 200)
    predicted = np.where(np.random.default_rng(0).random(400) < 0.8, labels, 1 - labels)
    many, few = (probes.score_uar(labels, predicted, np.arange(400) // size) for size in (2, 40))
    assert many["uar"] == few["uar"]
    assert (many["speakers"], few["speakers"]) == (200, 10)
    flipped = np.where(np.arange(400) // 40 < 2, 1 - labels, labels)  # two speakers in ten are always wrong
    wide = probes.score_uar(labels, flipped, np.arange(400) // 40)
    assert wide["high"] - wide["low"] > many["high"] - many["low"]


def test_transfer_uses_only_adults_to_fit(table):
    spoiled = informative(table)
    children = (table.age_years < 16).to_numpy()
    spoiled[children, 0] *= -1  # children would teach the opposite
    other = table[table.age_years > 16].reset_index(drop=True)
    scores = probes.score_transfer(table, {"x": spoiled}, other, {"x": informative(other, seed=3)}, kinds=("logistic",))
    assert scores.uar[0] > 0.95


def test_embeddings_of_a_file_have_named_stages(tmp_path):
    wave = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, RATE_HZ)
    model = build_model(load_json(CONFIG)).eval()
    embedders = {"mean F0": probes.embed_pitch, "MFCC statistics": probes.embed_mfcc}
    found = probes.embed_all([str(tmp_path / "a.wav")], embedders, {"tiny": model})
    assert found["MFCC statistics"].shape == (1, 78)
    assert found["tiny | emission"].shape == (1, 32)
    assert found["tiny | conv mean+std"].shape == (1, 384)
    with torch.inference_mode():
        read = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
        emission, _ = model(torch.from_numpy(probes.normalize(read))[None])
    np.testing.assert_allclose(found["tiny | emission"][0], emission[0].mean(0).numpy(), atol=1e-4)


def test_level_does_not_change_what_an_encoder_says():
    wave = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    model = build_model(load_json(CONFIG)).eval()
    loud, soft = (probes.embed_layers(model, wave * gain)["emission"] for gain in (1.0, 0.1))
    np.testing.assert_allclose(loud, soft, atol=1e-2)


def test_missing_label_names_the_speaker(tmp_path):
    (tmp_path / "train").mkdir()
    lines = {"wav.scp": "u1 a.wav\n", "utt2spk": "u1 0007\n", "spk2gender": "0007 m\n", "spk2age": "0008 9\n"}
    for name, text in lines.items():
        (tmp_path / "train" / name).write_text(text)
    with pytest.raises(ValueError, match="0007"):
        probes.read_labelled(tmp_path)


def test_best_scores_keep_one_row_for_each_family_and_task():
    scores = pd.DataFrame(
        {"feature": ["a | conv", "a | emission", "b"], "task": "t", "probe": "svm", "uar": [0.6, 0.8, 0.7]}
    )
    assert probes.best_scores(scores).feature.tolist() == ["a | emission", "b"]


def test_figures_show_every_stage_and_loss():
    stages = ["conv", "layer 1", "emission"]
    scores = pd.DataFrame({"feature": [f"tiny | {stage}" for stage in stages], "task": "t", "probe": "svm",
                           "uar": [0.6, 0.8, 0.7], "low": 0.5, "high": 0.9})  # fmt: skip
    ax = probes.plot_layers(scores, "t")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == stages
    history = pd.DataFrame({"heard_h": [1, 2], "total": [2.0, 1.0], "unit": [4.0, 3.0]})
    assert len(probes.plot_history(history, ("total", "unit")).lines) == 2


def test_each_source_is_kept_and_only_a_new_one_is_embedded(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in "ab":
        soundfile.write(tmp_path / f"{name}.wav", rng.normal(0, 0.1, RATE_HZ), RATE_HZ)
    table = pd.DataFrame({"path": [str(tmp_path / "b.wav"), str(tmp_path / "a.wav")]})
    first = probes.represent(tmp_path, table, ["MFCC statistics"], {})
    monkeypatch.setitem(probes.EMBEDDERS, "MFCC statistics", None)  # would fail if it were asked again
    model = build_model(load_json(CONFIG)).eval()
    tiny = probes.Encoder("tiny", model, "", "weights", True)
    both = probes.represent(tmp_path, table, ["MFCC statistics"], {"tiny": tiny})
    np.testing.assert_array_equal(both["MFCC statistics"], first["MFCC statistics"])
    stages = [name for name in both if name.startswith("tiny") and "mean+std" not in name]
    assert [stage.split(" | ")[1] for stage in stages] == ["conv", *(f"layer {k}" for k in range(1, 6)), "emission"]
    swapped = probes.represent(tmp_path, table[::-1], [], {"tiny": tiny})
    np.testing.assert_allclose(swapped["tiny | conv"], both["tiny | conv"][::-1])


def test_unknown_and_missing_peers_are_named(monkeypatch):
    with pytest.raises(ValueError, match="x-vector"):
        probes.make_embedders(["x-vector"])
    monkeypatch.setitem(__import__("sys").modules, "opensmile", None)
    with pytest.raises(ValueError, match="requirements-peers"):
        probes.make_embedders(["eGeMAPS"])


def test_only_adults_of_known_gender_are_taken():
    clips = pd.DataFrame({
        "speaker_id": list("abcd"), "gender": ["male", "female", None, "male"], "path": list("abcd"),
        "age_years": pd.array([30, None, 40, None], dtype="Int64"), "age_decade": pd.array([None, 20, None, 10], dtype="Int64"),
    })  # fmt: skip
    assert probes.known_adults(clips, "/corpus").path.tolist() == ["/corpus/a", "/corpus/b"]


@pytest.fixture
def layered(tmp_path, table):
    """A store of two windows a clip whose layer 1 tells gender and whose layer 0 tells nothing; its windows and clips."""
    from lib.store import Store, finish_store, save_shard

    clips = table.assign(
        clip_id=[f"clip-{row}" for row in table.index], age_decade=pd.array([pd.NA] * len(table), dtype="Int16")
    )
    windows = pd.DataFrame({"clip_id": np.repeat(clips.clip_id, 2)}).reset_index(drop=True)
    windows["window_id"] = [f"window-{row}" for row in windows.index]
    rng = np.random.default_rng(0)
    female = np.repeat(clips.gender == "female", 2).to_numpy()
    layers = rng.normal(0, 1, (len(windows), 2, 4)).astype(np.float32)
    layers[:, 1, 0] += 5 * female
    acoustics = np.where(rng.random((len(windows), 1)) < 0.1, np.nan, 200).astype(np.float32)
    tensors = {"layers": layers, "conv": layers[:, 0], "acoustics": acoustics}
    save_shard(tmp_path, 0, windows.window_id.tolist(), tensors)
    finish_store(tmp_path, 1)
    return Store(tmp_path), windows, clips


def test_the_layer_that_knows_is_found_and_kept_beside_the_shards(layered):
    from lib.tasks import Task

    store, windows, clips = layered
    tasks = [Task("gender", ["male", "female"]), Task("age", ["child", "adult"], [16])]
    scores = probes.study_layers(store, windows, clips, tasks, "net", seed=0)
    uar = scores.set_index(["task", "feature"]).uar
    assert uar["gender", "net | layer 1"] > 0.95
    assert uar["gender", "net | layer 0"] < 0.7
    assert uar["age", "net | layer 1"] < 0.7
    assert uar["gender", "majority"] == 0.5
    assert "mean F0" in uar["gender"].index
    again = probes.study_layers(store, windows.iloc[:0], clips, tasks, "net", seed=0)
    pd.testing.assert_frame_equal(again, scores)


def test_a_task_without_two_classes_of_two_speakers_is_left_out_of_the_layers(layered):
    from lib.tasks import Task

    store, windows, clips = layered
    one_child = clips.age_years.where((clips.age_years > 16) | (clips.speaker_id == "0"), 30)
    scores = probes.study_layers(store, windows, clips.assign(age_years=one_child), [Task("age", ["child", "adult"], [16])], "net", 0)  # fmt: skip
    assert scores.empty
    ax = probes.plot_all_layers(scores).axes[0]
    assert "No task" in ax.get_title() + ax.get_title(loc="left")  # which of the two depends on the style


def test_clips_are_means_of_their_windows_in_the_order_asked(layered):
    store, windows, clips = layered
    asked = clips.clip_id.iloc[[7, 3]]
    found = probes.average_stages(store, windows, asked, "net")
    layers = store.features("layers", windows.window_id).all()
    wanted = [layers[(windows.clip_id == clip).to_numpy(), 1].mean(0) for clip in asked]
    np.testing.assert_allclose(found["net | layer 1"], wanted, rtol=1e-5)
