"""Every interval from a bootstrap comes from the same number of samples, ``RESAMPLES``; read from the source.

A statistic that is added later is in the table by itself.
"""

import ast
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import trimtab
from trimtab.feedback.agreement import agreement_report, nominal_report
from trimtab.feedback.intervals import RESAMPLES, bootstrap_interval, paired_bootstrap_interval
from trimtab.records import Comparison, Judgement, Prompt

SOURCE = Path(trimtab.__file__).parent
TREES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
COUNTS = {"RESAMPLES", "resamples"}
LOOPS = ast.For | ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp


def names_in(node: ast.AST | None) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} if node is not None else set()


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
            yield node


def samplings() -> Iterator[tuple[str, ast.Call, ast.AST]]:
    """(file, draw with replacement, function it is in)."""
    for file, tree in TREES.items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                yield from ((file, call, function) for call in calls(function, "choices"))


def is_repeated(draw: ast.Call, function: ast.AST) -> bool:
    """True: a loop around the draw counts to RESAMPLES."""
    for loop in ast.walk(function):
        if isinstance(loop, LOOPS) and any(node is draw for node in ast.walk(loop)):
            over = [loop.iter] if isinstance(loop, ast.For) else [part.iter for part in loop.generators]
            if any("range" in names_in(source) and names_in(source) & COUNTS for source in over):
                return True
    return False


def test_every_draw_with_replacement_is_repeated_as_often():
    all_samplings = list(samplings())
    assert len({file for file, _, _ in all_samplings}) >= 3
    assert [(file, call.lineno) for file, call, function in all_samplings if not is_repeated(call, function)] == []


def test_callers_of_the_loop_over_samples_take_its_number_of_samples():
    own = [
        (file, node.lineno)
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "resampled"
        and any(k.arg == "resamples" and not names_in(k.value) & COUNTS for k in node.keywords)
    ]  # fmt: skip
    assert own == []


def test_whole_tables_of_draws_have_as_many_rows():
    """``rng.integers(0, n, (draws, n))``: all samples at once."""
    shapes = [(file, call.args[2]) for file, tree in TREES.items() for call in calls(tree, "integers") if call.args[2:]]
    tables = [(file, shape.elts[0]) for file, shape in shapes if isinstance(shape, ast.Tuple)]
    assert tables and [file for file, rows in tables if not names_in(rows) & COUNTS] == []


def takes_an_end(node: ast.AST) -> bool:
    """True: a 2.5 % end of sorted values, ``values[int(0.025 * n)]`` or ``np.quantile(values, [0.025, 0.975])``."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        parts: list[ast.AST] = [node.left, node.right]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "quantile":
        parts = list(ast.walk(node))
    else:
        return False
    return any(isinstance(part, ast.Constant) and part.value in (0.025, 0.975) for part in parts)


def test_the_ends_of_intervals_are_taken_from_as_many():
    """A file that takes an end of sorted values has the number in it."""
    with_ends = [file for file, tree in TREES.items() if any(map(takes_an_end, ast.walk(tree)))]
    assert len(with_ends) >= 5
    assert [file for file in with_ends if not names_in(TREES[file]) & COUNTS] == []


def test_no_function_has_another_number_and_none_is_given_one():
    others, named = [], 0
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                pairs = [
                    *zip(reversed([*given.posonlyargs, *given.args]), reversed(given.defaults), strict=False),
                    *zip(given.kwonlyargs, given.kw_defaults, strict=True),
                ]
                defaults = [default for name, default in pairs if name.arg == "resamples" and default is not None]
            elif isinstance(node, ast.Call):
                defaults = [keyword.value for keyword in node.keywords if keyword.arg == "resamples"]
            else:
                continue
            named += len(defaults)
            others += [(file, default.lineno) for default in defaults if not names_in(default) & COUNTS]
    assert named >= 8 and others == []
    assigned = [
        file
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "RESAMPLES" in {t.id for t in node.targets if isinstance(t, ast.Name)}
    ]
    assert assigned == ["feedback/intervals.py"]


def judged() -> tuple[list[Comparison], list[Judgement]]:
    items = [Comparison.of(Prompt.from_text(f"q{n}"), ["yes", "no"]) for n in range(6)]
    judgements = [
        Judgement(
            id=f"{item.id}/{name}", item=item.id, annotator=name, source="human", shown_order=(0, 1),
            ranks=(0, 1) if (n + k) % 3 else (1, 0),
        )
        for n, item in enumerate(items)
        for k, name in enumerate("ab")
    ]  # fmt: skip
    return items, judgements


@pytest.mark.parametrize(
    "statistic",
    [
        lambda: agreement_report(*judged()),
        lambda: nominal_report([(f"p{n}", {"a": n % 2, "b": n % 3 == 0}) for n in range(6)]),
        lambda: bootstrap_interval([1.0, 2.0, 4.0]),
        lambda: paired_bootstrap_interval([1.0, 2.0, 4.0], [0.0, 2.0, 1.0], ["a", "a", "b"]),
    ],
    ids=["agreement", "nominal", "mean", "difference"],
)
def test_it_is_drawn_so_often(statistic: Callable[[], Any], monkeypatch: pytest.MonkeyPatch):
    drawn, choices = [], random.Random.choices

    def counted(self: random.Random, *args: Any, **more: Any) -> Any:
        drawn.append(1)
        return choices(self, *args, **more)

    monkeypatch.setattr(random.Random, "choices", counted)
    statistic()
    assert len(drawn) == RESAMPLES
