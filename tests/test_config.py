"""Run files: refused before any kernel starts when something in them is not what the notebooks declare."""

import nbformat
import pytest
import yaml

from lib import config, paths

RUNS = sorted(paths.PARAMS.glob("*.yaml"))


@pytest.fixture
def demo(tmp_path):
    """A copy of demo.yaml to spoil: edit(old, new) replaces text, and returns the path."""
    path = tmp_path / "demo.yaml"
    path.write_text((paths.PARAMS / "demo.yaml").read_text(encoding="utf-8"), encoding="utf-8")

    def edit(old, new):
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return path

    return edit


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_file_is_accepted(path):
    sections = config.load_run(path)
    for name in sections["run"]["notebooks"]:
        assert config.parameters_for(name, path.stem, sections)["run"] == path.stem


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_run_files_of_the_chain_have_the_same_keys_in_the_same_order(path):
    demo, other = (yaml.safe_load(one.read_text(encoding="utf-8")) for one in (paths.PARAMS / "demo.yaml", path))
    if config.notebooks_of(other) == config.NOTEBOOKS:
        assert {name: list(keys) for name, keys in other.items()} == {name: list(keys) for name, keys in demo.items()}


def test_parameters_of_the_demo_are_what_its_notebooks_declare():
    sections = config.load_run(paths.PARAMS / "demo.yaml")
    for name in config.NOTEBOOKS:
        declared = config.declared_parameters(paths.NOTEBOOKS / f"{name}.ipynb")
        defaults = {key: default for key, (_, default) in declared.items()}
        assert config.parameters_for(name, "demo", sections) == defaults, name


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("  epochs:", "  epoch:", "missing key train.epochs; unknown key train.epoch"),
        ("learning_rate: 0.001", "learning_rate: 1e-3", "train.learning_rate = '1e-3'.*write it as 0.001"),
        ("  batch: 50", "  batch: 50.5", "train.batch = 50.5"),
        ("synthetic: true", 'synthetic: "yes"', "run.synthetic = 'yes'"),
        ("\nsegment:", "\nsegments:", "unknown section 'segments'; missing section 'segment'"),
        ('tasks: ["gender", "age"]', "tasks: gender", "train.tasks = 'gender'"),
        ("  seed: 0", "  seed: 0\n  seed: 1", "key written twice: \\['seed'\\]"),
        ("seeds: [0]", "seeds: [0, one]", r"train.seeds.1 = 'one'"),
        ("train:", "train: none\nother:", "section 'train' must hold keys"),
    ],
)
def test_bad_run_file_is_refused_and_the_key_named(demo, old, new, told):
    with pytest.raises(ValueError, match=told):
        config.load_run(demo(old, new))


def test_missing_run_file_names_those_there_are():
    with pytest.raises(ValueError, match=r"no such run file; there are .*demo"):
        config.load_run(paths.PARAMS / "dmo.yaml")


def test_changes_from_the_command_line_are_typed_and_checked():
    path = paths.PARAMS / "demo.yaml"
    assert config.load_run(path, ["train.epochs=3", "download.root=/x y"])["train"]["epochs"] == 3
    assert config.load_run(path, ["download.root="])["download"]["root"] == ""
    with pytest.raises(ValueError, match=r"unknown key train\.speed"):
        config.load_run(path, ["train.speed=3"])
    with pytest.raises(ValueError, match=r"write section\.key=value"):
        config.load_run(path, ["epochs=3"])


@pytest.mark.parametrize("line", ["seed = 0", "seed: complex = 0", "seed: int = 1 + x", "import os"])
def test_parameters_cell_holds_typed_literals_only(tmp_path, line):
    cell = nbformat.v4.new_code_cell(line, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    with pytest.raises(ValueError):
        config.declared_parameters(tmp_path / "n.ipynb")


def test_a_notebook_without_its_parameters_cell_is_refused(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("a: int = 1")]), tmp_path / "n.ipynb")
    with pytest.raises(ValueError, match="0 cells tagged 'parameters'"):
        config.declared_parameters(tmp_path / "n.ipynb")
