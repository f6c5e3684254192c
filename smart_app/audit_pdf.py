"""A report on one patient as a PDF: the same facts and lines as its page, to hand or send to the patient.

Spec: 45 CFR 164.528(b), (c); ISO 32000
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import fontpkg_noto_sans
from fpdf import FPDF
from fpdf.fonts import FontFace

_FONT: Final = "NotoSans"
_FILE: Final = Path(fontpkg_noto_sans.ROOT) / "files" / "NotoSans[wdth,wght].ttf"
_WIDTHS: Final = (17, 22, 24, 36, 13, 8)
_MARGIN_MM: Final = 14


class _Report(FPDF):
    """A4 across, with the page's number at its foot."""

    def __init__(self) -> None:
        super().__init__(orientation="landscape", format="A4")
        self.set_margin(_MARGIN_MM)
        self.set_auto_page_break(True, _MARGIN_MM)
        self.add_font(_FONT, fname=_FILE)
        self.set_font(_FONT, size=9)

    def footer(self) -> None:
        self.set_y(-_MARGIN_MM + 3)
        self.set_font(_FONT, size=8)
        self.cell(0, 4, f"{self.page_no()} / {{nb}}", align="R")


def report_pdf(
    title: str,
    facts: Sequence[tuple[str, str]],
    *,
    note: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    language: str,
    made_at: datetime,
) -> bytes:
    """Return the PDF; the heads stand again on every page. heads, rows: six columns."""
    pdf = _Report()
    pdf.set_lang(language)
    pdf.set_title(title)
    pdf.set_creation_date(made_at)
    pdf.add_page()
    pdf.set_font(_FONT, size=15)
    pdf.multi_cell(0, 8, title, new_x="LMARGIN", new_y="NEXT")
    for name, value in facts:
        pdf.set_font(_FONT, size=9)
        pdf.cell(45, 5.5, name)
        pdf.set_font(_FONT, size=9)
        pdf.multi_cell(0, 5.5, value, new_x="LMARGIN", new_y="NEXT")
    if note:
        pdf.ln(2)
        pdf.multi_cell(0, 5, note, new_x="LMARGIN", new_y="NEXT")
    pdf.ln(3)
    pdf.set_font(_FONT, size=8)
    with pdf.table(
        col_widths=_WIDTHS,
        line_height=4.2,
        headings_style=FontFace(fill_color=(232, 236, 241)),
        text_align="LEFT",
    ) as table:
        table.row(heads)
        for row in rows:
            table.row(row)
    return bytes(pdf.output())
