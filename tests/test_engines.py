import importlib.util
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checks import refused

from lib.encoders import TINY, SpeakerStages, load_encoder
from lib.speed.engines import EngineChoice, check_engine, choose_engine, load_engine

SAMPLES = 16_000  # one second: converting and running is faster than with three
LARGE = SimpleNamespace(parameters=95_000_000, stages=None)  # passes for a full-size encoder
SPEAKERS = SimpleNamespace(parameters=7_000_000, stages=SpeakerStages(torch.nn.Identity()))
FIND = importlib.util.find_spec
PLAIN, BF16 = {"avx2": True}, {"amx_bf16": True}


def play_machine(monkeypatch, flags, missing=""):
    """A processor with these instruction sets, in an environment where one package is missing."""
    for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else FIND("json"))


def buzz(count, seed=0):
    """Windows (count, SAMPLES) of a voice-like buzz whose pitch and level rise and fall."""
    rng, time_s = np.random.default_rng(seed), np.arange(SAMPLES) / 16_000
    phase = 2 * np.pi * np.cumsum(rng.uniform(110, 280, (count, 1)) + 20 * np.sin(9 * time_s), axis=1) / 16_000
    voice = 0.1 * np.sin(5 * time_s) ** 2 * sum(np.sin(k * phase) / k for k in range(1, 20))
    return (voice + rng.normal(0, 0.002, voice.shape)).astype(np.float32)


def test_the_engine_follows_machine_and_run_file(monkeypatch):
    for encoder, engine, precision, flags, missing, expected, note in [
        (LARGE, "local", "auto", BF16, "", ["openvino", "bfloat16", "local"], "cpu computes bfloat16"),
        (LARGE, "ray", "auto", PLAIN, "", ["openvino", "float32", "ray"], "cpu does not compute bfloat16"),
        (LARGE, "openvino", "int8", PLAIN, "", ["openvino", "int8", "local"], "as the run file says"),
        (LARGE, "local", "auto", PLAIN, "openvino", ["torch", "float32", "local"], "openvino is not installed"),
        (LARGE, "local", "int8", BF16, "nncf", ["torch", "bfloat16", "local"], "nncf is not installed"),
        (LARGE, "torch", "int8", PLAIN, "", ["torch", "float32", "local"], "torch has no int8"),
        (SPEAKERS, "openvino", "auto", BF16, "", ["torch", "float32", "local"], "does not convert speaker models"),
    ]:
        play_machine(monkeypatch, flags, missing)
        choice = choose_engine(encoder, engine, precision)
        assert note in choice.note
        assert [*vars(choice).values()] == [*expected, "cpu", choice.note]


def test_what_is_not_there_or_unknown_is_refused_before_a_notebook_begins(monkeypatch):
    play_machine(monkeypatch, PLAIN, "ray")
    for names, message in (
        (("ray", "auto"), r"needs Ray: pip install -r requirements-ray.txt, or set compute.engine to local"),
        (("onnxruntime", "auto"), r"must be of \['local', 'ray', 'torch', 'openvino'\]"),
        (("local", "float8"), r"and of \['auto', 'float32', 'bfloat16', 'int8'\]"),
        (("openvino", "auto", "cuda"), "device 'cuda': ray, openvino and int8 compute on the processor"),
    ):
        refused(message, check_engine, *names)


@pytest.mark.parametrize("feature", ["emission", ""])
@pytest.mark.parametrize(
    ("library", "precision", "tolerance"),
    [("torch", "float32", 1e-6), ("torch", "bfloat16", 0.02), ("openvino", "float32", 1e-5)]
    + [("openvino", "bfloat16", 0.02), ("openvino", "int8", 0.02)],  # rms; int8 with the convolutions: 0.04 and more
)
def test_every_engine_gives_what_the_encoder_gives(library, precision, tolerance, feature, tmp_path, monkeypatch):
    if library == "openvino":
        for package in ("openvino", "nncf"):
            pytest.importorskip(package, reason="not installed: pip install -r requirements-speed.txt")
    monkeypatch.setenv("VOICE_CACHE", str(tmp_path))
    encoder, waveforms = load_encoder(TINY), buzz(3)
    expected = {"statistics": encoder.summary("")(torch.from_numpy(waveforms))}
    if feature:
        expected["frames"] = encoder.encode(torch.from_numpy(waveforms))[feature]
    options = {"samples": SAMPLES, "streams": 2, "calibration": lambda: buzz(16, seed=1)}
    engine = load_engine(encoder, feature, EngineChoice(library, precision), **options)
    again = load_engine(encoder, feature, EngineChoice(library, precision), **options | {"streams": 1})
    assert again.identity == engine.identity  # and the converted model is found again
    assert len(list(tmp_path.glob("engines/*"))) == (library == "openvino")
    with ThreadPoolExecutor(4) as pool:  # more at once than there are streams; batches of 3 and 1, neither full
        for tensors in pool.map(engine.run, [waveforms, waveforms[:1]] * 2):
            for name, exact in expected.items():
                error = tensors[name] - exact.numpy()[: len(tensors[name])]
                assert np.sqrt(np.mean(error**2) / exact.square().mean().item()) < tolerance
    after = encoder.summary("")(torch.from_numpy(waveforms))
    assert torch.equal(after, expected["statistics"])  # the encoder itself is left alone
