"""The system's Chromium, driven by playwright, and a JupyterLab server for it; skipped, visibly, where either is missing."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from lib import paths

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here")]
ALONE = [f"--{name}" for name in ("no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync")]
ALONE += ["--disable-component-update"]


@contextlib.contextmanager
def running_browser(*flags):
    """A browser in a profile of its own; close it before the next is started."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*ALONE, *flags])
        yield browser
        browser.close()


@contextlib.contextmanager
def running_lab(folder, environment=None):
    """Start JupyterLab on `folder`, with settings of its own; yield its address, such as http://127.0.0.1:8888."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    own = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    own["PYTHONPATH"] = os.pathsep.join([str(paths.ROOT), *filter(None, sys.path)])
    log = folder / "lab.log"
    address, options = f"http://127.0.0.1:{port}", {"env": os.environ | own | (environment or {}), "cwd": folder}
    with open(log, "wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream, **options) as server:
        try:
            for _ in range(450):
                assert server.poll() is None, log.read_text()
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/api?token=t", timeout=2).close()
                    break
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()


def run_all(page):
    """Run all cells of the notebook that a page of JupyterLab shows, once its kernel is there; returns when all have run."""
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel != null")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => 1, () => 0)")
