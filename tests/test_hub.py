import copy
import importlib.util

import numpy as np
import pytest
import torch
from checks import refused, write_file
from safetensors.torch import load_file, save_file
from torch import nn
from torchaudio.models.wav2vec2.utils import import_huggingface_model

from lib import run
from lib.embed import embed_windows
from lib.encoders import Wav2Vec2Stages, load_encoder, time_statistics
from lib.model_folder import load_model_folder, save_model_folder
from lib.speed.engines import EngineChoice, choose_engine, load_engine
from lib.store import Store
from lib.windows import Windowing, as_heard, as_stored

ADVICE = "not installed: pip install -r requirements-hub.txt"
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 30}
SHAPE |= {"conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 2}
PLAIN = SHAPE | {"num_conv_pos_embeddings": 16}  # as base models are, normalised after each layer
STABLE = PLAIN | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}  # as large ones are, before each
EARS = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "num_mel_bins": 40, "vocab_size": 9}
EARS |= {"decoder_layers": 1, "decoder_attention_heads": 2, "max_source_positions": 300, "pad_token_id": 0}
CASES = ["Wav2Vec2Model", "Wav2Vec2ForCTC", "HubertModel", "WavLMModel"]
CASES = [(kind, shape, way) for kind in CASES for shape in (PLAIN, STABLE) for way in (True, False)]
CASES += [("Data2VecAudioModel", SHAPE, True), ("Data2VecAudioModel", SHAPE, False), ("WhisperModel", EARS, True)]


def noise(count, samples):
    levels = np.resize([0.1, 0.002, 0.5], (count, 1))  # the second is quiet, the third loud
    return torch.from_numpy(np.random.default_rng(0).normal(0, levels, (count, samples)).astype(np.float32))


def save_small(folder, kind="Wav2Vec2Model", shape=STABLE, normalize=True):
    """A small seeded model, written with its extractor by transformers' own `save_pretrained`; returns both."""
    transformers = pytest.importorskip("transformers", reason=ADVICE)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    if kind == "WhisperModel":
        extractor = transformers.WhisperFeatureExtractor(feature_size=40, chunk_length=6)  # neither is the default
    torch.manual_seed(0)
    kind = getattr(transformers, kind)
    model = kind(kind.config_class(**shape)).eval()
    for one in (model, extractor):
        one.save_pretrained(folder)
    return model, extractor


class Small(nn.Conv1d):  # gives what it is asked for of frames, vectors, one number, and something of four dimensions
    names = ()

    def forward(self, waveforms):
        frames = super().forward(waveforms[:, None]).transpose(1, 2)
        values = {"frames": frames, "hidden_states": frames.mean(1), "logits_age": frames.mean((1, 2))[:, None]}
        return {name: (values | {"image": frames[:, None]})[name] for name in self.names}


def save_onnx(file, *names, sizes=("batch", "samples")):
    """A `Small` as an ONNX file, these of its sizes left open; returns the encoder's name and the module."""
    pytest.importorskip("onnxruntime", reason=ADVICE)
    module, options = Small(1, 8, 400, 320), {"input_names": ["signal"], "output_names": list(names), "dynamo": False}
    module.names, axes = names, {"signal": dict(enumerate(sizes))}
    torch.onnx.export(module, (torch.zeros(2, 16_000),), str(file), dynamic_axes=axes, **options)
    return f"onnx:{file}", module


@pytest.mark.parametrize(("kind", "shape", "normalize"), CASES)
def test_the_layers_are_transformers_own_hidden_states(kind, shape, normalize, tmp_path):
    model, extractor = save_small(tmp_path, kind, shape, normalize)
    samples = 16_000 if (kind, normalize) == ("HubertModel", False) else 48_000
    encoder, waveforms = load_encoder(f"hf:{tmp_path}"), noise(3, samples)
    inputs = extractor(list(waveforms.numpy()), sampling_rate=16_000, return_tensors="pt")
    part, frames = (model.encoder if kind == "WhisperModel" else model.base_model), samples // 320
    with torch.no_grad():
        expected = part(inputs[extractor.model_input_names[0]], output_hidden_states=True)
        emission = model(inputs.input_values).logits if "CTC" in kind else expected.last_hidden_state
        layers = {f"layer:{number}": layer for number, layer in enumerate(expected.hidden_states)}
        exact = layers | {"emission": emission}
        if kind != "WhisperModel":
            exact = {"conv": part.feature_extractor(inputs.input_values).transpose(1, 2)} | exact
        others = [(encoder.encode(waveforms[rows]), rows) for rows in (slice(3), slice(1, 2))]
        if kind.startswith("Wav2Vec2") and not normalize:  # in torchaudio the same weights give the same stages
            others += [(Wav2Vec2Stages(import_huggingface_model(model).eval(), normalize)(waveforms), slice(3))]
    for stages, rows in others:
        assert [*stages] == [*exact]
        for name, stage in stages.items():
            assert (stage - exact[name][rows, :frames]).abs().max() < 1e-5  # which also says that frames are as many
    told = load_engine(encoder, "emission").run(waveforms.numpy())["frames"]
    assert np.abs(told - emission[:, :frames].numpy()).max() < 1e-5


def test_an_onnx_file_gives_its_outputs_by_name_and_can_be_copied(tmp_path):
    name, module = save_onnx(tmp_path / "small.onnx", "frames", "hidden_states", "logits_age")
    encoder, waveforms = load_encoder(name), noise(3, 16_000)
    expected, stages = module(waveforms), encoder.encode(waveforms)
    assert [*stages] == [*expected] == ["frames", "hidden_states", "logits_age"]
    assert all((stage - expected[name]).abs().max() < 1e-5 for name, stage in stages.items())
    assert "one every 20 ms, of sound at 16,000 Hz" in set(encoder.describe()["value"])
    choice = choose_engine(encoder, "openvino", "bfloat16")
    assert choice == EngineChoice(note=choice.note)  # torch in float32
    frames, _ = copy.deepcopy(encoder.summary("frames")).to(torch.bfloat16)(waveforms)
    assert np.array_equal(load_engine(encoder, "frames", choice).run(waveforms.numpy())["frames"], frames)


def test_windows_go_into_the_store_and_vectors_are_not_taken_for_frames(tmp_path):
    save_small(tmp_path)
    both, _ = save_onnx(tmp_path / "both.onnx", "frames", "hidden_states")
    vectors, _ = save_onnx(tmp_path / "vectors.onnx", "hidden_states")
    ids, windows = list("abcde"), np.random.default_rng(2).integers(-3000, 3000, (5, 16_000), np.int16)
    for name, feature in ((f"hf:{tmp_path}", "emission"), (both, "frames"), (vectors, "")):
        encoder, folder = load_encoder(name), tmp_path / feature / "store"
        choice = choose_engine(encoder, "torch")
        embed_windows(folder, windows, ids, encoder, choice, feature=feature, dtype="float32")
        store, stages = Store(folder), encoder.encode(torch.from_numpy(windows.astype(np.float32) / 32768))
        statistics = torch.cat([time_statistics(stage) for stage in stages.values()], dim=1).numpy()
        assert np.abs(store.statistics(ids, list(stages))[:] - statistics).max() < 1e-5
        assert not feature or np.abs(store.frames(ids)[:] - stages[feature].numpy()).max() < 1e-5
    for feature in ("emission", "hidden_states"):
        told = f"feature '{feature}': no stage with frames .* gives vectors alone"
        refused(told, embed_windows, tmp_path / "refused", windows, ids, encoder, choice, feature=feature)


def test_revision_licence_and_settings_are_noted(tmp_path, monkeypatch):
    folder = tmp_path / ("0123456789" * 4)
    save_small(folder)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: none\n")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **more: str(folder))
    encoder, note = load_encoder("hf:some/model@main"), f"wav2vec2 of transformers, revision {folder.name}"
    assert (encoder.name, encoder.note, encoder.licence) == (f"hf:some/model@{folder.name}", note, "apache-2.0")
    write_file(folder / ".cache/huggingface/download/config.json.metadata", "abc123\netag\n")  # left by `hf download`
    (folder / "README.md").unlink()
    again, note = load_encoder(f"hf:{folder}@abc123"), "wav2vec2 of transformers, revision abc123"
    assert (again.note, again.licence, again.weights_sha256) == (note, "not stated", encoder.weights_sha256)
    refused("holds revision abc123; bring that one, or name none", load_encoder, f"hf:{folder}@def456")


def test_a_folder_that_is_no_whole_model_is_refused(tmp_path):
    name, weights, extractor = f"hf:{tmp_path}", tmp_path / "model.safetensors", tmp_path / "preprocessor_config.json"
    save_small(tmp_path)
    good, state = extractor.read_text(), load_file(weights)
    extractor.write_text(good.replace("16000", "8000"))
    refused("it works at 8000 Hz, this project at 16000 Hz", load_encoder, name)
    extractor.write_text(good)
    save_file({key: value for key, value in state.items() if "layers.1." not in key}, weights, {"format": "pt"})
    refused(r"its weights lack encoder.layers.1.* which would be random numbers", load_encoder, name)
    weights.write_bytes(weights.read_bytes()[:5000])
    refused(f"{tmp_path} is not usable", load_encoder, name)
    weights.unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    refused(r"no model.safetensors, and a pickle .* is never read; .*: python -c .*save_pre", load_encoder, name)
    extractor.unlink()
    refused("lacks preprocessor_config.json, which says how sound is prepared", load_encoder, name)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused("a model of type 'bert' .* must be of wav2vec2, hubert, wavlm, data2vec-audio, whisper", load_encoder, name)


def test_an_onnx_file_of_another_kind_is_refused(tmp_path):
    file, onnx = tmp_path / "small.onnx", pytest.importorskip("onnx", reason=ADVICE)
    name, _ = save_onnx(file, "frames", sizes=("batch",))
    refused(r"takes .*tensor\(float\)', \['batch', 16000\]\)\]; must take .* left open", load_encoder, name)
    save_onnx(file, "frames", "image")
    refused(r"output image is \(2, 1, 49, 8\); must be \(B, T, D\) or \(B, D\)", load_encoder, name)
    onnx.save(onnx.load(file), file, save_as_external_data=True, location="weights", size_threshold=0)
    refused("is not usable", load_encoder, name)  # its hash would not be that of the weights


@pytest.mark.parametrize(("name", "missing", "message"), [
    ("hf:some/model@v2", "", "); on a machine with a network run `hf download some/model --revision v2"),
    ("hf:/no/folder", "", "(there is no such folder); on a machine with a network run `hf download <repository> "),
    ("hf:some/model", "transformers", "needs transformers: pip install -r requirements-hub.txt"),
    ("onnx:/no/file.onnx", "", "there is no such file; write onnx:<path of an .onnx file>"),
    ("onnx:/no/file.onnx", "onnxruntime", "needs onnxruntime: pip install -r requirements-hub.txt"),
    ("wav2vec3", "", "encoder 'wav2vec3' is not known; choose one of wav2vec2-tiny, "),
])  # fmt: skip
def test_a_run_is_refused_before_a_notebook_begins(name, missing, message, monkeypatch, capsys):
    hub, find = pytest.importorskip("huggingface_hub.constants", reason=ADVICE), importlib.util.find_spec
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(run, "run_notebooks", lambda *args: pytest.fail("a notebook began"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    assert run.main(["params/demo.yaml", "--set", f"embed.encoder={name}"]) == 2
    assert message in capsys.readouterr().err


def test_a_model_folder_finds_its_encoder_again_or_says_how_to_get_it(tmp_path, monkeypatch):
    place, elsewhere = tmp_path / "encoder", tmp_path / "elsewhere"
    save_small(place)
    encoder = load_encoder(f"hf:{place}")
    monkeypatch.setattr("lib.model_folder.write_card", lambda description: "")
    folder = save_model_folder(tmp_path / "model", {}, encoder, Windowing(), "")
    assert load_model_folder(folder).encoder.weights_sha256 == encoder.weights_sha256
    place.rename(elsewhere)
    refused(r"answers through hf:.* or hand it over as `encoder`: .*`hf download", load_model_folder, folder)
    assert load_model_folder(folder, load_encoder(f"hf:{elsewhere}")).name == "model"
    save_small(elsewhere, normalize=False)  # the same weights, used in another way
    refused("was trained on encoder hf:", load_model_folder, folder, load_encoder(f"hf:{elsewhere}"))


def test_egemaps_are_opensmiles_own_functionals_one_vector_a_window(tmp_path):
    opensmile = pytest.importorskip("opensmile", reason=ADVICE)
    encoder, sounds = load_encoder("egemaps"), as_stored(noise(3, 48_000).numpy())
    choice = choose_engine(encoder, "openvino", "bfloat16")
    assert choice == EngineChoice(note=choice.note)
    embed_windows(tmp_path, sounds, ["a", "b", "c"], encoder, choice, feature="", dtype="float32")
    store, smile = Store(tmp_path), opensmile.Smile(feature_set=opensmile.FeatureSet.eGeMAPSv02)
    assert store.parts == {"functionals": [0, 88], "bank": [88, 248]}
    expected = smile.process_signal(as_heard(sounds[1], 48_000), 16_000).iloc[0]
    np.testing.assert_allclose(store.statistics(["b"], ["functionals"])[:][0], expected, rtol=1e-5, atol=1e-6)
    assert "none: vectors alone, of sound at 16,000 Hz" in encoder.describe()["value"].to_list()
    refused("egemaps gives vectors alone: set ", encoder.summary, "functionals")
