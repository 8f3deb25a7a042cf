"""A real JupyterLab server for browser tests, with settings of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request

from lib import paths


@contextlib.contextmanager
def running_lab(folder, environment=None):
    """Start JupyterLab on `folder`; yield its address, without a path, such as http://127.0.0.1:8888."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    own = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    found = os.pathsep.join([str(paths.ROOT), *filter(None, sys.path)])
    with open(folder / "lab.log", "wb") as log:
        everything = os.environ | own | {"PYTHONPATH": found} | (environment or {})
        server = subprocess.Popen(command, stdout=log, stderr=log, env=everything, cwd=folder)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api?token=t", server, folder / "lab.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(address, server, log, wait_s=90):
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=2).read()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(log.read_text())
