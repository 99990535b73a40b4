"""What makes a run the same run."""

import dataclasses

import numpy as np
import pytest
import torch

import ddpmbench as db


class OfLabels(torch.nn.Module):
    def forward(self, x_t, time, labels):
        return x_t * labels[:, None, None, None] / 4


def test_a_run_does_not_go_on_with_other_labels(small_model, small_images, tmp_path):
    model = dataclasses.replace(small_model.respaced(3), network=OfLabels(), num_classes=4)
    labels = np.arange(6) % 4
    images = dataclasses.replace(small_images, labels=labels)
    db.evaluate_nll(model, images, estimator="every-pair", out=tmp_path)
    others = dataclasses.replace(small_images, labels=labels[::-1].copy())
    with pytest.raises(db.InputError, match="labels_sha256 is"):
        db.evaluate_nll(model, others, estimator="every-pair", out=tmp_path)
