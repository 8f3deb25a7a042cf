import ast
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from checks import refused
from model_fixture import CENTRES, CLASSES, WINDOWING, YEAR_CLASSES, change, make_model_folder, untrained
from report_fixture import make_metrics

from lib import embed, networks, paths, train
from lib.model_folder import BY_CORPUS, READY, load_model_folder
from lib.speed import engines, onnx
from lib.tasks import Task
from lib.trust.calibration import Calibration, Years


def load(folder):
    return load_model_folder(folder, untrained())


def test_a_folder_travels_and_gives_the_same_heads(tmp_path):
    settings = {"age": {"temperature": 1.5, "cap": 0.9, "silence": 0.7, "disagreement": 0.2}}
    first = make_model_folder(tmp_path / "here", {"age": "paper", "gender": "linear:layer:1+bank"}, settings=settings)
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    second = load(tmp_path / "elsewhere")
    assert {task: head.classes for task, head in second.heads.items()} == CLASSES
    age, gender = second.heads["age"], second.heads["gender"]
    assert (age.calibration, age.threshold, age.disagreement) == (Calibration(1.5, 0.9), 0.7, 0.2)
    assert (gender.calibration, gender.threshold, gender.rare, gender.disagreement) == (Calibration(), 0.0, None, None)
    assert (age.network, gender.network) == ("paper", "linear:layer:1+bank")
    assert (second.windowing, second.feature, second.parts) == (WINDOWING, "emission", untrained().parts())
    frames = torch.randn(2, 149, 32)
    assert torch.equal(first.heads["age"].model(frames), age.model(frames))
    assert second.fingerprint == first.fingerprint
    files = {path.name for path in tmp_path.glob("elsewhere/*")}
    assert files == {"README.md", "age.safetensors", "gender.safetensors", "model.json"}


def test_thresholds_and_intervals_travel_and_are_told_in_words(tmp_path):
    years = Years(CENTRES, 8.25, speakers=11, validation_coverage=0.85, test_coverage=0.79, test_speakers=19)
    rare = {"rare": "teen", "rare_clip_threshold": 0.375, "silence": 0.6}
    settings, tasks = {"age": rare, "age_years": {"temperature": 2.0, "silence": 0.9}}, [*CLASSES, *YEAR_CLASSES]
    settings["age"]["spans"] = Task("age", ["teen", "adult"], [20]).spans
    model = make_model_folder(tmp_path / "model", None, tasks, years={"age_years": years}, settings=settings)
    gender, age, in_years = model.heads.values()
    assert (gender.rare, gender.years, gender.spans, age.rare) == (None, None, {}, ("teen", 0.375))
    assert (age.spans, in_years.spans) == ({"teen": [0, 20], "adult": [20, None]}, {})
    assert (in_years.years, in_years.threshold) == (years, 0)  # an age in years has an interval and is never silent
    words = "8.2 years each way for 80 %, from 11 validation speakers; held 79 % of the recordings of 19 test speakers"
    table, card = model.describe().set_index("task"), (tmp_path / "model/README.md").read_text()
    assert (table.loc["age_years", "years"], table.loc["age", "rare class"]) == (words, "teen from 0.375")
    assert table.loc[["age", "gender"], "unsure below"].tolist() == ["0.600", "always answers"]
    assert (words in card, "teen from 0.375" in card) == (True, True)


def test_the_card_says_what_a_voice_does_not_tell_and_its_scores(tmp_path):
    model = make_model_folder(tmp_path / "model", about={"synthetic": True, "corpora": ["own_data"]}, feature="")
    card = (tmp_path / "model/README.md").read_text()
    words = ["does not reveal gender identity", "how a voice *sounds*", "Consent", "Misuse", "leaves", "own_data"]
    words += ["statistics over time", "No scores were recorded.", model.description["encoder"]["weights_sha256"]]
    assert [text for text in words if text not in card] == []
    assert all("synthetic voices" in text for text in (card, model.warnings[0]))
    metrics = [row | {"model": row["model"].replace("paper", "scored")} for row in make_metrics()["scores"]]
    make_model_folder(tmp_path / "scored", metrics=metrics)
    words = ["78 are told right (72 to 84", "| Gender | scored | clip | 78 % (72 to 84) |", "F1 of male"]
    words += ["| Gender | corpus: voxceleb |", "| gender | male, female | linear model | 3 | 1.000 | always answers |"]
    card = (tmp_path / "scored/README.md").read_text()
    assert [text for text in words if text not in card] == []


def test_a_model_of_rounded_embeddings_or_other_libraries_says_so_when_loaded_and_is_no_error(tmp_path):
    engine = {"library": "openvino", "precision": "bfloat16", "note": "the processor has bfloat16"}
    model = make_model_folder(tmp_path / "model", about={"engine": engine})
    assert model.warnings[0].startswith("trained on embeddings by openvino in bfloat16; answers here")
    assert "library: openvino, precision: bfloat16" in (tmp_path / "model/README.md").read_text()
    exact = make_model_folder(tmp_path / "model", about={"engine": engine | {"precision": "float32"}})
    assert exact.warnings == []
    change(tmp_path / "model", versions=exact.description["versions"] | {"torch": "1.0.0", "onnx": "1.0.0"})
    (warning,) = load(tmp_path / "model").warnings
    assert all(words in warning for words in ("torch 1.0.0 there", "onnx 1.0.0 there, none here"))


def test_weights_that_are_changed_lost_or_swapped_are_refused(tmp_path):
    make_model_folder(tmp_path / "model")
    weights = tmp_path / "model/age.safetensors"
    content = weights.read_bytes()
    make_model_folder(tmp_path / "other", seed=1)
    for bad in (content[:-1] + bytes([content[-1] ^ 1]), (tmp_path / "other/age.safetensors").read_bytes()):
        weights.write_bytes(bad)
        refused(r"age\.safetensors: SHA-256 is .*; copy the whole folder again", load, tmp_path / "model")
    weights.unlink()
    refused(r"age\.safetensors is missing; copy the whole folder again", load, tmp_path / "model")


def test_a_description_that_was_changed_or_is_none_and_another_encoder_are_refused(tmp_path):
    make_model_folder(tmp_path / "model", settings={"age": {"silence": 0.75, "temperature": 1.5}})
    other = replace(untrained(), weights_sha256="0" * 64)
    refused("on encoder wav2vec2-tiny-u.* with weights .* here are", load_model_folder, tmp_path / "model", other)
    refused(r"no model folder \(model\.json is missing\)", load, tmp_path)
    path = tmp_path / "model/model.json"
    text, changed = path.read_text(), "was changed after it was written"
    pairs = (": 0.75", ": 0.15"), (": 1.5", ": 9.5"), ('"checksum"', '"sum"')  # a threshold, a temperature
    texts = [text.replace(*pair) for pair in pairs]
    told = dict.fromkeys([*texts, '{"format": 2}'], changed) | {"[]": "describes no model", "{": "not valid JSON"}
    told |= {'{"format": 99}': r"written in format 99, this version reads \d; run its notebooks again"}
    assert len({*told} - {text}) == 7  # every change changed something
    for content, message in told.items():
        path.write_text(content)
        refused(message, load, tmp_path / "model")


def test_a_folder_without_its_encoder_says_what_that_would_bring_beside_the_model_that_ships(tmp_path):
    shipped = paths.load_json(paths.ASSETS / READY[-1] / "model.json")
    own = {"metric": "uar", "subset": "all", "model": shipped["name"]}
    row, there = next(row for row in shipped["metrics"] if own.items() <= row.items()), shipped["about"][BY_CORPUS]
    rows = [row | {"model": "model", "task": task, "value": 0.999} for task in CLASSES]
    about = {"data_checksum": shipped["about"]["data_checksum"], BY_CORPUS: {"gender": {"speechocean762": 0.888}}}
    make_model_folder(tmp_path / "model", metrics=rows, about=about)
    change(tmp_path / "model", encoder={"name": "gone", "weights_sha256": "0" * 64, "note": "", "parts": {}})
    words = f"of windows in speechocean762 0.888 instead of {there['gender']['speechocean762']:.3f}"
    words = f"which ships): gender: UAR 0.999 instead of {row['value']:.3f}, {words}; age: UAR 0.999"
    refused(f"encoder 'gone' is not known.*{re.escape(words)}$", load_model_folder, tmp_path / "model")  # of other ages
    change(tmp_path / "model", about=about | {"data_checksum": "of other recordings"})
    refused(r": gender: UAR 0\.999, of windows in \w+ 0\.888; age: UAR 0\.999$", load_model_folder, tmp_path / "model")


def test_saving_again_replaces_the_folder_and_a_failure_leaves_the_old_one(tmp_path):
    make_model_folder(tmp_path / "model")
    make_model_folder(tmp_path / "model", tasks=("age",), settings={"age": {"silence": 0.9}})
    assert not (tmp_path / "model/gender.safetensors").exists()
    refused("JSON", make_model_folder, tmp_path / "model", about={"share": float("nan")})
    assert load(tmp_path / "model").heads["age"].threshold == 0.9
    assert not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder of random weights: the paper's network on frames, a linear model, and years from two parts."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="not installed: pip install onnx onnxscript onnxruntime")
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
