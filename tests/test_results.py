import json
import re
import shutil
import subprocess
from itertools import pairwise

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from checks import refused, write_file
from nbformat.v4 import new_code_cell
from report_fixture import draw, make_metrics, make_notebook, make_record, make_row, picture

from lib import paths, results
from lib.report import compare, sentences
from lib.report import site as site_module
from lib.trust import summary

YEARS = {"metric": "mae_years", "task": "age_years"}
VIEW = {"task": "gender", "model": "paper", "protocol": "speaker", "level": "clip"}


def records(*rows):
    return results.read_records(list(rows))


def told(low, high, metric="uar", task="gender", rival=None, gain=None):
    """The sentence about a score in the middle of an interval, beside a guess and, if given, mean pitch and the paired gain."""
    deaf = ("baseline: constant age", metric, 6.7) if metric == "mae_years" else ("majority", metric, 0.5)
    rows = [make_row(task, "paper", metric, (low + high) / 2) | {"low": low, "high": high}]
    rows += [make_row(task, *deaf, half=None), *([make_row(task, "baseline: mean F0", metric, rival)] if rival else [])]
    pair = make_row(task, "paper", f"{metric}_difference", 0.1, against="baseline: mean F0")
    differences = records(pair | {"low": gain[0], "high": gain[1]}) if gain else None
    return results.tell_score(results.find_headline(records(*rows), VIEW | {"task": task}, differences))


@pytest.mark.parametrize(("value", "low", "high", "metric", "text"), [
    (0.774, 0.712, 0.829, "uar", "77 % (71 to 83)"), (0.7744, 0.7604, 0.7889, "uar", "77.4 % (76.0 to 78.9)"),
    (5.58, 4.91, 6.21, "mae_years", "5.6 (4.9 to 6.2)"), (0.034, 0.021, 0.051, "ece", "0.034 (0.021 to 0.051)"),
    (0.5, 0.5, 0.5, "uar", "50 %"), (0.9345, None, None, "accuracy", "93.5 %"), (None, None, None, "uar", "–"),
    (-0.003, -0.12, 0.11, "uar_difference", "+0 (-12 to +11)"), (0.091, 0.02, 0.15, "uar_difference", "+9 (+2 to +15)*"),
])  # fmt: skip
def test_a_number_has_the_digits_that_its_interval_deserves(value, low, high, metric, text):
    record = {"value": value, "low": low, "high": high, "metric": metric, "protocol": "speaker"}
    assert results.format_score(record) == text


def test_the_table_holds_every_score_once_baselines_last_and_a_model_folder_has_the_scores_of_its_heads():
    scores = records(*make_metrics()["scores"])
    table = results.tabulate(results.select_scores(scores, protocol="speaker", metric=["uar", "accuracy"]))
    assert table.columns.tolist() == ["task", "model", "UAR", "accuracy", "clips", "speakers"]
    assert table["model"].tolist() == ["the paper's network", "a guess (majority)", "mean pitch"] * 2
    assert table.iloc[0].tolist() == ["Gender", "the paper's network", "78 % (72 to 84)", "78 % (72 to 84)", 480, 40]
    leaks = records(*make_metrics()["leak"]).assign(protocol="leak")
    wanted = {"protocol": ["paper", "speaker", "leak"], "metric": "uar", "model": "paper"}
    both = results.select_scores(pd.concat([scores, leaks]), **wanted)
    row = results.tabulate(both, rows=["task", "model", "metric"], columns="protocol").iloc[0, 3:6].to_dict()
    assert row == {"random windows claim": "87 % (81 to 93)", "speakers never heard in training": "78 % (72 to 84)",
                   "difference": "+9 (+4 to +14)*"}  # fmt: skip
    refused("duplicate entries", results.tabulate, results.select_scores(scores, metric="uar"))
    assert results.tabulate(scores.head(0)).empty
    seeds = [make_row(one, "paper", metric, 0.7, seeds=3) for one, metric in (("age", "uar"), ("years", "mae_years"))]
    assert results.tabulate(records(*seeds).assign(seed_std=0.021))["seeds"].tolist() == ["3, ± 2.1", "3, ± 0.021"]
    scores.loc[scores["subset"] != "all", "level"] = "window"
    own = records(*summary.own_scores(scores, "best", {"age": "paper"}, "speaker", "clip"))
    assert (set(own["task"]), set(own["model"])) == ({"age"}, {"best", "majority"})
    assert own.loc[own["subset"] != "all", "model"].tolist() == ["best"] * 4


@pytest.mark.parametrize(("low", "high", "options", "verdict"), [
    (0.55, 0.7, {}, "Better than a guess."), (0.4, 0.6, {}, "Not shown to be better than a guess."),
    (0.2, 0.4, {}, "Worse than a guess."), (6.5, 7.2, YEARS, "Not shown to be better than a guess."),
    (0.6, 0.8, {"rival": 0.66, "gain": (-0.1, 0.2)}, "Better than a guess, not shown to be better than mean pitch alone."),
    (0.6, 0.8, {"rival": 0.66, "gain": (0.05, 0.2)}, "Better than a guess and than every simple baseline."),
    (0.6, 0.8, {"rival": 0.71}, "Better than a guess, but mean pitch alone does no worse: the model adds nothing here."),
    (0.6, 0.8, {"rival": 0.66}, "Better than a guess."),  # no pair was compared: nothing is claimed over the baseline
    (4.9, 6.2, YEARS | {"rival": 6.0, "gain": (-1.0, 0.2)},
     "Better than a guess, not shown to be better than mean pitch alone."),
    (4.9, 6.2, YEARS | {"rival": 6.0, "gain": (-1.0, -0.2)}, "Better than a guess and than every simple baseline."),
])  # fmt: skip
def test_the_verdict_follows_the_intervals_and_the_pairs(low, high, options, verdict):
    assert told(low, high, **options).endswith(f" {verdict}")


def test_a_score_is_told_of_a_hundred_with_its_interval_and_what_it_stands_beside_as_far_as_it_has_them():
    metrics = make_metrics()
    scores, differences = records(*metrics["scores"]), records(*metrics["differences"])
    text, years = results.tell_score(results.find_headline(scores, VIEW, differences)), told(4.9, 6.2, **YEARS)
    assert text.startswith("Gender: of 100 clips of speakers never heard in training, as many male as female, 78 are ")
    assert "told right (72 to 84, 40 speakers); a guess reaches 50, the best simple baseline, mean pitch, 66. B" in text
    assert "are 5.6 years off on average (4.9 to 6.2, 40 speakers); always the median age reaches 6.7. B" in years
    bare = records(make_row("gender", "paper", "accuracy", 0.8, half=None) | {"speakers": None})
    text = "Gender: of 100 clips of speakers never heard in training 80 are told right."
    assert results.tell_score(results.find_headline(bare, VIEW)) == text
    assert results.tell_score(results.find_headline(bare, VIEW | {"task": "age"})) == ""
    speakers = results.find_headline(bare.assign(level="speaker"), VIEW | {"level": "speaker"})
    assert results.tell_score(speakers) == text.replace("clips of ", "")


def test_the_other_sentences_tell_their_numbers():
    leak = make_row("age", "paper", "uar", 0.09, 0.05, claimed=0.87, shown=0.78)
    years = leak | {"metric": "mae_years", "claimed": 5.21, "shown": 7.83, "value": -2.62, "low": -3.12, "high": -2.12}
    perfect = {"task": "gender", "level": "window", "classes": ["male", "female", "x"], "counts": np.eye(3, dtype=int)}
    mixed = perfect | {"counts": np.array([[8, 2, 0], [3, 7, 0], [0, 0, 0]])}
    errors = [make_row("age", "paper", name, value) for name, value in (("ece", 0.09), ("ece_tempered", 0.04))]
    scores = records(*make_metrics()["scores"])
    slices = scores[(scores["subset"] != "all") & (scores["task"] == "age")].iloc[:3]
    layers = pd.DataFrame({"task": "gender", "feature": ["majority", "mean F0", "tiny | conv", "tiny | layer 2"],
                           "uar": [0.5, 0.7, 0.6, 0.8], "low": 0.75, "high": 0.85})  # fmt: skip
    ledger = pd.DataFrame({"reason": ["empty file", "no such file", "no such file"]})
    history = pd.DataFrame({"epoch": [0, 1, 2], "chosen": [False, True, False], "validation_uar": [0.61, 0.83, 0.7],
                            "train_loss": [0.9, 0.6, 0.3], "validation_loss": [0.9, 0.5, 0.8], "network": "paper"})  # fmt: skip
    for low in (np.nan, 0.0):  # without an interval, and where the two never differ
        assert sentences.tell_leak(records(leak | {"low": low, "high": low})) == ""
    for text, words in [
        (sentences.tell_leak(records(leak)), "claim a UAR of 87 % | show 78 % | +9 points (+4 to +14) is not skill"),
        (sentences.tell_leak(records(leak | {"low": -0.01})), "(-1 to +14) may be chance."),
        (sentences.tell_leak(records(years | {"low": 0.1, "high": 0.5})), "(+0.10 to +0.50) is no leak."),
        (sentences.tell_leak(records(years)), "claim an error of 5.2 years | show 7.8 years; | -2.6 years (-3.1 to -2.1) is not skill"),
        (sentences.tell_leak(records(years), "channel"), "codecs) the error is 5.2 years, as recorded 7.8 years; | -2.6 years | is more than"),
        (sentences.tell_confusion(mixed), "80 % of male, 70 % of female; most often female is told as male (3 times)"),
        (sentences.tell_confusion(perfect), "100 % of x."),
        (sentences.tell_calibration(records(*errors)), "Age: | is 9 points away | and 4 after temperature, which helps"),
        (sentences.tell_slices(slices), "worst for language: en: UAR 73 % (67 to 79) of 15 speakers, 10 points below corpus: c"),
        (sentences.tell_layers(layers), "best from layer 2, UAR 80 % (75 to 85); | a guess (majority) 50 %, mean pitch 70 %."),
        (sentences.tell_ledger(97, ledger), "97 of 100 items are used (97 %); 3 are left out, most often for: no such file (2)."),
        (sentences.tell_ledger(97, ledger.head(0), "clips"), "All 97 clips are used."),
        (sentences.tell_training(history), "from 61 % to 83 % at epoch 1 of 2, which was chosen | by heart"),
    ]:  # fmt: skip
        assert [part for part in words.split(" | ") if part not in text] == [], text
    steady = sentences.tell_training(history.assign(validation_loss=[0.9, 0.5, 0.5]))
    assert (sentences.tell_slices(slices.head(1)), "by heart" in steady) == ("", False)


def test_the_paper_stands_beside_a_guess_on_its_own_data_and_this_run():
    own = [make_row("age", "paper", metric, 0.7, level="window") for metric in sentences.PUBLISHED["age"]]
    beside = sentences.paper_records(records(*own), "age", ["paper"], "speaker")
    table = results.tabulate(beside, ["model", "what differs"])
    assert table["model"].tolist() == ["the paper", "a majority guess", "the paper's network"]
    assert table["accuracy"].tolist() == ["91 %", "93.4 %", "70 % (64 to 76)"]
    assert table["F1 of teen"].tolist()[:2] == ["48.7 %", "0 %"]
    assert sentences.tell_paper("age").endswith("scores 93.4 % on its data, so accuracy shows nothing there.")
    assert sentences.paper_records(records(), "age_four", ["paper"], "speaker").empty


def test_names_are_a_reader_s_classes_stand_with_their_bounds_and_a_markdown_table_keeps_a_bar_inside_its_cell():
    for bounds, last in (([16], "adult (16 and over)"), ([16, 70], "adult (16 to under 70)")):
        settings = {"age_classes": ["child", "adult"], "age_bounds": bounds}
        assert compare.describe_classes(["child", "adult"], settings) == ["child (under 16)", last]
        assert compare.describe_classes(["male", "female"], settings) == ["male", "female"]
    ages = [make_row("gender", "paper", "uar", 0.9, subset=f"age group={one}") for one in ("old", "young")]
    told = [compare.tell_ages(records(*ages), names, task="gender") for names in (["young", "old"], ["old", "teen"])]
    assert told == ["UAR by age, in windows: young 90 % (84 to 96), old 90 % (84 to 96).", ""]
    markdown = results.to_markdown(pd.DataFrame({"a": ["x|y"], "b": ["<i>"]}))
    assert markdown == "| a | b |\n| --- | --- |\n| x\\|y | &lt;i> |"
    named = {"paper": "the paper's network", "linear:layer:3+bank": "linear model on layer 3 and filter bank", "baseline: MFCC": "MFCC statistics",
             "steps:block:1+block:2|embedding": "step by step on block 1 and block 2, then embedding", "eGeMAPS": "eGeMAPS"}  # fmt: skip
    assert {name: results.model_name(name) for name in named} == named


@pytest.fixture
def build(tmp_path):
    """Build a report of one notebook whose last cell shows the given outputs; returns its folder."""

    def build_report(*outputs, record=None, root=""):
        notebook = make_notebook("01_download", root)
        notebook.cells.append(new_code_cell("show()", outputs=list(outputs)))
        path, target = write_file(tmp_path / "01_download.ipynb", nbformat.writes(notebook)), tmp_path / "reports/run"
        return site_module.build_report("run", [path], make_metrics(), record or make_record(), target)

    return build_report


def test_links_lead_to_files_ids_stand_once_headings_in_order_pictures_with_words(site):
    soups = {page.resolve(): BeautifulSoup(page.read_text("utf-8"), "html.parser") for page in site.rglob("*.html")}
    ids = {page: [tag["id"] for tag in soup.select("[id]")] for page, soup in soups.items()}
    for page, soup in soups.items():
        links = [tag.get("href") or tag.get("src") for tag in soup.select("[href], [src]")]
        for link in (link for link in links if not link.startswith("data:")):
            assert not re.match(r"[a-z]+:", link), f"{page.name} reaches outside: {link}"
            address, _, anchor = link.partition("#")
            target = (page.parent / address).resolve() if address else page
            assert target.is_file(), f"{page.name}: {link}"
            assert not anchor or anchor in ids[target], f"{page.name}: {link}"
        levels = [int(tag.name[1]) for tag in soup.select("h1, h2, h3, h4")]
        assert (levels[0], all(after - before <= 1 for before, after in pairwise(levels))) == (1, True), page.name
        assert len(ids[page]) == len(set(ids[page])), page.name
        assert all(picture["alt"] for picture in soup.select("img")), page.name
    assert (site / "fixture/figures/labels.csv").read_text() == "class,clips\nmale,6\n"
    assert sum(path.stat().st_size for path in (site / "fixture").rglob("*.*")) < 3_000_000


def test_pages_tell_the_answer_the_leak_the_worst_group_how_it_was_made_if_by_real_voices_and_runs_side_by_side(site):
    words = {
        "fixture/index.html": [
            "78 are told right (72 to 84, 40 speakers); a guess reaches 50", "UAR by age, in windows: teen 80 % (74 to 86), adult 90 %", "not shown to be better than mean pitch alone.",
            "random windows claim a UAR of 87 %", "codecs) the UAR is 87 %, as recorded 78 %", "Gender is told worst for language", "invented for a test",
            "22 November 2026, 16:00 UTC", "system: Linux, cores: 2", "windows 1,234", 'href="metrics.json"', 'href="run.json"',
            "What does the page 03_embed look like?"],
        "fixture/04_train.html": [
            "Parameters that this run set", "wrote 1234 rows", 'rel="prev" href="03_embed.html"',
            'rel="next" href="05_evaluate.html"', '<li class="level3"><a href="#A-finer-point">A finer point</a></li>'],
        "compare.html": ["82 % (76 to 88)", "78 % (72 to 84)", "66 % (60 to 72)", "synthetic", "train.epochs"],
    }  # fmt: skip
    pages = {f"{page.relative_to(site)}": " ".join(page.read_text("utf-8").split()) for page in site.rglob("*.html")}
    assert [(name, text) for name in words for text in words[name] if text not in pages[name]] == []
    for name in (name for name in pages if "/" in name):
        assert ("<strong>Synthetic speech:</strong>" in pages[name]) == name.startswith("fixture/"), name
        assert "<strong>wav2vec2-tiny</strong>, untrained, random weights" in pages[name], name
    assert "00:01" not in pages["fixture/04_train.html"]  # a progress bar
    assert pages["fixture/04_train.html"].count('<details class="code">') >= 4
    assert "download.root" not in pages["compare.html"]  # both runs agree on it
    second, first = (pages["index.html"].index(f'href="{run}/index.html"') for run in ("second", "fixture"))
    assert second < first  # recorded speech first
    for corpus, synthetic in (("speechocean762", False), ("voxceleb", False), ("common_voice", True)):
        record = site_module.shown_record(make_record(corpora=[corpus], synthetic=synthetic), "run")
        assert ("the tested included" in record["encoder"]["heard"]) == (corpus == "speechocean762")


def test_two_figures_of_one_name_are_refused(build, tmp_path):
    for alt in (None, " ", "No description has been provided for this image"):
        refused("01_download: a picture without words", build, picture(alt))
    refused(r"labels\.png", build, *draw("labels"))  # within one notebook by nbconvert
    twice = [write_file(tmp_path / f"{name}.ipynb", nbformat.writes(make_notebook("01_download"))) for name in "ab"]
    words = r"b: 'figures/labels\.(png|csv)' is shown by a notebook before it too"
    refused(words, site_module.build_report, "x", twice, make_metrics(), make_record(), tmp_path / "reports/x")


@pytest.mark.parametrize("folder", ["/mnt/her voices/corpus", "../somewhere/corpus", "~/corpus", str(paths.ROOT)])
def test_a_private_folder_is_masked_wherever_it_is_shown(build, folder):
    record, name = make_record(parameters={"download": {"fetch": [folder]}}), folder.rsplit("/", 1)[-1]
    printed = nbformat.v4.new_output("stream", text=f"wrote {folder}/a.wav\n{folder}\n")
    target = build(printed, record=record, root=folder)
    assert f"wrote …/{name}/a.wav" in (target / "01_download.html").read_text(encoding="utf-8")
    assert paths.load_json(target / "run.json")["parameters"]["download"]["fetch"] == [f"…/{name}"]
    assert not any(folder in path.read_text(encoding="utf-8") for path in target.rglob("*.html"))


def test_a_path_that_nobody_named_stops_the_report_and_keeps_the_old_one(build):
    target = build()
    before = {path: path.read_bytes() for path in target.rglob("*.*")}
    assert before == {path: path.read_bytes() for path in build().rglob("*.*")}  # the same inputs give the same pages
    (target / "index.html").write_text("the good one")
    printed = nbformat.v4.new_output("stream", text="wrote /home/ada/a.mp3")
    refused(r"run 'run' would show private paths: 01_download\.html: /home/ada/a\.mp3", build, printed)
    assert (target / "index.html").read_text() == "the good one"
    assert [path.name for path in target.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("text", ["/Users/ada/x", "C:\\Users\\ada\\x", "/mnt/voices/a.wav", "see file:///mnt/voices"])
def test_the_last_guard_finds_homes_and_known_folders_but_not_what_only_looks_like_them(tmp_path, text):
    embedded = "data:image/png;base64,/home/ada/AAAA/root/xx="
    innocent = f"https://example.org/mnt/voices data/demo/clips.parquet ../other {embedded}"
    private = site_module.find_private({"encoders": ["hf:/mnt/models/one"]}, ["/mnt/voices"])
    assert private["/mnt/models/one"] == "…/one"
    (tmp_path / "run.json").write_text(json.dumps({"text": innocent}))
    site_module.refuse_private(tmp_path, "run", private)
    (tmp_path / "run.json").write_text(json.dumps({"text": text}))
    refused(r"run\.json: ", site_module.refuse_private, tmp_path, "run", private)


def test_a_run_without_a_task_is_not_in_its_table_and_a_site_may_be_empty(tmp_path):
    answers, record = compare.find_answers(make_metrics(), {}), {"name": "a", "record": make_record()}
    tables = compare.tabulate_runs([record | {"answers": answers}, record | {"name": "b", "answers": answers[1:]}])
    assert (tables["Gender"]["run"].tolist(), tables["Age"]["run"].tolist()) == (["a"], ["a", "b"])
    site_module.build_index(tmp_path)
    assert "No run has been finished yet" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "one run or none" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_readme_s_headline_table_is_what_the_committed_reports_say(tmp_path):
    archive = ["git", "archive", "HEAD", "reports", "-o", str(tmp_path / "committed.tar")]  # those on disk may be new
    if subprocess.run(archive, cwd=paths.ROOT, check=False).returncode:
        pytest.skip("no reports are committed here: not a git checkout")
    shutil.unpack_archive(tmp_path / "committed.tar", tmp_path, filter="data")
    shutil.copy(paths.ROOT / "README.md", tmp_path)
    assert not compare.update_readme(tmp_path / "README.md", tmp_path / "reports"), "run `make readme`"


def test_readme_names_every_run_file_and_is_refused_without_its_markers(tmp_path):
    text = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    for run in paths.PARAMS.glob("*.yaml"):
        assert f"`{run.stem}`" in text or f"RUN={run.stem}" in text, run.stem
    (tmp_path / "README.md").write_text("# no markers\n")
    refused("markers", compare.update_readme, tmp_path / "README.md", paths.REPORTS)
