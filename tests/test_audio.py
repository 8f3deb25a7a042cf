"""Decoding: any format, rate and channel count; what cannot be read says why."""

import numpy as np
import pytest
import soundfile

from lib import audio


def tone(rate_hz, seconds=1.0, hertz=440.0):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_any_rate_and_format_becomes_16_khz_mono(tmp_path, rate_hz, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([tone(rate_hz), tone(rate_hz)], axis=1), rate_hz)
    waveform = audio.read_waveform(path)
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - 16000) <= 2400  # mp3 pads
    peak_hz = np.abs(np.fft.rfft(waveform[:16000])).argmax() * 16000 / min(len(waveform), 16000)
    assert abs(peak_hz - 440) < 5


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE"])
def test_any_bit_depth_gives_the_same_sound(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000, subtype=subtype)
    assert np.abs(audio.read_waveform(tmp_path / "a.wav") - tone(16000)).max() < 0.01


def test_a_cut_is_the_slice_of_the_whole(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 64000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(audio.read_waveform(tmp_path / "a.wav", 1.0, 2.5), noise[16000:40000])


def test_channels_are_averaged(tmp_path):
    soundfile.write(
        tmp_path / "a.wav", np.stack([np.full(100, 0.4), np.full(100, 0.2)], axis=1), 16000, subtype="FLOAT"
    )
    np.testing.assert_allclose(audio.read_waveform(tmp_path / "a.wav"), 0.3, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "told"), [(None, "no such file"), (b"", "empty file"), (b"this is no sound " * 20, "a.wav")]
)
def test_unreadable_file_says_why(tmp_path, content, told):
    if content is not None:
        (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(audio.UnreadableAudio, match=told) as caught:
        audio.read_waveform(tmp_path / "a.wav")
    assert str(tmp_path) not in str(caught.value)


def test_cut_that_starts_after_the_end_is_unreadable(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    with pytest.raises(audio.UnreadableAudio, match="the file ends at 1 s"):
        audio.read_waveform(tmp_path / "a.wav", 5.0, 6.0)


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(100, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(audio.UnreadableAudio, match="not numbers"):
        audio.read_waveform(tmp_path / "a.wav")


def test_aac_decodes_through_ffmpeg(tmp_path):
    import subprocess

    soundfile.write(tmp_path / "a.wav", tone(16000, 2.0), 16000)
    call = [audio.ffmpeg_command(), "-v", "error", "-i", tmp_path / "a.wav", "-c:a", "aac", tmp_path / "a.m4a"]
    subprocess.run(call, check=True)
    assert abs(len(audio.read_waveform(tmp_path / "a.m4a")) - 32000) < 3000
    assert abs(len(audio.read_waveform(tmp_path / "a.m4a", 0.5, 1.5)) - 16000) < 1100


def test_without_ffmpeg_the_message_tells_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "ffmpeg_command", lambda: None)
    (tmp_path / "a.m4a").write_bytes(b"x")
    with pytest.raises(audio.UnreadableAudio, match="pip install imageio-ffmpeg"):
        audio.read_waveform(tmp_path / "a.m4a")


def test_level_of_a_full_scale_square_wave_is_zero_decibel():
    assert audio.level_db(np.ones(100, np.float32)) == pytest.approx(0)
    assert audio.level_db(np.full(100, 0.1, np.float32)) == pytest.approx(-20, abs=1e-4)
    assert audio.level_db(np.zeros(100, np.float32)) == -120


def test_content_hash_tells_sounds_apart_and_ignores_tiny_noise():
    assert audio.content_hash(tone(16000)) == audio.content_hash(tone(16000) + 1e-9)
    assert audio.content_hash(tone(16000)) != audio.content_hash(tone(16000, hertz=441))
