"""The house rules, proved on the syntax trees: who imports whom, what an import may load, how long things may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "lvmmed_monai"
MODULES = sorted((REPOSITORY / PACKAGE).rglob("*.py"))

# A room imports from its own and from rooms of a smaller number.
ROOMS = {
    "": 0, "errors": 0, "log": 0, "files": 0, "options": 0, "results": 0, "_optional": 0,
    "data": 1, "dicom": 1, "graph_matching": 1,
    "ingest": 2, "phantom": 2, "losses": 2, "metrics": 2, "networks": 2, "transforms": 2,
    "methods": 3,
    "handlers": 4,
    "engines": 5, "report": 5, "label_app": 5,
    "cli": 6, "__main__": 6,
}  # fmt: skip

# Libraries that importing a room's modules may load; everything else is imported inside the function that needs it.
_ARRAYS = {"numpy", "scipy"}
_TENSORS = {*_ARRAYS, "torch", "monai", "einops"}
LIBRARIES = {
    "data": {*_ARRAYS, "nibabel"},
    "dicom": {*_ARRAYS, "pydicom"},
    "graph_matching": {*_ARRAYS, "torch"},
    "ingest": {*_ARRAYS, "pydicom", "nibabel", "PIL"},
    "phantom": {*_ARRAYS, "pydicom"},
    "losses": _TENSORS,
    "networks": _TENSORS,
    "transforms": {*_TENSORS, "nibabel"},
    "methods": _TENSORS,
    "metrics": _TENSORS,
    "handlers": {*_TENSORS, "ignite", "nibabel", "PIL", "rich"},
    "engines": {*_TENSORS, "ignite"},
    "report": {*_ARRAYS, "jinja2", "matplotlib"},
    "label_app": {*_TENSORS, "monailabel"},
    "cli": {"typer"},
}
# Modules that may load more than their room, by the end of their name.
EXTRA_LIBRARIES = {
    "data": {"_cache": {"torch", "monai"}, "_dataset": {"torch", "monai"}, "sampling": {"torch", "monai"}},
    "graph_matching": {"_kernels": {"numba"}},
}

LONGEST_MODULE = 400
LONGEST_FUNCTION = 50


def dotted_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, *, at_import_time: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements of a module; those inside functions and behind TYPE_CHECKING only if not ``at_import_time``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif at_import_time and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(node)
        ):
            continue
        else:
            yield from imports(node, at_import_time=at_import_time)


def imported_names(node: ast.Import | ast.ImportFrom, module: str, *, is_package: bool) -> list[str]:
    """Dotted names that a statement imports, relative ones resolved; ``from a import b`` gives ``a.b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        above = module.split(".")[: len(module.split(".")) - node.level + is_package]
        base = ".".join([*above, *([base] if base else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def room_problems(source: str, module: str, *, is_package: bool = False) -> list[str]:
    own = ROOMS.get(room_of(module))
    if own is None:
        return [f"{module}: room {room_of(module)!r} is not in the table"]
    problems = []
    for node in imports(ast.parse(source), at_import_time=False):
        for name in imported_names(node, module, is_package=is_package):
            if name.split(".")[0] != PACKAGE:
                continue
            # `from lvmmed_monai import __version__` names no room, but the package itself.
            room = room_of(name) if room_of(name) in ROOMS else ""
            if ROOMS[room] > own or (ROOMS[room] == own and room != room_of(module) and own not in (0, 6)):
                problems.append(f"{module}:{node.lineno} imports {name}: room {ROOMS[room]} from room {own}")
    return problems


def library_problems(source: str, module: str) -> list[str]:
    room = room_of(module)
    allowed = set(LIBRARIES.get(room, set()))
    for ending, more in EXTRA_LIBRARIES.get(room, {}).items():
        allowed |= more if module.endswith(ending) else set()
    problems = []
    for node in imports(ast.parse(source), at_import_time=True):
        for name in imported_names(node, module, is_package=False):
            library = name.split(".")[0]
            if (
                library != PACKAGE
                and library not in sys.stdlib_module_names
                and library not in allowed
                and not getattr(node, "level", 0)
            ):
                problems.append(f"{module}:{node.lineno} loads {library} on import; import it inside the function")
    return problems


def length_problems(source: str, module: str) -> list[str]:
    problems = []
    lines = source.count("\n")
    if lines > LONGEST_MODULE:
        problems.append(f"{module} has {lines} lines, at most {LONGEST_MODULE}; split it by topic")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]
            if length > LONGEST_FUNCTION:
                problems.append(
                    f"{module}:{node.lineno} {node.name} has {length} lines, at most {LONGEST_FUNCTION}; split it"
                )
    return problems


def habit_problems(source: str, module: str) -> list[str]:
    """Prints outside the commands, and errors that are swallowed."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            and room_of(module) != "cli"
        ):
            problems.append(f"{module}:{node.lineno} prints; use logging, only cli/ prints")
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            if node.type is None or (silent and ast.unparse(node.type) in ("Exception", "BaseException")):
                problems.append(f"{module}:{node.lineno} swallows every error; name the errors that are meant")
    return problems


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_module_keeps_the_rules(path: Path) -> None:
    source, module = path.read_text(encoding="utf-8"), dotted_name(path)
    problems = room_problems(source, module, is_package=path.name == "__init__.py")
    problems += library_problems(source, module) + length_problems(source, module) + habit_problems(source, module)
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name == "__init__.py" and path.parent.name != PACKAGE], ids=dotted_name
)
def test_room_names_its_public_things(path: Path) -> None:
    names = {target.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Assign)
             for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
    assert "__all__" in names


def test_bundles_hold_no_code() -> None:
    assert not [str(path) for path in (REPOSITORY / "bundles").rglob("*.py")]


def test_every_folder_of_the_package_is_a_room() -> None:
    folders = {
        path.name for path in (REPOSITORY / PACKAGE).iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }
    assert folders <= ROOMS.keys()


class TestTheCheckers:
    """They notice what they are there for."""

    @pytest.mark.parametrize(
        ("source", "module"),
        [
            ("from lvmmed_monai.cli import app", "lvmmed_monai.data.x"),
            ("def f():\n    import lvmmed_monai.engines.pretrainer", "lvmmed_monai.methods.x"),
            ("from ..ingest import pipeline", "lvmmed_monai.dicom.x"),
            ("from lvmmed_monai import ingest", "lvmmed_monai.dicom.x"),
            ("from lvmmed_monai.phantom import torso", "lvmmed_monai.ingest.x"),
            ("", "lvmmed_monai.attic.x"),
        ],
    )
    def test_a_door_that_is_not_there(self, source: str, module: str) -> None:
        assert room_problems(source, module)

    @pytest.mark.parametrize(
        ("source", "module"),
        [
            ("from . import geometry", "lvmmed_monai.dicom.x"),
            ("from lvmmed_monai import __version__", "lvmmed_monai.report.x"),
            ("from lvmmed_monai.errors import UserError", "lvmmed_monai.data.x"),
            ("from lvmmed_monai.report import build_report", "lvmmed_monai.cli.x"),
        ],
    )
    def test_a_door_that_is(self, source: str, module: str) -> None:
        assert not room_problems(source, module)

    def test_a_heavy_import(self) -> None:
        assert library_problems("import torch", "lvmmed_monai.dicom.x")
        assert library_problems("try:\n    import highdicom\nexcept ImportError:\n    raise", "lvmmed_monai.dicom.x")
        assert not library_problems("def f():\n    import torch", "lvmmed_monai.dicom.x")
        assert not library_problems("import torch", "lvmmed_monai.data.volume_cache")

    def test_a_long_function_and_a_long_module(self) -> None:
        body = "".join(f"    a{index} = 1\n" for index in range(51))
        assert length_problems(f"def f():\n{body}", "m")
        assert not length_problems(
            'def f():\n    """' + "words\n" * 60 + '    """\n' + body.replace("    a50 = 1\n", ""), "m"
        )
        assert length_problems("a = 1\n" * 401, "m")

    def test_prints_and_swallowed_errors(self) -> None:
        assert habit_problems("print(1)", "lvmmed_monai.data.x")
        assert not habit_problems("print(1)", "lvmmed_monai.cli.x")
        assert habit_problems("try:\n    f()\nexcept Exception:\n    pass", "lvmmed_monai.cli.x")
