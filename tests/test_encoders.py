import os
from unittest import mock

import pytest
import requests
import torch
import torchaudio
from checks import refused, write_file
from test_authors import Call
from test_hub import noise

from lib.corpora import fetch
from lib.encoders import TINY, UNTRAINED, check_weights, load_encoder, locate_bundle

OTHERS = {"cut": None, "hostile": Call(os.system, "touch hostile-was-here"), "another model": {"x": torch.zeros(3)}}
KINDS = ["WAV2VEC2_ASR_BASE_960H", "HUBERT_BASE", "WAVLM_BASE", "WAV2VEC2_ASR_LARGE_LV60K_960H"]  # the last normalises


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty torch.hub cache; and no time lost on random weights that are overwritten at once."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "trunc_normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    return tmp_path


def place_weights(name):
    """Put seeded weights where torch.hub's cache expects those of a bundle; aux has the rows that torchaudio removes."""
    bundle = getattr(torchaudio.pipelines, name)
    factory = {"Wav2Vec2": torchaudio.models.wav2vec2_model, "WavLM": torchaudio.models.wavlm_model}[bundle._model_type]
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in factory(**bundle._params).state_dict().items()}
    if "aux.weight" in shapes:
        shapes |= {"aux.weight": (32, shapes["aux.weight"][1]), "aux.bias": (32,)}
    drawn = torch.Generator().manual_seed(0)
    state = {key: torch.empty(shape).uniform_(-1, 1, generator=drawn) for key, shape in shapes.items()}
    for value in state.values():
        value /= max(1, value[0].numel()) ** 0.5  # so that the signal neither dies nor explodes
    torch.save(state, write_file(locate_bundle(name)[1]))


@pytest.mark.parametrize("name", KINDS)
def test_a_bundle_of_every_kind_gives_torchaudios_own_emission_to_the_bit(name, cache, monkeypatch):
    bundle, width = getattr(torchaudio.pipelines, name), 1024 if "LARGE" in name else 768
    monkeypatch.setitem(bundle._params, "encoder_num_layers", 2)  # of 12 or 24: seconds
    place_weights(name)
    encoder, waveforms = load_encoder(name), noise(1, 48_000)  # of a batch torchaudio would take one mean
    model, stages = bundle.get_model(dl_kwargs={"progress": False}), encoder.encode(waveforms)
    with torch.inference_mode():
        assert torch.equal(stages["emission"], model(waveforms)[0])
        layers, _ = model.extract_features(waveforms)
    assert all(torch.equal(stages[f"layer:{number}"], layer) for number, layer in enumerate(layers, 1))
    assert 0.01 < stages["emission"].std() < 100
    assert stages["emission"].shape == (1, 149, 29 if "ASR" in name else width)
    assert (len(stages), stages["layer:0"].shape, stages["conv"].shape) == (5, (1, 149, width), (1, 149, 512))


@pytest.mark.parametrize("name", [TINY, UNTRAINED])
def test_the_small_encoder_gives_what_torchaudios_model_gives(name):
    encoder, waveforms = load_encoder(name), noise(3, 48_000)
    stages = encoder.encode(waveforms)
    prepared = encoder.stages.prepare(waveforms)
    with torch.inference_mode():
        assert torch.equal(stages["emission"], encoder.wav2vec2(prepared)[0])
        assert torch.equal(stages["conv"], encoder.wav2vec2.feature_extractor(prepared, None)[0])
        layers, _ = encoder.wav2vec2.extract_features(prepared)
    assert all(torch.equal(stages[f"layer:{number}"], layer) for number, layer in enumerate(layers, 1))
    assert not any(weight.requires_grad for weight in encoder.stages.parameters())
    assert (*stages["emission"].shape, encoder.parameters) == (3, 149, 32, 3_916_896)  # with the positional one


def test_without_a_network_the_message_says_what_to_fetch_and_changed_weights_are_refused(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "_fetch_rest", mock.Mock(side_effect=requests.ConnectionError("no route to host")))
    file = r"hubert_fairseq_base_ls960.pth"
    advice = rf"HUBERT_BASE: https://.*{file} could not be.*{cache}/hub/checkpoints/{file}, or use .*wav2vec2-tiny"
    refused(advice, load_encoder, "HUBERT_BASE")
    path = write_file(tmp_path / "weights.pth", b"first")
    assert check_weights(path) == check_weights(path)
    path.write_bytes(b"second")
    refused(r"weights.pth: SHA-256 is .* on first use it was", check_weights, path)


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_a_file_that_does_not_hold_the_weights_is_named_and_runs_nothing(cache, content, monkeypatch):
    monkeypatch.chdir(cache)
    path = write_file(locate_bundle("HUBERT_BASE")[1], b"PK\x03\x04 and then nothing")
    if content:
        torch.save(content, path)
    refused(r"(?s)encoder HUBERT_BASE: .*does not hold its weights .*delete it and run", load_encoder, "HUBERT_BASE")
    assert not [*cache.rglob("hostile-*"), *cache.rglob("*.sha256")]  # so that the right file is taken when it comes
