"""The effect of a constitution's principles, and of an edit, on the labels in a folder of ``trimtab judge``."""

import json
from collections.abc import Sequence
from pathlib import Path

from trimtab.config import parse_config
from trimtab.constitution import Constitution
from trimtab.errors import DataError
from trimtab.feedback import JudgeConfig, Verdict, pair_votes, usable_judgements
from trimtab.feedback.judge import CUT, questions_of
from trimtab.feedback.principles import PrincipleReport, principle_report
from trimtab.files import write_json
from trimtab.pipeline.judge_result import read_judge_result
from trimtab.pipeline.judging import plain
from trimtab.records import Comparison, Judgement, read_records


def write_principles(
    folder: Path, constitution: Constitution, people: Sequence[Judgement]
) -> dict[str, PrincipleReport]:
    """Write ``principles.json`` for each judge: firing, agreement with people, conflicts and effects of removal."""
    items = read_records(folder / "comparisons.jsonl", Comparison)
    usable, _ = usable_judgements(items, people)
    votes = {(item, (i, j)): float(sum(v.values())) for item, i, j, v in pair_votes(usable)}
    reports = {
        name: principle_report(items, read_records(folder / name / "verdicts.jsonl", Verdict), votes)
        for name in read_judge_result(folder).judges
    }
    write_json(folder / "principles.json", plain({"version": constitution.version, "judges": reports}))
    return reports


def questions_again(folder: Path, constitution: Constitution) -> dict[str, dict[str, int]]:
    """Number of new questions that another constitution needs, for each judge of a folder.

    Raises:
        DataError: the folder was not made by ``trimtab judge``.
    """
    result = read_judge_result(folder)
    items = read_records(folder / "comparisons.jsonl", Comparison)
    config = parse_config(JudgeConfig, result.settings, where=f"{folder}: settings of judge.json")
    counts = {}
    for name, entry in result.judges.items():
        try:
            lines = (folder / entry.replies).read_text(encoding="utf-8").split("\n")
            known_keys = {json.loads(line)["key"].partition(CUT)[0] for line in lines if line.endswith("}")}
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder / entry.replies}: cannot be read ({error})") from None
        keys = {q.key for item in items for q in questions_of(item, constitution, config, entry.identity)}
        counts[name] = {"questions": len(keys), "again": len(keys - known_keys)}
    return counts
