"""A few spoken recordings to predict about: invented speakers in several formats, and bad files among them."""

import pytest


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """Folder with `labels.csv` and `recordings/`: eight invented speakers in five formats, and six bad files."""
    from lib.corpora.demo.render import render_unseen

    folder = tmp_path_factory.mktemp("spoken")
    render_unseen(folder, seed=3, count=8)
    return folder
