import numpy as np
import pytest

from lib.bootstrap import bootstrap_speakers, draw_sums, sum_by_speaker


def test_sums_are_taken_by_speaker():
    values = np.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(sum_by_speaker(values, ["a", "b", "a", "b"]), [[4, 6], [8, 10]])


def test_draws_hold_as_many_speakers_as_there_are_and_follow_the_seed():
    sums = np.stack([np.ones(7), np.arange(7)], axis=1)
    drawn = draw_sums(sums, 500, seed=3)
    np.testing.assert_array_equal(drawn[:, 0], 7)
    assert drawn[:, 1].mean() == pytest.approx(21, rel=0.03)
    np.testing.assert_array_equal(drawn, draw_sums(sums, 500, seed=3))
    assert not np.array_equal(drawn, draw_sums(sums, 500, seed=4))


def test_many_speakers_are_drawn_in_blocks_of_bounded_memory():
    sums = np.ones((300_000, 1))
    assert (draw_sums(sums, 40, seed=0) == 300_000).all()


def test_interval_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(0).normal(5, 2, (400, 1))
    statistic = lambda sums: {"mean": sums[..., 0] / 400}  # noqa: E731
    value, low, high = bootstrap_speakers(values, np.arange(400), statistic)["mean"]
    half = 1.96 * values.std() / 20
    assert (value, low, high) == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), abs=0.03)


def test_a_score_that_hardly_any_draw_has_gets_no_interval():
    def statistic(sums):  # only of draws that hold each of so many speakers
        return {f"of {k}": np.where((sums[..., :k] > 0).all(axis=-1), sums.sum(axis=-1), np.nan) for k in (3, 9)}

    found = bootstrap_speakers(np.eye(30), np.arange(30), statistic)
    assert found["of 3"] == (30, 30, 30)
    assert found["of 9"][0] == 30
    assert np.isnan(found["of 9"][1:]).all()


def test_no_draws_give_no_interval():
    value, low, high = bootstrap_speakers(np.ones((3, 1)), [1, 2, 3], lambda sums: {"sum": sums[..., 0]}, draws=0)[
        "sum"
    ]
    assert value == 3
    assert np.isnan([low, high]).all()
