import contextlib
import re
import shutil
import time
from importlib import metadata

import joblib
import numpy as np
import pandas as pd
import psutil
import pytest
import soundfile
from bs4 import BeautifulSoup
from chain_runner import SMALL, demo, run_module, start_module
from checks import refused
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from lib import baselines, config, paths, results, run
from lib.corpora.demo import common_voice_layout, render
from lib.corpora.demo.espeak import Synthesizer, Voice
from lib.corpora.demo.recording import Session
from lib.corpora.demo.render import render_synthetic_corpora, render_unseen
from lib.corpora.demo.speakers import draw_people, draw_speaker
from lib.corpora.voxceleb import read_voxceleb

SPEAKERS, SEED = 24, 5
INTERVAL = re.compile(r"[+-]?\d+(?:\.\d+)?(?: %)? \([+-]?\d+(?:\.\d+)? to [+-]?\d+(?:\.\d+)?\)")
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


def test_a_voice_has_the_pitch_asked_for_which_a_shorter_tract_leaves_alone_and_its_room_the_noise_and_level():
    for f0_hz in (90, 120, 165, 205, 260):
        assert measure_f0(*speak(Voice(f0_hz))) == pytest.approx(f0_hz, rel=0.08)
    long, short = (speak(Voice(150, formants=(scale,) * 4)) for scale in (0.9, 1.2))
    assert centroid_hz(*short) / centroid_hz(*long) == pytest.approx(1.2 / 0.9, rel=0.12)
    assert measure_f0(*short) == pytest.approx(measure_f0(*long), rel=0.03)
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


def load(folders, name):
    return paths.load_json(folders / "reports" / "demo" / f"{name}.json")


def checkpoints_of(folders, files="data/demo/**/epoch-*.safetensors"):
    """When each finished epoch, or another of these files, was written."""
    return {path: path.stat().st_mtime_ns for path in folders.glob(files)}


def test_the_report_has_a_page_for_the_run_and_for_every_notebook(first, folders):
    pages = sorted(path.stem for path in (folders / "reports" / "demo").glob("*.html"))
    assert pages == [*config.NOTEBOOKS, "index"]
    assert (folders / "reports" / "index.html").exists()
    assert list((folders / "reports" / "demo" / "figures").glob("*.png"))
    assert ("report:" in first.stdout, "Unable to parse" in first.stderr) == (True, False)  # by papermill, a parameter
    for path in (path for path in (folders / "reports").rglob("*.*") if path.suffix in {".html", ".json", ".csv"}):
        assert not any(str(place) in path.read_text(encoding="utf-8") for place in (folders, paths.ROOT)), path
    record = load(folders, "run")  # which says what made the numbers
    assert (record["synthetic"], record["parameters"]["train"]["epochs"]) == (True, 2)
    assert len(record["data_checksum"]) == len(record["encoder"]["weights_sha256"]) == 64
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    assert re.fullmatch("[0-9a-f]{12}([+]changes)?", record["git_commit"])
    assert [stage["stage"] for stage in record["stages"]] == config.NOTEBOOKS
    assert all(stage["counts"] and stage["peak_memory_mb"] > 50 and stage["seconds"] > 0 for stage in record["stages"])


def test_every_interval_in_a_table_of_the_evaluation_page_is_one_of_metrics_json_and_each_part_is_there(first, folders):
    source = (folders / "reports" / "demo" / "05_evaluate.html").read_text(encoding="utf-8")
    page, metrics, known = BeautifulSoup(source, "html.parser"), load(folders, "metrics"), set()
    for record in (one for rows in metrics.values() for one in rows if "low" in [*one]):
        for protocol in (record["protocol"], "leak"):
            known.update(INTERVAL.findall(results.format_score(record | {"protocol": protocol})))
    text = " | ".join(table.get_text(" | ") for table in page.select("table.table")).replace("\xa0", " ")
    shown = INTERVAL.findall(text)
    assert (len(shown) > 90, {*shown} - known) == (True, set())
    table = next(table for table in page.select("table.table") if "random windows claim" in table.get_text())
    assert not INTERVAL.findall(table.find_previous("table", class_="table").get_text(" "))
    text = " ".join(one.get_text(" ") for one in page.select(".said"))
    told = "random windows claim|of 100 clips|protocols names no other|windows told right|copies is 0|after temperature|paper reports"
    for words in told.split("|"):
        assert words in text, words
    assert 1 <= len(page.select("figure.sound audio[src^='data:audio/mpeg']")) <= min(12, len(metrics["errors"]))
    models = {row["model"] for row in metrics["scores"]}
    assert {"majority", "baseline: mean F0", "baseline: duration and level", "baseline: MFCC"} <= models
    assert set(metrics["headline"]) == {row["task"] for row in metrics["trainings"]}
    for task, view in metrics["headline"].items():
        fits = [row for row in metrics["trainings"] if row["task"] == task and row["protocol"] == view["protocol"]]
        assert view["model"] == max(fits, key=lambda row: row["validation_uar"])["network"]


def test_planted_sores_come_back_in_the_ledger(first, folders):
    manifest = paths.load_json(next((folders / "data" / "corpora").glob("synthetic-*/manifest.json")))
    ledger = pd.concat(map(pd.read_parquet, (folders / "data" / "demo").glob("0[12]_*/ledger.parquet")))
    read = [next((folders / "data" / "demo").glob(f"01_*/{name}.parquet")) for name in ("clips", "ledger")]
    rows = pd.concat(map(pd.read_parquet, read))["corpus"].value_counts()
    for corpus in ("common_voice", "voxceleb"):
        found, planted = ledger[ledger["corpus"] == corpus]["reason"].value_counts(), manifest[corpus]["ledger"]
        assert {reason: found.get(reason) for reason in planted} == planted
        assert rows[corpus] == manifest[corpus]["rows"]


def test_an_identical_run_recomputes_nothing(first, folders, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(paths, "DATA", folders / "data")
        run.check_earlier("demo", config.load_run(paths.PARAMS / "demo.yaml", SMALL), "06_predict")
    before = load(folders, "metrics"), checkpoints_of(folders)
    assert "recomputed: nothing" in run_module(folders, *demo()).stdout
    assert (load(folders, "metrics"), checkpoints_of(folders)) == before


def test_a_killed_run_keeps_others_out_while_it_lives_and_is_gone_on_with(first, folders):
    before, data = checkpoints_of(folders), folders / "data" / "demo"
    killed = start_module(folders, *demo("train.epochs=1"))
    while not list(data.glob("executed/.*.partial.ipynb")) and killed.poll() is None:
        time.sleep(0.1)
    second = run_module(folders, *demo(), code=2)
    while len(checkpoints_of(folders)) < len(before) + 2 and killed.poll() is None:
        time.sleep(0.05)
    running = psutil.Process(killed.pid)
    for one in [running, *running.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    killed.communicate()
    assert killed.returncode < 0
    assert "run 'demo' is being made by another process" in second.stderr
    kept = checkpoints_of(folders)
    run_module(folders, *demo("train.epochs=1"))
    after = checkpoints_of(folders)
    assert len(before) < len(kept) < len(after)
    assert len({path.parent for path in kept if after.get(path) != kept[path]}) <= 1  # a linear training starts anew
    assert [bool(stage["recomputed"]) for stage in load(folders, "run")["stages"][:4]] == [False, False, False, True]


def test_a_failing_cell_stops_the_run_and_touches_no_report(first, folders):
    reports = checkpoints_of(folders, "reports/**/*.*")
    told = run_module(folders, *demo('train.networks=["papr"]'), code=1).stderr
    where, _, why = told[told.index("stopped:") :].strip().splitlines()
    assert ("04_train, cell" in where, "papr" in why) == (True, True)
    assert (folders / "data" / "demo" / "executed" / "04_train.failed.ipynb").exists()
    assert checkpoints_of(folders, "reports/**/*.*") == reports


def test_one_notebook_alone_takes_an_encoder_without_frames_and_builds_no_report(first, folders, tmp_path):
    if not list(metadata.distributions(name="resemblyzer")):
        pytest.skip("not installed: pip install --no-deps -r requirements-campplus.txt")
    shutil.copytree(folders / "data", tmp_path / "data", ignore=shutil.ignore_patterns("0[3-6]*"))
    run_module(tmp_path, *demo("embed.encoder=resemblyzer", "embed.feature=", options=["--only", "03_embed"]))
    executed = (tmp_path / "data" / "demo" / "executed" / "03_embed.ipynb").read_text(encoding="utf-8")
    assert "48,000 samples became one vector of 256 numbers" in executed
    assert "resemblyzer | embedding" in executed  # a study of what there is
    assert not (tmp_path / "reports").exists()
