"""The errors of the jobs room."""

from __future__ import annotations

from appliance.errors import ApplianceError


class JobError(ApplianceError):
    """A job that failed, was refused, or ended otherwise than its caller hoped. The text is its reason."""

    status = 400
    type = "invalid_request_error"


class JobNotFoundError(JobError):
    """There is no job of that number."""

    status = 404

    def __init__(self, job_id: int) -> None:
        super().__init__(f"no job {job_id}")


class JobCancelledError(JobError):
    """Raised by a handler when it stopped because its context said so, and to those who wait for the job."""

    status = 409
