"""The shipped fakes do what their documentation says; everything else in these tests uses them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.feedback import simulate
from trimtab.feedback.gold import friendly_utility
from trimtab.feedback.verifiers import arithmetic
from trimtab.records import Comparison, Prompt
from trimtab.rollout import Sampler
from trimtab.testing import FakeSampler, SimulationConfig, sentences, tiny_model, tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "test-your-code.md"


def test_a_fake_sampler_serves_where_a_sampler_is_expected():
    sampler: Sampler = FakeSampler(lambda prompt, index: f"{prompt.text} is {index + 3}" + "…" * index)
    prompts = [Prompt.from_text("1 + 2", reference="3"), Prompt.from_text("2 + 2", reference="4")]
    seen: list[tuple[int, int]] = []
    rollouts = sampler.generate(
        prompts, adapter=None, seed=0, group=2, weight_version=7, progress=lambda *a: seen.append(a)
    )
    assert arithmetic(rollouts) == [1.0, 0.0, 0.0, 1.0]
    assert [r.finish_reason for r in rollouts] == ["stop", "length"] * 2
    assert [r.id for r in rollouts] == [f"{p.id}/7/{i}" for p in prompts for i in range(2)] and seen == [(2, 4), (4, 4)]
    assert all(len(r.tokens) == len(r.logprobs) == len(r.text.encode()) for r in rollouts)
    assert isinstance(sampler, FakeSampler) and sampler.requests == [prompts]


def test_the_toys_are_the_same_on_every_call():
    assert len(set(sentences(200))) == 200 and sentences(3, start=1) == sentences(4)[1:]
    one, two = tiny_model(seed=3), tiny_model(seed=3)
    assert all((a == b).all() for a, b in zip(one.parameters(), two.parameters(), strict=True))
    text = sentences(1)[0]
    assert tokenizer().decode(tokenizer().encode(text)) == text


def test_simulated_annotators_follow_the_utility_they_are_given():
    items = [
        Comparison.of(Prompt.from_text(f"Q{n}?"), ["No.", "Thank you, that is a good question!"]) for n in range(50)
    ]
    judged = simulate(items, friendly_utility, SimulationConfig(annotators=2, overlap=1, noise=0.0))
    preferred = [j.shown_order[j.ranks.index(0)] for j in judged if j.ranks]
    assert sum(preferred) / len(preferred) > 0.9


def test_fakes_of_endpoints_and_samplers_need_no_torch():
    code = "import sys, trimtab.testing; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(4))
def test_examples_of_the_page_run(number, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"tmp_path": tmp_path}
    exec(compile(blocks[number], str(PAGE), "exec"), scope)
    tests = [f for name, f in scope.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test(*([tmp_path] if test.__code__.co_argcount else []))  # pyright: ignore
