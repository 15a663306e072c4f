"""Ask a video: any image language model becomes a video language model, every token budgeted.

    import vidllm
    vidllm.load().ask("clip.mp4", "what happens at 0:30?").text

What is listed in `__all__` is public. Names are imported when they are first used, so `import vidllm` costs nothing:
torch comes with `load`, numpy with the first look at a clip.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidllm.answer import Answer, Cited
    from vidllm.ask import VideoModel, load, plan
    from vidllm.clip import PlanOptions
    from vidllm.corpus.caption import CaptionOptions, CaptionReport, caption
    from vidllm.errors import BudgetError, ConfigError, ModelError, VideoError, VidllmError
    from vidllm.options import GenerationOptions
    from vidllm.planned import Plan
    from vidllm.reads import read_frames
    from vidllm.session import AnswerStream, ChatSession
    from vidllm.video.decode import FrameSet
    from vidllm.video.guard import Limits
    from vidllm.video.info import VideoInfo, probe
    from vidllm.visuals import Image

__version__ = "0.1.0"

_HOMES = {
    "vidllm.answer": ("Answer", "Cited"),
    "vidllm.ask": ("VideoModel", "load", "plan"),
    "vidllm.clip": ("PlanOptions",),
    "vidllm.corpus.caption": ("CaptionOptions", "CaptionReport", "caption"),
    "vidllm.errors": ("BudgetError", "ConfigError", "ModelError", "VideoError", "VidllmError"),
    "vidllm.options": ("GenerationOptions",),
    "vidllm.planned": ("Plan",),
    "vidllm.visuals": ("Image",),
    "vidllm.reads": ("read_frames",),
    "vidllm.session": ("AnswerStream", "ChatSession"),
    "vidllm.video.decode": ("FrameSet",),
    "vidllm.video.guard": ("Limits",),
    "vidllm.video.info": ("VideoInfo", "probe"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "AnswerStream",
    "BudgetError",
    "CaptionOptions",
    "CaptionReport",
    "ChatSession",
    "Cited",
    "ConfigError",
    "FrameSet",
    "GenerationOptions",
    "Image",
    "Limits",
    "ModelError",
    "Plan",
    "PlanOptions",
    "VideoError",
    "VideoInfo",
    "VideoModel",
    "VidllmError",
    "__version__",
    "caption",
    "load",
    "plan",
    "probe",
    "read_frames",
]


def __getattr__(name: str) -> object:
    """Import a public name from the file it lives in, once."""
    if name not in _HOME:
        raise AttributeError(f"module 'vidllm' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
