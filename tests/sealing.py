"""Files of a run folder that a test has changed, as if a run had written them so."""

import json

import pandas as pd

from ddpmbench.checksums import CHECKSUMS, checksum, seal, write_json


def seal_again(path):
    """Make the checksum of a file hold again, of whatever is in it now."""
    if path.suffix == ".json":
        record = json.loads(path.read_text())
        tables = record.pop(CHECKSUMS, {})
        tables.pop("this", None)
        write_json(path, record, tables)
    elif path.suffix == ".csv":
        summary = path.parent / "summary.json"
        record = json.loads(summary.read_text())
        tables = record.pop(CHECKSUMS, {})
        write_json(summary, record, {**tables, path.name: checksum(path)})
    else:
        seal(path)


def write_text(path, text):
    """Another text of a file."""
    path.write_text(text)
    seal_again(path)


def edit(path, **changes):
    """Other values in a record."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    seal_again(path)


def write_frame(path, frame):
    """Another table."""
    pd.DataFrame(frame).to_csv(path, index=False)
    seal_again(path)


def read_record(path):
    """What a JSON file holds besides the checksums."""
    record = json.loads(path.read_text())
    record.pop(CHECKSUMS, None)
    return record
