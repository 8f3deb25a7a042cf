import os
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
from checks import killed_at, refused
from learning_fixture import make_stage

from lib import windows as cutting
from lib.audio import RATE_HZ, read_waveform
from lib.baselines import ACOUSTICS
from lib.corpora.demo.espeak import Synthesizer, Voice
from lib.corpora.sieve import Sieve
from lib.tables import load_table
from lib.windows import Windowing, as_heard, as_stored, count_windows, cut_windows, open_windows, slide_windows

REPEAT = {"short_clips": "repeat"}


def make_clips(folder, lengths_s):
    """Seeded noise clips of these lengths in `folder`, one speaker each; their clips table."""
    rng = np.random.default_rng(0)
    paths = [f"clip{number:02d}.wav" for number in range(len(lengths_s))]
    for path, length_s in zip(paths, lengths_s):
        soundfile.write(folder / path, rng.normal(0, 0.1, round(length_s * RATE_HZ)).astype(np.float32), RATE_HZ)
    sieve = Sieve("tones", pd.DataFrame({"item": paths, "path": paths}))
    for name in ("clip_id", "speaker_id", "recording_id"):
        sieve.rows[name] = "tones:" + sieve.rows["path"]
    return sieve.finish()[0]


def cut(folder, clips, roots=None, **options):
    """Windows and ledger of clips that are cut into `folder/stage`."""
    stage = make_stage(folder / "stage", "02_segment")
    cut_windows(stage, clips, roots or {"tones": folder}, Windowing(**options))
    return [load_table(stage.path(f"{kind}.parquet"), kind) for kind in ("windows", "ledger")]


@pytest.mark.parametrize(("length_s", "options", "expected"), [
    (2.9999, {}, []), (3, {}, [0]), (4.9999, {}, [0]), (5, {}, [0, 2]), (6.5, {}, [0, 2]), (7, {}, [0, 2, 4]),
    (60.9, {}, [*range(0, 57, 2)]), (9.3, {"window_s": 1.0, "step_s": 2.5}, [0, 2.5, 5, 7.5]),
    (2, REPEAT, [0]), (0.9999, REPEAT, []), (0, REPEAT | {"min_clip_s": 0.0}, []),
])  # fmt: skip
def test_three_seconds_every_two_and_no_tail_as_in_the_paper_however_the_sound_comes(length_s, options, expected):
    sound, windowing = np.arange(round(length_s * RATE_HZ), dtype=np.float32), Windowing(**options)
    blocks = (sound[first : first + 7000] for first in range(0, len(sound), 7000))
    found = [*slide_windows(blocks, windowing)]
    assert [start / RATE_HZ for start, _ in found] == expected
    for start, piece in found:
        np.testing.assert_array_equal(piece, sound[start : start + windowing.samples])


def test_what_is_stored_is_what_16_bit_sound_was_a_short_piece_is_repeated_and_a_senseless_windowing_refused():
    whole_numbers = np.array([-32768, -1, 0, 1, 32767], np.int16)
    np.testing.assert_array_equal(as_stored(whole_numbers / np.float32(32768)), whole_numbers)
    np.testing.assert_array_equal(as_heard(whole_numbers, 5), whole_numbers / np.float32(32768))
    assert as_heard(np.array([0, 16384], np.int16), 5).tolist() == [0, 0.5, 0, 0.5, 0]
    loud = np.array([0.0, 3.0, -1.5, 0.75], np.float32)  # beyond full scale: the whole window is brought down
    np.testing.assert_allclose(as_heard(as_stored(loud), 4), loud / 3, atol=1e-4)
    for name, value, told in [("window_s", 0.0, "above 0"), ("step_s", -1.0, "above 0"), ("short_clips", "pad", "'dr")]:
        refused(f"{name} = {value!r}.*: .*must be {told}", Windowing, **{name: value})


def test_windows_and_ledger_account_for_every_clip_and_for_what_is_missing_of_one(tmp_path):
    clips = make_clips(tmp_path, [7.5, 2.0, 3.0, 12.0, 10.0, 4.0])
    (tmp_path / "clip02.wav").write_bytes(b"RIFF not a sound")
    for path, share in ((tmp_path / "clip04.wav", 0.6), (tmp_path / "clip05.wav", 0.5)):
        os.truncate(path, round(share * path.stat().st_size))
    windows, ledger = cut(tmp_path, clips)
    counts = {"tones:clip00.wav": 3, "tones:clip03.wav": 5, "tones:clip04.wav": 2}
    assert windows["speaker_id"].value_counts(sort=False).to_dict() == counts
    assert ledger["item"].str[-6:].tolist() == ["01.wav", "02.wav", "04.wav", "05.wav"]
    short = "shorter than a window"
    assert ledger["reason"].tolist() == [short, "cannot be decoded", "used with a warning", short]
    words = ["2.00 s", "clip02.wav", "only 6.00 of the 10.00 s that its header", "2.00 s; only 2.00 of the 4.00 s"]
    assert all(word in detail for word, detail in zip(words, ledger["detail"]))
    table = count_windows(clips, windows, ledger).iloc[0]
    assert table[["clips", "clips with a window", "windows", "cannot be decoded"]].tolist() == [6, 3, 10, 1]
    assert table["hours"] == pytest.approx(10 * 3 / 3600)


def test_a_windows_row_leads_to_its_sound_its_level_and_its_acoustics(tmp_path):
    clips = make_clips(tmp_path, [5.0, 1.5, 4.0, 3.0])
    whole = soundfile.read(tmp_path / "clip00.wav", dtype="int16")[0]
    soundfile.write(tmp_path / "clip03.wav", whole[:48_000], RATE_HZ, subtype="PCM_24")  # the first window, other bytes
    windows, _ = cut(tmp_path, clips, short_clips="repeat")
    sounds = open_windows(tmp_path / "stage")
    starts = [(0, 0), (0, 2000), (1, 0), (2, 0), (3, 0)]
    assert windows["window_id"].tolist() == [f"tones:clip0{clip}.wav@{start}" for clip, start in starts]
    assert windows["row"].tolist() == [0, 1, 2, 3, 4]
    assert windows["duration_s"].tolist() == [3, 3, 1.5, 3, 3]  # a repeated clip keeps its own length
    assert (sounds.shape, sounds.dtype) == ((5, 48_000), np.int16)
    np.testing.assert_array_equal(sounds[1], whole[32_000:80_000])
    np.testing.assert_array_equal(sounds[2][:24_000], sounds[2][24_000:])
    assert windows["level_db"].to_numpy() == pytest.approx([-20] * 5, abs=0.2)
    assert windows["content_hash"].duplicated().tolist() == [False, False, False, False, True]
    acoustics = load_table(tmp_path / "stage" / "acoustics.parquet", "acoustics")
    assert acoustics["window_id"].equals(windows["window_id"])
    assert list(acoustics) == ["window_id", *ACOUSTICS]
    assert acoustics["duration_s"].to_numpy() == pytest.approx(windows["duration_s"], abs=0.001)


def test_several_cuts_of_one_file_are_those_that_each_gives_alone(tmp_path):
    clips = make_clips(tmp_path, [20.0])
    spans = [(0.5, 4.0), (3.0, 9.5), (12.0, np.nan), (19.0, 30.0)]
    cuts = [clips.assign(clip_id=f"tones:{n}", start_s=start, end_s=end) for n, (start, end) in enumerate(spans)]
    windows, ledger = cut(tmp_path, pd.concat(cuts))
    assert windows["clip_id"].value_counts(sort=False).to_dict() == {"tones:0": 1, "tones:1": 2, "tones:2": 3}
    assert ledger["item"].tolist() == ["tones:3"]
    sounds = open_windows(tmp_path / "stage")
    for row in windows.itertuples():
        start_s = spans[int(row.clip_id[-1])][0] + row.start_s
        heard = read_waveform(tmp_path / "clip00.wav", start_s, start_s + 3)
        np.testing.assert_array_equal(sounds[row.row], as_stored(heard))


def test_windows_without_speech_are_dropped_and_counted_and_none_left_stops_the_stage(tmp_path):
    clips = make_clips(tmp_path, [5.0, 3.0, 4.0])
    soundfile.write(tmp_path / "clip02.wav", np.split(make_speech(), 2)[0], RATE_HZ)
    windows, ledger = cut(tmp_path, clips, min_speech_ratio=0.1)
    assert set(windows["clip_id"]) == {"tones:clip02.wav"}
    assert ledger["reason"].tolist() == ["too little speech"] * 3
    assert ledger["item"].tolist() == ["tones:clip00.wav@0", "tones:clip00.wav@2000", "tones:clip01.wav@0"]
    assert len(open_windows(tmp_path / "stage")) == len(windows)
    message = r"no window is left of 2 clips: \{'too little speech': 3\}; tones:clip00.wav@0: 0.00 of the win"
    refused(message, cut, tmp_path, clips[:2], min_speech_ratio=0.1)


def make_speech(level=0.1):
    """About three seconds of a synthetic voice at 16 kHz, and as much silence behind it."""
    synthesizer = Synthesizer()
    spoken = synthesizer.say("The quick brown fox jumps over the lazy dog, and then it goes home.", Voice(120.0))
    spoken = soxr.resample(spoken, synthesizer.rate_hz, RATE_HZ)
    return np.concatenate([spoken * level / np.abs(spoken).max(), np.zeros_like(spoken)]).astype(np.float32)


@pytest.mark.filterwarnings("error")
def test_speech_is_told_from_silence_at_any_level_and_whatever_is_measured_beside_it():
    cutting.load_vad.cache_clear()
    voices, noise = [make_speech(level) for level in (0.9, 0.1, 0.003)], np.random.default_rng(0).normal(0, 0.1, 20_000)
    *tracks, of_noise, of_nothing = cutting.speech_probabilities([*voices, noise, np.zeros(0, np.float32)])
    for track, voice in zip(tracks, voices):
        half = len(voice) // 2 // cutting.VAD_CHUNK
        assert len(track) == -(-len(voice) // cutting.VAD_CHUNK)
        assert cutting.speech_ratio(track[:half]) > 0.8
        assert cutting.speech_ratio(track[half + 16 :]) < 0.2
        assert np.abs(track - cutting.speech_probabilities([voice])[0]).max() < 1e-4
    assert (len(of_noise), len(of_nothing), cutting.speech_ratio(of_nothing)) == (40, 0, 0.0)
    assert cutting.speech_ratio(of_noise) < 0.2
    assert cutting.speech_probabilities([]) == []


@pytest.mark.parametrize(("fail_at", "samples_lost", "cut_again"), [(2, 0, 7), (5, 0, 4), (7, 0, 1), (7, 9, 7)])
def test_a_killed_run_goes_on_with_the_files_that_are_left(tmp_path, monkeypatch, fail_at, samples_lost, cut_again):
    clips = make_clips(tmp_path, [3.0] * 7)
    (expected, _), stage = cut(tmp_path, clips), tmp_path / "stage"
    expected_sound = np.array(open_windows(stage))
    monkeypatch.setattr(cutting, "PART_FILES", 3)
    (stage / "windows.npy").unlink()
    with killed_at(fail_at, cutting, "_cut_file"):
        cut(tmp_path, clips)
    assert not (stage / "windows.npy").exists()
    if samples_lost:  # the tables were on disk when the power failed, the samples were not
        partial = stage / "windows.npy.partial"
        os.truncate(partial, partial.stat().st_size - 2 * samples_lost - 48_000 * 2)
    with mock.patch.object(cutting, "_cut_file", wraps=cutting._cut_file) as cut_file:
        windows, _ = cut(tmp_path, clips)
    assert windows.equals(expected)
    np.testing.assert_array_equal(open_windows(stage), expected_sound)
    assert (cut_file.call_count, [path.name for path in stage.glob("*part*")]) == (cut_again, [])
