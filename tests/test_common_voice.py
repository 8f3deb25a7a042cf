"""Common Voice as it ships: releases, headers, odd characters, blanks, drops."""

import os
import random
from pathlib import Path

import pytest

from lib.corpora import common_voice
from lib.corpora.common_voice import (
    find_locales,
    folder_locale,
    folder_release,
    read_common_voice,
    read_table,
)
from lib.tables import validate_table

V1 = ["client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accent"]
V6 = [*V1, "locale", "segment"]
V9 = [*V1[:-1], "accents", "locale", "segment"]
V13 = [*V1[:-1], "accents", "variant", "locale", "segment"]
V17 = [*V1[:2], "sentence_id", "sentence", "sentence_domain", *V13[3:]]


def row(client="a", number=1, locale="en", **values) -> dict[str, str]:
    base = {"client_id": client, "path": f"common_voice_{locale}_{number}.mp3", "locale": locale, "sentence": "Hello."}
    return {"up_votes": "2", "down_votes": "0"} | base | values


def write_table(path: Path, header: list[str], rows: list[dict[str, str]], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(header), *("\t".join(r.get(name, "") for name in header) for r in rows)]
    path.write_bytes("".join(line + end for line in lines).encode("utf-8"))


def write_clips(folder: Path, rows: list[dict[str, str]], content: bytes = b"ID3") -> None:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for r in rows:
        name = r["path"].rsplit("/", 1)[-1]
        (folder / "clips" / (name if "." in name else name + ".mp3")).write_bytes(content)


def make_locale(folder: Path, header: list[str] = V17, rows: list[dict[str, str]] | None = None, **others) -> Path:
    rows = [row(number=n) for n in (1, 2)] if rows is None else rows
    write_table(folder / "validated.tsv", header, rows)
    for name, table in others.items():
        write_table(folder / f"{name}.tsv", header, table)
    write_clips(folder, rows)
    return folder


def check_sum(clips, ledger, rows_in):
    validate_table(clips, "clips")
    validate_table(ledger, "ledger")
    assert len(clips) + len(ledger) == clips.attrs["rows_in"] == rows_in


def reasons(ledger) -> dict[str, int]:
    return ledger["reason"].value_counts().to_dict()


@pytest.mark.parametrize("header", [V1, V6, V9, V13, V17, V6[::-1]], ids=["8", "10", "10s", "11", "13", "reordered"])
def test_every_header_generation_gives_the_same_labels(tmp_path, header):
    rows = [row("a", 1, gender="male", age="fourties"), row("b", 2, gender="female_feminine", age="teens")]
    clips, ledger = read_common_voice(
        make_locale(tmp_path / "cv-corpus-9.0-2022-04-27" / "en", header, rows).parent.parent
    )
    check_sum(clips, ledger, 2)
    assert clips["gender"].tolist() == ["male", "female"]
    assert clips["age_decade"].tolist() == [40, 10]
    assert clips["age_years"].isna().all()
    assert clips["language"].tolist() == ["en", "en"]
    assert clips["clip_id"][0] == "common_voice:common_voice_en_1"
    assert clips["path"][0] == "cv-corpus-9.0-2022-04-27/en/clips/common_voice_en_1.mp3"


@pytest.mark.parametrize(
    ("place", "start"),
    [
        ("", ""), ("en", ""), ("en", "en"), ("cv-corpus-17.0-2024-03-15/en", ""), ("cv-corpus-4-2019-12-10_en", ""),
        ("unpacked/cv-corpus-22.0-delta-2025-06-20/en", ""), ("a/b/cv-corpus-7.0-2021-07-21/en", "a"),
    ],
)  # fmt: skip
def test_release_and_locale_are_found_by_looking(tmp_path, place, start):
    make_locale(tmp_path / place, V1)
    clips, ledger = read_common_voice(tmp_path / start)
    check_sum(clips, ledger, 2)
    assert set(clips["language"]) == {"en"}
    assert all((tmp_path / start / path).is_file() for path in clips["path"])


def test_locale_and_release_are_told_from_folder_names():
    names = {"zh-CN": "zh-CN", "cv-corpus-4-2019-12-10_pt": "pt", "cv-corpus-7.0-2021-07-21-sv-SE": "sv-SE",
             "cv-corpus-17.0-2024-03-15": "", "cv-corpus-5-singleword": "", "downloads": "",
             "cv-corpus-22.0-delta-2025-06-20-tr": "tr"}  # fmt: skip
    assert {name: folder_locale(Path("/x") / name) for name in names} == names
    assert folder_release(Path("/x/cv-corpus-6.0-2020-12-11/en")) == "6.0"
    assert folder_release(Path("/x/cv-corpus-22.0-delta-2025-06-20/en")) == "22.0-delta"
    assert folder_release(Path("/x/en")) == ""


@pytest.mark.parametrize(
    "sentence",
    ['"Quoted."', 'One odd " quote', "A\u2028line", "B\u2029C", "next\x85line", "v\x0bt", "f\x0cf", "s\x1cs\x1ds\x1e",
     "null", "NA", "nan", "undefined", "lone\rreturn", "", "'", "\\", "nul\x00byte", "# no comment", "\ufeffmark"],
)  # fmt: skip
def test_odd_sentences_neither_split_nor_swallow_rows(tmp_path, sentence):
    rows = [row("a", 1, sentence=sentence), row("b", 2, gender="male"), row("c", 3, sentence='end "')]
    clips, ledger = read_common_voice(make_locale(tmp_path / "en", V17, rows))
    check_sum(clips, ledger, 3)
    assert clips["speaker_id"].tolist() == ["common_voice:a", "common_voice:b", "common_voice:c"]
    assert clips["gender"].tolist()[1] == "male"


@pytest.mark.parametrize("client", ["null", "NA", "nan", "None", "0123"])
def test_client_ids_that_look_like_missing_values_stay_text(tmp_path, client):
    clips, _ = read_common_voice(make_locale(tmp_path / "en", V6, [row(client)]))
    assert clips["speaker_id"].tolist() == [f"common_voice:{client}"]


def test_windows_line_ends_and_byte_order_mark_are_understood(tmp_path):
    folder = make_locale(tmp_path / "en", V1, [row("a", 1, gender="male", accent="us")])
    write_table(folder / "validated.tsv", [f"\ufeff{V1[0]}", *V1[1:]], [], end="\r\n")
    text = (folder / "validated.tsv").read_bytes() + "\t".join(row().get(n, "") for n in V1).encode() + b"\r\n\r\n"
    (folder / "validated.tsv").write_bytes(text)
    clips, ledger = read_common_voice(folder)
    check_sum(clips, ledger, 1)


def test_malformed_rows_are_named_in_the_ledger(tmp_path):
    folder = make_locale(tmp_path / "en", V6, [row("a", 1), row("b", 2, sentence="a\ttab"), row("c", 3)])
    with open(folder / "validated.tsv", "ab") as stream:
        stream.write(b"cut off\tcommon_voice_en_4.mp3")
    clips, ledger = read_common_voice(folder)
    check_sum(clips, ledger, 4)
    assert clips["speaker_id"].tolist() == ["common_voice:a", "common_voice:c"]
    assert reasons(ledger) == {"wrong number of columns": 2}
    assert ledger["item"].tolist() == ["./validated.tsv:3", "./validated.tsv:5"]


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_are_read_as_a_plain_split_by_line_feed_and_tab_reads_them(tmp_path, seed, monkeypatch):
    rng, odd = (
        random.Random(seed),
        ["\r", '"', "'", "\\", "\u2028", "\x85", "\x0b", "\x1c", "\x00", "é", "𝄞", ",", "#", " "],
    )
    lines = ["\t".join(V6)]
    for n in range(200):
        sentence = "".join(rng.choices(["\t", "\n", *odd], weights=[1, 1] + [12] * len(odd), k=rng.randint(0, 12)))
        lines.append("\t".join(row(f"c{n}", n, sentence=sentence).get(name, "") for name in V6))
    data = "\n".join(lines).encode() + rng.choice([b"", b"\n", b"\r\n"])
    (tmp_path / "validated.tsv").write_bytes(data)
    monkeypatch.setattr(common_voice, "BLOCK_LINES", rng.choice([1, 7, 10**6]))
    rows, malformed = read_table(tmp_path / "validated.tsv")
    plain = [line.split(b"\t") for line in data.split(b"\n")[1:]]
    good = [[cell.decode().strip() for cell in cells] for cells in plain if len(cells) == len(V6)]
    assert rows[["client_id", "path"]].to_numpy().tolist() == [cells[:2] for cells in good]
    numbers = [n for n, cells in enumerate(plain, 2) if len(cells) != len(V6) and cells not in ([b""], [b"\r"])]
    assert [item for item, _, _ in malformed] == [f"validated.tsv:{n}" for n in numbers]


def test_missing_and_empty_clips_are_counted(tmp_path):
    rows = [row("a", n) for n in range(1, 5)]
    folder = make_locale(tmp_path / "en", V17, rows)
    (folder / "clips" / rows[0]["path"]).unlink()
    (folder / "clips" / rows[1]["path"]).write_bytes(b"")
    (folder / "clips" / rows[2]["path"]).unlink()
    (folder / "clips" / rows[2]["path"]).symlink_to(folder / "nowhere.mp3")
    clips, ledger = read_common_voice(folder)
    check_sum(clips, ledger, 4)
    assert reasons(ledger) == {"no such file": 2, "empty file": 1}


def test_extra_files_are_counted_not_read(tmp_path):
    folder = make_locale(tmp_path / "en", V17, other=[row("z", 9)])
    (folder / "clips" / "common_voice_en_9.mp3").write_bytes(b"ID3")
    (folder / "clips" / "common_voice_en_77.mp3").write_bytes(b"ID3")
    clips, ledger = read_common_voice(folder)
    check_sum(clips, ledger, 2)
    assert clips.attrs["facts"]["files on disk that no table names"] == 1


def test_path_variants_lead_to_the_same_clip(tmp_path):
    rows = [row("a", 1, path="nl/clips/common_voice_nl_1.mp3"), row("a", 2, path="common_voice_nl_2"),
            row("a", 3, path="../../common_voice_nl_3.mp3")]  # fmt: skip
    clips, ledger = read_common_voice(make_locale(tmp_path / "nl", V6, [r | {"locale": "nl"} for r in rows]))
    check_sum(clips, ledger, 3)
    assert clips["path"].tolist() == [f"clips/common_voice_nl_{n}.mp3" for n in (1, 2, 3)]


@pytest.mark.parametrize(("tables", "clips"), [("", "nl/clips"), ("clips", "clips"), ("", ""), ("clips", "clips/a/b")])
def test_tables_and_clips_are_found_wherever_people_put_them(tmp_path, tables, clips):
    write_table(tmp_path / tables / "validated.tsv", V6, [row("a", 1, "nl", path="nl/clips/common_voice_nl_1.mp3")])
    (tmp_path / clips).mkdir(parents=True, exist_ok=True)
    (tmp_path / clips / "common_voice_nl_1.mp3").write_bytes(b"ID3")
    read, ledger = read_common_voice(tmp_path)
    check_sum(read, ledger, 1)
    assert read["path"].tolist() == [(Path(clips) / "common_voice_nl_1.mp3").as_posix()]


def test_clips_that_were_turned_into_another_format_are_found(tmp_path):
    folder = make_locale(tmp_path / "en", V17, [row("a", n) for n in (1, 2, 3)])
    for number, suffix in ((1, ".wav"), (2, ".mp3.wav"), (3, ".opus")):
        old = folder / "clips" / f"common_voice_en_{number}.mp3"
        old.rename(old.with_name(old.stem + suffix))
    (folder / "clips" / "common_voice_en_3.wav").write_bytes(b"RIFF")
    clips, ledger = read_common_voice(folder)
    check_sum(clips, ledger, 3)
    assert clips["path"].str[len("clips/common_voice_en_") :].tolist() == ["1.wav", "2.mp3.wav", "3.wav"]
    assert clips["clip_id"].tolist() == [f"common_voice:common_voice_en_{n}" for n in (1, 2, 3)]


def test_rendered_corpora_are_not_taken_for_real_ones(tmp_path):
    make_locale(tmp_path / "synthetic-3x3" / "common_voice" / "en")
    with pytest.raises(ValueError, match=r"no validated\.tsv"):
        read_common_voice(tmp_path)
    assert len(read_common_voice(tmp_path / "synthetic-3x3")[0]) == 2


def test_blank_labels_come_from_the_same_clients_agreeing_rows_in_any_bucket(tmp_path):
    rows = [
        row("a", 1),
        row("b", 2),
        row("c", 3, gender="male", age="teens"),
        row("c", 4, gender="MALE_masculine"),
        row("d", 5),
    ]
    other = [row("a", 6, gender="female", age="fifties"), row("b", 7, gender="male"), row("d", 9, gender="other")]
    invalidated = [row("b", 8, gender="female", age="sixties")]
    folder = make_locale(tmp_path / "en", V17, rows, other=other, invalidated=invalidated)
    clips, ledger = read_common_voice(folder)
    check_sum(clips, ledger, 5)
    found = clips.set_index("clip_id")
    ids = [f"common_voice:common_voice_en_{n}" for n in range(1, 6)]
    assert found.loc[ids, "gender"].fillna("-").tolist() == ["female", "-", "male", "male", "-"]
    assert found.loc[ids, "age_decade"].fillna(0).tolist() == [50, 60, 10, 10, 0]
    assert found.loc[ids, "gender_raw"].tolist() == ["", "", "male", "MALE_masculine", ""]
    facts = clips.attrs["facts"]
    assert facts["speakers whose own rows disagree (their blanks stay blank)"] == {"gender": 1, "age": 0}
    assert facts["blank labels filled from the same speaker's other, agreeing rows"] == {"gender": 2, "age": 3}


def test_a_refusal_to_say_is_never_overwritten_by_another_row(tmp_path):
    rows = [row("a", 1, gender="male_masculine"), row("a", 2, gender="do_not_wish_to_say"), row("a", 3)]
    clips, _ = read_common_voice(make_locale(tmp_path / "en", V17, rows))
    assert clips["gender"].fillna("-").tolist() == ["male", "-", "-"]


def test_labels_are_not_carried_from_one_release_to_another(tmp_path):
    make_locale(tmp_path / "cv-corpus-6.1-2020-12-11" / "en", V6, [row("a", 1)])
    make_locale(tmp_path / "cv-corpus-7.0-2021-07-21" / "en", V6, [row("a", 2, gender="male")])
    clips, _ = read_common_voice(tmp_path)
    assert clips.set_index("clip_id")["gender"].fillna("-").to_dict() == {
        "common_voice:common_voice_en_1": "-", "common_voice:common_voice_en_2": "male",
    }  # fmt: skip


def test_two_locales_keep_unique_ids_and_share_their_speakers(tmp_path):
    make_locale(tmp_path / "cv-corpus-17.0-x" / "en", V17, [row("a", 1), row("a", 2, path="odd.mp3")])
    make_locale(tmp_path / "cv-corpus-17.0-x" / "de", V17, [row("a", 1, "de"), row("a", 2, "de", path="odd.mp3")])
    clips, ledger = read_common_voice(tmp_path)
    check_sum(clips, ledger, 4)
    assert clips["clip_id"].is_unique
    assert clips["speaker_id"].nunique() == 1
    assert sorted(clips["language"]) == ["de", "de", "en", "en"]


def test_a_clip_in_two_releases_is_read_once_where_it_exists(tmp_path):
    old = make_locale(tmp_path / "cv-corpus-16.1-2023-12-06" / "en", V13, [row("a", 1), row("a", 2)])
    new = make_locale(tmp_path / "cv-corpus-17.0-2024-03-15" / "en", V17, [row("a", 1), row("a", 2)])
    (new / "clips" / "common_voice_en_2.mp3").unlink()
    clips, ledger = read_common_voice(tmp_path)
    check_sum(clips, ledger, 4)
    assert sorted(clips["path"]) == [
        f"{old.parent.name}/en/clips/common_voice_en_2.mp3", f"{new.parent.name}/en/clips/common_voice_en_1.mp3",
    ]  # fmt: skip
    assert reasons(ledger) == {"listed twice": 2}


def test_single_words_are_left_out(tmp_path):
    rows = [row("a", 1, segment="Benchmark"), row("a", 2)]
    clips, ledger = read_common_voice(make_locale(tmp_path / "en", V6, rows))
    check_sum(clips, ledger, 2)
    assert reasons(ledger) == {"Benchmark segment": 1}


def test_cap_keeps_a_seeded_choice_whatever_the_order_of_rows(tmp_path):
    rows = [row("a", n) for n in range(20)] + [row("b", 100)]
    clips, ledger = read_common_voice(make_locale(tmp_path / "one" / "en", V17, rows), max_clips_per_speaker=5)
    check_sum(clips, ledger, 21)
    assert clips["speaker_id"].value_counts().tolist() == [5, 1]
    assert reasons(ledger) == {"over the cap of clips a speaker": 15}
    again, _ = read_common_voice(make_locale(tmp_path / "two" / "en", V17, rows[::-1]), max_clips_per_speaker=5)
    assert set(again["clip_id"]) == set(clips["clip_id"])
    other, _ = read_common_voice(tmp_path / "one", max_clips_per_speaker=5, seed=1)
    assert set(other["clip_id"]) != set(clips["clip_id"])
    with pytest.raises(ValueError, match="max_clips_per_speaker 0"):
        read_common_voice(tmp_path / "one", max_clips_per_speaker=0)


def test_absent_clips_do_not_use_up_the_cap(tmp_path):
    rows = [row("a", n) for n in range(20)]
    folder = make_locale(tmp_path / "en", V17, rows)
    for n in range(17):
        (folder / "clips" / f"common_voice_en_{n}.mp3").unlink()
    clips, ledger = read_common_voice(folder, max_clips_per_speaker=5)
    check_sum(clips, ledger, 20)
    assert sorted(clips["clip_id"].str[-2:]) == ["17", "18", "19"]
    assert reasons(ledger) == {"no such file": 17}
    clips, ledger = read_common_voice(tmp_path, max_clips_per_speaker=3)
    check_sum(clips, ledger, 20)
    assert len(clips) == 3
    assert reasons(ledger) == {"over the cap of clips a speaker": 17}


def test_other_buckets_tell_of_speakers_and_parts_of_validated_stand_in_for_it(tmp_path):
    split = [row("a", 1), row("a", 2), row("b", 3)]
    folder = make_locale(tmp_path / "en", V17, split, train=split[:1], dev=split[1:2], test=split[2:], other=[])
    assert len(read_common_voice(folder)[0]) == 3
    (folder / "validated.tsv").unlink()
    (folder / "other.tsv").write_bytes(b"")
    clips, ledger = read_common_voice(folder)
    check_sum(clips, ledger, 3)
    assert clips.attrs["warnings"] == [".: no validated.tsv; train, dev, test is read instead"]
    assert clips.attrs["facts"]["tables that were read"] == ["./train.tsv", "./dev.tsv", "./test.tsv"]
    for name in ("train", "dev", "test"):
        (folder / f"{name}.tsv").unlink()
    assert len(read_common_voice(folder)[0]) == 0


def test_release_six_zero_gives_no_gender_and_says_so(tmp_path):
    rows = [row("a", 1, gender="female", age="teens"), row("b", 2)]
    make_locale(tmp_path / "cv-corpus-6.0-2020-12-11" / "en", V6, rows)
    clips, ledger = read_common_voice(tmp_path)
    check_sum(clips, ledger, 2)
    assert clips["gender"].isna().all()
    assert clips["gender_raw"].tolist() == ["female", ""]
    assert clips["age_decade"].fillna(0).tolist() == [10, 0]
    assert "6.1 or later" in clips.attrs["warnings"][0]


def test_header_only_and_blank_fields_do_not_stop_the_reader(tmp_path):
    rows = [row("", 1), row("a", 2, path=""), row("a", 3)]
    folder = make_locale(tmp_path / "tw", V17, rows, dev=[], test=[])
    clips, ledger = read_common_voice(folder)
    check_sum(clips, ledger, 3)
    assert reasons(ledger) == {"no speaker": 1, "no path": 1}
    empty, nothing = read_common_voice(make_locale(tmp_path / "new" / "tw", V17, []))
    check_sum(empty, nothing, 0)


def test_unknown_words_keep_their_raw_value_and_are_counted(tmp_path):
    rows = [row("a", 1, gender="robot", age="ancient"), row("b", 2, gender="Female", age="Forties ")]
    clips, _ = read_common_voice(make_locale(tmp_path / "en", V17, rows))
    assert [text.partition(";")[0] for text in clips.attrs["warnings"]] == [
        "gender values that give no label: {'robot': 1}", "age values that give no label: {'ancient': 1}",
    ]  # fmt: skip
    assert clips["gender"].fillna("-").tolist() == ["-", "female"]
    assert clips["age_decade"].fillna(0).tolist() == [0, 40]


def test_wrong_roots_are_told_what_to_do(tmp_path):
    (tmp_path / "empty").mkdir()
    archive = tmp_path / "cv.tar.gz"
    archive.write_bytes(b"x")
    for root, words in ((tmp_path / "no", "no such folder"), (tmp_path / "empty", "unpack"), (archive, "datasets")):
        with pytest.raises(ValueError, match=words):
            find_locales(root)
    folder = make_locale(tmp_path / "en", ["client", "file"], [])
    with pytest.raises(ValueError, match="client_id or path"):
        read_common_voice(folder)
    (folder / "validated.tsv").write_bytes(b"")
    assert len(read_common_voice(folder)[0]) == 0


@pytest.mark.corpora
@pytest.mark.parametrize(("name", "clients"), [("common_voice", 0), ("common_voice_many", 15)])
def test_real_releases_add_up(name, clients):
    root = Path(os.environ.get("CORPORA") or pytest.skip("set CORPORA to the folder of real samples")) / name
    clips, ledger = read_common_voice(root)
    check_sum(clips, ledger, clips.attrs["rows_in"])
    tables = clips.attrs["facts"]["tables that were read"]
    assert clips.attrs["rows_in"] == sum((root / table).read_bytes().count(b"\n") - 1 for table in tables)
    assert all((root / path).stat().st_size for path in clips["path"])
    assert not [text for text in clips.attrs["warnings"] if "no label" in text]
    assert (clips.groupby("speaker_id")["language"].nunique() > 1).sum() == clients
