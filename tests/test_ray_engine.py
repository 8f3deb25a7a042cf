import contextlib
import importlib.util
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_windows import cut, make_clips

from lib.embed import embed_windows
from lib.encoders import UNTRAINED, load_encoder
from lib.run import main
from lib.speed.engines import choose_engine
from lib.speed.ray import import_ray, ray_session
from lib.store import Store

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"
)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(UNTRAINED)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(windows, clips, roots): 60 windows of 12 noise clips."""
    folder = tmp_path_factory.mktemp("world")
    clips = make_clips(folder, [11.0] * 12)
    return cut(folder, clips)[0], clips, {"tones": folder}


def find_actors() -> list[psutil.Process]:
    """Processes of this one's Ray session that run our actor."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # a process that ended meanwhile
            if "ShardMaker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_one_worker(store: Path, killed: list[int]) -> None:
    """Wait for the first shards, then end one of the two actors for good."""
    for _ in range(4000):
        actors = find_actors() if len(list(store.glob("shard-*"))) >= 2 else []
        if len(actors) == 2:
            actors[0].kill()
            killed.append(actors[0].pid)
            return
        time.sleep(0.05)


@pytest.fixture(scope="module")
def session():
    """One Ray session for the whole file, two logical CPUs: starting one takes longer than the tests."""
    with ray_session() as (ray, _):
        yield ray


@needs_ray
def test_two_workers_of_which_one_is_killed_write_the_very_same_store(session, world, encoder, tmp_path):
    local = choose_engine(encoder)
    embed_windows(tmp_path / "here", *world, encoder, shard_windows=4, dtype="float32", choice=local)
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_worker, args=(tmp_path / "ray", killed))
    killer.start()
    choice = choose_engine(encoder, "ray")
    options = {"shard_windows": 4, "dtype": "float32", "choice": choice}
    assert embed_windows(tmp_path / "ray", *world, encoder, workers=2, **options) == 15
    killer.join()
    assert len(killed) == 1
    here, there = Store(tmp_path / "here", checksums=True), Store(tmp_path / "ray", checksums=True)
    assert here.index.equals(there.index)
    for name in here.description["tensors"]:
        ids = here.index["window_id"]
        one, other = here.features(name, ids).all(), there.features(name, ids).all()
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0, equal_nan=True)
    assert embed_windows(tmp_path / "ray", *world, encoder, workers=2, **options) == 0


@needs_ray
def test_a_failure_of_an_actor_reaches_the_caller_by_name(session, world, encoder, tmp_path):
    windows, clips, _ = world
    with pytest.raises(Exception, match=r"clip tones:clip00.wav was cut, but clip00.wav: no such file"):
        embed_windows(
            tmp_path / "ray",
            windows,
            clips,
            {"tones": tmp_path},
            encoder,
            choice=choose_engine(encoder, "ray"),
            workers=1,
        )
    assert not (tmp_path / "ray" / "store.json").exists()


def test_without_ray_the_message_says_what_to_install(world, encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ValueError, match=r"needs Ray: pip install -r requirements-ray.txt, or set compute.engine to local"
    ):
        import_ray()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    call = ["params/demo.yaml", "--set", "compute.engine=ray"]
    assert main(call) == 2  # before any notebook has begun
    assert "refused: the engine 'ray' needs Ray: pip install" in capsys.readouterr().err
    with pytest.raises(ValueError, match="needs Ray"):
        embed_windows(tmp_path / "ray", *world, encoder, choice=choose_engine(encoder, "ray"))
