import importlib.util
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from checks import refused

from lib import embed, encoders, store
from lib.compute import choose_compute
from lib.encoders import CAMPPLUS, TINY, UNTRAINED, load_encoder
from lib.speed import bench
from lib.speed.engines import EngineChoice, check_engine, choose_engine, load_engine
from lib.speed.ray import embed_on_ray, start_ray

IDS = [f"w{number}" for number in range(1300)]  # three blocks of windows of a fifth of a second
SAMPLES = 16_000  # one second: converting and running is faster than with three
LARGE = SimpleNamespace(name="large", parameters=95_000_000, stages=None)  # passes for a full-size encoder
SPEAKERS = SimpleNamespace(name=CAMPPLUS, parameters=7_000_000, stages=None)
FIND = importlib.util.find_spec
PLAIN, BF16 = {"avx2": True}, {"amx_bf16": True}
LIMITS = [("ONEDNN_MAX_CPU_ISA", "AVX2"), ("ONEDNN_MAX_CPU_ISA", "avx512_core"), ("ATEN_CPU_CAPABILITY", "avx2")]


def play_machine(monkeypatch, flags, missing=""):
    """A processor with these instruction sets, without GPU, in an environment where one package is missing."""
    for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else FIND("json"))


def buzz(count, seed=0):
    """Windows (count, SAMPLES) of a voice-like buzz whose pitch and level rise and fall."""
    rng, time_s = np.random.default_rng(seed), np.arange(SAMPLES) / 16_000
    phase = 2 * np.pi * np.cumsum(rng.uniform(110, 280, (count, 1)) + 20 * np.sin(9 * time_s), axis=1) / 16_000
    voice = 0.1 * np.sin(5 * time_s) ** 2 * sum(np.sin(k * phase) / k for k in range(1, 20))
    return (voice + rng.normal(0, 0.002, voice.shape)).astype(np.float32)


def test_the_engine_follows_machine_and_run_file(monkeypatch):
    for encoder, engine, precision, flags, missing, *expected, note in [
        (LARGE, "local", "auto", BF16, "", "openvino", "bfloat16", "local", "cpu computes bfloat16"),
        (LARGE, "ray", "auto", PLAIN, "", "openvino", "float32", "ray", "cpu does not compute bfloat16"),
        (LARGE, "openvino", "int8", PLAIN, "", "openvino", "int8", "local", "as the run file says"),
        (LARGE, "local", "auto", PLAIN, "openvino", "torch", "float32", "local", "openvino is not installed"),
        (LARGE, "local", "int8", BF16, "nncf", "torch", "bfloat16", "local", "nncf is not installed"),
        (LARGE, "torch", "int8", PLAIN, "", "torch", "float32", "local", "torch has no int8"),
        (SPEAKERS, "openvino", "auto", BF16, "", "torch", "float32", "local", "does not convert speaker models"),
    ]:
        play_machine(monkeypatch, flags, missing)
        *chosen, told = vars(choose_engine(encoder, engine, precision)).values()
        assert (chosen, note in told) == ([*expected, "cpu"], True)


def test_what_is_not_there_or_unknown_is_refused_before_a_notebook_begins(monkeypatch):
    play_machine(monkeypatch, PLAIN, "ray")
    known = r"must be of \['auto', 'cpu', 'cuda', 'mps'\] and of \['auto', 'float32'"
    for message, check, *names in (
        (known, choose_compute, "tpu", "auto"), (known, choose_compute, "auto", "fp16"),
        (r"needs Ray: pip install -r requirements-ray.txt, or set compute.engine", check_engine, "ray", "auto"),
        (r"must be of \['local', 'ray', 'torch', 'openvino'\]", check_engine, "onnxruntime", "auto"),
        (r"and of \['auto', 'float32', 'bfloat16', 'int8'\]", check_engine, "local", "float8"),
        ("device 'cuda': ray, openvino and int8 compute on the processor", check_engine, "openvino", "auto", "cuda"),
        ("device 'cuda': torch finds none on this machine; set it to 'auto' or 'cpu'", choose_compute, "cuda"),
    ):  # fmt: skip
        refused(message, check, *names)


@pytest.mark.parametrize("feature", ["emission", ""])
@pytest.mark.parametrize(("library", "precision", "tolerance"), [
    ("torch", "float32", 1e-6), ("torch", "bfloat16", 0.02), ("openvino", "float32", 1e-5),
    ("openvino", "bfloat16", 0.02), ("openvino", "int8", 0.032),  # rms; int8 by processor 0.020 to 0.030
])  # fmt: skip
def test_every_engine_gives_what_the_encoder_gives(library, precision, tolerance, feature, tmp_path, monkeypatch):
    if library == "openvino":
        for package in ("openvino", "nncf"):
            pytest.importorskip(package, reason="not installed: pip install -r requirements-speed.txt")
    monkeypatch.setenv("VOICE_CACHE", str(tmp_path))
    encoder, waveforms = load_encoder(TINY), buzz(3)
    expected = {"statistics": encoder.summary("")(torch.from_numpy(waveforms))}
    if feature:
        expected["frames"] = encoder.encode(torch.from_numpy(waveforms))[feature]
    options = {"samples": SAMPLES, "calibration": lambda: buzz(16, seed=1)}
    choice = EngineChoice(library, precision)
    engine, again = (load_engine(encoder, feature, choice, streams=streams, **options) for streams in (2, 1))
    assert again.identity == engine.identity  # and the converted model is found again
    assert len(list(tmp_path.glob("engines/*"))) == (library == "openvino")
    with ThreadPoolExecutor(4) as pool:  # more at once than there are streams; batches of 3 and 1, neither full
        for tensors in pool.map(engine.run, [waveforms, waveforms[:1]] * 2):
            for name, exact in expected.items():
                error = tensors[name] - exact.numpy()[: len(tensors[name])]
                assert np.sqrt(np.mean(error**2) / exact.square().mean().item()) < tolerance
    assert torch.equal(encoder.summary("")(torch.from_numpy(waveforms)), expected["statistics"])  # it is left alone


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize("limit", LIMITS)
def test_auto_is_bfloat16_where_it_is_computed_and_a_limit_plays_a_plain_machine(monkeypatch, flag, limit):
    play_machine(monkeypatch, PLAIN)
    assert choose_compute().arithmetic == "float32"
    with pytest.warns(RuntimeWarning, match="emulates it: a training step takes three to five times that of float32"):
        assert choose_compute(arithmetic="bfloat16").arithmetic == "bfloat16"  # by name, whatever it costs
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {flag: True})
    assert choose_compute().record()["bfloat16"] == [flag]
    with choose_compute().autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    monkeypatch.setenv(*limit)
    assert choose_compute().arithmetic == "float32"


def test_a_gpu_is_taken_by_auto_and_its_float32_is_exact(monkeypatch):
    play_machine(monkeypatch, PLAIN)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    for computed, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, yes=computed: yes)
        assert (choose_compute().device, choose_compute().arithmetic) == ("cuda", expected)
    assert not torch.backends.cudnn.allow_tf32


def test_every_part_is_measured_against_its_reference_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.paths, "REPORTS", tmp_path)
    monkeypatch.delenv("CORPORA", raising=False)
    small = {"HEARD": 2, "TRIES": 1, "BATCH": 2, "GROWTH": [20], "load_full_size": lambda: load_encoder(UNTRAINED)}
    for name, value in small.items():
        monkeypatch.setattr(bench, name, value)
    bench.main()
    record = bench.paths.load_json(tmp_path / "bench.json")
    for part in ("full-size encoder", "small encoder"):
        rows = {row["engine"]: row for row in record[part]}
        assert rows["the paper's loop"]["ratio"] == 1
        assert rows["torch float32"]["frames_rms_error"] < 1e-6 < rows["torch bfloat16"]["frames_rms_error"] < 0.05
        assert sum("ratio" in row or "note" in row for row in rows.values()) == 1 + len(bench.ENGINES) == 6
    assert [row["form"] for row in record["training step"]] == ["a plain loop", "float32", "bfloat16"]
    assert record["memory"][0]["training_mb"] >= record["memory"][0]["embedding_mb"] > 100


def kill_an_actor(killed):
    """Wait for one to appear, let it begin, then end it for good."""
    while not killed:
        time.sleep(0.05)
        killed += [one for one in psutil.Process().children(recursive=True) if "BlockMaker" in one.name()][:1]
    time.sleep(1)
    killed[0].kill()


def test_two_workers_of_which_one_is_killed_write_the_very_same_store(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-ray.txt")
    encoder, options, killed = encoders.load_encoder(encoders.UNTRAINED), {"dtype": "float32", "copy": 1}, []
    np.save(tmp_path / "windows.npy", np.random.default_rng(0).integers(-3000, 3000, (len(IDS), 3200), np.int16))
    windows = np.load(tmp_path / "windows.npy", mmap_mode="r")
    embed.embed_windows(tmp_path / "here", windows, IDS, encoder, EngineChoice(), **options)
    threading.Thread(target=kill_an_actor, args=(killed,), daemon=True).start()
    ray = {"choice": EngineChoice(place="ray"), "workers": 2} | options
    assert embed_on_ray(tmp_path / "ray", windows, IDS, encoder, **ray) == 3
    assert len(killed) == 1
    here, there = store.Store(tmp_path / "here"), store.Store(tmp_path / "ray")
    assert here.rows.equals(there.rows)
    np.testing.assert_allclose(here.frames(IDS)[:], there.frames(IDS)[:], atol=1e-5, rtol=0)
    np.testing.assert_allclose(here.statistics(IDS)[:], there.statistics(IDS)[:], atol=1e-5, rtol=0)
    assert embed_on_ray(tmp_path / "ray", windows, IDS, encoder, **ray) == 0
    (tmp_path / "windows.npy").unlink()
    given = (tmp_path / "again", windows, IDS, encoder)
    refused(r"No such file .*windows\.npy", embed_on_ray, *given, error=Exception, **ray)  # whatever an actor raises
    assert not (tmp_path / "again" / "store.json").exists()


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    refused("needs Ray: pip install -r requirements-ray.txt, or set compute.engine", start_ray)
