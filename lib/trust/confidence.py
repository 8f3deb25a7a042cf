"""What a run's probabilities are worth: temperatures, thresholds and silence, scored on test. Every training has its own, from
the validation part of its own fold; scores are means over seeds."""

from typing import Any

import numpy as np
import pandas as pd

from lib.evaluate import answer_years, select_answers, year_centres
from lib.results import select_scores, tabulate
from lib.scores import aggregate_predictions, bootstrap_trainings, score_answers
from lib.tasks import YEARS, Task
from lib.trust import calibration
from lib.trust.calibration import BINS, FLOOR, YEARS_SHARE, Calibration, Years

KEYS = ["task", "model", "fold", "seed"]


def fit_settings(windows: pd.DataFrame, task: Task, rare: int) -> dict[str, Any]:
    """What one training's answers on validation windows choose: temperature, cap, `silence`, thresholds, `disagreement`.
    `silence`: the confidence of a clip from which to answer (0 = always). `rare_threshold`: the calibrated probability of
    class `rare` from which a window is called so, `rare_clip_threshold` from which a clip is; NaN: validation has none of it."""
    columns = [f"p_{name}" for name in task.classes]
    fitted = calibration.fit_temperature(windows[columns].to_numpy(), windows["target"], windows["speaker_id"])
    windows = windows.assign(**dict(zip(columns, fitted.apply(windows[columns].to_numpy()).T)))
    clips = aggregate_predictions(windows, "clip")
    by_window, by_clip = ((table["target"].to_numpy(), table[columns].to_numpy()) for table in (windows, clips))
    return vars(fitted) | {
        "silence": calibration.choose_coverage(*by_clip, task.classes),
        "rare": task.classes[rare],
        "rare_threshold": calibration.choose_threshold(*by_window, rare),
        "rare_clip_threshold": calibration.choose_threshold(*by_clip, rare),
        "disagreement": calibration.most_disagreement(windows, columns),
        "validation_speakers": int(windows["speaker_id"].nunique()),
    }


def fit_reliability(
    predictions: pd.DataFrame, splits: pd.DataFrame, tasks: list[Task], protocol: str, networks: list[str]
) -> pd.DataFrame:
    """`fit_settings` of every training, from validation alone: one row a task, model, fold and seed.
    A row with fold -1 and seed -1 pools the validation parts of all folds: for a model that learns from everyone in the end."""
    rows = []
    for task in tasks:
        train = splits[(splits["task"] == task.name) & (splits["protocol"] == protocol) & (splits["split"] == "train")]
        rare = int(np.bincount(train["target"], minlength=len(task.classes)).argmin())
        for network in networks:
            answers = select_answers(predictions, task, network, protocol, "validation")
            pooled = answers[answers["seed"] == answers["seed"].min()]
            for (fold, seed), part in [*answers.groupby(["fold", "seed"]), ((-1, -1), pooled)]:
                if len(part):  # not every network is trained for every task
                    facts = {"task": task.name, "model": network, "protocol": protocol, "fold": fold, "seed": seed}
                    rows.append(facts | fit_settings(part, task, rare))
    return pd.DataFrame(rows)


def fit_years(answers: pd.DataFrame, splits: pd.DataFrame, task: Task, model: str, protocol: str, fold: int) -> Years:
    """How `model` tells an age: the margin from the validation clips (`conformal_margin`), its coverage there and on test.
    fold: whose training; -1 = all folds pooled, their first seeds, and the centres of everybody."""
    errors = {}  # by split, a series over clips whose index is the speaker
    for split in ("validation", "test"):
        clips = aggregate_predictions(answer_years(answers, splits, task, split), "clip")
        clips = clips.query("model == @model and protocol == @protocol and (fold == @fold or @fold < 0)")
        clips = clips[clips["seed"] == clips["seed"].min()].set_index("speaker_id")
        errors[split] = (clips["predicted_years"] - clips["years"]).abs()
    margin = calibration.conformal_margin(errors["validation"], errors["validation"].index, YEARS_SHARE)
    train = splits[(splits["task"] == task.name) & (splits["protocol"] == protocol)]
    train = train[((train["fold"] == fold) & (train["split"] == "train")) | (fold < 0)].drop_duplicates("window_id")
    coverages = {}
    for split, error in errors.items() if margin is not None else ():
        coverages[f"{split}_coverage"] = float((error <= margin + 1e-9).groupby(level=0).mean().mean())
    told, tested = (error.index.nunique() for error in errors.values())
    return Years(year_centres(train, task), margin, speakers=told, test_speakers=tested, **coverages)


def calibrate_answers(answers: pd.DataFrame, settings: pd.DataFrame, task: Task) -> pd.DataFrame:
    """One model's answers with calibrated probabilities and each training's `silence`, `rare_threshold` beside them."""
    columns, parts = [f"p_{name}" for name in task.classes], []
    known = settings[settings["task"] == task.name].set_index(["model", "fold", "seed"])
    for key, part in answers.groupby(["model", "fold", "seed"], sort=False):
        row = known.loc[key]
        values = Calibration(float(row["temperature"]), float(row["cap"])).apply(part[columns].to_numpy())
        parts.append(part.assign(**dict(zip(columns, values.T)), **row[["silence", "rare_threshold"]].to_dict()))
    return pd.concat(parts, ignore_index=True)


def score_calibration(table: pd.DataFrame, classes: list[str], draws: int, seed: int, **context: str) -> pd.DataFrame:
    """Records of ece, brier and nll with their intervals over speakers, means over training seeds.
    table: target, speaker_id, seed and p_<class>. ece: expected calibration error over `BINS` equal ranges of the answer's
    probability. brier: sum over classes of the squared distance from the truth (0 to 2). nll: mean negative log-likelihood
    in nats. Few rows bias ece upwards, in the bootstrap once more."""
    probabilities, targets = table[[f"p_{name}" for name in classes]].to_numpy(), table["target"].to_numpy()
    binned, truth = bin_answers(probabilities, targets), np.eye(len(classes))[targets]
    gaps = np.eye(BINS)[binned["bin"]] * (binned["confidence"] - binned["accuracy"]).to_numpy()[:, None]
    brier = np.square(probabilities - truth).sum(axis=1)
    nll = -np.log(np.clip((probabilities * truth).sum(axis=1), FLOOR, 1))

    def statistic(sums: np.ndarray) -> dict[str, np.ndarray]:
        gap, (n, brier, nll) = np.abs(sums[..., :BINS]).sum(axis=-1), np.moveaxis(sums[..., BINS:], -1, 0)
        return {"ece": gap / n, "brier": brier / n, "nll": nll / n}

    values = np.column_stack([gaps, np.ones(len(gaps)), brier, nll])
    return bootstrap_trainings(values, table, statistic, draws, seed, None, context).drop(columns="seed_std")


def bin_answers(probabilities: np.ndarray, targets: np.ndarray) -> pd.DataFrame:
    """For each row's answer its confidence, the range that falls in (`bin`), and `accuracy`: 1 where it is right, else 0."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    place = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    return pd.DataFrame({"bin": place, "confidence": confidence, "accuracy": right.astype(float)})


def score_reliability(
    predictions: pd.DataFrame, settings: pd.DataFrame, tasks: list[Task], protocol: str, draws: int, seed: int
) -> pd.DataFrame:
    """Records of ece, brier and nll as trained, and of ece_tempered, brier_tempered, nll_tempered; window and clip."""
    records = []
    for task in tasks:
        for network in settings.loc[settings["task"] == task.name, "model"].unique():
            context = {"task": task.name, "model": network, "protocol": protocol, "split": "test"}
            raw = select_answers(predictions, task, network, protocol, "test")
            for suffix, answers in (("", raw), ("_tempered", calibrate_answers(raw, settings, task))):
                for level in ("window", "clip"):
                    table = aggregate_predictions(answers, level)
                    scores = score_calibration(table, task.classes, draws, seed, **context, level=level)
                    records.append(scores.assign(metric=scores["metric"] + suffix))
    return pd.concat(records, ignore_index=True)


def score_choices(
    predictions: pd.DataFrame, settings: pd.DataFrame, task: Task, model: str, protocol: str, draws: int, seed: int
) -> pd.DataFrame:
    """What the two thresholds from validation do on the test part, for one task's main model: records with `rule`.
    rule "most probable class" and "threshold for <class>" are by window, "may stay silent" and "always answers" by clip;
    `coverage` is the share answered. UAR and macro F1 are NaN where a class is never answered for."""
    columns, records = [f"p_{name}" for name in task.classes], []
    windows = calibrate_answers(select_answers(predictions, task, model, protocol, "test"), settings, task)
    clips = aggregate_predictions(windows, "clip")
    by_window, by_clip = (table[columns].to_numpy() for table in (windows, clips))
    rules = [("most probable class", "window", by_window.argmax(axis=1))]
    if task.name != YEARS:
        rare, threshold = settings.loc[settings["task"] == task.name, "rare"].iloc[0], windows["rare_threshold"]
        told = calibration.answer_with_threshold(by_window, task.classes.index(rare), threshold.fillna(2).to_numpy())
        rules.append((f"threshold for {rare}", "window", told))
    rules += [(rule, "clip", by_clip.argmax(axis=1)) for rule in ("always answers", "may stay silent")]
    for rule, level, answers in rules:
        table = windows if level == "window" else clips
        sure = is_sure(clips, settings, columns) if rule == "may stay silent" else np.ones(len(table), bool)
        if not sure.any():
            continue
        context = {"task": task.name, "model": model, "protocol": protocol, "split": "test", "level": level}
        context |= {"rule": rule, "coverage": float(sure.mean())}
        scores = score_answers(table[sure], task.classes, answers[sure], draws=draws, seed=seed, context=context)
        asked, answered = (part.groupby("seed")["target"].nunique() for part in (table, table[sure]))
        if not answered.reindex(asked.index).equals(asked):  # a class is never answered for
            scores.loc[scores["metric"].isin(["uar", "macro_f1"]), ["value", "low", "high", "seed_std"]] = np.nan
        records.append(scores)
    return pd.concat(records, ignore_index=True)


def is_sure(clips: pd.DataFrame, settings: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Whether each calibrated answer reaches the threshold of silence of its own training."""
    silence = settings.set_index(KEYS)["silence"].loc[pd.MultiIndex.from_frame(clips[KEYS])]
    return clips[columns].to_numpy().max(axis=1) >= silence.to_numpy()


def tabulate_reliability(answers: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Of the clips in each range of confidence n, confidence (mean) and accuracy."""
    clips, columns = aggregate_predictions(answers, "clip"), [f"p_{name}" for name in task.classes]
    binned = bin_answers(clips[columns].to_numpy(), clips["target"].to_numpy()).groupby("bin")
    return binned.mean().assign(n=binned.size())


def list_choices(answers: pd.DataFrame, settings: pd.DataFrame, task: Task) -> dict[str, Any]:
    """What `lib.report.plots.plot_choices` draws of calibrated answers: coverage, answered, targets, probabilities; by clip."""
    clips, columns = aggregate_predictions(answers, "clip"), [f"p_{name}" for name in task.classes]
    targets, probabilities = clips["target"].to_numpy(), clips[columns].to_numpy()
    coverage = calibration.coverage_table(targets, probabilities, task.classes)
    answered = float(is_sure(clips, settings, columns).mean())
    return {"coverage": coverage, "answered": answered, "targets": targets, "probabilities": probabilities}


def tabulate_choices(choices: pd.DataFrame) -> pd.DataFrame:
    """One row a task and rule: level, share answered, accuracy, UAR and macro F1 of what is answered."""
    rows = select_scores(choices, metric=["accuracy", "uar", "macro_f1"])
    rows["answered"] = [f"{100 * share:.0f} %" for share in rows["coverage"]]
    return tabulate(rows, ["task", "rule", "level", "answered"])
