import json
import re
import shutil
import subprocess
from itertools import pairwise

import nbformat
import pytest
from bs4 import BeautifulSoup
from checks import refused, write_file
from nbformat.v4 import new_code_cell
from report_fixture import draw, make_metrics, make_notebook, make_record, picture

from lib import paths
from lib.report import compare
from lib.report import site as site_module


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


def test_pages_tell_the_answer_the_leak_the_worst_group_how_it_was_made_whether_by_real_voices_and_runs_side_by_side(
    site,
):
    words = {
        "fixture/index.html": [
            "78 are told right (72 to 84, 40 speakers); a guess reaches 50", "not shown to be better than mean pitch alone.",
            "random windows claim a UAR of 87 %", "Gender is told worst for language", "invented for a test",
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
