import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from recordings_fixture import CENTRES, CLASSES, make_bundle

from lib.audio import RATE_HZ
from lib.speed import onnx
from lib.trust.calibration import Calibration, Years, apply_calibration

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """One head on frames, the paper's network with a temperature; one on layers, with a bias; one for years."""
    options = {
        "tasks": (*CLASSES, "age_years"),
        "calibrations": {
            "gender": Calibration(0.4),
            "age": Calibration(1.5, [0.7, 0.0]),
            "age_years": Calibration(2.0),
        },
        "thresholds": {"age": 0.6},
        "years": {"age_years": Years(CENTRES, 7.5)},
    }
    networks = {"gender": ["paper"], "age": ["attentive", True]}
    return make_bundle(tmp_path_factory.mktemp("models") / "model", networks, **options)


@pytest.fixture(scope="module")
def exported(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return folder, onnx.export_onnx(bundle, folder)


def test_onnxruntime_gives_the_probabilities_of_torch(exported, bundle):
    folder, about = exported
    assert about["largest_difference"] < 1e-4
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    rng = np.random.default_rng(5)
    for count in (1, 3):  # any number of windows
        waveforms = rng.normal(0, 0.2, (count, 48_000)).astype(np.float32)
        gender, age = session.run(["gender", "age"], {"waveforms": waveforms})
        assert gender.shape == age.shape == (count, 2)
        np.testing.assert_allclose(gender.sum(axis=1), 1, atol=1e-5)
    assert list(about["outputs"]) == ["gender", "age", "age_years"]
    assert about["outputs"]["age"] == ["teen", "adult"]
    assert about["thresholds"]["age"] == 0.6


def test_a_gap_between_the_two_is_refused_and_leaves_no_file(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "_trace", lambda bundle, size, path: path.write_bytes(b""))
    monkeypatch.setattr(onnx, "measure_gap", lambda bundle, path: 0.02)
    with pytest.raises(ValueError, match=r"differs by 0\.02"):
        onnx.export_onnx(bundle, tmp_path)
    assert not list(tmp_path.iterdir())


def test_calibration_in_the_graph_is_the_calibration_of_predictions():
    import torch

    told = np.array([[0.9, 0.1], [0.3, 0.7]])
    for calibration in (Calibration(), Calibration(2.5), Calibration(0.5, [-0.3, 0.0])):
        graph = onnx.calibrate_tensor(torch.from_numpy(np.log(told)), calibration).numpy()
        np.testing.assert_allclose(graph, apply_calibration(told, calibration), atol=1e-6)


def test_the_example_answers_without_torch(exported, bundle, tmp_path):
    folder, _ = exported
    sound = np.random.default_rng(1).normal(0, 0.1, 7 * RATE_HZ).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", sound, RATE_HZ, subtype="FLOAT")
    blocked = "import sys; sys.modules['torch'] = None; sys.argv = ['example.py', sys.argv[1]]; exec(open('example.py').read())"
    call = [sys.executable, "-c", blocked, str(tmp_path / "sound.wav")]
    done = subprocess.run(call, cwd=folder, env=dict(os.environ), capture_output=True, text=True, check=True)
    told = {line.split(" ", 1)[0]: ast.literal_eval(line.split(" ", 1)[1]) for line in done.stdout.splitlines()}
    pieces = [(start, sound[start : start + 48_000]) for start in (0, 32_000, 64_000)]
    tensors = onnx.encode_batch(bundle.encoder, np.stack([piece for _, piece in pieces]), "emission", "float16")
    for task, head in bundle.heads.items():
        expected, years = onnx.ask_head(head, tensors)
        np.testing.assert_allclose(list(told[task].values()), expected.mean(axis=0), atol=2e-4)
    assert told["age_years:years"] == {"years": pytest.approx(years.mean(), abs=0.06), "give or take": 7.5}


def test_command_line_writes_the_files_and_refuses_what_is_no_model(bundle, tmp_path, capsys):
    model = make_bundle(tmp_path / "model")
    assert onnx.main([str(tmp_path / "model"), str(tmp_path / "onnx")]) == 0
    assert "differs from torch by at most" in capsys.readouterr().out
    written = json.loads((tmp_path / "onnx/model.onnx.json").read_text())
    assert written["fingerprint"] == model.fingerprint
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {"model.onnx", "model.onnx.json", "example.py"}
    assert onnx.main([str(tmp_path), str(tmp_path / "onnx")]) == 2
