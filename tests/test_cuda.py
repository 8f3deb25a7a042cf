"""On a CUDA device, where there is one: frames, trainings and distillation as on the processor, within float32's rounding."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_tiny import make_views
from test_train import fit, make_task

from lib.compute import Compute, choose_compute
from lib.encoders import CAMPPLUS, RESEMBLYZER, TINY, load_encoder
from lib.speed.engines import choose_engine, load_engine
from lib.tiny import distill
from lib.train import checkpoint_path, load_model, predict_log_probabilities

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
PROCESSOR, CUDA = Compute("cpu", "float32", ""), Compute("cuda", "float32", "")
WINDOWS = np.random.default_rng(0).normal(0, 0.1, (8, 48_000)).astype(np.float32)


@pytest.mark.parametrize(("name", "feature", "precision", "tolerance"), [
    (TINY, "emission", "float32", 1e-3), (TINY, "emission", "bfloat16", 0.1),
    (CAMPPLUS, "block:2", "float32", 1e-3), (RESEMBLYZER, "", "float32", 1e-3),
])  # fmt: skip
def test_an_encoder_gives_the_frames_that_the_processor_gives(name, feature, precision, tolerance):
    encoder, told = load_encoder(name), []
    for device, arithmetic in (("cpu", "float32"), ("auto", precision)):
        choice = choose_engine(encoder, "torch", arithmetic, device)
        told.append(load_engine(encoder, feature, choice).run(WINDOWS))
    assert (choice.device, choice.precision) == ("cuda", precision)
    for name, values in told[0].items():
        assert np.abs(told[1][name] - values).max() < tolerance * np.abs(values).max()


def test_a_network_learns_the_same_there_and_a_killed_training_goes_on(tmp_path):
    task, found = make_task(frames=149, width=32), {}
    for name, epochs, compute in (("cpu", 4, PROCESSOR), ("cuda", 4, CUDA), ("resumed", 2, CUDA), ("resumed", 4, CUDA)):
        _, history, best = fit(tmp_path / name, task=task, epochs=epochs, compute=compute, every=False)
        model, _ = load_model(checkpoint_path(tmp_path / name, best))
        found[name] = history["validation_loss"].to_numpy(), predict_log_probabilities(model, task[0])
    np.testing.assert_allclose(found["cuda"][0], found["cpu"][0], atol=0.02)
    np.testing.assert_allclose(found["resumed"][0], found["cuda"][0], atol=2e-3)
    np.testing.assert_allclose(found["cuda"][1], found["cpu"][1], atol=0.05)


def test_the_encoder_is_distilled_there_as_on_the_processor(tmp_path, monkeypatch):
    make_views(tmp_path, monkeypatch, record=1)
    plan = distill.Recipe(steps=4, batch=8, shards=8)
    for compute in (PROCESSOR, CUDA):
        distill.distill(tmp_path, iter(range(8)), tmp_path / compute.device, plan, compute)
    distill.distill(tmp_path, iter(range(8)), tmp_path / "bfloat16", plan, choose_compute())
    histories = [pd.read_csv(tmp_path / name / "history.csv") for name in ("cpu", "cuda", "bfloat16")]
    np.testing.assert_allclose(histories[1]["total"], histories[0]["total"], rtol=5e-3)
    np.testing.assert_allclose(histories[2]["total"], histories[0]["total"], rtol=5e-2)
