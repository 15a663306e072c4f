"""From questions to preference pairs: candidates of the model being taught, a judge, and who is set against whom."""
