"""Records and their codecs: what the parts of trimtab hand to each other, and to other tools."""

from trimtab.records.check import CheckReport, check
from trimtab.records.importers import KINDS, Loaded, convert, load
from trimtab.records.jsonl import read_records, to_plain, write_records
from trimtab.records.readers import Refusal
from trimtab.records.trl import write_trl
from trimtab.records.types import (
    Comparison,
    Completion,
    Demonstration,
    Judgement,
    Message,
    Preference,
    Prompt,
    Rating,
    Record,
    Rollout,
    content_id,
)

__all__ = [
    "KINDS",
    "CheckReport",
    "Comparison",
    "Completion",
    "Demonstration",
    "Judgement",
    "Loaded",
    "Message",
    "Preference",
    "Prompt",
    "Rating",
    "Record",
    "Refusal",
    "Rollout",
    "check",
    "content_id",
    "convert",
    "load",
    "read_records",
    "to_plain",
    "write_records",
    "write_trl",
]
