"""Progress in a TrainJob's status, as Kubeflow Trainer's server takes it."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from engine.results.trackers import kubeflow
from engine.results.trackers.kubeflow import Kubeflow
from tests.unit.results.trackers.test_services import followed

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the server's certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, *names, "-keyout", "key.pem", "-out", "ca.crt"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def trainer(certificate, tmp_path, monkeypatch):
    """What Trainer's server was sent: the token and the status. It answers with the last of `answers`."""
    received, answers = [], [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append((self.headers["Authorization"], body["trainerStatus"]))
            self.send_response(answers[-1])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "ca.crt", certificate / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    (tmp_path / "token").write_text("first\n")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"https://127.0.0.1:{server.server_port}/status")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(certificate / "ca.crt"))
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    monkeypatch.setattr(kubeflow, "_SECONDS", 0.0)
    yield received, answers
    server.shutdown()
    server.server_close()


def test_the_status_that_trainer_takes(trainer, tmp_path):
    """The fields and bounds: TrainerStatus in pkg/apis/trainer/v1alpha1/trainjob_types.go of Trainer 2.3."""
    received, _ = trainer
    # The task trains steps 100 to 300; an earlier process reached 150.
    service = Kubeflow(followed(tmp_path, step=150, start_step=100, stop_step=300))
    service.log(200, {"train/loss": 0.123456789, "train/learning_rate": 1e-4})
    (tmp_path / "token").write_text("renewed\n")
    service.log(300, {"train/loss": 0.1})
    service.close()
    assert [token for token, _ in received] == ["Bearer first"] * 2 + ["Bearer renewed"] * 2
    statuses = [status for _, status in received]
    assert [status["progressPercentage"] for status in statuses] == [25, 50, 100, 100]
    assert statuses[1]["metrics"] == [
        {"name": "train/loss", "value": "0.123457"},
        {"name": "train/learning_rate", "value": "0.0001"},
    ]
    assert "estimatedRemainingSeconds" not in statuses[0] and statuses[-1]["estimatedRemainingSeconds"] == 0
    for status in statuses:
        assert {*status} <= {"progressPercentage", "estimatedRemainingSeconds", "metrics", "lastUpdatedTime"}
        assert datetime.fromisoformat(status["lastUpdatedTime"]).tzinfo is not None


def test_reports_have_a_distance(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(kubeflow, "_SECONDS", 60.0)
    service = Kubeflow(followed(tmp_path, stop_step=100))
    for step in range(1, 101):
        service.log(step, {"train/loss": 1.0})
    service.close()
    assert [status["progressPercentage"] for _, status in trainer[0]] == [0, 100]


def test_a_report_that_is_not_taken_is_followed_by_the_next(trainer, tmp_path):
    received, answers = trainer
    answers.append(503)
    service = Kubeflow(followed(tmp_path, stop_step=10))
    service.log(5, {})
    answers.append(200)
    service.close()
    assert received[-1][1]["progressPercentage"] == 50
    answers.append(401)
    with pytest.raises(OSError, match="401"):
        service.close()


def test_outside_of_a_trainjob_it_says_so(trainer, tmp_path, monkeypatch):
    monkeypatch.delenv("KUBEFLOW_TRAINER_SERVER_CA_CERT")
    with pytest.raises(RuntimeError, match=r"CA_CERT is not set: .* TrainJobStatus"):
        Kubeflow(followed(tmp_path))
