"""Fill in templates: those beside this file, and of other rooms."""

import re
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from finetune.params.schema import to_text

# What Markdown would read as more than text: signs anywhere (_ at the edge of a word), what ends a line, what is made a
# link without signs; at the edges of a value, white space and what makes a rule, an underline or a list.
_MARKUP = re.compile(
    r"""[\\`*\[\]<>&|~\#$@{}\t\n\r\u2028\u2029]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.
    |\A\s|\s\Z|\A[-+=](?=[-+=\s]|\Z)|\A[0-9](?=[0-9]*[.)](?:\s|\Z))""",
    re.X,
)


def fill(template: str, folder: Path = Path(__file__).parent, **values: object) -> str:
    """Return the text of a page. Values that aren't Markup are shown as they are, whatever they hold.

    A name without value is an error. `folder` is where the template lies.
    """
    return _pages(folder, ".html" in template).get_template(template).render(**values)


@cache
def _pages(folder: Path, html: bool) -> jinja2.Environment:
    """Return what fills in the templates of a folder, each of which is compiled once."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=html,
        finalize=None if html else markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {"number": number, "label": label, "plain": to_text}
    return pages


def markdown(value: object) -> str:
    """Return Markdown, for anywhere but code, that shows the value's text; Markup is returned as it is."""
    if isinstance(value, Markup):
        return value
    text = re.sub("[\ud800-\udfff]", "\ufffd", str(value))  # half a surrogate pair, which no file can hold
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


def number(value: float) -> str:
    """Return the number as it stands in a table."""
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def label(name: str) -> str:
    """Return a metric's name as a heading."""
    return name[:1].upper() + name[1:].replace("_", " ")
