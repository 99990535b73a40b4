"""A disk that is full at any write of a run: one line, and the same command goes on after it."""

import errno
import os

import pytest

import ddpmbench as db
from ddpmbench import files


class Disk:
    """Holds so many files more; of every file that is written a call of fsync is the last."""

    def __init__(self):
        self.left, self.written = 10**6, 0

    def fsync(self, descriptor):
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= 1
        self.written += 1


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(files.os, "fsync", disk.fsync)
    return disk


@pytest.fixture(params=["nll", "sample"])
def command(request, small_model, small_images):
    few = small_model.respaced(3)
    if request.param == "nll":
        return lambda out: db.evaluate_nll(
            few, small_images, estimator="every-pair", draws=1, out=out
        )
    return lambda out: db.generate_samples(few, 2, out=out)


def test_what_is_whole_is_kept_and_the_rest_comes_later(command, disk, tmp_path):
    expected = command(tmp_path / "whole").summary
    for room in range(disk.written):
        disk.left = room
        with pytest.raises(db.InputError, match=r"cannot be written \(no space left on device\)"):
            command(tmp_path / str(room))
        left = [p for p in (tmp_path / str(room)).rglob("*") if p.is_file()]
        assert len(left) == room, "what was written whole was lost, or a part was left"
        disk.left = 10**6
        result = command(tmp_path / str(room)).summary
        times = ("seconds", "images_per_second")
        assert {n: v for n, v in result.items() if n not in times} == {
            n: v for n, v in expected.items() if n not in times
        }
