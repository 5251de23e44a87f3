"""Fill in the templates beside this file."""

from pathlib import Path

import jinja2

from finetune.params.schema import to_text


def fill(template: str, **values: object) -> str:
    """Return the text of a page. In HTML, values that aren't Markup are escaped; a name without value is an error."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=".html" in template,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {"number": number, "label": label, "plain": to_text}
    return pages.get_template(template).render(**values)


def number(value: float) -> str:
    """Return the number as it stands in a table."""
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def label(name: str) -> str:
    """Return a metric's name as a heading."""
    return name[:1].upper() + name[1:].replace("_", " ")
