import importlib.util
import json
import threading

import numpy as np
import pytest
import torch

from lib import paths
from lib.embed import embed_windows
from lib.encoders import TINY, UNTRAINED, Encoder, load_encoder
from lib.speed import engines
from lib.speed.engines import Choice, choose_engine, load_engine, missing_package, torch_threads
from lib.store import Store

SAMPLES = 16_000  # one second: converting and running is faster than with three
HAS = {name: importlib.util.find_spec(name) is not None for name in ("openvino", "nncf", "onnxruntime", "onnx")}


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(UNTRAINED)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Converted models go into a folder of this test file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOICE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def large(encoder):
    """Passes for a full-size encoder."""
    return type("Large", (), {"parameters": 95_000_000, "name": "large"})()


@pytest.fixture
def installed(monkeypatch):
    """Says that every package is there, or that those named are missing."""

    def say(*missing, flags=("avx512_bf16",)):
        monkeypatch.setattr(
            engines,
            "missing_package",
            lambda library, precision: next(
                (
                    name
                    for name in [*engines.PACKAGES.get(library, []), *(["nncf"] if precision == "int8" else [])]
                    if name in missing
                ),
                None,
            ),
        )
        monkeypatch.setattr(engines, "processor_flags", lambda: set(flags))

    return say


def noise(count, samples=SAMPLES, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, (count, samples)).astype(np.float32)


def speech_like(count=4):
    """Noise in syllables: loud and quiet parts, as int8 would be calibrated on."""
    envelope = np.abs(np.sin(np.linspace(0, 12, SAMPLES))).astype(np.float32)
    return noise(count, seed=9) * envelope


def buzz(seed):
    """A window (1, SAMPLES) of a voice-like buzz whose pitch and level rise and fall."""
    rng, time_s = np.random.default_rng(seed), np.arange(SAMPLES) / 16_000
    pitch_hz = rng.uniform(90, 280) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(1, 4) * time_s))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / 16_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * np.sin(np.pi * rng.uniform(1, 3) * time_s) ** 2
    return (0.1 * voice + rng.normal(0, 0.002, SAMPLES)).astype(np.float32)[None]


# ------------------------------------------------------------------------------------------------------------ choosing


def test_a_full_size_encoder_gets_what_the_processor_is_fast_at(large, installed):
    installed()
    choice = choose_engine(large)
    assert (choice.library, choice.precision, choice.place) == ("openvino", "bfloat16", "local")
    assert "has bfloat16" in choice.note
    installed(flags=("avx2",))
    assert choose_engine(large).precision == "float32"
    assert "lacks bfloat16" in choose_engine(large).note


def test_a_small_encoder_stays_exact_and_leaves_bfloat16_to_torch(encoder, installed):
    installed()
    choice = choose_engine(encoder)
    assert (choice.library, choice.precision) == ("openvino", "float32")
    assert "the encoder is small" in choice.note
    assert choose_engine(encoder, precision="bfloat16").library == "torch"
    installed("openvino")
    choice = choose_engine(encoder)
    assert (choice.library, choice.precision) == ("torch", "float32")
    assert "openvino is not installed" in choice.note


def test_the_run_file_may_fix_library_precision_and_place(large, installed):
    installed()
    for engine, precision in [
        ("torch", "bfloat16"),
        ("onnxruntime", "int8"),
        ("openvino", "float32"),
        ("openvino", "int8"),
    ]:
        choice = choose_engine(large, engine, precision)
        assert (choice.library, choice.precision, choice.place) == (engine, precision, "local")
    assert choose_engine(large, "ray", "float32").place == "ray"
    choice = choose_engine(large, "ray:torch", "float32")
    assert (choice.library, choice.place) == ("torch", "ray")
    assert choice.describe()["value"].tolist()[:3] == ["torch", "float32", "ray"]


@pytest.mark.parametrize(
    ("engine", "precision", "missing", "expected"),
    [
        ("local", "auto", ["openvino"], ("torch", "bfloat16")),
        ("openvino", "float32", ["openvino"], ("torch", "float32")),
        ("local", "int8", ["nncf"], ("torch", "bfloat16")),
        ("onnxruntime", "float32", ["onnx"], ("torch", "float32")),
        ("onnxruntime", "bfloat16", [], ("torch", "bfloat16")),
        ("torch", "int8", [], ("torch", "bfloat16")),
    ],
)
def test_what_is_missing_is_replaced_by_torch_with_a_note(large, installed, engine, precision, missing, expected):
    installed(*missing)
    choice = choose_engine(large, engine, precision)
    assert (choice.library, choice.precision) == expected
    assert "torch instead" in choice.note
    assert all(f"{name} is not installed (pip install -r requirements-speed.txt)" in choice.note for name in missing)


@pytest.mark.parametrize(
    ("engine", "precision"), [("tensorflow", "auto"), ("local", "float8"), ("ray:x", "auto"), ("", "auto")]
)
def test_unknown_names_are_refused_with_the_choices(large, engine, precision):
    with pytest.raises(
        ValueError, match=r"engine must be one of \['local', 'ray', 'torch', 'openvino', 'onnxruntime'\]"
    ):
        choose_engine(large, engine, precision)


def test_a_package_that_cannot_be_imported_counts_as_missing(monkeypatch):
    missing_package.cache_clear()
    monkeypatch.setitem(engines.PACKAGES, "openvino", ["a_package_that_nobody_has"])
    assert missing_package("openvino", "float32") == "a_package_that_nobody_has"
    assert missing_package("torch", "float32") is None
    missing_package.cache_clear()


def test_the_processor_is_known():
    assert engines.processor_name()
    assert engines.cores() >= 1
    assert isinstance(engines.processor_flags(), set)


# ------------------------------------------------------------------------------------------------------------- running


def errors(engine, encoder, waveforms, feature="emission"):
    """Largest difference of each tensor from what the encoder itself gives, over the largest value."""
    encoded = encoder.encode(torch.from_numpy(waveforms))
    expected = {"frames": encoded["emission"], "layers": encoded["hidden"].mean(2), "conv": encoded["conv"].mean(1)}
    found = engine.run(waveforms)
    assert all(values.dtype == np.float32 and values.shape == expected[name].shape for name, values in found.items())
    return {
        name: np.abs(found[name] - tensor.numpy()).max() / tensor.abs().max().item()
        for name, tensor in expected.items()
    }


ENGINES = [
    ("torch", "float32", 1e-6, []),
    ("torch", "bfloat16", 0.1, []),
    ("openvino", "float32", 1e-4, ["openvino"]),
    ("openvino", "bfloat16", 0.1, ["openvino"]),
    ("openvino", "int8", 0.2, ["openvino", "nncf"]),
    ("onnxruntime", "float32", 1e-4, ["onnxruntime", "onnx"]),
    ("onnxruntime", "int8", 0.2, ["onnxruntime", "onnx"]),
]


@pytest.mark.parametrize(("library", "precision", "tolerance", "needs"), ENGINES)
def test_every_engine_gives_what_the_encoder_gives_within_its_precision(encoder, library, precision, tolerance, needs):
    if missing := [name for name in needs if not HAS[name]]:
        pytest.skip(f"{missing[0]} is not installed: pip install -r requirements-speed.txt")
    choice = Choice(library, precision, "local", "")
    options = {"samples": SAMPLES, "streams": 2, "batch": 3, "calibration": speech_like}
    engine = load_engine(encoder, "emission", choice, **options)
    for count in (3, 1):  # a batch that is not full is filled up and cut again
        found = errors(engine, encoder, speech_like(3)[:count])
        assert max(found.values()) <= tolerance, found
    assert engine.describe()["engine"] == library
    waveforms, results = noise(3), {}
    threads = [threading.Thread(target=lambda k=k: results.update({k: engine.run(waveforms)})) for k in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for found in results.values():
        for name, values in found.items():
            np.testing.assert_allclose(values, results[0][name], atol=1e-5)


@pytest.mark.parametrize("feature", ["conv", "layer:3"])
def test_the_feature_asked_for_is_what_comes_out(encoder, feature):
    encoded = encoder.encode(torch.from_numpy(noise(2)))
    expected = encoded["conv"] if feature == "conv" else encoded["hidden"][:, 3]
    found = load_engine(encoder, feature).run(noise(2))["frames"]
    assert np.abs(found - expected.numpy()).max() < 1e-5


def test_wavlm_whose_attention_keeps_its_own_weights_gives_the_same():
    from torchaudio.models import wavlm_model

    extractor = {"extractor_mode": "group_norm", "extractor_conv_bias": False}
    extractor["extractor_conv_layer_config"] = [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 2, 2]]
    body = dict(encoder_embed_dim=16, encoder_pos_conv_kernel=8, encoder_pos_conv_groups=2, encoder_num_layers=2)
    body |= dict(encoder_num_heads=2, encoder_num_buckets=8, encoder_max_distance=16, encoder_ff_interm_features=32)
    off = ["projection_dropout", "attention_dropout", "ff_interm_dropout", "dropout", "layer_drop"]
    body |= {f"encoder_{name}": 0.0 for name in off} | {"encoder_layer_norm_first": False, "aux_num_out": None}
    wavlm = Encoder("wavlm", wavlm_model(**extractor, **body), "random weights", "x", False)
    assert max(errors(load_engine(wavlm, "emission"), wavlm, noise(2)).values()) < 1e-5


@pytest.mark.skipif(not (HAS["openvino"] and HAS["nncf"]), reason="nncf is not installed: requirements-speed.txt")
def test_int8_stays_near_float32_with_trained_weights():
    trained, heard = load_encoder(TINY), np.concatenate([buzz(k) for k in range(16)])
    choice = Choice("openvino", "int8", "local", "")
    engine = load_engine(trained, "emission", choice, samples=SAMPLES, batch=4, calibration=lambda: heard)
    exact, found = load_engine(trained, "emission").run(heard[:4])["layers"], engine.run(heard[:4])["layers"]
    assert np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)) < 0.02  # 0.04 with the convolutions quantised


def test_what_changes_a_value_changes_the_identity(encoder):
    choices = [Choice("torch", "float32", "local", ""), Choice("torch", "bfloat16", "local", "")]
    identities = [
        load_engine(encoder, feature, choice).identity for feature in ("emission", "conv") for choice in choices
    ]
    assert len({json.dumps(identity) for identity in identities}) == 4
    again = load_engine(encoder, "emission", Choice("torch", "float32", "ray", "elsewhere"), streams=1)
    assert again.identity == identities[0]


def test_reduced_precision_leaves_the_encoder_itself_alone(encoder):
    before = encoder.encode(torch.from_numpy(noise(1)))["emission"]
    load_engine(encoder, "emission", Choice("torch", "bfloat16", "local", "")).run(noise(1))
    assert torch.equal(before, encoder.encode(torch.from_numpy(noise(1)))["emission"])
    assert isinstance(encoder, Encoder)


def test_threads_of_torch_are_set_and_given_back():
    before = torch.get_num_threads()
    block = torch_threads(1)
    block.__enter__()
    assert torch.get_num_threads() == 1
    assert not block.__exit__(None, None, None)
    assert torch.get_num_threads() == before


def test_the_store_names_the_engine_that_filled_it(encoder, tmp_path):
    from test_windows import cut, make_clips

    clips = make_clips(tmp_path, [7.0, 4.0])
    windows, _ = cut(tmp_path, clips)
    choice = choose_engine(encoder, "torch", "bfloat16")
    embed_windows(tmp_path / "store", windows, clips, {"tones": tmp_path}, encoder, choice=choice, workers=1)
    store = Store(tmp_path / "store")
    assert [store.description[key] for key in ("engine", "precision", "note")] == [
        "torch",
        "bfloat16",
        "as the run file says",
    ]
    assert embed_windows(tmp_path / "store", windows, clips, {"tones": tmp_path}, encoder, choice=choice) == 0
    assert embed_windows(tmp_path / "store", windows, clips, {"tones": tmp_path}, encoder) == 1


@pytest.mark.skipif(not HAS["openvino"], reason="openvino is not installed: pip install -r requirements-speed.txt")
def test_a_converted_model_is_found_again_and_int8_needs_speech(encoder, monkeypatch):
    choice = Choice("openvino", "float32", "local", "")
    first = engines.converted_model(encoder, "emission", choice, SAMPLES)
    monkeypatch.setattr(engines, "_save_openvino", lambda *args: pytest.fail("converted again"))
    assert engines.converted_model(encoder, "emission", choice, SAMPLES) == first
    assert first.is_relative_to(paths.cache_folder())
    assert load_engine(encoder, "emission", choice, samples=SAMPLES).identity[-1] == first.name
    with pytest.raises(ValueError, match="int8 is calibrated on real speech"):
        load_engine(encoder, "emission", Choice("openvino", "int8", "local", ""))


def test_a_variance_that_cancels_in_bfloat16_stays_above_nothing():
    weight = torch.tensor([[1.0, -1.0] * 5, [1.0] * 10])  # a difference of neighbours, and their sum
    slow = torch.sin(torch.arange(4000) / 400)[None] * torch.linspace(0.5, 3, 64)[:, None]
    _, exact = engines.Statistics(weight, 5)(slow)
    waves = torch.nn.functional.conv1d(slow[:, None], weight[:, None], stride=5)
    torch.testing.assert_close(exact, waves.var(dim=2, correction=0), rtol=0.02, atol=1e-4)
    _, rough = engines.Statistics(weight, 5).bfloat16()(slow.bfloat16())
    assert rough.min() <= 0, "no cancellation: this test shows nothing"
    _, floored = engines.Statistics(weight, 5, engines.VARIANCE_FLOOR).bfloat16()(slow.bfloat16())
    assert floored.min() > 0
    torch.testing.assert_close(floored[:, 1], rough[:, 1])
