"""Whether a name is an address to fetch from: asked of every video, so it loads none of the libraries that fetch."""


def is_url(video: object) -> bool:
    """Whether `video` names something to fetch rather than a file."""
    return isinstance(video, str) and video.lower().startswith(("http://", "https://"))
