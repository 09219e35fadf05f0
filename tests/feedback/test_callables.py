import pytest

from trimtab.errors import ConfigError
from trimtab.feedback import load_callable


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
