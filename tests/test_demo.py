import contextlib

import joblib
import numpy as np
import pandas as pd
import pytest
import soundfile
from checks import refused
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from lib import baselines, paths
from lib.corpora.demo import common_voice_layout, render
from lib.corpora.demo.espeak import Synthesizer, Voice
from lib.corpora.demo.recording import Session
from lib.corpora.demo.render import render_synthetic_corpora, render_unseen
from lib.corpora.demo.speakers import draw_people, draw_speaker
from lib.corpora.voxceleb import read_voxceleb

SPEAKERS, SEED = 24, 5
TEXT = "The old lighthouse keeper painted the northern door green before the winter storms arrived."


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "corpora"
    return folder, render_synthetic_corpora(folder, SEED, SPEAKERS)


def speak(voice):
    synthesizer = Synthesizer()
    return synthesizer.say(TEXT, voice), synthesizer.rate_hz


def measure_f0(waveform, rate_hz):
    f0_hz, voiced = baselines.measure_f0(np.float32(waveform)[None], rate_hz)
    return float(baselines.mean_f0(f0_hz, voiced)[0])


def centroid_hz(waveform, rate_hz):
    frequency = np.fft.rfftfreq(len(waveform), 1 / rate_hz)
    return np.average(frequency, weights=np.abs(np.fft.rfft(waveform)) ** 2 * (frequency < 5000))


def score_uar(columns, labels, degree=2):
    """UAR of a logistic regression on these columns and their products, each speaker told by the others."""
    probe = make_pipeline(PolynomialFeatures(degree), StandardScaler(), LogisticRegression(class_weight="balanced"))
    return balanced_accuracy_score(labels, cross_val_predict(probe, np.column_stack(columns), labels, cv=5))


def snapshot(folder):
    """Every file's bytes, hashed; of Ogg, whose container carries a random serial number, its samples."""
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    oggs = {name: soundfile.read(folder / name)[0].tobytes() for name in files if files[name][:4] == b"OggS"}
    return {name: hash(content) for name, content in (files | oggs).items()}


def test_a_voice_speaks_at_the_pitch_asked_for_and_a_shorter_tract_moves_the_spectrum_up_and_leaves_pitch_alone():
    for f0_hz in (90, 120, 165, 205, 260):
        assert measure_f0(*speak(Voice(f0_hz))) == pytest.approx(f0_hz, rel=0.08)
    long, short = (speak(Voice(150, formants=(scale,) * 4)) for scale in (0.9, 1.2))
    assert centroid_hz(*short) / centroid_hz(*long) == pytest.approx(1.2 / 0.9, rel=0.12)
    assert measure_f0(*short) == pytest.approx(measure_f0(*long), rel=0.03)


def test_a_recording_has_the_noise_and_level_of_its_room_and_device():
    session = Session(draw_speaker(0, "male", 40, SEED), SEED)
    session.snr_db, session.level_db = 20.0, -30.0
    sound = session.record(np.concatenate([session.say(TEXT), np.zeros(2 * session.rate_hz)]))
    assert 20 * np.log10(sound.std()) == pytest.approx(-30, abs=7)
    assert 20 * np.log10(sound.std() / sound[-session.rate_hz :].std()) == pytest.approx(20, abs=3)


def test_labels_can_be_heard_in_the_whole_voice_and_in_no_single_number():
    people = draw_people(2000, SEED, first=0)
    female, adult = np.array([(person.gender == "female", person.age_years >= 20) for person in people]).T
    voices = pd.DataFrame([vars(person.voice) for person in people])
    pitch = np.log(voices["f0_hz"])
    voice = [pitch, np.stack(voices["formants"]), voices[["tilt_db", "breath", "rate_wpm", "f0_sd_st", "flutter"]]]
    assert 0.90 < score_uar([pitch], female) < 0.97 < score_uar(voice, female)
    assert 0.5 < score_uar([pitch], adult) < 0.7 < 0.93 < score_uar(voice, adult)
    assert (np.mean(~adult), np.mean(female[~adult])) == (0.25, 0.5)


def duration_and_level(speaker):
    session = Session(speaker, SEED)
    sound = session.record(session.read_aloud(session.write_sentence(), common_voice_layout.LEAST_S))
    return len(sound) / session.rate_hz, 20 * np.log10(sound.std())


def test_duration_and_level_tell_neither_gender_nor_age():
    people = draw_people(160, SEED, first=0)
    measured = joblib.Parallel(n_jobs=-1)(joblib.delayed(duration_and_level)(person) for person in people)
    for labels in zip(*((person.gender, person.age_years >= 20) for person in people)):
        assert 0.4 < score_uar([measured], labels, degree=1) < 0.6


def test_cuts_hold_the_speaker_and_before_them_is_noise(corpora):
    cuts, _ = read_voxceleb(corpora[0] / "voxceleb")
    drawn = {f"voxceleb:id{19_001 + person.number}": person for person in draw_people(SPEAKERS // 2, SEED, first=1_000)}
    asked, heard, before = [], [], []
    for cut in cuts[cuts["speaker_id"].isin(drawn) & cuts["path"].str.endswith(".ogg")].itertuples():
        with contextlib.suppress(soundfile.LibsndfileError):  # one of the faults that are planted
            waveform, rate_hz = soundfile.read(corpora[0] / "voxceleb" / cut.path)
            first, last = (int(rate_hz * second) for second in (cut.start_s, cut.end_s))
            heard.append(measure_f0(waveform[first:last], rate_hz))
            before.append(measure_f0(waveform[first - rate_hz // 2 : first], rate_hz))
            asked.append(drawn[cut.speaker_id].voice.f0_hz)
    assert len(asked) >= 8
    assert np.corrcoef(np.log(asked), np.log(heard))[0, 1] > 0.9
    assert np.isnan(before).mean() > 0.8


def test_a_seed_renders_the_same_in_one_process_or_many_and_too_few_speakers_are_refused(corpora, tmp_path):
    folder, manifest = corpora
    with joblib.parallel_config(backend="sequential"):
        assert render_synthetic_corpora(tmp_path / "again", SEED, SPEAKERS) == manifest
    assert snapshot(tmp_path / "again") == snapshot(folder)
    refused("name another", render_synthetic_corpora, folder, SEED + 1, SPEAKERS)
    refused("speakers=4", render_synthetic_corpora, tmp_path, SEED, speakers=4)


def test_unseen_recordings_appear_as_a_whole_new_speakers_in_varied_formats_and_faulty_files(tmp_path, monkeypatch):
    folder, there = tmp_path / "unseen", []
    monkeypatch.setattr(render, "save_json", lambda *given: there.append(folder.exists()) or paths.save_json(*given))
    manifest = render_unseen(folder, SEED, count=10)
    assert there == [False]  # so what a killed rendering leaves is never read
    labels = pd.read_csv(folder / "labels.csv", dtype=str, keep_default_na=False)
    assert (len(labels), labels["speaker"][:10].nunique()) == (10 + len(manifest["faulty"]), 10)
    facts = [soundfile.info(folder / path) for path in labels["path"][:10]]
    assert {(fact.format.lower(), fact.samplerate, fact.channels) for fact in facts} == set(render.UNSEEN_FORMATS)
