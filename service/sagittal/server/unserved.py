"""RPCs of the API that nothing serves yet answer UNIMPLEMENTED, and say so."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.descriptor import ServiceDescriptor

from sagittal.core.errors import NotServed
from sagittal.server.layers import Context

Servicer = TypeVar("Servicer", bound=type[Any])


def refuses_the_rest(service: ServiceDescriptor) -> Callable[[Servicer], Servicer]:
    """Gives a servicer's class a refusal for every RPC of the service that it does not define."""

    def complete(servicer: Servicer) -> Servicer:
        for method in service.methods:
            if method.name not in vars(servicer):
                setattr(servicer, method.name, _refusal(f"{service.full_name}/{method.name}"))
        return servicer

    return complete


def _refusal(name: str) -> Callable[[Any, Any, Context], Any]:
    async def refuse(_servicer: Any, _request: Any, _context: Context) -> Any:
        raise NotServed(f"{name} is part of the API, but this release of the service does not serve it yet")

    return refuse
