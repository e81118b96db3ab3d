"""KServe's arguments, and the predictor that they name."""

import json

import pytest

from sagittal.kserve.loading import model_table
from sagittal.kserve.main import main, predictor_server
from sagittal.kserve.settings import read_arguments
from sagittal.models.sources.access import Server

#: What KServe appends to the arguments of the container, and what it adds for containerConcurrency.
KSERVE = ["--model_name", "cats", "--predictor_host", "cats-predictor.zoo", "--http_port", "8080", "--workers", "2"]


def test_what_kserve_appends_is_enough():
    settings = read_arguments(KSERVE)
    assert (settings.predictor_address, settings.namespace) == ("cats-predictor.zoo:80", "zoo")
    assert (settings.http_port, settings.grpc_port) == (8080, 8081)
    source = model_table(settings)["source"]
    told = {"kind": "remote", "server": "kserve", "host": "cats-predictor.zoo:80", "model": "cats", "max_batch": 1}
    assert source == told


def test_the_protocol_is_a_setting_of_its_own_and_tls_has_its_port(monkeypatch):
    monkeypatch.setenv("SAGITTAL_KSERVE_PREDICTOR_PROTOCOL", "grpc-v2")
    monkeypatch.setenv("SAGITTAL_KSERVE_PREDICTOR_USE_SSL", "true")
    settings = read_arguments(KSERVE)
    assert (settings.predictor_protocol, settings.predictor_address) == ("grpc-v2", "cats-predictor.zoo:443")
    assert read_arguments([*KSERVE, "--predictor_protocol", "v2"]).predictor_protocol == "v2", (
        "arguments take precedence"
    )


def test_the_worker_inside_calls_only_the_predictor_one_call_at_a_time():
    protocols = {"v2": "http", "grpc-v2": "grpc"}
    for protocol, expected in protocols.items():
        server = Server(**predictor_server(read_arguments([*KSERVE, "--predictor_protocol", protocol])))
        assert (server.hosts, server.protocol, server.concurrency) == (("cats-predictor.zoo:80",), expected, 1)
    limited = read_arguments([*KSERVE, "--predictor_concurrency", "3", "--predictor_request_timeout_seconds", "7"])
    server = Server(**predictor_server(limited))
    assert (server.concurrency, server.timeout) == (3, 7)


def test_a_predictor_in_a_fleet_has_its_namespace_in_its_name():
    shared = read_arguments([*KSERVE, "--sagittal_address", "sagittal.ml:50051"])
    assert model_table(shared)["name"] == "cats.zoo"
    assert model_table(read_arguments(KSERVE))["name"] == "cats"
    named = read_arguments([*KSERVE, "--sagittal_address", "sagittal.ml:50051", "--sagittal_model", "cats@2"])
    assert model_table(named) is None


def test_a_model_file_describes_the_predictor(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    file = tmp_path / "model.toml"
    file.write_text('[[models]]\nlabels = "labels.txt"\nsource = { input = "x", max_batch = 8 }\n')
    table = model_table(read_arguments([*KSERVE, "--model_file", str(file)]))
    assert table["labels"] == ["cat", "dog"]
    assert table["source"] | {"input": "x", "max_batch": 8, "model": "cats"} == table["source"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--model_name"),
        (["--model_name", "cats"], "--predictor_host"),
        ([*KSERVE, "--predictor_host", "http://cats"], "without a scheme"),
        ([*KSERVE, "--predictor_protocol", "v1"], "'v2' or 'grpc-v2'"),
        ([*KSERVE, "--http_port", "http"], "SAGITTAL_KSERVE_HTTP_PORT"),
        ([*KSERVE, "--sagittal_model", "cats"], "sagittal_address"),
        ([*KSERVE, "--model_file", "/absent.toml"], "/absent.toml: cannot be read"),
    ],
)
def test_a_wrong_argument_is_named_with_its_remedy(arguments, text, capsys):
    assert main(arguments) == 2
    assert text in capsys.readouterr().err


def test_an_unknown_argument_is_refused(capsys):
    with pytest.raises(SystemExit):
        main([*KSERVE, "--predictor_hots", "x"])
    assert "--predictor_hots" in capsys.readouterr().err


def test_a_model_file_may_not_name_another_predictor(tmp_path, capsys):
    (tmp_path / "model.toml").write_text('[[models]]\nsource = { server = "other" }\n')
    assert main([*KSERVE, "--model_file", str(tmp_path / "model.toml")]) == 2
    assert "source.server" in capsys.readouterr().err


def test_models_name_only_hosts_that_the_operator_allows():
    server = Server(address="{host}", hosts=("*-predictor.zoo:80",))
    assert server.at("cats-predictor.zoo:80").address == "cats-predictor.zoo:80"
    for host in ("cats-predictor.other:80", "evil.example:80/-predictor.zoo:80", "", "cats-predictor.zoo:81"):
        with pytest.raises(ValueError, match="is not among the server's hosts"):
            server.at(host)
    with pytest.raises(ValueError, match="leave out"):
        Server(address="triton:8001").at("cats-predictor.zoo:80")
    with pytest.raises(ValueError, match="give hosts"):
        Server(address="{host}")
    assert json.loads(Server(address="triton:8001").model_dump_json())["protocol"] == "grpc"
