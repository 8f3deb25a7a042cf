"""Decoding: any format, rate and channel count, whole or in blocks; what is missing is told, what cannot be read says why."""

import os
import re
import struct
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
import soxr

from lib import audio
from lib.audio import RATE_HZ, Recording, UnreadableAudio, read_waveform


def ffmpeg(*arguments):
    """Run the program ffmpeg, the reference; what it writes to "-"."""
    call = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(call, check=True, capture_output=True).stdout


def tone(rate_hz, seconds=1.0, hertz=440.0):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def noise(seconds, rate_hz, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * rate_hz), channels)).astype(np.float32)


def hear(source, *options):
    """Waveform and warnings of a recording."""
    recording = Recording(source, *options)
    waveform = np.concatenate([*recording, np.zeros(0, np.float32)])
    assert len(waveform) == recording.samples
    return waveform, "; ".join(recording.warnings)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_any_rate_and_format_becomes_16_khz_mono(tmp_path, rate_hz, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([tone(rate_hz), tone(rate_hz)], axis=1), rate_hz)
    waveform, warnings = hear(path)
    assert (waveform.dtype, warnings) == (np.float32, "")
    assert abs(len(waveform) - 16000) <= 400  # FFmpeg leaves the last block of an ogg of one page as long as it is
    gap = np.abs(waveform[200:15600] - tone(RATE_HZ)[200:15600]).max()
    assert gap < (0.05 if suffix in ("mp3", "ogg") else 0.001)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_any_bit_depth_gives_the_samples_that_libsndfile_gives(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", noise(1, RATE_HZ), RATE_HZ, subtype=subtype)
    expected = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    np.testing.assert_array_equal(read_waveform(tmp_path / "a.wav"), expected)


@pytest.mark.parametrize("rate_hz", [4000, 8000, 11025, 11127, 16000, 22050, 44100, 47999, 48000, 96000])
def test_blocks_are_the_whole_to_the_bit(rate_hz, monkeypatch):
    sound = noise(5.3, rate_hz)[:, 0]
    expected = soxr.resample(sound, rate_hz, RATE_HZ)
    for block_s in (0.1, 1.7, 20.0):
        monkeypatch.setattr(audio, "BLOCK_S", block_s)
        waveform, _ = hear(sound, rate_hz)
        np.testing.assert_array_equal(waveform, expected)


@pytest.mark.parametrize("rate_hz", [11127, 47999])
def test_a_rate_without_common_factor_keeps_a_tone_and_its_length(rate_hz):
    waveform, _ = hear(tone(rate_hz, 4), rate_hz)
    assert len(waveform) == 4 * RATE_HZ
    assert np.abs(waveform - tone(RATE_HZ, 4))[200:-200].max() < 0.001


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a", "aac", "opus"])
def test_a_cut_is_the_slice_of_the_whole_in_every_container(tmp_path, suffix):
    soundfile.write(tmp_path / "sound.wav", noise(25, 44100, 2), 44100)
    if suffix != "wav":
        ffmpeg("-i", tmp_path / "sound.wav", tmp_path / f"sound.{suffix}")
    whole = read_waveform(tmp_path / f"sound.{suffix}")
    assert len(whole) == pytest.approx(25 * RATE_HZ, abs=0.06 * RATE_HZ)
    for start_s, end_s in ((1.25, 4.5), (0.0, 0.3), (19.9, 21.0), (24.0, None)):
        cut = read_waveform(tmp_path / f"sound.{suffix}", start_s, end_s)
        np.testing.assert_array_equal(cut, whole[round(start_s * RATE_HZ) : end_s and round(end_s * RATE_HZ)])
    assert audio.duration_s(tmp_path / f"sound.{suffix}") == len(whole) / RATE_HZ


def test_channels_are_averaged_and_an_inverted_one_does_not_cancel_the_voice(tmp_path):
    sound = noise(3, RATE_HZ)[:, 0] * np.repeat(
        np.random.default_rng(1).uniform(0, 1, 150), 320
    )  # loud and soft in turn
    soundfile.write(tmp_path / "a.wav", np.stack([0.8 * sound, 0.4 * sound], axis=1), RATE_HZ, subtype="FLOAT")
    waveform, warnings = hear(tmp_path / "a.wav")
    np.testing.assert_allclose(waveform, 0.6 * sound, atol=1e-6)
    assert warnings == ""
    for suffix in ("wav", "m4a", "mp3"):
        soundfile.write(tmp_path / "b.wav", np.stack([sound, -sound], axis=1), RATE_HZ)
        ffmpeg("-i", tmp_path / "b.wav", tmp_path / f"inverted.{suffix}")
        waveform, warnings = hear(tmp_path / f"inverted.{suffix}")
        assert np.sqrt(np.mean(waveform**2)) == pytest.approx(np.sqrt(np.mean(sound**2)), rel=0.1)
        assert warnings == audio.UPSIDE_DOWN


def test_two_people_in_two_channels_are_told_and_one_silent_channel_is_not(tmp_path):
    first, second = (noise(6, RATE_HZ, seed=seed)[:, 0] for seed in (0, 1))
    turns = np.repeat([1, 0, 0, 1, 1, 0], RATE_HZ)
    together = np.stack([first * turns, second * (1 - turns)], axis=1)
    assert "channels are loud at different times" in hear(together, RATE_HZ)[1]
    assert "channels are loud at different times" in hear(together.T, RATE_HZ, 0.0, 5.0)[1]
    assert hear(np.stack([first * turns, 0.001 * second], axis=1), RATE_HZ)[1] == ""
    assert (
        hear(np.stack([first * turns, np.roll(first * turns, 20)], axis=1), RATE_HZ)[1] == ""
    )  # one voice, two microphones


@pytest.mark.parametrize(
    ("suffix", "options"), [("mp3", ["-q:a", "5"]), ("flac", []), ("wav", []), ("webm", []), ("ogg", [])]
)
def test_a_file_written_into_a_pipe_tells_no_length_and_is_heard_whole(tmp_path, suffix, options):
    soundfile.write(tmp_path / "a.wav", noise(34, 44100), 44100)
    piped = ffmpeg("-i", tmp_path / "a.wav", *options, "-f", suffix, "-")
    (tmp_path / f"pipe.{suffix}").write_bytes(piped)
    waveform, warnings = hear(tmp_path / f"pipe.{suffix}")
    assert len(waveform) / RATE_HZ == pytest.approx(34, abs=0.1)
    assert warnings == ""


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "opus", "flac", "aac", "au", "webm", "ts", "wav"])
def test_joined_files_are_heard_to_their_end(tmp_path, suffix):
    joined = b""
    for number, seconds in enumerate((4, 8)):
        soundfile.write(tmp_path / "a.wav", noise(seconds, 44100, seed=number), 44100)
        ffmpeg("-i", tmp_path / "a.wav", tmp_path / f"{number}.{suffix}")
        joined += (tmp_path / f"{number}.{suffix}").read_bytes()
    (tmp_path / f"joined.{suffix}").write_bytes(joined)
    waveform, warnings = hear(tmp_path / f"joined.{suffix}")
    assert len(waveform) / RATE_HZ == pytest.approx(12, abs=0.15)
    assert "only" not in warnings


def test_rate_and_channels_may_change_where_files_were_joined(tmp_path):
    for suffix, second_s in (("mp3", 2), ("ogg", 0)):
        joined = b""
        for rate_hz, channels in ((44100, 1), (22050, 2)):
            soundfile.write(tmp_path / f"a.{suffix}", noise(2, rate_hz, channels), rate_hz)
            joined += (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"joined.{suffix}").write_bytes(joined)
        waveform, warnings = hear(tmp_path / f"joined.{suffix}")
        assert len(waveform) / RATE_HZ == pytest.approx(2 + second_s, abs=0.15)
        assert ("breaks off" in warnings) == (second_s == 0)  # what FFmpeg cannot do is told


@pytest.mark.parametrize(
    ("written", "told"), [(0, "counts less"), (3 * 88200, "counts less"), (10**9, ""), (2**32 - 1, "")]
)
def test_a_wav_whose_header_lies_is_heard_as_far_as_it_goes(tmp_path, written, told):
    sound = noise(12, 44100)
    soundfile.write(tmp_path / "a.wav", sound, 44100)
    lying = bytearray((tmp_path / "a.wav").read_bytes())
    place = lying.find(b"data") + 4
    lying[place : place + 4] = struct.pack("<I", written)
    (tmp_path / "lying.wav").write_bytes(lying)
    waveform, warnings = hear(tmp_path / "lying.wav")
    np.testing.assert_array_equal(waveform, read_waveform(tmp_path / "a.wav"))
    assert told in warnings
    assert bool(told) == bool(warnings)


def test_chunks_behind_the_sound_of_a_wav_are_not_heard(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(2, RATE_HZ), RATE_HZ)
    sound = read_waveform(tmp_path / "a.wav")
    with open(tmp_path / "a.wav", "ab") as file:
        file.write(b"LIST" + struct.pack("<I", 4000) + b"INFO" + bytes(3996))
    waveform, warnings = hear(tmp_path / "a.wav")
    np.testing.assert_array_equal(waveform, sound)
    assert warnings == ""


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "aiff", "au", "webm", "mka"])
def test_what_is_missing_of_a_file_that_was_cut_off_is_said_in_seconds(tmp_path, suffix):
    soundfile.write(tmp_path / "sound.wav", noise(12, 44100), 44100)
    ffmpeg("-i", tmp_path / "sound.wav", tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) * 4 // 10])
    waveform, warnings = hear(tmp_path / f"cut.{suffix}")
    assert len(waveform) / RATE_HZ == pytest.approx(4.8, abs=0.4)
    told = re.search(r"only ([\d.]+) of the 12.0\d s", warnings)
    assert float(told[1]) == pytest.approx(len(waveform) / RATE_HZ, abs=0.01)
    np.testing.assert_allclose(waveform[:40_000], read_waveform(tmp_path / f"a.{suffix}")[:40_000], atol=1e-4)


def test_an_ogg_without_its_last_page_says_that_it_was_cut_off(tmp_path):
    soundfile.write(tmp_path / "a.ogg", noise(12, 44100), 44100)
    whole = (tmp_path / "a.ogg").read_bytes()
    (tmp_path / "a.ogg").write_bytes(whole[: len(whole) // 2])
    assert "its end is missing" in hear(tmp_path / "a.ogg")[1]


def test_damaged_bytes_in_the_middle_cost_only_themselves(tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(12, 44100), 44100)
    whole = bytearray((tmp_path / "a.flac").read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 4000] = bytes(4000)
    (tmp_path / "a.flac").write_bytes(whole)
    waveform, warnings = hear(tmp_path / "a.flac")
    assert 11 < len(waveform) / RATE_HZ <= 12
    assert warnings.startswith("only 11.9")


def test_samples_in_memory_may_have_their_channels_on_either_axis_and_any_type(tmp_path):
    sound = noise(2, 8000, 2)
    one, two = hear(sound, 8000)[0], hear(sound.T, 8000)[0]
    np.testing.assert_array_equal(one, two)
    assert len(one) == 2 * RATE_HZ
    whole = np.array([[-32768], [0], [16384]], np.int16)
    assert hear(whole, RATE_HZ)[0].tolist() == [-1, 0, 0.5]
    assert hear(np.array([0, 128, 192], np.uint8), RATE_HZ)[0].tolist() == [-1, 0, 0.5]
    for samples, rate_hz in ((np.zeros((2, 3, 4)), 8000), (np.array(["a"]), 8000), (sound, 0), (sound, 8000.5)):
        with pytest.raises(ValueError, match="not a waveform"):
            Recording(samples, rate_hz)


def test_a_cut_beyond_the_end_is_told_and_one_that_begins_there_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(RATE_HZ, 3), RATE_HZ)
    waveform, warnings = hear(tmp_path / "a.wav", None, 1.0, 6.0)
    assert len(waveform) == 2 * RATE_HZ
    assert warnings == "its cut ends at 6 s, the file at 3.00 s"
    with pytest.raises(UnreadableAudio, match=r"a.wav: cut from 5 s, but the file ends at 3 s"):
        read_waveform(tmp_path / "a.wav", 5.0, 6.0)


def make_unreadable(folder):
    """Files that hold no sound, by the words that say so."""
    for name, content in {"empty.wav": b"", "text.mp3": b"this is no sound " * 20, "head.wav": b"RIFF"}.items():
        (folder / name).write_bytes(content)
    soundfile.write(folder / "none.wav", np.zeros(0, np.float32), 8000)
    soundfile.write(folder / "nan.wav", np.full(800, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(folder / "slow.wav", np.zeros(800, np.float32), 10)
    soundfile.write(folder / "a.wav", tone(RATE_HZ, 2), RATE_HZ)
    ffmpeg("-i", folder / "a.wav", folder / "whole.m4a")
    (folder / "cut.m4a").write_bytes((folder / "whole.m4a").read_bytes()[:4000])
    (folder / "picture.mp4").write_bytes(ffmpeg("-f", "lavfi", "-i", "color", "-t", "1", "-f", "matroska", "-"))
    (folder / "list.m3u8").write_text(
        f"#EXTM3U\n#EXTINF:9,\nfile://{folder}/a.wav\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    os.mkfifo(folder / "pipe.wav")
    (folder / "dangling.wav").symlink_to("gone")
    (folder / "circle.wav").symlink_to("circle.wav")
    return {
        "empty.wav": "empty file", "text.mp3": "Invalid data", "head.wav": "no audio", "none.wav": "decodes to no samples",
        "nan.wav": "not numbers", "slow.wav": "10 samples a second", "cut.m4a": "moov atom", "picture.mp4": "no sound in it",
        "list.m3u8": "no audio", "pipe.wav": "a pipe", "dangling.wav": "a link to nothing", "circle.wav": "cannot be read",
        "gone.wav": "no such file", "x" * 300: "name too long", "": "a folder", "nul\0.wav": "cannot be read",
    }  # fmt: skip


def test_unreadable_files_say_why_without_their_folder(tmp_path):
    for name, words in make_unreadable(tmp_path).items():
        with pytest.raises(UnreadableAudio, match=words) as caught:
            read_waveform(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)


def test_a_file_is_known_by_its_bytes_whatever_its_name(tmp_path):
    for name in ("http:x.wav", "-i", "concat:a|b.mp3", "voice.txt", "x.raw", "sound.jpg"):
        soundfile.write(tmp_path / "a.flac", tone(RATE_HZ), RATE_HZ)
        (tmp_path / "a.flac").rename(tmp_path / name)
        assert len(read_waveform(tmp_path / name)) == RATE_HZ
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    soundfile.write(tmp_path / "a.wav", tone(RATE_HZ), RATE_HZ)
    os.rename(tmp_path / "a.wav", bad)
    assert len(read_waveform(bad)) == RATE_HZ
    assert audio.shown_name(bad) == "\\xff.wav"
