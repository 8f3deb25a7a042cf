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
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "vocab_size": 60, "pad_token_id": 0}
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
