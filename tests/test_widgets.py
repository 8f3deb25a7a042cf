import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import chrome
import nbformat
import numpy as np
import pytest
import soundfile
from recordings_fixture import CENTRES, CLASSES, make_bundle, spoken  # noqa: F401

from lib import paths
from lib.audio import RATE_HZ, read_waveform
from lib.predict import Answer, Prediction
from lib.report import widget
from lib.trust.calibration import Years

anywidget = pytest.importorskip("anywidget", reason="anywidget is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def voice(spoken, tmp_path_factory):  # noqa: F811
    """A 16-bit wav with a few seconds of speech."""
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    soundfile.write(path, read_waveform(spoken / "recordings/20000.wav"), RATE_HZ)
    return path


@pytest.fixture
def page(bundle):
    found = widget.AnswerPage(bundle)
    found.sent = []
    found.recorder.send = lambda content, buffers=None: found.sent.append(content)
    return found


def hand_over(page, name, content, part=100_000):
    """What the browser does with a file."""
    starts = range(0, max(len(content), 1), part)
    for start in starts:
        told = {"kind": "part", "number": 1, "name": name, "first": start == 0, "last": start == starts[-1]}
        page._receive(page.recorder, told, [memoryview(content[start : start + part])])


def test_parts_become_an_answer_with_a_timeline(page, voice):
    hand_over(page, "voice.wav", voice.read_bytes())
    found = page.predictions[0]
    assert found.state == "ok"
    assert "sounds like" in page.told.value
    assert page.picture.value.count("data:image/png") == 1
    first = page.picture.value
    page.tasks.value = "age"
    assert page.picture.value != first
    assert [told["kind"] for told in page.sent[:-1]] == ["got"] * (len(page.sent) - 1)
    assert page.sent[-1] == {"kind": "say", "text": "voice.wav: ok"}


def test_no_sound_is_left_behind(page, voice, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hand_over(page, "voice.wav", voice.read_bytes())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "state"),
    [("a.wav", b"", "unreadable"), ("<b>.wav", b"RIFF no sound", "unreadable")],
)
def test_what_cannot_be_answered_is_said_without_a_picture(page, voice, name, content, state):
    hand_over(page, "voice.wav", voice.read_bytes())
    hand_over(page, name, content)
    assert page.predictions[-1].state == state
    assert page.picture.value == ""
    assert page.tasks.layout.display == "none"
    assert "<b>.wav" not in page.told.value


def test_silence_is_told_and_a_new_file_in_the_middle_replaces_the_first(page, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(5 * RATE_HZ, np.float32), RATE_HZ)
    half = {"kind": "part", "number": 1, "name": "half.wav", "first": True, "last": False}
    page._receive(page.recorder, half, [memoryview(b"RIFF")])
    hand_over(page, "silence.wav", (tmp_path / "silence.wav").read_bytes())
    assert [found.state for found in page.predictions] == ["no speech"]
    assert "0 % speech" in page.told.value


def test_years_thresholds_and_doubts_are_told_in_words():
    shares = {"teen": 0.4, "adult": 0.6}
    answers = {
        "age": Answer("age", "ok", "adult", shares, by_threshold="teen"),
        "gender": Answer("gender", "unsure", None, {"male": 0.5, "female": 0.5}),
        "age_years": Answer("age_years", "ok", "23 years", {"6 to 30": 1.0}, None, 23.4, 11.6, 35.2),
    }
    found = Prediction("voice.wav", "unsure", "gender: best class at 50 %", "only 2.0 s", 2.0, 0.9, answers)
    told = widget.answer_html(found, ["trained on synthetic voices"])
    assert "age: sounds like <b>adult</b>; teen where that class is told from its own threshold" in told
    assert "gender: <b>unsure</b> (male 50 %, female 50 %)" in told
    assert "sounds like <b>23 years</b>, probably between 12 and 35" in told
    for words in ("only 2.0 s", "best class at 50 %", "This model was trained on synthetic voices."):
        assert words in told


def test_outside_a_notebook_server_a_note_stands_instead(bundle, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert "make lab" in widget.show_page(bundle).data
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/06_predict.ipynb")
    assert widget.show_page(bundle).children


# ------------------------------------------------------------------------------------------- a real JupyterLab, a browser


@pytest.fixture
def lab(tmp_path):
    """Address of a running JupyterLab whose folder holds one notebook with the page in it."""
    options = {"years": {"age_years": Years(CENTRES, 9.0)}, "about": {"synthetic": True}}
    make_bundle(tmp_path / "model", tasks=(*CLASSES, "age_years"), **options)
    source = "from lib.model_folder import load_bundle\nfrom lib.report.widget import show_page\nshow_page(load_bundle('model'))"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "page.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=t", f"--ServerApp.root_dir={tmp_path}",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    folders = {
        name: str(tmp_path / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    environment = os.environ | folders | {"PYTHONPATH": os.pathsep.join([str(paths.ROOT), *filter(None, sys.path)])}
    with open(tmp_path / "lab.log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)
    try:
        wait_for_server(f"http://127.0.0.1:{port}/api?token=t", server, tmp_path / "lab.log")
        yield f"http://127.0.0.1:{port}/lab/tree/page.ipynb?token=t"
    finally:
        server.terminate()
        server.wait(20)


def wait_for_server(address, server, log, wait_s=90):
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=2).read()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(log.read_text())


@pytest.fixture
def browser(voice, monkeypatch):
    """Chromium whose microphone plays the voice over and over."""
    fake = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={voice}",
    ]
    monkeypatch.setattr(chrome, "FLAGS", [*chrome.FLAGS, *fake])
    found = chrome.Chrome()
    yield found
    found.close()


TOLD = "[...document.querySelectorAll('.jp-OutputArea h3')].map(h => h.textContent).join()"

DRAWN = "document.querySelector('.jp-OutputArea figure img')?.naturalWidth > 500"


@pytest.mark.browser
@pytest.mark.skipif(chrome.find_chrome() is None, reason="Chromium is not installed")
def test_upload_and_microphone_are_answered_in_jupyterlab(lab, browser, voice, tmp_path):
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    browser.size(1280, 1000)
    browser.call("Page.navigate", url=lab)
    browser.wait_for("window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel != null", 120)
    browser.run("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
    browser.wait_for("document.querySelector('.voice-recorder input') !== null", 120)

    found = browser.call("Runtime.evaluate", expression="document.querySelector('.voice-recorder input')")
    browser.call("DOM.setFileInputFiles", files=[str(voice)], objectId=found["result"]["objectId"])
    browser.wait_for(f"{TOLD}.includes('voice.wav: ok')", 90)
    browser.wait_for(DRAWN)
    browser.run("[...document.querySelectorAll('.Toastify button')].find(b => b.textContent === 'No')?.click()")
    browser.screenshot(pictures / "page-upload.png", full=False)
    before = browser.run("document.querySelector('.jp-OutputArea figure img').src")

    browser.run("document.querySelector('.voice-record').click()")
    browser.wait_for("/Recording: [5-9]/.test(document.querySelector('.voice-recorder p').textContent)", 40)
    assert browser.run("document.querySelector('.voice-recorder meter').value") >= 0
    browser.run("document.querySelector('.voice-record').click()")
    browser.wait_for(f"{TOLD}.includes('recording.wav')", 90)
    assert "recording.wav: ok" in browser.run(TOLD)
    browser.wait_for(DRAWN)
    assert browser.run("document.querySelector('.jp-OutputArea figure img').src") != before
    assert browser.run("document.querySelector('.voice-recorder audio').hidden") is False
    browser.screenshot(pictures / "page-recording.png", full=False)

    for seconds, words in ((0.5, "too short"), (2.0, "repeated to fill a window")):
        path = tmp_path / f"short-{seconds}.wav"
        soundfile.write(path, read_waveform(voice)[RATE_HZ : RATE_HZ + int(seconds * RATE_HZ)], RATE_HZ)
        found = browser.call("Runtime.evaluate", expression="document.querySelector('.voice-recorder input')")
        browser.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])
        browser.wait_for(f"{TOLD}.includes('{path.name}')", 90)
        browser.wait_for(f"document.querySelector('.jp-OutputArea h3').parentElement.textContent.includes('{words}')")
        browser.screenshot(pictures / f"page-{seconds:g}s.png", full=False)
