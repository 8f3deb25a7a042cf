from pathlib import Path

import pytest
from checks import refused, write_file
from test_common_voice import check_sum

from lib.corpora.speechocean762 import read_speechocean762


def make_half(root: Path, half: str, speakers: dict[str, tuple[str, str]], suffix=".WAV") -> None:
    utterances = {f"{int(s):05d}{n:04d}": s for s in speakers for n in (1, 2)}
    paths = {u: write_file(root / f"WAVE/SPEAKER{s}/{u}{suffix}").relative_to(root) for u, s in utterances.items()}
    ages, genders = ({s: labels[k] for s, labels in reversed(speakers.items())} for k in (1, 0))
    for name, table in {"wav.scp": paths, "utt2spk": utterances, "spk2age": ages, "spk2gender": genders}.items():
        gap = " " if name == "utt2spk" else "\t"
        write_file(root / half / name, "".join(f"{key}{gap}{value}\n" for key, value in table.items()))


@pytest.mark.parametrize(("suffix", "place"), [(".WAV", ""), (".opus", "speechocean762")])
def test_both_halves_keep_ids_as_text_and_their_official_split(tmp_path, suffix, place):
    make_half(tmp_path / place, "train", {"0001": ("m", "6"), "0005": ("f", "43")}, suffix)
    make_half(tmp_path / place, "test", {"0003": ("f", "15")}, suffix)
    clips, _ = check_sum(read_speechocean762(tmp_path), 6)
    told = clips.loc[0, ["clip_id", "speaker_id", "gender", "age_years", "official_split", "language"]].tolist()
    assert told == ["speechocean762:000010001", "speechocean762:0001", "male", 6.0, "train", "en"]
    assert clips["official_split"].tolist() == ["train"] * 4 + ["test"] * 2
    assert all((tmp_path / path).is_file() for path in clips["path"])


def test_speakers_come_from_spk2utt_too_and_an_absent_half_is_said(tmp_path):
    make_half(tmp_path, "test", {"0001": ("m", "6"), "0005": ("f", "43")})
    write_file(tmp_path / "test/utt2spk", "000010001 0001\n")
    write_file(tmp_path / "test/spk2utt", "0001 000010001 000010002\n")
    clips, _ = check_sum(read_speechocean762(tmp_path / "test"), 4, {"no speaker": 2})
    assert clips["speaker_id"].tolist() == ["speechocean762:0001"] * 2
    assert clips.attrs["warnings"] == ["the train half is not there"]
    assert all((tmp_path / "test" / path).is_file() for path in clips["path"])
    refused("openslr", read_speechocean762, tmp_path / "WAVE")


def test_suffix_in_the_other_case_is_found_and_losses_are_named(tmp_path):
    make_half(tmp_path, "train", {"0001": ("m", "6"), "0002": ("m", "")}, ".wav")
    table = tmp_path / "train" / "wav.scp"
    table.write_text(table.read_text().replace(".wav", ".WAV"))
    make_half(tmp_path, "test", {"0001": ("m", "6")}, ".wav")
    (tmp_path / "WAVE" / "SPEAKER0001" / "000010002.wav").unlink()
    clips, ledger = check_sum(read_speechocean762(tmp_path), 6, {"no such file": 2, "listed twice": 1})
    kept = [*zip(clips["clip_id"].str[-9:], clips["age_years"].fillna(0))]
    assert kept == [("000010001", 6), ("000020001", 0), ("000020002", 0)]
    assert ledger["item"].tolist() == ["000010002", "000010002", "000010001"]


def test_tables_that_contradict_themselves_are_refused_by_name(tmp_path):
    make_half(tmp_path, "train", {"0001": ("m", "6")})
    for name, key in (("wav.scp", "000010001"), ("utt2spk", "000010001"), ("spk2gender", "0001")):
        text = (tmp_path / "train" / name).read_text()
        write_file(tmp_path / "train" / name, f"{text}{key} other\n\xff\n")
        refused(rf"{name}: {key} stands there twice, as .* and as 'other'", read_speechocean762, tmp_path)
        write_file(tmp_path / "train" / name, text)
