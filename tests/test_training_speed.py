import numpy as np
import pandas as pd
import pytest

from lib.speed.training_bench import compare_losses, measure_memory, measure_speed


def test_every_form_is_measured_against_the_plain_loop():
    table = measure_speed(rounds=1, batch=4, width=0.05)
    assert table["form"].tolist() == ["plain loop", "fp32", "fp32, channels last", "bf16", "bf16, channels last"]
    assert table["ratio"].iloc[0] == 1
    assert (table["seconds"] > 0).all()


def test_loss_of_the_fast_form_follows_fp32():
    table = compare_losses(steps=12, batch=16, width=0.1)
    np.testing.assert_allclose(table["bf16, channels last"], table["fp32"], atol=0.02)


def test_memory_is_measured_on_a_store_that_training_streams_from_disk(tmp_path):
    found = measure_memory(tmp_path, 700, steps=3, width=0.05)
    assert found["windows"] == 700
    assert found["store_gb"] == pytest.approx(700 * 149 * 32 * 2 / 1e9, rel=0.05)
    assert len(list(tmp_path.glob("shard-*.safetensors"))) == 2
    assert found["peak_gb"] >= found["peak_after_writing_gb"] > 0
    assert len(pd.read_csv(tmp_path / "training" / "history.csv")) == 1
