import os
import unicodedata

import pandas as pd
from checks import refused, write_file

from lib.corpora.sieve import Sieve, audio_stem, file_fault, find_spelling, printable, walk_files


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
