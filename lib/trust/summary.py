"""The whole of 05 Evaluate: every score of a run computed once and kept beside its predictions, and the models that leave it."""

from pathlib import Path
from typing import Any

import pandas as pd

from lib import evaluate, paths
from lib.encoders import load_encoder
from lib.evaluate import CONSTANT, SHIPPED, choose_models, list_records
from lib.linear import middle_penalty
from lib.model_folder import BY_CORPUS, save_model_folder
from lib.results import Record
from lib.scores import confusion_counts
from lib.stages import Stage
from lib.store import Store
from lib.tasks import YEARS, Task
from lib.train import checkpoint_path
from lib.trainings import folder_name, train_linear
from lib.trust.confidence import fit_reliability, fit_years, score_choices, score_reliability
from lib.trust.corpus_audit import audit_corpora
from lib.trust.slices import slice_all
from lib.windows import Windowing

TABLES = ["chosen", "scores", "settings", "choices", "slices", "corpora", "lines", "differences", "leaks", "copies"]


def score_run(
    stage: Stage, trained: Stage, predictions: pd.DataFrame, splits: pd.DataFrame, fits: pd.DataFrame, stores: list[Store],
    tasks: list[Task], protocol: str, draws: int, seed: int,
) -> None:  # fmt: skip
    """Compute and write every table of `TABLES` and the confusion counts; altered copies are scored as if they were a protocol."""
    own, again = (table[table["protocol"] == protocol].assign(protocol="altered") for table in (fits, splits))
    altered = evaluate.predict_all(trained, own, again, stores[1], pd.DataFrame(), tasks) if stores[1:] else None
    asked, dealt = pd.concat([predictions, altered]), pd.concat([splits, again])
    chosen = choose_models(fits, predictions, splits, tasks, protocol)
    models = dict(zip(chosen["task"], chosen["network"]))
    settings = fit_reliability(predictions, splits, tasks, protocol, list(fits["network"].unique()))
    choices = [score_choices(predictions, settings, task, models[task.name], protocol, draws, seed) for task in tasks]
    corpora, lines = audit_corpora(splits, stores[0], tasks, protocol, draws, seed)
    believed = score_reliability(predictions, settings, tasks, protocol, draws, seed)
    tables = {
        "chosen": chosen,
        "scores": pd.concat([evaluate.score_all(asked, dealt, tasks, draws, seed), believed], ignore_index=True),
        "settings": settings,
        "choices": pd.concat(choices, ignore_index=True),
        "slices": slice_all(predictions, splits, tasks, models, protocol, draws, seed),
        "corpora": corpora,
        "lines": pd.DataFrame({"line": lines}),
        "differences": evaluate.compare_all(predictions, splits, tasks, protocol, draws, seed),
        "leaks": evaluate.score_leaks(predictions, splits, tasks, protocol, draws, seed),
        "copies": evaluate.score_leaks(asked, dealt, tasks, protocol, draws, seed, "altered"),
    }
    for name, table in tables.items():
        paths.save_frame(stage.path(f"{name}.parquet"), table)
    paths.save_json(stage.path("confusions.json"), count_confusions(predictions, tasks))


def count_confusions(predictions: pd.DataFrame, tasks: list[Task]) -> list[dict[str, Any]]:
    """Confusion counts of every model on the windows of the test part, for each of its seeds."""
    confusions, keys, classes = [], ["task", "model", "protocol", "seed"], {task.name: task.classes for task in tasks}
    for key, rows in predictions[predictions["split"] == "test"].groupby(keys, sort=False):
        names = classes[key[0]]
        answers = rows[[f"p_{name}" for name in names]].to_numpy().argmax(axis=1)
        counts = confusion_counts(rows["target"].to_numpy(), answers, len(names)).tolist()
        facts = dict(zip(keys, key)) | {"split": "test", "level": "window"}
        confusions.append(facts | {"classes": names, "counts": counts})
    return confusions


def load_scores(stage: Stage) -> dict[str, pd.DataFrame]:
    """The tables that `score_run` wrote, by name; under "all" the scores and behind them the slices."""
    tables = {name: pd.read_parquet(stage.path(f"{name}.parquet")) for name in TABLES}
    slices = tables["slices"].drop(columns="enough", errors="ignore")
    return tables | {"all": pd.concat([table for table in (tables["scores"], slices) if len(table)], ignore_index=True)}


def save_metrics(
    run: str, scored: dict[str, pd.DataFrame], confusions: list[dict[str, Any]], errors: pd.DataFrame, fits: pd.DataFrame,
    headline: dict[str, dict[str, str]], counts: dict[str, Any],
) -> Path:  # fmt: skip
    """Write `metrics.json` of the run: every number that its pages show; a table becomes a list of records."""
    tables = {name: scored[name] for name in ("differences", "choices", "settings", "corpora", "copies")}
    tables |= {"scores": scored["all"], "leak": scored["leaks"], "errors": errors, "trainings": fits}
    content = {name: list_records(table) for name, table in tables.items()}
    notes = [line for line in scored["lines"]["line"] if "CONFOUNDED" in line]
    content |= {"confusions": confusions, "headline": headline, "counts": counts, "notes": notes}
    return paths.save_json(paths.DATA / run / "metrics.json", {"run": run} | content, indent=None)


def save_models(
    run: str, stages: dict[str, Stage], fits: pd.DataFrame, splits: pd.DataFrame, stores: list[Store],
    predictions: pd.DataFrame, scored: dict[str, pd.DataFrame], tasks: list[Task], clips: pd.DataFrame, protocol: str,
    *, level: str, synthetic: bool, refit: bool,
) -> list[Path]:  # fmt: skip
    """A model folder for each network, and "best" with each task's best on validation: `data/<run>/models/<name>`.
    Of several folds and seeds the first training is taken; with `refit` linear models learn from every labelled window once
    more, with the median of the penalties that were chosen, and temperature and thresholds from all validation parts.
    stages: those of 01 to 05 by name. The scores on a card are those on unseen speakers."""
    tasks, embedding = [task for task in tasks if task.name in SHIPPED], stages["03_embed"].parameters
    if not embedding["encoder"]:  # imported embeddings: nothing here could encode a new recording
        return []
    encoder, windowing = load_encoder(embedding["encoder"]), Windowing(**stages["02_segment"].parameters)
    about = {"run": run, "synthetic": synthetic, "protocol": protocol, "refit on everybody": refit}
    for stage in stages.values():
        about |= stage.facts
    about |= describe_data(clips, splits, protocol)
    fits = fits[(fits["protocol"] == protocol) & fits["task"].isin([task.name for task in tasks])]
    trained = fits.groupby("network", sort=False)["task"].unique()
    folders = {name: dict.fromkeys(of_network, name) for name, of_network in trained.items()}
    written = []
    folders["best"] = scored["chosen"].query("task in @SHIPPED").set_index("task")["network"].to_dict()
    for name, models in folders.items():
        checkpoints, trainings, settings, years = {}, {}, {}, {}
        for task in (task for task in tasks if task.name in models):
            network = models[task.name]
            again = refit and network != "paper"
            fold, own = -1 if again else 0, fits.query("task == @task.name and network == @network")
            rows = scored["settings"].query("task == @task.name and model == @network and fold == @fold")
            settings[task.name] = rows.sort_values("seed").iloc[0].to_dict() | {"spans": task.spans}
            if task.name == YEARS:
                years[task.name] = fit_years(predictions, splits, task, network, protocol, fold)
            first = own[own["fold"] == 0].sort_values("seed").iloc[0]
            checkpoint = checkpoint_path(stages["04_train"].path(first["folder"]), first["best_epoch"])
            checkpoints[task.name] = _refit(stages, own, splits, stores, task) if again else checkpoint
            trainings[task.name] = first["folder"]
        written.append(save_model_folder(
            paths.DATA / run / "models" / folder_name(name), checkpoints, encoder, windowing, embedding["feature"],
            settings=settings, years=years, trainings=trainings, metrics=own_scores(scored["all"], name, models, protocol, level),
            about=about | scores_by_corpus(scored, models, protocol),
        ))  # fmt: skip
    return written


def describe_data(clips: pd.DataFrame, splits: pd.DataFrame, protocol: str) -> dict[str, Any]:
    """For the card of a model folder: how many clips and speakers, in which languages, and who trained and tested it."""
    here = splits[(splits["protocol"] == protocol) & (splits["fold"] == 0)]
    voices = here.groupby(["split", "task"], sort=False)["speaker_id"].nunique()
    parts = {f"{part}_speakers": voices[part].to_dict() for part in ("train", *evaluate.PARTS) if part in voices}
    languages = clips.groupby(clips["language"].replace("", "not known"))["speaker_id"].nunique()
    languages = languages.sort_values(ascending=False).to_dict()
    return {"clips": len(clips), "speakers": clips["speaker_id"].nunique(), "speakers_by_language": languages} | parts


def _refit(stages: dict[str, Stage], fits: pd.DataFrame, splits: pd.DataFrame, stores: list[Store], task: Task) -> Path:
    """The checkpoint of a linear model that learned from everybody, at the median of the penalties of its `fits`."""
    histories = [(pd.read_csv(stages["04_train"].path(fit.folder) / "history.csv"), fit) for fit in fits.itertuples()]
    penalties = [history.set_index("epoch").loc[fit.best_epoch, "penalty"] for history, fit in histories]
    told = middle_penalty(penalties, max(str(one).count("|") + 1 for one in penalties))
    network = fits["network"].iloc[0]
    folder = stages["05_evaluate"].path(f"refit-{task.name}") / folder_name(network)
    table = splits[(splits["task"] == task.name) & (splits["protocol"] == fits["protocol"].iloc[0])]
    table = table.drop_duplicates("window_id").reset_index(drop=True).assign(split="train")
    _, epoch = train_linear(folder, table, stores, task, network, 0, [told])
    return checkpoint_path(folder, epoch)


def scores_by_corpus(scored: dict[str, pd.DataFrame], models: dict[str, str], protocol: str) -> dict[str, Any]:
    """UAR of each task's windows in each corpus, for a card; {} where there is one corpus."""
    rows = scored["slices"].query("protocol == @protocol and metric == 'uar' and subset.str.startswith('corpus=')")
    rows = rows[rows["model"] == rows["task"].map(models)].dropna(subset="value")
    rows = rows.assign(corpus=rows["subset"].str.removeprefix("corpus="), value=rows["value"].round(3))
    told = {task: part.set_index("corpus")["value"].to_dict() for task, part in rows.groupby("task")}
    return {BY_CORPUS: told} if told else {}


def own_scores(scores: pd.DataFrame, name: str, models: dict[str, str], protocol: str, level: str) -> list[Record]:
    """Records for the card of a model folder `name`, whose heads are `models`, and of what guesses score; slices by window."""
    told = (scores["level"] == level) | ((scores["subset"] != "all") & (scores["metric"] == "uar"))
    rows = scores[(scores["protocol"] == protocol) & told & scores["task"].isin(models)].dropna(subset="value")
    own = rows[rows["model"] == rows["task"].map(models)].assign(model=name)
    guesses = rows[rows["model"].isin(["majority", CONSTANT]) & (rows["subset"] == "all")]
    return list_records(pd.concat([own, guesses], ignore_index=True))
