"""The owner's figures on a small project, counted by hand."""

import pytest

from trimtab.storage.labels import Assignment
from trimtab.web.dashboard import dashboard

from .kit import World, judge


def test_figures_and_groups(world: World):
    world.configure(overlap=3, gold_every=0, min_cell=2, fast_seconds=3.0)
    first, *_ = world.pairs(4)
    for name, region, seconds in (("ann", "north", 2.0), ("ben", "north", 8.0), ("cem", "south", 8.0)):
        me = world.join(name).id
        world.people.profile(me, language="en", cohort={"language": "de, mostly", "region": region})
        item = world.store.next(me)
        while isinstance(item, Assignment):
            world.clock.now += 10
            best = int(name == "cem" and item.task.id == first)
            form = judge(item, f"{name}-{item.task.id}", best=best, seconds=seconds)
            _, item = world.store.submit(me, form)
    found = dashboard(world.store, world.people, {})
    assert (found.progress.complete, found.progress.done, found.progress.needed) == (4, 12, 12)
    assert found.progress.disputed == 1
    assert found.per_day[-1][1] == 12 and found.days_left == 0 and found.seconds == 8.0
    # cem stands alone on one of the four items: 1 of 3 pairs of people agree there, 3 of 3 on the others
    assert found.agreement["raw_agreement"].value == pytest.approx(10 / 12)
    groups = {c.name: (c.annotators, c.judged, c.agreement.value) for c in found.cohorts}
    assert groups["language=de, mostly"] == (3, 12, pytest.approx(10 / 12))
    assert groups["region=north"] == (2, 8, 1.0)
    assert len(groups) == 2 and found.too_small == 1  # one person from the south is not shown as a group
    reports = {w.name: w.report for w in found.workers}
    assert [reports[n].fast for n in ("ann", "ben", "cem")] == [1.0, 0.0, 0.0]  # pyright: ignore


def test_figures_follow_the_work(here: World, visit):
    """Small projects are counted anew at each visit, so an owner sees what was just judged."""
    here.configure(overlap=2, gold_every=0)
    here.pairs(1)
    owner, cache = visit("owner"), {}
    assert dashboard(here.store, here.people, cache).agreement["raw_agreement"].value is None
    for name in ("ann", "ben"):
        me = here.join(name).id
        here.store.submit(me, judge(here.store.next(me), name))
    cache.update({name: (0.0, value) for name, (_, value) in cache.items()})  # the rest after counting is over
    assert dashboard(here.store, here.people, cache).agreement["raw_agreement"].value == 1.0
    assert owner.get("/manage").status_code == 200
