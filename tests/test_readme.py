"""README says nothing that a report contradicts."""

import shutil
import subprocess

import pytest

from lib import paths, readme


@pytest.fixture
def committed(tmp_path):
    """The committed reports: those on disk may come from a run of one's own, whose numbers differ a little."""
    for run in readme.RUNS:
        (tmp_path / "reports" / run).mkdir(parents=True)
        for name in ("metrics.json", "run.json"):
            call = ["git", "show", f"HEAD:reports/{run}/{name}"]
            found = subprocess.run(call, cwd=paths.ROOT, capture_output=True, check=False)
            if found.returncode:
                pytest.skip(f"reports/{run}/{name} is not committed here: {found.stderr.decode().strip()}")
            (tmp_path / "reports" / run / name).write_bytes(found.stdout)
    return tmp_path / "reports"


def test_headline_table_is_what_the_committed_reports_say(committed, tmp_path):
    copy = shutil.copy(paths.ROOT / "README.md", tmp_path / "README.md")
    assert not readme.update_readme(copy, committed), "run `make readme`"


def test_readme_without_markers_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("# no markers\n")
    with pytest.raises(ValueError, match="markers"):
        readme.update_readme(tmp_path / "README.md", paths.ROOT / "reports")


def test_every_run_file_is_named_in_readme():
    text = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    for run in paths.PARAMS.glob("*.yaml"):
        assert f"`{run.stem}`" in text or f"RUN={run.stem}" in text, run.stem
