"""The owner's figures on a small project, counted by hand."""

import pytest

from trimtab.storage.form import Form
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
    shown = dashboard(world.store, world.people, {})
    assert (shown.progress.complete, shown.progress.done, shown.progress.needed) == (4, 12, 12)
    assert shown.progress.disputed == 1
    assert shown.per_day[-1][1] == 12 and shown.days_left == 0 and shown.seconds.value == 8.0
    # cem stands alone on one of the four items: 1 of 3 pairs of people agree there, 3 of 3 on the others
    assert shown.agreement["compare"]["raw_agreement"].value == pytest.approx(10 / 12)
    groups = {c.name: (c.annotators, c.judged, c.agreement.value) for c in shown.cohorts}
    assert groups["language=de, mostly"] == (3, 12, pytest.approx(10 / 12))
    assert groups["region=north"] == (2, 8, 1.0)
    assert len(groups) == 2 and shown.too_small == 1  # one person from the south is not shown as a group
    fast = {w.name: w.fast.value for w in shown.workers}
    assert [fast[n] for n in ("ann", "ben", "cem")] == [1.0, 0.0, 0.0]


def test_figures_follow_the_work(here: World, visit):
    """Small projects are counted anew at each visit, so an owner sees what was just judged."""
    here.configure(overlap=2, gold_every=0)
    here.pairs(1)
    owner, cache = visit("owner"), {}
    assert dashboard(here.store, here.people, cache).agreement["compare"]["raw_agreement"].value is None
    for name in ("ann", "ben"):
        me = here.join(name).id
        here.store.submit(me, judge(here.store.next(me), name))
    cache.update({name: (0.0, value) for name, (_, value) in cache.items()})  # the rest after counting is over
    assert dashboard(here.store, here.people, cache).agreement["compare"]["raw_agreement"].value == 1.0
    assert owner.get("/manage").status_code == 200


def test_thumbs_and_steps_are_measured_and_only_judgements_make_the_pace(here: World):
    """Counted by hand. Thumbs: three pairs of people, one agrees. Steps: one pair, which agrees."""
    here.configure(overlap=3, gold_every=0, fast_seconds=3.0)
    [thumb, steps, other] = here.add(
        {"prompt": "q1", "answers": ["a"], "kind": "thumbs"},
        {"prompt": "q2", "kind": "steps", "steps": ["s1", "s2"], "overlap": 2},
        {"prompt": "q3", "answers": ["a"], "kind": "thumbs", "overlap": 2},
    )
    for name, said in (("ann", True), ("ben", True), ("cem", False)):
        me = here.join(name).id
        item = here.store.next(me)
        while isinstance(item, Assignment):
            uid = item.task.id
            answer = {thumb: {"good": said}, steps: {"first_wrong": 1}, other: {"verdict": "skip"}}[uid]
            form = {"item": uid, "key": f"{name}-{uid}", "seconds": 2 if name == "ann" else 9, **answer}
            here.clock.now += 10
            _, item = here.store.submit(me, Form.model_validate(form))
    shown = dashboard(here.store, here.people, {})
    assert shown.per_day[-1][1] == 5  # three skips are no judgements
    assert shown.agreement["thumbs"]["raw_agreement"].value == pytest.approx(1 / 3)
    assert shown.agreement["steps"]["raw_agreement"].value == 1.0
    assert shown.agreement["steps"]["krippendorff_alpha"].reason  # one value throughout: undefined
    fast = {w.name: (w.fast.value, w.judged) for w in shown.workers}
    assert fast == {"ann": (1.0, 2), "ben": (0.0, 2), "cem": (0.0, 1)}
