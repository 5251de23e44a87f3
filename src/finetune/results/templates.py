"""The templates beside this file, filled in."""

from pathlib import Path

import jinja2

from finetune.params.schema import to_text


def fill(template: str, **values: object) -> str:
    """The text of a page; in HTML every value is escaped that isn't Markup. A name that isn't given is an error."""
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
    """For a table."""
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def label(name: str) -> str:
    """A metric's name as a heading."""
    return name[:1].upper() + name[1:].replace("_", " ")
