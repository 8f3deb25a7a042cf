import numpy as np
import pandas as pd
import pytest
import soundfile

from lib import windows as cutting
from lib.audio import RATE_HZ
from lib.stages import Stage
from lib.tables import load_table, validate_table
from lib.windows import (
    Windowing,
    count_windows,
    cut_window,
    cut_windows,
    example_windows,
    speech_probabilities,
    speech_ratio,
    window_starts,
)


def make_clips(folder, lengths_s, corpus="tones"):
    """Seeded noise clips of these lengths in `folder`, one speaker each; their clips table."""
    rng = np.random.default_rng(0)
    rows = []
    for number, length_s in enumerate(lengths_s):
        path = f"clip{number:02d}.wav"
        soundfile.write(folder / path, rng.normal(0, 0.1, round(length_s * RATE_HZ)).astype(np.float32), RATE_HZ)
        rows.append({"clip_id": f"{corpus}:{path}", "speaker_id": f"{corpus}:{number}", "path": path})
    fixed = {"corpus": corpus, "language": "", "start_s": 0.0, "end_s": np.nan, "gender": None, "gender_raw": ""}
    fixed |= {"age_years": np.nan, "age_decade": None, "age_raw": "", "official_split": None}
    table = pd.DataFrame([{**row, **fixed, "recording_id": row["clip_id"]} for row in rows])
    return validate_table(table[list(cutting.tables.CLIPS.columns)], "clips")


def cut(folder, clips, **options):
    """Windows and ledger of clips, as the stage leaves them."""
    stage = Stage("02_segment", "test", "x", folder / "stage", {}, False)
    stage.folder.mkdir(exist_ok=True)
    cut_windows(stage, clips, {"tones": folder}, Windowing(**options))
    return load_table(stage.path("windows.parquet"), "windows"), load_table(stage.path("ledger.parquet"), "ledger")


@pytest.mark.parametrize(
    ("length_s", "starts_s"),
    [(2.9999, []), (3, [0]), (4.9999, [0]), (5, [0, 2]), (6.5, [0, 2]), (7, [0, 2, 4]), (10, [0, 2, 4, 6])],
)
def test_three_seconds_every_two_and_no_tail_as_in_the_paper(length_s, starts_s):
    assert [start / RATE_HZ for start in window_starts(round(length_s * RATE_HZ), Windowing())] == starts_s


def test_a_minute_gives_as_many_windows_as_the_formula_says():
    for length_s in np.arange(0, 61, 0.7):
        expected = max(0, int((length_s - 3) // 2) + 1)
        assert len(window_starts(round(length_s * RATE_HZ), Windowing())) == expected


def test_a_short_clip_gives_one_window_only_where_repeating_is_allowed():
    assert window_starts(2 * RATE_HZ, Windowing()) == []
    assert window_starts(2 * RATE_HZ, Windowing(short_clips="repeat")) == [0]
    assert window_starts(RATE_HZ - 1, Windowing(short_clips="repeat")) == []
    assert window_starts(0, Windowing(short_clips="repeat", min_clip_s=0.0)) in ([], [0])
    waveform = np.arange(5, dtype=np.float32)
    assert cut_window(waveform, 0, 12).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert cut_window(waveform, 1, 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_s": 0.0}, "must be above 0 seconds"),
        ({"step_s": -1.0}, "must be above 0 seconds"),
        ({"short_clips": "pad"}, r"short_clips = 'pad': must be one of \['drop', 'repeat'\]"),
    ],
)
def test_a_windowing_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Windowing(**options)


def test_windows_and_ledger_account_for_every_clip(tmp_path):
    clips = make_clips(tmp_path, [7.5, 2.0, 3.0, 12.0])
    (tmp_path / "clip02.wav").write_bytes(b"RIFF not a sound")
    windows, ledger = cut(tmp_path, clips)
    counts = windows.groupby("clip_id").size()
    assert counts.to_dict() == {"tones:clip00.wav": 3, "tones:clip03.wav": 5}
    assert ledger[["item", "reason"]].to_numpy().tolist() == [
        ["tones:clip01.wav", "shorter than a window"],
        ["tones:clip02.wav", "cannot be decoded"],
    ]
    assert ledger["detail"][0] == "2.00 s"
    assert "clip02.wav" in ledger["detail"][1]
    assert len(counts) + len(ledger) == len(clips)
    table = count_windows(clips, windows, ledger).iloc[0]
    assert table[["clips", "clips with a window", "windows", "cannot be decoded"]].tolist() == [4, 2, 8, 1]
    assert table["hours"] == pytest.approx(8 * 3 / 3600)


def test_a_windows_row_says_where_it_lies_how_loud_it_is_and_what_is_in_it(tmp_path):
    clips = make_clips(tmp_path, [5.0])
    sound, _ = soundfile.read(tmp_path / "clip00.wav", dtype="float32")
    windows, _ = cut(tmp_path, clips)
    assert windows["window_id"].tolist() == ["tones:clip00.wav@0", "tones:clip00.wav@2000"]
    assert windows[["start_s", "duration_s"]].to_numpy().tolist() == [[0.0, 3.0], [2.0, 3.0]]
    assert windows["level_db"].to_numpy() == pytest.approx([-20, -20], abs=0.2)
    assert windows["content_hash"].tolist() == [
        cutting.content_hash(sound[first : first + 48_000]) for first in (0, 32_000)
    ]


def test_a_repeated_clip_keeps_its_own_length_in_the_table(tmp_path):
    windows, ledger = cut(tmp_path, make_clips(tmp_path, [1.5, 0.9]), short_clips="repeat")
    assert windows["duration_s"].tolist() == [1.5]
    assert ledger["detail"].tolist() == ["0.90 s"]


def test_windows_without_speech_are_dropped_and_counted(tmp_path):
    clips = make_clips(tmp_path, [5.0, 3.0])
    windows, ledger = cut(tmp_path, clips, min_speech_ratio=0.1)
    assert len(windows) == 0
    assert ledger["reason"].tolist() == ["too little speech"] * 3
    assert ledger["item"].tolist() == ["tones:clip00.wav@0", "tones:clip00.wav@2000", "tones:clip01.wav@0"]


def make_speech(level=0.1):
    """About three seconds of a synthetic voice at 16 kHz, and as much silence behind it."""
    from lib.audio import resample
    from lib.corpora.demo.espeak import Synthesizer, Voice

    synthesizer = Synthesizer()
    spoken = synthesizer.say("The quick brown fox jumps over the lazy dog, and then it goes home.", Voice(120.0))
    spoken = resample(spoken, synthesizer.rate_hz)
    return np.concatenate([spoken * level / np.abs(spoken).max(), np.zeros_like(spoken)]).astype(np.float32)


@pytest.mark.parametrize("level", [0.9, 0.1, 0.003])
def test_speech_is_told_from_silence_at_any_level(level):
    waveform = make_speech(level)
    half = len(waveform) // 2
    (probabilities,) = speech_probabilities([waveform])
    assert len(probabilities) == -(-len(waveform) // cutting.VAD_CHUNK)
    assert speech_ratio(probabilities, 0, half) > 0.8
    assert speech_ratio(probabilities, half + RATE_HZ // 2, half - RATE_HZ // 2) < 0.2


def test_a_waveforms_speech_does_not_depend_on_what_is_measured_beside_it():
    speech, noise = make_speech(), np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    together = speech_probabilities([noise, speech, np.zeros(0, np.float32)])
    assert [len(track) for track in together] == [40, -(-len(speech) // cutting.VAD_CHUNK), 0]
    assert np.abs(together[1] - speech_probabilities([speech])[0]).max() < 1e-4
    assert speech_ratio(together[0], 0, 20_000) < 0.2
    assert speech_probabilities([]) == []
    assert speech_ratio(together[2], 0, 0) == 0.0


def test_a_killed_run_goes_on_with_the_files_that_are_left(tmp_path, monkeypatch):
    clips = make_clips(tmp_path, [3.0] * 7)
    expected, _ = cut(tmp_path, clips)
    monkeypatch.setattr(cutting, "BLOCK_FILES", 3)
    decoded = []

    def read(path, start_s=0.0, end_s=None, fail_at=5):
        decoded.append(path.name)
        if len(decoded) == fail_at:
            raise KeyboardInterrupt
        return cutting_read(path, start_s, end_s)

    cutting_read = cutting.read_waveform
    monkeypatch.setattr(cutting, "read_waveform", read)
    stage = tmp_path / "stage"
    (stage / "windows.parquet").unlink()
    with pytest.raises(KeyboardInterrupt):
        cut(tmp_path, clips)
    assert (stage / "part-00000.windows.parquet").exists()
    assert not (stage / "windows.parquet").exists()
    seen = len(decoded)
    windows, _ = cut(tmp_path, clips)
    assert windows.equals(expected)
    assert sorted(decoded[seen:]) == [f"clip{number:02d}.wav" for number in (3, 4, 5, 6)]
    assert list(stage.glob("part-*")) == []


def test_waveforms_are_let_go_of_while_a_block_is_cut(tmp_path, monkeypatch):
    held = []
    measure = cutting.speech_probabilities
    monkeypatch.setattr(cutting, "speech_probabilities", lambda waves: held.append(len(waves)) or measure(waves))
    monkeypatch.setattr(cutting, "VAD_BATCH", 8)
    windows, _ = cut(tmp_path, make_clips(tmp_path, [9.0] * 6))
    assert len(windows) == 24
    assert windows["speech_ratio"].notna().all()
    assert max(held) <= 8
    assert len(held) >= 3


def test_no_clips_give_empty_tables(tmp_path):
    windows, ledger = cut(tmp_path, make_clips(tmp_path, [1.0]).iloc[:0])
    assert (len(windows), len(ledger)) == (0, 0)


def test_examples_are_the_same_for_a_seed_and_say_whose_they_are(tmp_path):
    clips = make_clips(tmp_path, [5.0] * 4)
    windows, _ = cut(tmp_path, clips)
    first = example_windows(windows, clips, {"tones": tmp_path}, Windowing(), 3, 7, tmp_path)
    again = example_windows(windows, clips, {}, Windowing(), 3, 7, tmp_path)  # kept: no recording is read
    assert first.titles == again.titles
    np.testing.assert_array_equal(first.speech, again.speech)
    assert [len(waveform) for waveform in first.waveforms] == [48_000] * 3
    assert all("gender not known" in title for title in first.titles)
