"""How many of what, in words for a person."""


def count_of(number: int, noun: str, ending: str = "s") -> str:
    """`1 clip`, `2,000 clips`; where more of them end otherwise, `ending` says how."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{ending}"
