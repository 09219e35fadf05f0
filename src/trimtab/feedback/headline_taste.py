"""The demonstration's gold utility: how a *simulated* reader likes a headline for a short message.

The prompt contains the message, so everything that the headline says can be checked against it. The reader wants a
headline that contains what matters, invents nothing, makes sense on its own and is short.

=============  ==============  ====================================================================
part           contribution    what it is
=============  ==============  ====================================================================
``facts``      −1 … 4.5        share of the message's key facts, the first two counted double; −1 if none is mentioned
``invented``   −3 … 0          share of content words that the message does not have; names and numbers count double
``rewired``    −3 … 0          neighbouring content words that no sentence of the message has in this order
``answered``   −3 or 0         a question in the message stated as a fact
``length``     −1 … 1          1 from 8 to 13 words, 0 at 5 and at 16, −1 up to 2 and from 20 on
``form``       −3 … 0          several lines or sentences, no full stop, no capital first, a loose end ("… at the.")
``chatty``     −1.5 … 0        "we", "my", "you", "it" and other words that only the message explains
``articles``   −1 … 0          "a", "an" and "the": headlines leave them out
``copied``     −1.5 … 0        most of the message, or a whole sentence of it, word for word
``repetition`` −2.5 … 0        more repeated word pairs or content words than prose has
``list``       −1.5 … 0        nothing but content words, one after the other
``negation``   −2 or 0         a negation added to the message, or left out of it
``cut``        −1 or 0         cut at the token limit instead of ending its turn
=============  ==============  ====================================================================

The utility is their sum, but at least −3. A careful headline scores between 4 and 5.5.

Key facts come from the prompt's metadata (``facts``: a list of short strings, most important first). Without them, the
names and numbers of the message are used. Words are compared after stripping common English endings. The reader covers
English only and does not understand the text: a headline that gives the message's words a new meaning passes as true.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from trimtab.feedback.words import FUNCTION_WORDS, ramp, repetition, stem, words_of
from trimtab.records import Completion, Prompt, Rollout

LOWEST = -3.0
"""Lowest utility: below it, a person would not tell two bad answers apart."""

HEADLINE_WORDS = frozenset(
    """
    needed wanted asked invited thanked thanks moved cancelled closed closes close open opens late lost found broken
    missing free new due complaint reminder must please
    """.split()
)
"""Words that a headline may use although the message does not."""

_NEGATIONS = frozenset("not no never without cannot nothing nobody none neither nor".split())
_CHATTY = frozenset(
    "i i'm i've i'll i'd me my mine we we're we've we'll us our ours you you're you've you'll your yours it its he him "
    "his she hello dear hi".split()
)
_NEVER_LAST = frozenset(
    """
    a an the and or but of at for from to with by as than because while if that which who whose is was are were has
    had been our your my their his its this these
    """.split()
)
_NEVER_FIRST = frozenset("and or but of because so than".split())
_REQUEST_WORDS = frozenset(
    "asks ask asking asked wants want wanted needs need needed please wonders enquires requests".split()
)
_PREPOSITIONS = frozenset("across along behind beside inside near outside past round till towards".split())
_BEFORE_ORDERS = frozenset("you to please somebody someone anybody anyone everyone people".split())
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
_NUMBER_OR_NAME = re.compile(r"(?<![.!?]\s)(?<!^)\b[A-Z][\w'’-]*|\b\d[\d:.,]*\b")


def headline_utility(prompt: Prompt, completion: Completion) -> float:
    """How much the simulated reader likes this headline for the prompt's message; from −3 to 5.5."""
    return max(LOWEST, sum(headline_parts(prompt, completion).values()))


def headline_parts(prompt: Prompt, completion: Completion) -> dict[str, float]:
    """The contributions to :func:`headline_utility` by name, each in the range of the module's table."""
    message, headline = message_of(prompt), completion.text.strip()
    headline_words = words_of(headline)
    content = [w for w in headline_words if w not in FUNCTION_WORDS]
    source = _source_sentence(message, headline_words)
    facts = _facts(key_facts(prompt, message), set(map(stem, headline_words)))
    return {
        "facts": 4.5 * facts if facts else -1.0,
        "invented": -3.0 * _invented(message, headline, content),
        "rewired": -3.0 * ramp(_rewired(message, content), 0, 2),
        "answered": -3.0 if _answered(source, headline, headline_words) else 0.0,
        "length": _length(len(headline_words)),
        "form": -_form(headline, headline_words, asks=source.endswith("?")),
        "chatty": -1.5 * ramp(sum(w in _CHATTY for w in headline_words), 0, 2),
        "articles": -ramp(sum(w in ("a", "an", "the") for w in headline_words), 0, 2),
        "copied": -1.5 * _copied(message, headline_words),
        "repetition": -2.5 * repetition(headline_words, list(map(stem, content))),
        "list": -1.5 * ramp(_function_share(headline_words), 0.1, 0.0) if len(headline_words) > 5 else 0.0,
        "negation": -2.0 if _negation_changed(message, source, headline_words) else 0.0,
        "cut": -1.0 if completion.finish_reason == "length" else 0.0,
    }


def copying(rollouts: Sequence[Rollout]) -> list[float]:
    """A rule-based reward for a negative weight: 1 for a copy, 0 for other words, in between for near copies.

    A copy is most of the message, or one of its sentences, word for word. A small reward model overlooks copied
    sentences, because they are true, fluent and about the message.
    """
    return [_copied(message_of(r.prompt), words_of(r.text)) for r in rollouts]


def message_of(prompt: Prompt) -> str:
    """The message: the text after the first blank line of the user's turn, or the whole turn if it has none."""
    _, blank_line, message = prompt.text.partition("\n\n")
    return message if blank_line else prompt.text


def key_facts(prompt: Prompt, message: str) -> list[str]:
    """The key facts in the metadata, most important first; without any, the names and numbers of the message."""
    facts = prompt.metadata.get("facts")
    if isinstance(facts, Sequence) and not isinstance(facts, str) and facts:
        return [str(fact) for fact in cast("Sequence[object]", facts)]
    return list(dict.fromkeys(_NUMBER_OR_NAME.findall(message)))


def _facts(facts: Sequence[str], stems: set[str]) -> float:
    """Weighted share of the facts' words that are mentioned; ½ if there are no facts."""
    total = mentioned = 0.0
    for place, fact in enumerate(facts):
        fact_stems = {stem(w) for w in words_of(fact) if w not in FUNCTION_WORDS} or {stem(w) for w in words_of(fact)}
        weight = 2.0 if place < 2 else 1.0
        total += weight
        mentioned += weight * len(fact_stems & stems) / max(1, len(fact_stems))
    return mentioned / total if total else 0.5


def _invented(message: str, headline: str, content: Sequence[str]) -> float:
    """0 if all content words come from the message, 1 if two fifths of them do not."""
    if not content:
        return 1.0
    known_stems = set(map(stem, words_of(message))) | set(map(stem, HEADLINE_WORDS))
    unknown_words = sum(stem(w) not in known_stems for w in content)
    named_stems = {stem(w) for token in _NUMBER_OR_NAME.findall(headline) for w in words_of(token)}
    unknown_words += sum(w not in known_stems for w in named_stems)
    return ramp(unknown_words / len(content), 0.05, 0.4)


def _rewired(message: str, content: Sequence[str]) -> float:
    """Cost of neighbouring content words that no sentence of the message has in this order and close together.

    Headlines leave out small words, so only content words are compared, and :data:`HEADLINE_WORDS` are skipped. Two
    neighbouring words cost 0 if a sentence has them in this order with at most two content words between them, ½ if it
    has more between them, and 1 if no sentence has them in this order. ½ is subtracted from the sum, so that joining
    two sentences once costs little.
    """
    sentences = [
        [stem(w) for w in words_of(sentence) if w not in FUNCTION_WORDS] for sentence in _SENTENCE_END.split(message)
    ]
    stems = [stem(w) for w in content if w not in HEADLINE_WORDS or any(stem(w) in s for s in sentences)]
    costs = [_distance_cost(first, second, sentences) for first, second in pairwise(stems)]
    return max(0.0, sum(costs) - 0.5)


def _distance_cost(first: str, second: str, sentences: Sequence[Sequence[str]]) -> float:
    gaps = [
        j - i
        for s in sentences
        for i, word in enumerate(s)
        if word == first
        for j, other in enumerate(s)
        if other == second and j > i
    ]
    return 1.0 if not gaps else 0.0 if min(gaps) <= 3 else 0.5


def _source_sentence(message: str, headline_words: Sequence[str]) -> str:
    """The sentence of the message that shares most words with the headline; empty if it shares fewer than two."""
    stems = {stem(w) for w in headline_words if w not in FUNCTION_WORDS}
    sentences = [s for s in _SENTENCE_END.split(message) if s.strip()]
    shared = [len(stems & set(map(stem, words_of(s)))) for s in sentences]
    return sentences[shared.index(max(shared))] if max(shared, default=0) >= 2 else ""


def _answered(source: str, headline: str, headline_words: Sequence[str]) -> bool:
    """True: the headline states what its source asks ("Is it open?" – "It is open").

    Two kinds of headline do not count: a request told as an order ("Could you feed the cat?" – "Feed the cat"), and a
    headline which says that something is asked, needed or wanted.
    """
    if not source.endswith("?") or headline.endswith("?") or _REQUEST_WORDS & set(headline_words) or not headline_words:
        return False
    order_words = {b for a, b in pairwise(words_of(source)) if a in _BEFORE_ORDERS}
    return headline_words[0] not in order_words


def _length(count: int) -> float:
    return ramp(count, 2, 5) + ramp(count, 5, 8) - 1 if count < 8 else 1 - ramp(count, 13, 16) - ramp(count, 16, 20)


def _form(headline: str, headline_words: Sequence[str], *, asks: bool) -> float:
    """Cost of the form, from 0 to 3; 0 for one line with a capital first, a full stop last and no loose end.

    A question mark may replace the full stop if the source ``asks``.
    """
    sentences = [s for s in _SENTENCE_END.split(headline) if s.strip()]
    not_one_sentence = "\n" in headline or len(sentences) != 1 or (headline.endswith("?") and not asks)
    unfinished = not headline.endswith((".", "?", '."', ".'"))
    lower_case_start = not headline[:1].isupper() and not headline[:1].isdigit()
    loose_end = not headline_words or headline_words[-1] in _NEVER_LAST or headline_words[0] in _NEVER_FIRST
    return min(3.0, 1.5 * not_one_sentence + 1.0 * unfinished + 0.5 * lower_case_start + 2.0 * loose_end)


def _copied(message: str, headline_words: Sequence[str]) -> float:
    """1 for a run of at least 70 % of the message's words, or for a headline that is mostly one of its sentences."""
    message_words = words_of(message)
    run = _longest_run(headline_words, message_words)
    copied_share = ramp(run / max(1, len(message_words)), 0.4, 0.7)
    for sentence in map(words_of, _SENTENCE_END.split(message)):
        if len(sentence) >= 4:
            run = _longest_run(headline_words, sentence)
            sentence_share = ramp(run / len(sentence), 0.75, 1.0) * ramp(run / max(1, len(headline_words)), 0.6, 0.9)
            copied_share = max(copied_share, sentence_share)
    return copied_share


def _longest_run(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest run of words that both contain."""
    best, row = 0, [0] * (len(b) + 1)
    for x in a:
        row = [0, *(row[j] + 1 if x == y else 0 for j, y in enumerate(b))]
        best = max(best, *row)
    return best


def _function_share(headline_words: Sequence[str]) -> float:
    function_words = sum(w in FUNCTION_WORDS or w in _PREPOSITIONS for w in headline_words)
    return function_words / max(1, len(headline_words))


def _negation_changed(message: str, source: str, headline_words: Sequence[str]) -> bool:
    """True: the headline has a negation that the message lacks, or omits one from between its words in the source."""
    if any(map(_is_negation, headline_words)):
        return not any(map(_is_negation, words_of(message)))
    stems = set(map(stem, headline_words)) - set(map(stem, FUNCTION_WORDS))
    words = words_of(source)
    shared_positions = [i for i, w in enumerate(words) if stem(w) in stems]
    return bool(shared_positions) and any(map(_is_negation, words[shared_positions[0] : shared_positions[-1]]))


def _is_negation(word: str) -> bool:
    return word in _NEGATIONS or word.endswith("n't")
