"""Queue of uploads: one after the other, by one thread.

Conventions
-----------
job
    One upload from its arrival to its result. Its id is a random token, which nobody can
    guess, and the only way to it.
state
    ``queued``, then the stages of the work in order, then ``done`` or ``failed``.

The uploaded file is gone as soon as its job has ended, however it ended.
"""

from __future__ import annotations

import logging
import secrets
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aqa_pipeline.errors import AqaError
from aqa_pipeline.scoring.assessor import ClipMetadata
from aqa_pipeline.serve.uploads import RefusedUpload, Upload

_log = logging.getLogger(__name__)

QUEUED, DONE, FAILED = "queued", "done", "failed"
MAX_WAITING = 8  #: uploads in the queue; their files lie on the disk
MAX_KEPT = 32  #: finished jobs that are remembered, about 1 MB each

#: Called with the name of each stage of the work as it begins.
Stage = Callable[[str], None]


@dataclass(frozen=True)
class JobResult:
    """Result of the work on an upload.

    Attributes
    ----------
    summary : mapping
        Plain values, for programs.
    fragment : str
        HTML to be shown inside the page.
    page : str
        The same as a page of its own.
    """

    summary: Mapping[str, Any]
    fragment: str
    page: str


@dataclass(eq=False)
class Job:
    """One upload on its way.

    Attributes
    ----------
    id : str
    upload : Upload
    metadata : ClipMetadata
        What the sender said of the clip, checked.
    state : str
    message : str
        Why it failed; one sentence.
    result : JobResult or None
    """

    id: str
    upload: Upload
    metadata: ClipMetadata
    state: str = QUEUED
    message: str = ""
    result: JobResult | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in (DONE, FAILED)


#: Does the work on a job's upload.
Work = Callable[[Job, Stage], JobResult]


class JobQueue:
    """Jobs in the order of their arrival; a context manager that ends its thread.

    Parameters
    ----------
    work : callable
        Runs in the queue's own thread, one job at a time.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._is_closed = False
        self._changed = threading.Condition()
        # A daemon: Ctrl-C does not wait for the network's pass over a clip.
        self._thread = threading.Thread(target=self._run, name="aqa-serve-work", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Jobs that are remembered."""
        return len(self._jobs)

    def __enter__(self) -> JobQueue:
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._is_closed = True
            for job in self._waiting:
                job.upload.delete()
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(timeout=10)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING

    def add(self, upload: Upload, metadata: ClipMetadata) -> Job:
        """Queue an upload.

        Raises
        ------
        RefusedUpload
            If too many wait already; the file is removed.
        """
        job = Job(secrets.token_urlsafe(18), upload, metadata)
        with self._changed:
            if self.is_full or self._is_closed:
                upload.delete()
                raise RefusedUpload(
                    f"{len(self._waiting)} clips wait already; try again in a minute", status=429
                )
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def find(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def position(self, job: Job) -> int:
        """How many jobs are before this one, the one being worked on included."""
        with self._changed:
            before = [other for other in self._jobs.values() if not other.has_ended]
            return before.index(job) if job in before else 0

    def forget(self, job: Job) -> None:
        """Drop a job and its result; what is being worked on is finished unseen."""
        with self._changed:
            self._jobs.pop(job.id, None)
            if job in self._waiting:
                self._waiting.remove(job)
                job.upload.delete()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                job = self._waiting.popleft()
            self._do(job)

    def _do(self, job: Job) -> None:
        def stage(name: str) -> None:
            job.state = name

        try:
            job.result = self._work(job, stage)
        except AqaError as error:
            job.message = _without_path(str(error), job.upload)
            job.state = FAILED
        except Exception:  # noqa: BLE001 - the server must outlive any one clip
            _log.error("unexpected error at work on an upload:\n%s", traceback.format_exc())
            job.message = "an unexpected error, written in the server's log"
            job.state = FAILED
        else:
            job.state = DONE
        finally:
            job.upload.delete()
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        with self._changed:
            ended = [job for job in self._jobs.values() if job.has_ended]
            for job in ended[: max(0, len(ended) - MAX_KEPT)]:
                del self._jobs[job.id]


def _without_path(message: str, upload: Upload) -> str:
    """The library's sentence with the sender's name for the file in place of ours."""
    return message.replace(str(upload.path), upload.name).replace(upload.path.name, upload.name)
