"""Invented speakers: pitch, vocal tract and manner drawn by age and sex from what has been published about people.

Nothing here is a real person. The knots below are rounded from the literature named beside them; the spreads are
wider than within any one study, since sessions, effort and languages differ in a corpus, so the groups overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lib.corpora.demo.espeak import Voice

# Median F0 in Hz by age in years. Adults: Traunmüller & Eriksson (1995, The frequency range of the voice fundamental in
# the speech of male and female adults): about 120 Hz for men, 210 Hz for women, men rising again after about 55, women
# falling with age. Teens: Lee, Potamianos & Narayanan (1999, JASA 105, 1455-1468): boys fall steeply from 12 to 15.
F0_HZ = {
    "male": {12: 222, 13: 196, 14: 163, 15: 138, 17: 127, 20: 121, 35: 116, 55: 116, 70: 128, 85: 140},
    "female": {12: 236, 14: 228, 17: 219, 20: 212, 35: 203, 50: 190, 65: 180, 85: 175},
}
# Formant frequencies over those of an adult man. Adults and children of 10 to 12: ratios of the vowel means in
# Hillenbrand et al. (1995, JASA 97, 3099-3111), near 1.16 for women and 1.25 for children. The course between them
# follows the growth of the tract (Fitch & Giedd 1999, JASA 106, 1511-1522) and Lee et al. (1999): boys' tracts part
# from girls' at puberty and both are full-grown by about 16.
TRACT_SCALE = {
    "male": {12: 1.22, 13: 1.18, 14: 1.12, 15: 1.07, 16: 1.04, 18: 1.01, 20: 1.00, 85: 0.98},
    "female": {12: 1.26, 13: 1.24, 15: 1.20, 17: 1.17, 20: 1.155, 85: 1.13},
}
F0_SPREAD_ST = 3.1  # between speakers of one age and sex, semitones
EFFORT_SPREAD_ST = 1.2  # between recordings of one speaker (effort, mood, room), semitones
TRACT_SPREAD = 0.04  # between speakers, as a factor's logarithm
TEEN_AGES = {12: 4, 13: 5, 14: 5, 15: 4, 16: 2, 17: 1, 18: 1}  # age in years: weight
ADULT_DECADES = {20: 30, 30: 27, 40: 18, 50: 13, 60: 8, 70: 4}  # first year of the decade: weight
MALE_SHARE = 2 / 3  # of adults, about as in the paper's windows (101,094 male, 54,272 female)
TEEN_SHARE = (
    1 / 6
)  # of speakers; each gets few clips (TEEN_CLIPS), so that 6 to 7 % of windows are theirs, as in the paper
TEEN_CLIPS = 0.36  # clips of a teen over those of an adult
LEAST_TEENS = 3  # per corpus, so that each part of a speaker-disjoint split can have one


@dataclass(frozen=True)
class Speaker:
    """One invented speaker with the device and the room that he or she always records with."""

    number: int  # unique within one rendering
    gender: str  # "male" or "female"
    age_years: int
    language: str  # espeak-ng code, also used as locale
    voice: Voice
    snr_db: float  # speech over background noise
    reverb_s: float  # reverberation time RT60
    wet: float  # share of reverberation, 0 to 1
    band_hz: float  # upper edge of the microphone or line
    level_db: float  # RMS of the recordings below full scale
    noise_tilt: float  # 0 = white, 1 = pink, 2 = brown


def draw_ages(count: int, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Draw (gender, age in years) for `count` speakers, unbalanced about as in the paper, in random order."""
    teens = min(count, max(LEAST_TEENS, round(count * TEEN_SHARE)))
    men = round((count - teens) * MALE_SHARE)
    people = [("female" if k % 2 else "male", _choose(TEEN_AGES, rng)) for k in range(teens)]
    for k in range(count - teens):
        decade = _choose(ADULT_DECADES, rng)
        people.append(("male" if k < men else "female", int(decade + rng.integers(10))))
    return [people[k] for k in rng.permutation(count)]


def draw_speaker(number: int, gender: str, age_years: int, language: str, rng: np.random.Generator) -> Speaker:
    """Draw voice, device and room of one speaker; see the constants of this module for the sources.

    Manner: within-speaker variability of F0 falls until about 15 (Lee et al. 1999) and older voices waver, roughen and
    slow down (Linville 2001, Vocal Aging).
    """
    youth = float(np.clip((16 - age_years) / 4, 0, 1))  # 1 at 12, 0 from 16 on
    old = float(np.clip((age_years - 50) / 30, 0, 1))
    f0_hz = at_age(F0_HZ, gender, age_years) * 2 ** (rng.normal(0, F0_SPREAD_ST) / 12)
    voice = Voice(
        f0_hz=float(np.clip(f0_hz, 70, 330)),
        f0_sd_st=float(np.clip(rng.normal(2.7 + 0.7 * youth, 0.5), 1.4, 4.5)),
        tract_scale=float(np.exp(np.log(at_age(TRACT_SCALE, gender, age_years)) + rng.normal(0, TRACT_SPREAD))),
        formant_offsets=tuple(float(x) for x in np.exp(rng.normal(0, 0.025, 4))),
        rate_wpm=int(np.clip(rng.normal(168 - 22 * old - 8 * youth, 17), 115, 215)),
        breath=int(np.clip(rng.normal(9 if gender == "female" else 5, 4) + 3 * youth, 0, 20)),
        flutter=int(np.clip(rng.normal(3 + 8 * old + 3 * youth, 2), 0, 16)),
        roughness=int(np.clip(rng.normal(1.5 + 2 * old, 1), 0, 5)),
        voicing=int(np.clip(rng.normal(92 - 15 * old, 8), 60, 110)),
    )
    return Speaker(
        number, gender, age_years, language, voice,
        snr_db=float(np.clip(rng.normal(22, 8), 6, 45)),
        reverb_s=float(rng.uniform(0.12, 0.6)),
        wet=float(rng.beta(1.5, 5) * 0.6),
        band_hz=float(rng.choice([3400, 5000, 7500, 11000], p=[0.08, 0.12, 0.3, 0.5])),
        level_db=float(rng.uniform(-34, -16)),
        noise_tilt=float(rng.uniform(0, 2)),
    )  # fmt: skip


def vary_effort(voice: Voice, rng: np.random.Generator) -> Voice:
    """The same voice on another occasion: F0 and rate move a little."""
    f0_hz = voice.f0_hz * 2 ** (rng.normal(0, EFFORT_SPREAD_ST) / 12)
    rate_wpm = int(np.clip(voice.rate_wpm * np.exp(rng.normal(0, 0.05)), 100, 230))
    return replace(voice, f0_hz=float(np.clip(f0_hz, 65, 370)), rate_wpm=rate_wpm)


def at_age(knots: dict[str, dict[int, float]], gender: str, age_years: float) -> float:
    """Value of `F0_HZ` or `TRACT_SCALE` for a gender at an age, linear between the knots."""
    ages = sorted(knots[gender])
    return float(np.interp(age_years, ages, [knots[gender][age] for age in ages]))


def _choose(weights: dict[int, float], rng: np.random.Generator) -> int:
    share = np.array(list(weights.values()), float)
    return int(rng.choice(list(weights), p=share / share.sum()))
