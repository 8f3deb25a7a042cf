"""Runs the demo chain at reduced size, in a process of its own, as a user does."""

import contextlib
import os
import subprocess
import sys

import psutil

from lib import config, paths

SMALL = ["download.speakers=48", "train.epochs=2", "train.width=0.03", "evaluate.draws=200", "predict.recordings=8"]
SMALL += ['train.networks=["paper", "linear:quarter:2+quarter:4"]']


def places_of(folders):
    """Environment that sends a run's data and reports into `folders`."""
    return {"VOICE_DATA": str(folders / "data"), "VOICE_REPORTS": str(folders / "reports")}


def start_chain(folders, *changes, options=()):
    call = [sys.executable, "-m", "lib.run", "params/demo.yaml", *options]
    for change in [*SMALL, *changes]:
        call += ["--set", change]
    environment = os.environ | places_of(folders) | {"TQDM_MININTERVAL": "5"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(call, cwd=paths.ROOT, env=environment, **pipes)


def kill_all(process):
    """SIGKILL a run and all that it started."""
    running = psutil.Process(process.pid)
    for one in [running, *running.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


def run_chain(folders, *changes, options=()):
    """Run the demo with these changes in `folders`; return the finished process."""
    process = start_chain(folders, *changes, options=options)
    stdout, stderr = process.communicate(timeout=1200)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def small_parameters():
    sections = config.load_run(paths.PARAMS / "demo.yaml", SMALL)
    return {name: config.parameters_for(name, "demo", sections) for name in config.NOTEBOOKS}
