"""Other people's files, more than 300, made here, through 02's cutting and through prediction: each is used or in the ledger; both
hear, refuse and warn alike; what decodes is what ffmpeg decodes."""

import contextlib
import os
import re
import signal
import struct
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
from model_fixture import make_model_folder
from test_audio import ffmpeg
from test_windows import cut, make_speech

from lib.audio import RATE_HZ, read_waveform
from lib.corpora.own_data import list_recordings
from lib.predict import predict_listed
from lib.windows import as_stored, open_windows

SOUND_S = 3.5
LIMIT_S = 600  # on a busy machine; a minute on two free cores
JOINABLE = ["aiff", "asf", "avi", "caf", "flv", "m4a", "mka", "mov", "mp2", "ac3", "opus", "tta", "ts", "w64", "wv"]
JOINABLE += ["wma", "aac"]
CODECS = [*JOINABLE, "adts", "amr", "mp3", "mp4", "oga", "webm"]
UNTOLD = ("mka", "ts")  # a cut in the second part, which Matroska does not tell, and MPEG-TS not always
RATES_HZ = [4000, 8000, 11025, 12000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000, 176400, 192000]
FIXED_HZ = {"VOC-PCM_U8": 16129, "WVE-ALAW": 8000, "XI-DPCM_16": 44100, "XI-DPCM_8": 44100}  # whatever is asked
MISTAKEN = ("AU-G7", "WAV-G7", "WAV-NMS", "CAF-ALAC")  # ffmpeg takes them for something else; libsndfile wrote them
NAMES = ["-dash", "http:x", "a|b;c&d", "<script>", "new\nline", "  blanks  ", "100%25", "'quotes\"", "日本語"]
NAMES += ["x" * 240, "$(rm x)", *(unicodedata.normalize(form, "Ärger") for form in ("NFC", "NFD"))]
WRONG_SUFFIXES = ["no suffix", "a.txt", "b.png", "c.raw", "d.gsm", "e.mp3", "f.wav", "g.m4a", "h.ogg", "i.csv.bak"]
SILENT = {"empty.wav": b"", "text.wav": b"no sound at all\n" * 500, "page.mp3": b"<html><body>404</body></html>"}
SILENT |= {"head.wav": b"RIFF\x24\0\0\0WAVE", "zeros.mp3": bytes(100_000), "id3.mp3": b"ID3\4" + bytes(9)}
SILENT |= {"random.bin": np.random.default_rng(0).bytes(100_000), "zip.zip": b"PK\3\4" + bytes(range(256)) * 20}
SILENT |= {"list.m3u8": b"#EXTM3U\n#EXTINF:9,\nvoice.wav\n", "list.txt": b"ffconcat version 1.0\nfile voice.wav\n"}
SILENT |= {"pointer.wav": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"}
TOLD = {  # of files that are left out
    "empty.wav": "empty file (0 bytes)", "text.wav": "Invalid data", "head.wav": "no audio that can be decoded",
    "no-sample.wav": "decodes to no samples", "nan.wav": "not numbers", "infinite.wav": "not numbers",
    "tenth-1.m4a": "moov atom", "silent-film.mp4": "no sound in it", "list.m3u8": "no audio", "pipe.wav": "a pipe",
    "to nothing.wav": "a link to nothing", "to itself.wav": "cannot be read",
}  # fmt: skip


@dataclass(frozen=True)
class Animal:
    """What is known of a file: its fate, its rate and channels, and how often the sound is in it (None = not compared)."""

    fate: str = "used"  # or "warned": used, and what is missing is told; or "left out", or "either"
    rate_hz: int = RATE_HZ  # 0 = not that of the sound
    channels: int = 1
    share: float | None = 1.0


EITHER, LEFT_OUT = Animal("either", share=None), Animal("left out", share=None)
speak = cache(make_speech)


def make_voice(rate_hz, channels=1):
    """A synthetic voice, and silence to its end, alike in all channels but for its level: [n, channels]."""
    sound = soxr.resample(speak(0.4), RATE_HZ, rate_hz)[: round(SOUND_S * rate_hz)]
    return sound[:, None] * np.linspace(1, 0.5, channels, dtype=np.float32)


def write_formats(folder, animals):
    """Every container and subtype that libsndfile writes, and those that ffmpeg writes by a suffix."""
    for form in set(soundfile.available_formats()) - {"RAW", "SD2"}:
        for subtype in soundfile.available_subtypes(form):
            name, rate_hz = f"{form}-{subtype}.{form.lower()}", 48000 if subtype == "OPUS" else RATE_HZ
            try:
                soundfile.write(folder / name, make_voice(rate_hz), rate_hz, subtype, format=form)
            except soundfile.LibsndfileError:
                (folder / name).unlink(missing_ok=True)  # libsndfile reads it at most
                continue
            unsure = "DWVW" in name or form == "XI"  # libsndfile cannot read the one, the other is short at its rate
            fixed_hz = FIXED_HZ.get(f"{form}-{subtype}")
            animals[name] = EITHER if unsure else Animal("used", fixed_hz or rate_hz, share=None if fixed_hz else 1.0)
    soundfile.write(folder / "voice.wav", make_voice(44100), 44100)
    animals["voice.wav"] = Animal(rate_hz=44100)
    for suffix in CODECS:
        options = ["-i", folder / "voice.wav", *["-ar", 8000] * (suffix == "amr"), folder / f"codec.{suffix}"]
        if ffmpeg(*options, check=False).returncode == 0:
            animals[f"codec.{suffix}"] = Animal(rate_hz=0)
    video = ["-f", "lavfi", "-i", "color=s=32x32:d=3", "-i", folder / "voice.wav"]
    ffmpeg(*video, "-map", 0, "-map", 1, folder / "film.mkv")
    ffmpeg(*video, "-map", 0, folder / "silent-film.mp4")
    animals |= {"film.mkv": Animal(rate_hz=0), "silent-film.mp4": LEFT_OUT}


def write_shapes(folder, animals):
    """Rates from 4 to 192 kHz, one to eight channels, sounds that are too short, too loud, or no numbers."""
    shapes = [(f"rate-{rate_hz}.{suffix}", rate_hz, 1) for rate_hz in RATES_HZ for suffix in ("wav", "flac")]
    shapes += [(f"channels-{n}.{suffix}", 44100, n) for n in range(1, 9) for suffix in ("wav", "flac", "ogg", "aiff")]
    for name, *shape in shapes:
        soundfile.write(folder / name, make_voice(*shape), shape[0])
        animals[name] = Animal("used", *shape)
    voice = make_voice(RATE_HZ)
    broken = {"nan": voice + np.nan, "infinite": voice + np.inf, "no-sample": voice[:0]}
    broken |= {"one-sample": voice[:1], "half-a-second": voice[:8000], "two-seconds": voice[:32000]}
    strange = {"clipped": np.clip(3 * voice, -1, 1), "too-loud": 32768 * voice}
    for name, sound in (broken | strange | {"silent": 0 * voice, "steady": 0 * voice + 0.5}).items():
        soundfile.write(folder / f"{name}.wav", sound, RATE_HZ, subtype="FLOAT")
        animals[f"{name}.wav"] = LEFT_OUT if name in broken else Animal(share=1.0 if name in strange else None)


def write_wounds(folder, animals):
    """Files that end at each tenth, that were joined, or whose header lies."""
    for suffix in ("wav", "flac", "mp3", "ogg", "m4a", "aiff"):
        name = f"codec.{suffix}" if suffix in ("mp3", "m4a") else f"channels-1.{suffix}"
        whole = (folder / name).read_bytes()
        for tenth in range(1, 10):
            (folder / f"tenth-{tenth}.{suffix}").write_bytes(whole[: len(whole) * tenth // 10])
            animals[f"tenth-{tenth}.{suffix}"] = EITHER
        if suffix not in ("m4a", "aiff"):
            (folder / f"joined.{suffix}").write_bytes(whole + whole)
            animals[f"joined.{suffix}"] = Animal(rate_hz=44100 * (suffix != "wav"), share=2.0)
    for suffix in JOINABLE:
        twice = 2 * (folder / f"codec.{suffix}").read_bytes()
        (folder / f"joined.{suffix}").write_bytes(twice)
        (folder / f"cut.{suffix}").write_bytes(twice[: len(twice) * 8 // 10 - 57])
        animals[f"joined.{suffix}"] = Animal(rate_hz=0, share=2.0)
        animals[f"cut.{suffix}"] = EITHER if suffix in UNTOLD else Animal("warned", rate_hz=0, share=None)
    whole = (folder / "voice.wav").read_bytes()
    for size in (0, 1, 100_000, 10**9, 2**31 - 1, 2**32 - 1):
        (folder / f"lie-{size}.wav").write_bytes(whole[:40] + struct.pack("<I", size) + whole[44:])
        animals[f"lie-{size}.wav"] = Animal(rate_hz=0)
    for place, value in ((24, 1), (24, 0), (22, 0), (22, 60_000), (34, 7), (4, 0)):  # rate, channels, bits, file size
        (folder / f"lie-{place}-{value}.wav").write_bytes(whole[:place] + struct.pack("<H", value) + whole[place + 2 :])
        animals[f"lie-{place}-{value}.wav"] = EITHER


def write_names(folder, animals):
    for name in [*(f"{name}.flac" for name in NAMES), *WRONG_SUFFIXES]:
        (folder / name).write_bytes((folder / "channels-1.flac").read_bytes())
        animals[name] = Animal(rate_hz=44100)
    for name, target in {"to a file": "voice.wav", "to nothing.wav": "gone", "to itself.wav": "to itself.wav"}.items():
        (folder / name).symlink_to(target)
        animals[name] = Animal(rate_hz=44100) if name == "to a file" else LEFT_OUT
    os.mkfifo(folder / "pipe.wav")
    for name, content in SILENT.items():
        (folder / name).write_bytes(content)
    animals |= dict.fromkeys([*SILENT, "pipe.wav"], LEFT_OUT)  # a pipe that was opened would wait for ever


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Folder of all files, and what is known of each by its name."""
    folder, animals = tmp_path_factory.mktemp("zoo"), {}
    for write in (write_formats, write_shapes, write_wounds, write_names):
        write(folder, animals)
    assert (len(animals) > 300, set(animals)) == (True, set(os.listdir(folder)))
    return folder, animals


@pytest.fixture(scope="module")
def fates(zoo, tmp_path_factory):
    """What became of the files: windows, ledger and sounds of the cutting, and predictions by name."""
    folder, animals = zoo
    ids = [f"zoo:{name}" for name in animals]
    clips = {"clip_id": ids, "speaker_id": ids, "path": [*animals], "corpus": "zoo", "start_s": 0.0, "end_s": np.nan}
    made = tmp_path_factory.mktemp("made")
    model = make_model_folder(made / "model", tasks=("gender",))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"still at work after {LIMIT_S} s"))
    signal.alarm(LIMIT_S)
    with contextlib.chdir(folder):  # where a list of files would find others
        windows, ledger = cut(made, pd.DataFrame(clips), {"zoo": folder})
        predictions = predict_listed(list_recordings(folder), model, progress=False)
    signal.alarm(0)
    for table, column in ((ledger, "item"), (windows, "clip_id")):
        table["name"] = table[column].str.removeprefix("zoo:")
    return windows, ledger, open_windows(made / "stage"), {prediction.name: prediction for prediction in predictions}


def test_every_file_is_used_or_stands_in_the_ledger_with_a_reason(zoo, fates):
    (folder, animals), (windows, ledger, _, _) = zoo, fates
    used, left_out = {*windows["name"]}, ledger.loc[ledger["reason"] != "used with a warning", "name"]
    assert set(ledger["reason"]) == {"cannot be decoded", "shorter than a window", "used with a warning"}
    assert not (ledger["detail"].eq("") | ledger["detail"].str.contains(str(folder), regex=False)).any()
    details = dict(zip(ledger["name"], ledger["detail"]))
    assert {name: words for name, words in TOLD.items() if words not in details[name]} == {}
    told = {"files": len(animals), "used, nothing to mind": len(animals) - len(ledger)}
    print("", *(told | ledger["reason"].value_counts().to_dict()).items(), sep="\n")
    assert used.isdisjoint(left_out)
    assert len(used) + len(left_out) == len(animals)
    for name, animal in animals.items():
        fate = "used" if name in used else "left out"
        assert animal.fate in ("either", fate) or (animal.fate, fate) == ("warned", "used"), name
        if animal.fate == "warned":
            assert re.search("only|its end is missing|damaged|which cannot be decoded", details[name]), name


def test_prediction_hears_refuses_and_warns_as_training_does(zoo, fates):
    windows, ledger, _, predictions = fates
    assert set(predictions) == set(zoo[1])
    details, counts = dict(zip(ledger["name"], ledger["detail"])), windows["name"].value_counts()
    lost = {name: details[name] for name in ledger.loc[ledger["reason"] == "cannot be decoded", "name"]}
    assert {name: one.reason for name, one in predictions.items() if one.state == "unreadable"} == lost
    heard = {name: (len(predictions[name].windows), predictions[name].warning) for name in counts.index}
    assert heard == {name: (count, details.get(name, "")) for name, count in counts.items()}
    assert Counter(one.state for one in predictions.values())["ok"] > 200 > 4 * len(lost)


def test_what_decodes_is_the_sound_that_was_written_and_ffmpegs_to_the_sample(zoo, fates):
    (folder, animals), (windows, _, sounds, _) = zoo, fates
    voice, rows = make_voice(RATE_HZ)[:, 0], windows.drop_duplicates("name").set_index("name")["row"]

    def compare(name):
        animal, waveform = animals[name], read_waveform(folder / name)
        np.testing.assert_array_equal(sounds[rows[name]], as_stored(waveform[:48_000]))
        if animal.share:
            first = 1000
            if not animal.rate_hz:  # codecs put some before
                first = np.correlate(waveform[:42_000], voice[1000:40_000]).argmax()
            assert np.corrcoef(waveform[first : first + 39_000], voice[1000:40_000])[0, 1] > 0.85, name
            assert len(waveform) / RATE_HZ == pytest.approx(animal.share * SOUND_S, abs=0.12), name
        if not animal.rate_hz or animal.fate == "either":
            return 0
        if name.startswith(MISTAKEN):
            reference = soundfile.read(folder / name, dtype="float32")[0]
        else:
            heard = ffmpeg("-i", f"file:{folder / name}", "-f", "f32le", "-", check=False).stdout
            reference = np.frombuffer(heard[: len(heard) // 4 * 4], "<f4").reshape(-1, animal.channels).mean(axis=1)
        if not len(reference):  # ffmpeg knows no such form
            return 0
        reference = soxr.resample(reference, animal.rate_hz, RATE_HZ)
        common = min(len(reference), len(waveform)) - 400  # the program ends some a frame earlier
        assert common > 40_000, name
        assert np.abs(reference[:common] - waveform[:common]).max() < 1e-4 * max(1, np.abs(reference).max()), name
        return 1

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(compare, rows.index)) > 150
