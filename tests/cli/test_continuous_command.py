"""`nll --timesteps continuous` and `nll --continuous`."""


def test_the_command(said, small_checkpoint, small_npz, tmp_path):
    inputs = ["nll", "--ckpt", small_checkpoint, "--data", small_npz, "--estimator", "every-pair"]
    status, printed, _ = said(*inputs, "--timesteps", "continuous", "--out", tmp_path / "run")
    assert status == 0
    assert "linear, continuous time" in printed
    status, printed, _ = said(*inputs, "--continuous", "--out", tmp_path / "other")
    assert status == 0
    assert "bits/dim in continuous time" in printed
    status, _, told = said(*inputs, "--timesteps", "none")
    assert status == 2
    assert "--timesteps" in told
