"""Run-all: every notebook of a run through papermill, then the report. `python -m lib.run params/demo.yaml`"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib import config, paths
from lib.corpora.sources import check_run
from lib.stages import file_checksum, find_stage, fingerprint_of, load_notes

SHOWN_VERSIONS = ["torch", "torchaudio", "numpy", "pandas", "scikit-learn", "soundfile", "silero-vad", "matplotlib"]


# notebooks that look at files outside the stages, or write some: never kept
ALWAYS = ("01_download", "05_evaluate", "06_predict")


class NotebookFailed(RuntimeError):
    """A cell raised; the message says which, in three lines."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line of `python -m lib.run`."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.run", description="Run the notebooks of a run and build its report."
    )
    parser.add_argument("params", type=Path, help="run file, such as params/demo.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", help="change one value, repeatable"
    )
    parser.add_argument("--from", dest="first", metavar="NOTEBOOK", help="start at this notebook, such as 04_train")
    parser.add_argument("--only", metavar="NOTEBOOK", help="run this notebook alone and build no report")
    return parser.parse_args(arguments)


def select_notebooks(notebooks: list[str], first: str | None, only: str | None) -> list[str]:
    """The notebooks to execute. ValueError when `first` or `only` is none of the run's."""
    for name in filter(None, [first, only]):
        if name not in notebooks:
            raise ValueError(f"{name}: not a notebook of this run; it has {', '.join(notebooks)}")
    if only:
        return [only]
    return notebooks[notebooks.index(first) :] if first else list(notebooks)


def execute_notebook(name: str, run: str, parameters: dict[str, Any]) -> Path:
    """Execute one notebook in a fresh kernel; return the executed copy. NotebookFailed names notebook, cell and error.

    The copy is kept either way: `data/<run>/executed/<name>.ipynb`, or `<name>.failed.ipynb`.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    folder = paths.DATA / run / "executed"
    folder.mkdir(parents=True, exist_ok=True)
    executed, failed, partial = (
        folder / f"{name}.ipynb",
        folder / f"{name}.failed.ipynb",
        folder / f".{name}.partial.ipynb",
    )
    failed.unlink(missing_ok=True)
    _kept_path(name, run).unlink(missing_ok=True)
    os.environ.setdefault("TQDM_MININTERVAL", "1")  # seconds between two states of a bar
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                str(config.notebook_path(name)),
                str(partial),
                parameters,
                kernel_name="python3",
                cwd=str(paths.ROOT),
                progress_bar=False,
                stderr_file=sys.stderr,
                extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
            )
    except PapermillExecutionError as error:
        partial.replace(failed)
        where = f"notebook {name}, cell {error.cell_index} (kept in {_shown(failed)})"
        message = " ".join(f"{error.ename}: {error.evalue}".split())
        source = next((line for line in error.source.splitlines() if line.strip()), "")
        raise NotebookFailed(f"{where}\n  in: {source}\n  {message}") from error
    partial.replace(executed)
    return executed


def _shown(path: Path) -> str:
    return str(path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path)


def run_notebooks(run: str, sections: dict[str, dict], notebooks: list[str], anew: bool = True) -> None:
    """Execute the notebooks in order under one progress bar; the first that fails stops the run.

    Unless `anew`, a notebook is kept as it was executed before when nothing that it depends on has changed.
    """
    started = time.monotonic()
    with tqdm(total=len(notebooks), desc=f"run {run}", unit="notebook") as bar:
        for name in notebooks:
            bar.set_postfix_str(name)
            began, parameters = time.monotonic(), config.parameters_for(name, run, sections)
            depends = what_decides(name, run, parameters)
            if not anew and name not in (notebooks[0], *ALWAYS) and is_kept(name, run, depends):
                record = _record_path(name, run)
                paths.save_json(record, paths.load_json(record) | {"recomputed": []})
                tqdm.write(f"{name}: as before", file=sys.stderr)
            else:
                execute_notebook(name, run, parameters)
                paths.save_json(_kept_path(name, run), {"depends": depends, "stage": _fingerprint(name, run)})
                tqdm.write(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
            bar.update()
    tqdm.write(f"notebooks of run {run}: {time.monotonic() - started:.1f} s", file=sys.stderr)


def what_decides(name: str, run: str, parameters: dict[str, Any]) -> str:
    """Fingerprint of all that a notebook's result depends on: itself, its parameters, lib, the pins, the stages before it."""
    code = [path for path in sorted((paths.ROOT / "lib").rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    files = [config.notebook_path(name), paths.ROOT / "requirements.txt", *code]
    before = [_fingerprint(other, run) for other in config.NOTEBOOKS[: config.NOTEBOOKS.index(name)]] if (
        name in config.NOTEBOOKS
    ) else []  # fmt: skip
    return fingerprint_of([[path.name, file_checksum(path)] for path in files], parameters, before, sys.version)


def is_kept(name: str, run: str, depends: str) -> bool:
    """Whether a notebook's executed copy, record, figures and finished stage are there and still hold."""
    folder, kept = paths.DATA / run, _kept_path(name, run)
    needed = [kept, folder / "executed" / f"{name}.ipynb", _record_path(name, run)]
    if not all(path.exists() for path in needed):
        return False
    if paths.load_json(kept) != {"depends": depends, "stage": _fingerprint(name, run)}:
        return False
    try:
        find_stage(name, run)
    except ValueError:
        return False
    return True


def _record_path(name: str, run: str) -> Path:
    return paths.DATA / run / "records" / f"{name}.json"


def _kept_path(name: str, run: str) -> Path:
    return paths.DATA / run / "executed" / f"{name}.json"


def _fingerprint(name: str, run: str) -> str | None:
    """Of the stage that the latest execution of a notebook opened; None when there was none."""
    pointer = paths.DATA / run / f"{name}.json"
    return paths.load_json(pointer)["fingerprint"] if pointer.exists() else None


def git_commit() -> str:
    """Commit of the code, with "+changes" when the tree differs from it; "unknown" outside a git checkout."""
    try:
        call = {"capture_output": True, "text": True, "check": True, "cwd": paths.ROOT}
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **call).stdout.strip()
        code = ["lib", "notebooks", "params", "requirements.txt"]
        changed = subprocess.run(["git", "status", "--porcelain", "--", *code], **call).stdout.strip()
        return commit + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_record(run: str, sections: dict[str, dict]) -> dict[str, Any]:
    """Gather `run.json`: parameters, seed, versions, commit, checksums, and time and peak memory of every stage."""
    folder = paths.DATA / run
    stages = [_record_path(name, run) for name in sections["run"]["notebooks"]]
    record = {
        "run": run,
        "title": sections["run"]["title"],
        "question": sections["run"]["question"],
        "synthetic": bool(sections["run"].get("synthetic", False)),
        "seed": sections["run"].get("seed"),
        **load_notes(run),  # encoder and checksums, noted by the notebooks that know them
        "parameters": sections,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in SHOWN_VERSIONS},
        },
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "git_commit": git_commit(),
        "stages": [paths.load_json(path) for path in stages if path.exists()],
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    paths.save_json(folder / "run.json", record)
    return record


def _private_roots(folder: Path) -> list[str]:
    """Folders of the corpora, which no page may show: those that 01_download noted."""
    return [root for path in folder.glob("01_download-*/roots.json") for root in paths.load_json(path).values()]


def build_run_report(run: str, sections: dict[str, dict]) -> Path:
    """Build `reports/<run>` from what the notebooks left, then the list of runs; return the run's index page."""
    from lib.report import site

    folder = paths.DATA / run
    record = write_record(run, sections)
    metrics = (
        paths.load_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {"run": run, "scores": []}
    )
    executed = folder / "report-notebooks"
    shutil.rmtree(executed, ignore_errors=True)
    executed.mkdir(parents=True)
    pages = []
    for number, name in enumerate(sections["run"]["notebooks"], start=1):
        page = name if name[:1].isdigit() else f"{number:02d}_{name}"
        pages.append(shutil.copy2(folder / "executed" / f"{name}.ipynb", executed / f"{page}.ipynb"))
    roots = _private_roots(folder)
    site.build_report(run, pages, metrics, record, paths.REPORTS / run, private_roots=roots)
    site.build_index(paths.REPORTS)
    return paths.REPORTS / run / "index.html"


def main(arguments: list[str] | None = None) -> int:
    """Command-line entry; returns the exit code: 0, 1 when a notebook failed, 2 when the run file was refused."""
    asked = parse_arguments(arguments)
    run = asked.params.stem
    try:
        sections = config.load_run(asked.params, asked.set)
        notebooks = select_notebooks(sections["run"]["notebooks"], asked.first, asked.only)
        if "download" in sections:
            check_run(sections["download"], sections["run"]["synthetic"])
        if "train" in sections and "embed" not in sections:
            from lib.corpora.authors import check_imported

            check_imported(run)
        if "compute" in sections:
            from lib.speed.engines import check_engine  # takes torch along, two seconds

            check_engine(sections["compute"]["engine"], sections["compute"]["precision"])
    except ValueError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    try:
        run_notebooks(run, sections, notebooks, anew=bool(asked.first or asked.only))
    except NotebookFailed as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    if asked.only:
        print(f"done: {_shown(paths.DATA / run / 'executed' / (asked.only + '.ipynb'))}")
        return 0
    page = build_run_report(run, sections)
    again = [
        name for record in paths.load_json(paths.DATA / run / "run.json")["stages"] for name in record["recomputed"]
    ]
    print(f"recomputed: {', '.join(again) or 'nothing, every stage was there'}")
    print(f"report: {_shown(page)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
