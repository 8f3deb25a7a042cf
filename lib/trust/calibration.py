"""Whether a stated probability can be believed, and what to do with it: temperature, a cap, thresholds, staying silent.

Everything that is chosen here is chosen on the validation part and handed in as numbers; the test part is only scored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import entropy

from lib.scores import confusion_counts, confusion_metrics

BINS = 15
FLOOR = 1e-7  # least probability whose logarithm is taken
TEMPERATURES = (0.02, 55.0)
LEAST_COVERAGE = 0.8  # a model that may stay silent must still answer for this share of the validation clips
YEARS_SHARE = 0.8  # of the recordings of new speakers that an interval of years is to hold
ONE_VOICE = 0.99  # share of validation recordings whose windows disagree no more than one voice's may


@dataclass(frozen=True)
class Calibration:
    """log p becomes log p / temperature, normalised, and no class gets more than `cap`; the default changes nothing."""

    temperature: float = 1.0
    cap: float = 1.0

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (n, C)."""
        if self == Calibration():
            return probabilities
        values = softmax(np.log(np.clip(probabilities, FLOOR, 1)) / self.temperature, axis=1)
        classes = values.shape[1]
        even = (1 - self.cap) * classes / (classes - 1)  # share of an even mix, so that 1 becomes the cap
        return (1 - even) * values + even / classes

    def as_json(self) -> dict[str, Any]:
        """What a model folder stores; `Calibration(**as_json())` is the same again."""
        return asdict(self)


@dataclass(frozen=True)
class Years:
    """How a head over classes of years tells an age: the mean of `centres` by its probabilities as trained, +- `margin`.

    `margin` is years on each side, None = too few validation speakers; `share` the chance it aims at, by recordings of a
    new speaker. The coverages are shares of recordings inside, every speaker counting the same; the test's was only scored.
    """

    centres: list[float]  # (C,) mean age of each class in the training part
    margin: float | None
    share: float = YEARS_SHARE
    speakers: int = 0  # of validation, on whom the margin was chosen
    validation_coverage: float | None = None
    test_coverage: float | None = None
    test_speakers: int = 0

    def describe(self) -> str:
        """The interval in words, for tables and the card."""
        if self.margin is None:
            return f"none: {self.speakers} validation speakers are too few"
        text = (
            f"{self.margin:.1f} years each way for {100 * self.share:.0f} %, from {self.speakers} validation speakers"
        )
        if self.test_coverage is None:
            return text
        return f"{text}; held {100 * self.test_coverage:.0f} % of the recordings of {self.test_speakers} test speakers"


# ------------------------------------------------------------------------------------------------------------- choosing


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray, speakers: np.ndarray | None = None) -> Calibration:
    """Fit the temperature (Guo et al. 2017, arXiv 1706.04599) to the validation part by negative log-likelihood.

    probabilities: (n, C). targets: (n,) class numbers. speakers: (n,) ids; with them every speaker weighs the same, and no
    class gets more than (K + 1) / (K + 2) for K speakers, by the rule of succession: what so few voices can support.
    """
    log_p, targets = np.log(np.clip(probabilities, FLOOR, 1)), np.asarray(targets, np.int64)
    if len(targets) != len(log_p) or not len(targets):
        raise ValueError(
            f"{len(targets)} targets for {len(log_p)} probabilities; the validation part must not be empty"
        )
    weights, cap = np.ones(len(targets)), 1.0
    if speakers is not None:
        _, place, counts = np.unique(np.asarray(speakers, str), return_inverse=True, return_counts=True)
        weights, cap = 1 / counts[place], (len(counts) + 1) / (len(counts) + 2)

    def loss(log_temperature: float) -> float:
        values = softmax(log_p / np.exp(log_temperature), axis=1)[np.arange(len(targets)), targets]
        return float(np.average(-np.log(np.clip(values, FLOOR, 1)), weights=weights))

    best = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return Calibration(float(np.exp(best.x)), cap)


def choose_threshold(targets: np.ndarray, probabilities: np.ndarray, rare: int) -> float:
    """The probability of class `rare` from which it has its best F1 on the validation part; NaN when there is none of it."""
    if not (targets == rare).any():
        return float("nan")
    table = precision_recall_table(targets, probabilities, rare)
    return float(table.loc[table["f1"].idxmax(), "threshold"])


def choose_coverage(
    targets: np.ndarray, probabilities: np.ndarray, classes: list[str], least: float = LEAST_COVERAGE
) -> float:
    """The confidence from which to answer: on the validation part, the best macro F1 with at least this coverage.

    0 when answering always is best.
    """
    table = coverage_table(targets, probabilities, classes)
    allowed = table[table["coverage"] >= least - 1e-9]
    best = allowed.loc[allowed["macro_f1"][::-1].idxmax()]  # of equals the one that answers most
    return 0.0 if best["coverage"] == 1 else float(best["threshold"])


def conformal_margin(errors: np.ndarray, speakers: np.ndarray, share: float) -> float | None:
    """The error that a recording of a new speaker stays within with the chance `share`, from errors on the validation part.

    Hierarchical split conformal prediction (Lee, Barber and Willett 2023, arXiv 2306.06342): each of K speakers weighs
    1 / (K + 1), dealt among that speaker's recordings, since recordings of one voice are not independent.

    errors: (n,) predicted minus true, any sign. speakers: (n,) ids. None when K / (K + 1) is below `share`: 0.8 takes four
    speakers, 0.9 nine.
    """
    errors = np.abs(np.asarray(errors, np.float64))
    names, place, counts = np.unique(np.asarray(speakers, str), return_inverse=True, return_counts=True)
    order = np.argsort(errors, kind="stable")
    reached = np.cumsum(1 / (len(names) + 1) / counts[place[order]]) >= share - 1e-9
    return float(errors[order][reached.argmax()]) if reached.any() else None


def disagreement(probabilities: np.ndarray) -> float:
    """How far windows (n, C) contradict one another, in bits: the entropy of their mean less the mean of their entropies.

    The Jensen-Shannon divergence of several distributions (Lin 1991, IEEE Trans. Inf. Theory 37, 145): 0 where all say the
    same, however unsure; log2 of the number of classes where each window is sure and every class is told as often.
    """
    p = np.clip(probabilities, FLOOR, 1)
    return float(entropy(p.mean(axis=0), base=2) - entropy(p, base=2, axis=1).mean())


def most_disagreement(windows: pd.DataFrame, columns: list[str]) -> float:
    """Disagreement that `ONE_VOICE` of the validation speakers' recordings stay within; each speaker's windows are one recording.

    A recording beyond it holds, by this measure, more than one voice.
    """
    groups = [part[columns].to_numpy() for _, part in windows.groupby(["speaker_id", "target"]) if len(part) > 1]
    return float(np.quantile([disagreement(part) for part in groups], ONE_VOICE)) if groups else float("inf")


def answer_with_threshold(probabilities: np.ndarray, rare: int, threshold: float | np.ndarray) -> np.ndarray:
    """Answers (n,): class `rare` from its threshold on, else the most probable of the others."""
    probabilities = np.asarray(probabilities)
    others = np.where(np.arange(probabilities.shape[1]) == rare, -1.0, probabilities).argmax(axis=1)
    return np.where(probabilities[:, rare] >= threshold, rare, others)


# -------------------------------------------------------------------------------------------------- curves for figures


def reliability_table(targets: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """One row a non-empty range of confidence: low, high, n, confidence (mean), accuracy."""
    place, confidence, correct = confidence_bins(targets, probabilities)
    table = pd.DataFrame({"bin": place, "confidence": confidence, "accuracy": correct}).groupby("bin")
    table = table.agg(n=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean"))
    table = table.reset_index()
    return table.assign(low=table["bin"] / BINS, high=(table["bin"] + 1) / BINS).drop(columns="bin")


def confidence_bins(targets: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bin, confidence and correctness of each row's answer."""
    confidence = np.asarray(probabilities).max(axis=1)
    correct = (np.asarray(probabilities).argmax(axis=1) == np.asarray(targets)).astype(np.float64)
    return np.clip((confidence * BINS).astype(int), 0, BINS - 1), confidence, correct


def precision_recall_table(targets: np.ndarray, probabilities: np.ndarray, rare: int) -> pd.DataFrame:
    """Precision, recall and F1 of class `rare` at every threshold on its probability, thresholds rising."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, threshold = precision_recall_curve(
        np.asarray(targets) == rare, np.asarray(probabilities)[:, rare]
    )
    table = pd.DataFrame({"threshold": threshold, "precision": precision[:-1], "recall": recall[:-1]})
    total = (table["precision"] + table["recall"]).clip(lower=1e-12)
    return table.assign(f1=2 * table["precision"] * table["recall"] / total)


def coverage_table(
    targets: np.ndarray, probabilities: np.ndarray, classes: list[str], steps: int = 100
) -> pd.DataFrame:
    """What the most confident part scores: coverage (share answered), threshold, n, accuracy, uar, macro_f1.

    Rows go from the most confident hundredth (at `steps` = 100) to everything. A class that is never answered for counts
    0 in uar and macro_f1: else silence about all of a rare class would look perfect.
    """
    confidence, answers = probabilities.max(axis=1), probabilities.argmax(axis=1)
    order, rows = np.argsort(-confidence, kind="stable"), []
    occurring = np.bincount(targets, minlength=len(classes)) > 0
    for n in np.unique(np.ceil(np.linspace(0, 1, steps + 1)[1:] * len(order)).astype(int)):
        chosen = order[:n]
        counts = confusion_counts(targets[chosen], answers[chosen], len(classes))
        scores = confusion_metrics(counts, classes)
        support, named = counts.sum(axis=1) > 0, (counts.sum(axis=0) + counts.sum(axis=1)) > 0
        row = {"coverage": n / len(order), "threshold": confidence[order[n - 1]], "n": int(n)}
        row["accuracy"] = float(scores["accuracy"])
        row["uar"] = float(scores["uar"] * support.sum() / occurring.sum())
        row["macro_f1"] = float(scores["macro_f1"] * named.sum() / (named | occurring).sum())
        rows.append(row)
    return pd.DataFrame(rows)
