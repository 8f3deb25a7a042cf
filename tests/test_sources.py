"""Where a run's corpora come from: what is asked of the user first, and what is fetched and unpacked."""

import tarfile

import pytest
import yt_dlp
from test_common_voice import V1, V17, make_locale, row
from test_voxceleb import VIDEO, write_audio, write_frames, write_meta
from yt_dlp.utils import ExtractorError

from lib import config, paths
from lib.corpora import sources
from lib.corpora.common_voice import read_common_voice

DOWNLOAD = {
    "corpora": ["common_voice"], "download": False, "datasets": [], "youtube": False, "age_labels": "",
}  # fmt: skip


def check(tmp_path, **changes):
    sources.check_run(DOWNLOAD | {"root": str(tmp_path / "corpora")} | changes, synthetic=False)


@pytest.fixture(autouse=True)
def no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("MDC_API_KEY", "")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("run", ["paper", "common_voice", "voxceleb", "own_data"])
def test_every_real_run_names_the_users_first_steps_when_its_data_are_absent(tmp_path, monkeypatch, run):
    monkeypatch.setattr(paths, "DATA", tmp_path / "nothing")
    sections = config.load_run(paths.PARAMS / f"{run}.yaml")
    with pytest.raises(ValueError, match="not there yet") as caught:
        sources.check_run(sections["download"], sections["run"]["synthetic"])
    words = {
        "common_voice": ["mozilladatacollective.com", "agree to its terms", "MDC_API_KEY", "download.datasets"],
        "voxceleb": ["official archives", "download.youtube", "LEGAL_NOTE", "download.age_labels", "ages.csv"],
        "own_data": ["own_data.csv", "download.root"],
    }
    for corpus in sections["download"]["corpora"]:
        assert [word for word in words[corpus] if word not in str(caught.value)] == []


def test_advice_names_folders_of_the_project_without_the_machines_path(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", paths.ROOT / "data" / "of-no-run")
    with pytest.raises(ValueError, match="data/of-no-run/corpora/common_voice holds") as caught:
        check(tmp_path, root="")
    assert str(paths.ROOT) not in str(caught.value)


def test_a_dataset_needs_a_key_or_an_archive_that_is_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="MDC_API_KEY is not set"):
        check(tmp_path, datasets=["cv-af"])
    with pytest.raises(ValueError, match="no such archive"):
        check(tmp_path, datasets=["mine/cv.tar.gz"])
    (tmp_path / "mine.tar.gz").write_bytes(b"x")
    check(tmp_path, datasets=[str(tmp_path / "mine.tar.gz")])
    monkeypatch.setenv("MDC_API_KEY", "key")
    check(tmp_path, datasets=["cv-af"])


def test_data_that_were_fetched_before_need_no_key(tmp_path):
    make_locale(tmp_path / "corpora" / "common_voice" / "af" / "cv-corpus-25.0-x" / "af", V17, [row("a", 1, "af")])
    check(tmp_path, datasets=["cv-af"])


def test_cuts_without_meta_will_do_when_the_tables_are_fetched(tmp_path):
    write_audio(tmp_path / "corpora" / "voxceleb" / "wav" / "id10270" / VIDEO / "00001.wav")
    with pytest.raises(ValueError, match=r"vox1_meta\.csv"):
        check(tmp_path, corpora=["voxceleb"])
    check(tmp_path, corpora=["voxceleb"], download=True)
    write_meta(tmp_path / "corpora" / "voxceleb")
    check(tmp_path, corpora=["voxceleb"])
    with pytest.raises(ValueError, match=r"age_labels: ages/none\.csv: no such file"):
        check(tmp_path, corpora=["voxceleb"], age_labels="ages/none.csv")


def pack(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return str(archive)


def test_archives_without_folders_of_releases_one_to_three_do_not_overwrite_each_other(tmp_path):
    datasets = []
    for locale in ("nl", "fy-NL"):
        rows = [row(locale, 1, locale, path=f"{locale}.mp3"), row(locale, 2, locale, path=f"{locale}-2.mp3")]
        folder = make_locale(tmp_path / "made" / locale, V1, rows)
        datasets.append(pack(folder, tmp_path / f"cv-corpus-3_{locale}.tar.gz"))
    root = str(tmp_path / "corpora")
    folder = sources.obtain_corpora(["common_voice"], root, False, 0, datasets=datasets)
    clips, ledger = read_common_voice(folder / "common_voice")
    assert (len(clips), len(ledger)) == (4, 0)
    assert clips.groupby("language").size().to_dict() == {"fy-NL": 2, "nl": 2}


def test_single_words_leave_the_archive_when_they_are_asked_for(tmp_path):
    rows = [row("a", 1, "en", segment="Benchmark"), row("a", 2, "en")]
    make_locale(tmp_path / "made" / "cv-corpus-17.0-2024-03-15" / "en", V17, rows)
    archive = pack(tmp_path / "made", tmp_path / "mine.tar.gz")
    root = str(tmp_path / "corpora")
    folder = sources.obtain_corpora(["common_voice"], root, False, 0, datasets=[archive], keep_benchmark=True)
    clips, ledger = read_common_voice(folder / "common_voice", keep_benchmark=True)
    assert (len(clips), len(ledger)) == (2, 0)


def test_when_youtube_stops_the_run_before_any_video_its_advice_is_in_the_error(tmp_path, monkeypatch):
    folder = tmp_path / "corpora" / "voxceleb"
    write_meta(folder)
    write_frames(folder)
    (folder / "final_dataframe_extended.csv").write_text("VoxCeleb_ID,video_id,speaker_age\n")

    def robot(self, url):
        raise ExtractorError("Sign in to confirm you\u2019re not a bot", expected=True)

    monkeypatch.setattr(yt_dlp.extractor.youtube.YoutubeIE, "_real_extract", robot)
    with (
        pytest.warns(UserWarning, match="stopped at video 1 of 1"),
        pytest.raises(ValueError, match=r"(?s)frame files but no audio.*takes this connection for a robot"),
    ):
        sources.obtain_corpora(["voxceleb"], str(tmp_path / "corpora"), False, 0, youtube=True)
