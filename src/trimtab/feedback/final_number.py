r"""The final number of a text: in ``\boxed{}``, after ``####`` or "the answer is", or else the last number.

Typography and LaTeX are first converted to a plain form. The marked answer is then read as a chain of expressions,
``5 * 3 = 15``, and the last one counts. A marked answer that is not one number, such as ``2\sqrt{3}`` or "5 or 6",
gives None. Negated numbers ("not 5") and text in ``<think>`` are ignored.
"""

import math
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

_UNSIGNED = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d))?|\.\d+"
_NUMBER = re.compile(rf"(?<![\w.])(?:{_UNSIGNED})")
_SIGNED_NUMBER = re.compile(rf"(?:(?<![\w)])-)?(?<![\w.])(?:{_UNSIGNED})(?:\s*/\s*\d+)?")
_STOP_WORDS = "because|since|as|so|when|where|if|for|with|and|or|but|then|at|from|which|of"
_WORD = rf"(?!(?:{_STOP_WORDS})\b)[A-Za-z%°]+"
_UNITS = re.compile(rf"(?:\s*{_WORD}){{0,3}}")
_EQUALS = re.compile(rf"(?:\s*{_WORD}){{0,3}}\s*=\s*(?:[A-Za-z]\w*\s*=\s*)?")
_NOT_A_NUMBER = re.compile(
    r"\s*(?:\\?sqrt|√|\\?pi(?![A-Za-z])|π|\\infty|∞)|(?<=[\d)])(?:!(?=\S)|[A-Za-z]?\(|[abcdefiknxyz](?![A-Za-z]))"
)
_UP_TO_EQUALS = re.compile(rf"(?:(?!\b(?:{_STOP_WORDS})\b)[^=,;])*=")
_POWER_OF_UNIT = re.compile(r"([A-Za-z])\s*\^?\s*\(?-?\d\)?")
_ROOT_OR_FUNCTION = re.compile(
    r"sqrt|√|(?<![A-Za-z])pi(?![A-Za-z])|π|(?<![A-Za-z])(?:log|ln|sin|cos|tan)(?:_\w+)?[\s^(_-]*$"
)
_DIGITS = r"[-+(]?\s*[\d.]*\d"
_PRECISION_UNIT = r"\d*\s*(?:decimal|significant|sig|place|digit|figure|[ds]\.?[pf]\b)"
_OR_NUMBER = re.compile(rf"(?P<unit>{_UNITS.pattern})\s*\bor\s+(?:maybe\s+|perhaps\s+|possibly\s+)?(?={_DIGITS})")
_TO_NUMBER = re.compile(rf"\s*(?:\bto\s+{_DIGITS}(?!{_PRECISION_UNIT})|(?P<unit>{_WORD})\s+to\s+{_DIGITS}\s*(?P=unit))")
_BETWEEN = re.compile(r"\bbetween\s*$", flags=re.I)

_BOXED = re.compile(r"\\?f?box(?:ed)?\s*(?=\{)")
_BOXED_BARE = re.compile(r"\\boxed\s+([^\s{}]+)")
_HASHES = re.compile(r"####([^\n]*)")
_COPULA = (
    r"is|are|was|were|equals|becomes|(?:should|must|will|would) be"
    r"|(?:comes|turns|works) (?:out )?to(?: be)?"
)
_NOT_EARLIER = "".join(rf"(?<!{word} )" for word in ("first", "initial", "original", "previous", "earlier"))
_ANSWER = re.compile(rf"(?<!/){_NOT_EARLIER}\banswer\b[^\n.\d]{{0,40}}?(?:\b(?:{_COPULA})\b|[:=>])", flags=re.I)
_THOUGHT = re.compile(r"^.*</think(?:ing)?>|<think(?:ing)?>.*", flags=re.S | re.I)
_DENIED = re.compile(
    rf"(?:\b(?:not|cannot|never|rather\s+than|instead\s+of)|n't)\s+(?:be\s+|equal\s+(?:to\s+)?)?-?(?:{_UNSIGNED})(?:\s*/\s*\d+)?",
    flags=re.I,
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = rf"\s*(?:{'|'.join(_SCALES)})(?![A-Za-z])"
_TERM = rf"(?:{_UNSIGNED})(?:{_SCALE}){{1,3}}"
_REST = r"\d{1,3}(?![\w/:^*]|[.,]\d)"
_SCALED = re.compile(
    rf"(?<![\w.]){_TERM}(?:,?[^\S\n]+(?:and[^\S\n]+)?{_TERM})*"
    rf"(?:[^\S\n]+(?:and[^\S\n]+)?{_REST})?",
    flags=re.I,
)
_SCALED_PART = re.compile(rf"({_UNSIGNED})((?:{_SCALE}){{0,3}})", flags=re.I)
_BEGINS = re.compile(r"[^\w\n]*(?:[A-Za-z]{1,3}\.?\s*)?(?:[A-Za-z]\w{0,10}\s*=\s*)?[^\w\n]*\d")
_LIST_ITEM = re.compile(r"\s*\d+[.)]\s+[A-Za-z]")

LARGEST_POWER = 4096
"""Bits of the largest power that is computed."""

MARKS = 100
"""Largest number of marks (boxes and "answer is") that are read, from the end of the text."""

_SYMBOLS = str.maketrans(
    {"−": "-", "–": "-", "‐": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "⁄": "/", "≈": "=", "≅": "="}
    | {"→": "=", "⇒": "=", "\u00a0": " ", "\u2009": " ", "\u202f": " "}
)
_FRACTIONS = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5"} | {
    "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"
}  # fmt: skip
_SPACED = re.compile(r"(?<![\w.,/])(?<!\d )(\d{1,3}(?: \d{3})+)(?:,(\d{1,2}))?(?![\d/]|,\d)")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (r"<<[^<>\n]*>>", ""),  # GSM8K's calculator
        (r"(?<=\d)(?:\{?\\,\}?|\\!|[\u00a0\u2009\u202f'’_])(?=\d{3}(?!\d))", ""),
        (r"\{,\}", ","),
        (r"\\!|\\(?:left|right|displaystyle|big|Big|bigg|Bigg)(?![A-Za-z])", ""),
        (r"\\[,;: ]|~|\\q?quad(?![A-Za-z])|\\[()\[\]]", " "),
        (r"\\([%$#&_])", r"\1"),
        (r"\^?\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?", " "),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\(?:approx|simeq|equiv|to|rightarrow|Rightarrow|implies)(?![A-Za-z])|==+>?|=>|->", "="),
        (r"(?<=[A-Za-z])[$€£¥₹]", " "),
        (r"[$€£¥₹]\s*", ""),
        (r"`|(?<!\w)_+|_+(?!\w)", ""),
        (r"(?<![\w.,])(\d{1,3}(?:\.\d{3})+),(\d{1,2})(?!\d|[.,]\d)", r"\1;\2"),  # 1.200,50
        (r"(?<![\w.,])(\d{1,3}(?:\.\d{3}){2,})(?![\d;]|[.,]\d)", r"\1;0"),  # 1.200.000
        (r"(?<![\w.,])(?<![\[(])(?<![\[(]-)(\d+),(\d{1,2}|\d{4,})(?!\d|[.,]\d)", r"\1.\2"),  # 3,5
        (r"(?<![\w.,])(?<![\[(])(?<![\[(]-)0,(\d{3})(?!\d|[.,]\d)", r"0.\1"),
        (r"(?<![\d):])(?<![\d)] )\b(?:minus|negative)\s+(?=[\d.])", "-"),
        (r"(?<=[\d)])\s+(?:times|multiplied\s+by)\s+(?=[\d(-])", " * "),
        (r"(?<=\d)\s+and\s+(?=\d+/\d)", " "),
        (r"(?<=[\d)])\s+plus\s+(?=[\d(-])", " + "),
        (r"(?<=[\d)])\s+minus\s+(?=[\d(])", " - "),
        (r"(?<=[\d)])\s+divided\s+by\s+(?=[\d(-])", " / "),
        (r"(?<=\d)\s*(?:%|percent)\s+of\s+(?=\d[^=\n]{0,20}=)", "/100 * "),
        (r"(?<![\d:.])(\d+):(\d+)(?![\d:])", r"\1/\2"),
        (r"(\d)\s*[*xX]\s*10\s*(?:\^|\*\*)\s*[{(]?\s*([-+]?\d+)\s*[})]?", r"\1e\2"),
        (r"\*\*(?=\s*[\d({\\-])(?<=[\d)}]\*\*)|(?<=[\d)}] )\*\*(?= [\d({\\-])", "^"),
    )
)


def final_number(text: str) -> Fraction | None:
    r"""The final number of a text; None if it has none.

    It reads thousands separators (``1,200``, ``1{,}200``, ``1\,200``, ``1 200``, ``1'200``, ``1.200,50``,
    ``1.200.000``), decimal commas (``3,5``; three digits after a comma are thousands), fractions (``1/2``,
    ``\frac{1}{2}``, ``3\frac12``, ``3 1/2``, ``½``), powers of ten (``1.2e3``, ``1.2 \times 10^3``, 3 million,
    3 million 200 thousand, 3 hundred and 5), expressions of + − × ÷ and powers, also in words, currencies, units and
    markdown. A percentage is its number: 50 % is 50. A sign between two numbers is an operation: "5-3" ends in 3.

    ``\boxed{2,3}`` can mean 2.3 or the pair 2 and 3. It is read as 2.3, as in running text: where the reference is
    2.3, an answer written so means 2.3. ``\boxed{(2,3)}``, ``\boxed{2, 3}`` and ``\boxed{1,2,3}`` are lists and give
    None.

    >>> str(final_number("The answer is 5 * 3 = 15.")), str(final_number(r"so \boxed{1{,}200}"))
    ('15', '1200')
    """
    plain = _plain(_THOUGHT.sub("", text))
    for find_segments, only_unit_follows in ((_boxed, True), (_after_hashes, False), (_after_answer, False)):
        for segment in find_segments(plain):
            if re.search(r"\d", segment):
                return _read(segment, only_unit_follows=only_unit_follows)
    return _last_number(plain)


# One plain form ---------------------------------------------------------------------------


def _plain(text: str) -> str:
    r"""Typography, markdown and LaTeX as plain expressions; ``\boxed`` stays."""
    text = re.sub(r"(\d?)([½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", lambda m: f"{m[1]}{' ' if m[1] else ''}{_FRACTIONS[m[2]]}", text)
    text = re.sub(r"(?<=[\d)])[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: "^" + m[0].translate(_SUPERSCRIPTS), text)
    for pattern, to in _REWRITES[:2]:
        text = pattern.sub(to, text)
    text = _SPACED.sub(_joined, text.translate(_SYMBOLS))
    before = None
    while before != text:  # from the inside out
        before = text
        text = re.sub(r"\\(?:text\w*|math\w+|mbox|hbox|operatorname|emph)\s*\{([^{}]*)\}", r" \1 ", text)
    for pattern, to in _REWRITES[2:]:
        text = pattern.sub(to, text)
    text = re.sub(r"[\d.]+;\d+", lambda m: m[0].replace(".", "").replace(";", "."), text)
    text = _DENIED.sub(" ", _SCALED.sub(_scaled, text))
    text = re.sub(r"\*+", _star, text)
    before = None
    while before != text:
        before = text
        text = re.sub(
            r"(?<![\w.])(\d*)\s*\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))", _fraction, text
        )
        text = re.sub(r"\^\s*\{([^{}]*)\}", r"^(\1)", text)
    return re.sub(r"(?<![\d./^])(\d{1,3})\s+(\d+)/(\d+)(?![\d/])", _mixed, text)


def _joined(match: re.Match[str]) -> str:
    """A number without spaces between its thousands, and with a decimal point instead of a comma."""
    return match[1].replace(" ", "") + (f".{match[2]}" if match[2] else "")


def _scaled(match: re.Match[str]) -> str:
    """Numbers with words such as million after them, in digits: "3 million 200 thousand" is one number.

    A part is added to the number before it if it is smaller than that one's last power of ten.
    """
    written, total, scale, end = "", Decimal(0), 0, 0
    for part in _SCALED_PART.finditer(match[0]):
        size = math.prod(_SCALES[word.lower()] for word in part[2].split())
        value = Decimal(part[1].replace(",", "")) * size
        if not value.is_finite() or abs(value.adjusted()) >= 30:
            return match[0]
        if value < scale:
            total += value
        else:
            written += (f"{total.normalize():f}" if end else "") + match[0][end : part.start()]
            total = value
        scale, end = size, part.end()
    return written + f"{total.normalize():f}"


def _star(match: re.Match[str]) -> str:
    """An asterisk between two operands is an operation; all others are markdown."""
    text, start, end = match.string, match.start(), match.end()
    left, right = text[:start].rstrip(" "), text[end:].lstrip(" ")
    symmetric = (len(left) < start) == (len(right) < len(text) - end)
    spaced = len(left) < start
    operand = left[-1:].isdigit() or left[-1:] in (")", "}") or (spaced and left[-1:].isalpha())
    if len(match[0]) < 3 and symmetric and operand and re.match(r"[\d({\\.-]", right):
        return match[0]
    return ""


def _fraction(match: re.Match[str]) -> str:
    whole, numerator, denominator = match[1], match[2] or match[3] or "0", match[4] or match[5] or "0"
    before = match.string[: match.start()].rstrip()[-1:]
    if numerator.strip().isdigit() and denominator.strip().isdigit() and before not in ("/", "^", "*"):
        return f"{int(whole or 0) * int(denominator) + int(numerator)}/{int(denominator)}"
    return f"({whole}+({numerator})/({denominator}))" if whole else f"(({numerator})/({denominator}))"


def _mixed(match: re.Match[str]) -> str:
    whole, numerator, denominator = int(match[1]), int(match[2]), int(match[3])
    return f"{whole * denominator + numerator}/{denominator}" if numerator < denominator else match[0]


# Where the answer is ----------------------------------------------------------------------


def _boxed(text: str) -> Iterator[str]:
    """Contents of boxes, the last one first."""
    boxes = [*_BOXED_BARE.finditer(text), *_BOXED.finditer(text)]
    for mark in sorted(boxes, key=lambda mark: mark.start())[: -MARKS - 1 : -1]:
        yield mark[1] if mark.re is _BOXED_BARE else _braced(text, mark.end())


def _braced(text: str, start: int) -> str:
    """Text in the braces that open at ``start``; up to the end of the line if they do not close."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 1 : place]
    return text[start + 1 :].partition("\n")[0]


def _after_hashes(text: str) -> Iterator[str]:
    """The rest of lines with ``####`` that are not headings, the last one first."""
    for mark in reversed(list(_HASHES.finditer(text))):
        if _BEGINS.match(mark[1]) and not _LIST_ITEM.match(mark[1]):
            yield mark[1]


def _after_answer(text: str) -> Iterator[str]:
    """Lines after "the answer is", the last one first; where the line ends there, the next one if it has the number."""
    for mark in list(_ANSWER.finditer(text))[: -MARKS - 1 : -1]:
        line, _, rest = text[mark.end() :].partition("\n")
        if not line.strip(" :*>."):
            next_line = rest.lstrip().partition("\n")[0]
            line = next_line if _BEGINS.match(next_line) and not _LIST_ITEM.match(next_line) else ""
        yield line


def _last_number(text: str) -> Fraction | None:
    """The last number, or the last expression if it follows an equals sign."""
    matches = list(_SIGNED_NUMBER.finditer(text))
    if not matches:
        return None
    after_equals = text.rfind("=") + 1
    if after_equals:
        number = _NUMBER.search(text, after_equals)
        if number is not None and number.start() < matches[-1].start():
            parsed = _Expression(text).parse(_expression_start(text, number.start(), after_equals))
            if parsed is not None and parsed[1] >= matches[-1].end():
                return parsed[0]
    return _fraction_of(matches[-1][0])


def _fraction_of(text: str) -> Fraction | None:
    try:
        return Fraction(re.sub(r"[,\s]", "", text))
    except (ValueError, ZeroDivisionError):
        return None


# Reading it -------------------------------------------------------------------------------


def _read(segment: str, *, only_unit_follows: bool) -> Fraction | None:
    r"""The value of a marked answer: the end of the chain of expressions that begins with its first number.

    Args:
        segment: text at the mark, in plain form.
        only_unit_follows: True: only a unit may follow, as in ``\boxed{}``.
    """
    segment = re.sub(r"[{}]", lambda m: "(" if m[0] == "{" else ")", segment)
    number = _NUMBER.search(segment)
    if number is None:
        return None
    expression = _Expression(segment)
    parsed = expression.parse(_expression_start(segment, number.start(), 0)) or expression.parse(number.start())
    if parsed is None:
        return None
    value, end = parsed
    before = segment[: number.start()].rpartition("=")[2]
    while (equals := _EQUALS.match(segment, end)) is not None:
        next_number = _NUMBER.search(segment, equals.end())
        place = equals.end() if next_number is None else _expression_start(segment, next_number.start(), equals.end())
        continuation = (
            expression.parse(place) if next_number is not None and not segment[equals.end() : place].strip() else None
        )
        if continuation is None:
            break
        value, end = continuation
        before = ""
    if _ROOT_OR_FUNCTION.search(before) or _NOT_A_NUMBER.match(segment, end):  # a root or π, unless it is computed
        continuation = _UP_TO_EQUALS.match(segment, end)
        return (
            None if continuation is None else _read(segment[continuation.end() :], only_unit_follows=only_unit_follows)
        )
    if _TO_NUMBER.match(segment, end) or _BETWEEN.search(before) or _is_one_of_two(segment, end, value):
        return None
    if only_unit_follows:
        rest = _POWER_OF_UNIT.sub(r"\1", segment[end:])
        if re.search(r"[\d+*=^(\\√π]", rest) or re.search(r"[\w)]\s*[-+*/^(]+\s*$", before):
            return None
    return value


def _is_one_of_two(segment: str, end: int, value: Fraction) -> bool:
    """Does another value follow after "or"? One in another unit, as in "90 minutes or 1.5 hours", is the same again."""
    match = _OR_NUMBER.match(segment, end)
    if match is None:
        return False
    other = _Expression(segment).parse(match.end())
    if other is None or other[0] == value:
        return other is None
    following_units = _UNITS.match(segment, other[1])
    first, second = (units.split()[:1] for units in (match["unit"], following_units[0] if following_units else ""))
    return first == second or not ((first and second) or "%" in (*first, *second))


def _expression_start(text: str, place: int, minimum: int) -> int:
    """Where the expression begins whose first number is at ``place``: before its parentheses and its sign."""
    while place > minimum:
        before = text[minimum:place].rstrip(" ")
        sign = before[-1:] in ("-", "+") and not re.search(
            r"[\w)]\s*$", before[:-1] if len(before) < place - minimum else ""
        )
        attached = (
            before[-1:] in ("-", "+") and len(before) == place - minimum and not re.search(r"[\w)]$", before[:-1])
        )
        if before[-1:] == "(" or attached or (sign and not before[:-1].strip()):
            place = minimum + len(before) - 1
        else:
            break
    return place


class _Expression:
    """Reads expressions of numbers, + − * / ^, parentheses and units out of a text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def parse(self, place: int) -> tuple[Fraction, int] | None:
        """The value of the longest expression that begins at ``place``, and where it ends; None: there is none."""
        self.place = place
        try:
            return self._sum(), self.place
        except (ValueError, ZeroDivisionError, OverflowError, RecursionError):
            return None

    def _sum(self) -> Fraction:
        value = self._product()
        for sign in self._operators("+-"):
            term = self._product()
            value += term if sign == "+" else -term
        return value

    def _product(self) -> Fraction:
        value = self._power()
        for sign in self._operators("*/xX"):
            factor = self._power()
            value = value / factor if sign == "/" else value * factor
        return value

    def _power(self) -> Fraction:
        negative = False
        while (sign := re.compile(r"\s*([-+])").match(self.text, self.place)) is not None:
            negative ^= sign[1] == "-"
            self.place = sign.end()
        value = self._operand()
        for _ in self._operators("^"):
            value = _power(value, self._power())
        return -value if negative else value

    def _operand(self) -> Fraction:
        opened = re.compile(r"\s*\(").match(self.text, self.place)
        if opened is not None:
            self.place = opened.end()
            value = self._sum()
            closed = re.compile(r"\s*\)").match(self.text, self.place)
            if closed is None:
                raise ValueError("a parenthesis does not close")
            self.place = closed.end()
            return value
        number = re.compile(rf"\s*({_UNSIGNED})").match(self.text, self.place)
        if number is None:
            raise ValueError("no number")
        self.place = number.end()
        return Fraction(number[1].replace(",", ""))

    def _operators(self, signs: str) -> Iterator[str]:
        """The operators of one rank, as long as an operand follows; units may precede them."""
        pattern = re.compile(rf"\s*([{re.escape(signs)}])\s*(?=[-+]?\s*\(*\s*[-+]?[\d.])")
        while True:
            units = _UNITS.match(self.text, self.place) if signs != "^" else None
            operator = pattern.match(self.text, self.place) or (
                pattern.match(self.text, units.end()) if units is not None else None
            )
            if operator is None:
                return
            self.place = operator.end()
            yield operator[1]


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator != 1 or size * abs(exponent) > LARGEST_POWER:
        raise ValueError("a power that is not worked out")
    return base**exponent.numerator
