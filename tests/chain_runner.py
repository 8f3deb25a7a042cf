"""Runs modules of the project, such as the demo chain at reduced size, in a process of their own, as a user does."""

import os
import subprocess
import sys

from lib import config, paths

SMALL = ["download.speakers=48", "train.epochs=2", "train.width=0.03", "evaluate.draws=200", "predict.recordings=8"]
SMALL += ['train.networks=["paper", "linear:quarter:2+quarter:4"]']


def places_of(folders):
    """Environment that sends a run's data and reports into `folders`."""
    return {"VOICE_DATA": str(folders / "data"), "VOICE_REPORTS": str(folders / "reports")}


def start_module(folders, *arguments):
    environment = os.environ | places_of(folders) | {"TQDM_MININTERVAL": "5"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", *arguments], cwd=paths.ROOT, env=environment, **pipes)


def run_module(folders, *arguments, code=0):
    """Run a module with these arguments to its end with `code`; return the finished process."""
    process = start_module(folders, *arguments)
    stdout, stderr = process.communicate(timeout=1200)
    assert process.returncode == code, stdout[-2000:] + stderr[-4000:]
    return subprocess.CompletedProcess(process.args, code, stdout, stderr)


def demo(*changes, options=()):
    """The arguments that run the small demo with these changes."""
    return ["lib.run", "params/demo.yaml", *options, *(f"--set={change}" for change in [*SMALL, *changes])]


def small_parameters():
    sections = config.load_run(paths.PARAMS / "demo.yaml", SMALL)
    return {name: config.parameters_for(name, "demo", sections) for name in config.NOTEBOOKS}
