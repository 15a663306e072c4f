"""A replica's other half: a process that loads the model and answers what comes through the pipe until it closes.

    parent --> options, name and place once, then a Job whenever it likes
    parent <-- {"ready": Ready} once, {"note": text}, {"said": [Said ...], "capacity": int} after a step that ended some
               {"failed": class, "message": text} what ends the run, {"broke": text} what ends this process only
"""

from __future__ import annotations

import base64
import logging
import os
import pickle
import queue
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

from vidllm.corpus.replicas import Job, Place, Ready
from vidllm.errors import VidllmError
from vidllm.starting import uncollected
from vidllm.video import guard_child, wire

if TYPE_CHECKING:
    from vidllm.corpus.caption import CaptionOptions
    from vidllm.corpus.local import LocalCaptioner

Jobs = queue.SimpleQueue[Job]


def main() -> None:
    """Load what the first message names, say so, and answer."""
    stdin, stdout = guard_child.private_streams()
    outbox = _Outbox(stdout)
    options, name, place = pickle.loads(base64.b64decode(wire.receive(stdin)))
    jobs: Jobs = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(stdin, jobs), daemon=True).start()
    try:
        captioner, about = _load(options, name, place, outbox)
        outbox.send({"ready": Ready(fingerprint=captioner.fingerprint, capacity=captioner.capacity, about=about)})
        _answer(captioner, jobs, outbox)
    except VidllmError as error:
        outbox.send({"failed": type(error).__name__, "message": str(error)})
    except Exception as error:  # a process boundary: the parent tells it, and asks another replica
        outbox.send({"broke": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
    os._exit(1)  # nothing is left in a buffer; a library that hangs in its farewell would hang the run


class _Outbox(logging.Handler):
    """The pipe home; warnings of the library go there too."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(logging.WARNING)
        self._stream = stream

    def send(self, message: dict[str, Any]) -> None:
        """One message. A parent that is gone wants nothing any more."""
        try:
            with self.lock or threading.Lock():
                wire.send(self._stream, message)
        except OSError:
            os._exit(1)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.send({"note": f"note: {record.getMessage()}"})


@uncollected()
def _load(options: CaptionOptions, name: str, place: Place, outbox: _Outbox) -> tuple[LocalCaptioner, str]:
    logging.getLogger("vidllm").handlers = [outbox]
    from vidllm.corpus.local import load_wanted, open_local  # these bring torch

    if place.device.startswith("cuda:"):  # or every replica would keep a context on the first GPU
        import torch

        torch.cuda.set_device(place.device)
    model = load_wanted(options)
    model.name = name
    return open_local(options, model, share=place.share), model.about


def _listen(stdin: BinaryIO, jobs: Jobs) -> None:
    """Jobs as they come, while the model works; nobody is left to answer when the pipe closes."""
    try:
        while True:
            jobs.put(wire.receive(stdin))
    finally:
        os._exit(0)


def _answer(captioner: LocalCaptioner, jobs: Jobs, outbox: _Outbox) -> None:
    running = 0
    while True:
        while not running or not jobs.empty():
            job = jobs.get()
            captioner.submit(job.ticket, job.clip, job.prompt, job.options)
            running += 1
        if said := captioner.poll(0.0):
            running -= len(said)
            outbox.send({"said": said, "capacity": captioner.capacity})
