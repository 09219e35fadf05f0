import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from trimtab.errors import DataError, StorageError
from trimtab.evals import (
    PANELS,
    Answer,
    Example,
    Reading,
    ReportData,
    Series,
    WinRateRow,
    choose_examples,
    gain_parts,
    reward_against_kl,
    series_from_metrics,
    write_report,
)
from trimtab.evals.report import duration, further_verdicts, headline, render
from trimtab.feedback import Estimate
from trimtab.feedback.populations import CohortResult, Population

from .toy import examples, metrics, toy_report

VOID = {"meta", "br", "hr", "img", "link", "input"}
PAYLOAD = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{ 7 * 7 }}</style></title>\u202e\x1b\x00&amp;"


class Page(HTMLParser):
    """Reads a page, insisting on balanced tags."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def bare(**fields):
    return ReportData(
        **{
            "title": "A run",
            "run": "r1",
            "recipe": "toy.yaml",
            "created_at": "2026-11-21T06:40:12Z",
            "machine": "a laptop",
            "versions": {},
            "seeds": {},
            "simulated": False,
            "notice": "",
            "seconds": 12.5,
        }
        | fields
    )


def safe(text):
    """No way out of the page and none into it."""
    page = Page(text)
    assert not set(page.tags) & {"script", "iframe", "img", "object", "embed", "link", "form", "base"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "style", "action", "data", "xlink:href")
        assert name != "href" or value.startswith("#")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f]", text)
    return page


def test_numbers_in_json_equal_the_input(tmp_path):
    data = toy_report()
    assert data.examples is not None
    page = write_report(data, tmp_path / "new")
    assert page == tmp_path / "new" / "report.html"
    text = (tmp_path / "new" / "report.json").read_text()
    assert ReportData.model_validate_json(text) == data
    plain = json.loads(text)
    assert plain["win_rates"][1]["rate"] == data.win_rates[1].rate
    assert plain["series"][3]["y"] == list(data.series[3].y)
    assert plain["examples"]["shown"][0]["answers"][0]["text"] == data.examples.shown[0].answers[0].text


def test_whole_page():
    data = toy_report()
    assert data.examples is not None
    page = safe(render(data))
    for word in ("simulated annotators", "drawn at random", "among the largest gains", "among the smallest gains"):
        assert word in page.text
    assert page.tags.count("svg") == 1 + 1 + 1 + len({s.panel for s in data.series}) + 2 + 1
    assert page.tags.count("article") == 3 * len(data.examples.shown)
    assert len(data.examples.shown) >= 20
    # The typical one and three at random stand open on top; the others fold, and so does calibration.
    assert page.tags.count("details") == len(data.examples.shown) - 4 + 1
    assert ("details", "open", None) not in page.attributes
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value[1:] for tag, name, value in page.attributes if name == "href"]
    assert set(links) <= set(ids)
    for source in data.sources.values():
        assert source.file in page.text
        assert source.command in page.text
    assert "Not recorded" not in page.text


def test_a_win_rate_at_equal_length_stands_in_its_row():
    data = toy_report()
    assert "At equal length" in safe(render(data)).text and "41 %" not in safe(render(data)).text
    row = data.win_rates[0].model_copy(update={"equal_length": Estimate(value=0.41, low=0.32, high=0.5, n=40)})
    page = safe(render(data.model_copy(update={"win_rates": (row, *data.win_rates[1:])})))
    assert "41 % [32, 50]" in " ".join(page.text.split()).replace("\u202f", " ").replace("\xa0", " ")


def test_the_gain_and_its_parts_are_a_table():
    gain = gain_parts([0.0, 1.0], [3.0, 2.0], {"flattery": ([None, None], [1.0, None])}, seed=0)
    page = " ".join(safe(render(toy_report().model_copy(update={"gain": gain}))).text.split())
    assert "What the gain in reward is made of" in page and "The reward of PPO is 2" in page
    assert "flattery" in page.split("What the gain in reward is made of")[1]
    none = gain_parts([0.0], [1.0], {}, seed=0)
    assert "No answer has one of the features" in safe(render(toy_report().model_copy(update={"gain": none}))).text


def test_policy_allows_the_style_sheet_and_nothing_else():
    text = render(toy_report())
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall('Content-Security-Policy" content="([^"]*)"', text)
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not re.search(r"https?:|//|url\(|@import", text.replace(style, "") + re.sub(r"/\*.*?\*/", "", style))


def poisoned(value: Any) -> Any:
    """The same plain value with every free text replaced."""
    if isinstance(value, dict):
        fixed = {"status", "pick", "finish_reason", "ranked_by", "kind"}
        keep = {"first", "before", "after", "model", "against"}
        return {k: v if k in fixed else f"{v}{PAYLOAD}" if k in keep else poisoned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return PAYLOAD if isinstance(value, str) else value


def test_hostile_text_everywhere(tmp_path):
    plain = toy_report().model_dump(mode="json")
    series = [{**s, "panel": s["panel"] + PAYLOAD} for s in poisoned(plain["series"])]
    hostile = poisoned(plain) | {"series": series, "missing": {"base": PAYLOAD}}
    hostile["versions"] = {PAYLOAD: PAYLOAD}
    hostile["stages"][0]["counts"] = {PAYLOAD: 3}
    hostile["probes"][0]["values"][PAYLOAD] = 1.0
    page = write_report(ReportData.model_validate(hostile), tmp_path)
    result = safe(page.read_text())
    assert "<script>alert(1)</script>" in result.text  # as text, for people to see
    assert "⟦RLO⟧" in result.text
    assert "{{ 7 * 7 }}" in result.text
    assert json.loads((tmp_path / "report.json").read_text())["title"] == PAYLOAD


def test_long_answers_are_shortened_and_counted(tmp_path):
    long = Answer(model="PPO", text="word " * 20_000, proxy=1.0)
    lines = Answer(model="SFT", text="\n" * 500 + "end", proxy=0.0)
    result = choose_examples([Example(id="p", prompt="q", answers=(lines, long))], before="SFT", after="PPO", seed=0)
    page = write_report(bare(examples=result), tmp_path)
    text = safe(page.read_text()).text
    assert "98,000 more characters" in text
    assert page.stat().st_size < 40_000
    assert (
        len(json.loads((tmp_path / "report.json").read_text())["examples"]["shown"][0]["answers"][1]["text"]) == 100_000
    )


def test_not_finite_numbers(tmp_path):
    data = toy_report()
    nan_row = data.win_rates[1].model_copy(update={"rate": math.nan, "low": math.nan, "high": math.inf})
    broken = data.model_copy(
        update={
            "win_rates": (nan_row,),
            "kl": Estimate(value=math.nan, low=-math.inf, high=math.inf, n=3),
            "series": (
                Series(panel="kl", name="kl", x=(0, 1, 2), y=(1.0, math.nan, math.inf)),
                Series(panel="entropy", name="entropy", x=(0, 1), y=(math.nan, math.nan)),
            ),
            "peak_memory_gb": math.nan,
        }
    )
    text = safe(write_report(broken, tmp_path).read_text()).text
    assert "numbers of this run are NaN or infinite" in text
    assert "win_rates.0.rate" in text
    assert "2 of 3 points are not finite" in text
    assert "2 of 2 points are not finite" in text
    assert "–" in text

    def refuse(constant):
        raise AssertionError(constant)

    plain = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert plain["win_rates"][0]["rate"] is None
    assert plain["series"][0]["y"] == [1.0, None, None]
    again = ReportData.model_validate(plain)
    assert math.isnan(again.series[0].y[2])
    safe(render(again))


def test_missing_parts_say_why():
    page = safe(render(bare(notice="Preferences were imported from a file.")))
    assert "svg" not in page.tags
    assert "table" not in page.tags
    for words in (
        "This run has no win rates.",
        "This run has no reward against √KL.",
        "This run has no training curves.",
        "This run has no evaluation of a reward model.",
        "This run has no agreement statistics.",
        "This run has no text probes.",
        "This run has no monitors.",
        "This run has no examples.",
        "Preferences were imported from a file.",
    ):
        assert words in page.text
    assert ("p", "class", "banner") not in page.attributes


def test_given_reasons_replace_the_general_ones():
    reasons = {
        "agreement": "Preferences were imported, so nobody here judged twice.",
        "base": "The base model was not sampled.",
        "win_rates": "There is no gold judge for imported preferences.",
    }
    text = safe(render(bare(missing=reasons, alarms=()))).text
    assert all(reason in text for reason in reasons.values())
    assert "The monitors watched this run and none fired." in text
    assert reasons["win_rates"] in headline(bare(missing=reasons))


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("win_rates", "This run has no win rates."),
        ("against_kl", "This run has no reward against √KL."),
        ("reward_model", "This run has no evaluation of a reward model."),
        ("ceiling", "There is no ceiling beside it"),
        ("alarms", "This run has no monitors."),
        ("examples", "This run has no examples."),
    ],
)
def test_each_part_can_be_absent_alone(part, sentence):
    full = toy_report()
    assert sentence not in safe(render(full)).text
    absent = full.model_copy(update={part: () if part == "win_rates" else None})
    assert sentence in safe(render(absent)).text


def test_objectives_and_annotators():
    full = toy_report()
    own = full.reward_model
    assert own is not None and "Habits of annotators" not in safe(render(full)).text
    several = full.model_copy(update={"objectives": {"helpful": own, "funny": None}, "annotators": ("used: tie",)})
    page = render(several)
    assert f'<td>helpful</td><td class="n">{own.pairs}</td>' in page and '<td>funny</td><td class="n">0</td>' in page
    assert "used: tie" in safe(page).text


def test_a_run_without_kl_has_no_tile_of_it():
    full = toy_report()
    assert "KL from SFT" in safe(render(full)).text
    absent = full.model_copy(update={"kl": None, "against_kl": None})
    assert "KL from SFT" not in safe(render(absent)).text


def test_unrecorded_curves_are_named():
    data = toy_report()
    text = safe(render(data.model_copy(update={"series": data.series[:7]}))).text
    assert "Not recorded in this run: kl per answer, answer length, entropy, clip fraction" in text


def row(rate, low, high, model="PPO", against="Pretrained", metric="gold (simulated)"):
    return WinRateRow(
        model=model,
        against=against,
        metric=metric,
        rate=rate,
        low=low,
        high=high,
        n=200,
        wins=1,
        ties=0,
        losses=0,
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            (row(0.8, 0.7, 0.9, "PPO", "SFT"), row(0.784, 0.712, 0.84)),
            "PPO’s answers were preferred over the pretrained model’s on 78\u202f% [71, 84] of 200 held-out prompts, "
            "judged by gold (simulated).",
        ),
        (
            (row(0.53, 0.46, 0.6),),
            "No clear difference: PPO’s answers were preferred over the pretrained model’s on 53\u202f% [46, 60] of",
        ),
        (
            (row(0.31, 0.25, 0.38),),
            "PPO’s answers lost to the pretrained model’s: they were preferred on only 31\u202f% [25, 38] of 200",
        ),
        (
            (row(math.nan, math.nan, math.nan),),
            "There is no verdict on PPO against the pretrained model: their win rate is not a finite",
        ),
        ((), "There is no verdict on PPO against the pretrained model. This run has no win rates."),
        (
            (row(0.8, 0.7, 0.9, "Pretrained", "PPO"),),
            "The pretrained model’s answers were preferred over PPO’s on 80",
        ),
    ],
)
def test_headline_says_no_more_than_the_interval(rows, sentence):
    assert headline(bare(win_rates=rows, spoken={"Pretrained": "the pretrained model"})).startswith(sentence)


def test_every_judge_and_sft_stand_below_the_headline():
    rows = (
        row(0.784, 0.712, 0.84),
        row(0.6, 0.5, 0.7, "PPO", "SFT"),
        row(0.9, 0.8, 0.95, metric="the reward model"),
        row(0.7, 0.6, 0.8, "PPO", "SFT", metric="the reward model"),
        row(0.3, 0.2, 0.4, "SFT", "Pretrained"),
    )
    data = bare(win_rates=rows, spoken={"Pretrained": "the pretrained model"})
    assert further_verdicts(data) == [
        "PPO, by the same judge: 60\u202f% [50, 70] over SFT.",
        "PPO, by the reward model: 90\u202f% [80, 95] over the pretrained model, 70\u202f% [60, 80] over SFT.",
    ]
    text = safe(render(data)).text
    assert all(line in text for line in further_verdicts(data))


def test_first_screen_goes_before_every_chart():
    data = toy_report()
    text = render(data)
    places = [text.index(part) for part in (data.about, headline(data)[:30], "drawn at random")]
    assert places == sorted(places) and places[-1] < text.index("<svg")
    hero = text[text.index('class="hero"') : text.index('class="leading"')]
    who = re.findall(r'<p class="who">(\w+)', hero)
    assert who == ["Pretrained", "PPO", "SFT"]  # what is compared stands side by side
    assert hero.count("<dt>") == 0  # no scores among the first answers


def test_blind_readings_say_who_read():
    text = safe(render(toy_report())).text
    for words in (
        "Read blind",
        "Ann (a person)",
        "a-language-model (a language model)",
        "PPO 18 of 20, Pretrained 9 of",
    ):
        assert words in text
    assert "Read blind" not in safe(render(bare())).text
    reason = "One blind reading is about earlier answers."
    assert reason in safe(render(bare(missing={"readings": reason}))).text


def test_series_from_metrics():
    rows = [
        {"step": 0, "kl": 0.0},
        {"loss": 3.0, "step": 1},
        {"step": 2, "kl": None},
        {"kl": 9.0},
        {"step": 4, "kl": 2},
    ]
    series = series_from_metrics(rows, "kl", panel="kl", unit="nats")
    assert series is not None
    assert series.x == (0, 2, 4)
    assert series.y[::2] == (0.0, 2.0)
    assert math.isnan(series.y[1])
    assert (series.low, series.high, series.name, series.file) == (None, None, "kl", "metrics.jsonl")
    assert series_from_metrics(rows, "absent", panel="kl") is None
    assert {key for key in PANELS} >= {"proxy", "gold", "reward/heldout", "kl", "length", "entropy"}


def test_series_with_ends():
    rows = [{"step": 0, "r": 1.0, "lo": 0.5, "hi": 1.5}, {"step": 1, "r": 2.0}]
    series = series_from_metrics(rows, "r", panel="gold", ends=("lo", "hi"))
    assert series is not None
    assert series.low is not None
    assert series.low[0] == 0.5
    assert math.isnan(series.low[1])
    without = series_from_metrics(rows, "r", panel="gold", ends=("no", "none"))
    assert without is not None
    assert without.low is without.high is None


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        Series(panel="kl", name="kl", x=(0, 1), y=(1.0,))


def test_cohorts_are_a_table():
    cohort = CohortResult(
        name="language=de",
        people=6,
        judgements=60,
        rate=Estimate(value=0.75, low=0.6, high=0.85, n=60),
        agreement=Estimate(reason="no item in common"),
    )
    result = Population(
        model="PPO",
        rival="SFT",
        cohorts=(cohort,),
        disagreement=Estimate(reason="no item has a majority in two cohorts"),
        weightings={"as judged": cohort.rate},
        notes=("2 cohorts are small",),
    )
    reading = Reading(
        reader="Ann",
        kind="human",
        model="PPO",
        against="SFT",
        rate=0.7,
        low=0.6,
        high=0.8,
        n=10,
        wins=7,
        ties=0,
        losses=3,
    )
    page = render(bare(population=result, readings=(reading,)))
    assert "language=de" in page and "no item in common" in page and "2 cohorts are small" in page


def test_a_moving_reference_is_named():
    result = reward_against_kl(
        [{"step": 1, "kl": 0.1, "a": 1.0}, {"step": 2, "kl": 0.2, "a": 2.0}],
        kl="kl",
        scores={"a": "a"},
        spreads={"a": 1.0},
    )
    assert result is not None and "moving reference" not in render(bare(against_kl=result))
    page = render(bare(against_kl=result.model_copy(update={"moving": True})))
    assert "√KL from the moving reference" in page and "The reference moved along" in page


def test_reward_against_kl():
    rows = metrics()
    result = reward_against_kl(
        rows, kl="kl", scores={"proxy": "proxy", "gold": "gold"}, spreads={"proxy": 1, "gold": 2}
    )
    assert result is not None
    assert result.step == tuple(range(0, 181, 15))
    assert [score.name for score in result.scores] == ["proxy", "gold"]
    assert reward_against_kl(rows, kl="nothing", scores={"proxy": "proxy"}, spreads={"proxy": 1}) is None
    assert reward_against_kl(rows, kl="kl", scores={"gold": "nothing"}, spreads={}) is None


def test_a_reward_without_spread_is_named_not_drawn():
    rows = [{"step": s, "kl": s, "a": s, "b": 1.0} for s in range(3)]
    result = reward_against_kl(rows, kl="kl", scores={"a": "a", "b": "b"}, spreads={"a": 0.5, "b": 0.0})
    text = safe(render(bare(against_kl=result))).text
    assert "b has no spread to measure it by" in text
    assert "a: 1 SD = 0.50" in text


def gain(example):
    score = {answer.model: answer.gold for answer in example.answers}
    return score["PPO"] - score["SFT"]


def test_choice_of_examples():
    pool = examples(60)
    chosen = choose_examples(pool, before="SFT", after="PPO", seed=7)
    assert chosen == choose_examples(pool, before="SFT", after="PPO", seed=7)
    assert (chosen.total, chosen.ranked_by, len(chosen.shown)) == (60, "gold", 23)
    assert len({e.id for e in chosen.shown}) == 23
    picks = {pick: [e for e in chosen.shown if e.pick == pick] for pick in ("typical", "random", "best", "worst")}
    assert [len(result) for result in picks.values()] == [1, 14, 4, 4]
    gains = sorted(map(gain, pool))
    assert gain(picks["typical"][0]) == gains[30]
    hidden = [gain(e) for e in pool if e.id not in {shown.id for shown in chosen.shown}]
    assert min(gain(e) for e in picks["best"]) > max(hidden)
    assert max(gain(e) for e in picks["worst"]) < min(hidden)


def test_random_examples_are_a_fair_sample():
    # Over many seeds, the drawn ones gain what all of them gain on average.
    pool = examples(30)
    middle = sorted(pool, key=gain)[15]
    others = [gain(e) for e in pool if e.id != middle.id]
    drawn = [
        gain(e)
        for seed in range(200)
        for e in choose_examples(pool, before="SFT", after="PPO", seed=seed, draw=10).shown
        if e.pick == "random"
    ]
    assert sum(drawn) / len(drawn) == pytest.approx(sum(others) / len(others), abs=0.06)


def test_few_examples_and_no_gold():
    pool = [
        Example(
            id=str(i),
            prompt="q",
            answers=(Answer(model="SFT", text="", proxy=0.0), Answer(model="PPO", text="b", proxy=i)),
        )
        for i in range(3)
    ]
    chosen = choose_examples(pool, before="SFT", after="PPO", seed=0)
    assert chosen.ranked_by == "proxy"
    assert [e.id for e in chosen.shown if e.pick == "typical"] == ["1"]
    assert "(an empty answer)" in safe(render(bare(examples=chosen))).text


def test_answers_that_nobody_scored_are_drawn_at_random():
    answers = (Answer(model="SFT", text="a"), Answer(model="PPO", text="b"))
    pool = [Example(id=str(i), prompt="q", answers=answers) for i in range(40)]
    chosen = choose_examples(pool, before="SFT", after="PPO", seed=3)
    assert {e.pick for e in chosen.shown} == {"random"} and len(chosen.shown) == 23 and chosen.ranked_by == ""
    assert "nobody scored them" in safe(render(bare(examples=chosen))).text


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ([], "no examples to choose from"),
        ([Example(id="e", prompt="q", answers=(Answer(model="SFT", text="a"),))], "expected SFT and PPO"),
        (
            [
                Example(
                    id="e", prompt="q", answers=(Answer(model="SFT", text="a", gold=1.0), Answer(model="PPO", text="b"))
                )
            ],
            "no gold",
        ),
    ],
)
def test_choice_refuses(pool, message):
    with pytest.raises(DataError, match=message):
        choose_examples(pool, before="SFT", after="PPO", seed=0)


@pytest.mark.parametrize(("seconds", "text"), [(59.96, "60.0 s"), (3599.6, "1 h 00 min"), (math.nan, "–"), (None, "–")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_needs_no_torch():
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'numpy'))); import trimtab.evals"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_report(bare(), tmp_path / "file")
