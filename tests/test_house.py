import ast
from graphlib import TopologicalSorter

from lib import paths

# The rooms, and who may import each: the flat modules named, the notebooks, and the rooms named.
OPEN_TO = {
    "corpora": {"encoders", "hub", "tasks", "predict", "run", "trust", "tiny"},  # encoders: to fetch weights
    "report": {"run"},
    "speed": {"embed", "predict", "run"},
    "tiny": {"encoders", "embed", "trust"},
    "trust": {"model_folder", "predict", "report"},
}
FILES = {
    ".".join(path.relative_to(paths.ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in paths.ROOT.glob("lib/**/*.py")
}


def imports_of(path, everywhere):
    tree, names = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{one.name}" for one in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
    return names & (FILES.keys() - {"lib"})


def test_the_flat_level_is_the_chain_and_no_file_is_long():
    lines = {path: len(path.read_text().splitlines()) for path in FILES.values()}
    chain = [path for path in paths.ROOT.glob("lib/*.py") if path.stem != "__init__"]
    assert len(chain) <= 24
    assert sum(lines[path] for path in chain) <= 4_800
    assert sum(lines.values()) <= 10_000
    assert sum(len(path.read_text().splitlines()) for path in paths.ROOT.glob("tests/*.py")) <= 6_500
    assert {path.parent.name for path in paths.ROOT.glob("lib/*/__init__.py")} == OPEN_TO.keys()
    assert [path for path, count in lines.items() if count > 400] == []


def test_imports_have_no_cycle_and_rooms_are_entered_by_those_alone_who_may():
    order = TopologicalSorter({name: imports_of(path, everywhere=False) - {name} for name, path in FILES.items()})
    assert len(list(order.static_order())) >= len(FILES) - 2
    entered = set()
    for module, path in FILES.items():
        place = [*module.split("."), ""][1]  # the room, or the flat module itself
        for target in imports_of(path, everywhere=True):
            room = target.split(".")[1]
            if room in OPEN_TO and place not in {room, *OPEN_TO[room]}:
                entered.add(f"{module} imports {target}")
    assert entered == set()
