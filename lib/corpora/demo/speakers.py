"""Invented speakers: pitch, vocal tract, voice source and manner drawn by age and sex from what is published of people.
The groups overlap; pitch alone tells neither: a boy whose voice has broken has a man's pitch in a shorter tract."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.corpora.demo.espeak import Voice
from lib.paths import ASSETS

LANGUAGES = {"en": 0.4, "de": 0.2, "fr": 0.15, "es": 0.15, "it": 0.1}  # espeak-ng code: share of the speakers
TEEN_SHARE = 0.25  # of the speakers, so that a test part has more than a handful
MALE_SHARE = 0.6  # of the adults; 0.65 of the paper's windows
TEEN_AGES = {"male": range(15, 18), "female": range(11, 16)}  # years; before their voice breaks boys sound like girls
ADULT_DECADES = {20: 0.30, 30: 0.27, 40: 0.18, 50: 0.13, 60: 0.08, 70: 0.04}  # first year of the decade: share
VOICES = pd.read_csv(ASSETS / "voices.csv", comment="#", index_col="age")  # F0 and growth of the tract by age and sex
# F1 to F4 over an adult man's: means over the vowels of Hillenbrand et al. (1995, JASA 97, 3099-3111).
WOMAN_FORMANTS = np.array([1.18, 1.16, 1.14, 1.17])
CHILD_FORMANTS = np.array([1.30, 1.27, 1.22, 1.23])  # 10 to 12 years
F0_SPREAD_ST = 2.4  # between speakers of one age and sex, semitones
TRACT_SPREAD = 0.022  # of all formants together, between such speakers, as a factor's logarithm
FORMANT_SPREAD = 0.015  # of each formant beside that


@dataclass(frozen=True)
class Speaker:
    """One invented speaker."""

    number: int  # unique within one rendering
    gender: str  # "male" or "female"
    age_years: int
    language: str  # espeak-ng code, also used as locale
    voice: Voice


def draw_people(count: int, seed: int, first: int) -> list[Speaker]:
    """Speakers with numbers from `first` on, shares as above; of the teens as many girls as boys."""
    rng = np.random.default_rng([seed, 0, first])
    teens, people = round(count * TEEN_SHARE), []
    for k, number in enumerate(first + rng.permutation(count)):
        if k < teens:
            gender = ["male", "female"][k % 2]
            age_years = rng.choice(TEEN_AGES[gender])
        else:
            gender = "male" if k - teens < MALE_SHARE * (count - teens) else "female"
            age_years = rng.choice(list(ADULT_DECADES), p=list(ADULT_DECADES.values())) + rng.integers(10)
        people.append(draw_speaker(int(number), gender, int(age_years), seed))
    return sorted(people, key=lambda speaker: speaker.number)


def draw_speaker(number: int, gender: str, age_years: int, seed: int) -> Speaker:
    """Draw language and voice of one speaker. Source: women's voices are breathier and their spectrum falls more
    steeply (Klatt & Klatt 1990, JASA 87, 820-857; Hanson & Chuang 1999, JASA 106, 1064-1077). Manner: the young vary F0
    more and speak more slowly (Lee et al. 1999); old voices waver, roughen and slow down (Linville 2001)."""
    rng = np.random.default_rng([seed, 1, number])
    youth = float(np.clip((18 - age_years) / 4, 0, 1))  # 1 to 14, 0 from 18 on
    old, female = float(np.clip((age_years - 50) / 30, 0, 1)), gender == "female"
    growth = np.interp(age_years, VOICES.index, VOICES[f"growth_{gender}"])
    formants = CHILD_FORMANTS ** (1 - growth) * (WOMAN_FORMANTS if female else np.ones(4)) ** growth
    formants = formants * np.exp(rng.normal(0, TRACT_SPREAD) + rng.normal(0, FORMANT_SPREAD, 4))
    f0_hz = np.interp(age_years, VOICES.index, VOICES[f"f0_{gender}_hz"]) * 2 ** (rng.normal(0, F0_SPREAD_ST) / 12)
    voice = Voice(
        f0_hz=float(f0_hz),
        f0_sd_st=float(np.clip(rng.normal(2.4 + 0.6 * youth, 0.4), 1.4, 4.5)),
        formants=tuple(formants.tolist()),
        tilt_db=float(rng.normal(-2.5 * female, 0.8)),
        rate_wpm=int(np.clip(rng.normal(172 - 25 * old - 12 * youth, 13), 110, 215)),
        breath=int(np.clip(rng.normal(4 + 7 * female + 2 * youth, 3), 0, 20)),
        flutter=int(np.clip(rng.normal(3 + 8 * old + 2 * youth, 2), 0, 16)),
        roughness=int(np.clip(rng.normal(1.5 + 2 * old, 0.8), 0, 5)),
    )
    language = str(rng.choice(list(LANGUAGES), p=list(LANGUAGES.values())))
    return Speaker(number, gender, age_years, language, voice)
