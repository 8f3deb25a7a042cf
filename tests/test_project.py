"""The project around the code: pins that agree, ignored files that do not hide the package, commands that exist."""

import re
import subprocess
import tomllib

import yaml

from lib import paths


def pins(lines):
    return sorted(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def test_conda_and_pip_get_the_same_pins():
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pins(conda) == pins((paths.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    assert "python=3.11" in environment["dependencies"]


def test_everything_asked_for_is_pinned_exactly():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = (paths.ROOT / "requirements.txt").read_text(encoding="utf-8").lower()
    for wanted in project["dependencies"]:
        name = re.split(r"[\[=<>~ ]", wanted)[0].lower()
        assert re.search(rf"^{re.escape(name)}==\S+", locked, re.MULTILINE), name
    assert "torch==2.14.1" in locked
    assert "torchaudio==2.11.0" in locked


def test_git_tracks_the_package_and_ignores_what_runs_write():
    def ignored(*names):
        call = ["git", "check-ignore", "--no-index", *names]
        done = subprocess.run(call, cwd=paths.ROOT, capture_output=True, text=True, check=False)
        return set(done.stdout.split())

    assert ignored("lib/audio.py", "lib/assets/wav2vec2-tiny.json", "reports/demo/index.html") == set()
    assert ignored("data/demo/x.parquet", ".venv/bin/python") == {"data/demo/x.parquet", ".venv/bin/python"}


def test_no_pickle_is_written_or_read_by_the_package():
    for path in paths.ROOT.glob("lib/**/*.py"):
        if path.stem != "authors":  # the importer of published pickles, which runs none of their code
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\bimport pickle\b|\bpickle\.load|joblib\.(dump|load)|torch\.save\(", text), path
            loads = re.findall(r"torch\.load\(.*", text)
            assert all("weights_only=True" in call for call in loads), path


def test_make_alone_lists_the_targets():
    done = subprocess.run(["make"], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    for target in ["reports", "test", "lab", "hooks", "bench"]:
        assert f"make {target}" in done.stdout


def test_checks_run_the_readme_s_test_command():
    assert "make test" in (paths.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in (paths.ROOT / "README.md").read_text(encoding="utf-8")
