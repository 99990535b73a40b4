"""Files of a run folder that a test has changed, as if a run had written them so."""

import json

import numpy as np
import pandas as pd

from ddpmbench.checksums import CHECKSUMS, checksum, seal, write_json, write_npz


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


def write_record(path, record):
    """Another record; the checksums of tables stay."""
    tables = json.loads(path.read_text())[CHECKSUMS]
    path.write_text(json.dumps({**record, CHECKSUMS: tables}))
    seal_again(path)


def edit(path, **changes):
    """Other values in a record."""
    write_record(path, read_record(path) | changes)


def write_frame(path, frame):
    """Another table."""
    pd.DataFrame(frame).to_csv(path, index=False)
    seal_again(path)


def read_record(path):
    """What a JSON file holds besides the checksums."""
    record = json.loads(path.read_text())
    record.pop(CHECKSUMS, None)
    return record


def read_npz(path):
    """All arrays of an npz file."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def edit_npz(path, **changes):
    """Other arrays in an npz file, or none where they are None."""
    arrays = read_npz(path) | changes
    write_npz(path, {name: array for name, array in arrays.items() if array is not None})


def terms_in(folder, name="terms"):
    """The terms in the shards of a run folder, one row each, in the order of the shards."""
    shards = sorted((folder / "shards").glob(f"{name}-*.npz"))
    frames = [
        pd.DataFrame({name: array for name, array in read_npz(path).items() if array.ndim})
        for path in shards
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
