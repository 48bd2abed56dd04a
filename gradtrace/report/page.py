"""One self-contained HTML page: text, tables and pictures, with nothing loaded from anywhere else."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from gradtrace.report.table import Table

__all__ = ["Page", "Picture", "Section", "render"]


@dataclass(frozen=True)
class Picture:
    """A PNG with the words that stand in for it (`alt`) and those that stand below it."""

    png: bytes
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.png.startswith(b"\x89PNG\r\n\x1a\n") or not self.alt:
            raise ValueError("a picture needs PNG bytes and an alternative text")

    @property
    def width(self) -> int:
        """Pixels across, as the PNG's header says."""
        return int.from_bytes(self.png[16:20], "big")

    @property
    def source(self) -> str:
        """The picture itself as a data URI."""
        return "data:image/png;base64," + b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading, then paragraphs, a list of findings, pictures and tables in this order."""

    title: str
    paragraphs: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """`facts` are short (label, value) pairs shown large at the top."""

    title: str
    summary: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    footer: str = ""


def render(page: Page) -> str:
    """The page as one HTML document; every text is escaped."""
    environment = Environment(
        loader=PackageLoader("gradtrace.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(page=page)
