"""Networks as people publish them are evaluated as docs/reference/checkpoints.md describes."""

import pytest
import torch
from custom_networks import bound_of, opened
from custom_repositories import REPOSITORIES

from ddpmbench.execution.devices import evaluating_checkpoint


@pytest.mark.parametrize("name", REPOSITORIES)
def test_it_is_evaluated_as_it_was_trained(small_npz, tmp_path, name):
    """To a number, and with the outputs of the repository's own code."""
    repository = REPOSITORIES[name]
    model, words = repository.write(tmp_path)
    words += ["--data", small_npz, "--num-images", 1]
    assert bound_of(words) > 0
    checkpoint, _ = opened(words)
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 7, 20])
    label = torch.full_like(t, int(repository.options.get("--class", 0)))
    with torch.no_grad(), evaluating_checkpoint(checkpoint):
        output = checkpoint.model_output(x_t, t, label)
        torch.testing.assert_close(output, repository.prediction(model, x_t, t))
