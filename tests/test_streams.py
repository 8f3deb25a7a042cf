import sys

import numpy as np
import pytest
import soundfile

from lib.audio import RATE_HZ, UnreadableAudio, read_waveform, resample
from lib.streams import WindowStream, array_blocks, resample_blocks, stream_waveform
from lib.windows import Windowing, window_starts


def make_sound(seconds, rate_hz, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, (round(seconds * rate_hz), channels)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 11127, 16000, 22050, 32000, 44100, 47999, 48000, 96000])
def test_blocks_resampled_one_by_one_equal_the_whole(rate_hz):
    sound = make_sound(5.3, rate_hz)[:, 0]
    for step in (rate_hz // 7, rate_hz + 13):
        blocks = (sound[first : first + step] for first in range(0, len(sound), step))
        streamed = np.concatenate(list(resample_blocks(blocks, rate_hz)))
        np.testing.assert_allclose(streamed, resample(sound, rate_hz), atol=1e-6)


@pytest.mark.parametrize("rate_hz", [11127, 47999])
def test_a_rate_without_common_factor_keeps_a_tone_and_its_length(rate_hz):
    times_s = np.arange(4 * rate_hz) / rate_hz
    found = resample(np.sin(2 * np.pi * 440 * times_s).astype(np.float32), rate_hz)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(found)) / RATE_HZ)
    assert len(found) == 4 * RATE_HZ
    assert np.abs(found - expected)[200:-200].max() < 0.01


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate_hz", [16000, 44100])
def test_a_streamed_file_equals_the_file_read_at_once(tmp_path, suffix, rate_hz):
    path = tmp_path / f"sound.{suffix}"
    soundfile.write(path, make_sound(7.1, rate_hz, 2), rate_hz)
    np.testing.assert_allclose(np.concatenate(list(stream_waveform(path, block_s=0.9))), read_waveform(path), atol=1e-6)
    cut = np.concatenate(list(stream_waveform(path, 1.25, 4.5, block_s=0.9)))
    np.testing.assert_allclose(cut, read_waveform(path, 1.25, 4.5), atol=1e-6)


def test_an_array_may_have_its_channels_on_either_axis():
    sound = make_sound(2, 8000, 2)
    one, two = (np.concatenate(list(array_blocks(each, 8000))) for each in (sound, sound.T))
    np.testing.assert_array_equal(one, two)
    assert len(one) == 2 * RATE_HZ


@pytest.mark.parametrize("seconds", [0.0, 0.99, 1.0, 2.5, 3.0, 4.99, 5.0, 9.3])
@pytest.mark.parametrize("windowing", [Windowing(), Windowing(1.0, 2.5), Windowing(3.0, 0.5)])
def test_windows_of_a_stream_start_where_windows_of_the_whole_do(seconds, windowing):
    sound = make_sound(seconds, RATE_HZ)[:, 0]
    blocks = [sound[first : first + 7000] for first in range(0, len(sound), 7000)]
    stream = WindowStream(blocks, windowing)
    found = list(stream)
    assert stream.samples == len(sound)
    assert [start for start, _ in found] == window_starts(len(sound), stream.windowing)
    for start, piece in found:
        np.testing.assert_array_equal(piece, sound[start : start + windowing.samples])


def test_bad_files_say_what_is_wrong_with_them(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("no sound in here")
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 8000)
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "late.wav", make_sound(1, 8000), 8000)
    for name, words, span in [
        ("empty.wav", "0 bytes", ()), ("text.mp3", "text.mp3", ()), ("none.wav", "none.wav", ()),
        ("nan.wav", "not numbers", ()), ("late.wav", "the file ends at 1 s", (2.0,)), ("gone.wav", "no such file", ()),
    ]:  # fmt: skip
        with pytest.raises(UnreadableAudio, match=words):
            list(stream_waveform(tmp_path / name, *span))


def test_a_video_container_is_streamed_through_ffmpeg(tmp_path):
    import subprocess

    from lib.audio import ffmpeg_command

    if ffmpeg_command() is None:
        pytest.skip("ffmpeg is not installed")
    soundfile.write(tmp_path / "sound.wav", make_sound(3, 44100), 44100)
    call = [ffmpeg_command(), "-v", "error", "-i", str(tmp_path / "sound.wav"), str(tmp_path / "sound.m4a")]
    subprocess.run(call, check=True)
    streamed = np.concatenate(list(stream_waveform(tmp_path / "sound.m4a", block_s=0.7)))
    np.testing.assert_array_equal(streamed, read_waveform(tmp_path / "sound.m4a"))


def test_a_damaged_container_ends_with_a_reason_however_much_ffmpeg_complains(tmp_path, monkeypatch):
    from lib import streams

    program = f"import os, sys; os.write(2, b'no frame\\n' * 100_000); sys.stdout.buffer.write(bytes({4 * RATE_HZ})); sys.exit(69)"
    talker = tmp_path / "ffmpeg"
    talker.write_text(f"#!{sys.executable}\n{program}\n", encoding="utf-8")
    talker.chmod(0o755)
    monkeypatch.setattr(streams, "ffmpeg_command", lambda: str(talker))
    (tmp_path / "damaged.aac").write_bytes(b"damaged")
    blocks = stream_waveform(tmp_path / "damaged.aac")
    assert len(next(blocks)) == RATE_HZ  # a full pipe of complaints would wait here for ever
    with pytest.raises(UnreadableAudio, match=r"damaged.aac: breaks off soon after 1 s"):
        next(blocks)
