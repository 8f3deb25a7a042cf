"""Whether a stated probability can be believed, and what to do with it: temperature, thresholds, staying silent.

Everything that is chosen here is chosen on the validation part and handed in as numbers; the test part is only scored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from lib.bootstrap import DRAWS, bootstrap_trainings
from lib.scores import confusion_counts, confusion_metrics, make_records

BINS = 15
FLOOR = 1e-7  # least probability whose logarithm is taken


@dataclass
class Calibration:
    """log p becomes log p / temperature + bias, normalised again; the default changes nothing."""

    temperature: float = 1.0
    bias: list[float] | None = None  # [C]; None = all 0

    def as_json(self) -> dict[str, Any]:
        """What a model folder stores; `Calibration(**as_json())` is the same again."""
        return asdict(self)


@dataclass(frozen=True)
class Years:
    """How a head over classes of years tells an age: the mean of `centres` by its probabilities as trained, +- `margin`.

    `margin` is years on each side, None = too few validation speakers; `share` the chance it aims at, by recordings of a
    new speaker. The coverages are shares of recordings inside, every speaker counting the same; the test's was only scored.
    """

    centres: list[float]  # [C] mean age of each class in the training part
    margin: float | None
    share: float = 0.8
    speakers: int = 0  # of validation, on whom the margin was chosen
    validation_coverage: float | None = None
    test_coverage: float | None = None
    test_speakers: int = 0

    def describe(self) -> str:
        """The interval in words, for tables and the card."""
        if self.margin is None:
            return f"none: {self.speakers} validation speakers are too few"
        told = (
            f"{self.margin:.1f} years each way for {100 * self.share:.0f} %, from {self.speakers} validation speakers"
        )
        if self.test_coverage is None:
            return told
        return f"{told}; held {100 * self.test_coverage:.0f} % of the recordings of {self.test_speakers} test speakers"


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray, bias: bool = False) -> Calibration:
    """Fit the temperature (Guo et al. 2017, arXiv 1706.04599) to the validation part by negative log-likelihood.

    Parameters
    ----------
    probabilities: [n, C]. targets: [n] class numbers.
    bias: also fit a shift a class (bias-corrected temperature scaling, Alexandari et al. 2020, arXiv 1901.06852), which
        undoes the balanced priors that class weights train in. It can change answers; the temperature alone cannot.
    """
    from scipy.optimize import minimize

    log_p = np.log(np.clip(probabilities, FLOOR, 1))
    targets, classes = np.asarray(targets, np.int64), log_p.shape[1]
    if len(targets) != len(log_p) or not len(targets):
        raise ValueError(
            f"{len(targets)} targets for {len(log_p)} probabilities; the validation part must not be empty"
        )

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        p = _softmax(np.exp(x[0]) * log_p + np.append(x[1:], 0.0)[:classes] if bias else np.exp(x[0]) * log_p)
        wrong = p.copy()
        wrong[np.arange(len(p)), targets] -= 1  # the gradient with respect to the logits
        slope = np.concatenate([[np.exp(x[0]) * (wrong * log_p).sum()], wrong[:, :-1].sum(axis=0) if bias else []])
        value = -np.log(np.clip(p[np.arange(len(p)), targets], FLOOR, 1)).mean()
        return value, slope / len(p)

    bounds = [(-4.0, 4.0)] + [(-10.0, 10.0)] * (classes - 1 if bias else 0)  # temperatures from 0.02 to 55
    found = minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds)
    shift = [*map(float, found.x[1:]), 0.0] if bias else None
    return Calibration(float(np.exp(-found.x[0])), shift)


def apply_calibration(probabilities: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Calibrated probabilities [n, C]."""
    log_p = np.log(np.clip(probabilities, FLOOR, 1)) / calibration.temperature
    return _softmax(log_p if calibration.bias is None else log_p + np.asarray(calibration.bias))


def conformal_margin(errors: np.ndarray, speakers: np.ndarray, share: float) -> float | None:
    """The error that a recording of a new speaker stays within with the chance `share`, from errors on the validation part.

    Hierarchical split conformal prediction (Lee, Barber and Willett 2023, arXiv 2306.06342): each of K speakers weighs
    1 / (K + 1), dealt among that speaker's recordings, since recordings of one voice are not independent.

    Parameters
    ----------
    errors: [n] predicted minus true, any sign. speakers: [n] ids.

    Returns None when K / (K + 1) is below `share`: 0.8 takes four speakers, 0.9 nine.
    """
    errors = np.abs(np.asarray(errors, np.float64))
    names, place, counts = np.unique(np.asarray(speakers, str), return_inverse=True, return_counts=True)
    order = np.argsort(errors, kind="stable")
    reached = np.cumsum(1 / (len(names) + 1) / counts[place[order]]) >= share - 1e-9
    return float(errors[order][reached.argmax()]) if reached.any() else None


def disagreement(probabilities: np.ndarray) -> float:
    """How far windows [n, C] contradict one another, in bits: the entropy of their mean less the mean of their entropies.

    The Jensen-Shannon divergence of several distributions (Lin 1991, IEEE Trans. Inf. Theory 37, 145): 0 where all say the
    same, however unsure; log2 of the number of classes where each window is sure and every class is told as often.
    """
    from scipy.stats import entropy

    p = np.clip(probabilities, FLOOR, 1)
    return float(entropy(p.mean(axis=0), base=2) - entropy(p, base=2, axis=1).mean())


def _softmax(logits: np.ndarray) -> np.ndarray:
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)


# ----------------------------------------------------------------------------------------------------------------------
# Scores


def score_calibration(
    targets: np.ndarray,
    probabilities: np.ndarray,
    speakers: np.ndarray,
    *,
    trainings: np.ndarray | None = None,
    bins: int = BINS,
    draws: int = DRAWS,
    seed: int = 0,
    context: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Records of ece, brier and nll with their intervals over speakers; `trainings` [n]: seeds to take the mean over.

    ece: expected calibration error over `bins` equal ranges of the told class's probability. brier: sum over classes of
    the squared distance from the truth (0 to 2). nll: mean negative log-likelihood in nats. Few rows bias ece upwards,
    in the bootstrap once more: its interval may lie above its value.
    """
    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets, np.int64)
    place, confidence, correct = _places(targets, probabilities, bins)
    rows = np.arange(len(targets))
    values = np.zeros((len(targets), bins + 3))  # signed gap of each bin, then n, brier and nll
    values[rows, place] = confidence - correct
    truth = np.eye(probabilities.shape[1])[targets]
    values[:, bins] = 1
    values[:, bins + 1] = np.square(probabilities - truth).sum(axis=1)
    values[:, bins + 2] = -np.log(np.clip(probabilities[rows, targets], FLOOR, 1))

    def statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
        n = sums[..., bins]
        gaps = np.abs(sums[..., :bins]).sum(axis=-1)
        return {"ece": gaps / n, "brier": sums[..., bins + 1] / n, "nll": sums[..., bins + 2] / n}

    found = bootstrap_trainings(values, speakers, trainings, statistic, draws, seed)
    count = 1 if trainings is None else len(np.unique(trainings))
    return make_records(found, speakers, context).assign(n=len(targets) // count, seeds=count)


def reliability_table(targets: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """One row a non-empty range of confidence: low, high, n, confidence (mean), accuracy."""
    place, confidence, correct = _places(targets, probabilities, bins)
    table = pd.DataFrame({"bin": place, "confidence": confidence, "accuracy": correct})
    table = table.groupby("bin").agg(
        n=("bin", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    table = table.reset_index()
    table.insert(0, "low", table["bin"] / bins)
    table.insert(1, "high", (table.pop("bin") + 1) / bins)
    return table


def _places(targets: np.ndarray, probabilities: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bin, confidence and correctness of each row's answer."""
    confidence = np.asarray(probabilities).max(axis=1)
    correct = (np.asarray(probabilities).argmax(axis=1) == np.asarray(targets)).astype(np.float64)
    return np.clip((confidence * bins).astype(int), 0, bins - 1), confidence, correct


# ----------------------------------------------------------------------------------------------------------------------
# A threshold for the rare class


def precision_recall_table(targets: np.ndarray, probabilities: np.ndarray, rare: int) -> pd.DataFrame:
    """Precision, recall and F1 of class `rare` at every threshold on its probability, thresholds rising."""
    from sklearn.metrics import precision_recall_curve

    truth = np.asarray(targets) == rare
    if not truth.any():
        raise ValueError(f"no row is of class {rare}; its precision and recall are not defined")
    precision, recall, threshold = precision_recall_curve(truth, np.asarray(probabilities)[:, rare])
    table = pd.DataFrame({"threshold": threshold, "precision": precision[:-1], "recall": recall[:-1]})
    total = (table["precision"] + table["recall"]).clip(lower=1e-12)
    return table.assign(f1=2 * table["precision"] * table["recall"] / total)


def choose_threshold(targets: np.ndarray, probabilities: np.ndarray, rare: int) -> float:
    """The threshold on the probability of class `rare` with the best F1 of that class, on the validation part."""
    table = precision_recall_table(targets, probabilities, rare)
    return float(table.loc[table["f1"].idxmax(), "threshold"])


def answer_with_threshold(probabilities: np.ndarray, rare: int, threshold: float) -> np.ndarray:
    """Answers [n]: class `rare` from its threshold on, else the most probable of the others."""
    probabilities = np.asarray(probabilities)
    others = np.where(np.arange(probabilities.shape[1]) == rare, -1.0, probabilities).argmax(axis=1)
    return np.where(probabilities[:, rare] >= threshold, rare, others)


# ----------------------------------------------------------------------------------------------------------------------
# Staying silent


def coverage_table(
    targets: np.ndarray, probabilities: np.ndarray, classes: list[str], steps: int = 100
) -> pd.DataFrame:
    """What the most confident part scores: coverage (share answered), threshold, n, accuracy, uar, macro_f1, F1s.

    Rows go from the most confident hundredth (at `steps` = 100) to everything. A class that is never answered for counts
    0 in uar and macro_f1: else silence about all of a rare class would look perfect.
    """
    targets, probabilities = np.asarray(targets), np.asarray(probabilities)
    confidence, told = probabilities.max(axis=1), probabilities.argmax(axis=1)
    order = np.argsort(-confidence, kind="stable")
    held, rows = np.bincount(targets, minlength=len(classes)) > 0, []
    for n in np.unique(np.ceil(np.linspace(0, 1, steps + 1)[1:] * len(order)).astype(int)):
        kept = order[:n]
        counts = confusion_counts(targets[kept], told[kept], len(classes))
        scores = confusion_metrics(counts, classes)
        support, named = counts.sum(axis=1) > 0, (counts.sum(axis=0) + counts.sum(axis=1)) > 0
        scores["uar"] = scores["uar"] * support.sum() / held.sum()
        scores["macro_f1"] = scores["macro_f1"] * named.sum() / (named | held).sum()
        row = {"coverage": n / len(order), "threshold": confidence[order[n - 1]], "n": int(n)}
        rows.append(row | {name: float(value) for name, value in scores.items() if not name.startswith("recall")})
    return pd.DataFrame(rows)


def choose_coverage(
    targets: np.ndarray, probabilities: np.ndarray, classes: list[str], least: float = 0.8, metric: str = "macro_f1"
) -> float:
    """The confidence from which to answer: on the validation part, the best `metric` with at least this coverage.

    0 when answering always is best.
    """
    table = coverage_table(targets, probabilities, classes)
    allowed = table[table["coverage"] >= least - 1e-9]
    best = allowed.loc[allowed[metric][::-1].idxmax()]  # of equals the one that answers most
    return 0.0 if best["coverage"] == 1 else float(best["threshold"])


def score_coverage(
    targets: np.ndarray, probabilities: np.ndarray, classes: list[str], threshold: float
) -> dict[str, float]:
    """What the chosen threshold does elsewhere: coverage, and scores of the answered part (NaN when none is)."""
    answered = np.asarray(probabilities).max(axis=1) >= threshold
    told = np.asarray(probabilities)[answered].argmax(axis=1)
    counts = confusion_counts(np.asarray(targets)[answered], told, len(classes))
    scores = confusion_metrics(counts, classes)
    return {"threshold": threshold, "coverage": float(answered.mean()), "n": int(answered.sum())} | {
        name: float(value) for name, value in scores.items()
    }
