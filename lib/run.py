"""Run-all: every notebook of a run through papermill, then the report. `python -m lib.run params/demo.yaml`"""

import argparse
import contextlib
import fcntl
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import papermill
from nbconvert.filters import strip_ansi
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from lib import config, paths
from lib.corpora import check_run, find_folder, read_clips
from lib.encoders import check_encoder
from lib.report import site
from lib.speed.engines import check_engine
from lib.stages import find_stage, forget_digests

SHOWN_VERSIONS = ["torch", "torchaudio", "numpy", "pandas", "scikit-learn", "soundfile", "silero-vad", "matplotlib"]
KERNEL = "this-python"  # name of the kernel that runs notebooks with the interpreter of this process


class NotebookFailed(RuntimeError):
    """A notebook did not run through; the message says where and why, in three lines."""


def select_notebooks(notebooks: list[str], first: str | None, only: str | None) -> list[str]:
    """The notebooks to execute. ValueError when `first` or `only` is none of the run's."""
    for name in filter(None, [first, only]):
        if name not in notebooks:
            raise ValueError(f"{name}: not a notebook of this run; it has {', '.join(notebooks)}")
    return [only] if only else notebooks[notebooks.index(first) if first else 0 :]


@contextlib.contextmanager
def lock_run(run: str) -> Iterator[None]:
    """Keep a second run of the same name out while this one writes; ValueError says so."""
    path = paths.DATA / run / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"run '{run}' is being made by another process right now; wait for it to end") from error
        yield


def execute_notebook(name: str, run: str, parameters: dict[str, Any]) -> None:
    """Execute one notebook in a fresh kernel; NotebookFailed names notebook, cell, line and error. The copy is kept either way,
    as `data/<run>/executed/<name>.ipynb` or `<name>.failed.ipynb`."""
    folder = paths.DATA / run / "executed"
    folder.mkdir(parents=True, exist_ok=True)
    failed, partial = folder / f"{name}.failed.ipynb", folder / f".{name}.partial.ipynb"
    failed.unlink(missing_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                str(config.notebook_path(name)), str(partial), parameters, kernel_name=KERNEL, cwd=str(paths.ROOT),
                progress_bar=False, stderr_file=sys.stderr, extra_arguments=["--IPKernelApp.log_level=40"],
            )  # fmt: skip
    except PapermillExecutionError as error:
        partial.replace(failed)
        where = f"notebook {name}, cell {error.cell_index} (kept in {os.path.relpath(failed)})"
        message, trace = " ".join(f"{error.ename}: {error.evalue}".split()), strip_ansi("\n".join(error.traceback))
        arrow = re.search(r"Cell In.*?^-+> ?\d+ ([^\n]*)", trace, re.DOTALL | re.MULTILINE)
        line = arrow[1].strip() if arrow else next(filter(str.strip, error.source.splitlines()), "")
        raise NotebookFailed(f"{where}\n  in: {line}\n  {message}") from error
    except Exception as error:  # a kernel that died, a disk that is full: whatever ends it ends the run with a reason
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise NotebookFailed(f"notebook {name} could not be run through\n  {reason[:500]}") from error
    partial.replace(folder / f"{name}.ipynb")


def run_notebooks(run: str, sections: dict[str, dict], notebooks: list[str]) -> None:
    """Execute the notebooks in order under one progress bar, in kernels of this very interpreter and this very lib, whatever
    kernels Jupyter finds on the machine; the first notebook that fails stops the run."""
    folder = paths.DATA / "jupyter" / "kernels" / KERNEL
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    paths.save_json(folder / "kernel.json", {"argv": argv, "display_name": "Python (this run)", "language": "python"})
    for variable, path in {"JUPYTER_PATH": folder.parent.parent, "PYTHONPATH": paths.ROOT}.items():
        os.environ[variable] = os.pathsep.join(filter(None, [str(path), os.environ.get(variable)]))
    os.environ.setdefault("TQDM_MININTERVAL", "1")  # seconds between two states of a bar
    for name in (bar := tqdm(notebooks, desc=f"run {run}", unit="notebook")):
        bar.set_postfix_str(name)
        began = time.monotonic()
        execute_notebook(name, run, config.parameters_for(name, run, sections))
        tqdm.write(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)


def git_commit() -> str:
    """Commit of the code, with "+changes" when the tree differs from it; "unknown" outside a git checkout."""
    call = {"capture_output": True, "text": True, "check": True, "cwd": paths.ROOT}
    code = ["lib", "notebooks", "params", "requirements.txt"]
    try:
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **call).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--", *code], **call).stdout
        return commit + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_record(run: str, sections: dict[str, dict]) -> dict[str, Any]:
    """Gather `run.json`: parameters, seed, versions, commit, and facts, time and peak memory of every stage."""
    folder, about = paths.DATA / run, sections["run"]
    records = {path.stem: paths.load_json(path) for path in sorted((folder / "records").glob("*.json"))}
    versions, record = {"python": platform.python_version()}, {}
    for stage in records.values():
        record |= stage.pop("facts")  # encoder, engine, checksums: of the notebooks that know them, or of an import
    record |= {
        "run": run, "title": about["title"], "question": about["question"], "synthetic": about.get("synthetic", False),
        "seed": about.get("seed"), "parameters": sections, "git_commit": git_commit(),
        "versions": versions | {name: importlib.metadata.version(name) for name in SHOWN_VERSIONS},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    record["stages"] = [records[name] for name in about["notebooks"] if name in records]
    paths.save_json(folder / "run.json", record)
    return record


def build_run_report(run: str, sections: dict[str, dict]) -> dict[str, Any]:
    """Build `reports/<run>` from what the notebooks left, then the list of runs; return the run's record."""
    folder, record = paths.DATA / run, write_record(run, sections)
    scored = folder / "metrics.json"
    metrics = paths.load_json(scored) if scored.exists() else {"run": run, "scores": []}
    pages = [folder / "executed" / f"{name}.ipynb" for name in sections["run"]["notebooks"]]
    roots = [root for path in folder.glob("01_download-*/roots.json") for root in paths.load_json(path).values()]
    site.build_report(run, pages, metrics, record, paths.REPORTS / run, private_roots=roots)  # which no page may show
    site.build_index(paths.REPORTS)
    return record


def check_sections(run: str, sections: dict[str, dict]) -> None:
    """ValueError where data, encoder or engine of a run are not to be had, before any notebook begins."""
    if "download" in sections and not sections["run"]["synthetic"]:
        check_run(sections["download"])
    if "train" in sections and "embed" not in sections:
        try:
            find_stage("03_embed", run)
        except ValueError as error:
            command = f"python -m lib.corpora.authors FOLDER --run {run}"
            raise ValueError(f"run '{run}' starts from imported pickles: {command}") from error
    if "embed" in sections:
        check_encoder(sections["embed"]["encoder"])
    if "compute" in sections:
        asked = sections["compute"]  # of a run that embeds nothing the device alone
        check_engine(asked.get("engine", "local"), asked.get("precision", "auto"), asked["device"])


def check_earlier(run: str, sections: dict[str, dict], first: str) -> None:
    """ValueError where stages before notebook `first`, which it takes as they are, came of other values or other data."""
    about = sections["run"]
    for name in about["notebooks"][: about["notebooks"].index(first)]:
        pointer = paths.DATA / run / f"{name}.json"
        if not pointer.exists():
            continue  # the notebook that reads the stage says so
        old, new = paths.load_json(pointer)["parameters"], config.parameters_for(name, run, sections)
        other = [f"{key} was {old[key]}, is {new[key]}" for key in old if key in new and _differ(old[key], new[key])]
        if name == "01_download" and not other and read_checksum(sections) not in (old["data"], None):
            other = ["labels, ledger or sounds of its corpora have changed"]
        if other:
            advice = f"; run from there: --from {name}, or make reports RUN={run} FROM={name}"
            raise ValueError(f"{name} of run '{run}' was made otherwise: {'; '.join(other)}{advice}")


def _differ(made: Any, asked: Any) -> bool:
    """Whether a stage's note and a run file's value differ; what 'auto' became is no difference, nor a corpus' folder."""
    plain = isinstance(made, list) and all(isinstance(value, str) for value in made)
    return asked != "auto" and made != asked and not (plain and made == [text.partition(":")[0] for text in asked])


def read_checksum(sections: dict[str, dict]) -> str | None:
    """The checksum of labels and sounds as 01_download would note it now; None where real ones are there no longer."""
    asked, about = sections["download"], sections["run"]
    folder = find_folder(asked["root"], about["synthetic"], about["seed"], asked["speakers"])
    options = {key: asked[key] for key in ("max_clips_per_speaker", "age_labels")}
    try:
        return read_clips(asked["corpora"], folder, **options, seed=about["seed"])[2]
    except (ValueError, OSError):
        return "" if about["synthetic"] else None  # invented speakers of this number and seed were never rendered


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code: 0, 1 when a notebook failed, 2 when the run file was refused."""
    parser = argparse.ArgumentParser("python -m lib.run", description="Run a run's notebooks and build its report.")
    parser.add_argument("params", type=Path, help="run file, such as params/demo.yaml")
    change = {"action": "append", "default": [], "metavar": "section.key=value"}
    parser.add_argument("--set", **change, help="change one value, repeatable")
    parser.add_argument("--from", dest="first", metavar="NOTEBOOK", help="start at this notebook, such as 04_train")
    parser.add_argument("--only", metavar="NOTEBOOK", help="run this notebook alone and build no report")
    asked = parser.parse_args(arguments)
    run = asked.params.stem
    try:
        sections = config.load_run(asked.params, asked.set)
        notebooks = select_notebooks(sections["run"]["notebooks"], asked.first, asked.only)
        check_sections(run, sections)
        check_earlier(run, sections, notebooks[0])
        if asked.first == "01_download":
            forget_digests()  # every sound is read anew, whatever its time of change says
        with lock_run(run):
            run_notebooks(run, sections, notebooks)
            if asked.only:
                print(f"done: {os.path.relpath(paths.DATA / run / 'executed' / f'{asked.only}.ipynb')}")
                return 0
            record = build_run_report(run, sections)
        again = [name for stage in record["stages"] for name in stage["recomputed"]]
        print(f"recomputed: {', '.join(again) or 'nothing, every stage was there'}")
        print(f"report: {os.path.relpath(paths.REPORTS / run / 'index.html')}")
        return 0
    except NotebookFailed as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:  # what cannot be read names its own path
        print(f"refused: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
