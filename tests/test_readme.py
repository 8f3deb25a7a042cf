"""README says nothing that a report contradicts."""

import shutil

import pytest

from lib import paths, readme


def test_headline_table_is_what_the_committed_reports_say(tmp_path):
    copy = shutil.copy(paths.ROOT / "README.md", tmp_path / "README.md")
    assert not readme.update_readme(copy, paths.ROOT / "reports"), "run `make readme`"


def test_readme_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("# no markers\n")
    with pytest.raises(ValueError, match="markers"):
        readme.update_readme(tmp_path / "README.md", paths.ROOT / "reports")


def test_every_run_file_is_named_in_readme():
    text = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    for run in paths.PARAMS.glob("*.yaml"):
        assert f"`{run.stem}`" in text or f"RUN={run.stem}" in text, run.stem
