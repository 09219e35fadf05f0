"""Finds the option that a judge's reply in words names."""

import re
from collections.abc import Sequence
from functools import cache

_REFUSAL = re.compile(
    r"(?i)^\W*(i['’]?m sorry|i am sorry|sorry|i can(?:not|['’]t)|i['’]?m (?:unable|not able)|i am (?:unable|not able)|"
    r"i won['’]t|i will not|as an ai)\b"
)
_ANSWER_NOUN = r"(?:answer|option|score|rating|verdict|choice|winner|response|output|decision|judge?ment|assistant)"
_DETERMINER = r"(?:(?:the|my|i)\s+)?(?:(?:final|better|best|overall)\s+)?"
_CHOICE_VERB = r"(?:choose|pick|prefer|select|vote\s+for)"
_STATEMENT_PREFIX = rf"(?:{_DETERMINER}(?:{_ANSWER_NOUN}|one|{_CHOICE_VERB})\b\W*(?:is\b\W*)?){{1,2}}"
_DECISION_PREFIX = (
    rf"{_DETERMINER}(?:(?:{_ANSWER_NOUN}|one)\b\W*?(?:[:=→]|is\b)|{_CHOICE_VERB}\b)\W*(?:{_ANSWER_NOUN}\s+)?"
)
"""Text before an option that its reason may follow; "Answer A, as written, is wrong" decides nothing."""
_BETTER = rf"\s+is\s+(?:the\s+)?(?:better|best)(?:\s+(?:{_ANSWER_NOUN}|one))?"
_REASON_CLAUSE = r"\s*[,;(–-]\s*(?:because|since|as|confidence)\b[^\n]*"
_MARK_PREFIX = (
    r"(?:\\boxed\s*\{\s*(?:\\\w+\s*\{)?|\[\[|<(?:answer|verdict|choice)>|"
    rf"""(?:^|[{{,])\s*["'](?:{_ANSWER_NOUN}|preferred|better)["']\s*:\s*["']?)\s*(?:{_ANSWER_NOUN}\s+)?"""
)
"""Text before a marked option: ``\\boxed{B}``, ``[[B]]``, ``<answer>B</answer>``, ``"winner": "B"``."""
_IGNORED = re.compile(r"(?is)\A.*</think(?:ing)?>|<think(?:ing)?>.*|<\|[^|>\n]{1,40}\|>|</?(?:s|eos|end_of_turn)>")
"""Thoughts, and tokens that end a turn."""
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_ANSWER_LINE = re.compile(r"(?im)^\W*(?:(?:the|my)\s+)?(?:final\s+)?answer\W*:")
_RETRACTION = (
    r"(?im)^\W*(?:no|wait|actually|hmm|sorry|correction|rather|instead|on\s+(?:second\s+thoughts?|reflection))\b"
    r".*\b(?-i:{0})\b|\b(?-i:{0})\s+(?:is|was|seems)\s+(?:\w+ly\s+|the\s+|much\s+)*(?:better|best|right|correct)\b"
    r"|\bI\s+(?:would\s+)?(?:choose|pick|prefer|select|vote\s+for)\s+(?:\w+\s+)?(?-i:{0})\b(?!['’])"
)
"""A later line that prefers another option, ``{0}``, to the stated one."""


def read_option(text: str, options: Sequence[str], *, reason: bool = False) -> tuple[str | None, str]:
    r"""Which option a reply in words names: (option, "") or (None, kind of failure).

    Two kinds of statement count, and all of them must agree:

    - a mark such as ``\boxed{B}``, ``[[B]]`` or ``"winner": "B"``;
    - a line that is the option alone (``B``, ``(B).``, ``**B**``, ``4/5``), or that states the option and then ends or
      gives a reason (``Answer: B``, ``The better answer is B.``, ``Verdict: B, because …``).

    No later line may take the option back (``No, B``, ``B is better``). With ``reason``, only the last line that begins
    with ``Answer:`` counts; without such a line, the marks and the last line. Thoughts (``<think>``) are not read.
    Everything else is a failure: an "A" that may be the English article is no answer, and neither is one of two letters
    in a sentence.

    >>> read_option("Answer: B", ("A", "B")), read_option("A good question.", ("A", "B"))
    (('B', ''), (None, 'neither'))
    """
    match, failure = find_option(text, options, reason=reason)
    if match is None:
        return None, failure
    return next(option for option in options if option.casefold() == match[1].casefold()), ""


def find_option(text: str, options: Sequence[str], *, reason: bool = False) -> tuple[re.Match[str] | None, str]:
    """Where a reply states its option, as group 1, by the rules of :func:`read_option`; or None and why not."""
    text = _IGNORED.sub(lambda blank: re.sub(r"[^\n]", " ", blank[0]), text).translate(_FULL_WIDTH)  # keeps positions
    if not text.strip():
        return None, "empty"
    marked, *lines, after_answer = _patterns(tuple(options))
    answers = list(_ANSWER_LINE.finditer(text)) if reason else []
    if answers and (match := after_answer.match(text, answers[-1].end())):
        return match, ""
    if _REFUSAL.match(text):
        return None, "refused"
    statements = [] if answers else list(marked.finditer(text))
    if not reason:
        statements += [match for line in lines for match in line.finditer(text)]
    elif not answers:
        end = len(text.rstrip())
        begin = text.rfind("\n", 0, end) + 1
        statements += [match for line in lines if (match := line.match(text, begin, end))]
    if len({statement[1].lower() for statement in statements}) == 1:
        others = [o for o in options if o.isalpha() and o.lower() != statements[0][1].lower()]
        if any(re.search(_RETRACTION.format(o), text[statements[0].end(1) :]) for o in others):
            return None, "both"
        return statements[0], ""
    mentioned = {o for o in options if re.search(rf"\b{re.escape(o)}\b", text)}
    return None, "both" if len(mentioned) > 1 and not re.search(r"(?i)\bneither\b", text) else "neither"


@cache
def _patterns(options: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    """A marked option, lines that state one in four ways, and what follows ``Answer:``; group 1 is the option."""
    out_of_five = r"(?:\s*/\s*5)?" if "5" in options else ""
    names = "|".join(map(re.escape, options))
    option, end = rf"({names}){out_of_five}", r"[^\w\n]*$"
    better = "(?!)" if out_of_five else _BETTER  # "5 is the best" explains the scale
    return tuple(
        re.compile(pattern, re.I | re.M)
        for pattern in (
            rf"{_MARK_PREFIX}\(?{option}\)?\s*(?:[\]}}<\"']|,(?!\s*[\"']?(?:{names})\b)|\Z)",
            rf"^[^\w\n]*{_STATEMENT_PREFIX}{option}[^\w\n:]*$",  # "Answer A:" is a heading for remarks on A
            rf"^[^\w\n]*{_DECISION_PREFIX}{option}(?:{_REASON_CLAUSE})?{end}",
            rf"^[^\w\n]*{option}{end}",
            rf"^[^\w\n]*(?:(?:the\s+)?{_ANSWER_NOUN}\s+)?{option}{better}{end}",
            rf"[^\w\n]*\n*[^\w\n]*(?:\\boxed\s*\{{\s*(?:\\\w+\s*\{{)?\s*|{_ANSWER_NOUN}\s+)?{option}(?:{_REASON_CLAUSE})?{end}",
        )
    )
