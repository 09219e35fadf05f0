"""The comparison with and without the parts of ``trimtab.fast_cpu``."""

import pytest

from benchmarks.fast_parts import PARTS, rows, without
from trimtab import fast_cpu
from trimtab.fast_cpu import allocation
from trimtab.models.kernels import Kernels, kernels, use_kernels
from trimtab.testing import tiny_model


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a switched-off part replaces is put back."""
    names = "keep_freed_memory release_freed_memory use_lora_linear gradients_in_one_block packed can_decode install"
    for name in names.split():
        monkeypatch.setattr(fast_cpu, name, getattr(fast_cpu, name))
    monkeypatch.setattr(allocation, "keep_freed_memory", allocation.keep_freed_memory)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("part", ["none", *PARTS, "all"])
def test_one_part_is_switched_off(part: str):
    """A part that was renamed in the package would otherwise be measured as if it bought nothing."""
    before = {name: value for name, value in vars(fast_cpu).items() if callable(value)}
    without(part)()
    changed = {name for name, value in before.items() if getattr(fast_cpu, name) is not value}
    assert bool(changed) is (part != "none")
    assert changed <= set(before)
    if part == "all":
        installed = kernels()
        use_kernels(Kernels())
        fast_cpu.install()
        assert type(kernels()) is Kernels
        use_kernels(installed)
    if part == "gradients":
        with fast_cpu.gradients_in_one_block(tiny_model()):
            pass


def test_the_table_gives_factors_and_memory():
    cells = {part: [{"seconds": 2.0, "peak_mib": 900.0}] for part in PARTS}
    slow = [{"seconds": 3.0, "peak_mib": 1000.0}, {"seconds": 5.0, "peak_mib": 1200.0}]
    results = {"sft 8, lora": {"none": [{"seconds": 2.0, "peak_mib": 800.0}], **cells, "all": slow}}
    assert rows(results)[-1] == (
        "| sft 8, lora | 2 s, 800 MiB | " + " | ".join(["× 1.00, +100 MiB"] * len(PARTS)) + " | × 2.00, +300 MiB |"
    )
