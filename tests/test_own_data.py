import pytest
from checks import refused, write_file
from test_common_voice import check_sum

from lib.corpora.own_data import read_own_data


def make(folder, text: str, files=("a.wav", "b.wav", "sub/c.flac")):
    for name in files:
        write_file(folder / name, f"RIFF{name}")
    write_file(folder / "own_data.csv", text)
    return folder


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("separator", "first"), [(",", ""), ("\t", ""), (";", "sep=;"), (",", '"sep=,"')])
@pytest.mark.parametrize("header", ["path,speaker,gender,age,language", "Filename,Speaker ID,Sex,Age (years), LOCALE "])
def test_headers_are_understood_as_labels_are(tmp_path, header, separator, first, end):
    lines = [header, "a.wav,José,female,34,en", "sub/c.flac,Jose\u0301,F,fifties,hu", ""]  # NFC, NFD
    text = "\ufeff" + (first + end if first else "") + end.join(line.replace(",", separator) for line in lines)
    clips, _ = check_sum(read_own_data(make(tmp_path, text)), 2)
    assert clips["clip_id"].tolist() == ["own_data:a.wav", "own_data:sub/c.flac"]
    assert clips["speaker_id"].tolist() == ["own_data:José"] * 2
    columns = ["gender", "age_years", "age_decade", "language"]
    assert clips[columns].fillna(0).to_numpy().tolist() == [["female", 34, 0, "en"], ["female", 0, 50, "hu"]]


def test_speakers_whose_names_differ_in_case_are_one_and_decimal_commas_decades_and_stretches_are_read(tmp_path):
    text = "path,speaker,gender\na.wav,Anna B,f\nb.wav,anna  b,\nsub/c.flac,bela,m\n"
    clips, _ = read_own_data(make(tmp_path, text))
    assert clips["speaker_id"].tolist() == ["own_data:Anna B"] * 2 + ["own_data:bela"]
    assert clips.attrs["warnings"][0].endswith("differ in case or blanks alone: anna  b as Anna B")
    clips, _ = read_own_data(make(tmp_path, "path;speaker;start_s;end_s;age\na.wav;x;0,5;2,5;23,5\n"))
    assert clips[["start_s", "end_s", "age_years"]].to_numpy().tolist() == [[0.5, 2.5, 23.5]]
    text = "path,speaker,start_s,end_s,Age-decade\na.wav,x,0,2.5,30\na.wav,x,2.5,,30\na.wav,x,5,4,\na.wav,x,soon,,\n"
    clips, _ = check_sum(read_own_data(make(tmp_path, text)), 4, {"no stretch of time": 2})
    assert clips["clip_id"].tolist() == ["own_data:a.wav@0", "own_data:a.wav@2500"]
    assert (clips["recording_id"].nunique(), clips["age_decade"].tolist()) == (1, [30, 30])


def test_a_quote_that_does_not_close_costs_its_own_line_only_and_lost_and_odd_rows_are_named(tmp_path):
    text = 'path,speaker,note\na.wav,x,"open\n"b.wav","y","a ""good"" one"\nsub/c.flac,z\nsub/c.flac,z,\n'
    clips, ledger = check_sum(read_own_data(make(tmp_path, text)), 4)
    assert clips.attrs["warnings"] == ["columns that are not understood, and left out: ['note']"]
    assert clips["path"].tolist() == ["b.wav", "sub/c.flac"]
    assert ledger["item"].tolist() == ["own_data.csv line 2", "own_data.csv line 4"]
    assert ledger["reason"].tolist() == ["a quote that does not close", "wrong number of columns"]
    text = f"path,speaker,gender\n{tmp_path}/a.wav,x,f\nno.wav,x,f\n,x,f\na.wav,x,female\nsub,x,1\nsub\\c.flac,y,0\n\n"
    clips, ledger = check_sum(read_own_data(make(tmp_path, text)), 6)
    assert clips["path"].tolist() == ["a.wav", "sub/c.flac"]
    assert clips.attrs["warnings"][0].startswith("gender values that give no label: {'0': 1}; write male, female, m,")
    lost = {"no.wav": "no such file", "sub": "a folder, not a file", "a.wav": "listed twice"}
    assert dict(zip(ledger["item"], ledger["reason"])) == lost | {"own_data.csv line 4": "no path"}


def test_folders_without_a_clear_table_are_refused_and_columns_that_might_name_the_speaker_not_passed_over(tmp_path):
    refused(r"write own_data\.csv", read_own_data, tmp_path)
    write_file(tmp_path / "own_data.csv", "path\nZoë.wav".encode("latin-1"))
    refused("CSV UTF-8", read_own_data, tmp_path)
    for text in ("", "\n", "name,who\n"):
        refused(r"own_data\.csv: needs a column 'path'", read_own_data, make(tmp_path, text))
    folder = make(tmp_path, "path,talker,gender\na.wav,x,f\nb.wav,x,f\n")
    refused(r"own_data\.csv: no column 'speaker'.*\['talker'\]\. Rename", read_own_data, folder)
    twice = make(tmp_path, "path,speaker,Speaker\na.wav,x,y\n")
    refused(r"several columns are named \['speaker'\]; leave one of each", read_own_data, twice)
    clips, _ = check_sum(read_own_data(make(tmp_path, "path\na.wav\nb.wav\n") / "own_data.csv"), 2)
    assert clips.attrs["warnings"][0].startswith("rows without a speaker: 2; each file counts as its own")
    assert clips["speaker_id"].nunique() == clips.attrs["facts"]["files that count as a speaker of their own"] == 2


@pytest.mark.parametrize(("lines", "words"), [
    ("a.wav,x,f,30\n./a.wav,x,m,30", r"gender of a\.wav: female \(line 2\), male \(line 3\)"),
    ("a.wav,x,f,30\nsub/../a.wav,y,f,30", r"speaker_id of a\.wav: own_data:x \(line 2\), own_data:y \(line 3\)"),
    ("a.wav,x,f,30\na.wav,x,f,31", r"age_years of a\.wav: 30\.0 \(line 2\), 31\.0 \(line 3\)"),
    ("a.wav,Anna B,f,\nb.wav,anna  b,m,", r"gender of Anna B: female \(line 2\), male \(line 3\)"),
])  # fmt: skip
def test_lines_that_contradict_each_other_are_refused_with_their_numbers(tmp_path, lines, words):
    folder = make(tmp_path, f"path,speaker,gender,age\n{lines}")
    refused(rf"own_data\.csv: \d contradictions, correct them: .*{words}", read_own_data, folder)
