"""What users may rely on."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sagittal.client
from sagittal.client import GradCAM, IGOSPlusPlus, MinimalSufficientExplanations


def test_public_names_are_exactly_these() -> None:
    assert set(sagittal.client.__all__) == {
        "Accepted", "AlreadyExists", "ArgumentRefused", "AsyncClient", "AsyncEventStream", "Baseline",
        "Batch", "BatchCost", "BatchCounts", "BatchItem",
        "BatchResult", "Box",
        "CausalTriple", "Certificate", "CertifyAfter", "ClassScore", "Client", "Completed",
        "ConceptContribution", "ConceptExample",
        "ConceptPrediction", "ConceptQuality",
        "ConceptSet", "ConceptSetDamaged", "Concepts", "ConnectionFailed", "Curve",
        "Estimate", "EvaluateMask", "Event",
        "EventStream", "ExcitationBackprop", "EventsExpired", "Expired", "ExplainedImage",
        "Explanation", "LiveDisplay", "JobImage", "JobChange",
        "MissingExtra", "Table",
        "FailedPrecondition", "FitProgress",
        "GradCAM", "Graph", "GraphEdge", "GraphNode", "IGOS", "IGOSPlus", "IGOSPlusPlus", "ImageLike",
        "IntegratedGradients", "InternalError", "InvalidImage", "InvalidRequest", "Job", "JobBuried", "JobCancelled",
        "JobFailed", "Mask", "MeaningfulPerturbation", "MessageTooLarge", "Method", "MethodInfo", "MethodLike",
        "Metrics", "MinimalSufficientExplanations", "Model", "ModelExists", "ModelFailed", "ModelInput", "NotFound",
            "NotServed",
        "Occlusion", "OcclusionSurrogate", "Optimizer", "Options", "OrderedRegionSearch",
            "Outcome", "Overloaded", "ParameterInfo", "PatchSet", "PatchShape",
        "PermissionDenied", "Prediction", "Preprocessing", "Progress", "Protocol", "QueueFailed", "RISE", "RegionScore",
        "RegionScores", "Retry", "AlterationTest", "AreaInterval", "Stability", "BackgroundTally",
        "DrawsBound", "Robustness", "RobustnessTest",
        "SagittalError", "SelfCheck", "Started", "StreamMoved", "StructuredAttentionGraph",
            "SufficientSet", "Surrogate",
        "Sufficiency", "TLS", "Unauthenticated", "Unavailable", "UnknownJob", "UnknownModel", "Unrecognised",
        "Canary", "CanaryOutcomes", "Warning", "WorkerState", "XFeature",
    }  # fmt: skip
    assert all(hasattr(sagittal.client, name) for name in sagittal.client.__all__)


def test_the_client_imports_nothing_heavy() -> None:
    program = (
        "import sys, sagittal.client;"
        "heavy = 'torch redis pydantic structlog click matplotlib pandas networkx IPython'.split();"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_sync_client_is_what_the_asyncio_client_generates() -> None:
    program = Path(__file__).parents[3] / "scripts" / "sync_client.py"
    done = subprocess.run([sys.executable, program, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", [IGOSPlusPlus, GradCAM, MinimalSufficientExplanations])
def test_typed_methods_show_their_parameters(method) -> None:
    found = inspect.signature(method).parameters
    assert list(found) == [field.name for field in method.DESCRIPTOR.fields]
    assert all(each.kind is each.KEYWORD_ONLY and each.default is None for each in found.values())
    assert inspect.signature(IGOSPlusPlus).parameters["mask_size"].annotation == int | None
