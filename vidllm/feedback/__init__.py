"""From questions to preference pairs: candidates of the model being taught, a judge's opinion, and who is held apart."""
