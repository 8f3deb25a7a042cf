from pathlib import Path

import pytest
from checks import refused, write_file

from lib.corpora import common_voice
from lib.corpora.common_voice import find_locales, folder_release, read_common_voice
from lib.tables import validate_table

V1 = ["client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accent"]
V6 = [*V1, "locale", "segment"]
V9 = [*V1[:-1], "accents", "locale", "segment"]
V13 = [*V1[:-1], "accents", "variant", "locale", "segment"]
V17 = [*V1[:2], "sentence_id", "sentence", "sentence_domain", *V13[3:]]
HEADERS = [V1, V6, V9, V13, V17, V6[::-1], ["\ufeffclient_id", *V6[1:]]]
ODD = ["\r", '"', "'", "\\", "\u2028", "\x85", "\x0b", "\x1c", "\x00", "é", "𝄞", ",", "#", "null"]


def row(client="a", number=1, locale="en", **values) -> dict[str, str]:
    base = {"client_id": client, "path": f"common_voice_{locale}_{number}.mp3", "locale": locale, "sentence": "Hello."}
    return {"up_votes": "2", "down_votes": "0"} | base | values


TWO = [row(number=1), row(number=2)]


def make_locale(folder: Path, header: list[str] = V17, rows=TWO, clips="clips", **others) -> Path:
    """A locale's folder with validated.tsv, the tables of `others`, and a clip for every row of the first in `clips`."""
    for name, table in {"validated": rows, **others}.items():
        lines = ["\t".join(header), *("\t".join(r.get(name, "") for name in header) for r in table)]
        write_file(folder / f"{name}.tsv", "".join(f"{line}\n" for line in lines))
    for name in [r["path"].rsplit("/", 1)[-1] for r in rows if clips]:
        write_file(folder / clips / (name if "." in name else f"{name}.mp3"))
    return folder


def check_sum(found, rows_in, reasons=None):
    """Clips and ledger that a reader found, once nothing is lost and, if given, the ledger's counts are `reasons`."""
    clips, ledger = found
    validate_table(clips, "clips")
    validate_table(ledger, "ledger")
    assert len(clips) + len(ledger) == clips.attrs["rows_in"] == rows_in
    assert reasons in (None, ledger["reason"].value_counts().to_dict())
    return clips, ledger


@pytest.mark.parametrize("header", HEADERS)
def test_every_header_generation_gives_the_same_labels(tmp_path, header, monkeypatch):
    monkeypatch.setattr(common_voice, "BLOCK_LINES", 2)
    rows = [row("NA", 1, gender="male", age="fourties"), row("012", 2, gender="female_feminine", age="teens")]
    rows += [row("c", n, sentence=f"{odd} {odd}x{odd}") for n, odd in enumerate(ODD, 3)]
    rows = [r | {"\ufeffclient_id": r["client_id"]} for r in rows]
    table = make_locale(tmp_path / "cv-corpus-9.0-x" / "en", header, rows) / "validated.tsv"
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n") + b"cut\toff\n\n")
    clips, ledger = check_sum(read_common_voice(tmp_path), 17, {"wrong number of columns": 1})
    assert ledger["item"].tolist() == ["cv-corpus-9.0-x/en/validated.tsv:18"]
    assert clips["path"].tolist() == [f"cv-corpus-9.0-x/en/clips/common_voice_en_{n}.mp3" for n in range(1, 17)]
    labels = clips.loc[:1, ["speaker_id", "gender", "age_decade", "language"]].to_numpy().tolist()
    assert labels == [["common_voice:NA", "male", 40, "en"], ["common_voice:012", "female", 10, "en"]]


@pytest.mark.parametrize(("place", "start", "locale", "release"), [  # the last two are what the folder's name tells
    ("", "", "", ""), ("zh-CN", "", "zh-CN", ""), ("en", "en", "en", ""), ("cv-corpus-17.0-2024-03-15/en", "", "en", "17.0"),
    ("cv-corpus-4-2019-12-10_pt", "", "pt", "4"), ("u/cv-corpus-22.0-delta-2025-06-20/en", "", "en", "22.0-delta"),
    ("a/b/cv-corpus-7.0-2021-07-21-sv-SE", "a", "sv-SE", "7.0"), ("cv-corpus-5-singleword", "", "", "5-singleword"),
])  # fmt: skip
def test_release_and_locale_are_found_by_looking(tmp_path, place, start, locale, release):
    make_locale(tmp_path / place, V1, [row(path="odd.mp3"), row(path=f"{locale}/clips/2.mp3"), row(path="3")])
    clips, _ = check_sum(read_common_voice(tmp_path / start), 3)
    assert (set(clips["language"]) == {locale} or not place, folder_release(tmp_path / place)) == (True, release)
    assert all((tmp_path / start / path).is_file() for path in clips["path"])


def test_missing_empty_and_extra_clips_and_blank_fields_are_counted(tmp_path):
    rows = [*(row("a", n) for n in range(1, 5)), row("", 5), row("a", 6, path="")]
    folder = make_locale(tmp_path / "en", V17, rows, other=[row("z", 9)])
    (folder / "clips" / rows[0]["path"]).unlink()
    for name in ("common_voice_en_2.mp3", "common_voice_en_9.mp3", "77.mp3", "notes.txt", "\udcff.mp3"):
        write_file(folder / "clips" / name, b"" if "_2." in name else b"ID3")
    reasons = dict.fromkeys(["no such file", "empty file", "no speaker", "no path"], 1)
    read, _ = check_sum(read_common_voice(folder), 6, reasons)
    assert read.attrs["facts"]["files on disk that no table names"] == 2


@pytest.mark.parametrize(("tables", "clips"), [("", "nl/clips"), ("clips", "clips"), ("", ""), ("clips", "clips/a/b")])
def test_tables_and_clips_are_found_wherever_people_put_them_and_in_whatever_format(tmp_path, tables, clips):
    rows = [row("a", n, "nl", path=f"nl/clips/common_voice_nl_{n}.mp3") for n in range(4)]
    make_locale(tmp_path / tables, V6, rows, clips="")
    for name in ("0.mp3", "1.wav", "2.mp3.wav", "3.opus", "3.wav"):
        write_file(tmp_path / clips / f"common_voice_nl_{name}")
    read, _ = check_sum(read_common_voice(tmp_path), 4)
    found = [f"{clips}/common_voice_nl_{name}".strip("/") for name in ("0.mp3", "1.wav", "2.mp3.wav", "3.wav")]
    assert read["path"].tolist() == found
    assert read["clip_id"].tolist() == [f"common_voice:common_voice_nl_{n}" for n in range(4)]


def test_blank_labels_come_from_the_same_clients_agreeing_rows_in_any_bucket(tmp_path):
    rows = [row("a", 1), row("b", 2), row("c", 3, gender="male", age="teens"), row("c", 4, gender="MALE_masculine")]
    other = [row("a", 6, gender="female", age="fifties"), row("b", 7, gender="male"), row("d", 9, gender="other")]
    invalidated = [row("b", 8, gender="female", age="sixties")]
    folder = make_locale(tmp_path / "en", V17, [*rows, row("d", 5)], other=other, invalidated=invalidated)
    clips, _ = check_sum(read_common_voice(folder), 5)
    assert clips[["gender", "age_decade", "gender_raw"]].fillna(0).to_numpy().T.tolist() == [
        ["female", 0, "male", "male", 0], [50, 60, 10, 10, 0], ["", "", "male", "MALE_masculine", ""],
    ]  # fmt: skip
    filled, disagreeing = [fact for fact in clips.attrs["facts"].values() if isinstance(fact, dict)]
    assert (filled, disagreeing) == ({"gender": 2, "age": 3}, {"gender": 1, "age": 0})


def test_a_refusal_to_say_is_never_overwritten_no_label_crosses_releases_and_six_zero_gives_no_gender(tmp_path):
    rows = [row("a", 1, gender="male_masculine"), row("a", 2, gender="do_not_wish_to_say"), row("a", 3)]
    make_locale(tmp_path / "cv-corpus-17.0-x" / "en", V17, rows)
    make_locale(tmp_path / "cv-corpus-7.0-x" / "en", V6, [row("b", 4)])
    make_locale(tmp_path / "cv-corpus-6.1-x" / "en", V6, [row("b", 5, gender="male")])
    make_locale(tmp_path / "cv-corpus-6.0-x" / "en", V6, [row("c", 6, gender="female", age="teens"), row("d", 7)])
    clips, _ = read_common_voice(tmp_path)
    assert clips["gender"].fillna("-").tolist() == ["male", "-", "-", "-", "male", "-", "-"]
    assert clips[["gender_raw", "age_decade"]].fillna(0).to_numpy().tolist()[5:] == [["female", 10], ["", 0]]
    assert "release 6.0 lost every 'male'" in clips.attrs["warnings"][0]


def test_locales_and_releases_keep_unique_ids_share_their_speakers_and_each_clip_is_read_once(tmp_path):
    new, old = tmp_path / "cv-corpus-17.0-x", tmp_path / "cv-corpus-16.1-x"
    make_locale(new / "en", rows=[*TWO, row(path="odd.mp3")])
    make_locale(new / "de", rows=[row("a", 1, "de"), row(locale="de", path="odd.mp3")])
    make_locale(old / "en", V13)
    (new / "en" / "clips" / "common_voice_en_2.mp3").unlink()
    clips, _ = check_sum(read_common_voice(tmp_path), 7, {"listed twice": 2})
    assert (clips["speaker_id"].nunique(), clips["language"].tolist()) == (1, ["de"] * 2 + ["en"] * 3)
    where = clips.set_index("clip_id")["path"][[f"common_voice:common_voice_en_{n}" for n in (1, 2)]]
    assert where.str.split("/").str[0].tolist() == [new.name, old.name]  # the newest, but where the file is


def test_cap_keeps_a_seeded_choice_whatever_the_order_of_rows(tmp_path):
    rows = [row("a", n) for n in range(20)] + [row("b", 100)]
    one, two = (make_locale(tmp_path / name, V17, rows[::step]) for name, step in (("one/en", 1), ("two/en", -1)))

    def read(folder, cap=5, seed=0, reason="over the cap of clips a speaker", number=15):
        return set(check_sum(read_common_voice(folder, cap, seed), 21, {reason: number})[0]["clip_id"])

    kept = read(one)
    assert (len(kept), "common_voice:common_voice_en_100" in kept) == (6, True)
    assert read(two) == kept != read(one, seed=1)
    refused("max_clips_per_speaker 0", read_common_voice, one, max_clips_per_speaker=0)
    for n in range(17):  # absent clips do not use up the cap
        (one / "clips" / f"common_voice_en_{n}.mp3").unlink()
    assert len(read(one, reason="no such file", number=17)) == len(read(one, cap=3, number=17)) == 4


def test_parts_of_validated_stand_in_for_it_and_empty_tables_stop_nothing(tmp_path):
    folder = make_locale(tmp_path / "en", train=TWO[:1], dev=TWO[1:], test=[row("b", 3)])
    write_file(folder / "other.tsv", b"")
    assert check_sum(read_common_voice(folder), 2)[0].attrs["warnings"] == []
    (folder / "validated.tsv").unlink()
    clips, _ = check_sum(read_common_voice(folder), 3, {"no such file": 1})
    assert clips.attrs["warnings"] == [".: no validated.tsv; train, dev, test is read instead"]


def test_wrong_roots_are_told_what_to_do(tmp_path):
    make_locale(tmp_path / "synthetic-3x3" / "en")  # rendered corpora never pass for real ones
    (tmp_path / "cv.tar.gz").write_bytes(b"x")
    for root, words in (("no", "no such folder"), (".", "no validated.tsv.*unpack"), ("cv.tar.gz", "download.fetch")):
        refused(words, find_locales, tmp_path / root)
    assert len(read_common_voice(tmp_path / "synthetic-3x3")[0]) == 2
    write_file(tmp_path / "en" / "validated.tsv", "client\tfile\n")
    refused(r"validated\.tsv: no column client_id or path", read_common_voice, tmp_path)
