"""Shows an explanation as it forms, with asyncio: `python examples/streaming.py examples/images/chelsea.png`."""

import asyncio
import os
import sys

from sagittal.client import AsyncClient, Mask, Progress

ADDRESS = os.environ.get("SAGITTAL_ADDRESS", "localhost:50051")


async def main() -> None:
    """Prints the progress, and the area that the forming mask covers."""
    async with AsyncClient(ADDRESS) as client:
        stream = await client.stream(sys.argv[1], model="efficientnet-lite0", partial_masks=True)
        async with stream:
            async for event in stream:
                match event:
                    case Progress():
                        print(f"{event.fraction:4.0%}  {event.evaluations} evaluations")  # noqa: T201 - a script
                    case Mask():
                        print(f"      mask covers {event.saliency.mean():.1%}")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
