"""Runs side by side, for compare.html and for README: `python -m lib.report.compare` writes README's table anew."""

import itertools
import json
from pathlib import Path
from typing import Any

import pandas as pd

from lib import paths, results

START, END = "<!-- headline: written by `make readme` from reports/ -->", "<!-- end of headline -->"
IN_README = ["ready", "common_voice", "speechocean762", "demo"]  # runs of recorded speech first
BESIDE = ["mean pitch", "MFCC statistics"]  # baselines that have a column of their own
IN_ROW = ["speech", "task", "**this project** (UAR)", "a guess", *BESIDE, "tested on", "verdict"]


def find_answers(metrics: dict[str, Any], record: dict[str, Any]) -> list[dict[str, Any]]:
    """The headline of every task that `metrics["headline"]` names, its classes, words and verdict for people."""
    scores, differences = (results.read_records(metrics.get(part)) for part in ("scores", "differences"))
    settings, answers = record.get("parameters", {}).get("run", {}), []
    for task, view in (metrics.get("headline") or {}).items():
        if answer := results.find_headline(scores, {"task": task, **view}, differences):
            verdict = results.judge(answer)
            words = results.tell_score(answer).removesuffix(verdict).strip()
            classes = describe_classes(answer["classes"], settings) if answer["metric"] == "uar" else []
            names = settings.get("age_classes", []) if task == "gender" else []
            ages = tell_ages(scores, names, **(view | {"task": task, "level": "window"}))
            answers.append(answer | {"classes": classes, "words": words, "verdict": verdict, "ages": ages})
    return answers


def tell_ages(scores: pd.DataFrame, names: list[str], **view: str) -> str:
    """The UAR of the windows of each age group of `names`, of a view's records by subset; "" where fewer than two were scored."""
    found = [(name, results.first_record(scores, subset=f"age group={name}", metric="uar", **view)) for name in names]
    told = [f"{name} {results.format_score(record)}" for name, record in found if record]
    return f"UAR by age, in windows: {', '.join(told)}." if len(told) > 1 else ""


def describe_classes(classes: list[str], settings: dict[str, Any]) -> list[str]:
    """Class names, those of age with their bounds in years where `settings`, a run file's section `run`, holds them."""
    bounds = [f"{bound:g}" for bound in settings.get("age_bounds") or []]
    if not bounds or list(classes) != settings.get("age_classes"):
        return list(classes)
    spans = [f"under {bounds[0]}", *(f"{low} to under {high}" for low, high in itertools.pairwise(bounds))]
    return [f"{name} ({span})" for name, span in zip(classes, [*spans, f"{bounds[-1]} and over"])]


def tabulate_runs(runs: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """For each task one row a run: the score of its main model beside a guess and the simple baselines."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for answer in run["answers"]:
            score = answer["score"]
            beside = {results.model_name(one["model"]): one for one in answer["simple"]} | {"a guess": answer["guess"]}
            rows.setdefault(results.task_name(score["task"]), []).append({
                "run": run["name"],
                "speech": "synthetic" if run["record"]["synthetic"] else "recorded",
                "classes": "mean error" if answer["metric"] in results.ERRORS else " / ".join(answer["classes"]) or "–",
                "score": results.format_score(score),
                "model": results.model_name(score["model"]),
                **{name: results.format_score(beside[name]) if beside.get(name) else "–" for name in ("a guess", *BESIDE)},
                "test speakers": int(score["speakers"]) if score["speakers"] else "–",
            })  # fmt: skip
    return {task: pd.DataFrame(lines) for task, lines in rows.items()}


def tabulate_parameters(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a parameter on which any two runs disagree, one column a run; "–" where a run does not have it."""
    flat = {run["name"]: flatten(run["record"]["parameters"]) for run in runs}
    table = pd.DataFrame(flat).fillna("–").rename_axis("parameter")
    return table[table.nunique(axis=1) > 1].reset_index()


def flatten(settings: dict[str, Any]) -> dict[str, str]:
    """Nested settings as {"section.key": text}."""
    flat = pd.json_normalize([settings]).astype(object).iloc[0].items()
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in flat}


def headline_markdown(reports: Path) -> str:
    """README's table, one row a run and task, from the reports there are, with whom it was tested on and the verdict."""
    rows = []
    for name in (name for name in IN_README if (reports / name / "metrics.json").exists()):
        metrics, record = (paths.load_json(reports / name / file) for file in ("metrics.json", "run.json"))
        answers, synthetic = find_answers(metrics, record), ", synthetic" if record["synthetic"] else ""
        speech = f"[{name}](reports/{name}/index.html) ({record['encoder']['name']}{synthetic})"
        tables = tabulate_runs([{"name": name, "record": record, "answers": answers}])
        for (task, table), answer in zip(tables.items(), answers):
            row, score = table.iloc[0].to_dict(), answer["score"]
            heard = results.HEARD.get(score["protocol"], score["protocol"]).removesuffix(" in training")
            tested = f"{row['test speakers']} speakers of {heard} ({score['level']}s)".replace("of speakers ", "")
            row |= {"speech": speech, "task": f"{task}: {row['classes']}", IN_ROW[2]: f"**{row['score']}**"}
            rows.append(row | {"tested on": tested, "verdict": f"{answer['verdict']} {answer['ages']}".strip()})
    return results.to_markdown(pd.DataFrame(rows, columns=IN_ROW))


def update_readme(path: Path, reports: Path) -> bool:
    """Put the current table between the markers of README; True when that changed it. ValueError without markers."""
    text = Path(path).read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise ValueError(f"{path}: the markers '{START}' and '{END}' are missing; put them around the headline table")
    updated = f"{text.split(START)[0]}{START}\n{headline_markdown(reports)}\n{END}{text.split(END)[1]}"
    with paths.write_whole(Path(path)) as partial:
        partial.write_text(updated, encoding="utf-8")
    return updated != text


if __name__ == "__main__":
    changed = update_readme(paths.ROOT / "README.md", paths.REPORTS)
    print("README.md: headline table " + ("written anew" if changed else "is current"))
