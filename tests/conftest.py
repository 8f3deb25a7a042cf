"""What several test files share: one small demo run, a few spoken recordings, and a report site of made-up numbers."""

import pytest
from chain_runner import demo, run_module
from report_fixture import make_site

from lib.corpora.demo.render import render_unseen


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="session")
def first(folders):
    return run_module(folders, *demo())


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """Folder with `labels.csv` and `recordings/`: eight invented speakers in five formats, and six bad files."""
    folder = tmp_path_factory.mktemp("spoken")
    render_unseen(folder, seed=3, count=8)
    return folder
