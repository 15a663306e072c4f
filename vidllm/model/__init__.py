"""The model room: from a checkpoint's folder to logits. `families` and `chat` are torch-free; the rest is not."""
