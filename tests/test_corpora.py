"""The table of corpora: reading several, refusing what is not there."""

import pytest
from test_common_voice import V17, make_locale, row
from test_own_data import make

from lib.corpora import registry


@pytest.fixture
def both(tmp_path):
    rows = [row("a", n, gender="male_masculine", age="teens") for n in range(3)]
    make_locale(tmp_path / "common_voice" / "cv-corpus-20.0-x" / "en", V17, rows)
    (tmp_path / "own_data").mkdir()
    make(tmp_path / "own_data", "path,speaker,gender,age\na.wav,x,f,40\nb.wav,x,f,40\nno.wav,x,f,40\n")
    return tmp_path


def test_several_corpora_are_read_into_one_table_with_their_roots(both):
    clips, ledger, roots = registry.read_corpora(["common_voice", "own_data"], both)
    assert clips.attrs["rows_in"] == len(clips) + len(ledger) == 6
    assert set(clips.attrs["by_corpus"]) == {"common_voice", "own_data"}
    assert all((roots[c] / p).is_file() and roots[c].is_absolute() for c, p in zip(clips["corpus"], clips["path"]))


def test_options_reach_the_readers_that_take_them(both):
    names = ["common_voice", "own_data"]
    clips, *_ = registry.read_corpora(names, both, max_clips_per_speaker=1)
    assert (clips["corpus"] == "common_voice").sum() == 1
    clips, *_ = registry.read_corpora(names, both, common_voice={"max_clips_per_speaker": 2})
    assert (clips["corpus"] == "common_voice").sum() == 2
    with pytest.raises(ValueError, match=r"\['colour'\]"):
        registry.read_corpora(names, both, colour="red")
    with pytest.raises(ValueError, match="common_voice: unknown options"):
        registry.read_corpora(names, both, common_voice={"colour": "red"})
    with pytest.raises(ValueError, match="choose from"):
        registry.read_corpora(["tedlium"], both)
    with pytest.raises(ValueError, match="at least one"):
        registry.read_corpora([], both)


def test_a_corpus_folder_itself_can_be_the_root(both):
    _, _, roots = registry.read_corpora(["common_voice"], both / "common_voice")
    assert roots["common_voice"] == both / "common_voice"
    _, _, roots = registry.read_corpora(["own_data"], both / "own_data" / "own_data.csv")
    assert roots["own_data"] == both / "own_data"


def test_sources_that_are_there_pass_and_missing_ones_say_what_to_do(both):
    registry.check_sources(["common_voice", "own_data"], both)
    with pytest.raises(ValueError, match="not there yet") as caught:
        registry.check_sources(list(registry.CORPORA), both / "nothing")
    text = str(caught.value)
    for word in (
        "MDC_API_KEY",
        "agree to its terms",
        "download.datasets",
        "download.youtube",
        "download.age_labels",
        "openslr.org",
        "vox1_meta.csv",
        "own_data.csv",
        str(both / "nothing"),
    ):
        assert word in text


def test_every_corpus_has_a_reader_and_advice():
    assert set(registry.CORPORA) == set(registry.ADVICE)


def test_command_line_accounts_for_every_row(both, capsys):
    registry.main([str(both), "--corpus", "common_voice", "own_data"])
    text = capsys.readouterr().out
    assert "rows in 6 = clips 5 + ledger 1" in text
    assert "dropped 1: no such file" in text
    assert "CONFOUNDED: ALL 3 clips (1 speakers) of age class 'teen' come from common_voice" in text
