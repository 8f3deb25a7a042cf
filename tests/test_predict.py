import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import soundfile
from checks import refused
from model_fixture import CENTRES, CLASSES, WINDOWING, YEAR_CLASSES, change, make_model_folder
from test_windows import cut

from lib import embed, store, train, trainings
from lib import predict as predicting
from lib.audio import RATE_HZ, read_waveform
from lib.corpora.own_data import list_recordings, read_own_data
from lib.model_folder import BY_CORPUS
from lib.predict import count_states, find_model, predict, predict_listed
from lib.speed.engines import EngineChoice
from lib.trust.calibration import Calibration, Years, disagreement
from lib.windows import open_windows

NETWORKS = {"gender": "paper", "age": "linear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("models") / "mixed")


@pytest.fixture(scope="module")
def model(folder):
    return make_model_folder(folder, NETWORKS)


@pytest.fixture(scope="module")
def voice(spoken):
    """The longest spoken recording, at 16 kHz."""
    return max(map(read_waveform, spoken.glob("recordings/2*")), key=len)


@pytest.fixture(scope="module")
def one(voice, model):
    return predict(voice, RATE_HZ, model=model)


def changed(model, task="gender", **facts):
    return replace(model, heads=model.heads | {task: replace(model.heads[task], **facts)})


@pytest.fixture(scope="module")
def evaluated(spoken, model, tmp_path_factory):
    """Windows of the spoken recordings as the chain cuts and embeds them, with the answers of its evaluation."""
    chain = tmp_path_factory.mktemp("chain")
    clips, _ = read_own_data(spoken / "labels.csv")
    windows, _ = cut(chain, clips, {"own_data": spoken}, **vars(WINDOWING))
    ids, sounds = windows["window_id"].tolist(), open_windows(chain / "stage")
    embed.embed_windows(chain / "store", sounds, ids, model.encoder, EngineChoice(), dtype="float32")
    for task, network in NETWORKS.items():
        features = trainings.read_features(store.Store(chain / "store"), network, ids)
        answers = np.exp(train.predict_log_probabilities(model.heads[task].model, features).astype(np.float64))
        windows[[f"p_{task}_{name}" for name in model.heads[task].classes]] = answers
    return windows


def test_predicting_a_file_equals_the_evaluation_of_its_clip(evaluated, spoken, model):
    columns = ["start_s", "speech_ratio", *(name for name in evaluated if name.startswith("p_"))]
    for clip_id, rows in evaluated.groupby("clip_id"):
        found = predict(spoken / clip_id.removeprefix("own_data:"), model=model)
        assert np.abs(found.windows.dropna()[columns].to_numpy() - rows[columns].to_numpy()).max() < 1e-5
        for task, answer in found.answers.items():
            names, shares = [f"p_{name}" for name in answer.probabilities], list(answer.probabilities.values())
            assert sum(shares) == pytest.approx(1, abs=1e-6)
            timeline = found.timeline(task)
            assert list(timeline) == ["start_s", "duration_s", *names]
            np.testing.assert_allclose(timeline[names].mean(), shares, atol=1e-12)


def test_every_planted_fault_and_what_cannot_be_looked_at_has_its_own_state(spoken, model, tmp_path, monkeypatch):
    found = {one.name: one for one in predict_listed(list_recordings(spoken / "recordings"), model, progress=False)}
    states = {name: found[name].state for name in found if not name[0].isdigit()}
    assert states == {"empty.wav": "unreadable", "notes.wav": "unreadable", "half-second.wav": "too short",
                      "silence.wav": "no speech", "noise.wav": "no speech", "two-seconds.wav": "ok"}  # fmt: skip
    assert "2.0 s of sound, repeated" in found["two-seconds.wav"].warning
    assert "0 bytes" in found["empty.wav"].reason
    listed = list_recordings(spoken / "labels.csv")
    rows = [one.row() for one in predict_listed(listed, model, progress=False)]
    assert {row["name"]: row["state"] for row in rows} == {f"recordings/{one}": found[one].state for one in found}
    assert [row["name"] for row in rows] == listed["name"].tolist()
    assert (len(rows), listed["gender"].notna().sum()) == (14, 10)
    (tmp_path / "secret").mkdir()
    (tmp_path / "\udcff.wav").touch()
    (tmp_path / ".hidden.wav").touch()
    (tmp_path / "gone.wav").symlink_to("nothing")
    scan, refuse = os.scandir, mock.Mock(side_effect=PermissionError(13, "Permission denied", str(tmp_path / "secret")))
    monkeypatch.setattr(os, "scandir", lambda path: (refuse if Path(path).name == "secret" else scan)(path))
    found = predict_listed(list_recordings(tmp_path), model, progress=False)
    reasons = {one.name: one.reason.split(": ")[-1] for one in found}
    lost = "cannot be read (Permission denied)"
    assert reasons == {"\\xff.wav": "empty file (0 bytes)", "gone.wav": "a link to nothing", "secret": lost}
    assert count_states(one.state for one in found).set_index("state")["recordings"]["unreadable"] == 3


def test_samples_in_memory_are_answered_like_their_file_and_its_cut_and_silence_is_not_asked(voice, model, tmp_path):
    soundfile.write(tmp_path / "voice.wav", voice, RATE_HZ, subtype="FLOAT")
    from_file = predict(tmp_path / "voice.wav", model=model)
    assert from_file.state == "ok"
    for samples in (voice, np.stack([voice, voice]), np.stack([voice, voice], axis=1), voice.astype(np.float64)):
        assert predict(samples, RATE_HZ, model=model).answers == from_file.answers
    cut = predict(tmp_path / "voice.wav", model=model, start_s=0.5, end_s=4.0)
    assert cut.duration_s == 3.5
    assert cut.answers == predict(voice[RATE_HZ // 2 : 4 * RATE_HZ], RATE_HZ, model=model).answers
    assert cut.answers == predict(voice, RATE_HZ, model=model, start_s=0.5, end_s=4.0).answers
    found = predict(np.concatenate([voice, np.zeros(8 * RATE_HZ, np.float32)]), RATE_HZ, model=model)
    quiet = found.windows.loc[found.windows["start_s"] > len(voice) / RATE_HZ, "p_gender_male"]
    assert (found.state, found.speech_ratio < 0.9, len(quiet) >= 2, quiet.isna().all()) == ("ok", True, True, True)
    assert all(end <= len(voice) / RATE_HZ + 1 for _, end in found.speech_regions())


def test_a_threshold_makes_it_unsure_a_temperature_modest_and_a_rare_class_is_told_beside_the_label(voice, one, model):
    found = predict(voice, RATE_HZ, model=changed(model, threshold=0.999, calibration=Calibration(5.0)))
    sure, answer = one.answers["gender"], found.answers["gender"]
    assert (found.state, answer.state, answer.label, found.row()["gender"]) == ("unsure", "unsure", None, "unsure")
    assert "answered from 100 %" in found.reason
    assert 0.5 <= max(answer.probabilities.values()) < max(sure.probabilities.values())
    assert (found.answers["age"].state, sure.by_threshold) == ("ok", None)
    rarer = min(sure.probabilities, key=sure.probabilities.get)
    for threshold, expected in ((0.0, rarer), (1.1, sure.label)):
        row = predict(voice, RATE_HZ, model=changed(model, rare=(rarer, threshold))).row()
        assert (row["gender"], row["gender_by_threshold"]) == (sure.label, expected)


def test_years_are_the_expected_age_as_trained_with_the_models_interval(voice, tmp_path):
    tasks, years = (*CLASSES, *YEAR_CLASSES), {"age_years": Years(CENTRES, None)}
    plain = make_model_folder(tmp_path / "plain", tasks=tasks, years=years)
    model = changed(plain, "age_years", years=Years(CENTRES, 11.5, speakers=9), calibration=Calibration(3.0))
    found, bare = predict(voice, RATE_HZ, model=model), predict(voice, RATE_HZ, model=plain).answers["age_years"]
    answer, raw = found.answers["age_years"], list(bare.probabilities.values())
    assert [np.dot(raw, CENTRES), found.windows["age_years"].mean()] == pytest.approx([answer.years] * 2)
    assert list(answer.probabilities.values()) != pytest.approx(raw)
    told = (answer.low_years, answer.high_years, answer.label, bare.low_years)
    assert told == (max(0, answer.years - 11.5), answer.years + 11.5, f"{answer.years:.0f} years", None)
    assert found.row().items() >= {"age_years": answer.years, "age_years_high": answer.high_years}.items()
    told = found.answers["age"].label
    for span, state in (((0, 11), "ok"), ((12, None), "unsure"), ((-99, -11), "ok"), ((-99, -12), "unsure")):
        spans = {told: [edge if edge is None else answer.years + edge for edge in span]}
        settled = predict(voice, RATE_HZ, model=changed(model, "age", spans=spans)).answers["age"]
        assert (settled.state, settled.label) == (state, told if state == "ok" else None)


def test_an_array_needs_its_rate_and_a_file_must_not_have_one(model, voice):
    spans = [{"start_s": -1.0}, {"start_s": np.nan}, {"start_s": 2.0, "end_s": 1.0}]
    for source, rate, span, told in [
        (voice, None, {}, "rate = None"), ("voice.wav", 8000, {}, "rate = 8000"),
        (np.zeros((2, 3, 4), np.float32), 8000, {}, "not a waveform"),
        *(("voice.wav", None, span, "not a stretch of time") for span in spans),
    ]:  # fmt: skip
        refused(told, predict, source, rate, model=model, **span)
    assert predict(np.zeros((0, 2), np.float32), RATE_HZ, model=model).state == "too short"
    assert predict(np.full(RATE_HZ, np.nan), RATE_HZ, model=model).state == "unreadable"
    assert predict("there-is-no-such-file.wav", model=model).reason.endswith("no such file")


def test_windows_that_disagree_beyond_one_voice_are_told_one_by_one_and_not_averaged(voice, one, model):
    columns = [f"p_gender_{name}" for name in CLASSES["gender"]]
    apart = disagreement(one.windows[columns].dropna().to_numpy())
    assert predict(voice, RATE_HZ, model=changed(model, disagreement=apart + 1e-6)).answers == one.answers
    several = predict(voice, RATE_HZ, model=changed(model, disagreement=apart - 1e-6))
    assert several.state == several.row()["gender"] == "several speakers"
    assert (several.answers["gender"].label, several.answers["age"]) == (None, one.answers["age"])
    assert "differ more than one voice's do" in several.reason
    pd.testing.assert_frame_equal(several.windows, one.windows)
    assert list(several.timeline("gender")) == ["start_s", "duration_s", "p_male", "p_female"]
    told = json.loads(json.dumps(several.as_json()))
    assert told["answers"]["gender"]["probabilities"] == {"male": None, "female": None}
    for window in told["windows"]:
        best = max(CLASSES["gender"], key=lambda name: window[f"p_gender_{name}"])
        assert f"gender: sounds {best} ({window[f'p_gender_{best}']:.0%}); age: sounds " in window["hint"]


def test_command_line_accounts_for_every_file(spoken, model, folder, tmp_path, capsys):
    names = ["two-seconds.wav", "empty.wav", "silence.wav"]
    short, empty, silence = (str(spoken / "recordings" / name) for name in names)
    assert predicting.main([str(spoken / "recordings"), "--model", folder, "--csv", str(tmp_path / "out.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "out.csv")) == 14
    assert "unreadable: 2" in capsys.readouterr().err
    assert predicting.main([folder, short, "--json"]) == 0  # as it was written before
    told = json.loads(capsys.readouterr().out)
    assert told["hint"].startswith("A guess about how a voice sounds")
    assert (told["predictions"][0]["state"], told["predictions"][0]["windows"][0]["duration_s"]) == ("ok", 2.0)
    assert predicting.main([short, empty, silence, "--model", folder]) == 0
    shown = capsys.readouterr().out
    assert [name for name in names if name not in shown] == []
    assert predicting.main([empty, "--model", folder]) == 1
    assert "empty file" in capsys.readouterr().out
    shutil.copy(short, tmp_path / "-voice.wav")  # which looks like an option; and the screen stays quiet
    call = [sys.executable, "-m", "lib.predict", "-voice.wav", "--model", folder, "--csv"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1].startswith("-voice.wav,ok,")
    assert [line for line in re.split("[\r\n]+", done.stderr) if line and "s/s" not in line] == ["ok: 1"]


def test_a_hopeless_call_is_refused_in_a_sentence_before_any_work(spoken, model, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predicting, "predict_listed", lambda *_: pytest.fail("the work was begun"))
    voice = str(spoken / "recordings/two-seconds.wav")
    before = Path(voice).read_bytes()
    (tmp_path / "empty").mkdir()
    for arguments, words in [
        ([], "give a recording"), ([""], "give a recording"), (["--csv"], "give a recording"),
        (["-"], "standard input is not read"), (["https://a.b/c.mp3"], "https://a.b/c.mp3: nothing is fetched"),
        ([str(tmp_path / "gone.wav")], "no such file or folder"), ([str(tmp_path / "empty")], "no files in this folder"),
        ([voice, "--model", str(tmp_path)], "no model folder"), ([voice, "--model", "gone"], "gone: no such model"),
        ([voice, "--csv", "/dev/null/out.csv"], "/dev/null"), ([voice, "--json", str(tmp_path / "no/\0.json")], "null byte"),
        (["--json", voice], "put recordings before --json"), ([voice, "--jsn"], "--jsn: neither an option"),
        (["-gone.wav"], "-gone.wav: neither an option (see --help) nor a file that is there; write ./-gone.wav"),
        (["./-gone.wav"], "-gone.wav: no such file"),
    ]:  # fmt: skip
        assert predicting.main(arguments if "--model" in arguments else [*arguments, "--model", folder]) == 2
        told = capsys.readouterr().err
        assert (told.startswith("refused: "), words in told, told.count("\n")) == (True, True, 1), told
    assert Path(voice).read_bytes() == before


def test_a_model_that_ships_is_found_by_its_name_and_the_ready_one_without(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "ASSETS", tmp_path)
    refused("ready: no such model", find_model, None)
    for name in ("ready", "tiny"):
        shutil.copytree(folder, tmp_path / name)
    assert find_model(None) == tmp_path / "ready"
    row = {"task": "gender", "metric": "uar", "level": "clip", "subset": "all", "protocol": "speaker", "model": "mixed"}
    for name, encoder, value in (("ready", "gone", 0.9), ("tiny", "wav2vec2-tiny", 0.8)):
        facts = {"encoder": model.description["encoder"] | {"name": encoder}, "metrics": [row | {"value": value}]}
        change(tmp_path / name, **facts, about={BY_CORPUS: {"gender": {"mine": value + 0.05}}})
    with pytest.warns(RuntimeWarning) as told:
        assert find_model(None) == tmp_path / "tiny"
    text = str(told[0].message)
    assert "the model 'ready' cannot answer here, 'tiny' does: encoder 'gone' is not known" in text
    assert text.endswith("bring gender: UAR 0.900 instead of 0.800, of windows in mine 0.950 instead of 0.850")
    assert [find_model("tiny"), find_model(folder)] == [tmp_path / "tiny", Path(folder)]
    refused(r"small: no such model; .* or of \['ready', 'tiny'\]", find_model, "small")
