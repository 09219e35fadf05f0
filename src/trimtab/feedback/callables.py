"""Functions named in a recipe by dotted path, such as ``trimtab.feedback.gold.friendly_utility``."""

import ast
import difflib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError
from trimtab.files import sha256_file
from trimtab.records import Completion, Prompt

Utility = Callable[[Prompt, Completion], float]
"""How good an answer is, in utility units. Larger is better; only differences matter, not the zero."""


def load_callable(path: str) -> Callable[..., Any]:
    """Import ``package.module.name`` and return what it names.

    Raises:
        ConfigError: the path has no dot, the module cannot be imported, the name is not in it
            or is not callable. The message says which.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or not name:
        raise ConfigError(f"{path!r} is not a dotted path; write it as 'package.module.function'")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever importing the module raises
        raise ConfigError(
            f"{path!r}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}); "
            "check the spelling and that it is installed or on PYTHONPATH"
        ) from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_") and callable(getattr(module, n))]
        close_matches = difflib.get_close_matches(name, public, n=1, cutoff=0.5)
        hint = (
            f"did you mean {close_matches[0]!r}?"
            if close_matches
            else f"functions there: {', '.join(sorted(public)) or 'none'}"
        )
        raise ConfigError(f"{path!r}: {module_name!r} has no {name!r}; {hint}")
    target = getattr(module, name)
    if not callable(target):
        raise ConfigError(f"{path!r} is a {type(target).__name__}, not a function; name something that can be called")
    return target


def source_digests(path: str) -> dict[str, str]:
    """SHA-256 of the code behind a dotted path, by module: equal digests, equal function.

    It covers the named module, the packages that contain it, and the local modules that these import, directly or
    indirectly, by statement or by :func:`importlib.import_module` with a literal name. The standard library, installed
    packages and other modules of trimtab are left out. Modules imported by a computed name, and files that the code
    reads, are not detected.
    """
    module = path.rpartition(".")[0]
    digests: dict[str, str] = {}
    pending = [module, *_packages_of(module)]
    while pending:
        name = pending.pop()
        file = None if name in digests else _source(name, is_named=name == module)
        if file is not None:
            digests[name] = sha256_file(file)
            pending += _imports(name, file)
    return dict(sorted(digests.items()))


def _packages_of(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _source(name: str, *, is_named: bool) -> Path | None:
    """The file of a module; None: there is none, or the module is neither local nor the named one."""
    top_level = name.partition(".")[0]
    if not is_named and (top_level in sys.stdlib_module_names or top_level == __name__.partition(".")[0]):
        return None
    try:
        if not is_named and "." in name and not _is_local(top_level):
            return None
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError, TypeError):
        return None
    file = None if spec is None or not spec.has_location or spec.origin is None else Path(spec.origin)
    if file is None or not file.is_file():
        return None
    return file if is_named or _is_user_code(file) else None


def _is_local(top_level: str) -> bool:
    """True: a top-level module or package is not an installed one."""
    spec = importlib.util.find_spec(top_level)
    if spec is None:
        return False
    locations = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    return any(_is_user_code(Path(location)) for location in locations)


def _is_user_code(file: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return not installed and not file.is_relative_to(sysconfig.get_path("stdlib"))


def _imports(name: str, file: Path) -> Iterator[str]:
    """Names of modules that a source file may import anywhere in it, and of the packages that contain them."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # compiled, or not Python source
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                continue
            modules = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            modules = _imported_by_call(node, package)
        for module in modules:
            yield from (module, *_packages_of(module))


def _imported_by_call(call: ast.Call, package: str) -> list[str]:
    """The module that ``importlib.import_module("name")`` or ``__import__("name")`` imports."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    match call.args:
        case [ast.Constant(value=str() as name), *_] if function in ("import_module", "__import__"):
            try:
                return [importlib.util.resolve_name(name, package)]
            except ImportError:
                return []
        case _:
            return []
