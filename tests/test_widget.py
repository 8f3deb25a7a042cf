import nbformat
from browsers import needs_browser, run_all, running_browser, running_lab
from model_fixture import CENTRES, CLASSES, make_model_folder

from lib.predict import Answer, Prediction
from lib.report import widget
from lib.trust.calibration import Years


def test_a_page_stands_where_a_server_listens_answers_and_leaves_no_sound_behind(spoken, tmp_path, monkeypatch):
    model = make_model_folder(tmp_path / "model")
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert "make lab" in widget.show_page(model).data
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/06_predict.ipynb")
    assert widget.show_page(model).children
    page, sent, part = widget.AnswerPage(model), [], 100_000
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "model"))
    before = {*(tmp_path / "model").iterdir()}
    monkeypatch.setattr(page.recorder, "send", sent.append)
    half = {"kind": "part", "number": 1, "name": "half.wav", "first": True, "last": False}
    page.receive(page.recorder, half, [memoryview(b"RIFF")])  # never ended: the next file takes its place
    sounds = {"silence.wav": "no speech", "<b>.wav": "unreadable", "20000.wav": "ok"}
    for name, state in sounds.items():
        content = b"RIFF no sound" if state == "unreadable" else (spoken / "recordings" / name).read_bytes()
        starts = range(0, len(content), part)  # what the browser does with a file
        for start in starts:
            message = {"kind": "part", "number": 1, "name": name, "first": start == 0, "last": start == starts[-1]}
            page.receive(page.recorder, message, [memoryview(content[start : start + part])])
        assert sent[-1] == {"kind": "say", "text": f"{name}: {state}"}
        assert (page.picture.value == "") == (page.tasks.layout.display == "none") == (state != "ok")
        assert (", 0 % speech" in page.answer.value, "<b>" in page.answer.value) == (state == "no speech", False)
    assert "sounds like" in page.answer.value
    assert 'alt="The waveform' in (first := page.picture.value)
    page.tasks.value = "age"
    assert (page.picture.value != first, {"kind": "got", "number": 1} in sent) == (True, True)
    assert {*(tmp_path / "model").iterdir()} == before


def test_years_thresholds_and_doubts_are_told_in_words():
    shares = {"teen": 0.4, "adult": 0.6}
    answers = {
        "age": Answer("age", "ok", "adult", shares, by_threshold="teen"),
        "gender": Answer("gender", "unsure", None, {"male": 0.5, "female": 0.5}),
        "age_years": Answer("age_years", "ok", "23 years", {"6 to 30": 1.0}, None, 23.4, 11.6, 35.2),
    }
    prediction = Prediction("voice.wav", "unsure", "gender: best class at 50 %", "only 2.0 s", 2.0, 0.9, answers)
    text = widget.answer_html(prediction, ["trained on synthetic voices"])
    for words in [
        "age: sounds like adult; teen where that class is told", "gender: unsure (male 50 %, female 50 %)", "only 2.0 s",
        "like 23 years, probably between 12 and 35", "best class at 50 %", "This model was trained on synthetic voices.",
    ]:  # fmt: skip
        assert words in text


@needs_browser[0]
@needs_browser[1]
def test_upload_and_microphone_are_answered_in_jupyterlab(spoken, tmp_path):
    voice = spoken / "recordings/20000.wav"
    make_model_folder(tmp_path / "model", tasks=(*CLASSES, "age_years"), years={"age_years": Years(CENTRES, 9.0)})
    source = "from lib.model_folder import load_model_folder\nfrom lib.report.widget import show_page\nshow_page(load_model_folder('model'))"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "page.ipynb")
    fakes = ["fake-device-for-media-stream", "fake-ui-for-media-stream", f"file-for-fake-audio-capture={voice}"]
    with running_lab(tmp_path) as address, running_browser(*(f"--use-{fake}" for fake in fakes)) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"{address}/lab/tree/page.ipynb?token=t")
        run_all(page)
        answer, picture = page.locator(".jp-OutputArea h3"), page.locator(".jp-OutputArea img")
        page.set_input_files(".voice-recorder input", voice)
        page.wait_for_function("document.querySelector('.jp-OutputArea h3')?.textContent === '20000.wav: ok'")
        assert picture.evaluate("(one) => one.decode().then(() => one.naturalWidth)") > 500
        first = picture.get_attribute("src")
        page.click(".voice-record")
        page.wait_for_function("/Recording: [5-9]/.test(document.querySelector('.voice-recorder p').textContent)")
        page.click(".voice-record")
        page.wait_for_function("document.querySelector('.jp-OutputArea h3')?.textContent.startsWith('recording.wav')")
        assert answer.inner_text() == "recording.wav: ok"
        assert picture.get_attribute("src") != first
        assert page.locator(".voice-recorder audio").is_visible()
