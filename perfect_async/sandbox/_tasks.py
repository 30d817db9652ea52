"""Tasks: creation, the lease, the end, and deletion."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable

import attrs

from ._answers import engine_error, missing_file, results_as_json, task_timeout, unknown_task
from ._billing import UnitAccount
from ._charges import TaskRecord, TaskState
from ._clock import Chance, Clock
from ._dialect import Dialect
from ._engine import Picture, input_error, render
from ._faults import Faults
from ._features import TEMPLATE_IDS, Feature, Params, source_of
from ._files import Files
from ._http import MICROSECONDS, ApiError
from ._presigned import UrlSigner, no_such_key
from ._rules import TaskRules
from ._webhooks import TaskEnd


@attrs.define(eq=False)
class Task:
    """One task; times are in microseconds of the loop's clock."""

    id: str
    feature: Feature
    params: Params
    inputs: tuple[Picture, ...]
    units: int
    folder: str
    created: int
    duration: float
    failure: str | None
    times_out: bool
    # A result named `.jpg` may have PNG bytes (contract: Download the result).
    png: bool
    last_poll: int
    charged: bool = False
    refunded: bool = False
    state: TaskState = "running"
    ended: int | None = None
    polls: int = 0
    outputs: dict[int, bytes] = attrs.field(factory=dict[int, bytes], repr=False)

    @property
    def picture(self) -> Picture:
        """The first input, or an empty one for a task without inputs."""
        return self.inputs[0] if self.inputs else Picture("", None, None)

    @property
    def processed_at(self) -> float:
        """The time when the engine is done; infinite for a stuck task."""
        return self.created + self.duration * MICROSECONDS

    @property
    def succeeds(self) -> bool:
        """Whether the engine ends with a result."""
        return self.failure is None and not self.times_out

    def processed(self, now: int) -> bool:
        """Return whether the engine is done, also if no poll has reported it."""
        return now >= self.processed_at

    def record(self) -> TaskRecord:
        """Return a frozen copy for the ledger."""
        return TaskRecord(
            task_id=self.id,
            feature=self.feature.key,
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
            charged=self.charged,
            refunded=self.refunded,
        )


class Tasks:
    """Every task of the account, and the outputs on the result host."""

    def __init__(
        self,
        *,
        clock: Clock,
        chance: Chance,
        files: Files,
        urls: UrlSigner,
        account: UnitAccount,
        rules: TaskRules,
        announce: Callable[[TaskEnd], None] | None = None,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._files = files
        self._urls = urls
        self._account = account
        self._rules = rules
        self._lease = rules.lease_microseconds()
        self._retention = round(rules.retention * MICROSECONDS)
        self._announce = announce
        self._by_id: dict[str, Task] = {}
        self._by_folder: dict[str, Task] = {}
        # Tasks that will be charged once they succeed.
        self._unpaid: dict[str, Task] = {}

    def records(self) -> tuple[TaskRecord, ...]:
        """Return the present state of every task, in order of creation."""
        now = self._clock.now()
        self.settle(now)
        for task in self._by_id.values():
            self._expire(task, now)
        return tuple(task.record() for task in self._by_id.values())

    def knows(self, task_id: str) -> bool:
        """Return whether a task with this id was ever created."""
        return task_id in self._by_id

    def new_id(self) -> str:
        """Return a new task id that belongs to no task here."""
        return self._task_id(self._chance.identifiers("foreign task ids").randbytes(80))

    def settle(self, now: int) -> None:
        """Charge the tasks that have succeeded up to now, if only a success is charged.

        The engine does not stop when the lease runs out, so a lost task is charged, too.
        """
        if not self._unpaid:
            return
        done = [task for task in self._unpaid.values() if task.processed(now)]
        for task in sorted(done, key=lambda task: task.processed_at):
            del self._unpaid[task.id]
            if task.succeeds:
                self._charge(task, round(task.processed_at))
            else:
                self._account.release(task.id)

    def create(
        self, feature: Feature, body: dict[str, object], faults: Faults, dialect: Dialect
    ) -> object:
        """Handle `POST /task/<feature>`. A refused creation costs nothing."""
        sources = [each for one in feature.inputs for each in source_of(body, one)]
        params = feature.read(body, TEMPLATE_IDS)
        found = [
            (Picture(value, None, None), None) if is_url else self._file(feature, value, dialect)
            for is_url, value in sources
        ]
        inputs = tuple(picture for picture, _ in found)
        failure = next((error for _, error in found if error is not None), None)
        units = feature.price(params)
        if not self._account.affords(units):
            raise ApiError(400, "Insufficient credits", "CreditInsufficiency")
        previous = next(reversed(self._by_id), None)
        task = self._add(feature, params, inputs, units, faults=faults, failure=failure)
        if self._rules.charging == "creation":
            self._charge(task, task.created)
        else:
            self._account.reserve(units, task.id)
            self._unpaid[task.id] = task
        if self._announce is not None:
            self._announce(self._end(task))
        repeated = self._chance.happens(faults.repeated_task_ids, "repeated task ids")
        answer: dict[str, object] = {
            "task_id": previous if repeated and previous is not None else task.id
        }
        if dialect.polling_interval_in != "polls":
            self._add_interval(answer)
        return answer

    def poll(self, feature: Feature, task_id: str, dialect: Dialect) -> object:
        """Handle `GET /task/<feature>/<id>`: renew the lease and report the state."""
        now = self._clock.now()
        task = self._by_id.get(task_id)
        if task is None:
            raise unknown_task(dialect)
        if task.feature is not feature:
            violation = f"a task of {task.feature.key} asked as one of {feature.key}"
            raise unknown_task(dialect, violation)
        self._expire(task, now)
        if task.state in {"expired", "deleted"}:
            raise unknown_task(dialect)
        if task.ended is not None and now - task.ended > self._retention:
            raise unknown_task(dialect)
        task.last_poll = now
        task.polls += 1
        if task.processed(now) and task.state == "running":
            self._report(task, now)
        if task.state == "timed_out":
            raise task_timeout(dialect)
        return self._status(task, now, dialect)

    def delete(self, task_id: str) -> None:
        """Delete a finished task with its outputs and input files; its units stay spent."""
        now = self._clock.now()
        task = self._by_id.get(task_id)
        if task is not None:
            self._expire(task, now)
        if task is None or task.state in {"expired", "deleted"}:
            raise ApiError(400, "The task cannot be deleted.", "OperationNotSupport")
        if task.state == "running":
            if not task.processed(now):
                raise ApiError(400, "The task is not finished.", "OperationInvalid")
            self._report(task, now)
        task.state = "deleted"
        task.outputs.clear()
        # A file is deleted even if another task uses it (contract: Other calls).
        for picture in task.inputs:
            file = self._files.find(picture.source)
            if file is not None:
                file.deleted = True
                file.data = None

    def output(self, path: str) -> bytes:
        """Return the bytes of one result, which is drawn at the first download."""
        folder, _, name = path.rpartition("/")
        task = self._by_folder.get(folder)
        if task is None or task.state == "deleted":
            raise no_such_key()
        index = int(name.partition(".")[0])
        if index not in task.outputs:
            kind = task.feature.kind(task.params)
            png = task.png or kind == "png"
            task.outputs[index] = render(
                task.feature.name, task.params, task.picture, index, png=png, kind=kind
            )
        return task.outputs[index]

    def _file(self, feature: Feature, value: str, dialect: Dialect) -> tuple[Picture, str | None]:
        """Return an uploaded input, and the engine's error if its bytes are missing."""
        file = self._files.find(value)
        violation = None
        if file is None:
            # Not a violation: the file may have been deleted, and users type ids.
            pass
        elif file.data is None:
            violation = "task on a file whose bytes never arrived"
        elif file.feature not in {None, feature.name}:
            violation = f"file registered for {file.feature} used for {feature.name}"
        else:
            return Picture(value, file.name, file.data), None
        error = missing_file(dialect, violation)
        if isinstance(error, ApiError):
            raise error
        return Picture(value, None, None), error

    def _add(
        self,
        feature: Feature,
        params: Params,
        inputs: tuple[Picture, ...],
        units: int,
        *,
        faults: Faults,
        failure: str | None,
    ) -> Task:
        now = self._clock.now()
        chance = self._chance
        rng = chance.identifiers("task ids")
        durations = self._rules.durations[feature.key]
        seconds = durations.draw(chance.stream(f"durations/{feature.key}"))
        code = chance.stream("engine error codes").choice(faults.engine_error_codes)
        for picture in inputs:
            rejected = input_error(picture, feature.formats)
            failure = failure or self._by_picture(picture, faults) or rejected
        if chance.happens(faults.engine_errors, "engine errors") and failure is None:
            failure = code
        stuck = chance.happens(faults.stuck, "stuck")
        task = Task(
            id=self._task_id(rng.randbytes(80)),
            feature=feature,
            params=params,
            inputs=inputs,
            units=units,
            folder=f"/sandbox-out/{rng.getrandbits(128):032x}",
            created=now,
            duration=math.inf if stuck else seconds,
            failure=failure,
            times_out=chance.happens(faults.timeouts, "timeouts"),
            png=chance.happens(0.2, "png results"),
            last_poll=now,
        )
        self._by_id[task.id] = self._by_folder[task.folder] = task
        return task

    def _task_id(self, noise: bytes) -> str:
        if self._rules.ids == "base64":
            # The id has `/`, `+` and `=`, which clients must percent-encode.
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

    def _charge(self, task: Task, at: int) -> None:
        task.charged = True
        # The vendor's action is undocumented (contract: History); published ones have this form.
        action = f"api_{re.sub('[-/]', '_', task.feature.name)}"
        self._account.charge(task.units, task.id, self._clock.wall(at), action=action)

    def _expire(self, task: Task, now: int) -> None:
        """End a task whose lease ran out, also if the engine was done before."""
        if task.state != "running":
            return
        if self._lease is not None:
            limit = float(task.last_poll + self._lease)
        else:
            # Without a lease, a result is kept for the retention after the engine's end.
            limit = task.processed_at + self._retention
        if now > limit:
            task.state = "expired"
            task.ended = round(limit)

    def _end(self, task: Task) -> TaskEnd:
        def alive() -> bool:
            self._expire(task, self._clock.now())
            return task.state not in {"expired", "deleted"}

        # A webhook has only these two statuses; the one for a timeout is undocumented.
        ends = not math.isinf(task.duration)
        return TaskEnd(
            task_id=task.id,
            status="success" if task.succeeds else "error",
            created=task.created,
            ended=math.ceil(task.processed_at) if ends else None,
            alive=alive,
        )

    def _report(self, task: Task, now: int) -> None:
        task.ended = now
        if task.times_out:
            task.state = "timed_out"
        elif task.failure is not None:
            task.state = "error"
            if task.charged:
                task.refunded = True
                self._account.refund(task.id, self._clock.wall(now))
        else:
            task.state = "success"

    def _status(self, task: Task, now: int, dialect: Dialect) -> dict[str, object]:
        word = dialect.status_words.get(task.state, task.state)
        data: dict[str, object] = {"task_status": word}
        results = self._results(task, now, dialect)
        # `error` and `results` are null or absent, equally often (contract: Poll the task).
        choice = self._chance.stream("absent nulls").choice
        failure = task.failure if task.state == "error" else None
        if failure is not None:
            data["error"] = engine_error(failure, dialect)
            if choice((True, False)):
                data["error_message"] = "The engine could not process the picture."
        elif choice((True, False)):
            data["error"] = None
        if results is not None or choice((True, False)):
            data["results"] = results
        if dialect.polling_interval_in != "creation":
            self._add_interval(data)
        return data

    def _add_interval(self, answer: dict[str, object]) -> None:
        if self._rules.polling_interval is not None:
            answer["polling_interval"] = self._rules.polling_interval

    def _results(self, task: Task, now: int, dialect: Dialect) -> object:
        if task.state == "success":
            done = task.feature.outputs(task.params)
        elif task.state == "running" and task.feature.many and task.failure is None:
            # Running avatars may have partial results, which clients must ignore.
            share = (now - task.created) / (task.duration * MICROSECONDS)
            done = int(task.feature.outputs(task.params) * min(share, 1.0))
        else:
            done = 0
        own = task.feature.answer
        if done == 0 and not (own is not None and task.state == "success"):
            return None
        kind = task.feature.kind(task.params)
        urls: list[str | None] = [
            self._urls.sign("GET", "results", f"{task.folder}/{index}.{kind}")
            for index in range(done)
        ]
        if own is not None:
            return own(task.params, [str(url) for url in urls])
        if task.feature.many:
            nulls = min(dialect.null_outputs, done)
            urls[:nulls] = [None] * nulls
        return results_as_json(urls, dialect, many=task.feature.many)
