import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from rayhook.smart_app.i18n import LANGUAGES, accepted
from rayhook.smart_app.patient import age_text
from rayhook.smart_app.worklist_order import (
    PAGE_SIZE,
    Place,
    Selection,
    Sort,
    Stage,
    ordered,
    page_of,
    started_at,
)


@dataclass(frozen=True)
class Row:
    place: Place


STARTED = st.none() | st.sampled_from(
    ["2024", "2024-05", "2024-05-01", "2024-05-01T10:00:00Z", "2024-05-01T12:00:00+02:00", "0001-01-01", "?"]
)
ROWS = st.lists(
    st.builds(
        Row,
        st.builds(
            Place,
            stage=st.sampled_from(Stage),
            started=STARTED,
            key=st.text(min_size=1, max_size=4),
            probability=st.floats(0, 1),
            modalities=st.tuples(st.sampled_from(["CT", "MR", "DX"])),
        ),
    ),
    unique_by=lambda row: row.place.key,
    max_size=60,
)
SORTS = st.sampled_from(Sort)
SELECTIONS = st.builds(
    Selection,
    modality=st.none() | st.sampled_from(["CT", "MR", "XA"]),
    stage=st.none() | st.sampled_from(Stage),
    sort=SORTS,
    page=st.integers(0, 9),
)


@given(ROWS, SORTS, st.randoms())
def test_order_does_not_depend_on_how_the_studies_come(rows, sort, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert ordered(shuffled, sort) == ordered(rows, sort)


@given(ROWS, SORTS)
def test_no_study_is_lost_or_shown_twice(rows, sort):
    assert sorted(ordered(rows, sort), key=repr) == sorted(rows, key=repr)


@given(ROWS)
def test_more_urgent_stage_is_never_below_a_less_urgent_one(rows):
    ranks = [list(Stage).index(row.place.stage) for row in ordered(rows, Sort.URGENCY)]
    assert ranks == sorted(ranks)


@given(ROWS)
def test_probable_finding_stands_above_a_less_probable_one(rows):
    shown = [row.place.probability for row in ordered(rows, Sort.URGENCY) if row.place.stage is Stage.REVIEW]
    assert shown == sorted(shown, reverse=True)


@given(ROWS, SELECTIONS)
def test_pages_together_are_the_whole_list(rows, selection):
    pages = page_of(rows, selection).pages
    every = [row for number in range(1, pages + 1) for row in page_of(rows, at_page(selection, number)).rows]
    assert every == ordered([row for row in rows if selection.shows(row.place)], selection.sort)


@given(ROWS, SELECTIONS)
def test_page_that_does_not_exist_is_the_nearest(rows, selection):
    page = page_of(rows, selection)
    assert 1 <= page.number <= page.pages
    assert len(page.rows) <= PAGE_SIZE


@given(st.dictionaries(st.sampled_from(["modality", "stage", "sort", "page"]), st.text(max_size=12)))
def test_no_address_of_the_list_is_refused(query):
    page_of([], Selection.of(query))


@given(SELECTIONS, st.integers(1, 99))
def test_address_of_a_page_reads_back(selection, number):
    query = dict(pair.split("=") for pair in selection.path(number).partition("?")[2].split("&") if pair)
    assert Selection.of(query) == at_page(selection, number)


@given(st.none() | st.text(max_size=40))
def test_any_date_has_a_place(started):
    assert not math.isnan(started_at(started))


@given(st.text(max_size=300))
def test_no_header_leads_to_a_language_that_is_not_served(header):
    assert accepted(header) in {None, *LANGUAGES}


@given(st.dates(), st.dates())
def test_age_is_told_only_of_who_is_born(born, today):
    assert bool(age_text(born.isoformat(), today.isoformat())) == (born <= today)


def at_page(selection: Selection, number: int) -> Selection:
    return Selection(selection.modality, selection.stage, selection.sort, number)
