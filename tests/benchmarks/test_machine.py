"""What a measurement was made on."""

from benchmarks import machine


def test_a_later_reading_of_the_peak_is_never_lower(monkeypatch):
    readings = iter((10.0, 9.8, 12.0))
    monkeypatch.setattr(machine, "_highest", 0.0)
    monkeypatch.setattr(machine, "_read_peak_mib", lambda: next(readings))
    assert [machine.peak_mib() for _ in range(3)] == [10.0, 10.0, 12.0]


def test_the_peak_of_this_process_is_in_mebibytes():
    assert 10 < machine.peak_mib() < 1_000_000
