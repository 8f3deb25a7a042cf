import contextlib
import re
import shutil
import time
from importlib import metadata

import pandas as pd
import psutil
import pytest
from bs4 import BeautifulSoup
from chain_runner import SMALL, demo, run_module, start_module

from lib import config, paths, results, run

INTERVAL = re.compile(r"[+-]?\d+(?:\.\d+)?(?: %)? \([+-]?\d+(?:\.\d+)? to [+-]?\d+(?:\.\d+)?\)")


def load(folders, name):
    return paths.load_json(folders / "reports" / "demo" / f"{name}.json")


def checkpoints_of(folders, files="data/demo/**/epoch-*.safetensors"):
    """When each finished epoch, or another of these files, was written."""
    return {path: path.stat().st_mtime_ns for path in folders.glob(files)}


def test_the_report_has_a_page_for_the_run_and_for_every_notebook(first, folders):
    pages = sorted(path.stem for path in (folders / "reports" / "demo").glob("*.html"))
    assert pages == [*config.NOTEBOOKS, "index"]
    assert (folders / "reports" / "index.html").exists()
    assert list((folders / "reports" / "demo" / "figures").glob("*.png"))
    assert ("report:" in first.stdout, "Unable to parse" in first.stderr) == (True, False)  # by papermill, a parameter
    for path in (path for path in (folders / "reports").rglob("*.*") if path.suffix in {".html", ".json", ".csv"}):
        assert not any(str(place) in path.read_text(encoding="utf-8") for place in (folders, paths.ROOT)), path
    record = load(folders, "run")  # which says what made the numbers
    assert (record["synthetic"], record["parameters"]["train"]["epochs"]) == (True, 2)
    assert len(record["data_checksum"]) == len(record["encoder"]["weights_sha256"]) == 64
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    assert re.fullmatch("[0-9a-f]{12}([+]changes)?", record["git_commit"])
    assert [stage["stage"] for stage in record["stages"]] == config.NOTEBOOKS
    assert all(stage["counts"] and stage["peak_memory_mb"] > 50 and stage["seconds"] > 0 for stage in record["stages"])


def test_every_interval_in_a_table_of_the_evaluation_page_is_one_of_metrics_json_and_each_part_is_there(first, folders):
    source = (folders / "reports" / "demo" / "05_evaluate.html").read_text(encoding="utf-8")
    page, metrics, known = BeautifulSoup(source, "html.parser"), load(folders, "metrics"), set()
    for record in (one for rows in metrics.values() for one in rows if "low" in [*one]):
        for protocol in (record["protocol"], "leak"):
            known.update(INTERVAL.findall(results.format_score(record | {"protocol": protocol})))
    text = " | ".join(table.get_text(" | ") for table in page.select("table.table")).replace("\xa0", " ")
    shown = INTERVAL.findall(text)
    assert (len(shown) > 90, {*shown} - known) == (True, set())
    table = next(table for table in page.select("table.table") if "leak (points)" in table.get_text())
    assert not INTERVAL.findall(table.find_previous("table", class_="table").get_text(" "))
    text = " ".join(one.get_text(" ") for one in page.select(".said"))
    for words in ("random windows claim", "of 100 clips", "windows told right", "after temperature", "paper reports"):
        assert words in text, words
    assert 1 <= len(page.select("figure.sound audio[src^='data:audio/mpeg']")) <= min(12, len(metrics["errors"]))
    models = {row["model"] for row in metrics["scores"]}
    assert {"majority", "baseline: mean F0", "baseline: duration and level", "baseline: MFCC"} <= models
    assert set(metrics["headline"]) == {row["task"] for row in metrics["trainings"]}
    for task, view in metrics["headline"].items():
        fits = [row for row in metrics["trainings"] if row["task"] == task and row["protocol"] == view["protocol"]]
        assert view["model"] == max(fits, key=lambda row: row["validation_uar"])["network"]


def test_planted_sores_come_back_in_the_ledger(first, folders):
    manifest = paths.load_json(next((folders / "data" / "corpora").glob("synthetic-*/manifest.json")))
    ledger = pd.concat(map(pd.read_parquet, (folders / "data" / "demo").glob("0[12]_*/ledger.parquet")))
    read = [next((folders / "data" / "demo").glob(f"01_*/{name}.parquet")) for name in ("clips", "ledger")]
    rows = pd.concat(map(pd.read_parquet, read))["corpus"].value_counts()
    for corpus in ("common_voice", "voxceleb"):
        found, planted = ledger[ledger["corpus"] == corpus]["reason"].value_counts(), manifest[corpus]["ledger"]
        assert {reason: found.get(reason) for reason in planted} == planted
        assert rows[corpus] == manifest[corpus]["rows"]


def test_an_identical_run_recomputes_nothing(first, folders, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(paths, "DATA", folders / "data")
        run.check_earlier("demo", config.load_run(paths.PARAMS / "demo.yaml", SMALL), "06_predict")
    before = load(folders, "metrics"), checkpoints_of(folders)
    assert "recomputed: nothing" in run_module(folders, *demo()).stdout
    assert (load(folders, "metrics"), checkpoints_of(folders)) == before


def test_a_killed_run_keeps_others_out_while_it_lives_and_is_gone_on_with(first, folders):
    before, data = checkpoints_of(folders), folders / "data" / "demo"
    killed = start_module(folders, *demo("train.epochs=1"))
    while not list(data.glob("executed/.*.partial.ipynb")) and killed.poll() is None:
        time.sleep(0.1)
    second = run_module(folders, *demo(), code=2)
    while len(checkpoints_of(folders)) < len(before) + 2 and killed.poll() is None:
        time.sleep(0.05)
    running = psutil.Process(killed.pid)
    for one in [running, *running.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    killed.communicate()
    assert killed.returncode < 0
    assert "run 'demo' is being made by another process" in second.stderr
    kept = checkpoints_of(folders)
    run_module(folders, *demo("train.epochs=1"))
    after = checkpoints_of(folders)
    assert len(before) < len(kept) < len(after)
    assert len({path.parent for path in kept if after.get(path) != kept[path]}) <= 1  # a linear training starts anew
    assert [bool(stage["recomputed"]) for stage in load(folders, "run")["stages"][:4]] == [False, False, False, True]


def test_a_failing_cell_stops_the_run_and_touches_no_report(first, folders):
    reports = checkpoints_of(folders, "reports/**/*.*")
    told = run_module(folders, *demo('train.networks=["papr"]'), code=1).stderr
    where, _, why = told[told.index("stopped:") :].strip().splitlines()
    assert ("04_train, cell" in where, "papr" in why) == (True, True)
    assert (folders / "data" / "demo" / "executed" / "04_train.failed.ipynb").exists()
    assert checkpoints_of(folders, "reports/**/*.*") == reports


def test_one_notebook_alone_takes_an_encoder_without_frames_and_builds_no_report(first, folders, tmp_path):
    if not list(metadata.distributions(name="resemblyzer")):
        pytest.skip("not installed: pip install --no-deps -r requirements-campplus.txt")
    shutil.copytree(folders / "data", tmp_path / "data", ignore=shutil.ignore_patterns("0[3-6]*"))
    run_module(tmp_path, *demo("embed.encoder=resemblyzer", "embed.feature=", options=["--only", "03_embed"]))
    executed = (tmp_path / "data" / "demo" / "executed" / "03_embed.ipynb").read_text(encoding="utf-8")
    assert "48,000 samples became one vector of 256 numbers" in executed
    assert "resemblyzer | embedding" in executed  # a study of what there is
    assert not (tmp_path / "reports").exists()
