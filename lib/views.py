"""Altered views of unlabelled speech: another vocal tract and pitch, another room, channel and noise, with what was done to each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import fft
from torch import Tensor
from tqdm import tqdm

from lib.paths import write_whole
from lib.units import PITCH_STRIDE, RATE_HZ, RECEPTIVE, STRIDE, track_pitch, warp_formants

SPEED_RANGE = (0.75, 1.33)  # resampling moves pitch and formants together
FORMANT_RANGE = (0.85, 1.18)  # and the warp of the envelope moves formants alone
SCALE = 32767.0


@dataclass(frozen=True)
class Speech:
    """Every utterance, decoded once: `audio` int16 [copies, samples], copy 0 as recorded and the others with moved formants."""

    audio: np.ndarray
    pitch: np.ndarray  # Hz every 10 ms, 0 where unvoiced; the same for every copy
    rows: pd.DataFrame  # utterance_id, speaker_id, start, samples, pitch_start, pitch_count, factor_<copy>


@dataclass(frozen=True)
class Views:
    """A batch of views, B of them: `noisy` is what the encoder hears, `clean` what the targets are made from."""

    noisy: Tensor  # (B, samples), zero mean and unit variance
    clean: Tensor  # (B, samples), the same
    pitch: Tensor  # (B, T) Hz, 0 where unvoiced
    warp: Tensor  # (B, 2): log of the pitch factor, log of the formant factor


def read_utterances(corpus: Path, split: str = "train") -> pd.DataFrame:
    """List a Kaldi folder `corpus/split` (wav.scp, utt2spk): utterance_id, speaker_id, path. Labels are not read."""
    tables = {}
    for name in ("wav.scp", "utt2spk"):
        lines = (Path(corpus) / split / name).read_text(encoding="utf-8").splitlines()
        tables[name] = dict(line.split(maxsplit=1) for line in lines if line.strip())
    orphans = sorted(set(tables["wav.scp"]) ^ set(tables["utt2spk"]))
    if orphans:
        raise ValueError(f"{corpus}/{split}: wav.scp and utt2spk disagree on {len(orphans)} ids, first {orphans[0]}")
    rows = [
        (key, tables["utt2spk"][key].strip(), str(Path(corpus) / path.strip()))
        for key, path in tables["wav.scp"].items()
    ]
    return pd.DataFrame(rows, columns=["utterance_id", "speaker_id", "path"]).sort_values(
        "utterance_id", ignore_index=True
    )


def read_speech(path: str) -> np.ndarray:
    """Decode a file to mono float32 at 16 kHz, shape (samples,)."""
    import soundfile
    import torchaudio

    waveform, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    if len(waveform) < RECEPTIVE:
        raise ValueError(f"{path}: {len(waveform)} samples are fewer than one frame ({RECEPTIVE})")
    mono = torch.from_numpy(waveform.mean(1))
    return torchaudio.functional.resample(mono, rate_hz, RATE_HZ).numpy()


def prepare_speech(utterances: pd.DataFrame, folder: Path, copies: int, seed: int) -> Speech:
    """Decode, track pitch and warp formants of every utterance once; kept in `folder` and loaded from there next time."""
    names = {key: Path(folder) / f"speech-{key}" for key in ("audio.npy", "pitch.npy", "rows.parquet")}
    if not all(path.exists() for path in names.values()):
        rng = np.random.default_rng(seed)
        parts, pitches, rows, start, pitch_start = [], [], [], 0, 0
        for row in tqdm(utterances.itertuples(), total=len(utterances), desc="prepare speech"):
            waveform = read_speech(row.path)
            waveform = waveform / max(float(np.abs(waveform).max()), 1e-4) * 0.9
            pitch = track_pitch(waveform)
            factors = [1.0, *stratified_factors(copies - 1, rng)]
            warped = [waveform, *(warp_formants(torch.from_numpy(waveform), f).numpy() for f in factors[1:])]
            parts.append(np.stack([np.clip(w, -1, 1) * SCALE for w in warped]).astype(np.int16))
            pitches.append(pitch)
            factor = {f"factor_{i}": value for i, value in enumerate(factors)}
            rows.append(dict(utterance_id=row.utterance_id, speaker_id=row.speaker_id, start=start, samples=len(waveform),
                             pitch_start=pitch_start, pitch_count=len(pitch), **factor))  # fmt: skip
            start, pitch_start = start + len(waveform), pitch_start + len(pitch)
        for key, value in (("audio.npy", np.concatenate(parts, axis=1)), ("pitch.npy", np.concatenate(pitches))):
            with write_whole(names[key]) as partial:
                np.save(partial, value)
        with write_whole(names["rows.parquet"]) as partial:
            pd.DataFrame(rows).to_parquet(partial)
    return Speech(np.load(names["audio.npy"]), np.load(names["pitch.npy"]), pd.read_parquet(names["rows.parquet"]))


def stratified_factors(count: int, rng: np.random.Generator) -> np.ndarray:
    """One formant factor from each of `count` equal parts of the log range, shape (count,)."""
    low, high = np.log(FORMANT_RANGE)
    return np.exp(low + (np.arange(count) + rng.random(count)) / max(count, 1) * (high - low))


def frame_centres(samples: int) -> np.ndarray:
    """Centre, in samples, of each frame of the encoder, shape (T,)."""
    return np.arange((samples - RECEPTIVE) // STRIDE + 1) * STRIDE + RECEPTIVE // 2


def cut_view(
    speech: Speech, row: int, copy: int, speed: float, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Spectrum (samples // 2 + 1,) and pitch (T,) of a cut around a random voiced instant, played at `speed`."""
    entry = speech.rows.iloc[row]
    pitch = speech.pitch[entry.pitch_start : entry.pitch_start + entry.pitch_count]
    voiced = np.flatnonzero(pitch)
    centre = (rng.choice(voiced) if len(voiced) else rng.integers(len(pitch))) * PITCH_STRIDE
    needed = round(samples * speed / PITCH_STRIDE) * PITCH_STRIDE
    begin = int(np.clip(centre - rng.integers(needed), 0, max(0, entry.samples - needed)))
    places = (
        np.arange(begin, begin + needed) % entry.samples if needed > entry.samples else slice(begin, begin + needed)
    )
    cut = speech.audio[copy, entry.start : entry.start + entry.samples][places].astype(np.float32) / SCALE
    spectrum = np.zeros(samples // 2 + 1, dtype=np.complex64)
    kept = min(len(spectrum), needed // 2 + 1)
    spectrum[:kept] = fft.rfft(cut)[:kept]  # resampling by a longer or shorter inverse transform
    spectrum[0] = 0
    spectrum *= 1 / (np.sqrt(2 * np.sum(np.abs(spectrum) ** 2)) / samples + 1e-9)  # unit variance after irfft
    places = ((begin + frame_centres(samples) * speed) % entry.samples / PITCH_STRIDE).astype(int)
    return spectrum, pitch[np.minimum(places, len(pitch) - 1)] * speed


def draw_channel(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Random room, microphone and band as one transfer function, shape (samples // 2 + 1,)."""
    axis_hz = np.linspace(0, RATE_HZ / 2, samples // 2 + 1, dtype=np.float32)
    knots_hz = np.array([0, 150, 300, 600, 1000, 1500, 2200, 3000, 4000, 5500, 8000])
    gains_db = rng.normal(0, rng.uniform(0, 6), len(knots_hz)) + np.linspace(-1, 1, len(knots_hz)) * rng.normal(0, 6)
    response = 10 ** (np.interp(axis_hz, knots_hz, gains_db).astype(np.float32) / 20)
    if rng.random() < 0.5:  # the upper edge of a codec or a telephone
        response = response / (1 + (axis_hz / rng.uniform(3200, 8000)) ** 16)
    if rng.random() < 0.4:  # the lower edge
        response = response / (1 + (rng.uniform(50, 350) / np.maximum(axis_hz, 1)) ** 4)
    if rng.random() < 0.5:  # a room: a direct path and a tail that decays by 60 dB in `decay_s`
        decay_s, length = rng.uniform(0.1, 0.7), RATE_HZ // 2
        tail = rng.standard_normal(length, dtype=np.float32) * 10 ** (-3 * np.arange(length) / RATE_HZ / decay_s)
        tail *= 10 ** (rng.uniform(-20, 0) / 20) / np.sqrt(np.sum(tail**2))
        tail[0] += 1
        response = response * fft.rfft(tail.astype(np.float32), samples)
    return response


def soil(
    spectrum: np.ndarray, other: np.ndarray, samples: int, rng: np.random.Generator, plain: float = 0.25
) -> np.ndarray:
    """Pass a spectrum through a random channel, add noise and now and then another voice; a waveform (samples,).

    A share `plain` of the views stays as it is, because that is how the encoder will be used.
    """
    if rng.random() < plain:
        return fft.irfft(spectrum, samples).astype(np.float32)
    heard = spectrum * draw_channel(samples, rng)
    power = np.sum(np.abs(heard) ** 2)
    if rng.random() < 0.25:
        babble = other * np.sqrt(power / np.sum(np.abs(other) ** 2)) * 10 ** (-rng.uniform(8, 25) / 20)
        heard = heard + babble
    if rng.random() < 0.9:
        noise = rng.standard_normal((2, len(heard)), dtype=np.float32)
        noise = (noise[0] + 1j * noise[1]) * np.maximum(np.arange(len(heard)), 50.0) ** -rng.uniform(0, 1)
        heard = heard + noise * np.sqrt(power / np.sum(np.abs(noise) ** 2)) * 10 ** (-rng.uniform(3, 45) / 20)
    waveform = fft.irfft(heard, samples).astype(np.float32)
    waveform /= waveform.std() + 1e-9
    if rng.random() < 0.1:  # an overdriven recorder
        waveform = np.tanh(waveform * rng.uniform(0.3, 1.5))
    return waveform


def draw_views(
    speech: Speech,
    chosen: np.ndarray,
    rng: np.random.Generator,
    samples: int,
    plain: tuple[float, float, float] = (0.25, 0.25, 0.25),
    still: float = 0.25,
    still_third: float = 0.25,
) -> Views:
    """Three views of each chosen utterance (rows, U of them): two with one warp, one with another; B = 3 U, view-major.

    `plain` is the share of first, second and third views that are not soiled; `still` of first pairs, `still_third` of third views, not warped.
    """
    copies, warps, cuts = len(speech.audio), [], []
    first = draw_warps(len(chosen), copies, rng, still)
    plans = [first, first, draw_warps(len(chosen), copies, rng, still_third)]
    for speeds, picked in plans:
        for row, speed, copy in zip(chosen, speeds, picked):
            cuts.append(cut_view(speech, row, copy, speed, samples, rng))
            factor = speech.rows[f"factor_{copy}"].iloc[row]
            warps.append((np.log(speed), np.log(speed * factor)))
    spectra = np.stack([spectrum for spectrum, _ in cuts])
    noisy = np.stack(
        [soil(spectrum, spectra[i - 1], samples, rng, plain[i // len(chosen)]) for i, spectrum in enumerate(spectra)]
    )
    clean = fft.irfft(spectra, samples, axis=1).astype(np.float32)
    noisy = (noisy - noisy.mean(1, keepdims=True)) / (noisy.std(1, keepdims=True) + 1e-6)
    pitch = np.stack([pitch for _, pitch in cuts]).astype(np.float32)
    return Views(*(torch.from_numpy(np.asarray(value, dtype=np.float32)) for value in (noisy, clean, pitch, warps)))


def draw_warps(count: int, copies: int, rng: np.random.Generator, still: float) -> tuple[np.ndarray, np.ndarray]:
    """Random speeds and formant copies, each (count,); a share `still` keeps the recording's own."""
    kept = rng.random(count) < still
    speeds = np.exp(rng.uniform(*np.log(SPEED_RANGE), count))
    return np.where(kept, 1.0, speeds), np.where(kept, 0, rng.integers(copies, size=count))


def iterate_rows(
    count: int, batch: int, seed: int, first_step: int = 0
) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
    """Yield (rows, generator) for step after step, from `first_step` on: every epoch is a fresh order, every step its own seed."""
    if batch > count:
        raise ValueError(f"a batch of {batch} needs as many utterances, there are {count}")
    per_epoch, step = count // batch, first_step
    while True:
        order = np.random.default_rng([seed, 1, step // per_epoch]).permutation(count)
        for place in range(step % per_epoch, per_epoch):
            yield order[place * batch : (place + 1) * batch], np.random.default_rng([seed, 2, step])
            step += 1
