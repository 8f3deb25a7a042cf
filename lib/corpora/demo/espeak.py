"""espeak-ng, called in-process: text and a voice in, samples out.

The library comes from the wheel `espeakng-loader`. It keeps hidden state from one utterance to the next (flutter phase,
noise, echo), so the same text does not give the same samples twice. A `Synthesizer` therefore loads a private copy of
the library: what it says depends only on its seed and on what it said before.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARED_DATA = ["phondata", "phonindex", "phontab", "intonations"]
AUDIO_OUTPUT_SYNCHRONOUS = 2  # this and the next three: numbers of espeak-ng's speak_lib.h
PARAMETER_RATE = 1
CHARS_UTF8 = 1
STATUS_OK = 0
MEDIAN_SHARE = 0.63  # where the median F0 of read sentences lies between a variant's two pitch values (measured)
SPREAD_SHARE = 0.38  # SD of F0 in semitones per semitone between the two pitch values (measured)
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """What a voice variant can set; everything else is espeak-ng's adult male default."""

    f0_hz: float  # median F0 while reading
    f0_sd_st: float = 2.8  # spread of F0 while reading, semitones
    tract_scale: float = 1.0  # formant frequencies over those of the default male; above 1 = a shorter vocal tract
    formant_offsets: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # personal factors of F1 to F4
    rate_wpm: int = 170  # words a minute, 80 to 400
    breath: int = 0  # aspiration noise, 0 to about 30
    flutter: int = 2  # slow wavering of F0, 2 = steady
    roughness: int = 2  # 0 to 7: alternate periods differ in size
    voicing: int = 100  # per cent; less = weaker voice source against the noise


def format_variant(voice: Voice) -> str:
    """Text of the espeak-ng voice variant file for `voice`.

    Source of the keywords: espeak-ng's docs/voices.md. Raises ValueError when a value lies beyond what espeak-ng renders.
    """
    if not 50 <= voice.f0_hz <= 400:
        raise ValueError(f"f0_hz={voice.f0_hz}: espeak-ng renders 50 to 400 Hz; choose a value between them")
    if not 0.7 <= voice.tract_scale <= 1.5:
        raise ValueError(f"tract_scale={voice.tract_scale}: choose a value between 0.7 and 1.5")
    ratio = 2 ** (voice.f0_sd_st / SPREAD_SHARE / 12)
    low_hz = voice.f0_hz / (1 + MEDIAN_SHARE * (ratio - 1))
    factors = [1.0, *voice.formant_offsets, 1.0, 1.0, 1.0, 1.0]
    formants = [f"formant {k} {100 * voice.tract_scale * factor:.0f} 100 100" for k, factor in enumerate(factors)]
    lines = ["language variant", "name speaker", f"pitch {low_hz:.0f} {low_hz * ratio:.0f}", *formants]
    lines += [f"flutter {voice.flutter}", f"roughness {voice.roughness}", f"voicing {voice.voicing}"]
    if voice.breath:
        lines.append("breath " + " ".join(str(round(voice.breath * share)) for share in (0.2, 1, 1, 0.8, 0.6)))
    return "\n".join(lines) + "\n"


class Synthesizer:
    """One private copy of espeak-ng. Use it through `open_synthesizer`."""

    def __init__(self, folder: Path, languages: list[str], seed: int) -> None:
        import espeakng_loader

        self.data = _copy_data(Path(espeakng_loader.get_data_path()), folder / "espeak-ng-data", languages)
        private = folder / Path(espeakng_loader.get_library_path()).name
        shutil.copyfile(espeakng_loader.get_library_path(), private)
        self.library = ctypes.CDLL(str(private))
        self.pieces: list[bytes] = []
        self.callback = CALLBACK(self._collect)  # kept: the library holds only its address
        self.rate_hz = self.library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, str(self.data).encode(), 1 << 15)
        if self.rate_hz <= 0:
            raise RuntimeError(f"espeak-ng did not start with its data in {self.data} (status {self.rate_hz})")
        self.library.espeak_SetSynthCallback(self.callback)
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(seed))

    def _collect(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self.pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, text: str, voice: Voice, language: str = "en") -> np.ndarray:
        """Speak `text`: float32 waveform [samples] at `rate_hz`, full scale 1. ValueError for an unknown language."""
        (self.data / "voices" / "!v" / "speaker").write_text(format_variant(voice), encoding="ascii")
        if self.library.espeak_SetVoiceByName(f"{language}+speaker".encode()) != STATUS_OK:
            raise ValueError(f"language {language!r}: espeak-ng has no such voice; open the synthesizer with it")
        self.library.espeak_SetParameter(PARAMETER_RATE, int(voice.rate_wpm), 0)
        self.pieces.clear()
        content = text.encode("utf-8")
        status = self.library.espeak_Synth(content, len(content) + 1, 0, 0, 0, CHARS_UTF8, None, None)
        if status != STATUS_OK or not self.pieces:
            raise ValueError(f"espeak-ng said nothing for {text!r} in {language!r} (status {status})")
        return np.frombuffer(b"".join(self.pieces), np.int16).astype(np.float32) / 32768

    def close(self) -> None:
        """Free the library's own memory."""
        self.library.espeak_Terminate()


@contextlib.contextmanager
def open_synthesizer(languages: list[str], seed: int = 0) -> Iterator[Synthesizer]:
    """Yield a `Synthesizer` for these languages (espeak-ng codes such as "en", "de"); takes about 2 ms."""
    with tempfile.TemporaryDirectory(prefix="espeak-") as name:
        synthesizer = Synthesizer(Path(name), languages, seed)
        try:
            yield synthesizer
        finally:
            synthesizer.close()


def _copy_data(source: Path, target: Path, languages: list[str]) -> Path:
    """Copy the few data files that these languages need beside a writable folder for voice variants."""
    (target / "voices" / "!v").mkdir(parents=True)
    (target / "lang").mkdir()
    for name in SHARED_DATA:
        shutil.copyfile(source / name, target / name)
    for language in sorted({*languages, "en"}):  # English is read for foreign words
        dictionary = source / f"{language.split('-')[0]}_dict"
        found = sorted((source / "lang").rglob(language))
        if not dictionary.exists() or not found:
            raise ValueError(
                f"language {language!r}: espeak-ng ships no such language; use a code such as 'en' or 'de'"
            )
        shutil.copyfile(dictionary, target / dictionary.name)
        shutil.copyfile(found[0], target / "lang" / language)
    return target
