import os
import shutil
import unicodedata
from functools import partial

import pandas as pd
import pytest
from checks import refused, write_file
from test_common_voice import V1, V17, check_sum, make_locale, row
from test_own_data import make
from test_voxceleb import VIDEO, fail_with, write_frames, write_meta
from yt_dlp.utils import ExtractorError

from lib import config, corpora, paths
from lib.corpora.common_voice import read_common_voice
from lib.corpora.sieve import Sieve, audio_stem, file_fault, find_spelling, printable, walk_files
from lib.stages import digest_files, forget_digests

TABLE = "path,speaker,gender,age\na.wav,x,f,40\nb.wav,y,m,15\nno.wav,x,f,40\n"
WORDS = {  # of what is to be done
    "common_voice": ["agree to its terms", "MDC_API_KEY", "download.fetch", "of-no-run/corpora/common_voice holds"],
    "voxceleb": ["official archives", "download.fetch", "LEGAL_NOTE", "download.age_labels", "ages.csv"],
    "own_data": ["own_data.csv", "download.root"],
}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.delenv("MDC_API_KEY", raising=False)
    monkeypatch.delenv("VOICE_CACHE", raising=False)


@pytest.fixture
def both(tmp_path):
    folder = make_locale(tmp_path / "common_voice" / "cv-corpus-20.0-x" / "en", V17, [row("a", n) for n in range(3)])
    for number, path in enumerate((folder / "clips").iterdir()):
        path.write_bytes(b"ID3%d" % number)
    make(tmp_path / "own_data", TABLE)
    return tmp_path


def test_several_corpora_are_read_into_one_table_each_from_a_folder_of_its_own(both):
    (both / "common_voice").rename(both / "many")
    names = ["common_voice:many", "own_data"]
    clips, ledger, _ = corpora.read_clips(names, both, max_clips_per_speaker=2)
    roots = {"common_voice": both / "many", "own_data": both / "own_data"}
    assert corpora.find_roots(names, both) == roots
    assert clips["corpus"].tolist() == ["common_voice"] * 2 + ["own_data"] * 2
    assert ledger["reason"].tolist() == ["over the cap of clips a speaker", "no such file"]
    assert all((roots[corpus] / path).is_file() for corpus, path in zip(clips["corpus"], clips["path"]))
    noticed = [tuple(record.values()) for record in corpora.describe_reading(clips)]
    assert ("own_data", "folder that was read", f"{both.name}/own_data") in noticed
    assert ("common_voice", "tables that were read", "cv-corpus-20.0-x/en/validated.tsv") in noticed
    assert corpora.find_roots(["own_data"], both / "own_data" / "own_data.csv") == {"own_data": both / "own_data"}
    assert corpora.find_roots(["common_voice"], both / "many") == {"common_voice": both / "many"}
    for bad in (["tedlium"], [], ["own_data", "own_data"], ["own_data:../x"], ["own_data:/etc"]):
        refused(r"download\.corpora", corpora.find_roots, bad, both)


def test_the_checksum_holds_every_label_and_every_byte_of_sound(both):
    read = partial(corpora.read_clips, ["own_data"], both)
    table, sound = both / "own_data" / "own_data.csv", both / "own_data" / "a.wav"
    content, first = sound.read_bytes(), read()[2]
    table.write_text(TABLE.replace("x,f,40", "x,m,51"))
    assert read()[2] != first
    table.write_text(TABLE)
    for now in (content, content[::-1]):  # the old size and time of change, which only FROM=01_download sees through
        sound.write_bytes(now)
        os.utime(sound, ns=(1, 1))
        assert read()[2] == first
    forget_digests()
    assert read()[2] != first
    assert digest_files(both, ["gone"]) == {"gone": "unreadable: gone"}


def test_a_sound_of_two_speakers_is_dropped_or_refused_by_name(both):
    clips, rows = both / "common_voice" / "cv-corpus-20.0-x" / "en" / "clips", [row("a", 0), row("b", 1), row("a", 2)]
    make_locale(clips.parent, V17, rows)
    (clips / rows[2]["path"]).write_bytes(b"another")
    read, ledger, _ = corpora.read_clips(["common_voice"], both)
    assert read["clip_id"].tolist() == ["common_voice:common_voice_en_2"]
    assert ledger["reason"].tolist() == ["the same sound for two speakers"] * 2
    assert ledger["detail"][0] == "common_voice:common_voice_en_0, common_voice:common_voice_en_1"
    for path in clips.iterdir():
        path.write_bytes(b"one page for all")
    refused("common_voice: every sound is another speaker's", corpora.read_clips, ["common_voice", "own_data"], both)
    shutil.copyfile(both / "own_data" / "a.wav", both / "own_data" / "b.wav")
    refused(r"several speakers \(own_data:a\.wav, own_data:b\.wav\)", corpora.read_clips, ["own_data"], both)


def test_nothing_left_is_told_with_counts_and_names(tmp_path):
    make(tmp_path, "path,speaker\n" + "".join(f"lost/{n}.wav,x\n" for n in range(5)) + "lfs.wav,x\n", [])
    write_file(tmp_path / "lfs.wav", "version https://git-lfs.github.com/spec/v1\n")
    few = r"5 no such file \(lost/0\.wav, lost/1\.wav, lost/2\.wav \.\.\.\); 1 Git LFS pointer .* \(lfs\.wav\)"
    words = f"(?s)cannot be used.*own_data: 0 of 6 rows of .* can be used: {few}.*To do:"
    refused(words, corpora.read_clips, ["own_data"], tmp_path)
    make(tmp_path, "path,speaker\n", [])
    refused("0 of 0 rows of .* can be used: it has no rows", corpora.read_clips, ["own_data"], tmp_path)


@pytest.mark.parametrize("name", ["common_voice", "voxceleb", "paper", "own_data"])
def test_run_files_whose_data_are_missing_are_refused_with_the_steps_in_full(name, monkeypatch):
    monkeypatch.setattr(paths, "DATA", paths.ROOT / "data" / "of-no-run")
    sections = config.load_run(paths.PARAMS / f"{name}.yaml")
    told = refused("not there yet", corpora.check_run, sections["download"])
    for corpus in sections["download"]["corpora"]:
        assert [word for word in WORDS[corpus] if word not in told] == []
    assert str(paths.ROOT) not in told


def test_what_can_be_fetched_need_not_be_there(tmp_path):
    def check(**changes):
        section = {"corpora": ["common_voice"], "root": str(tmp_path), "fetch": [], "age_labels": ""}
        return corpora.check_run(section | changes)

    refused("MDC_API_KEY is not set", check, fetch=["cv-af"])
    refused("no such archive", check, fetch=["mine/cv.tar.gz"])
    check(fetch=[str(write_file(tmp_path / "mine.tar.gz"))])
    make_locale(tmp_path / "common_voice" / "af")
    check(fetch=["cv-af"])
    write_file(tmp_path / "voxceleb" / "wav" / "id10270" / VIDEO / "00001.wav")
    refused(r"vox1_meta\.csv", check, corpora=["voxceleb"])
    check(corpora=["voxceleb"], fetch=["open"])
    write_meta(tmp_path / "voxceleb")
    check(corpora=["voxceleb", "common_voice"])
    refused(r"age_labels: none\.csv: no such file", check, corpora=["voxceleb"], age_labels="none.csv")


def test_archives_without_folders_of_releases_one_to_three_do_not_overwrite_each_other(tmp_path):
    datasets = []
    for locale in ("nl", "fy-NL"):
        rows = [row(locale, locale=locale, path=f"{name}.mp3") for name in (locale, f"{locale}-2")]
        folder = make_locale(tmp_path / "made" / locale, V1, rows)
        datasets.append(shutil.make_archive(str(tmp_path / f"cv-corpus-3_{locale}"), "gztar", folder))
    obtain = partial(corpora.obtain_corpora, ["common_voice"], str(tmp_path / "corpora"), False, 0, fetch=datasets)
    folders = {obtain() / "common_voice" for _ in range(2)}  # the second time nothing is unpacked
    clips, _ = check_sum(read_common_voice(*folders), 4, {})
    assert clips["language"].value_counts().to_dict() == {"fy-NL": 2, "nl": 2}
    shutil.copyfile(datasets[1], datasets[0])  # another archive under the old name
    obtain()
    assert any("cv-corpus-3_nl/clips/fy-NL.mp3" in path for path in read_common_voice(*folders)[0]["path"])


def test_when_youtube_stops_the_run_before_any_video_its_advice_is_in_the_error(tmp_path, monkeypatch):
    write_meta(tmp_path)
    write_frames(tmp_path)
    write_file(tmp_path / "final_dataframe_extended.csv", "VoxCeleb_ID,video_id,speaker_age\nid10270,x,30\n")
    fail_with(monkeypatch, ExtractorError("Sign in to confirm you\u2019re not a bot", expected=True))
    words = "no audio yet.*stopped at video 1 of 1.*takes this connection for a robot"
    refused(words, corpora.obtain_corpora, ["voxceleb"], str(tmp_path), False, 0, fetch=["youtube"])


def rows() -> pd.DataFrame:
    columns = {name: [f"x:{n}" for n in range(4)] for name in ("item", "clip_id", "speaker_id", "recording_id", "path")}
    return pd.DataFrame(columns).assign(gender_raw=["male", "f", "other", ""], age_raw=["teens", "30", "", "old"])


def test_dropped_rows_and_noted_items_add_up_with_reason_and_detail():
    clips, ledger = Sieve("x", rows()).finish()
    known = clips[["gender", "age_decade", "age_years"]].fillna(0).to_numpy().tolist()
    assert known == [["male", 10, 0], ["female", 0, 30], [0, 0, 0], [0, 0, 0]]
    assert clips.attrs["warnings"][0].startswith("age values that give no label: {'old': 1}; write years (")
    assert ledger.empty
    sieve = Sieve("x", rows())
    sieve.drop([True, False, False, False], "first", "because")
    sieve.drop(pd.Series([False, True, False]), pd.Series(["a", "second", "c"]), pd.Series(["a", "b", "c"]))
    sieve.drop([False, False], "never")
    sieve.note([("line 9", "third", "broken"), ("\udcff.wav", "fourth", "")])
    clips, ledger = sieve.finish()
    assert (clips["clip_id"].tolist(), clips.attrs["rows_in"]) == (["x:1", "x:3"], 6)
    told = ["x:0 first because", "x:2 second b", "line 9 third broken", "\\xff.wav fourth "]
    assert ledger.agg(" ".join, axis=1).tolist() == [f"x {row}" for row in told]
    sieve.rows = sieve.rows.iloc[:-1]
    refused("x: 6 rows in, 1 clips, 4 dropped", sieve.finish, error=RuntimeError)


def test_every_file_that_cannot_hold_sound_has_its_reason(tmp_path):
    lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for name, content in {"good.wav": b"x", "empty.wav": b"", "lfs.wav": lfs}.items():
        write_file(tmp_path / name, content)
    for name, target in {"dangling.wav": "nowhere", "itself.wav": "itself.wav", "folder.wav": "."}.items():
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe.wav")
    faults = {"good.wav": "", "empty.wav": "empty file", "lfs.wav": "Git LFS pointer (run: git lfs pull)",
              "dangling.wav": "no such file", "itself.wav": "cannot be read", "folder.wav": "a folder, not a file",
              "pipe.wav": "no plain file", "good.wav/below.wav": "no such file", "x" * 300: "cannot be read",
              "a\0b": "cannot be read"}  # fmt: skip
    assert {name: file_fault(tmp_path / name) for name in faults} == faults


def test_files_are_walked_in_order_but_never_in_circles_and_found_under_several_spellings(tmp_path):
    for name in ("b/2.wav", "a/1.wav", "synthetic-1/3.wav", ".hidden/4.wav", "a/.5.wav"):
        write_file(tmp_path / name)
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")
    assert [*walk_files(tmp_path)] == [tmp_path / name for name in ("dangling", "a/1.wav", "b/2.wav")]
    on_disk = unicodedata.normalize("NFD", "Zoë/Ünal.WAV")
    write_file(tmp_path / on_disk)
    names = ["Zoë/Ünal.WAV", "Zoë\\Ünal.WAV", "./Zoë/../Zoë/Ünal.WAV", on_disk, "Zoë/Ünal.wav", str(tmp_path / on_disk)]
    assert {find_spelling(tmp_path, name, tmp_path) for name in names} == {on_disk}
    assert find_spelling(tmp_path, "no\\such.wav", tmp_path) == "no/such.wav"
    assert [audio_stem(path) for path in ("a/x.mp3", "x.m4a.WAV", "a\\x", "x.1", ".wav")] == ["x", "x", "x", "x.1", ""]
    assert printable("a\udce9.wav") == "a\\xe9.wav"
