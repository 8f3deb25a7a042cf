"""The report site: what its pages say, what they must never show, and what happens when a part is missing."""

import json
import re
from html.parser import HTMLParser

import nbformat
import pytest
from report_fixture import NOTE, NOTEBOOKS, make_inputs, make_metrics, make_notebook, make_record, shared_site

from lib import headlines, paths
from lib.report import pages
from lib.report import site as site_module

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return shared_site(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


class Links(HTMLParser):
    """Collects every address that a page points to and every id that it defines."""

    def __init__(self):
        super().__init__()
        self.links, self.ids, self.headings, self.pictures = [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [value for key, value in attrs if key in ("href", "src") and value]
        self.ids += [found["id"]] if "id" in found else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        self.pictures += [found] if tag == "img" else []


def read_page(path):
    parser = Links()
    parser.feed(path.read_text())
    return parser


def test_a_report_holds_every_promised_file(site):
    made = {path.relative_to(site / "fixture").as_posix() for path in (site / "fixture").rglob("*") if path.is_file()}
    expected = {"index.html", "metrics.json", "run.json", "assets/style.css", "assets/report.js", "audio/tone.mp3"}
    expected |= {f"{name}.html" for name in NOTEBOOKS} | {
        "figures/history.png",
        "figures/history.csv",
        "figures/labels.svg",
    }
    assert expected <= made


def test_a_run_weighs_less_than_three_megabytes(site):
    assert sum(path.stat().st_size for path in (site / "fixture").rglob("*")) < 3 * MEGABYTE


def test_every_link_and_picture_leads_to_a_file_and_an_id_that_exist(site):
    for page in site.rglob("*.html"):
        for link in read_page(page).links:
            if link.startswith("data:"):
                continue
            assert not re.match(r"[a-z]+:", link), f"{page.name} reaches outside: {link}"
            address, _, anchor = link.partition("#")
            target = (page.parent / address).resolve() if address else page
            assert target.is_file(), f"{page.name}: {link}"
            assert not anchor or anchor in read_page(target).ids, f"{page.name}: {link}"


def test_headings_come_in_order_ids_once_and_pictures_with_words(site):
    for page in site.rglob("*.html"):
        found = read_page(page)
        assert found.headings[0] == 1, page.name
        assert all(after - before <= 1 for before, after in zip(found.headings, found.headings[1:])), page.name
        assert len(found.ids) == len(set(found.ids)), page.name
        assert all(picture.get("alt") for picture in found.pictures), page.name


def test_every_page_of_a_synthetic_run_says_so_and_no_page_of_another(site):
    for page in (site / "fixture").glob("*.html"):
        assert "<strong>Synthetic speech:</strong>" in page.read_text(), page.name
    for page in (site / "second").glob("*.html"):
        assert "Synthetic speech:" not in page.read_text(), page.name


def test_every_page_of_a_run_names_its_encoder_and_its_note(site):
    for page in (site / "second").glob("*.html"):
        text = page.read_text()
        assert "wav2vec2-tiny" in text, page.name
        assert "untrained, random weights" in text, page.name


def test_the_index_tells_the_headline_with_interval_baseline_and_words(site):
    text = (site / "fixture/index.html").read_text()
    head = headlines.make_headlines(make_metrics())[0]
    assert f"{100 * head['score']['value']:.1f} %" in text
    assert f"{100 * head['score']['low']:.1f}–{100 * head['score']['high']:.1f} %" in text
    assert (
        "Of 100 clips of unseen speakers, as many male as female, about 78 are told right; with 40 speakers tested"
        in text
    )
    assert "majority" in text
    assert NOTE in text


def test_code_is_folded_progress_bars_are_left_out_and_output_is_kept(site):
    text = (site / "fixture/04_train.html").read_text()
    assert text.count('<details class="code">') >= 5
    assert '<details class="code" open' not in text
    assert "00:01" not in text
    assert "wrote 1234 rows" in text
    assert "Parameters that this run set" in text


def test_pictures_are_files_not_embedded_in_the_page(site):
    text = (site / "fixture/05_evaluate.html").read_text()
    assert "data:image" not in text.replace('href="data:,"', "")
    assert 'src="figures/confusion_gender.svg"' in text
    assert 'href="figures/slices_age.csv"' in text


def test_notebook_pages_lead_to_their_neighbours(site):
    text = (site / "fixture/03_embed.html").read_text()
    assert re.search(r'rel="prev" href="02_segment.html"', text)
    assert re.search(r'rel="next" href="04_train.html"', text)


def test_a_folder_given_as_parameter_is_shown_by_its_last_name_alone(site):
    for page in (site / "fixture").rglob("*.html"):
        assert "somewhere" not in page.read_text(), page.name
    assert "&lt;corpus&gt;" in (site / "fixture/01_download.html").read_text()


def test_private_paths_in_an_output_stop_the_report_and_keep_the_old_one(tmp_path, inputs):
    executed, drawn = tmp_path / "executed", inputs[1]
    target = tmp_path / "reports" / "fixture"
    target.mkdir(parents=True)
    (target / "index.html").write_text("the good one")
    notebook = make_notebook("01_download", [])
    notebook.cells[6].outputs[1].text = f"wrote {paths.ROOT}/data/demo/clips.parquet"
    executed.mkdir()
    nbformat.write(notebook, executed / "01_download.ipynb")
    with pytest.raises(ValueError, match=rf"01_download\.html: {re.escape(str(paths.ROOT))}/data/demo/clips\.parquet"):
        site_module.build_report("fixture", executed, drawn, make_metrics(), make_record(), target)
    assert (target / "index.html").read_text() == "the good one"
    assert [path.name for path in target.parent.iterdir()] == ["fixture"]


@pytest.mark.parametrize(
    "text", ["/home/ada/corpus/a.mp3", "/Users/ada/x", "C:\\\\Users\\\\ada", "/mnt/voices/clip.wav"]
)
def test_find_private_paths_names_page_and_path(tmp_path, text):
    (tmp_path / "run.json").write_text(json.dumps({"root": text.replace("\\\\", "\\")}))
    found = site_module.find_private_paths(tmp_path, ["/mnt/voices"])
    assert [page for page, _ in found] == ["run.json"]


def test_find_private_paths_leaves_links_relative_paths_and_pictures_alone(tmp_path):
    embedded = "data:image/png;base64,/home/ada/AAAA/root/xx="
    text = f'<a href="https://example.org{paths.ROOT}">x</a> data/demo/clips.parquet ../other <img src="{embedded}">'
    (tmp_path / "page.html").write_text(text)
    assert site_module.find_private_paths(tmp_path) == []


def test_a_run_with_one_notebook_and_a_free_list_of_scores_is_shown(tmp_path, inputs):
    executed = tmp_path / "executed"
    executed.mkdir()
    nbformat.write(make_notebook("01_compare", []), executed / "01_compare.ipynb")
    metrics = {"run": "encoders", "scores": [{"encoder": "wav2vec2-tiny", "windows per second": 31.5}]}
    target = site_module.build_report(
        "encoders", executed, inputs[1], metrics, {"title": "Encoders"}, tmp_path / "reports/encoders"
    )
    site_module.build_index(tmp_path / "reports")
    text = (target / "index.html").read_text()
    assert "windows per second" in text
    assert "31.500" in text
    assert "Encoders" in (tmp_path / "reports/index.html").read_text()


def test_two_figures_of_one_name_are_refused(tmp_path, inputs):
    executed, drawn = inputs
    again = tmp_path / "executed"
    again.mkdir()
    for name in ("01_download", "02_segment"):
        nbformat.write(nbformat.read(executed / "01_download.ipynb", 4), again / f"{name}.ipynb")
    with pytest.raises(ValueError, match="figure 'labels' is shown more than once, in 01_download, 02_segment"):
        site_module.build_report("twice", again, drawn, make_metrics(), make_record(), tmp_path / "reports/twice")


def test_no_executed_notebook_is_said_so(tmp_path):
    with pytest.raises(ValueError, match="no executed notebook"):
        site_module.build_report("none", tmp_path, tmp_path, {}, {}, tmp_path / "reports/none")


def test_the_same_inputs_give_the_same_pages(tmp_path, inputs):
    first, second = (
        site_module.build_report("same", *inputs, make_metrics(), make_record(), tmp_path / name / "same")
        for name in "ab"
    )
    for path in first.rglob("*.*"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path.name


def test_notebook_text_cannot_break_the_page(tmp_path, inputs):
    record = make_record(title="<script>alert(1)</script>")
    target = site_module.build_report("safe", *inputs, make_metrics(), record, tmp_path / "reports/safe")
    assert "<script>alert(1)" not in (target / "index.html").read_text()


# ---------------------------------------------------------------- numbers


def test_headlines_choose_the_network_on_unheard_speakers():
    head = headlines.make_headlines(make_metrics())[0]
    assert head["view"] == {
        "task": "gender",
        "split": "test",
        "subset": "all",
        "model": "cnn",
        "protocol": "speaker",
        "level": "clip",
    }
    assert head["verdict"] == "Better than a guess."


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.55, 0.7, "Better"), (0.4, 0.6, "Not shown"), (0.2, 0.4, "Worse")]
)
def test_the_verdict_follows_the_interval(low, high, verdict):
    common = {
        "task": "age",
        "protocol": "speaker",
        "split": "test",
        "level": "clip",
        "metric": "uar",
        "n": 40,
        "speakers": 8,
    }
    scores = [{**common, "model": "majority", "value": 0.5, "low": 0.5, "high": 0.5},
              {**common, "model": "cnn", "value": (low + high) / 2, "low": low, "high": high}]  # fmt: skip
    assert headlines.make_headlines({"scores": scores})[0]["verdict"].startswith(verdict)


def test_the_verdict_names_the_baselines_that_it_was_not_shown_to_beat():
    metrics = make_metrics()
    view = {"task": "gender", "model": "cnn", "protocol": "speaker", "split": "test", "level": "clip", "subset": "all"}
    pair = {**view, "metric": "uar_difference", "value": 0.1, "high": 0.2, "against": "baseline: mean F0"}
    verdicts = [
        headlines.make_headlines({**metrics, "differences": [{**pair, "low": low, "value": value}]})[0]["verdict"]
        for low, value in ((-0.1, -0.02), (-0.1, 0.1), (0.05, 0.1))
    ]
    assert verdicts == [
        "Better than a guess, not shown to be better than the simpler baseline mean F0 (mean F0 scored higher).",
        "Better than a guess, not shown to be better than the simpler baseline mean F0.",
        "Better than a guess and than every simpler baseline.",
    ]


def test_a_headline_holds_every_baseline_with_its_interval():
    head = headlines.make_headlines(make_metrics())[0]
    assert [one["name"] for one in head["baselines"]] == ["majority (a guess)", "baseline: mean F0"]
    assert all(one["low"] < one["value"] < one["high"] for one in head["baselines"])


@pytest.mark.parametrize(
    ("bounds", "shown"),
    [([16], ["child (under 16)", "adult (16 and over)"]), ([16, 70], ["child (under 16)", "adult (16 to under 70)"])],
)
def test_age_classes_stand_with_their_bounds(bounds, shown):
    settings = {"age_classes": ["child", "adult"], "age_bounds": bounds}
    assert headlines.describe_classes(["child", "adult"], settings) == shown
    assert headlines.describe_classes(["male", "female"], settings) == ["male", "female"]


@pytest.mark.parametrize(("corpora", "heard"), [(["speechocean762"], True), (["voxceleb"], False)])
def test_a_run_on_speakers_that_the_encoder_heard_says_so(corpora, heard):
    record = make_record(corpora=corpora)
    shown = site_module.shown_record(record, "run")["encoder"]
    assert ("test speakers included" in shown["heard"]) == heard


def test_the_leak_is_told_in_words():
    words = headlines.leak_words(headlines.make_leaks(make_metrics()))
    assert words.startswith("For gender, random windows show ")
    assert "points more" in words


def test_a_score_without_interval_or_majority_is_told_plainly():
    scores = [{"task": "gender", "model": "cnn", "metric": "uar", "value": 0.8, "low": None, "high": None, "n": None}]
    head = headlines.make_headlines({"scores": scores})[0]
    assert head["verdict"] == ""
    assert head["words"] == "Of 100 clips of unseen speakers about 80 are told right."


def test_an_age_in_years_is_told_in_years_beside_the_constant():
    common = {"task": "age_years", "protocol": "speaker", "split": "test", "level": "clip", "low": 4.0, "high": 6.0}
    scores = [
        {**common, "model": "cnn", "metric": "uar", "value": 0.4, "low": 0.3, "high": 0.5, "n": 9, "speakers": 3},
        {**common, "model": "cnn", "metric": "mae_years", "value": 5.0},
        {**common, "model": "baseline: constant age", "metric": "mae_years", "value": 6.7},
    ]
    words = headlines.make_headlines({"scores": scores})[0]["words"]
    assert (
        words == "Its ages are 5.0 years off on average (4.0 to 6.0); always telling the median age is 6.7 years off."
    )
    row = {**common, "model": "cnn", "subset": "all", "against": "baseline: constant age", "low": -2.0, "high": 0.1}
    doubtful = {"scores": scores, "differences": [{**row, "metric": "mae_years_difference", "value": -1.7}]}
    assert headlines.make_headlines(doubtful)[0]["words"].endswith("and the difference may be chance.")
    rival = {**common, "model": "baseline: MFCC", "metric": "mae_years", "value": 4.9}
    head = headlines.make_headlines({"scores": [*scores, rival]})[0]
    assert [one["name"] for one in head["baselines"]] == ["baseline: constant age", "baseline: MFCC"]
    assert head["verdict"] == "No nearer than the simpler baseline MFCC."


def test_the_leak_is_paper_minus_speaker():
    row = headlines.make_leaks(make_metrics())[0]
    assert row["difference"]["value"] == pytest.approx(row["paper"]["value"] - row["apart"]["value"])
    assert row["level"] == "window"


def test_the_leak_is_told_for_a_corpus_that_has_its_own_split():
    metrics = make_metrics()
    official = [{**row, "protocol": row["protocol"].replace("speaker", "official")} for row in metrics["scores"]]
    known = {"task": "gender", "model": "cnn", "metric": "uar", "level": "window"}
    known |= {"value": 0.1, "low": 0.0, "high": 0.2}
    headline = {task: {**view, "protocol": "official"} for task, view in (metrics.get("headline") or {}).items()}
    rows = headlines.make_leaks({**metrics, "scores": official, "headline": headline, "leak": [known]})
    assert rows[0]["heard"] == "the corpus's own test part"
    assert next(row["difference"]["high"] for row in rows if row["metric"] == "UAR") == 0.2
    assert "which may be chance" in headlines.leak_words(rows)
    alone = [row for row in metrics["scores"] if row["protocol"] == "paper"]
    assert headlines.make_leaks({**metrics, "scores": alone, "headline": {}}) == []


def test_the_worst_slice_is_marked_and_small_groups_are_named():
    metrics = make_metrics()
    small = {**metrics["scores"][-1], "subset": "language: tw", "value": None, "low": None, "high": None}
    table = headlines.make_slices({**metrics, "scores": [*metrics["scores"], small]})[1]
    assert [row["subset"] for row in table["rows"] if row["worst"]] == ["language: hi"]
    assert "Too few to score: language: tw" in table["caption"]


def test_confusion_shares_are_of_the_row():
    cells = headlines.make_confusions(make_metrics())[0]["rows"][0]["cells"]
    assert [cell["share"] for cell in cells] == [pytest.approx(183 / 220), pytest.approx(37 / 220)]


def test_networks_are_called_by_names_that_a_reader_understands():
    assert headlines.model_name("paper") == "the paper's network"
    assert headlines.model_name("linear_layers") == "linear model on all layers"
    assert headlines.model_name("attentive_layers") == "learned mix of all layers"
    assert headlines.model_name("baseline: MFCC") == "baseline: MFCC"


def test_a_mean_over_seeds_is_called_one():
    score = {"task": "age", "model": "cnn", "metric": "uar", "value": 0.7, "seeds": 3, "seed_std": 0.021}
    assert (
        "Mean of 3 seeds, with a standard deviation of 2.1 points."
        in headlines.make_headlines({"scores": [score]})[0]["basis"]
    )


def test_several_seeds_are_shown_each_and_named_in_the_headline():
    common = {"task": "age", "model": "cnn", "metric": "uar", "low": 0.6, "high": 0.8, "n": 9, "speakers": 3}
    metrics = {"scores": [{**common, "seed": seed, "value": 0.7 + seed / 100} for seed in range(3)]}
    assert "first of 3 seeds, which ran from 70.0 % to 72.0 %" in headlines.make_headlines(metrics)[0]["basis"]
    assert [row["model"] for row in headlines.make_tables(metrics)[0]["rows"]] == [
        f"cnn, seed {seed}" for seed in range(3)
    ]


# ---------------------------------------------------------------- all runs


def test_the_site_lists_and_compares_both_runs(site):
    index, compare = (site / "index.html").read_text(), (site / "compare.html").read_text()
    for name in ("fixture", "second"):
        assert f'href="{name}/index.html"' in index
        assert f'data-run="{name}"' in compare
    assert "train.epochs" in compare
    assert "Paired differences" in compare


def test_a_site_with_one_run_or_none_still_has_both_pages(tmp_path):
    site_module.build_index(tmp_path)
    assert "No run has been finished yet" in (tmp_path / "index.html").read_text()
    assert "one run or none" in (tmp_path / "compare.html").read_text()


def test_stage_rows_tell_the_cost_of_the_work_not_of_loading():
    row = site_module.shown_stage(
        {"stage": "03_embed", "seconds": 0.4, "made_in_seconds": 31.0, "recomputed": [], "counts": {"windows": 1234}}
    )
    assert (row["seconds"], row["did"], row["sizes"]) == (31.0, "loaded", "windows 1,234")


def test_labelled_lines_of_the_first_cell_become_a_list(tmp_path, inputs):
    page = pages.make_page(inputs[0] / "01_download.ipynb", inputs[1], tmp_path, {})
    assert "<dt>Reads</dt>" in page.body
    assert page.summary == "What does a page called download look like?"
