"""Synthetic corpora: voices that are what was asked for, tables in the real form, sores that the readers count."""

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import soundfile

from lib.corpora.common_voice import read_common_voice
from lib.corpora.demo import common_voice_layout, render, studio, voxceleb_layout
from lib.corpora.demo.espeak import Voice, format_variant, open_synthesizer
from lib.corpora.demo.recording import add_room, make_noise, record, rms_of, set_level
from lib.corpora.demo.render import draw_population, render_synthetic_corpora, render_unseen
from lib.corpora.demo.speakers import F0_HZ, TRACT_SCALE, at_age, draw_ages, draw_speaker
from lib.corpora.voxceleb import read_voxceleb

SPEAKERS, CLIPS, SEED = 12, 2, 5
TEXT = "The old lighthouse keeper painted the northern door green before the winter storms arrived."


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    return folder, render_synthetic_corpora(folder, SEED, SPEAKERS, CLIPS, workers=2)


def measure_f0(waveform, rate_hz, low_hz=60, high_hz=420):
    """Median F0 in Hz by normalized autocorrelation over 40 ms frames."""
    size, found = int(0.04 * rate_hz), []
    window = np.hanning(size)
    shape = np.fft.irfft(np.abs(np.fft.rfft(window, 4 * size)) ** 2)[:size]
    for start in range(0, len(waveform) - size, size // 4):
        frame = waveform[start : start + size] - waveform[start : start + size].mean()
        if rms_of(frame) < 0.3 * rms_of(waveform):
            continue
        curve = np.fft.irfft(np.abs(np.fft.rfft(frame * window, 4 * size)) ** 2)[:size]
        curve = curve / curve[0] / (shape / shape[0] + 1e-9)
        lags = np.arange(int(rate_hz / high_hz), int(rate_hz / low_hz))
        best = curve[lags].max()
        peaks = [lag for lag in lags if curve[lag] > 0.92 * best and curve[lag - 1] <= curve[lag] >= curve[lag + 1]]
        if best > 0.6 and peaks:
            found.append(rate_hz / peaks[0])
    return float(np.median(found))


def centroid_hz(waveform, rate_hz):
    power = np.abs(np.fft.rfft(waveform)) ** 2
    frequency = np.fft.rfftfreq(len(waveform), 1 / rate_hz)
    inside = (frequency > 50) & (frequency < 5000)
    return float((power * frequency)[inside].sum() / power[inside].sum())


def speak(voice, language="en", text=TEXT, seed=0):
    with open_synthesizer([language], seed) as synthesizer:
        return synthesizer.say(text, voice, language), synthesizer.rate_hz


def snapshot(folder):
    """Digest of every table and of every file's samples."""
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if path.suffix in (".ogg", ".opus") and not content.startswith(b"this") and content:
            content = soundfile.read(path)[0].tobytes()  # the container carries a random serial number
        digests[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return digests


@pytest.mark.parametrize("f0_hz", [90, 120, 165, 205, 260])
def test_voice_speaks_at_the_pitch_asked_for(f0_hz):
    waveform, rate_hz = speak(Voice(f0_hz))
    assert measure_f0(waveform, rate_hz) == pytest.approx(f0_hz, rel=0.08)


def test_shorter_vocal_tract_moves_the_spectrum_up_in_proportion_and_leaves_pitch_alone():
    long, rate_hz = speak(Voice(150, tract_scale=0.9))
    short, _ = speak(Voice(150, tract_scale=1.2))
    assert centroid_hz(short, rate_hz) / centroid_hz(long, rate_hz) == pytest.approx(1.2 / 0.9, rel=0.12)
    assert measure_f0(short, rate_hz) == pytest.approx(measure_f0(long, rate_hz), rel=0.03)


def test_breath_adds_high_frequencies_and_rate_shortens_speech():
    plain, rate_hz = speak(Voice(150))
    breathy, _ = speak(Voice(150, breath=20))
    fast, _ = speak(Voice(150, rate_wpm=220))
    assert centroid_hz(breathy, rate_hz) > 1.02 * centroid_hz(plain, rate_hz)
    assert len(fast) < 0.85 * len(plain)


def test_wider_intonation_spreads_the_variant_pitches():
    low, high = (re.search(r"pitch (\d+) (\d+)", format_variant(Voice(150, f0_sd_st=sd))) for sd in (1.5, 3.5))
    assert int(low[1]) > int(high[1])
    assert int(low[2]) < int(high[2])


def test_same_seed_gives_the_same_samples_whatever_was_said_before():
    first, _ = speak(Voice(150, breath=10))
    speak(Voice(90), "de", "Etwas ganz anderes.", seed=3)
    assert np.array_equal(first, speak(Voice(150, breath=10))[0])


@pytest.mark.parametrize("voice", [Voice(20), Voice(150, tract_scale=3)])
def test_voice_beyond_what_can_be_rendered_is_refused(voice):
    with pytest.raises(ValueError, match="choose a value between"):
        speak(voice)


def test_unknown_language_is_named():
    with pytest.raises(ValueError, match="'xx'"):
        speak(Voice(150), "xx")


def test_every_language_has_sentences_that_espeak_reads():
    for language, parts in studio.load_sentences().items():
        assert language in studio.LOCALES
        assert min(len(parts[part]) for part in ("who", "did", "when")) >= 10
        sentence = " ".join(parts[part][0] for part in ("who", "did", "when"))
        waveform, rate_hz = speak(Voice(120), language, sentence)
        assert 2.5 < len(waveform) / rate_hz < 9


def test_boys_grow_into_men_and_girls_stay_above_them():
    assert at_age(F0_HZ, "male", 12) > 1.7 * at_age(F0_HZ, "male", 30)
    assert at_age(F0_HZ, "female", 30) > 1.6 * at_age(F0_HZ, "male", 30)
    assert at_age(F0_HZ, "female", 75) < at_age(F0_HZ, "female", 25)
    assert at_age(TRACT_SCALE, "female", 13) > at_age(TRACT_SCALE, "female", 30) > at_age(TRACT_SCALE, "male", 30)


def test_population_is_unbalanced_as_in_the_paper_and_no_threshold_on_pitch_solves_gender():
    rng = np.random.default_rng(0)
    people = [draw_speaker(k, *who, "en", rng) for k, who in enumerate(draw_ages(3000, rng))]
    adults = [p for p in people if p.age_years >= 20]
    assert np.mean([p.gender == "male" for p in adults]) == pytest.approx(2 / 3, abs=0.01)
    pitch = np.array([p.voice.f0_hz for p in people])
    male = np.array([p.gender == "male" for p in people])
    best = max(np.mean((pitch < threshold) == male) for threshold in range(80, 300))
    assert 0.85 < best < 0.95


def test_teens_of_both_sexes_are_in_both_corpora():
    people = draw_population(seed=0, speakers=96)
    for half in (people[:48], people[48:]):
        teens = Counter(p.gender for p in half if p.age_years < 20)
        assert min(teens["male"], teens["female"]) >= 4
    assert len({p.number for p in people}) == 96


def test_room_noise_and_level_do_what_they_say():
    rng = np.random.default_rng(1)
    click = np.zeros(8000, np.float32)
    click[100] = 1
    wet = add_room(click, 16_000, 0.3, 0.5, rng)
    assert len(wet) == len(click)
    assert rms_of(wet[200:2000]) > 20 * rms_of(wet[5200:7000]) > 0
    assert 20 * math.log10(rms_of(set_level(make_noise(9973, 1.0, rng), -30))) == pytest.approx(-30, abs=0.1)
    speaker = dataclasses.replace(draw_speaker(0, "male", 40, "en", rng), band_hz=3400.0, level_db=-25.0)
    sound = record(make_noise(44_100, 0, rng), 22_050, speaker, rng)
    power = np.abs(np.fft.rfft(sound)) ** 2
    assert power[20_000:].mean() < 0.001 * power[2000:6000].mean()


def test_release_has_the_real_columns_and_its_buckets_divide_all_clips(corpora):
    folder, manifest = corpora
    for locale in manifest["common_voice"]["locales"]:
        here = folder / "common_voice" / common_voice_layout.RELEASE / locale
        tables = {}
        for name in [*common_voice_layout.BUCKETS, *common_voice_layout.PARTS]:
            tables[name] = pd.read_csv(here / f"{name}.tsv", sep="\t", quoting=3, dtype=str, keep_default_na=False)
            assert list(tables[name].columns) == common_voice_layout.COLUMNS
        every = pd.concat([tables[name] for name in common_voice_layout.BUCKETS])
        durations = pd.read_csv(here / "clip_durations.tsv", sep="\t")
        assert list(durations.columns) == ["clip", "duration[ms]"]
        assert sorted(durations["clip"]) == sorted(every["path"])
        assert every["path"].is_unique
        assert every["client_id"].str.fullmatch("[0-9a-f]{128}").all()
        parts = pd.concat([tables[name] for name in common_voice_layout.PARTS])
        assert set(parts["path"]) <= set(tables["validated"]["path"])
        assert parts["sentence"].is_unique


def test_common_voice_reader_counts_exactly_what_was_planted(corpora):
    folder, manifest = corpora
    clips, ledger = read_common_voice(folder / "common_voice")
    expected = {k: v for k, v in manifest["common_voice"]["ledger"].items() if k not in LATER}
    assert ledger["reason"].value_counts().to_dict() == expected
    assert len(clips) + len(ledger) == manifest["common_voice"]["rows"]["validated"]
    extra = clips.attrs["facts"]["files on disk that no table names"]
    assert extra == manifest["common_voice"]["planted"]["clip that no table names"]
    for word in ("do_not_wish_to_say", "non-binary"):
        assert (clips["gender_raw"] == word).sum() == manifest["common_voice"]["planted"][word]
        assert clips.loc[clips["gender_raw"] == word, "gender"].isna().all()


LATER = ["cannot be decoded", "shorter than a window"]  # found out only when a clip is decoded


def test_voxceleb_reader_counts_exactly_what_was_planted(corpora):
    folder, manifest = corpora
    clips, ledger = read_voxceleb(folder / "voxceleb", ages=folder / "voxceleb" / "ages.csv")
    expected = {k: v for k, v in manifest["voxceleb"]["ledger"].items() if k not in LATER}
    assert ledger["reason"].value_counts().to_dict() == expected
    assert len(clips) + len(ledger) == manifest["voxceleb"]["frame_files"]
    assert set(clips["gender"]) == {"male", "female"}
    unlabelled = clips[clips["age_decade"].isna()]
    assert unlabelled["speaker_id"].nunique() == manifest["voxceleb"]["planted"]["speaker without age"]


def test_clips_that_cannot_be_used_are_found_when_decoded(corpora):
    folder, manifest = corpora
    clips, _ = read_common_voice(folder / "common_voice")
    found = Counter()
    for path in clips["path"]:
        try:
            length_s = soundfile.info(str(folder / "common_voice" / path)).duration
        except soundfile.LibsndfileError:
            found["cannot be decoded"] += 1
        else:
            found["shorter than a window"] += length_s < 3
    assert dict(found) == {reason: manifest["common_voice"]["ledger"][reason] for reason in LATER}


def test_cuts_hold_the_speaker_and_the_rest_of_the_video_holds_other_sound(corpora):
    folder, _ = corpora
    clips, _ = read_voxceleb(folder / "voxceleb", ages=[])
    drawn = pd.read_csv(folder / "speakers.csv").query("corpus == 'voxceleb'").set_index("number")
    asked, heard, inside_s, total_s = [], [], 0.0, 0.0
    for path, cuts in clips.groupby("path"):
        if (folder / "voxceleb" / path).read_bytes() == voxceleb_layout.GARBAGE:
            continue
        waveform, rate_hz = soundfile.read(folder / "voxceleb" / path, dtype="float32")
        total_s += len(waveform) / rate_hz
        for cut in cuts.itertuples():
            inside_s += cut.end_s - cut.start_s
            piece = waveform[int(cut.start_s * rate_hz) : int(cut.end_s * rate_hz)]
            if cut.end_s - cut.start_s > 3.5 and rms_of(piece) > 0:
                asked.append(drawn.loc[int(cut.speaker_id.split(":id")[1]) - 19_001, "f0_hz"])
                heard.append(measure_f0(piece, rate_hz))
    assert np.corrcoef(np.log(asked), np.log(heard))[0, 1] > 0.8
    assert 0.4 < inside_s / total_s < 0.85


def test_frame_files_have_the_bytes_of_the_real_ones(corpora):
    folder, _ = corpora
    path = next(p for p in sorted((folder / "voxceleb" / "txt").rglob("*.txt")) if p.stat().st_size > 500)
    head, rows = path.read_bytes().split(b"\n\n")
    assert re.fullmatch(
        rb"Identity  : \tid1\d{4}\nReference : \t[\w-]{11}\nOffset    : \t-?\d\n"
        rb"FV Conf   : \t\d+\.\d{3}\nASD Conf  : \t\d+\.\d{3}",
        head,
    )
    assert re.fullmatch(rb"FRAME \tX \tY \tW \tH \n(\d{6} \t\d+ \t\d+ \t\d+ \t\d+ \n)+", rows)
    assert path.parent.name.encode() in head


def test_same_seed_renders_the_same_bytes_and_samples_in_one_process_or_two(corpora, tmp_path):
    folder, _ = corpora
    render_synthetic_corpora(tmp_path / "again", SEED, SPEAKERS, CLIPS, workers=1)
    assert snapshot(tmp_path / "again") == snapshot(folder)


def test_rendering_goes_on_after_a_kill_and_then_only_reads(corpora, tmp_path, monkeypatch):
    folder, manifest = corpora
    done, render_speaker = [], render._render_speaker

    def render_some(task):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(task.speaker.number)
        return render_speaker(task)

    monkeypatch.setattr(render, "_render_speaker", render_some)
    with pytest.raises(KeyboardInterrupt):
        render_synthetic_corpora(tmp_path, SEED, SPEAKERS, CLIPS, workers=1)
    assert not list(tmp_path.rglob("*.tsv"))
    assert not (tmp_path / ".completed").exists()
    before = list(done)
    monkeypatch.setattr(
        render, "_render_speaker", lambda task: done.append(task.speaker.number) or render_speaker(task)
    )
    assert render_synthetic_corpora(tmp_path, SEED, SPEAKERS, CLIPS, workers=1) == manifest
    assert len(done) == len(set(done)) > len(before)
    assert snapshot(tmp_path) == snapshot(folder)
    monkeypatch.setattr(render, "_render_speaker", None)
    assert render_synthetic_corpora(tmp_path, SEED, SPEAKERS, CLIPS) == manifest


def test_error_in_a_worker_process_reaches_the_caller_and_leaves_no_record(tmp_path):
    speakers = [dataclasses.replace(p, language="xx") for p in draw_population(0, 12)[:2]]
    tasks = [studio.Task(str(tmp_path), "unseen", 0, speaker, 1) for speaker in speakers]
    with pytest.raises(ValueError, match="'xx'"):
        studio.render_all(tasks, render._render_speaker, 2, "speakers")
    assert not any(task.record_path.exists() for task in tasks)


def test_folder_of_another_rendering_is_refused(corpora):
    folder, _ = corpora
    with pytest.raises(ValueError, match="delete the folder"):
        render_synthetic_corpora(folder, SEED + 1, SPEAKERS, CLIPS)


def test_too_few_speakers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="speakers=4"):
        render_synthetic_corpora(tmp_path, SEED, speakers=4)


def test_unseen_recordings_are_new_speakers_in_varied_formats_with_bad_files_among_them(tmp_path):
    manifest = render_unseen(tmp_path, SEED, count=10, workers=1)
    labels = pd.read_csv(tmp_path / "labels.csv", dtype=str, keep_default_na=False)
    assert list(labels.columns) == ["path", "speaker", "gender", "age"]
    assert len(labels) == 10 + len(manifest["planted"])
    assert all((tmp_path / path).is_file() for path in labels["path"])
    good = labels[: manifest["recordings"]]
    assert good["speaker"].is_unique
    kinds = {(i.format, i.samplerate, i.channels) for i in (soundfile.info(tmp_path / path) for path in good["path"])}
    assert {("WAV", 44_100, 2), ("FLAC", 48_000, 1), ("WAV", 8_000, 1)} < kinds
    assert {k[0] for k in kinds} == {"WAV", "FLAC", "OGG", "MP3"}
    for name in ("empty.wav", "notes.wav"):
        with pytest.raises(soundfile.LibsndfileError):
            soundfile.read(tmp_path / "recordings" / name)
    assert soundfile.info(tmp_path / "recordings" / "two-seconds.wav").duration == pytest.approx(2, abs=0.01)
    assert json.loads((tmp_path / "manifest.json").read_text())["synthetic"] is True
