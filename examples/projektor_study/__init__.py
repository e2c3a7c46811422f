"""How well projektor predicts and chooses mixtures, measured: what the projektor examples share."""
