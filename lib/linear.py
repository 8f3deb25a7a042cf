"""Linear models, fitted by scikit-learn: each is one logistic regression or several, each with a penalty of its own."""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits
from torch import nn

from lib.networks import LinearNet, Model, StepsNet
from lib.paths import save_frame
from lib.train import HISTORY, balanced_weights, checkpoint_path, fit_normaliser, save_model, scores_of, validate

PENALTIES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # scikit-learn's C, strongest penalty first
STEPS = 50  # of L-BFGS at each penalty
BIG = 10_000_000  # numbers in a matrix, from which a second core is worth its while
LINEAR_ROWS = 20_000  # rows that a linear model learns from, and is judged by, at most: what fits in memory
SHARPNESS = np.geomspace(0.1, 4, 20)  # 1 / temperature
FOLDS = 3  # of the training part, speakers apart, by which a penalty is chosen
OWN = 10.0  # how much more children's rows weigh for the children's expert, see docs/experiments.md


@dataclass
class Problem:
    """One logistic regression inside a network: what it reads, tells apart and is judged by."""

    linear: nn.Linear  # gets the coefficients
    columns: slice  # of the values that it reads
    targets: np.ndarray  # (n,) of all rows
    weights: np.ndarray  # (n,), 0: not learned from
    judged: np.ndarray  # (n,) bool: rows that its penalty may be chosen by
    tempered: bool = False  # a step: its answers are multiplied by others', so they get a temperature of their own
    # goes on from the coefficients that it has
    probe: Any = field(init=False, default_factory=partial(LogisticRegression, max_iter=STEPS, warm_start=True))

    def fit(self, values: np.ndarray, rows: np.ndarray, penalty: float, sharpness: float = 1.0) -> None:
        """Go on from the coefficients of the penalty before: a path takes few steps more than one fit. The network gets them
        times `sharpness`, 1 / temperature."""
        learned = self.weights[rows] > 0
        own, asked = values[learned][:, self.columns], rows[learned]
        self.probe.set_params(C=penalty)
        with threadpool_limits(1 if values.size < BIG else None), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # validation judges what so many steps give
            self.probe.fit(own, self.targets[asked], sample_weight=self.weights[asked])
        weight, bias = self.probe.coef_.copy(), self.probe.intercept_.copy()
        if len(weight) < self.linear.out_features:  # of two classes scikit-learn keeps the second alone
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(weight * sharpness))
            self.linear.bias.copy_(torch.from_numpy(bias * sharpness))

    def loss(self, values: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
        """Negative log-likelihood on other rows, of all where its own lack a class, and the sharpness where it is least. Classes
        count alike; of a step the rows as they weigh where it learns, if these hold every class."""
        own = self.judged[rows]
        if len(np.unique(self.targets[rows][own])) < len(self.probe.classes_):
            own = np.ones(len(rows), bool)
        targets, even = self.targets[rows][own], self.weights[rows][own]
        answers = self.probe.predict_log_proba(values[own][:, self.columns])
        if not self.tempered or len(np.unique(targets[even > 0])) < len(self.probe.classes_):
            even = compute_sample_weight("balanced", targets)
        tempered = ((softmax(answers * sharpness, axis=1), sharpness) for sharpness in SHARPNESS)
        return min((log_loss(targets, one, sample_weight=even, labels=self.probe.classes_), by) for one, by in tempered)

    def losses(self, penalties: Sequence[float], values: np.ndarray, rows: np.ndarray, others, voices) -> np.ndarray:
        """Loss and sharpness (2, P) at P penalties by folds of the training rows, speakers apart; else on `others`, values and rows."""
        folds, asked = [(np.arange(len(rows)), None)], rows[self.weights[rows] > 0]
        if pd.Series(voices[asked]).groupby(self.targets[asked]).nunique().min() >= FOLDS:
            parts = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
            folds = list(parts.split(values, self.targets[rows], voices[rows]))
        told = np.zeros((2, len(penalties)))
        for learn, held in folds:
            trial, judged = replace(self), others if held is None else (values[held], rows[held])
            for number, penalty in enumerate(penalties):
                trial.fit(values[learn], rows[learn], penalty)
                told[:, number] += np.divide(trial.loss(*judged), len(folds))
        return told if self.tempered else np.stack([told[0], np.ones(len(penalties))])


def fit_linear(
    model: Model, features: Any, targets: np.ndarray, rows_train: np.ndarray, rows_validation: np.ndarray, folder: Path,
    weights: np.ndarray, children: np.ndarray, voices: np.ndarray, seed: int = 0,
    penalties: Sequence[float | Sequence[float]] = PENALTIES,
) -> tuple[pd.DataFrame, int]:  # fmt: skip
    """Fit a linear model at every penalty; the one with the lowest tempered loss is chosen, each regression's by itself.
    Returns the history, one row a penalty, numbered from 1 in the column "epoch", and the chosen one's number.
    weights, children, voices: (len(features),) factor on each row's loss, whether a child speaks (for "experts"), and the
    speaker, by whom training is folded to choose; validation chooses where too few speak. penalties: to choose from, or
    one list of one for each regression. The rest as in `lib.train.fit_network`; a finished folder is read, not fitted again."""
    folder, classes = Path(folder), model.settings["classes"]
    if (folder / HISTORY).exists():
        table = pd.read_csv(folder / HISTORY)
        return table, int(table["tempered_loss"].idxmin()) + 1
    criterion, history = nn.NLLLoss(weight=balanced_weights(targets[rows_train], classes)), []
    rows_train, judged = (
        np.sort(np.random.default_rng(seed).choice(rows, min(LINEAR_ROWS, len(rows)), replace=False))
        for rows in (rows_train, rows_validation)
    )
    fit_normaliser(model.normaliser, features, rows_train)
    with torch.inference_mode():
        values, unheard = (model.normaliser(torch.from_numpy(features[rows])).numpy() for rows in (rows_train, judged))
    learned = np.isin(np.arange(len(targets)), rows_train)
    problems = list_problems(model.network, targets, np.where(learned, weights, 0.0), children)
    by_folds = partial(Problem.losses, values=values, rows=rows_train, others=(unheard, judged), voices=voices)
    if isinstance(penalties[0], float):
        losses, sharp = np.stack([by_folds(one, penalties) for one in problems], axis=1)
        trials = [([one] * len(problems), sharp[:, at], losses[:, at].sum()) for at, one in enumerate(penalties)]
        if len(problems) > 1:
            own = losses.argmin(axis=1)
            each = np.take_along_axis(sharp, own[:, None], axis=1)[:, 0]
            trials.append(([penalties[at] for at in own], each, losses.min(axis=1).sum()))
    else:
        each = list(penalties[0]) * (len(problems) // len(penalties[0]))
        sharp = [by_folds(one, [penalty])[1, 0] if one.tempered else 1.0 for one, penalty in zip(problems, each)]
        trials = [(each, sharp, 0.0)]
    best = int(np.argmin([loss for _, _, loss in trials])) + 1
    for epoch, (each, sharp, loss) in enumerate(trials, 1):
        for problem, penalty, sharpness in zip(problems, each, sharp):
            problem.fit(values, rows_train, penalty, sharpness)
        told = "|".join(f"{one:g}" for one in (each if len(set(each)) > 1 else each[:1]))  # once where all are alike
        row = {"epoch": epoch, "penalty": told, "tempered_loss": float(loss)}
        trained = validate(model.network, values, targets[rows_train], np.arange(len(values)), criterion)
        row |= scores_of("train", *trained, classes)
        row |= scores_of("validation", *validate(model, features, targets, rows_validation, criterion), classes)
        history.append(row)
        if epoch == best:
            save_model(checkpoint_path(folder, epoch), model, {"epoch": epoch, "scores": row})
    return save_frame(folder / HISTORY, pd.DataFrame(history)), best


def list_problems(network: nn.Module, targets: np.ndarray, weights: np.ndarray, children: np.ndarray) -> list[Problem]:
    """The regressions of a network; weights: (n,), 0 for rows that are not learned from."""
    everybody = np.ones(len(targets), bool)
    if isinstance(network, LinearNet):
        return [Problem(network.classifier[0], slice(None), targets, _spread(weights), everybody)]
    columns = [slice(start, end) for start, end in itertools.pairwise(np.cumsum([0, *network.widths]))]
    if isinstance(network, StepsNet):
        steps = enumerate(zip(network.steps, columns))
        asked = [(step, own, targets == number, targets >= number) for number, (step, own) in steps]
        return [Problem(step, own, here, _spread(weights * rows, here), rows, True) for step, own, here, rows in asked]
    if len(np.unique(children[weights > 0])) < 2:
        raise ValueError(
            "the network 'experts' learns to tell children from others by the ages of training's speakers, who are all on one "
            "side; take 'linear' with the same parts, or add speakers of the other side"
        )
    others, own = network.experts
    return [
        Problem(network.gate, columns[0], children, _spread(weights, children), everybody),
        Problem(others, columns[1], targets, _spread(weights), ~children),
        Problem(own, columns[1], targets, _spread(weights * np.where(children, OWN, 1)), children),
    ]


def middle_penalty(told: Sequence[str], count: int) -> list[float]:
    """The median of several trainings' penalties, as histories keep them ("0.0001" is of all regressions, "0.01|0.0001" of
    each), for each of a network's `count` regressions."""
    values = [[float(one) for one in str(text).split("|")] for text in told]
    return np.median([each * (count // len(each)) for each in values], axis=0).tolist()


def _spread(weights: np.ndarray, side: np.ndarray | None = None) -> np.ndarray:
    """Weights with a mean of 1 over the rows that have one, and with both sides of a question alike."""
    weights = weights.astype(np.float64)
    for rows in () if side is None else (side, ~side):
        weights = np.where(rows, weights / max(weights[rows].sum(), 1e-12), weights)
    return weights / weights[weights > 0].mean()
