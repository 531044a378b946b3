"""The bases of upstream's server."""

from __future__ import annotations

import threading
from queue import PriorityQueue
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from patches.codec.tensors import BatchTensorDescriptor  # noqa: E402
from patches.concurrency import processes  # noqa: E402
from patches.concurrency.loops import RemoteExpertWorker  # noqa: E402
from patches.hosting import adapters  # noqa: E402
from patches.hosting.module_backend import ModuleBackend, refuse_custom_models  # noqa: E402
from patches.hosting.runtime import Runtime  # noqa: E402
from patches.network.node import CallError  # noqa: E402
from tests.patches.conftest import Join  # noqa: E402
from tests.patches.network.test_p2p import LIMIT, Text, Toy, serving, stub  # noqa: E402


class Pool(threading.Thread):
    """As upstream's pools look to the runtime."""

    def __init__(self, name: str, done: Any) -> None:
        super().__init__(name=name, daemon=True)
        self.tasks: PriorityQueue[tuple[float, Any]] = PriorityQueue()
        self.batch_receiver, self.batch_sender = processes.Pipe(duplex=False)
        self.done = done
        self.ended = threading.Event()

    def submit(self, priority: float, task: Any) -> None:
        self.tasks.put((priority, task))
        self.batch_sender.send(None)

    def run(self) -> None:
        self.ended.wait(LIMIT)

    def terminate(self) -> None:
        self.ended.set()

    @property
    def empty(self) -> bool:
        return not self.batch_receiver.poll()

    @property
    def priority(self) -> float:
        return self.tasks.queue[0][0]

    def load_batch_to_runtime(self, timeout: Any, device: Any) -> tuple[Any, list[Any]]:
        self.batch_receiver.recv()
        _, task = self.tasks.get()
        return task, [task]

    def process_func(self, task: Any) -> tuple[Any, ...]:
        if task == "fail":
            raise ValueError("as asked")
        return (f"{task}!",)

    def send_outputs_from_runtime(self, task: Any, outputs: Any) -> None:
        self.done(self.name, task, outputs[0])

    def send_exception_from_runtime(self, task: Any, error: BaseException) -> None:
        self.done(self.name, task, error)


class Backend:
    def __init__(self, *pools: Pool) -> None:
        self.pools = pools

    def get_pools(self) -> tuple[Pool, ...]:
        return self.pools


def test_the_runtime_computes_the_most_urgent_task_first() -> None:
    results: list[tuple[str, Any, Any]] = []
    finished = threading.Event()

    def done(*result: Any) -> None:
        results.append(result)
        if len(results) == 4:
            finished.set()

    slow, fast = Pool("slow", done), Pool("fast", done)
    runtime = Runtime({"block": Backend(slow, fast)})
    slow.submit(3.0, "c")
    fast.submit(2.0, "fail")
    slow.submit(4.0, "d")
    fast.submit(1.0, "a")
    runtime.start()
    assert runtime.ready.wait(LIMIT)
    assert finished.wait(LIMIT)
    assert [(pool, task) for pool, task, _ in results] == [
        ("fast", "a"),
        ("fast", "fail"),
        ("slow", "c"),
        ("slow", "d"),
    ]
    assert isinstance(results[1][2], ValueError)
    assert results[0][2] == "a!"
    runtime.shutdown()
    runtime.join(LIMIT)
    assert not runtime.is_alive()
    assert not runtime.ready.is_set()


def test_a_module_backend_gives_the_gradients_of_the_module() -> None:
    linear = torch.nn.Linear(3, 3)
    schema = (BatchTensorDescriptor(2, 3, dtype=torch.float32),)
    backend = ModuleBackend("m", linear, args_schema=schema, kwargs_schema={}, outputs_schema=schema, max_batch_size=9)
    x, grad = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    (out,) = backend.forward(x)
    assert not out.requires_grad
    assert torch.equal(out, linear(x))
    (given,) = backend.backward(x, grad)
    leaf = x.clone().requires_grad_()
    linear(leaf).backward(grad)
    assert torch.allclose(given, leaf.grad)
    assert backend.forward_pool.max_batch_size == 9
    assert backend.get_info()["forward_schema"] == (schema, {})
    with pytest.raises(ValueError, match="never run"):
        refuse_custom_models("code.py")


def test_a_handler_answers_until_it_is_shut_down(join: Join) -> None:
    server, client = join(), join(client_mode=True)
    with serving(server) as handler:
        toy = stub(client, server)
        said = RemoteExpertWorker.run_coroutine(toy.rpc_echo(Text("hello"), timeout=LIMIT))
        assert said.text == f"hello from {client.peer_id}"
        assert handler.is_alive()
    with pytest.raises(CallError, match="protocol not supported"):
        RemoteExpertWorker.run_coroutine(toy.rpc_echo(Text("hello"), timeout=LIMIT))


def test_a_handler_that_cannot_start_says_why(join: Join) -> None:
    class Wrong(Toy):
        async def rpc_wrong(self, something: int, context: Any) -> int:
            return something

    handler = Wrong(join())
    with pytest.raises(TypeError, match="rpc_wrong does not say"):
        handler.run_in_background(timeout=LIMIT)
    handler.join(LIMIT)


def test_adapters_are_refused_when_they_are_asked_for() -> None:
    with adapters.using_adapter(""), adapters.using_adapter(None):
        pass
    with pytest.raises(ValueError, match="lora-of-mine: LoRA adapters are not"), adapters.using_adapter("lora-of-mine"):
        pass
    with pytest.raises(ImportError, match="not provided"):
        from patches.hosting.adapters import create_lora_adapter  # noqa: F401
