"""From a run to its model folders: what 05 Evaluate hands over, calibrated and with a threshold chosen on validation."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lib import paths
from lib.bundles import save_bundle
from lib.calibration import Calibration, calibrate_predictions, choose_coverage, fit_temperature
from lib.encoders import Encoder
from lib.experiments import Task
from lib.scores import aggregate_predictions
from lib.stages import Stage
from lib.training import checkpoint_path
from lib.windows import Windowing


def settle_head(predictions: pd.DataFrame, task: Task, least: float = 0.8) -> tuple[Calibration, float]:
    """Temperature and threshold of one model from its answers to the validation part.

    `predictions`: rows of one task, model, protocol and seed. The temperature is fitted on windows; the threshold is the
    confidence of a whole recording from which macro F1 is best, with at least the share `least` answered.
    """
    columns = [f"p_{name}" for name in task.classes]
    validation = predictions[predictions["split"] == "validation"].dropna(subset=columns)
    calibration = fit_temperature(validation[columns].to_numpy(), validation["target"].to_numpy())
    told = aggregate_predictions(calibrate_predictions(validation, task.classes, calibration), "clip")
    threshold = choose_coverage(told["target"].to_numpy(), told[columns].to_numpy(), task.classes, least)
    return calibration, threshold


def ship_models(
    run: str,
    trained: Stage,
    fits: pd.DataFrame,
    predictions: pd.DataFrame,
    scores: pd.DataFrame,
    tasks: list[Task],
    *,
    encoder: Encoder,
    windowing: Windowing,
    feature: str,
    dtype: str,
    about: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Write `data/<run>/models/<network>` for every network of the run: one head a task.

    Of several protocols "speaker" is taken, of several seeds the first. `predictions` and `scores` are those of 05 Evaluate;
    `about` goes into the model card. Returns one row a head: model, task, epoch, temperature, unsure below.
    """
    protocols = list(fits["protocol"].unique())
    protocol = "speaker" if "speaker" in protocols else protocols[0]
    rows = []
    for network, fitted in fits[fits["protocol"] == protocol].groupby("network", sort=False):
        seed = fitted["seed"].iloc[0]
        fitted = fitted[fitted["seed"] == seed].set_index("task")
        mine = (predictions["model"] == network) & (predictions["protocol"] == protocol) & (predictions["seed"] == seed)
        here = [task for task in tasks if task.name in fitted.index]
        settled = {
            task.name: settle_head(predictions[mine & (predictions["task"] == task.name)], task) for task in here
        }
        chosen = fitted.loc[[task.name for task in here]]
        asked = (scores["model"] == network) & (scores["protocol"] == protocol) & (scores["split"] == "test")
        save_bundle(
            paths.DATA / run / "models" / str(network),
            {fit.Index: checkpoint_path(trained.path(fit.folder), fit.best_epoch) for fit in chosen.itertuples()},
            encoder,
            windowing,
            feature,
            dtype,
            calibrations={task: calibration for task, (calibration, _) in settled.items()},
            thresholds={task: threshold for task, (_, threshold) in settled.items()},
            metrics=scores[asked].to_dict("records"),
            about={"run": run, "protocol": protocol, "seed": int(seed), **(about or {})},
        )
        for task, (calibration, threshold) in settled.items():
            facts = {"model": network, "task": task, "epoch": int(chosen.loc[task, "best_epoch"])}
            rows.append({**facts, "temperature": calibration.temperature, "unsure below": threshold})
    return pd.DataFrame(rows)
