import numpy as np

from lib.training_speed import compare_losses, measure_speed


def test_every_form_is_measured_against_the_plain_loop():
    table = measure_speed(rounds=1, batch=4, width=0.05)
    assert table["form"].tolist() == ["plain loop", "fp32", "fp32, channels last", "bf16", "bf16, channels last"]
    assert table["ratio"].iloc[0] == 1
    assert (table["seconds"] > 0).all()


def test_loss_of_the_fast_form_follows_fp32():
    table = compare_losses(steps=12, batch=16, width=0.1)
    np.testing.assert_allclose(table["bf16, channels last"], table["fp32"], atol=0.02)
