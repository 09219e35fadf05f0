"""The promises of the queue, on SQLite and PostgreSQL."""

import threading

import pytest
from sqlalchemy import text

from trimtab.errors import ConflictError, DataError
from trimtab.records.annotation import Check, Task
from trimtab.records.types import Prompt
from trimtab.storage.form import Form
from trimtab.storage.labels import Assignment
from trimtab.storage.project import ProjectConfig
from trimtab.storage.snapshot import take_snapshot

from .kit import World, judge


def test_overlap_is_reached_and_never_passed(world: World):
    world.configure(overlap=2, gold_every=0)
    world.pairs(3)
    people = [world.join(f"p{i}") for i in range(4)]
    held = [world.store.next(p.id) for p in people]
    first, second = (h.task.id for h in held[:2] if isinstance(h, Assignment))
    assert first == second  # two people on the first item, then it is closed
    assert sum(isinstance(h, Assignment) and h.task.id == first for h in held) == 2
    for turn in range(4):
        for p, item in zip(people, held, strict=True):
            if isinstance(item, Assignment):
                world.store.submit(p.id, judge(item, f"{turn}-{p.id}"))
        held = [world.store.next(p.id) for p in people]
    assert held == ["empty"] * 4
    progress = world.store.progress()
    assert (progress.items, progress.complete, progress.done, progress.needed) == (3, 3, 6, 6)


def test_many_at_once_never_pass_the_overlap(world: World):
    world.configure(overlap=2, gold_every=0)
    world.pairs(20)
    people = [world.join(f"p{i}") for i in range(6)]
    got: dict[int, list[str]] = {p.id: [] for p in people}

    def work(person: int) -> None:
        item = world.store.next(person)
        while isinstance(item, Assignment):
            got[person].append(item.task.id)
            _, item = world.store.submit(person, judge(item, f"{person}-{len(got[person])}"))

    threads = [threading.Thread(target=work, args=(p.id,)) for p in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(set(uids)) == len(uids) for uids in got.values())
    everything = [uid for uids in got.values() for uid in uids]
    assert sorted(everything) == sorted([t.id for _, t in world.store.tasks()] * 2)


def test_sending_again_changes_nothing(world: World):
    world.pairs(3)
    me = world.join("me").id
    form = judge(world.store.next(me), "1", seconds=4)
    first, after = world.store.submit(me, form)
    again, still = world.store.submit(me, form.model_copy(update={"seconds": 9.0}))
    assert (first, after.task.id) == (again, still.task.id)  # pyright: ignore
    assert world.store.progress().done == 1
    with pytest.raises(ConflictError, match="used for another form"):
        world.store.submit(me, form.model_copy(update={"comment": "other"}))


def test_a_change_names_the_version_it_replaces(world: World):
    world.pairs(2)
    me = world.join("me").id
    form = judge(world.store.next(me), "1", best=0)
    receipt, _ = world.store.submit(me, form)
    other = form.model_copy(update={"key": "test-key-2"})
    with pytest.raises(ConflictError, match=f"version {receipt.version}"):
        world.store.submit(me, other)
    change = world.store.reopen(me, receipt.version)
    again, _ = world.store.submit(me, judge(change, "3", best=1, version=receipt.version))
    assert again.version > receipt.version
    with pytest.raises(ConflictError):
        world.store.submit(me, judge(change, "4", best=0, version=receipt.version))
    assert [p.version for p in world.store.history(me)] == [again.version]
    assert world.store.progress().done == 1


def test_a_judgement_carries_the_guidelines_its_annotator_saw(world: World):
    world.pairs(2)
    me = world.join("me").id
    seen = world.store.set_guideline("Be kind.")
    item = world.store.next(me)
    newer = world.store.set_guideline("Be kind and brief.")
    _, other = world.store.submit(me, judge(item, "1", guideline=seen))
    assert isinstance(other, Assignment) and other.guideline == newer
    with pytest.raises(DataError, match="no such version"):
        world.store.submit(me, judge(other, "2", guideline="v9-none"))
    world.store.submit(me, judge(other, "2"))
    assert [s.guideline for _, s in world.store.submissions()] == [seen, newer]


def test_undo_gives_the_item_back_as_a_draft_and_keeps_the_event(world: World):
    world.configure(overlap=1, gold_every=0)
    world.pairs(2)
    me, other = world.join("me").id, world.join("other").id
    item = world.store.next(me)
    receipt, after = world.store.submit(me, judge(item, "1", best=1, comment="hm"))
    back = world.store.undo(me, receipt.version)
    assert back.task == item.task and back.draft["comment"] == "hm"  # pyright: ignore
    assert world.store.progress().done == 0
    assert world.store.next(other) == "empty"  # the slot is still held
    assert world.store.next(me).task == item.task  # pyright: ignore
    _, then = world.store.submit(me, judge(back, "2", best=0))
    assert then.task == after.task  # pyright: ignore
    with pytest.raises(ConflictError, match="not your last"):
        world.store.undo(me, receipt.version)
    with world.database.read() as c:
        assert c.execute(text("SELECT count(*) FROM events WHERE kind IN ('judgement', 'undo')")).scalar() == 3


def test_a_lease_that_runs_out_goes_to_somebody_else_and_a_late_form_is_kept(world: World):
    world.configure(overlap=1, gold_every=0, lease_minutes=10)
    world.pairs(1)
    slow, quick = world.join("slow").id, world.join("quick").id
    item = world.store.next(slow)
    assert world.store.next(quick) == "empty"
    world.clock.now += 601
    taken = world.store.next(quick)
    world.store.submit(quick, judge(taken, "q"))
    receipt, _ = world.store.submit(slow, judge(item, "s", comment="sorry"))
    assert receipt.state == "late"
    assert world.store.submit(slow, judge(item, "s", comment="sorry"))[0] == receipt
    assert world.store.progress().done == 1
    assert take_snapshot(world.store).excluded["late"] == 1


def test_a_late_form_counts_if_the_slot_is_still_free(world: World):
    world.configure(overlap=1, gold_every=0, lease_minutes=10)
    world.pairs(2)
    slow, quick = world.join("slow").id, world.join("quick").id
    item = world.store.next(slow)
    world.clock.now += 601
    world.store.next(quick)  # sweeps the lease; the other item comes first now
    receipt, _ = world.store.submit(slow, judge(item, "s"))
    assert receipt.state == "stored"


@pytest.mark.parametrize("jump", [-3 * 3600, 3 * 3600])
def test_a_clock_that_jumps_loses_nothing(world: World, jump: float):
    world.configure(overlap=1, gold_every=0, lease_minutes=60)
    world.pairs(3)
    one, two = world.join("one").id, world.join("two").id
    item, other = world.store.next(one), world.store.next(two)
    world.clock.now += jump
    assert world.store.next(one).task == item.task  # pyright: ignore
    world.store.submit(one, judge(item, "1", seconds=5))
    receipt, _ = world.store.submit(two, judge(other, "2", seconds=5))
    assert receipt.state == "stored"
    assert world.store.progress().done == 2
    assert all(s.seconds == 5 for _, s in world.store.submissions())


def test_an_abandoned_item_comes_back_behind_every_cursor(world: World):
    world.configure(overlap=1, gold_every=0, lease_minutes=10)
    world.pairs(3)
    gone, here = world.join("gone").id, world.join("here").id
    left = world.store.next(gone)
    seen = []
    item = world.store.next(here)
    for turn in range(2):
        seen.append(item.task.id)  # pyright: ignore
        _, item = world.store.submit(here, judge(item, str(turn)))
    assert item == "empty"
    world.clock.now += 601
    assert world.store.next(here).task == left.task  # pyright: ignore


def test_skips_free_the_slot_and_are_not_offered_again(world: World):
    world.configure(overlap=1, gold_every=0)
    [uid] = world.pairs(1)
    one, two = world.join("one").id, world.join("two").id
    world.store.next(one)
    _, after = world.store.submit(one, Form(item=uid, key="test-key-1", verdict="skip"))
    assert after == "empty"
    item = world.store.next(two)
    world.store.submit(two, judge(item, "2"))
    assert world.store.progress().complete == 1


def test_nobody_can_judge_what_was_not_given_to_them(world: World):
    [first, second, *_] = world.pairs(3)
    me = world.join("me").id
    world.store.next(me)
    form = Form.model_validate({"item": second, "key": "test-key-1", "answers": [{"ranks": [0, 1]}]})
    with pytest.raises(DataError, match="not given to you"):
        world.store.submit(me, form)
    with pytest.raises(DataError, match="no such item"):
        world.store.submit(me, form.model_copy(update={"item": "zz\x00"}))
    assert first


def test_priorities_and_pauses_of_batches(world: World):
    world.configure(overlap=1, gold_every=0)
    world.pairs(1)
    [urgent] = world.add({"prompt": "u", "answers": ["a", "b"], "batch": "urgent"})
    [asleep] = world.add({"prompt": "s", "answers": ["a", "b"], "batch": "asleep"})
    world.store.set_batch("urgent", priority=5, paused=False)
    world.store.set_batch("asleep", priority=9, paused=True)
    me = world.join("me").id
    seen = []
    item = world.store.next(me)
    while isinstance(item, Assignment):
        seen.append(item.task.id)
        _, item = world.store.submit(me, judge(item, str(len(seen))))
    assert seen[0] == urgent and asleep not in seen and len(seen) == 2


def test_a_new_overlap_reopens_items(world: World):
    world.configure(overlap=1, gold_every=0)
    world.pairs(2)
    one, two = world.join("one").id, world.join("two").id
    item = world.store.next(one)
    _, item = world.store.submit(one, judge(item, "1"))
    world.store.submit(one, judge(item, "2"))
    assert world.store.next(two) == "empty"
    world.configure(overlap=2, gold_every=0)
    item = world.store.next(two)
    _, item = world.store.submit(two, judge(item, "3"))
    world.store.submit(two, judge(item, "4"))
    assert world.store.progress().complete == 2


def test_qualification_decides_who_works(world: World):
    check = {"role": "qualification", "ranks": [0, 1]}
    world.add(*({"prompt": f"t{i}", "answers": ["good", "bad"], "check": check} for i in range(5)))
    world.pairs(1)
    for name, right, after in (("able", 4, "task"), ("unable", 3, "unqualified")):
        me = world.join(name).id
        item = world.store.next(me)
        for turn in range(5):
            _, item = world.store.submit(me, judge(item, f"{name}{turn}", best=int(turn >= right)))
        assert (item if isinstance(item, str) else "task") == after
    world.people.change(me, by=me, qualified=True)
    assert isinstance(world.store.next(me), Assignment)


def test_checks_come_at_their_turn_and_missed_attention_pauses(world: World):
    world.configure(overlap=1, gold_every=2, attention_misses=2)
    check = {"role": "attention", "ranks": [0, 1]}
    checks = world.add(*({"prompt": f"t{i}", "answers": ["good", "bad"], "check": check} for i in range(3)))
    world.pairs(10)
    me = world.join("me").id
    item, seen = world.store.next(me), []
    while isinstance(item, Assignment):
        seen.append(item.task.id in checks)
        _, item = world.store.submit(me, judge(item, str(len(seen)), best=1))
    assert seen == [False, True, False, True]
    assert item == "paused"
    assert world.store.progress().items == 10  # checks are not counted


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "answers": ["a", "a"]}, "two answers are the same"),
        ({"prompt": "q", "answers": ["a", "  "]}, "empty answer"),
        ({"prompt": " ", "answers": ["a", "b"]}, "empty prompt"),
        ({"prompt": "q", "answers": ["a"]}, "two or more answers"),
        ({"prompt": "q", "answers": [str(i) for i in range(9)]}, "too many answers: 9, the project allows 8"),
        ({"prompt": "q", "answers": ["a", "b" * 200_001]}, "too long: a text of 200001 characters"),
        ({"prompt": "q", "answers": ["a", "\ud800"]}, "surrogate"),
        ({"prompt": "q", "answers": ["a", "b"], "id": "\x00"}, "unusable id"),
        ({"prompt": "q", "answers": ["a", "b"], "colour": 1}, "colour: Extra inputs"),
        ({"prompt": "q", "answers": ["a", "b"], "check": {"role": "gold"}}, "needs ranks"),
        ({"prompt": "q", "kind": "steps", "steps": []}, "at least 1 item|steps are given|exactly one"),
        ("text", "an item is an object"),
        ({}, "prompt: Field required"),
    ],
)
def test_unusable_items_are_refused_one_by_one(world: World, row, reason):
    from trimtab.storage.tasks import parse_tasks

    good = {"prompt": "fine", "answers": ["a", "b"]}
    added, [refused, again] = world.store.add(parse_tasks([good, row, good]))
    assert added == 1 and refused.index == 1
    import re

    assert re.search(reason, refused.reason), refused.reason
    assert again.reason.startswith("duplicate")


def test_strange_but_valid_texts_survive(world: World):
    text_ = "\x00\x07\u202egnp.exe\u2066 \U0001f3f4 " + "x" * 100_000
    [uid] = world.add({"prompt": "q\x00", "answers": [text_, "b"]})
    assert world.store.task(uid).completions[0].text == text_
    me = world.join("me").id
    world.store.submit(me, judge(world.store.next(me), "1", comment="\x00\u202e"))
    assert world.store.submissions()[0][1].comment == "\x00\u202e"


def test_every_kind_of_task(world: World):
    world.configure(
        overlap=1,
        gold_every=0,
        rewrite=True,
        criteria=({"name": "overall"}, {"name": "helpful", "kind": "scale", "points": 5}),
    )
    three, thumb, steps = world.add(
        {"prompt": "q", "answers": ["a", "b", "c"]},
        {"prompt": "q", "answers": ["a"], "kind": "thumbs"},
        {"prompt": "q", "steps": ["1+1=2", "2+2=5"], "kind": "steps"},
    )
    me = world.join("me").id
    item = world.store.next(me)
    answers = [{"criterion": "overall", "ranks": [0, 1, 1]}, {"criterion": "helpful", "scores": [5, 1, 1]}]
    rewrite = {"of": 0, "text": "better"}
    good = {"item": three, "key": "test-key-1", "answers": answers, "rewrite": rewrite}
    for wrong, reason in (
        ({"answers": answers[:1]}, "needed for the criteria overall, helpful"),
        ({"answers": [{"ranks": [0, 2, 2]}, answers[1]]}, "without gaps"),
        ({"answers": [answers[0], {"criterion": "helpful", "scores": [6, 1, 1]}]}, "from 1 to 5"),
        ({"answers": [answers[0] | {"strength": 0.5}, answers[1]]}, "strength is for two"),
        ({"rewrite": {"of": 3, "text": "x"}}, "there are 3 answers"),
        ({"verdict": "skip"}, "carries no answer"),
        ({"verdict": "flag", "answers": [], "rewrite": None}, "needs a reason"),
        ({"good": True}, "takes no thumb"),
    ):
        with pytest.raises(DataError, match=reason):
            world.store.submit(me, Form.model_validate(good | wrong))
    assert isinstance(item, Assignment) and item.task.id == three
    _, item = world.store.submit(me, Form.model_validate(good))
    _, item = world.store.submit(me, Form.model_validate({"item": thumb, "key": "test-key-2", "good": False}))
    with pytest.raises(DataError, match="2 steps"):
        world.store.submit(me, Form.model_validate({"item": steps, "key": "test-key-3", "first_wrong": 2}))
    _, item = world.store.submit(me, Form.model_validate({"item": steps, "key": "test-key-4", "first_wrong": 1}))
    assert item == "empty"
    from trimtab.records.annotation import demonstration_of, judgements_of, rating_of, step_label_of

    tasks = {t.id: t for _, t in world.store.tasks()}
    latest = {s.task: s for _, s in world.store.submissions()}
    overall, helpful = judgements_of(tasks[three], latest[three])
    assert (overall.ranks, helpful.ranks, helpful.scores) == ((0, 1, 1), (0, 1, 1), (5.0, 1.0, 1.0))
    demonstration, rating, label = (
        demonstration_of(tasks[three], latest[three]),
        rating_of(tasks[thumb], latest[thumb]),
        step_label_of(tasks[steps], latest[steps]),
    )
    assert demonstration and demonstration.messages[-1].content == "better"
    assert rating and rating.good is False
    assert label and (label.first_wrong, label.steps) == (1, ("1+1=2", "2+2=5"))


def test_right_answers_must_fit_their_task():
    prompt = Prompt.from_text("q")
    with pytest.raises(ValueError, match="there are 2 steps"):
        Task.of(prompt, ["ab"], kind="steps", steps=("a", "b"), check=Check(role="gold", first_wrong=2))
    with pytest.raises(ValueError, match="needs good"):
        Task.of(prompt, ["a"], kind="thumbs", check=Check(role="gold"))


def test_who_changes_their_mind_keeps_their_place(world: World):
    world.configure(overlap=2, gold_every=0)
    [uid] = world.pairs(1)
    one, two = world.join("one"), world.join("two")
    world.store.submit(one.id, Form(item=world.store.next(one.id).task.id, key="test-key-0", verdict="skip"))  # pyright: ignore
    world.store.submit(two.id, judge(world.store.next(two.id), "1"))
    [past] = world.store.history(one.id)
    world.store.submit(one.id, judge(world.store.reopen(one.id, past.version), "2", version=past.version))
    [past] = world.store.history(two.id)
    world.store.submit(two.id, judge(world.store.reopen(two.id, past.version), "3", best=1, version=past.version))
    first = world.store.first_versions()
    assert first[uid, two.pseudonym] < first[uid, one.pseudonym]
    assert [s.annotator for _, s in world.store.submissions()] == [one.pseudonym, two.pseudonym]


def test_the_paused_and_the_unqualified_write_nothing(world: World):
    world.pairs(3)
    me = world.join("me").id
    form = judge(world.store.next(me), "1")
    receipt, item = world.store.submit(me, form)
    for change, reason in (({"state": "paused"}, "paused"), ({"state": "active", "qualified": False}, "not qualified")):
        world.people.change(me, by=me, **change)
        with pytest.raises(ConflictError, match=reason):
            world.store.submit(me, judge(item, "2"))
        with pytest.raises(ConflictError, match=reason):
            world.store.undo(me, receipt.version)
        assert world.store.submit(me, form)[0] == receipt  # what was stored is acknowledged again


def test_skipped_attention_items_are_missed_ones(world: World):
    world.configure(overlap=1, gold_every=1, attention_misses=2)
    check = {"role": "attention", "ranks": [0, 1]}
    world.add(*({"prompt": f"t{i}", "answers": ["good", "bad"], "check": check} for i in range(3)))
    me = world.join("me").id
    item = world.store.next(me)
    for turn, verdict in enumerate(("flag", "skip", "unsure")):
        assert isinstance(item, Assignment)
        form = {"item": item.task.id, "key": f"test-key-{turn}", "verdict": verdict, "reason": "broken"}
        _, item = world.store.submit(me, Form.model_validate(form))
    assert item == "paused"


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"min_cell": 1}, {"flag_reasons": ()}, {"flag_reasons": ("",)}, {"flag_reasons": ("x" * 201,)}):
        with pytest.raises(ValueError):
            ProjectConfig(**wrong)


def test_a_group_cannot_pass_for_another(here: World):
    me = here.join("me").id
    with pytest.raises(DataError, match="contains '='"):
        here.people.profile(me, language="en", cohort={"region": "north, language=de"})
    here.people.profile(me, language="en", cohort={"region": "north"})
    here.people.withdraw(1, by=me)
    with here.database.read() as c:
        kinds = c.execute(text("SELECT kind, body FROM events ORDER BY seq DESC LIMIT 2")).all()
    assert [row.kind for row in kinds] == ["withdrawn", "profile"] and "north" not in kinds[1].body
