import ast
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from model_fixture import CENTRES, make_model_folder

from lib import embed, networks, train
from lib.model_folder import load_model_folder
from lib.speed import engines, onnx
from lib.trust.calibration import Years

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="not installed: pip install onnx onnxscript onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder of random weights: the paper's network on frames, a linear model, and years from two parts."""
    networks = {"gender": "paper", "age": "linear", "age_years": "linear:layer:2+bank"}
    settings = {"gender": {"temperature": 0.4}, "age": {"temperature": 1.5, "cap": 0.9, "silence": 0.6}}
    options = {"settings": settings, "years": {"age_years": Years(CENTRES, 7.5)}}
    make_model_folder(folder := tmp_path_factory.mktemp("models") / "model", networks, (*networks,), **options)
    return folder


def test_the_example_answers_without_torch_as_the_model_folder_does(folder, tmp_path):
    assert onnx.main([str(folder), str(tmp_path)]) == 0
    sound = np.random.default_rng(1).normal(0, 0.1, 7 * 16_000).astype(np.float32)
    soundfile.write(tmp_path / "sound.wav", sound, 16_000, subtype="FLOAT")
    call = [sys.executable, "-c", "import sys; sys.modules['torch'] = None; import example", "sound.wav"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True)
    answers = {name: ast.literal_eval(told) for name, told in re.findall(r"(\S+) (.*)", done.stdout)}
    model = load_model_folder(folder)
    pieces = np.stack([sound[start : start + 48_000] for start in (0, 32_000, 64_000)])
    tensors = embed.encode_batch(engines.load_engine(model.encoder, "emission"), pieces)
    for task, head in model.heads.items():
        features = networks.select_input(head.network, tensors, model.parts)
        trained = np.exp(train.predict_log_probabilities(head.model, features, np.arange(3)))
        expected = dict(zip(head.classes, head.calibration.apply(trained).mean(axis=0)))
        assert answers[task] == pytest.approx(expected, abs=2e-4)
    years = pytest.approx((trained @ CENTRES).mean(), abs=0.06)
    assert answers["age_years:years"] == {"years": years, "give or take": 7.5}
    about = json.loads((tmp_path / "model.onnx.json").read_text())
    assert (about["heads"]["age"]["threshold"], about["fingerprint"]) == (0.6, model.fingerprint)


def test_a_gap_and_what_is_no_model_are_refused_and_leave_no_file(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx, "LARGEST_GAP", -1.0)
    assert onnx.main([str(folder), str(tmp_path)]) == onnx.main([str(tmp_path), str(tmp_path)]) == 2
    assert "off torch, more than -1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
