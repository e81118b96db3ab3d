"""Global explanations: nothing serves them yet."""

from sagittal.server.unserved import refuses_the_rest
from sagittal.v1 import concept_service_pb2, concept_service_pb2_grpc


@refuses_the_rest(concept_service_pb2.DESCRIPTOR.services_by_name["ConceptService"])
class ConceptServicer(concept_service_pb2_grpc.ConceptServiceServicer):
    """Answers every RPC of ConceptService with UNIMPLEMENTED."""
