import sys

import pytest

from trimtab.errors import ConfigError
from trimtab.feedback import load_callable
from trimtab.feedback.callables import source_digests


def test_a_dotted_path_gives_the_function():
    import json

    assert load_callable("json.dumps") is json.dumps


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("dumps", "'package.module.function'"),
        (".dumps", "'package.module.function'"),
        ("json.", "'package.module.function'"),
        ("no_such_package.f", "'no_such_package' cannot be imported"),
        ("json..dumps", "cannot be imported"),
        ("json.loadss", "did you mean 'loads'"),
        ("json.zzzzzz", "functions there: .*dumps"),
        ("json.__name__", "is a str, not a function"),
    ],
)
def test_a_wrong_path_says_what_is_wrong(path, says):
    with pytest.raises(ConfigError, match=says):
        load_callable(path)


def test_a_module_that_fails_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text("def f(): ...\n\n\n1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"'halfway' cannot be imported \(ZeroDivisionError"):
        load_callable("halfway.f")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A local package whose function goes through several modules."""
    files = {
        "mine/__init__.py": "from .rewards import score\n",
        "mine/rewards.py": "import json\nfrom . import words\nfrom helpers import count\n\ndef score(rollouts): ...\n",
        "mine/words.py": "def f():\n    import mine.deep.late\n    importlib.import_module('.called', __package__)\n",
        "mine/called.py": "from bare.inner import X\n\ndef later():\n    __import__('plugins').f(str(1), 'unused')\n",
        "bare/inner.py": "X = 1\n",
        "plugins.py": "from importlib import import_module\n\nimport_module(NAME)\n",
        "mine/deep/__init__.py": "",
        "mine/deep/late.py": "WORDS = 1\n",
        "mine/unused.py": "",
        "helpers.py": "import torch\nfrom trimtab.feedback import gold\n\ncount = len\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] in ("mine", "helpers", "bare", "plugins")]:
        del sys.modules[name]


USED = [
    *("bare.inner", "helpers", "mine", "mine.called", "mine.deep", "mine.deep.late", "mine.rewards", "mine.words"),
    "plugins",
]


@pytest.mark.parametrize("path", ["mine.score", "mine.rewards.score"])
def test_the_source_of_a_function_is_all_local_code_behind_it(package, path):
    assert list(source_digests(path)) == USED
    load_callable(path)
    assert list(source_digests(path)) == USED


@pytest.mark.parametrize("name", [*USED, "mine.unused"])
def test_a_change_in_any_module_behind_a_function_is_seen(package, name):
    before = source_digests("mine.rewards.score")
    file = package / f"{name.replace('.', '/')}.py"
    file = file if file.exists() else package / name.replace(".", "/") / "__init__.py"
    file.write_text(file.read_text() + "# changed\n")
    assert (source_digests("mine.rewards.score") != before) == (name in USED)


def test_the_source_of_shipped_and_installed_functions():
    assert list(source_digests("trimtab.feedback.gold.friendly_utility")) == ["trimtab.feedback.gold"]
    assert list(source_digests("json.dumps")) == ["json"]
    assert source_digests("math.sqrt") in ({}, source_digests("math.pi"))  # compiled into Python or not
