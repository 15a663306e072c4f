"""Whether this process is the guard's child: what may hang or crash a process (decord) runs nowhere else."""

_inside = False


def enter_child() -> None:
    """Say that this process may be killed at any moment and that nobody is hurt by it."""
    global _inside
    _inside = True


def is_child() -> bool:
    """Whether this process is a guard's child."""
    return _inside
