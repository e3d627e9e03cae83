"""Conditions for studies, as a person knows them: accession number, patient, date, modality.

Values are compared with DICOM's wildcards: `*` stands for any text, `?` for one character (PS3.4 C.2.2.2.4).
The text before the first wildcard is a range of an index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Boolean, ColumnElement, CompoundSelect, and_, exists, or_, select, union
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ingest.dicom.study_attributes import normalize_name
from ingest.ledger.schema import instances, series, studies

LAST_CHARACTER: Final = "\U0010ffff"
_NAMES: Final = (studies.c.name_alphabetic, studies.c.name_ideographic, studies.c.name_phonetic)


class _PatternMatch(FunctionElement[bool]):
    """Compares a column with a pattern, with regard to case: GLOB on SQLite, LIKE on PostgreSQL."""

    inherit_cache = True
    type = Boolean()


@compiles(_PatternMatch, "sqlite")
def _compile_glob(element: Any, compiler: Any, **keywords: Any) -> str:
    column, glob, _ = element.clauses
    return f"{compiler.process(column, **keywords)} GLOB {compiler.process(glob, **keywords)}"


@compiles(_PatternMatch, "postgresql")
def _compile_like(element: Any, compiler: Any, **keywords: Any) -> str:
    column, _, like = element.clauses
    return f"{compiler.process(column, **keywords)} LIKE {compiler.process(like, **keywords)}"


class _Examined(FunctionElement[str]):
    """A column whose value is compared for each row, because SQLite uses no index of it."""

    inherit_cache = True


@compiles(_Examined, "sqlite")
def _compile_examined(element: Any, compiler: Any, **keywords: Any) -> str:
    return f"+{compiler.process(element.clauses, **keywords)}"


@compiles(_Examined, "postgresql")
def _compile_column(element: Any, compiler: Any, **keywords: Any) -> str:
    return str(compiler.process(element.clauses, **keywords))


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFilter:
    """Conditions for the study that something belongs to; a condition that is None does not apply.

    Attributes:
        accession_number, patient_id: With wildcards, with regard to case.
        patient_name: With wildcards, without regard to case and accents. A name without wildcards also
            matches names with more components: "muller" matches "Müller^Hans".
        date_from, date_to: Study dates of eight digits, both included.
        modality: Modality of a series.
    """

    accession_number: str | None = None
    patient_id: str | None = None
    patient_name: str | None = None
    date_from: str | None = None
    date_to: str | None = None
    modality: str | None = None

    @property
    def names_patient_or_order(self) -> bool:
        """Whether a condition selects few studies."""
        return any(value is not None for value in (self.accession_number, self.patient_id, self.patient_name))

    @property
    def needs_index(self) -> bool:
        """Whether a condition compares an attribute that `[ledger] index` has to allow."""
        dates = (self.date_from, self.date_to, self.modality)
        return self.names_patient_or_order or any(value is not None for value in dates)

    def build_attribute_clauses(self) -> list[ColumnElement[bool]]:
        """Return the conditions as SQL over `studies`, without the modality.

        No index is searched for a name in any of its groups: `select_named_studies` does so.
        """
        clauses = []
        for column, pattern in (
            (studies.c.accession_number, self.accession_number),
            (studies.c.patient_id, self.patient_id),
        ):
            if pattern is not None:
                clauses += _match_pattern(column, pattern.strip())
        if self.patient_name is not None:
            clauses.append(_match_name(self.patient_name))
        if self.date_from is not None or self.date_to is not None:
            clauses.append(studies.c.study_date >= (self.date_from or "0"))
            clauses.append(studies.c.study_date <= (self.date_to or "99999999"))
        return clauses

    def select_named_studies(self) -> CompoundSelect[Any] | None:
        """Select the UIDs of studies with the name in any of its groups; None without such a condition.

        Each part of the union is a range of one index.
        """
        if self.patient_name is None or "=" in self.patient_name:
            return None
        name = normalize_name(self.patient_name)
        return union(*(select(studies.c.study_uid).where(*_match_group(column, name)) for column in _NAMES))

    def build_study_clauses(self) -> list[ColumnElement[bool]]:
        """Return the conditions as SQL over `studies`."""
        clauses = self.build_attribute_clauses()
        if self.modality is not None:
            clauses.append(
                exists().where(series.c.study_uid == studies.c.study_uid, series.c.modality == self.modality)
            )
        return clauses

    def build_membership_clauses(self) -> list[ColumnElement[bool]]:
        """Return the conditions as SQL over `instances`. The modality is that of the instance's series."""
        clauses: list[ColumnElement[bool]] = []
        attributes = self.build_attribute_clauses()
        if attributes:
            clauses.append(exists().where(studies.c.study_uid == instances.c.study_uid, *attributes))
        if self.modality is not None:
            clauses.append(
                exists().where(
                    series.c.study_uid == instances.c.study_uid,
                    series.c.series_uid == instances.c.series_uid,
                    series.c.modality == self.modality,
                )
            )
        return clauses


def _match_pattern(column: ColumnElement[str], pattern: str) -> list[ColumnElement[bool]]:
    if not any(wildcard in pattern for wildcard in "*?"):
        return [column == pattern]
    prefix = pattern.partition("*")[0].partition("?")[0]
    clauses: list[ColumnElement[bool]] = [column >= prefix] if prefix else [column != ""]
    if prefix:
        clauses.append(column < prefix + LAST_CHARACTER)
    if pattern != f"{prefix}*":
        glob = pattern.replace("[", "[[]")
        like = pattern
        for escaped in "\\%_":
            like = like.replace(escaped, f"\\{escaped}")
        clauses.append(_PatternMatch(column, glob, like.replace("*", "%").replace("?", "_")))
    return clauses


def _match_name(pattern: str) -> ColumnElement[bool]:
    """Match a name: each group that is given in its place, or one group in any place."""
    groups = [normalize_name(group) for group in pattern.split("=")]
    if len(groups) == 1:
        return or_(*(and_(*_match_group(_examine(column), groups[0])) for column in _NAMES))
    return and_(
        *(
            clause
            for column, group in zip(_NAMES, groups, strict=False)
            if group
            for clause in _match_group(column, group)
        )
    )


def _examine(column: ColumnElement[str]) -> ColumnElement[str]:
    examined = _Examined(column)
    examined.type = column.type
    return examined


def _match_group(column: ColumnElement[str], pattern: str) -> Sequence[ColumnElement[bool]]:
    if any(wildcard in pattern for wildcard in "*?"):
        return _match_pattern(column, pattern)
    # "^" separates components. The last clause leaves out longer family names.
    more = and_(column >= f"{pattern}^", column < f"{pattern}_")
    return column >= pattern, column < pattern + LAST_CHARACTER, or_(column == pattern, more)
