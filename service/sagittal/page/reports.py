"""Reports of jobs as files to download, drawn as the client draws them.

The service returns job and images to the caller's token, and decodes the images: this program draws what came back.
"""

import asyncio
from collections.abc import Sequence

import grpc
from starlette.requests import Request
from starlette.responses import Response

from sagittal.client.base import image_request
from sagittal.client.explained_image import JobImage
from sagittal.client.gathering import parse_explanation
from sagittal.client.report import IMAGES, report_of_job
from sagittal.page.gateway import error_response, forwarded_metadata
from sagittal.v1 import explanation_pb2, explanation_service_pb2, explanation_service_pb2_grpc

#: Largest number of reports that are drawn at the same time; further ones wait.
MAX_REPORTS = 2

#: Time for each call of the service, in seconds.
_CALL_SECONDS = 30.0

Metadata = Sequence[tuple[str, str]]


class Reports:
    """Serves the report of a job."""

    def __init__(self, channel: grpc.aio.Channel, *, token_header: str = "") -> None:
        """Stores the arguments, which are those of `Gateway`."""
        self._service = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
        self._token_header = token_header.lower()
        self._turns = asyncio.Semaphore(MAX_REPORTS)

    async def report(self, request: Request) -> Response:
        """Returns the report of the job that the path names, or the service's error as text."""
        job_id = request.path_params["job"]
        metadata = forwarded_metadata(request.headers, self._token_header)
        async with self._turns:
            try:
                job = await self._job(job_id, metadata)
                images = {kind: image for kind in IMAGES if (image := await self._image(job_id, kind, metadata))}
            except grpc.aio.AioRpcError as error:
                return error_response(error)
            text = await asyncio.to_thread(lambda: report_of_job(parse_explanation(job), images))
        name = f'attachment; filename="report-{job.job_id}.html"'
        return Response(
            text, media_type="text/html", headers={"content-disposition": name, "cache-control": "no-store"}
        )

    async def _job(self, job_id: str, metadata: Metadata) -> explanation_pb2.Explanation:
        request = explanation_service_pb2.GetExplanationRequest(job_id=job_id)
        found = explanation_pb2.Explanation()
        while True:
            page = await self._service.GetExplanation(request, metadata=metadata, timeout=_CALL_SECONDS)
            found.MergeFrom(page.explanation)  # appends the events; the rest is newer
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def _image(self, job_id: str, kind: str, metadata: Metadata) -> JobImage | None:
        """Returns an image of a job, or None if it is not kept or the job has none."""
        try:
            request = image_request(job_id, kind, longest=0, mask=0)
            return JobImage.of(
                await self._service.GetExplanationImage(request, metadata=metadata, timeout=_CALL_SECONDS)
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                return None
            raise
