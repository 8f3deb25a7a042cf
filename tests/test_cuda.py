"""On a CUDA device, where there is one: frames, trainings and distillation as on the processor, within float32's rounding."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from lib.compute import Compute, choose_compute
from lib.encoders import CAMPPLUS, RESEMBLYZER, TINY, load_encoder
from lib.networks import build_network
from lib.speed.engines import choose_engine, load_engine
from lib.tiny import distill
from lib.tiny.teacher import COMPONENTS
from lib.train import Recipe, fit_network, load_model, predict_log_probabilities

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
PROCESSOR, CUDA = Compute("cpu", "float32", ""), Compute("cuda", "float32", "")
WINDOWS = np.random.default_rng(0).normal(0, 0.1, (8, 48_000)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "feature", "precision", "tolerance"),
    [(TINY, "emission", "float32", 1e-3), (TINY, "emission", "bfloat16", 0.1)]
    + [(CAMPPLUS, "block:2", "float32", 1e-3), (RESEMBLYZER, "", "float32", 1e-3)],
)
def test_an_encoder_gives_the_frames_that_the_processor_gives(name, feature, precision, tolerance):
    encoder, told = load_encoder(name), []
    for device, arithmetic in (("cpu", "float32"), ("auto", precision)):
        choice = choose_engine(encoder, "torch", arithmetic, device)
        told.append(load_engine(encoder, feature, choice).run(WINDOWS))
    assert (choice.device, choice.precision) == ("cuda", precision)
    for name, values in told[0].items():
        assert np.abs(told[1][name] - values).max() < tolerance * np.abs(values).max()


def test_a_network_learns_the_same_there_and_a_killed_training_goes_on(tmp_path):
    targets = (np.arange(240) % 3 == 0).astype(np.int64)
    features = np.random.default_rng(0).normal(3, 2, (240, 149, 32)).astype(np.float32)
    features[..., 0] += 2 * targets[:, None]
    parts, plan = (np.arange(180), np.arange(180, 240)), {"learning_rate": 1e-3, "batch": 32, "width": 0.1}

    def fit(folder, epochs, compute):
        model = build_network("paper", ["male", "female"], features.shape[1:], width=0.1, seed=7)
        recipe = Recipe(epochs=epochs, **plan)
        return fit_network(model, features, targets, *parts, recipe, tmp_path / folder, seed=7, compute=compute)

    processor, cuda, _ = fit("cpu", 4, PROCESSOR), fit("cuda", 4, CUDA), fit("resumed", 2, CUDA)
    resumed = fit("resumed", 4, CUDA)
    losses = [fitted.history["validation_loss"].to_numpy() for fitted in (processor, cuda, resumed)]
    np.testing.assert_allclose(losses[1], losses[0], atol=0.02)
    np.testing.assert_allclose(losses[2], losses[1], atol=2e-3)
    told = [predict_log_probabilities(load_model(fitted.checkpoint)[0], features) for fitted in (processor, cuda)]
    np.testing.assert_allclose(told[1], told[0], atol=0.05)


def test_the_encoder_is_distilled_there_as_on_the_processor(tmp_path, monkeypatch):
    for name, value in {"VIEWS": 16, "RECORD": 1, "CHECKPOINT": 2}.items():
        monkeypatch.setattr(distill, name, value)
    shapes = {"frames": (49, sum(COMPONENTS)), "pooled": (5120,), "embedding": (192,), "voice": (256,)}
    draw = np.random.default_rng(0).normal
    for number in range(8):
        answers = {name: torch.tensor(draw(size=(16, *shape))).half() for name, shape in shapes.items()}
        waveforms = torch.tensor(draw(0, 2000, (16, 16_000))).to(torch.int16)
        save_file({"waveforms": waveforms, **answers}, tmp_path / f"views-{number:05d}.safetensors")
    plan = distill.Recipe(steps=4, batch=8, shards=8)
    for compute in (PROCESSOR, CUDA):
        distill.distill(tmp_path, tmp_path / compute.device, plan, compute)
    distill.distill(tmp_path, tmp_path / "bfloat16", plan, choose_compute())
    histories = [pd.read_csv(tmp_path / name / "history.csv") for name in ("cpu", "cuda", "bfloat16")]
    np.testing.assert_allclose(histories[1]["total"], histories[0]["total"], rtol=5e-3)
    np.testing.assert_allclose(histories[2]["total"], histories[0]["total"], rtol=5e-2)
