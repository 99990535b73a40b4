"""Records of a folder: without a field, or with one of another type, they are refused by name."""

import copy
from typing import get_args

import msgspec
import pytest
from fidelity_folders import reference, summary
from test_nll_text import LOW, RECORD
from test_page import SUMMARY, compared

from ddpmbench.errors import InputError
from ddpmbench.report import compare_fid, compare_nll
from ddpmbench.report.fid import AGAINST_REFERENCE, Fidelity
from ddpmbench.report.folder_contents import Environment, check
from ddpmbench.report.tables import Run


def run(**changes):
    conventions = {**SUMMARY["conventions"], "labels": None}
    return {**copy.deepcopy(SUMMARY), "conventions": conventions, **changes}


def comparison():
    unknown = dict.fromkeys(compare_nll.Compared.__struct_fields__)
    whole = run(**compared())
    baseline = {**unknown, **whole["baseline"]}
    return {**whole, "conventions": run()["conventions"], "baseline": baseline}


def fidelity_of_two():
    one, other = summary(), summary([reference(fid=14.0)])
    differences = [
        compare_fid.difference(name, other["references"][0], one["references"][0], paired=None)
        for name in AGAINST_REFERENCE
    ]
    return compare_fid.summary(["a", "b"], [one, other], [differences])


CHECKED = {"warning": None, "likely": None, "num_evaluations": 8}
RECORDS = {
    "run": (Run, run(**LOW, check=CHECKED)),
    "comparison": (compare_nll.Comparison, comparison()),
    "fidelity": (Fidelity, summary(check=CHECKED)),
    "fidelity comparison": (compare_fid.FidelityComparison, fidelity_of_two()),
    "environment": (Environment, {"versions": {}, "arguments": {"resolved": {}}}),
}


def structs_in(kind):
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [found for inner in get_args(kind) for found in structs_in(inner)]


def fields(record, kind, path=()):
    """Each field that a record has, those of records within too, and where it is."""
    for field in msgspec.structs.fields(kind):
        if field.name not in record:
            continue
        place, value = (*path, field.name), record[field.name]
        yield place, field
        within = [*place, 0] if isinstance(value, list) else place
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            for struct in structs_in(field.type):
                yield from fields(inner, struct, tuple(within))


def parent(record, place):
    for key in place[:-1]:
        record = record[key]
    return record


@pytest.mark.parametrize("name", RECORDS)
def test_every_field_that_is_missing_or_of_another_type_is_named(tmp_path, name):
    kind, whole = RECORDS[name]
    check(whole, kind, tmp_path)
    places = list(fields(whole, kind))
    assert len(places) >= len(kind.__struct_fields__) - 1
    for place, field in places:
        for is_missing in (True, False):
            damaged = copy.deepcopy(whole)
            if is_missing:
                del parent(damaged, place)[place[-1]]
                if not field.required:
                    continue
            else:
                parent(damaged, place)[place[-1]] = [[]]
            with pytest.raises(InputError, match="missing or damaged") as refused:
                check(damaged, kind, tmp_path)
            text = str(refused.value)
            assert text.startswith(str(tmp_path))
            assert place[-1] in text
            assert "\n" not in text
            assert "`" not in text  # a command would take it for a parameter


def first_differences(of):
    return of["runs"][0]["differences"]


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("run", lambda of: of.update(prior=True), "prior"),
        ("run", lambda of: of.update(bits_per_dim="3.6"), "bits_per_dim"),
        ("run", lambda of: of["sampling"].clear(), "sampling.num_replicates"),
        ("run", lambda of: of.update(precision_correction=None), "precision_correction"),
        ("run", lambda of: of.update(precision="fp32"), "precision_correction"),
        ("comparison", lambda of: of.update(runs=[]), "runs"),
        ("comparison", lambda of: of["runs"].append(3), "runs[1]"),
        ("fidelity", lambda of: of.update(references=[]), "references"),
        ("fidelity", lambda of: of.update(warnings=[1]), "warnings[0]"),
        ("fidelity comparison", lambda of: first_differences(of).pop(0), "differences"),
        ("fidelity comparison", lambda of: first_differences(of).clear(), "differences"),
        (
            "fidelity comparison",
            lambda of: first_differences(of)[0].update(measure="other"),
            "measure",
        ),
        ("environment", lambda of: of["arguments"].update(given=3), "arguments.given"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, name, change, field):
    kind, whole = RECORDS[name]
    damaged = copy.deepcopy(whole)
    change(damaged)
    with pytest.raises(InputError) as refused:
        check(damaged, kind, tmp_path)
    assert f"{tmp_path}: missing or damaged: " in str(refused.value)
    assert field in str(refused.value)


@pytest.mark.parametrize("changes", [{}, {"precision_correction": None}, LOW])
def test_a_correction_belongs_to_low_precision_alone(tmp_path, changes):
    check(run(**changes), Run, tmp_path)
    assert ("precision" in changes) == (changes.get("precision_correction") is RECORD)
