"""Encoders that a researcher brings: small seeded models of every family against transformers' and onnxruntime's own answers."""

import copy
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lib import hub, run
from lib.embed import embed_windows, encode_batch
from lib.encoders import Wav2Vec2Stages, load_encoder
from lib.model_folder import load_model_folder, save_model_folder
from lib.networks import build_network
from lib.speed.engines import EngineChoice, choose_engine, load_engine
from lib.store import Store
from lib.train import save_model
from lib.windows import Windowing

ADVICE = "not installed: pip install -r requirements-hub.txt"
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 30}
SHAPE |= {"conv_dim": (16,) * 7, "num_conv_pos_embedding_groups": 2}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "num_conv_pos_embeddings": 16}
DECODER = {
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48,
    "vocab_size": 60,
    "pad_token_id": 0,
}
EARS = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "num_mel_bins": 40}
CASES = [("Wav2Vec2Model", {}), ("Wav2Vec2Model", STABLE), ("Wav2Vec2ForCTC", STABLE), ("HubertModel", {})]
CASES += [("HubertModel", STABLE), ("WavLMModel", {}), ("WavLMModel", STABLE), ("Data2VecAudioModel", {})]
CASES += [("WhisperForConditionalGeneration", {})]


def noise(*shape):
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def save_small(folder, kind="Wav2Vec2Model", shape=STABLE, normalize=True):
    """A small seeded model, written with its extractor by transformers' own `save_pretrained`; returns both."""
    transformers = pytest.importorskip("transformers", reason=ADVICE)
    torch.manual_seed(0)
    if kind.startswith("Whisper"):
        config = transformers.WhisperConfig(**EARS, **DECODER, max_source_positions=300, decoder_start_token_id=1)
        extractor = transformers.WhisperFeatureExtractor(feature_size=40, chunk_length=6)  # none of them the default
    else:
        family = kind.removesuffix("ForCTC").removesuffix("Model")
        config = getattr(transformers, f"{family}Config")(**SHAPE | shape)
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model, extractor


def save_onnx(file, outputs=("frames", "hidden_states", "logits_age"), sizes=("batch", "samples"), frames=3):
    """A small seeded network as an ONNX file: frames (B, T, 8), their mean (B, 8), and one number (B, 1) made from it."""
    onnx = pytest.importorskip("onnx", reason=ADVICE)
    pytest.importorskip("onnxruntime", reason=ADVICE)
    make, drawn = onnx.helper, np.random.default_rng(1)
    weights = {"kernel": drawn.normal(size=(8, 1, 400)), "head": drawn.normal(size=(8, 1))}
    constants = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    constants.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    nodes = [
        make.make_node("Unsqueeze", ["signal", "one"], ["channel"]),
        make.make_node("Conv", ["channel", "kernel"], ["conv"], strides=[320]),
        make.make_node("Transpose", ["conv"], ["frames"], perm=[0, 2, 1]),
        make.make_node("ReduceMean", ["frames", "one"], ["hidden_states"], keepdims=0),
        make.make_node("MatMul", ["hidden_states", "head"], ["logits_age"]),
    ]
    shapes = {"channel": 3, "frames": 3, "hidden_states": 2, "logits_age": 2, "one": 1}
    types = {"one": onnx.TensorProto.INT64}
    shown = [make.make_tensor_value_info(n, types.get(n, 1), [None] * shapes[n]) for n in outputs]
    signal = make.make_tensor_value_info("signal", onnx.TensorProto.FLOAT, sizes)
    graph = make.make_graph(nodes, "small", [signal], shown, constants)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, file)
    return model


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_the_layers_are_transformers_own_hidden_states(kind, shape, normalize, tmp_path):
    if kind.startswith("Whisper") and not normalize:
        pytest.skip("Whisper knows one way to prepare sound")
    model, extractor = save_small(tmp_path, kind, shape, normalize)
    encoder, waveforms = load_encoder(f"hf:{tmp_path}"), noise(3, 48_000) * [[1], [0.02], [5]]  # a quiet and a loud one
    waveforms = waveforms.astype(np.float32)
    inputs = extractor(list(waveforms), sampling_rate=16_000, return_tensors="pt")
    values = inputs.input_features if "input_features" in inputs else inputs.input_values
    part = model.get_encoder() if kind.startswith("Whisper") else model.base_model
    with torch.no_grad():
        expected = part(values, output_hidden_states=True)
        emission = model(values).logits if "CTC" in kind else expected.last_hidden_state
    frames = 150 if kind.startswith("Whisper") else 149
    for rows in (slice(3), slice(1, 2)):
        stages = encoder.encode(torch.from_numpy(waveforms[rows]))
        layers = [stage for name, stage in stages.items() if name.startswith("layer:")]
        assert [len(layers), layers[0].shape[1]] == [3, frames]
        for layer, exact in zip([*layers, stages["emission"]], [*expected.hidden_states, emission], strict=True):
            gap = (layer - exact[rows, :frames]).abs().max()
            print(f"{kind} {'stable' if shape else ''} {normalize=}: {gap:.1e}")
            assert gap < 1e-5
    assert encoder.parameters == sum(weight.numel() for weight in encoder.stages.parameters())


@pytest.mark.parametrize("kind", ["Wav2Vec2ForCTC", "Wav2Vec2Model"])
@pytest.mark.parametrize("shape", [{"num_conv_pos_embeddings": 16}, STABLE])
def test_the_same_weights_in_torchaudio_give_the_same_stages(kind, shape, tmp_path):
    from torchaudio.models.wav2vec2.utils import import_huggingface_model

    model, _ = save_small(tmp_path, kind, shape, normalize=False)
    waveforms = torch.from_numpy(noise(2, 48_000))
    stages = load_encoder(f"hf:{tmp_path}").encode(waveforms)
    with torch.no_grad():
        expected = Wav2Vec2Stages(import_huggingface_model(model).eval(), normalize=False)(waveforms)
    assert list(stages) == list(expected)
    for name, stage in stages.items():
        assert (stage - expected[name]).abs().max() < 1e-5, name


def check_store(folder, encoder, feature):
    """Five random windows through `embed_windows`, each as the encoder tells it."""
    windows = np.random.default_rng(2).integers(-3000, 3000, (5, 16_000)).astype(np.int16)
    ids = [f"window-{number}" for number in range(5)]
    options = {"feature": feature, "dtype": "float32"}
    assert embed_windows(folder, windows, ids, encoder, choose_engine(encoder, "torch"), **options) == 1
    store, waveforms = Store(folder), torch.from_numpy(windows.astype(np.float32) / 32768)
    for name, stage in encoder.encode(waveforms).items():
        statistics = np.asarray(store.statistics(ids, [name])[np.arange(5)])
        expected = stage if stage.dim() == 2 else torch.cat([stage.mean(1), stage.std(1, unbiased=False)], dim=1)
        assert np.abs(statistics - expected.numpy()).max() < 1e-5
        if name == feature:
            assert np.abs(np.asarray(store.frames(ids)[np.arange(5)]) - stage.numpy()).max() < 1e-5


def test_windows_go_through_a_model_of_transformers_into_the_store(tmp_path):
    save_small(tmp_path / "model")
    check_store(tmp_path / "store", load_encoder(f"hf:{tmp_path / 'model'}"), "emission")


def test_windows_go_through_an_onnx_file_into_the_store(tmp_path):
    save_onnx(tmp_path / "small.onnx")
    encoder = load_encoder(f"onnx:{tmp_path / 'small.onnx'}")
    assert "licence as the file's owner says" in encoder.note
    check_store(tmp_path / "store", encoder, "frames")


def test_an_onnx_file_gives_its_outputs_by_name_in_any_thread_and_copy(tmp_path):
    import_onnx = save_onnx(tmp_path / "small.onnx")
    encoder, waveforms = load_encoder(f"onnx:{tmp_path / 'small.onnx'}"), noise(3, 16_000)
    constants = {each.name: each for each in import_onnx.graph.initializer}
    kernel = torch.from_numpy(importlib.import_module("onnx").numpy_helper.to_array(constants["kernel"]).copy())
    frames = torch.conv1d(torch.from_numpy(waveforms)[:, None], kernel, stride=320).transpose(1, 2)
    stages = encoder.encode(torch.from_numpy(waveforms))
    assert [(name, stage.shape[-1]) for name, stage in stages.items()] == [
        ("frames", 8), ("hidden_states", 8), ("logits_age", 1)
    ]  # fmt: skip
    assert (stages["frames"] - frames).abs().max() < 1e-4
    assert (stages["hidden_states"] - frames.mean(1)).abs().max() < 1e-5
    assert choose_engine(encoder, "openvino", "bfloat16") == EngineChoice(
        note="an ONNX file is computed by onnxruntime, in float32 on the processor"
    )
    run_engine = load_engine(encoder, "frames", EngineChoice()).run
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(run_engine, [waveforms] * 4))
    copied = copy.deepcopy(encoder.summary("frames")).to(torch.bfloat16)(torch.from_numpy(waveforms))
    for answer in answers:
        assert np.abs(answer["frames"] - copied[0].numpy()).max() < 1e-6
    assert encoder.parameters == (tmp_path / "small.onnx").stat().st_size // 4


def test_an_encoder_of_vectors_refuses_networks_that_read_frames(tmp_path):
    save_onnx(tmp_path / "vectors.onnx", outputs=("hidden_states",))
    encoder = load_encoder(f"onnx:{tmp_path / 'vectors.onnx'}")
    assert list(encoder.parts()) == ["hidden_states", "bank"]
    for feature in ("emission", "hidden_states"):
        with pytest.raises(ValueError, match=f"feature '{feature}': no stage with frames .* gives vectors alone"):
            check_store(tmp_path / "refused", encoder, feature)
    check_store(tmp_path / "store", encoder, "")


def test_revision_and_licence_are_noted_and_settings_are_part_of_the_hash(tmp_path, monkeypatch):
    hub_folder = tmp_path / ("0123456789" * 4)
    save_small(hub_folder)
    (hub_folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: none\n")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **more: str(hub_folder))
    encoder = load_encoder("hf:someone/small@main")
    assert encoder.name == f"hf:someone/small@{hub_folder.name}"
    assert encoder.note == f"wav2vec2 of transformers, revision {hub_folder.name}, licence apache-2.0"
    assert load_encoder(f"hf:{hub_folder}").weights_sha256 == encoder.weights_sha256
    noted = hub_folder / ".cache/huggingface/download/config.json.metadata"  # as `hf download --local-dir` leaves it
    noted.parent.mkdir(parents=True)
    noted.write_text("abc123\netag\n1700000000.0\n")
    assert "revision abc123" in load_encoder(f"hf:{hub_folder}@abc123").note
    with pytest.raises(ValueError, match="holds revision abc123; bring that one, or name none"):
        load_encoder(f"hf:{hub_folder}@def456")
    settings = json.loads((hub_folder / "preprocessor_config.json").read_text())
    (hub_folder / "preprocessor_config.json").write_text(json.dumps(settings | {"do_normalize": False}))
    (hub_folder / "README.md").unlink()
    assert load_encoder(f"hf:{hub_folder}").weights_sha256 != encoder.weights_sha256
    assert "licence not stated" in load_encoder(f"hf:{hub_folder}").note


def spoil(folder, case):
    """Make a good folder one of the bad ones."""
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save

    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if case == "pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    elif case == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif case == "missing weights":
        state = load_file(weights)
        save({name: value for name, value in state.items() if "layers.1." not in name}, weights, {"format": "pt"})
    elif case == "bert":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    elif case == "no extractor":
        (folder / "preprocessor_config.json").unlink()
    else:
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 8000})
        )


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("pickle", r"holds no model.safetensors; a pickle .* is never read.*python -c .*save_pretrained\("),
        ("cut", "is not usable"),
        ("missing weights", r"its weights lack encoder.layers.1.* which would be random numbers"),
        ("bert", "a model of type 'bert' .* must be of wav2vec2, hubert, wavlm, data2vec-audio, whisper"),
        ("no extractor", "lacks preprocessor_config.json, which says how sound is prepared"),
        ("8 kHz", "it works at 8000 Hz, this project at 16000 Hz"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(case, message, tmp_path):
    save_small(tmp_path)
    spoil(tmp_path, case)
    with pytest.raises(ValueError, match=message):
        load_encoder(f"hf:{tmp_path}")


def test_an_onnx_file_of_another_kind_is_refused(tmp_path):
    file = tmp_path / "small.onnx"
    model = save_onnx(file, sizes=("batch", 48_000))
    with pytest.raises(ValueError, match=r"takes signal tensor\(float\) \['batch', 48000\]; must take .* left open"):
        load_encoder(f"onnx:{file}")
    save_onnx(file, outputs=("hidden_states", "one"))
    with pytest.raises(ValueError, match=r"output one is \(1,\); must be \(B, T, D\) or \(B, D\)"):
        load_encoder(f"onnx:{file}")
    import onnx

    onnx.save(model, file, save_as_external_data=True, location="elsewhere", size_threshold=0)
    with pytest.raises(ValueError, match="is not usable"):
        load_encoder(f"onnx:{file}")


def test_a_run_is_refused_before_a_notebook_begins(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers", reason=ADVICE)

    def refuse(*args, **more):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr(run, "run_all", lambda *args: pytest.fail("a notebook began"))
    find = importlib.util.find_spec
    for name, there, message in (
        (
            "hf:some/model@v2",
            True,
            "(no route to host); on a machine with a network run `hf download some/model --revision v2",
        ),
        ("onnx:/no/file.onnx", True, "encoder onnx:/no/file.onnx: there is no such file"),
        ("hf:some/model", False, "needs transformers: pip install -r requirements-hub.txt"),
        ("onnx:/no/file.onnx", False, "needs onnxruntime: pip install -r requirements-hub.txt"),
        ("wav2vec3", True, "encoder 'wav2vec3' is not known; choose one of wav2vec2-tiny, "),
    ):
        absent = () if there else ("transformers", "onnxruntime")
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, absent=absent: None if name in absent else find(name)
        )
        assert run.main(["params/demo.yaml", "--set", f"embed.encoder={name}"]) == 2
        assert message in capsys.readouterr().err


def test_a_model_folder_finds_its_encoder_again_or_says_how_to_get_it(tmp_path):
    place = tmp_path / "encoder"
    save_small(place)
    encoder = load_encoder(f"hf:{place}")
    width = len(encode_batch(load_engine(encoder, ""), noise(1, 48_000))["statistics"][0])
    network = build_network("linear", ["male", "female"], (width,), task="gender")
    checkpoint = save_model(tmp_path / "gender.safetensors", network, {"epoch": 1})
    folder = save_model_folder(tmp_path / "model", {"gender": checkpoint}, encoder, Windowing(), "")
    assert load_model_folder(folder).encoder.weights_sha256 == encoder.weights_sha256
    settings = json.loads((place / "preprocessor_config.json").read_text())
    (place / "preprocessor_config.json").write_text(json.dumps(settings | {"do_normalize": False}))
    with pytest.raises(ValueError, match="was trained on encoder hf:.* Get the encoder of that version"):
        load_model_folder(folder)
    place.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"answers through hf:.* or hand it over as `encoder`: .*`hf download"):
        load_model_folder(folder)
    (tmp_path / "elsewhere" / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_model_folder(folder, load_encoder(f"hf:{tmp_path / 'elsewhere'}")).name == "model"
