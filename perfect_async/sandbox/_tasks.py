"""Tasks: creation, the lease, the end, and deletion."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from typing import Literal

import attrs

from ._billing import DAY, Purse
from ._charges import TaskRecord, TaskState
from ._clock import Chance, Clock
from ._durations import Durations
from ._engine import Picture, flaw, render
from ._faults import Faults
from ._features import Feature, Params, source_of
from ._files import Files
from ._http import MICROSECONDS, Refused
from ._presigned import Links, no_such_key
from ._templates import TEMPLATE_IDS
from ._webhooks import News

TaskIds = Literal["urlsafe", "base64"]

# The schema says 24 h, the retention page 30 days (contract: Download the result).
KEPT = round(DAY * MICROSECONDS)


@attrs.define(eq=False)
class Task:
    """One task; times in microseconds of the loop's clock."""

    id: str
    feature: Feature
    params: Params
    picture: Picture
    units: int
    folder: str
    created: int
    duration: float
    failure: str | None
    times_out: bool
    # A `.jpg` name may hold PNG bytes (contract: Download the result).
    png: bool
    kept: int
    state: TaskState = "running"
    ended: int | None = None
    polls: int = 0
    outputs: dict[int, bytes] = attrs.field(factory=dict[int, bytes], repr=False)

    def processed(self, now: int) -> bool:
        """Whether the engine is done, reported or not."""
        return now - self.created >= self.duration * MICROSECONDS

    def record(self) -> TaskRecord:
        """The frozen picture of now."""
        return TaskRecord(
            task_id=self.id,
            feature=self.feature.name,
            state=self.state,
            stuck=math.isinf(self.duration),
            units=self.units,
            created_at=self.created / MICROSECONDS,
            ended_at=None if self.ended is None else self.ended / MICROSECONDS,
            duration=self.duration,
            polls=self.polls,
            source=self.picture.source,
            file_name=self.picture.name,
            params=dict(self.params),
            error=self.failure if self.state == "error" else None,
        )


def _unknown(violation: str | None = None) -> Refused:
    return Refused(400, "The task_id is invalid.", "InvalidTaskId", violation)


class Tasks:
    """Every task of the account, and the outputs on the result host."""

    def __init__(
        self,
        *,
        clock: Clock,
        chance: Chance,
        files: Files,
        links: Links,
        purse: Purse,
        durations: dict[str, Durations],
        lease: float | None,
        polling_interval: int | None,
        ids: TaskIds,
        announce: Callable[[News], None] | None = None,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._files = files
        self._links = links
        self._purse = purse
        self._durations = durations
        # None: tasks need no polls, which a webhook may mean.
        self._lease = None if lease is None else round(lease * MICROSECONDS)
        self._announce = announce
        self._polling_interval = polling_interval
        self._ids: TaskIds = ids
        self._by_id: dict[str, Task] = {}
        self._by_folder: dict[str, Task] = {}

    def records(self) -> tuple[TaskRecord, ...]:
        """Every task as of now, in order of creation."""
        now = self._clock.now()
        for task in self._by_id.values():
            self._settle(task, now)
        return tuple(task.record() for task in self._by_id.values())

    def knows(self, task_id: str) -> bool:
        """Whether this id was ever given out."""
        return task_id in self._by_id

    def create(self, feature: Feature, body: dict[str, object], faults: Faults) -> object:
        """Answer `POST /task/<feature>`: charged now, nothing charged when refused."""
        source = source_of(body)
        params = feature.read(body, TEMPLATE_IDS)
        picture = self._picture(feature, *source)
        units = feature.price(params)
        if not self._purse.affords(units):
            raise Refused(400, "The units are not enough.", "CreditInsufficiency")
        task = self._add(feature, params, picture, units, faults)
        # The vendor's action for it is open (contract: History); the published ones look like this.
        action = f"api_{feature.name.replace('-', '_')}"
        self._purse.charge(units, task.id, self._clock.wall(task.created), action=action)
        if self._announce is not None:
            self._announce(self._news(task))
        return {"task_id": task.id}

    def poll(self, feature: Feature, task_id: str) -> object:
        """Answer `GET /task/<feature>/<id>` and renew the lease, or refuse what is lost."""
        now = self._clock.now()
        task = self._by_id.get(task_id)
        if task is None:
            raise _unknown()
        if task.feature is not feature:
            raise _unknown(f"a task of {task.feature.name} asked as one of {feature.name}")
        self._settle(task, now)
        if task.state in {"expired", "deleted"}:
            raise _unknown()
        if task.ended is not None and now - task.ended > KEPT:
            raise _unknown()
        task.kept = now
        task.polls += 1
        if task.processed(now) and task.state == "running":
            self._report(task, now)
        if task.state == "timed_out":
            raise Refused(500, "Task execution timed out")
        return self._status(task, now)

    def delete(self, task_id: str) -> None:
        """Forget a finished task with its outputs and its input file; units stay spent."""
        now = self._clock.now()
        task = self._by_id.get(task_id)
        if task is not None:
            self._settle(task, now)
        if task is None or task.state in {"expired", "deleted"}:
            raise Refused(400, "The task cannot be deleted.", "OperationNotSupport")
        if task.state == "running":
            if not task.processed(now):
                raise Refused(400, "The task is not finished.", "OperationInvalid")
            self._report(task, now)
        task.state = "deleted"
        task.outputs.clear()
        # A file shared with another task dies with it (contract: Other calls).
        file = self._files.find(task.picture.source)
        if file is not None:
            file.deleted = True
            file.data = None

    def output(self, path: str) -> bytes:
        """The bytes of one result, drawn when they are first asked for."""
        folder, _, name = path.rpartition("/")
        task = self._by_folder.get(folder)
        if task is None or task.state == "deleted":
            raise no_such_key()
        index = int(name.partition(".")[0])
        if index not in task.outputs:
            task.outputs[index] = render(
                task.feature.name, task.params, task.picture, index, png=task.png
            )
        return task.outputs[index]

    def _picture(self, feature: Feature, field: str, value: str) -> Picture:
        if field == "src_file_url":
            return Picture(value, None, None)
        file = self._files.find(value)
        missing = "The file was not found."
        if file is None:
            raise Refused(404, missing)
        if file.data is None:
            raise Refused(404, missing, None, "task on a file whose bytes never arrived")
        if file.feature not in {None, feature.name}:
            violation = f"file registered for {file.feature} used for {feature.name}"
            raise Refused(404, missing, None, violation)
        return Picture(value, file.name, file.data)

    def _add(
        self, feature: Feature, params: Params, picture: Picture, units: int, faults: Faults
    ) -> Task:
        now = self._clock.now()
        chance = self._chance
        rng = chance.stream("task ids")
        seconds = self._durations[feature.name].draw(chance.stream(f"durations/{feature.name}"))
        code = chance.stream("engine error codes").choice(faults.engine_error_codes)
        failure = self._by_picture(picture, faults) or flaw(picture, feature.formats)
        if chance.happens(faults.engine_errors, "engine errors") and failure is None:
            failure = code
        stuck = chance.happens(faults.stuck, "stuck")
        task = Task(
            id=self._task_id(rng.randbytes(80)),
            feature=feature,
            params=params,
            picture=picture,
            units=units,
            folder=f"/sandbox-out/{rng.getrandbits(128):032x}",
            created=now,
            duration=math.inf if stuck else seconds,
            failure=failure,
            times_out=chance.happens(faults.timeouts, "timeouts"),
            png=chance.happens(0.2, "png results"),
            kept=now,
        )
        self._by_id[task.id] = self._by_folder[task.folder] = task
        return task

    def _task_id(self, noise: bytes) -> str:
        if self._ids == "base64":
            # Holds `/`, `+` and `=`: another alphabet than the one seen, which clients must
            # percent-encode.
            return base64.b64encode(b"\xfb\xff\xbf" + noise[:46]).decode()
        return base64.urlsafe_b64encode(noise).decode().rstrip("=")

    @staticmethod
    def _by_picture(picture: Picture, faults: Faults) -> str | None:
        if not faults.by_picture:
            return None
        names = [picture.source]
        if picture.name is not None and picture.data is not None:
            names += [picture.name, hashlib.sha256(picture.data).hexdigest()]
        return next((faults.by_picture[n] for n in names if n in faults.by_picture), None)

    def _settle(self, task: Task, now: int) -> None:
        """Let go of a task whose lease ran out, even if processing finished meanwhile."""
        lease = self._lease
        if lease is not None and task.state == "running" and now - task.kept > lease:
            task.state = "expired"
            task.ended = task.kept + lease

    def _news(self, task: Task) -> News:
        def alive() -> bool:
            self._settle(task, self._clock.now())
            return task.state not in {"expired", "deleted"}

        # What a webhook says of a task that timed out is open; its statuses are these two.
        fails = task.times_out or task.failure is not None
        ends = not math.isinf(task.duration)
        return News(
            task_id=task.id,
            status="error" if fails else "success",
            created=task.created,
            ended=task.created + math.ceil(task.duration * MICROSECONDS) if ends else None,
            alive=alive,
        )

    def _report(self, task: Task, now: int) -> None:
        task.ended = now
        if task.times_out:
            task.state = "timed_out"
        elif task.failure is not None:
            task.state = "error"
            self._purse.give_back(task.id, self._clock.wall(now))
        else:
            task.state = "success"

    def _status(self, task: Task, now: int) -> dict[str, object]:
        data: dict[str, object] = {"task_status": task.state}
        results = self._results(task, now)
        # `error` and `results` are null as often as absent (contract: Poll the task).
        often = self._chance.stream("absent nulls").choice
        failed = task.state == "error"
        if failed or often((True, False)):
            data["error"] = task.failure if failed else None
        if failed and often((True, False)):
            data["error_message"] = "The engine could not process the picture."
        if results is not None or often((True, False)):
            data["results"] = results
        if self._polling_interval is not None:
            data["polling_interval"] = self._polling_interval
        return data

    def _results(self, task: Task, now: int) -> dict[str, object] | None:
        if task.state == "success":
            done = task.feature.outputs(task.params)
        elif task.state == "running" and task.feature.many and task.failure is None:
            # Running avatars may show partial results: whoever takes them for all loses some.
            share = (now - task.created) / (task.duration * MICROSECONDS)
            done = int(task.feature.outputs(task.params) * min(share, 1.0))
        else:
            done = 0
        if done == 0:
            return None
        links = [
            {"url": self._links.sign("GET", "results", f"{task.folder}/{index}.jpg")}
            for index in range(done)
        ]
        return {"output": links} if task.feature.many else dict(links[0])
