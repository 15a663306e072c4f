"""How a video is named: a file, its file:// address, or an http(s) one to fetch. Asked of every video, so it loads none
of the libraries that fetch.
"""

from pathlib import Path


def is_url(video: object) -> bool:
    """Whether `video` names something to fetch rather than a file."""
    return isinstance(video, str) and video.lower().startswith(("http://", "https://"))


def plain_path(video: str | Path) -> str | Path:
    """What a file:// address leads to, for rows written for Qwen's processors name their clips so; else `video`."""
    if not (isinstance(video, str) and video.lower().startswith("file://")):
        return video
    from urllib.parse import unquote

    return unquote(video[len("file://") :].removeprefix("localhost"))
