"""The label contract: what every raw gender and age value of every corpus means, and which class it falls into.

Nobody is folded into a sex who did not say it. A class of age is given only where the whole interval that is known of
a speaker's age lies within the class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from lib.tables import DECADES, GENDERS

# (corpus, releases, raw value, meaning). Common Voice: per-release statistics of github.com/common-voice/cv-dataset,
# releases 1 to 25. Release 6.0 lost every "male" and "other": its gender is not used at all (lib.corpora.common_voice).
GENDER_VALUES: list[tuple[str, str, str, str | None]] = [
    ("common_voice", "1-25", "", None),
    ("common_voice", "1-16.1", "male", "male"),
    ("common_voice", "1-16.1", "female", "female"),
    ("common_voice", "1-16.1", "other", None),
    ("common_voice", "17-25", "male_masculine", "male"),
    ("common_voice", "17-25", "female_feminine", "female"),
    ("common_voice", "17-25", "transgender", None),
    ("common_voice", "17-25", "non-binary", None),
    ("common_voice", "17-25", "intersex", None),
    ("common_voice", "17-25", "do_not_wish_to_say", None),
    ("voxceleb", "1-2", "m", "male"),
    ("voxceleb", "1-2", "f", "female"),
    ("speechocean762", "all", "m", "male"),
    ("speechocean762", "all", "f", "female"),
    ("own_data", "all", "man", "male"),
    ("own_data", "all", "woman", "female"),
]

# (corpus, releases, raw word, first year of the decade). The words never changed; "fourties" is Common Voice's own
# spelling. Its site calls teens "< 19" and twenties "19 - 29": a speaker of 19 may stand in either.
AGE_VALUES: list[tuple[str, str, str, int | None]] = [
    ("common_voice", "1-25", "", None),
    ("common_voice", "1-25", "teens", 10),
    ("common_voice", "1-25", "twenties", 20),
    ("common_voice", "1-25", "thirties", 30),
    ("common_voice", "1-25", "fourties", 40),
    ("common_voice", "(by hand)", "forties", 40),
    ("common_voice", "1-25", "fifties", 50),
    ("common_voice", "1-25", "sixties", 60),
    ("common_voice", "1-25", "seventies", 70),
    ("common_voice", "1-25", "eighties", 80),
    ("common_voice", "1-25", "nineties", 90),
]
# VoxCeleb's age tables, speechocean762 and one's own data give years of age as numbers: "26", "26.0".
OLDEST_YEARS = 110  # years given as 0 or less, or as this or more, are taken for mistakes


class AgeScheme(NamedTuple):
    """Classes of age. `bounds[i]` is the first age (years) that no longer belongs to `classes[i]`; the first class
    starts at 0. With one bound fewer than classes the last class has no end; with as many, older speakers are left out.
    """

    classes: list[str]
    bounds: list[int]
    source: str


DECADE_WORDS = ["teens", "twenties", "thirties", "fourties", "fifties", "sixties", "seventies", "eighties", "nineties"]
SCHEMES = {
    "teen_adult": AgeScheme(
        ["teen", "adult"], [20], "the paper's binary scheme; its code calls 'teens' teen, every other decade adult"
    ),
    "four_decades": AgeScheme(DECADE_WORDS[:4], [20, 30, 40, 50], "the paper's second scheme; from 50 on left out"),
    "nine_decades": AgeScheme(
        DECADE_WORDS, [20, 30, 40, 50, 60, 70, 80, 90], "Common Voice's words, the paper's first"
    ),
    "child_adult": AgeScheme(["child", "adult"], [16], "speechocean762: children are younger than 16, nobody is 16-18"),
}


def normalize_label(raw: str) -> str:
    """Lower case, without outer blanks, and with `_`, `-` and blanks alike."""
    return re.sub(r"[\s_-]+", " ", raw.strip()).strip().casefold()


def gender_meanings() -> dict[str, str | None]:
    """Normalised raw value -> "male", "female" or None, over every corpus and release."""
    spellings = {"male": "male", "female": "female", "m": "male", "f": "female"}
    return spellings | {normalize_label(raw): meaning for _, _, raw, meaning in GENDER_VALUES}


def age_meanings() -> dict[str, int | None]:
    """Normalised raw word -> first year of its decade, or None for blank."""
    return {normalize_label(raw): decade for _, _, raw, decade in AGE_VALUES}


def is_known_gender(raw: str) -> bool:
    """Whether the contract lists this raw value (blank included)."""
    return normalize_label(raw) in gender_meanings()


def read_gender(raw: str) -> str | None:
    """The meaning of one raw gender value; None when it is blank, neither male nor female, or not in the contract."""
    return gender_meanings().get(normalize_label(raw))


def read_age(raw: str, unit: str = "years") -> tuple[float | None, int | None]:
    """The meaning of one raw age value as (years, decade); (None, None) when it says neither.

    `unit` says what a bare number is: "years" of age, or "decade" (10, 20 ... 90). Words are always decades.
    """
    word = normalize_label(raw)
    if word in age_meanings():
        return None, age_meanings()[word]
    if re.fullmatch(r"[1-9]0s", word):  # "30s"
        return None, int(word[:2])
    if not re.fullmatch(r"\d+(\.\d*)?", raw.strip(), re.ASCII):
        return None, None
    number = float(raw)
    if unit == "decade":
        return None, int(number) if number in DECADES else None
    return (number, None) if 0 < number < OLDEST_YEARS else (None, None)


def is_known_age(raw: str, unit: str = "years") -> bool:
    """Whether this raw value is blank, a word of the contract, or a credible number."""
    return normalize_label(raw) == "" or read_age(raw, unit) != (None, None)


def genders_of(raw: pd.Series) -> pd.Series:
    """Vectorised `read_gender`: text in, "male"/"female"/None out, same index."""
    return raw.map({value: read_gender(value) for value in raw.unique()}).astype("str").where(lambda s: s.isin(GENDERS))


def ages_of(raw: pd.Series, unit: str = "years") -> pd.DataFrame:
    """Vectorised `read_age`: text in, columns `age_years` (float, NaN) and `age_decade` (Int16, NA) out, same index."""
    known = {value: read_age(value, unit) for value in raw.unique()}
    years = raw.map({value: years for value, (years, _) in known.items()}).astype("float64")
    decade = raw.map({value: decade for value, (_, decade) in known.items()}).astype("float64").astype("Int16")
    return pd.DataFrame({"age_years": years, "age_decade": decade}, index=raw.index)


def unknown_labels(raw: pd.Series, kind: str) -> dict[str, int]:
    """Count the raw values that the contract does not list; `kind` is "gender" or "age". Empty when all are known."""
    is_known = {"gender": is_known_gender, "age": is_known_age}[kind]
    counts = raw.value_counts()
    return {str(value): int(count) for value, count in counts.items() if not is_known(value)}


def check_scheme(classes: Sequence[str], bounds: Sequence[float]) -> None:
    """Raise ValueError unless classes are distinct and bounds rising, positive, and as many as classes or one fewer."""
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"age_classes {list(classes)}: give at least two different names")
    if len(bounds) not in (len(classes) - 1, len(classes)):
        raise ValueError(
            f"age_bounds {list(bounds)}: {len(classes)} classes need {len(classes) - 1} or {len(classes)} bounds"
        )
    if any(low >= high for low, high in zip([0, *bounds], bounds)):
        raise ValueError(f"age_bounds {list(bounds)}: ages must be above 0 and rise")


def age_class(
    years: float | None, decade: int | None, classes: Sequence[str], bounds: Sequence[float]
) -> tuple[int | None, str]:
    """The class of one age as (index into `classes`, ""), or (None, reason).

    Years, where known, decide; a decade stands for all ages from its first year to the next decade (teens: from 0,
    since Common Voice says "< 19"; nineties: without end).
    """
    check_scheme(classes, bounds)
    if years is not None and not pd.isna(years):
        low, high = float(years), float(years)
    elif decade is not None and not pd.isna(decade):
        low = 0.0 if decade == DECADES[0] else float(decade)
        high = float("inf") if decade == DECADES[-1] else float(decade + 10)
    else:
        return None, "no age"
    ends = [*bounds, float("inf")] if len(bounds) < len(classes) else list(bounds)
    starts = [0.0, *ends[:-1]]
    if low >= ends[-1]:
        return None, "older than the last class"
    for index, (start, end) in enumerate(zip(starts, ends)):
        if start <= low and (low < end if low == high else high <= end):
            return index, ""
    return None, "age spans a bound"


def assign_age_class(clips: pd.DataFrame, classes: Sequence[str], bounds: Sequence[float]) -> pd.DataFrame:
    """Vectorised `age_class` over `age_years` and `age_decade` of clips.

    Returns a frame on the same index: `age_class` (Int16, index into `classes`, NA = none), `reason` ("" where given).
    """
    check_scheme(classes, bounds)
    ages = clips[["age_years", "age_decade"]].astype({"age_years": "float64", "age_decade": "float64"})
    known = ages.drop_duplicates()
    found = [age_class(years, decade, classes, bounds) for years, decade in known.itertuples(index=False)]
    known = known.assign(
        age_class=pd.array([index for index, _ in found], dtype="Int16"), reason=[why for _, why in found]
    )
    merged = ages.merge(known, on=["age_years", "age_decade"], how="left")
    return merged[["age_class", "reason"]].set_axis(clips.index)


def class_names(
    clips: pd.DataFrame, target: str, classes: Sequence[str] = (), bounds: Sequence[float] = ()
) -> pd.Series:
    """The class name of every clip for `target` "gender" or "age"; missing where there is none."""
    if target == "gender":
        return clips["gender"]
    if target != "age":
        raise ValueError(f"target {target!r}: choose 'gender' or 'age'")
    indices = assign_age_class(clips, classes, bounds)["age_class"]
    return indices.map(dict(enumerate(classes))).astype("str")


def describe_raw(raw: pd.Series) -> pd.Series:
    """Raw labels made fit for counting: blank becomes "(blank)", any number "(number)"."""
    names = {value: "(blank)" if not value.strip() else value for value in raw.unique()}
    names |= {value: "(number)" for value in names if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value)}
    return raw.map(names)


def count_labels(clips: pd.DataFrame, classes: Sequence[str], bounds: Sequence[float]) -> pd.DataFrame:
    """Count clips and speakers by class before (the corpus' own words) and after (our classes), in tidy form.

    Columns: target ("gender"|"age"), stage ("before"|"after"), corpus, language, class, clips, speakers. Rows with
    "all" for language, or for corpus and language, are the totals; a clip without a class counts as "(none)".
    """
    columns = {
        ("gender", "before"): describe_raw(clips["gender_raw"]),
        ("gender", "after"): class_names(clips, "gender").fillna("(none)"),
        ("age", "before"): describe_raw(clips["age_raw"]),
        ("age", "after"): class_names(clips, "age", classes, bounds).fillna("(none)"),
    }
    keys = ["target", "stage", "corpus", "language", "class"]
    tables = []
    for (target, stage), names in columns.items():
        rows = clips[["corpus", "language", "speaker_id"]].assign(**{"class": names, "target": target, "stage": stage})
        levels = [rows, rows.assign(language="all"), rows.assign(corpus="all", language="all")]
        tables += [
            level.groupby(keys)["speaker_id"].agg(clips="size", speakers="nunique").reset_index() for level in levels
        ]
    counts = pd.concat(tables, ignore_index=True).drop_duplicates(keys)
    return counts.sort_values(keys, ascending=[True, False, True, True, True], ignore_index=True)  # before, then after


def find_confounds(
    clips: pd.DataFrame, target: str, classes: Sequence[str] = (), bounds: Sequence[float] = (), share: float = 0.95
) -> list[str]:
    """Sentences that say where a class of `target` comes from one of several corpora, wholly or to at least `share`.

    A model can then score by recognising the corpus. Empty when there is one corpus only, or nothing to warn of.
    """
    names = class_names(clips, target, classes, bounds)
    labelled = clips.assign(**{"class": names})[names.notna()]
    counts = labelled.groupby(["class", "corpus"]).size().unstack(fill_value=0)
    if counts.shape[1] < 2:
        return []
    mix = counts.sum() / counts.to_numpy().sum()  # what each corpus would hold if class and corpus were unrelated
    sentences = []
    for name, row in counts.iterrows():
        corpus, part = row.idxmax(), row.max() / row.sum()
        if part < share or (part < 1 and mix[corpus] >= share):
            continue
        speakers = labelled.query("`class` == @name")["speaker_id"].nunique()
        amount = "ALL" if part == 1 else f"{part:.1%} of the"
        sentences.append(
            f"CONFOUNDED: {amount} {row.sum():,} clips ({speakers:,} speakers) of {target} class '{name}' come from "
            f"{corpus}. A model can tell '{name}' by recognising the corpus: believe only scores within one corpus."
        )
    return sentences


def label_table() -> pd.DataFrame:
    """The whole contract as a table: every raw value, its meaning, and its class in each scheme ("" = none).

    Columns: label, corpus, releases, raw, gender, age_decade, and one column a scheme of `SCHEMES`.
    """
    rows = []
    for corpus, releases, raw, meaning in GENDER_VALUES:
        rows.append({"label": "gender", "corpus": corpus, "releases": releases, "raw": raw, "gender": meaning or ""})
    for corpus, releases, raw, decade in AGE_VALUES:
        found = {name: age_class(None, decade, scheme.classes, scheme.bounds)[0] for name, scheme in SCHEMES.items()}
        named = {name: "" if index is None else SCHEMES[name].classes[index] for name, index in found.items()}
        rows.append({"label": "age", "corpus": corpus, "releases": releases, "raw": raw, "age_decade": decade, **named})
    table = pd.DataFrame(rows).astype({"age_decade": "Int16"})
    text = [column for column in table.columns if column != "age_decade"]
    return table.fillna(dict.fromkeys(text, ""))
