"""Reports for the tests: a few jobs with their requests, and texts that mean harm."""

from pathlib import Path

from PIL import Image

from perfect_async.report import Report, ReportFailure, ReportJob, ReportRequest

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' autofocus onfocus=alert(1) x='",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&amp;",
    "--></style><!--",
    "javascript:alert(1)//.jpg",
    "photo\u202egpj.exe",
    "null\0bell\x07escape\x1b[31m\x7f",
    "two\nlines\r\tand\u2028more",
    "lone \udcff surrogate",
    '=HYPERLINK("http://x","y")',
    "x" * 10_000,
)


def failure(
    message: str = "the engine failed.", code: str | None = "error_no_face"
) -> ReportFailure:
    return ReportFailure("TaskFailed", message, "Use another picture.", code)


def request(
    kind: str, job: int, left: float, answer: str = "Running", *, window: int = 1
) -> ReportRequest:
    return ReportRequest(kind, (job,), left, left + 0.25, answer, window)  # type: ignore[arg-type]


def smile_run() -> Report:
    """Two smiles that are polled at 8.8 s: one is done then, the other fails at its second poll."""
    return Report(
        jobs=(
            ReportJob(1, "in/a.jpg", "done", units=1.0, duration=9.05, ended=9.05),
            ReportJob(2, "in/b.jpg", "failed", duration=17.85, failure=failure(), ended=18.85),
        ),
        seconds=20.0,
        requests=(
            ReportRequest("register", (1, 2), 0.0, 0.25, "Registered", 1),
            request("create", 1, 0.0, "Accepted", window=2),
            request("create", 2, 1.0, "Accepted", window=3),
            request("poll", 1, 8.8, "Succeeded", window=4),
            request("poll", 2, 9.8, window=5),
            ReportRequest("other", (), 10.0, 10.1, "Answered", 6),
            request("poll", 2, 18.6, "EngineFailed", window=7),
        ),
        charged=2.0,
        returned=1.0,
    )


def picture(path: Path, size: tuple[int, int] = (64, 48), colour: str = "#336699") -> Path:
    Image.new("RGB", size, colour).save(path)
    return path
