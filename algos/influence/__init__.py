"""The makings of FIM and LAIES: which state features to influence, a model of the world, counterfactuals, traces."""
