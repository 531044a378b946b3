"""The names that upstream takes from hivemind, which is not installed: plain data."""

from __future__ import annotations

from patches.patch import Lines, Patch

_FORK = "hivemind forks its processes, which Windows cannot"
_UNINSTALLED = "hivemind cannot be installed on Windows, and the rest needs little of it"

NAMES = (
    Patch(
        name="dht",
        changes={
            "hivemind:DHT": "patches.network.dht:DHT",
            "hivemind.dht:DHT": "patches.network.dht:DHT",
            "hivemind.dht:DHTNode": "patches.network.dht:DHTNode",
            "hivemind.dht:DHTValue": "patches.network.records:DHTValue",
        },
        upstream=(
            Lines("petals/utils/dht.py", 57, 71, "8c87dc85baa7"),
            Lines("petals/utils/dht.py", 95, 131, "627e6c73731f"),
        ),
        replaces="a distributed hash table in a forked process: who serves which blocks",
        why=f"{_FORK}; our directory knows the same, and admits members only",
        test="tests/patches/network/test_dht.py::test_what_a_server_stores_a_client_finds",
    ),
    Patch(
        name="p2p",
        changes={
            "hivemind:P2P": "patches.network.p2p:P2P",
            "hivemind:P2PContext": "patches.network.p2p:P2PContext",
            "hivemind:PeerID": "patches.network.p2p:PeerID",
            "hivemind.p2p:P2P": "patches.network.p2p:P2P",
            "hivemind.p2p:P2PContext": "patches.network.p2p:P2PContext",
            "hivemind.p2p:PeerID": "patches.network.p2p:PeerID",
            "hivemind.p2p:ServicerBase": "patches.network.p2p:ServicerBase",
            "hivemind.p2p:StubBase": "patches.network.p2p:StubBase",
            "hivemind.p2p.p2p_daemon:DEFAULT_MAX_MSG_SIZE": "patches.network.p2p:DEFAULT_MAX_MSG_SIZE",
            "hivemind.p2p.p2p_daemon_bindings.control:DEFAULT_MAX_MSG_SIZE": "patches.network.p2p:DEFAULT_MAX_MSG_SIZE",
            "hivemind.p2p.p2p_daemon_bindings.control:MAX_UNARY_PAYLOAD_SIZE": (
                "patches.network.p2p:MAX_UNARY_PAYLOAD_SIZE"
            ),
        },
        upstream=(
            Lines("petals/server/handler.py", 13, 29, "24413857a95d"),
            Lines("petals/client/remote_forward_backward.py", 8, 15, "a14426880f51"),
        ),
        replaces="streams of libp2p, through a daemon and Unix sockets",
        why="there is no daemon for Windows; the same calls are ZeroMQ messages over `routing.links`, encrypted",
        test="tests/patches/network/test_p2p.py::test_calls_of_every_kind_between_two_peers",
    ),
    Patch(
        name="connection-handler",
        changes={
            "hivemind.moe.server.connection_handler:ConnectionHandler": (
                "patches.network.connection_handler:ConnectionHandler"
            )
        },
        upstream=(Lines("petals/server/handler.py", 55, 107, "feb4ad05b62e"),),
        replaces="the base of the processes that answer calls",
        why=f"{_FORK}; handlers are threads with an event loop",
        test="tests/patches/test_server.py::test_a_handler_answers_until_it_is_shut_down",
    ),
    Patch(
        name="runtime",
        changes={"hivemind.moe.server.runtime:Runtime": "patches.hosting.runtime:Runtime"},
        upstream=(
            Lines("petals/server/server.py", 770, 775, "217f13ccc850"),
            Lines("petals/server/task_pool.py", 119, 156, "0e966012d1a8"),
        ),
        replaces="the thread that computes, which selects over the pipes of the pools",
        why="Windows selects over sockets only, not over pipes",
        test="tests/patches/test_server.py::test_the_runtime_computes_the_most_urgent_task_first",
    ),
    Patch(
        name="module-backend",
        changes={
            "hivemind.moe.server.module_backend:ModuleBackend": "patches.hosting.module_backend:ModuleBackend",
            "hivemind.moe.server.layers:add_custom_models_from_file": (
                "patches.hosting.module_backend:refuse_custom_models"
            ),
        },
        upstream=(
            Lines("petals/server/backend.py", 29, 86, "772c11cf3754"),
            Lines("petals/server/server.py", 108, 109, "40efc33b1b34"),
        ),
        replaces="the base of `TransformerBackend`: forward and backward over flat lists of tensors",
        why=_UNINSTALLED,
        test="tests/patches/test_server.py::test_a_module_backend_gives_the_gradients_of_the_module",
    ),
    Patch(
        name="futures",
        changes={
            "hivemind.utils:MPFuture": "patches.concurrency.futures:MPFuture",
            "hivemind.utils.mpfuture:MPFuture": "patches.concurrency.futures:MPFuture",
            "hivemind.utils.mpfuture:ALL_STATES": "patches.concurrency.futures:ALL_STATES",
        },
        upstream=(Lines("petals/server/task_pool.py", 95, 111, "f74634c81edf"),),
        replaces="futures in memory that forked processes share",
        why=f"{_FORK}; all are threads of one process",
        test="tests/patches/test_threads.py::test_a_future_that_a_thread_sets_is_awaited_in_a_loop",
    ),
    Patch(
        name="event-loops",
        changes={
            "hivemind.moe.client.remote_expert_worker:RemoteExpertWorker": (
                "patches.concurrency.loops:RemoteExpertWorker"
            ),
            "hivemind:anext": "builtins:anext",
            "hivemind.utils.asyncio:anext": "builtins:anext",
            "hivemind.utils.asyncio:amap_in_executor": "patches.concurrency.loops:amap_in_executor",
            "hivemind.utils.asyncio:aiter_with_timeout": "patches.concurrency.loops:aiter_with_timeout",
            "hivemind.utils.asyncio:iter_as_aiter": "patches.concurrency.loops:iter_as_aiter",
            "hivemind.utils:enter_asynchronously": "patches.concurrency.loops:enter_asynchronously",
        },
        upstream=(
            Lines("petals/client/inference_session.py", 10, 14, "87aa6147517b"),
            Lines("petals/server/memory_cache.py", 136, 167, "f62802e44052"),
        ),
        replaces="uvloop's event loop, and helpers around it",
        why="uvloop does not exist for Windows",
        test="tests/patches/test_threads.py::test_a_lock_is_waited_for_without_stopping_the_loop",
    ),
    Patch(
        name="messages",
        changes={
            **{
                f"hivemind.proto.runtime_pb2:{name}": f"patches.network.messages:{name}"
                for name in ("CompressionType", "ExpertInfo", "ExpertRequest", "ExpertResponse", "ExpertUID", "Tensor")
            },
            "hivemind.proto.dht_pb2:NodeInfo": "patches.network.messages:NodeInfo",
            "hivemind.proto.dht_pb2:PingRequest": "patches.network.messages:PingRequest",
            "hivemind.proto.dht_pb2:PingResponse": "patches.network.messages:PingResponse",
            "hivemind.moe.expert_uid:ExpertUID": "builtins:str",
        },
        upstream=(
            Lines("petals/server/handler.py", 42, 42, "b9396530c12d"),
            Lines("petals/utils/ping.py", 15, 32, "fbd9e3bd43de"),
        ),
        replaces="protobuf messages",
        why=_UNINSTALLED,
        test="tests/patches/network/test_messages.py::test_messages_survive_the_way",
    ),
    Patch(
        name="serialization",
        changes={
            **{
                f"{module}:{name}": f"patches.codec.serialization:{name}"
                for module in ("hivemind", "hivemind.compression.serialization")
                for name in ("deserialize_tensor_stream", "deserialize_torch_tensor", "serialize_torch_tensor")
            },
            "hivemind.utils.streaming:split_for_streaming": "patches.codec.serialization:split_for_streaming",
            "hivemind.compression.base:USE_LEGACY_BFLOAT16": "patches.codec.serialization:USE_LEGACY_BFLOAT16",
            "hivemind:MSGPackSerializer": "patches.codec.packing:MSGPackSerializer",
        },
        upstream=(
            Lines("petals/server/handler.py", 411, 432, "da98fdb388ee"),
            Lines("petals/__init__.py", 29, 31, "a00d9b77acad"),
        ),
        replaces="tensors and metadata as bytes, with five ways of compression",
        why=f"{_UNINSTALLED}; of the compressions, FLOAT16 is provided, others are refused",
        test="tests/patches/network/test_messages.py::test_tensors_survive_the_way_whole_and_in_parts",
    ),
    Patch(
        name="tensor-descriptors",
        changes={
            "hivemind:BatchTensorDescriptor": "patches.codec.tensors:BatchTensorDescriptor",
            "hivemind:TensorDescriptor": "patches.codec.tensors:TensorDescriptor",
            "hivemind.utils:TensorDescriptor": "patches.codec.tensors:TensorDescriptor",
            "hivemind.utils.tensor_descr:BatchTensorDescriptor": "patches.codec.tensors:BatchTensorDescriptor",
        },
        upstream=(Lines("petals/server/backend.py", 88, 97, "95913802cf09"),),
        replaces="descriptions of tensors",
        why=_UNINSTALLED,
        test="tests/patches/network/test_messages.py::test_metadata_keeps_tuples_and_descriptors",
    ),
    Patch(
        name="nested",
        changes={
            "hivemind:nested_compare": "patches.codec.nested:nested_compare",
            "hivemind:nested_flatten": "patches.codec.nested:nested_flatten",
            "hivemind:nested_pack": "patches.codec.nested:nested_pack",
            "hivemind.utils.nested:nested_flatten": "patches.codec.nested:nested_flatten",
        },
        upstream=(Lines("petals/utils/packaging.py", 21, 49, "426da9bc0f1f"),),
        replaces="structures of tuples and dicts, flattened and packed again",
        why=_UNINSTALLED,
        test="tests/patches/network/test_messages.py::test_what_is_flattened_packs_again",
    ),
    Patch(
        name="records",
        changes={
            "hivemind:MAX_DHT_TIME_DISCREPANCY_SECONDS": "patches.network.records:MAX_DHT_TIME_DISCREPANCY_SECONDS",
            "hivemind:TimedStorage": "patches.network.records:TimedStorage",
            "hivemind:get_dht_time": "patches.network.records:get_dht_time",
            "hivemind.dht.node:Blacklist": "patches.network.records:Blacklist",
            "hivemind.utils:DHTExpiration": "patches.network.records:DHTExpiration",
            "hivemind.utils:get_dht_time": "patches.network.records:get_dht_time",
        },
        upstream=(
            Lines("petals/utils/ping.py", 40, 64, "e1257b128b24"),
            Lines("petals/client/routing/sequence_manager.py", 112, 113, "500e6e563655"),
        ),
        replaces="values that expire, peers to stay away from, the DHT's time",
        why=_UNINSTALLED,
        test="tests/patches/test_threads.py::test_peers_that_fail_are_stayed_away_from_ever_longer",
    ),
    Patch(
        name="logging",
        changes={
            "hivemind:get_logger": "patches.concurrency.logs:get_logger",
            "hivemind.utils:get_logger": "patches.concurrency.logs:get_logger",
            **{
                f"hivemind.utils.logging:{name}": f"patches.concurrency.logs:{name}"
                for name in ("TextStyle", "get_logger", "loglevel", "use_hivemind_log_handler")
            },
        },
        upstream=(
            Lines("petals/utils/logging.py", 6, 18, "90bad7b7d7bb"),
            Lines("petals/utils/version.py", 15, 15, "48ce020c93f0"),
        ),
        replaces="coloured logs with a handler of their own",
        why=f"{_UNINSTALLED}; a console of Windows may not know the colours",
        test="tests/patches/test_registry.py::test_every_name_leads_to_code",
    ),
    Patch(
        name="limits",
        changes={
            "hivemind.utils.limits:increase_file_limit": "patches.concurrency.processes:increase_file_limit",
            "hivemind.utils.limits:logger": "patches.concurrency.processes:logger",
        },
        upstream=(Lines("petals/cli/run_server.py", 191, 194, "9b61a86ed1ac"),),
        replaces="the limit of open files, raised with the module `resource`",
        why="Windows has neither",
        test="tests/patches/test_registry.py::test_every_name_leads_to_code",
    ),
)
