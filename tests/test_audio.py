import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
import soxr
from checks import refused, write_file

from lib import audio
from lib.audio import RATE_HZ, Recording, UnreadableAudio, read_waveform

PIPED = ["mp3", "flac", "wav", "webm", "aiff", "caf", "w64", "wma", "avi", "flv", "tta"]  # also as a stream
ALSO_JOINED = ["ogg", "opus", "aac", "au", "ts", "m4a", "mov", "wv", "ac3", "mp2", "mka"]


def ffmpeg(*arguments, check=True):
    """Run the program ffmpeg, the reference; the finished process, with what it wrote to "-"."""
    call = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(call, check=check, capture_output=True)


def noise(seconds, rate_hz, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * rate_hz), channels)).astype(np.float32)


def hear(*source):
    """Waveform and warnings of a recording."""
    recording = Recording(*source)
    waveform = np.concatenate([*recording, np.zeros(0, np.float32)])
    assert len(waveform) == recording.samples
    return waveform, "; ".join(recording.warnings)


def make_bytes(folder, suffix, seconds=12, seed=0):
    """So many seconds of noise at 44.1 kHz as the bytes of such a file."""
    soundfile.write(folder / "noise.wav", noise(seconds, 44100, seed=seed), 44100)
    ffmpeg("-i", folder / "noise.wav", folder / f"made.{suffix}")
    return (folder / f"made.{suffix}").read_bytes()


def hear_bytes(folder, suffix, content):
    return hear(write_file(folder / f"heard.{suffix}", content))


@pytest.mark.parametrize("rate_hz", [4000, 8000, 11025, 11127, 16000, 22050, 44100, 47999, 48000, 96000])
def test_blocks_are_the_whole_to_the_bit(rate_hz, monkeypatch):
    sound = noise(5.3, rate_hz)[:, 0]
    expected = soxr.resample(sound, rate_hz, RATE_HZ)
    for block_s in (0.1, 1.7, 20.0):
        monkeypatch.setattr(audio, "BLOCK_S", block_s)
        np.testing.assert_array_equal(hear(sound, rate_hz)[0], expected)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a", "aac", "opus"])
def test_a_cut_is_the_slice_of_the_whole_in_every_container(tmp_path, suffix):
    make_bytes(tmp_path, suffix, 25)
    path = tmp_path / f"made.{suffix}"
    whole = read_waveform(path)
    assert len(whole) == pytest.approx(25 * RATE_HZ, abs=0.06 * RATE_HZ)
    for start_s, end_s in ((1.25, 4.5), (0.0, 0.3), (19.9, 21.0), (24.0, None)):
        cut = read_waveform(path, start_s, end_s)
        np.testing.assert_array_equal(cut, whole[round(start_s * RATE_HZ) : end_s and round(end_s * RATE_HZ)])


def test_channels_are_averaged_and_an_inverted_one_does_not_cancel_the_voice(tmp_path):
    loudness = np.repeat(np.random.default_rng(1).uniform(0, 1, 150), 320)  # loud and soft in turn
    sound = noise(3, RATE_HZ)[:, 0] * loudness
    waveform, warnings = hear(np.stack([0.8 * sound, 0.4 * sound], axis=1), RATE_HZ)
    np.testing.assert_allclose(waveform, 0.6 * sound, atol=1e-6)
    assert warnings == ""
    soundfile.write(tmp_path / "b.wav", np.stack([sound, -sound], axis=1), RATE_HZ)
    for suffix in ("wav", "m4a", "mp3"):
        ffmpeg("-i", tmp_path / "b.wav", tmp_path / f"inverted.{suffix}")
        waveform, warnings = hear(tmp_path / f"inverted.{suffix}")
        assert (np.mean(waveform**2), warnings) == (pytest.approx(sound.var(), rel=0.2), audio.UPSIDE_DOWN)


def test_a_channel_that_is_upside_down_for_a_while_or_after_a_delay_is_turned_and_a_delay_alone_is_not(tmp_path):
    loudness = np.repeat(np.random.default_rng(1).uniform(0, 1, 150), 3200)
    dull = np.convolve(noise(30, RATE_HZ)[:, 0], np.ones(8) / 8, "same")  # most of a voice is below 2 kHz
    sound = dull.astype(np.float32) * loudness
    middle = np.where(np.arange(len(sound)) < 7 * RATE_HZ, 1, -1)  # not where a block of 20 s ends
    for other, least in ((sound * middle, 1.0), (-np.roll(sound, 37), 0.7)):
        waveform, warnings = hear(np.stack([sound, other.astype(np.float32)], axis=1), RATE_HZ)
        assert (waveform.std() >= (least - 0.01) * sound.std(), warnings) == (True, audio.UPSIDE_DOWN)
    for delay in (1, 7, 37, 300):
        assert hear(np.stack([sound, np.roll(sound, delay)], axis=1), RATE_HZ)[1] == ""
    for size in (1, 30):
        assert len(hear(np.stack([sound, -sound], axis=1)[:size], 44100)[0]) <= size


@pytest.mark.parametrize("seed", range(4))
def test_a_second_microphone_in_a_room_is_not_upside_down(seed):
    time_s = np.arange(6 * RATE_HZ) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(110 + 11 * np.sin(4 * time_s)) / RATE_HZ
    voice = sum(np.sin(k * phase) / (8 * k) for k in range(1, 20))  # vowels repeat themselves, half a turn away too
    room = np.random.default_rng(seed).normal(size=4000) * np.exp(-np.arange(4000) / 800)
    room[0] = 3
    heard = np.convolve(voice, room / 20)[: len(voice)]
    assert audio.UPSIDE_DOWN not in hear(np.stack([voice, heard], axis=1).astype(np.float32), RATE_HZ)[1]


def test_two_people_in_two_channels_are_told_and_one_silent_channel_is_not(tmp_path):
    turns = np.repeat([1, 0, 0, 1, 1, 0], RATE_HZ)
    first, second = (noise(6, RATE_HZ, seed=seed)[:, 0] * on for seed, on in enumerate((turns, 1 - turns)))
    together = np.stack([first, second], axis=1)
    for heard in (hear(together, RATE_HZ), hear(together.T, RATE_HZ, 0.0, 5.0)):
        assert "channels are loud at different times" in heard[1]
    for other in (0.001 * second, np.roll(first, 20)):  # silence; one voice in two microphones
        assert hear(np.stack([first, other], axis=1), RATE_HZ)[1] == ""


@pytest.mark.parametrize("form", [*PIPED, "ogg"])
def test_a_file_written_into_a_pipe_tells_no_length_and_is_heard_whole(tmp_path, form):
    soundfile.write(tmp_path / "a.wav", noise(34, 44100), 44100)
    piped = ffmpeg("-i", tmp_path / "a.wav", "-f", form.replace("wma", "asf"), "-").stdout
    waveform, warnings = hear_bytes(tmp_path, form, piped)
    assert (len(waveform) / RATE_HZ, warnings) == (pytest.approx(34, abs=0.1), "")


@pytest.mark.parametrize("suffix", [*PIPED, *ALSO_JOINED])
def test_joined_files_are_heard_to_their_end(tmp_path, suffix):
    first, second = make_bytes(tmp_path, suffix, 4), make_bytes(tmp_path, suffix, 8, seed=1)
    alone = hear_bytes(tmp_path, suffix, second)[0]
    waveform, warnings = hear_bytes(tmp_path, suffix, first + second)
    assert (len(waveform) / RATE_HZ, "only" in warnings) == (pytest.approx(12, abs=0.15), False)
    if audio.JOINED in warnings:  # what follows is heard as if it were alone, and a cut is a slice of the whole
        if suffix in ("wav", "caf", "aiff", "w64", "tta", "wv"):
            np.testing.assert_allclose(waveform[-len(alone) + 400 :], alone[400:], atol=1e-5)
        cut = read_waveform(tmp_path / f"heard.{suffix}", 3, 6)
        np.testing.assert_array_equal(cut, waveform[3 * RATE_HZ : 6 * RATE_HZ])
        told = hear_bytes(tmp_path, suffix, first + second[: len(second) // 2])[1]
        assert audio.LOST in told if suffix in ("m4a", "mov") else told.count("only") == 1


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "aiff"])
def test_rate_and_channels_may_change_where_files_were_joined_and_a_hundred_may_be(tmp_path, suffix):
    assert len(hear_bytes(tmp_path, "wav", 120 * make_bytes(tmp_path, "wav", 0.1))[0]) == 120 * 0.1 * RATE_HZ
    joined = b""
    for rate_hz, channels in ((44100, 1), (22050, 2)):
        soundfile.write(tmp_path / f"a.{suffix}", noise(2, rate_hz, channels), rate_hz)
        joined += (tmp_path / f"a.{suffix}").read_bytes()
    assert len(hear_bytes(tmp_path, suffix, joined)[0]) / RATE_HZ == pytest.approx(4, abs=0.15)


def test_a_wav_whose_header_lies_is_heard_as_far_as_it_goes_and_chunks_behind_its_sound_are_not(tmp_path):
    whole = make_bytes(tmp_path, "wav")
    sound, size = read_waveform(tmp_path / "made.wav"), whole.find(b"data") + 4
    lies = dict.fromkeys([(size, 0), (size, 3 * 88200)], audio.COUNTS_LESS)
    lies |= dict.fromkeys([(size, 10**9), (size, 2**32 - 1)], "")
    lies |= {(4, 0): "", (4, 36): ""}  # of all, as programs write it that cannot go back
    made = {whole[:place] + lie.to_bytes(4, "little") + whole[place + 4 :]: told for (place, lie), told in lies.items()}
    for content, told in (made | {whole + b"LIST" + bytes([160, 15, 0, 0]) + b"INFO" + bytes(3996): ""}).items():
        waveform, warnings = hear_bytes(tmp_path, "wav", content)
        assert (waveform.tobytes(), warnings) == (sound.tobytes(), told)


@pytest.mark.parametrize("suffix", [*PIPED, "au", "mka"])
def test_what_is_missing_of_a_file_that_was_cut_off_is_said_in_seconds(tmp_path, suffix):
    whole = make_bytes(tmp_path, suffix)
    waveform, warnings = hear_bytes(tmp_path, suffix, whole[: len(whole) * 4 // 10])
    assert len(waveform) / RATE_HZ == pytest.approx(4.8, abs=0.7)
    told_s, of_s = map(float, re.search(r"only ([\d.]+) of the ([\d.]+) s", warnings).groups())
    assert told_s == pytest.approx(len(waveform) / RATE_HZ, abs=0.01)
    assert of_s == pytest.approx(12, abs=0.6 if suffix in ("avi", "wma") else 0.05)
    np.testing.assert_allclose(waveform[:40_000], read_waveform(tmp_path / f"made.{suffix}")[:40_000], atol=1e-4)
    if suffix == "flac":  # and bytes that are lost amid it
        waveform, warnings = hear_bytes(tmp_path, "flac", whole[:300_000] + bytes(4000) + whole[304_000:])
        assert (11 < len(waveform) / RATE_HZ <= 12, "only 11.9" in warnings) == (True, True)


@pytest.mark.parametrize("suffix", ["ogg", "opus", "ac3", "mp2", "aac", "ts"])
def test_an_end_that_is_missing_is_told_where_nothing_tells_the_length(tmp_path, suffix):
    whole = make_bytes(tmp_path, suffix)
    assert hear_bytes(tmp_path, suffix, whole)[1] == ""
    assert audio.NO_END in hear_bytes(tmp_path, suffix, whole[: len(whole) * 4 // 10 - 57])[1]
    if suffix in ("mp2", "aac"):  # which may bear a tag
        assert audio.NO_END not in hear_bytes(tmp_path, suffix, whole + b"TAG" + bytes(125))[1]


def test_whole_files_that_end_in_pictures_are_no_cut_or_joined_ones(tmp_path):
    make_bytes(tmp_path, "wav", 2)
    film = ["-f", "lavfi", "-i", "testsrc2=size=64x48:duration=6", "-i", tmp_path / "made.wav"]
    for form, codecs in {"ogg": ["libtheora", "libvorbis"], "mxf": ["mpeg2video", "pcm_s16le", "-ar", "48000"]}.items():
        ffmpeg(*film, "-c:v", codecs[0], "-c:a", *codecs[1:], "-f", form, tmp_path / "film")
        assert hear_bytes(tmp_path, form, (tmp_path / "film").read_bytes())[1] == ""


def test_samples_in_memory_may_have_their_channels_on_either_axis_and_any_type(tmp_path):
    sound = noise(2, 8000, 2)
    one, two = hear(sound, 8000)[0], hear(sound.T, 8000)[0]
    assert (len(one), one.tobytes()) == (2 * RATE_HZ, two.tobytes())
    for whole in (np.array([[-32768], [0], [16384]], np.int16), np.array([0, 128, 192], np.uint8)):
        assert hear(whole, RATE_HZ)[0].tolist() == [-1, 0, 0.5]
    for samples, rate_hz in ((np.zeros((2, 3, 4)), 8000), (np.array(["a"]), 8000), (sound, 0), (sound, 8000.5)):
        refused("not a waveform", Recording, samples, rate_hz)


def test_a_cut_beyond_the_end_is_told_and_one_that_begins_there_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(3, RATE_HZ), RATE_HZ)
    waveform, warnings = hear(tmp_path / "a.wav", None, 1.0, 6.0)
    assert (len(waveform), warnings) == (2 * RATE_HZ, "its cut ends at 6 s, the file at 3.00 s")
    (tmp_path / "broken.flac").write_bytes(make_bytes(tmp_path, "flac")[:400_000])
    assert len(read_waveform(tmp_path / "broken.flac", 2.0, 3.0)) == RATE_HZ
    for name, start_s, told in (("a.wav", 5, " 3 s"), ("broken.flac", 10, "")):  # which was of 12 s
        told = rf"{name}: cut from {start_s} s, but the file ends at{told}"
        refused(told, read_waveform, tmp_path / name, start_s, start_s + 1, error=UnreadableAudio)


def test_what_is_no_file_or_too_slow_says_why_without_its_folder(tmp_path):
    soundfile.write(tmp_path / "slow.wav", np.zeros(800, np.float32), 10)
    told = {"slow.wav": "10 samples a second", "gone.wav": "no such file", "nul\0.wav": "cannot be read"}
    for name, words in (told | {"x" * 300: "name too long", "": "a folder"}).items():
        assert str(tmp_path) not in refused(words, read_waveform, tmp_path / name, error=UnreadableAudio)
