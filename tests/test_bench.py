import numpy as np
import pytest
import torch
from test_windows import cut, make_clips

from lib.bench import measure_errors, paper_loop, probe_uar, repeat_work, run_all, run_bare, run_stage
from lib.embedding import Work
from lib.encoders import UNTRAINED, load_encoder
from lib.engines import load_engine


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    clips = make_clips(folder, [5.0, 3.0])
    return Work(cut(folder, clips)[0], clips, {"tones": folder})


def test_the_papers_loop_gives_one_emission_a_window(work):
    encoder = load_encoder(UNTRAINED)
    emissions = paper_loop(encoder, work)
    assert [emission.shape for emission in emissions] == [(149, 32)] * 3
    with torch.inference_mode():
        from lib.audio import read_waveform

        sound = read_waveform(work.roots["tones"] / "clip00.wav", 2.0, 5.0)
        assert np.array_equal(emissions[1], encoder.model(torch.from_numpy(sound)[None])[0][0].numpy())


def test_repeated_windows_have_ids_of_their_own_and_still_find_their_clips(work):
    windows, clips = repeat_work(work.windows, work.clips, 8)
    assert len(windows) == 9
    assert windows["window_id"].is_unique
    assert set(windows["clip_id"]) <= set(clips["clip_id"])
    run_stage(load_engine(load_encoder(UNTRAINED), "emission"), Work(windows, clips, work.roots))


def test_errors_are_measured_against_the_exact_values(work):
    engine = load_engine(load_encoder(UNTRAINED), "emission", batch=2)
    waveforms = np.random.default_rng(0).normal(0, 0.1, (3, 48_000)).astype(np.float32)
    exact = run_all(engine, waveforms)
    assert exact["frames"].shape == (3, 149, 32)
    run_bare(engine, waveforms)
    off = {name: values + 0.5 for name, values in exact.items()}
    found = measure_errors(off, exact)
    assert found["frames_max"] == pytest.approx(0.5, abs=1e-5)
    assert found["layers_rms"] == pytest.approx(0.5 / np.sqrt(np.mean(exact["layers"] ** 2)), rel=1e-4)


def test_a_probe_finds_what_is_there_and_nothing_where_nothing_is():
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(40), 5)
    target = speakers % 2 == 0
    vectors = rng.normal(0, 1, (200, 8))
    assert 0.3 < probe_uar(vectors, target, speakers) < 0.7
    assert probe_uar(vectors + 3 * target[:, None], target, speakers) > 0.95
