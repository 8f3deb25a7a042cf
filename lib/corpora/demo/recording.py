"""From an invented mouth to a file: a session before a microphone, room, noise, device, level, codec."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

from lib.corpora.demo.espeak import Synthesizer
from lib.corpora.demo.speakers import Speaker
from lib.paths import ASSETS, load_json

CLIPS = 2  # clips or cuts of each speaker
BLOCK = 1 << 15  # samples a write: libsndfile's Vorbis encoder crashes on much more
SHARE_SPEAKING = 0.02  # of the peak: quieter than this at both ends is trimmed away
EFFORT_SPREAD_ST = 0.8  # of F0 between utterances of one speaker, semitones
DEVICE_SPREAD_DB = 1.0  # of the tilt that a device lays on, dB an octave: what a spectrum says of it and not of a voice
PAUSE_S = (0.1, 0.4)  # before and after a sentence


class Session:
    """A speaker in a room, before a device; all depends on the speaker's number and the seed alone."""

    def __init__(self, speaker: Speaker, seed: int) -> None:
        self.speaker = speaker
        self.rng = rng = np.random.default_rng([seed, 2, speaker.number])
        self.synthesizer = Synthesizer(seed + speaker.number)
        self.rate_hz = self.synthesizer.rate_hz  # of all waveforms
        self.words = load_json(ASSETS / "sentences.json")[speaker.language]  # who, did, when, and single words
        self.reverb_s, self.wet = rng.uniform(0.12, 0.5), 0.5 * rng.beta(1.5, 5)  # RT60; share of reverberation, 0 to 1
        self.snr_db, self.noise_tilt_db = np.clip(rng.normal(25, 7), 10, 45), rng.uniform(-6, 0)  # dB an octave
        self.band_hz = rng.choice([3400, 5000, 7500, 10_000], p=[0.05, 0.1, 0.3, 0.55])  # upper edge of the device
        self.device_tilt_db = rng.normal(0, DEVICE_SPREAD_DB)
        self.level_db = rng.uniform(-34, -16)  # RMS below full scale

    def write_sentence(self) -> str:
        """A new sentence in the speaker's language."""
        return " ".join(str(self.rng.choice(self.words[part])) for part in ("who", "did", "when"))

    def say(self, text: str) -> np.ndarray:
        """Dry speech [samples] of RMS 1 between two pauses."""
        effort = 2 ** (self.rng.normal(0, EFFORT_SPREAD_ST) / 12)
        voice = replace(self.speaker.voice, f0_hz=float(np.clip(effort * self.speaker.voice.f0_hz, 60, 400)))
        spoken = self.synthesizer.say(text, voice, self.speaker.language)
        spoken = tilt(spoken, self.rate_hz, voice.tilt_db, from_hz=500)
        loud = np.flatnonzero(np.abs(spoken) > SHARE_SPEAKING * np.abs(spoken).max())
        spoken = spoken[loud[0] : loud[-1] + 1]
        return np.pad(spoken / spoken.std(), (self.rng.uniform(*PAUSE_S, 2) * self.rate_hz).astype(int))

    def read_aloud(self, sentence: str, least_s: float) -> np.ndarray:
        """Dry speech [samples]: `sentence`, then new ones until it lasts `least_s` seconds."""
        waveform = self.say(sentence)
        while len(waveform) < least_s * self.rate_hz:
            waveform = np.concatenate([waveform, self.say(self.write_sentence())])
        return waveform

    def make_noise(self, count: int) -> np.ndarray:
        """The room's noise: Gaussian, [count], RMS 1."""
        noise = tilt(self.rng.standard_normal(count, np.float32), self.rate_hz, self.noise_tilt_db, from_hz=50)
        return noise / noise.std()

    def record(self, waveform: np.ndarray) -> np.ndarray:
        """Put a dry waveform [samples] into the room (Polack's: decaying noise) and through the device; same length."""
        time_s = np.arange(int(self.reverb_s * self.rate_hz)) / self.rate_hz
        tail = self.rng.standard_normal(len(time_s), np.float32) * np.exp(-6.9 * time_s / self.reverb_s)
        length = next_fast_len(len(waveform) + len(tail), real=True)
        echo = irfft(rfft(waveform, length) * rfft(np.float32(tail / np.linalg.norm(tail)), length), length)
        sound = (1 - self.wet) * waveform + self.wet * echo[: len(waveform)]
        sound += sound.std() * 10 ** (-self.snr_db / 20) * self.make_noise(len(sound))
        sound = tilt(sound, self.rate_hz, self.device_tilt_db, from_hz=300, band_hz=self.band_hz)
        return np.clip(sound / sound.std() * 10 ** ((self.level_db + self.rng.normal(0, 2)) / 20), -1, 1)


def tilt(waveform: np.ndarray, rate_hz: int, tilt_db: float, from_hz: float, band_hz: float = np.inf) -> np.ndarray:
    """Raise [samples] by `tilt_db` an octave above `from_hz`; above `band_hz` let them fall by 24 dB an octave."""
    length = next_fast_len(len(waveform), real=True)  # a prime length would take seconds
    frequency = rfftfreq(length, 1 / rate_hz)
    gain_db = tilt_db * np.log2(np.maximum(frequency / from_hz, 1.0)) - 10 * np.log10(1 + (frequency / band_hz) ** 8)
    return irfft(rfft(waveform, length) * np.float32(10 ** (gain_db / 20)), length)[: len(waveform)]


def write_audio(path: Path, waveform: np.ndarray, from_hz: int, to_hz: int) -> None:
    """Resample [samples] or [samples, channels] and write them as the path's suffix says; ".opus": Opus in Ogg."""
    waveform = np.clip(soxr.resample(waveform, from_hz, to_hz), -1, 1)
    kind = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", to_hz, 1 if waveform.ndim == 1 else waveform.shape[1], **kind) as file:
        for start in range(0, len(waveform), BLOCK):
            file.write(waveform[start : start + BLOCK])


def write_text(path: Path, lines: list[str]) -> None:
    """Write lines; none = an empty file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
