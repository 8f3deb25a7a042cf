"""The house: a flat chain, rooms beside it, arrows that go one way, nothing hidden in a function."""

import ast
from graphlib import TopologicalSorter

from lib import paths

ROOMS = ["corpora", "report", "speed", "tiny", "trust"]
# Who may import a room: the flat modules named, the notebooks, and the rooms named.
OPEN_TO = {
    "corpora": {"encoders", "hub", "tasks", "predict", "run", "trust", "tiny"},  # encoders: to fetch weights
    "report": {"run"},
    "speed": {"embed", "predict", "run"},
    "tiny": {"encoders", "embed", "trust"},
    "trust": {"model_folder", "predict", "report"},
}


def modules():
    return {
        ".".join(path.relative_to(paths.ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths.ROOT.glob("lib/**/*.py")
    }


def imports_of(path, everywhere):
    """Modules of lib that a file imports, at its top or everywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lib":
            names |= {f"{node.module}.{one.name}" for one in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
    return names & (modules().keys() - {"lib"})


def place_of(module):
    """ "corpora" for a module of that room, else the flat module's own name."""
    parts = module.split(".")[1:]
    return parts[0] if parts else ""


def test_the_flat_level_is_the_chain_and_no_file_is_long():
    flat = [path for path in paths.ROOT.glob("lib/*.py") if path.stem != "__init__"]
    assert len(flat) <= 24
    assert sorted(path.name for path in paths.ROOT.glob("lib/*/__init__.py")) == ["__init__.py"] * len(ROOMS)
    long = {name: count for name, path in modules().items() if (count := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_imports_have_no_cycle():
    order = TopologicalSorter({name: imports_of(path, everywhere=False) - {name} for name, path in modules().items()})
    assert len(list(order.static_order())) >= len(modules()) - 2


def test_rooms_are_entered_by_those_alone_who_may():
    entered = set()
    for module, path in modules().items():
        for target in imports_of(path, everywhere=True):
            room, place = place_of(target), place_of(module)
            if room in ROOMS and place != room and place not in OPEN_TO[room]:
                entered.add(f"{module} imports {target}")
    assert entered == set()
