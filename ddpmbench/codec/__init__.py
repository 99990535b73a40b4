"""The lossless code whose length is the variational bound."""
