"""Parts that all report pages share: an environment that escapes all text, and one style sheet, allowed by its hash."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trimtab.evals.charts import number, percent
from trimtab.text import visible

_STYLE = Path(__file__).with_name("report.css")


def page_environment(templates: Path) -> Environment:
    """Environment for the templates of a folder. Values are escaped and made visible; None becomes a dash."""
    environment = Environment(
        loader=FileSystemLoader(templates),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible("–" if value is None else str(value)),
    )
    environment.filters |= {"number": number, "percent": percent}
    return environment


def page_style() -> dict[str, str]:
    """``style``, the style sheet, and ``style_hash``, its SHA-256 for the content security policy."""
    style = _STYLE.read_text(encoding="utf-8")
    return {"style": Markup(style), "style_hash": base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}
