"""espeak-ng, called in-process. It keeps hidden state from one utterance to the next, such as noise: `Synthesizer` loads
a private copy of the library (wheel `espeakng-loader`), so what it says depends on its seed and what it said before."""

import ctypes
import functools
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader
import numpy as np

SYNCHRONOUS, RATE, UTF8, OK = 2, 1, 1, 0  # numbers of espeak-ng's speak_lib.h
MEDIAN_SHARE = 0.63  # where the median F0 of read sentences lies between a variant's two pitch values (measured)
SPREAD_SHARE = 0.38  # SD of F0 in semitones per semitone between the two pitch values (measured)
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """What sets one voice apart; everything else is espeak-ng's adult male default."""

    f0_hz: float  # median F0 while reading, 50 to 400
    f0_sd_st: float = 2.8  # spread of F0 while reading, semitones
    formants: tuple[float, ...] = (1.0,) * 4  # F1 to F4 over the default's, 0.7 to 1.5; above 1: a shorter tract
    tilt_db: float = 0.0  # spectral tilt beside the default's, dB an octave; laid on by `Session.say`
    rate_wpm: int = 170  # words a minute, 80 to 400
    breath: int = 0  # aspiration noise, 0 to about 30
    flutter: int = 2  # slow wavering of F0, 2 = steady
    roughness: int = 2  # 0 to 7: alternate periods differ in size


class Synthesizer:
    """One private copy of espeak-ng; its waveforms have `rate_hz` samples a second."""

    def __init__(self, seed: int = 0) -> None:
        data = _data_folder().name
        self.variant = Path(data, "voices", "!v", "speaker")
        with tempfile.NamedTemporaryFile(suffix=".so") as private:  # a new name: the loader knows libraries by theirs
            shutil.copyfile(espeakng_loader.get_library_path(), private.name)
            self.library = ctypes.CDLL(private.name)
        self.pieces = pieces = []

        def collect(samples, count: int, _events) -> int:
            pieces.append(ctypes.string_at(samples, 2 * count) if samples else b"")
            return 0

        self.callback = CALLBACK(collect)  # the library holds only its address
        self.rate_hz = self.library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), 1 << 15)
        if self.rate_hz <= 0:
            raise RuntimeError(f"espeak-ng did not start with its data in {data} (status {self.rate_hz})")
        weakref.finalize(self, self.library.espeak_Terminate)  # frees its memory
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(seed))

    def say(self, text: str, voice: Voice, language: str = "en") -> np.ndarray:
        """Speak `text`: float32 waveform [samples], full scale 1. ValueError for an unknown language."""
        ratio = 2 ** (voice.f0_sd_st / SPREAD_SHARE / 12)
        low_hz = voice.f0_hz / (1 + MEDIAN_SHARE * (ratio - 1))
        breath = [str(round(voice.breath * share)) for share in (0.2, 1, 1, 0.8, 0.6)]  # of the formants
        lines = ["language variant", "name speaker", f"pitch {low_hz:.0f} {low_hz * ratio:.0f}"]
        scales = [*voice.formants, *voice.formants[3:] * 4]  # F5 to F8 as F4
        lines += [f"formant {number} {100 * scale:.0f} 100 100" for number, scale in enumerate(scales, start=1)]
        lines += [f"flutter {voice.flutter}", f"roughness {voice.roughness}", f"breath {' '.join(breath)}", ""]
        self.variant.write_text("\n".join(lines), encoding="ascii")  # keywords: espeak-ng's docs/voices.md
        if self.library.espeak_SetVoiceByName(f"{language}+speaker".encode()) != OK:
            raise ValueError(f"language {language!r}: espeak-ng has no such voice; use a code such as 'en' or 'de'")
        self.library.espeak_SetParameter(RATE, voice.rate_wpm, 0)
        self.pieces.clear()
        content = text.encode("utf-8")
        self.library.espeak_Synth(content, len(content) + 1, 0, 0, 0, UTF8, None, None)
        return np.frombuffer(b"".join(self.pieces), np.int16).astype(np.float32) / 32768


@functools.cache
def _data_folder() -> tempfile.TemporaryDirectory:
    """espeak-ng's data by links, with a place for voice variants, which it reads nowhere else; one a process."""
    folder = tempfile.TemporaryDirectory(prefix="espeak-")  # goes with the process
    Path(folder.name, "voices", "!v").mkdir(parents=True)
    for entry in Path(espeakng_loader.get_data_path()).iterdir():
        if entry.name != "voices":
            Path(folder.name, entry.name).symlink_to(entry)
    return folder
