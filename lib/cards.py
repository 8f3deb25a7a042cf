"""The model card: a page of plain words written from a run's own record, beside the weights it speaks of."""

from __future__ import annotations

from typing import Any

from lib.tasks import YEARS
from lib.trust.calibration import Years

METRICS = ("accuracy", "uar", "macro_f1")  # of classes; of an age in years its mean absolute error alone
BASELINES = ("majority", "baseline: constant age")
SLICE_METRICS = ("accuracy", "uar")

INTENDED = """\
Research and teaching: studying how much a few seconds of voice tell, describing collections of speech in aggregate,
checking other systems for bias. Every answer comes with its probability, and may be no answer at all.

Not for decisions about a person: not for access, employment, policing, medicine, insurance, advertising, nor for telling
whether someone is of age. Not for identifying anyone."""

IDENTITY = """\
**Voice does not reveal gender identity.** "male" and "female" here are the words that speakers, or those who described
them, gave in the corpora. The answer is a guess about how a voice *sounds* to a network trained on those words. It can be
wrong for anyone, and more often for people whose voice is unlike the training speakers'. Speakers who chose neither word,
or did not say, were left out of training; the model has no class for them, which is a limit of the model and not of them.
Age is heard no better: the answer is a class of apparent age, not a birthday."""

ETHICS = """\
- **Consent.** Ask people before you run this on their voices, and tell them what it guesses. In many countries a voice is
  personal data, and guessing traits from it is profiling.
- **Misuse.** Sorting or scoring people by a guessed trait harms them whether the guess is right or wrong.
- **No identification.** It tells no one from anyone else: it holds no voiceprint, and must not be made into one.
- **Privacy.** Audio never leaves the machine that runs this: no audio, no embedding and no answer is sent anywhere, nothing is
  reported home, and what is uploaded or recorded in the notebook's page is deleted as soon as it is answered."""

LIMITS = """\
- Trained on the corpora named above; other languages, microphones, codecs, noises and ages are guesses beyond the data.
- Music, several speakers at once, whispering, singing, illness and synthetic or altered voices were not studied.
- A recording of one to three seconds is repeated until it fills a window, and is answered with a warning.
- The probabilities are fitted on the validation speakers; on other material they are likely to be too sure."""


THRESHOLDS = """\
Temperature and thresholds were chosen on the validation speakers. A recording whose best class stays below "unsure below"
gets no answer; "rare class" is the probability from which that class has its best F1, told beside the answer."""

INTERVAL = """\
An age in years is the mean age over the classes, with an interval: the conformal quantile of the validation recordings'
errors, every speaker weighing the same. It is wide where the model knows little, and holds for speakers like those alone."""


def write_card(description: dict[str, Any]) -> str:
    """The model card, Markdown, from the content of a model folder's `model.json`."""
    about, encoder = description["about"], description["encoder"]
    synthetic = about.get("synthetic", False)
    lines = [f"# Model card: {description['name']}", ""]
    if synthetic:
        lines += [
            "> **Trained on synthetic voices.** Its speakers were invented by a program; it is a demonstration.",
            "",
        ]
    lines += [f"Guesses {_tasks(description)} from a few seconds of speech.", ""]
    sections = {
        "Use": INTENDED,
        "What an answer means": IDENTITY,
        "How it works": _machinery(description, encoder),
        "Data": _facts(about),
        "Scores on speakers never heard in training": _scores(description),
        "Scores by slice": _slices(description),
        "Limits": LIMITS,
        "Ethics and privacy": ETHICS,
        "Files": _files(description),
    }
    for title, text in sections.items():
        lines += [f"## {title}", "", text, ""]
    return "\n".join(lines)


def _tasks(description: dict[str, Any]) -> str:
    return " and ".join(f"{task} ({', '.join(head['classes'])})" for task, head in description["heads"].items())


def _machinery(description: dict[str, Any], encoder: dict[str, Any]) -> str:
    windowing = description["windowing"]
    lines = [
        f"Windows of {windowing['window_s']:g} s, one every {windowing['step_s']:g} s, at 16 kHz; those with less than "
        f"{100 * windowing['min_speech_ratio']:.0f} % speech (silero-vad) are left out. Each goes through the frozen encoder "
        f"`{encoder['name']}` ({encoder['note']}), feature `{description['feature']}` as {description['dtype']}, then through "
        "the head of each task. A recording's probabilities are the mean over its windows.",
        "",
    ]
    header = [
        "task",
        "classes",
        "network",
        "normalisation",
        "epoch",
        "temperature",
        "unsure below",
        "rare class",
        "years",
    ]
    rows = [
        [task, ", ".join(head["classes"]), head["network"], head["normalisation"], head["epoch"]]
        + [f"{head['calibration']['temperature']:.3f}", *describe_thresholds(head).values()]
        for task, head in description["heads"].items()
    ]
    lines += [_table(header, rows), "", THRESHOLDS]
    return "\n".join(lines + ["", INTERVAL] * any(head.get("years") for head in description["heads"].values()))


def describe_thresholds(head: dict[str, Any]) -> dict[str, str]:
    """A head of `model.json` in words: unsure below, rare class from, interval of years where it tells years."""
    rare, years = head.get("rare"), head.get("years")
    return {
        "unsure below": f"{head['threshold']:.3f}" if head["threshold"] else "always answers",
        "rare class": f"{rare[0]} from {rare[1]:.3f}" if rare else "",
        "years": Years(**years).describe() if years else "",
    }


def _facts(about: dict[str, Any]) -> str:
    told = {key: value for key, value in about.items() if key != "encoder" and value not in ("", None, [], {})}
    rows = [[key.replace("_", " "), _text(value)] for key, value in told.items()]
    return _table(["fact", "value"], rows) if rows else "Not recorded: the folder was written outside a run."


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(part)}" for key, part in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


def _scores(description: dict[str, Any]) -> str:
    rows = [row for row in _own_records(description) if row.get("subset", "all") == "all"]
    return _records(rows, "level", "No scores were recorded.")


def _slices(description: dict[str, Any]) -> str:
    rows = [row for row in _own_records(description) if row.get("subset", "all") != "all"]
    rows = [row for row in rows if row["metric"] in SLICE_METRICS and row["model"] == description["name"]]
    return _records(rows, "subset", "No slices were scored.")


def _own_records(description: dict[str, Any]) -> list[dict[str, Any]]:
    """Test scores of this model and of what a guess scores, under the protocol that keeps speakers apart."""
    return [
        row
        for row in description["metrics"]
        if row.get("model", "") in (description["name"], *BASELINES)
        and row.get("protocol") != "paper"
        and row.get("split", "test") == "test"
        and (row["metric"] == "mae_years" if row["task"] == YEARS else _is_shown(row["metric"]))
    ]


def _is_shown(metric: str) -> bool:
    return metric in METRICS or metric.startswith("f1_")


def _records(records: list[dict[str, Any]], by: str, none: str) -> str:
    header = ["task", "model", by, "metric", "value", "95 % interval", "n", "speakers"]
    rows = [
        [row["task"], row["model"], row.get(by, ""), row["metric"], _number(row["value"])]
        + [f"{_number(row.get('low'))} to {_number(row.get('high'))}", row.get("n", ""), row.get("speakers", "")]
        for row in records
    ]
    return _table(header, rows) if rows else none


def _number(value: float | None) -> str:
    return "not known" if value is None or value != value else f"{value:.3f}"


def _files(description: dict[str, Any]) -> str:
    rows = [[f"`{head['file']}`", f"`{head['sha256']}`"] for head in description["heads"].values()]
    rows.append([f"encoder `{description['encoder']['name']}`", f"`{description['encoder']['weights_sha256']}`"])
    versions = ", ".join(f"{name} {version}" for name, version in description["versions"].items())
    return "\n".join(
        [
            _table(["file", "SHA-256"], rows),
            "",
            f"Written with {versions}.",
            "",
            'Load it: `load_bundle("<this folder>")`; ask it: `python -m lib.predict <this folder> <recording>`.',
        ]
    )


def _table(header: list[str], rows: list[list[Any]]) -> str:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
