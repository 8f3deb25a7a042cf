"""Whether a stated probability can be believed, and what to do with it: temperature, a cap, thresholds, staying silent.
All is chosen on the validation part; the test part is only scored."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import entropy

from lib.scores import confusion_metrics

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


@dataclass(frozen=True)
class Years:
    """How a head over classes of years tells an age: the mean of `centres` by its probabilities as trained, +- `margin`.
    The coverages are shares of recordings inside, every speaker counting the same; the test's was only scored."""

    centres: list[float]  # (C,) mean age of each class in the training part
    margin: float | None  # years on each side; None = too few validation speakers
    share: float = YEARS_SHARE  # the chance that the interval aims at, by recordings of a new speaker
    speakers: int = 0  # of validation, on whom the margin was chosen
    validation_coverage: float | None = None
    test_coverage: float | None = None
    test_speakers: int = 0

    def describe(self) -> str:
        """The interval in words, for tables and the card."""
        if self.margin is None:
            return f"none: {self.speakers} validation speakers are too few"
        aim, told = f"{self.margin:.1f} years each way for {100 * self.share:.0f} %", ""
        if self.test_coverage is not None:
            told = f"; held {100 * self.test_coverage:.0f} % of the recordings of {self.test_speakers} test speakers"
        return f"{aim}, from {self.speakers} validation speakers{told}"


def fit_temperature(probabilities: np.ndarray, targets: np.ndarray, speakers: np.ndarray) -> Calibration:
    """The temperature (Guo et al. 2017, arXiv 1706.04599) with the lowest negative log-likelihood on the validation part.
    probabilities: (n, C); targets, speakers: (n,). Every speaker weighs the same, and no class gets more than
    (K + 1) / (K + 2) for K speakers, by the rule of succession: what so few voices can support."""
    log_p, targets = np.log(np.clip(probabilities, FLOOR, 1)), np.asarray(targets, np.int64)
    if not 0 < len(targets) == len(log_p):
        raise ValueError(f"{len(targets)} targets for {len(log_p)} probabilities; validation must not be empty")
    _, place, counts = np.unique(np.asarray(speakers, str), return_inverse=True, return_counts=True)

    def loss(log_temperature: float) -> float:
        values = softmax(log_p / np.exp(log_temperature), axis=1)[np.arange(len(targets)), targets]
        return float(np.average(-np.log(np.clip(values, FLOOR, 1)), weights=1 / counts[place]))

    best = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return Calibration(float(np.exp(best.x)), (len(counts) + 1) / (len(counts) + 2))


def choose_threshold(targets: np.ndarray, probabilities: np.ndarray, rare: int) -> float:
    """The probability of class `rare` from which it has its best F1 on the validation part; NaN when there is none of it."""
    from sklearn.metrics import precision_recall_curve

    if not (targets == rare).any():
        return float("nan")
    precision, recall, thresholds = precision_recall_curve(targets == rare, probabilities[:, rare])
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[f1[:-1].argmax()])  # the last is recall 0, beyond every threshold


def answer_with_threshold(probabilities: np.ndarray, rare: int, threshold: float | np.ndarray) -> np.ndarray:
    """Answers (n,): class `rare` from its threshold on, else the most probable of the others."""
    others = np.where(np.arange(probabilities.shape[1]) == rare, -1.0, probabilities).argmax(axis=1)
    return np.where(probabilities[:, rare] >= threshold, rare, others)


def coverage_table(targets: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """What the most confident part scores: coverage (share answered), threshold, accuracy, macro_f1.
    Rows go from the most confident hundredth to everything. In macro_f1 a class that is never answered for counts 0."""
    confidence, answers, size = probabilities.max(axis=1), probabilities.argmax(axis=1), len(classes)
    order = np.argsort(-confidence, kind="stable")
    last = np.unique(np.ceil(np.linspace(0, 1, 101)[1:] * len(order)).astype(int)) - 1  # each row's last place there
    cells = np.eye(size**2)[(targets * size + answers)[order]].cumsum(axis=0)[last].reshape(-1, size, size)
    scores, named = confusion_metrics(cells, classes), cells.sum(axis=1) + cells.sum(axis=2) > 0
    macro_f1 = scores["macro_f1"] * named.sum(axis=1) / (named | (cells[-1].sum(axis=1) > 0)).sum(axis=1)
    columns = {"coverage": (last + 1) / len(order), "threshold": confidence[order[last]]}
    return pd.DataFrame(columns | {"accuracy": scores["accuracy"], "macro_f1": macro_f1})


def choose_coverage(targets: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> float:
    """The confidence from which to answer: the best macro F1 on validation with `LEAST_COVERAGE`; 0 = always."""
    table = coverage_table(targets, probabilities, classes)
    allowed = table[table["coverage"] >= LEAST_COVERAGE - 1e-9]
    best = allowed.loc[allowed["macro_f1"][::-1].idxmax()]  # of equals the one that answers most
    return 0.0 if best["coverage"] == 1 else float(best["threshold"])


def conformal_margin(errors: np.ndarray, speakers: np.ndarray, share: float) -> float | None:
    """The error that a recording of a new speaker stays within with the chance `share`, from errors on the validation part.
    Hierarchical split conformal prediction (Lee, Barber and Willett 2023, arXiv 2306.06342): each of K speakers weighs
    1 / (K + 1), dealt among that speaker's recordings, since recordings of one voice are not independent.
    errors: (n,) predicted minus true, any sign. speakers: (n,) ids. None when K / (K + 1) is below `share`: 0.8 takes four."""
    errors = np.abs(np.asarray(errors, np.float64))
    names, place, counts = np.unique(np.asarray(speakers, str), return_inverse=True, return_counts=True)
    order = np.argsort(errors, kind="stable")
    reached = np.cumsum(1 / (len(names) + 1) / counts[place[order]]) >= share - 1e-9
    return float(errors[order][reached.argmax()]) if reached.any() else None


def disagreement(probabilities: np.ndarray) -> float:
    """How far windows (n, C) contradict one another, in bits: the entropy of their mean less the mean of their entropies.
    The Jensen-Shannon divergence of several distributions (Lin 1991, IEEE Trans. Inf. Theory 37, 145): 0 where all say the
    same, however unsure; log2 of the number of classes where each window is sure and every class is told as often."""
    p = np.clip(probabilities, FLOOR, 1)
    return float(entropy(p.mean(axis=0), base=2) - entropy(p, base=2, axis=1).mean())


def most_disagreement(windows: pd.DataFrame, columns: list[str]) -> float:
    """Disagreement that `ONE_VOICE` of the validation speakers stay within, each taken as one recording; beyond it are more voices."""
    groups = [part[columns].to_numpy() for _, part in windows.groupby(["speaker_id", "target"]) if len(part) > 1]
    return float(np.quantile([disagreement(part) for part in groups], ONE_VOICE)) if groups else float("inf")
