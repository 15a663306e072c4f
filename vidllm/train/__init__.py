"""Teaching a model: losses over log-probs first; loop, data and stages stand on them."""
