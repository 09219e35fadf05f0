"""Items that people disagree on, pass on or cannot finish, on SQLite and PostgreSQL."""

import pytest
from sqlalchemy import text

from trimtab.errors import ConflictError
from trimtab.storage.form import Form
from trimtab.storage.labels import Assignment

from .kit import World, judge


def test_disagreement_goes_to_an_adjudicator(world: World):
    world.configure(overlap=2, gold_every=0)
    [uid] = world.pairs(1)
    one, two, boss = world.join("1").id, world.join("2").id, world.join("3", "adjudicator").id
    world.store.submit(one, judge(world.store.next(one), "1", best=0))
    world.store.submit(two, judge(world.store.next(two), "2", best=1))
    [(task, said)] = world.store.disputed()
    assert task.id == uid and len(said) == 2
    item, _ = world.store.dispute(uid, boss)
    with pytest.raises(ConflictError, match="yourself"):
        world.store.adjudicate(one, judge(item, "3"))
    form = judge(item, "4", best=1, reason="values")
    receipt = world.store.adjudicate(boss, form)
    assert world.store.adjudicate(boss, form) == receipt
    assert world.store.disputed() == []
    with pytest.raises(ConflictError, match="settled"):
        world.store.adjudicate(world.join("4", "adjudicator").id, judge(item, "5"))


def test_agreeing_people_need_no_adjudicator_and_changing_ones_mind_updates_the_queue(world: World):
    world.configure(overlap=2, gold_every=0)
    world.pairs(1)
    one, two = world.join("1").id, world.join("2").id
    world.store.submit(one, judge(world.store.next(one), "1", best=0))
    receipt, _ = world.store.submit(two, judge(world.store.next(two), "2", best=0))
    assert world.store.progress().disputed == 0
    receipt, _ = world.store.submit(
        two, judge(world.store.reopen(two, receipt.version), "3", best=1, version=receipt.version)
    )
    assert world.store.progress().disputed == 1
    world.store.submit(two, judge(world.store.reopen(two, receipt.version), "4", best=0, version=receipt.version))
    assert world.store.progress().disputed == 0


def test_an_undo_after_the_item_was_retired_stops_nobody(world: World):
    world.configure(overlap=1, gold_every=0, lease_minutes=10)
    [uid, *_] = world.pairs(3)
    one, two, boss = world.join("1").id, world.join("2").id, world.join("3", "adjudicator").id
    world.store.next(one)
    receipt, _ = world.store.submit(one, Form(item=uid, key="test-key-1", verdict="flag", reason="broken"))
    world.store.retire(uid, person=boss)
    world.store.undo(one, receipt.version)
    world.clock.now += 601
    assert isinstance(world.store.next(two), Assignment)  # sweeps the leases that ran out
    assert world.store.progress().flagged == 0


def test_who_settles_an_item_they_held_gets_the_next_one(world: World):
    world.configure(overlap=2, gold_every=0)
    [uid, other] = world.pairs(2)
    one, boss = world.join("1").id, world.join("2", "adjudicator").id
    world.store.next(one)
    world.store.submit(one, Form(item=uid, key="test-key-1", verdict="flag", reason="broken"))
    assert world.store.next(boss).task.id == other  # pyright: ignore
    _, item = world.store.submit(boss, judge(world.store.next(boss), "2"))
    assert item.task.id == uid  # pyright: ignore
    settled = judge(world.store.dispute(uid, boss)[0], "3")
    world.store.adjudicate(boss, settled)
    assert world.store.next(boss) == "empty"
    progress = world.store.progress()
    assert (progress.complete, progress.flagged, progress.done, progress.needed) == (
        1,
        0,
        1,
        2,
    )  # nobody else is asked about it


def test_flags_are_counted_since_the_adjudicators_word(world: World):
    world.configure(overlap=2, gold_every=0)
    [uid] = world.pairs(1)
    one, boss = world.join("1").id, world.join("2", "adjudicator").id
    world.store.next(one)
    receipt, _ = world.store.submit(one, Form(item=uid, key="test-key-1", verdict="flag", reason="broken"))
    world.store.adjudicate(boss, judge(world.store.dispute(uid, boss)[0], "2"))
    world.store.undo(one, receipt.version)
    with world.database.read() as c:
        assert c.execute(text("SELECT flags FROM items")).scalar() == 0


def test_a_lower_overlap_shows_the_disputes_it_makes(world: World):
    world.configure(overlap=3, gold_every=0)
    world.pairs(1)
    for name, best in (("1", 0), ("2", 1)):
        me = world.join(name).id
        world.store.submit(me, judge(world.store.next(me), name, best=best))
    assert (world.store.progress().complete, world.store.progress().disputed) == (0, 0)
    world.configure(overlap=2, gold_every=0)
    assert (world.store.progress().complete, world.store.progress().disputed) == (1, 1)
    world.configure(overlap=3, gold_every=0)
    assert (world.store.progress().complete, world.store.progress().disputed) == (0, 0)


def test_an_items_own_overlap_stays_and_positions_do_not_grow(world: World):
    world.configure(overlap=1, gold_every=0)
    world.pairs(2)
    [own] = world.add({"prompt": "own", "answers": ["a", "b"], "overlap": 1})
    me = world.join("me").id
    item, turn = world.store.next(me), 0
    while isinstance(item, Assignment):
        turn += 1
        _, item = world.store.submit(me, judge(item, str(turn)))
    for overlap in (2, 3, 4, 5):
        world.configure(overlap=overlap, gold_every=0)
    with world.database.read() as c:
        items = c.execute(text("SELECT uid, overlap, position FROM items")).all()
    assert {row.overlap for row in items if row.uid != own} == {5}
    assert [row.overlap for row in items if row.uid == own] == [1]
    assert max(row.position for row in items) == 5  # 3, and the two that were opened again once


def test_more_people_for_some_items(world: World):
    """Routing between judge and people asks a second person where the first two words contradict each other."""
    world.configure(overlap=1, gold_every=0)
    [uid, rest, *_] = world.pairs(3)
    one, two = world.join("1").id, world.join("2").id
    item, turn = world.store.next(one), 0
    while isinstance(item, Assignment):
        turn += 1
        _, item = world.store.submit(one, judge(item, str(turn)))
    assert world.store.next(two) == "empty"
    assert world.store.raise_overlap([uid, "unknown"], 2) == 1
    assert world.store.raise_overlap([uid], 2) == 0
    assert world.store.judgement_counts([uid]) == (1, 2) and world.store.judgement_counts([rest]) == (1, 1)
    item = world.store.next(two)
    assert isinstance(item, Assignment) and item.task.id == uid
    assert world.store.submit(two, judge(item, "two", best=1))[1] == "empty"
    assert world.store.progress().disputed == 1
    world.configure(overlap=3, gold_every=0)
    assert world.store.judgement_counts([uid]) == (2, 2)  # it has an overlap of its own now


def test_what_everybody_passes_on_goes_to_an_adjudicator(world: World):
    world.configure(overlap=1, gold_every=0)
    [uid, other] = world.pairs(2)
    boss = world.join("boss", "adjudicator").id
    for name in ("1", "2"):
        me = world.join(name).id
        assert world.store.next(me).task.id == uid  # pyright: ignore
        assert world.store.exhausted() == []
        world.store.submit(me, Form(item=uid, key=f"test-key-{name}", verdict="skip"))
    [(task, said)] = world.store.exhausted()
    assert (task.id, [s.verdict for s in said]) == (uid, ["skip", "skip"])
    world.store.adjudicate(boss, judge(world.store.dispute(uid, boss)[0], "3"))
    assert world.store.exhausted() == []
    assert world.store.judgement_counts([uid]) == (0, 0) and world.store.judgement_counts([other]) == (0, 1)


def test_what_needs_more_people_than_there_are_goes_to_an_adjudicator(world: World):
    world.configure(overlap=2, gold_every=0)
    [uid] = world.pairs(1)
    boss, me = world.join("boss", "adjudicator").id, world.join("me").id
    assert world.store.submit(me, judge(world.store.next(me), "1"))[1] == "empty"
    assert [task.id for task, _ in world.store.exhausted()] == [uid] and world.store.disputed() == []
    other = world.join("other").id
    assert world.store.exhausted() == []
    world.people.change(other, by=boss, state="paused")
    world.store.adjudicate(boss, judge(world.store.dispute(uid, boss)[0], "2"))
    assert world.store.exhausted() == [] and world.store.judgement_counts([uid]) == (1, 1)
