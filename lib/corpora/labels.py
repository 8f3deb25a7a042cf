"""The label contract: what every raw gender and age value of every corpus means, and which class it falls into. Nobody
is folded into a sex who did not say it. A class of age is given only where all that an age may be lies within."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.tables import DECADES

# By corpus and releases: raw value -> meaning; of Common Voice as counted in github.com/common-voice/cv-dataset.
GENDER_WORDS: dict[tuple[str, str], dict[str, str | None]] = {
    ("common_voice", "1-16.1"): {"": None, "male": "male", "female": "female", "other": None},
    ("common_voice", "17-25"): {
        "": None, "male_masculine": "male", "female_feminine": "female", "transgender": None, "non-binary": None,
        "intersex": None, "do_not_wish_to_say": None,
    },
    ("voxceleb", "1-2"): {"m": "male", "f": "female"},
    ("speechocean762", "all"): {"m": "male", "f": "female"},
    ("own_data", "all"): {"man": "male", "woman": "female"},
}  # fmt: skip
# By corpus and releases: raw word -> first year of its decade. Common Voice's words never changed; "fourties" is its
# spelling. It calls teens "< 19" and twenties "19 - 29": a speaker of 19 may stand in either. Other corpora give years.
DECADE_WORDS = ["teens", "twenties", "thirties", "fourties", "fifties", "sixties", "seventies", "eighties", "nineties"]
AGE_WORDS: dict[tuple[str, str], dict[str, int | None]] = {
    ("common_voice", "1-25"): {"": None, **dict(zip(DECADE_WORDS, DECADES))},
    ("common_voice", "(by hand)"): {"forties": 40},
}
OLDEST_YEARS = 110  # years given as 0 or less, or as this or more, are taken for mistakes
TEENS_FROM = 16  # years: Common Voice asks who is younger for a parent's consent
# Classes of age from 0 on, and the first age (years) that no longer belongs to each: of the last class, too, to end it.
SCHEMES: dict[str, tuple[list[str], list[int]]] = {
    "teen_adult": (["teen", "adult"], [20]),  # the paper's; its code calls 'teens' teen, other decades adult
    "four_decades": (DECADE_WORDS[:4], DECADES[1:5]),  # the paper's second; from 50 on left out
    "nine_decades": (DECADE_WORDS, DECADES[1:]),  # Common Voice's words, the paper's first
    "child_adult": (["child", "adult"], [16]),  # speechocean762: nobody there is 16 to 18
}


def normalize_label(raw: str) -> str:
    """Lower case, without outer blanks, and with `_`, `-` and blanks alike."""
    return re.sub(r"[\s_-]+", " ", raw.strip()).strip().casefold()


GENDER_MEANINGS = {normalize_label(raw): meant for words in GENDER_WORDS.values() for raw, meant in words.items()}
AGE_MEANINGS = {normalize_label(raw): decade for words in AGE_WORDS.values() for raw, decade in words.items()}
ALLOWED = {  # in words, for messages
    "gender": "male, female, m, f, man or woman, or leave it blank",
    "age": f"years (a number above 0 and below {OLDEST_YEARS}) or a decade such as twenties, or leave it blank",
}


def read_age(raw: str, unit: str = "years") -> tuple[float | None, int | None]:
    """(years, decade) of a raw age, (None, None) for neither; a bare number is in `unit`: "years" or "decade"."""
    word = normalize_label(raw)
    if word in AGE_MEANINGS:
        return None, AGE_MEANINGS[word]
    if re.fullmatch(r"[1-9]0s", word):  # "30s"
        return None, int(word[:2])
    if not re.fullmatch(r"\d+(\.\d*|,\d\d?)?", raw.strip(), re.ASCII):
        return None, None
    number = float(raw.replace(",", "."))
    if unit == "decade":
        return None, int(number) if number in DECADES else None
    return (number, None) if 0 < number < OLDEST_YEARS else (None, None)


def is_known(raw: str, kind: str, unit: str = "years") -> bool:
    """Whether the contract lists this raw value of `kind` "gender" or "age"; so it does blank and a credible number."""
    word = normalize_label(raw)
    return word in GENDER_MEANINGS if kind == "gender" else word == "" or read_age(raw, unit) != (None, None)


def unknown_labels(raw: pd.Series, kind: str, unit: str = "years") -> dict[str, int]:
    """Count the raw values that the contract does not list; empty when all are known."""
    return {str(value): int(count) for value, count in raw.value_counts().items() if not is_known(value, kind, unit)}


def genders_of(raw: pd.Series) -> pd.Series:
    """The meaning of raw gender values: "male", "female" or None (blank, neither, not in the contract), same index."""
    return raw.map({value: GENDER_MEANINGS.get(normalize_label(value)) for value in raw.unique()}).astype("str")


def ages_of(raw: pd.Series, unit: str = "years") -> pd.DataFrame:
    """Vectorised `read_age`: text in, columns `age_years` (float, NaN) and `age_decade` (Int16, NA) out, same index."""
    known = [(value, *read_age(value, unit)) for value in raw.unique()]
    table = pd.DataFrame(known, columns=["raw", "age_years", "age_decade"]).set_index("raw").astype("float64")
    return table.reindex(raw).set_axis(raw.index).astype({"age_decade": "Int16"})


def assign_age_class(clips: pd.DataFrame, classes: Sequence[str], bounds: Sequence[float]) -> pd.Series:
    """The class of every clip's age (Int16, index into `classes`, NA = none), by `age_years`, else `age_decade`. A
    decade stands for all ages up to the next one (teens: from 0, as Common Voice says "< 19"; nineties: without end),
    which must lie in one class; where classes part at `TEENS_FROM`, teens are from there on. ValueError unless classes
    are distinct and bounds rising, positive, and as many as classes or one fewer."""
    are_classes = len(set(classes)) == len(classes) > 1 and len(classes) - len(bounds) in (0, 1)
    if not are_classes or not all(low < high for low, high in zip([0, *bounds], bounds)):
        advice = "give at least two different classes, and as many rising ages above 0, or one fewer"
        raise ValueError(f"age_classes {list(classes)}, age_bounds {list(bounds)}: {advice}")
    years, decade = (clips[name].to_numpy("float64", na_value=np.nan) for name in ("age_years", "age_decade"))
    youngest = np.where(decade == DECADES[0], TEENS_FROM if TEENS_FROM in bounds else 0, decade)
    oldest = np.where(decade == DECADES[-1], np.finfo(float).max, np.nextafter(decade + 10, 0))
    youngest, oldest = (np.where(np.isnan(years), edge, years) for edge in (youngest, oldest))
    ends = np.array([*bounds, np.inf][: len(classes)])
    first, last = (np.searchsorted(ends, edge, side="right") for edge in (youngest, oldest))
    is_known = ~np.isnan(youngest) & (first == last) & (first < len(ends))
    return pd.Series(first, index=clips.index, dtype="Int16", name="age_class").where(is_known)


def name_ages(clips: pd.DataFrame, classes: Sequence[str], bounds: Sequence[float]) -> pd.Series:
    """The class name of every clip's age; missing where there is none."""
    return assign_age_class(clips, classes, bounds).map(dict(enumerate(classes))).astype("str")


def find_confounds(clips: pd.DataFrame, target: str) -> list[str]:
    """Sentences that say where a class of the column `target` comes from one of several corpora, to at least 95 %."""
    counts, voices = pd.crosstab(clips[target], clips["corpus"]), clips.groupby(target)["speaker_id"].nunique()
    mix = counts.sum() / counts.to_numpy().sum()  # what each corpus would hold if class and corpus were unrelated
    shares = counts.div(counts.sum(axis=1), axis=0).stack()
    return [
        f"CONFOUNDED: {'ALL' if share == 1 else f'{share:.1%} of the'} {counts.loc[name].sum():,} clips ({voices[name]:,} "
        f"speakers) of {target} class '{name}' come from {corpus}. A model can tell '{name}' by recognising the corpus: "
        "believe only scores within one corpus."
        for (name, corpus), share in shares.items()
        if counts.shape[1] > 1 and (share == 1 or share >= 0.95 > mix[corpus])
    ]


def label_table() -> pd.DataFrame:
    """Every raw value of the contract, its meaning, and its class in each of `SCHEMES` ("" = none), one a row."""
    rows = []
    for label, column, contract in (("gender", "gender", GENDER_WORDS), ("age", "age_decade", AGE_WORDS)):
        for (corpus, releases), words in contract.items():
            source = {"label": label, "corpus": corpus, "releases": releases}
            rows += [source | {"raw": raw, column: meaning} for raw, meaning in words.items()]
    table = pd.DataFrame(rows).astype({"age_decade": "Int16"})
    for name, scheme in SCHEMES.items():
        table[name] = name_ages(table.assign(age_years=np.nan), *scheme)
    return table.fillna(dict.fromkeys(["gender", *SCHEMES], ""))
