"""The top-level names: each resolves, none is imported before it is used, type checkers and docs know the same list."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trimtab

SOURCE = Path(trimtab.__file__).read_text()


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_name_resolves_to_what_its_home_exports():
    assert trimtab.__all__ == sorted(trimtab.__all__) and 25 <= len(trimtab.__all__) <= 40
    for name in trimtab.__all__:
        value = getattr(trimtab, name)
        assert name == "__version__" or value.__name__ == name
        assert name in dir(trimtab)
    with pytest.raises(AttributeError, match="no attribute 'train_sftt'"):
        trimtab.train_sftt  # noqa: B018


def test_type_checkers_and_the_docstring_know_the_same_names():
    [block] = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.If)]
    typed = {name.name for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    listed = set(re.findall(r":(?:class|func):`(\w+)`", trimtab.__doc__ or ""))
    assert typed == listed == set(trimtab.__all__) - {"__version__"} == set(trimtab._HOME)


def test_import_loads_nothing_that_is_not_used():
    loaded = fresh("import trimtab, sys; dir(trimtab); print(*(m.split('.')[0] for m in sys.modules))").split()
    assert not {"torch", "transformers", "pydantic", "typer", "numpy", "httpx"} & set(loaded)
    loaded = fresh("import trimtab, sys; trimtab.Prompt.from_text('hi'); print(*sys.modules)").split()
    assert "pydantic" in loaded and "torch" not in loaded


def test_python_dash_m_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "trimtab", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, trimtab.__version__)
