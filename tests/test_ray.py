import sys
import threading
import time

import numpy as np
import psutil
import pytest
from checks import refused

from lib import embed, encoders, store
from lib.speed.engines import EngineChoice
from lib.speed.ray import embed_on_ray, start_ray

IDS = [f"w{number}" for number in range(1300)]  # three blocks of windows of a fifth of a second


def kill_an_actor(killed):
    """Wait for one to appear, let it begin, then end it for good."""
    while not killed:
        time.sleep(0.05)
        killed += [one for one in psutil.Process().children(recursive=True) if "BlockMaker" in one.name()][:1]
    time.sleep(1)
    killed[0].kill()


def test_two_workers_of_which_one_is_killed_write_the_very_same_store(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -r requirements-ray.txt")
    encoder, options, killed = encoders.load_encoder(encoders.UNTRAINED), {"dtype": "float32", "copy": 1}, []
    np.save(tmp_path / "windows.npy", np.random.default_rng(0).integers(-3000, 3000, (len(IDS), 3200), np.int16))
    windows = np.load(tmp_path / "windows.npy", mmap_mode="r")
    embed.embed_windows(tmp_path / "here", windows, IDS, encoder, EngineChoice(), **options)
    killer = threading.Thread(target=kill_an_actor, args=(killed,), daemon=True)
    killer.start()
    ray = {"choice": EngineChoice(place="ray"), "workers": 2} | options
    assert embed_on_ray(tmp_path / "ray", windows, IDS, encoder, **ray) == 3
    assert len(killed) == 1
    here, there = store.Store(tmp_path / "here"), store.Store(tmp_path / "ray")
    assert here.rows.equals(there.rows)
    np.testing.assert_allclose(here.frames(IDS)[:], there.frames(IDS)[:], atol=1e-5, rtol=0)
    np.testing.assert_allclose(here.statistics(IDS)[:], there.statistics(IDS)[:], atol=1e-5, rtol=0)
    assert embed_on_ray(tmp_path / "ray", windows, IDS, encoder, **ray) == 0
    (tmp_path / "windows.npy").unlink()
    given = (tmp_path / "again", windows, IDS, encoder)
    refused(r"No such file .*windows\.npy", embed_on_ray, *given, error=Exception, **ray)  # whatever an actor raises
    assert not (tmp_path / "again" / "store.json").exists()


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    refused("needs Ray: pip install -r requirements-ray.txt, or set compute.engine", start_ray)
