"""The makings of S2Q: sub-values side by side, the unrestricted central value, the learned choice among sub-values."""
