"""Who may import whom, read from the source: nothing is imported to find out."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"keys", "backend", "cuda"},
    {"kernels", "errors", "home", "web"},
    {"store", "names", "fetch"},
    {"blocks", "results"},
    {"models", "datasets", "probes"},
    {"extraction", "analysis", "transfer"},
    {"sweep", "plan", "reporting"},
    {"finetuning", "comparison"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted((ROOT / "featstore").rglob("*.py"))
# dask, cupy, zarr and numcodecs each have one door; so has xarray below analysis.
DOORS = {
    "dask": {"blocks"},
    "distributed": {"blocks"},
    "cupy": {"backend", "cuda"},
    "zarr": {"store"},
    "numcodecs": {"store"},
    "xarray": {"results", "analysis", "reporting"},
    "typer": {"cli"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "featstore").with_suffix("").parts
    return parts[0]


def imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.module == "featstore":  # `from featstore import store`
            return [f"featstore.{alias.name}" for alias in node.names]
        return [node.module or ""]
    return []


def nodes_outside_functions(tree: ast.AST):
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from nodes_outside_functions(child)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_layers_above_it(path):
    home = module_of(path)
    if home == "__init__":  # lazy: its imports are for type checkers alone
        return
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imports(node):
            if not name.startswith("featstore.") or name == "featstore.__version__":
                continue
            other = name.split(".")[1]
            assert other == home or LEVEL[other] < LEVEL[home], f"{path}: imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_import_of_ours_inside_a_function(path):
    if module_of(path) in ("cli", "__init__"):
        return
    tree = ast.parse(path.read_text())
    outside = set(map(id, nodes_outside_functions(tree)))
    for node in ast.walk(tree):
        inner = [n for n in imports(node) if n.startswith("featstore") and id(node) not in outside]
        assert not inner, f"{path}:{node.lineno} imports {inner}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_dependency_has_one_door(path):
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imports(node):
            doors = DOORS.get(name.split(".")[0])
            assert doors is None or module_of(path) in doors, f"{path}: imports {name}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipelines").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_studies_use_public_names_only(path):
    public = set(ast.literal_eval(_all_of(ROOT / "featstore" / "__init__.py")))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("featstore"):
            assert node.module == "featstore", f"{path}: imports from {node.module}"
            assert {alias.name for alias in node.names} <= public
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("featstore.") for alias in node.names)


def _all_of(path: Path) -> ast.expr:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return node.value
    raise AssertionError("no __all__")


def test_every_module_stands_in_the_layers():
    assert {module_of(path) for path in FILES} - {"__init__"} == set(LEVEL)
