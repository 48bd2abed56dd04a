"""A plain float64 loop over `p.grad`, the oracle for every sum in a ledger; an S3 server that can fail."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from torch import nn

# How long an example takes is decided by whatever else the machine does, and no test promises it.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


class GradientLoop:
    """Sums over observed steps, per parameter name, in float64; non-finite elements add nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.grad_sum = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.grad_sumsq = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.events = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self.votes = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self.steps = dict.fromkeys(shapes, 0)
        self.missing = dict.fromkeys(shapes, 0)
        self.largest = 0.0

    def observe(self, only: set[int] | None = None, divide_by: float = 1.0) -> None:
        """Add the gradients as they are now; `only` are the ids of the parameters that step."""
        for name, parameter in self.model.named_parameters():
            if only is not None and id(parameter) not in only:
                continue
            if parameter.grad is None:
                self.missing[name] += 1
                continue
            raw = parameter.grad.detach().double().numpy() / divide_by
            grad = np.where(np.isfinite(raw), raw, 0.0)
            self.largest = max(self.largest, float(np.abs(grad).max(initial=0.0)))
            self.grad_sum[name] += grad
            self.grad_sumsq[name] += grad**2
            self.events[name] += grad != 0
            self.votes[name] += np.sign(grad).astype(np.int64)
            self.steps[name] += 1

    def check(self, ledger: object) -> None:
        """Counts equal exactly; sums within the float32 summation error of that many largest gradients."""
        for name in self.grad_sum:
            record = ledger[name]  # type: ignore[index]
            slack = 1e-6 * max(1, self.steps[name]) * self.largest
            np.testing.assert_array_equal(record.events, self.events[name], err_msg=name)
            np.testing.assert_array_equal(record.votes, self.votes[name], err_msg=name)
            np.testing.assert_allclose(
                record.grad_sum, self.grad_sum[name], rtol=1e-5, atol=slack, err_msg=name
            )
            np.testing.assert_allclose(
                record.grad_sumsq, self.grad_sumsq[name], rtol=1e-5, atol=slack * self.largest, err_msg=name
            )
            assert (record.steps, record.missing) == (self.steps[name], self.missing[name]), name


@pytest.fixture
def gradient_loop() -> Callable[[nn.Module], GradientLoop]:
    return GradientLoop


class S3:
    """An S3 server on loopback; `fault` says of each request whether it fails, by its method and path."""

    key, secret = "AKIAGRADTRACETEST", "tests-secret-4f1c"

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self.fault: Callable[[str, str], int | str | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self._healed = threading.Event()
        self._application = DomainDispatcherApplication(create_backend_app)
        self._port = 0
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.come_back()

    def come_back(self) -> None:
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def go_away(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def heal(self) -> None:
        self.fault = lambda method, path: None
        self._healed.set()
        self._healed = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def bucket(self) -> str:
        """Make a bucket and return its name."""
        import boto3

        name = f"bucket-{uuid.uuid4().hex}"
        account = {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret}
        client = boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **account)
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def options(self, *, patience: float = 60.0, request: float = 30.0) -> dict[str, Any]:
        """Storage options of a client that gives up after `patience` and `request` seconds."""
        return {
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": self.key,
            "secret_access_key": self.secret,
            "client_options": {"allow_http": True, "timeout": timedelta(seconds=request)},
            "retry_config": {
                "retry_timeout": timedelta(seconds=patience),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=5),
                    "max_backoff": timedelta(milliseconds=50),
                },
                "max_retries": 1000,
            },
        }

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.fault(method, path)
        if fault == "hang":
            self._healed.wait(60)
        if fault is not None:
            # The body is read: a client that is still sending would see a broken pipe, not an answer.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{fault if isinstance(fault, int) else 500} Failing", [("Content-Length", "0")])
            return []
        answer: Iterable[bytes] = self._application(environ, start_response)
        return answer


@pytest.fixture(scope="session")
def _s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.go_away()


@pytest.fixture
def s3(_s3: S3) -> Iterator[S3]:
    _s3.requests.clear()
    yield _s3
    _s3.heal()
