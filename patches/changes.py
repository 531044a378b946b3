"""Changes: what is replaced in upstream itself, when it is imported; plain data."""

from __future__ import annotations

from patches.patch import Lines, Patch

_FORK = "upstream hands these over by fork, which Windows cannot"
_OUTSIDE = "a swarm of one's own asks nothing outside of it"

CHANGES = (
    Patch(
        name="file-locks",
        changes={
            "petals.utils.disk_cache:fcntl": "patches.concurrency.locks",
            "petals.server.throughput:fcntl": "patches.concurrency.locks",
        },
        how="lend",
        platforms=("win32",),
        upstream=(
            Lines("petals/utils/disk_cache.py", 18, 38, "056c1e928792"),
            Lines("petals/server/throughput.py", 59, 62, "f8059d75f9a7"),
        ),
        replaces="`fcntl.flock` on files of the cache",
        why="Windows has no fcntl; it locks bytes of a file (`msvcrt.locking`)",
        test="tests/patches/test_threads.py::test_a_file_is_locked_for_one_at_a_time",
    ),
    Patch(
        name="adapters",
        changes={"petals.utils.peft": "patches.hosting.adapters"},
        upstream=(
            Lines("petals/utils/peft.py", 138, 144, "ee5771e960d6"),
            Lines("petals/server/backend.py", 38, 40, "7e51a8419916"),
        ),
        replaces="LoRA adapters, which need peft, bitsandbytes and scipy to be imported, wanted or not",
        why="three large packages that nothing else here needs are left out, and adapters are refused",
        test="tests/patches/test_server.py::test_adapters_are_refused_when_they_are_asked_for",
    ),
    Patch(
        name="task-pool",
        changes={
            "petals.server.task_pool:mp": "patches.concurrency.processes",
            "petals.server.task_pool:_move_to_device_if_tensor": "patches.concurrency.processes:as_it_is",
        },
        upstream=(
            Lines("petals/server/task_pool.py", 49, 76, "cded47b514e8"),
            Lines("petals/server/task_pool.py", 170, 177, "4e25e1643f78"),
        ),
        replaces="values, queues and pipes between processes, and outputs in shared memory",
        why=f"{_FORK}; they are threads, values and queues of one process, and nothing is pickled",
        test="tests/patches/test_server.py::test_the_runtime_computes_the_most_urgent_task_first",
    ),
    Patch(
        name="memory-cache",
        changes={
            "petals.server.memory_cache:mp": "patches.concurrency.processes",
            "petals.server.memory_cache:os": "patches.concurrency.processes",
        },
        upstream=(
            Lines("petals/server/memory_cache.py", 29, 41, "fe3f9f954324"),
            Lines("petals/server/memory_cache.py", 195, 221, "83dbd7d7db53"),
        ),
        replaces="sizes and handles in shared memory, and the process ids that tell handlers from the runtime",
        why=f"{_FORK}; what upstream asserts of processes is asserted of threads",
        test="tests/patches/test_threads.py::test_a_thread_stands_for_the_runtime_or_for_a_handler",
    ),
    Patch(
        name="server-queues",
        changes={"petals.server.server:mp": "patches.concurrency.processes"},
        upstream=(Lines("petals/server/server.py", 580, 597, "29cdca22b2fc"),),
        replaces="queues between the processes of handlers",
        why=_FORK,
        test="tests/patches/test_upstream.py::test_an_upstream_client_generates_through_upstream_servers",
    ),
    Patch(
        name="speed-test",
        changes={"petals.server.throughput:mp": "patches.concurrency.processes"},
        upstream=(Lines("petals/server/throughput.py", 146, 186, "55bd2bf3ceda"),),
        replaces="a process that measures the network",
        why="a process that Windows spawns imports upstream without the patches; a thread measures",
        test="tests/patches/test_threads.py::test_a_process_of_threads_sends_through_its_pipe",
    ),
    Patch(
        name="announcer",
        changes={
            "petals.server.server:ModuleAnnouncerThread.__init__": "patches.hosting.server_parts:announcing_the_model"
        },
        how="wrap",
        upstream=(Lines("petals/server/server.py", 677, 715, "4f82656e866e"),),
        replaces="what a server says of itself: its own blocks only",
        why="our directory also wants to know how many blocks the model has, and how wide it is",
        test="tests/patches/test_upstream.py::test_an_upstream_client_generates_through_upstream_servers",
    ),
    Patch(
        name="reachability",
        changes={
            "petals.server.reachability:check_direct_reachability": (
                "patches.hosting.server_parts:check_direct_reachability"
            ),
            "petals.server.reachability:validate_reachability": "patches.hosting.server_parts:validate_reachability",
            "petals.server.reachability:ReachabilityProtocol.attach_to_dht": "patches.hosting.server_parts:no_service",
        },
        upstream=(
            Lines("petals/server/reachability.py", 22, 78, "e1523a1bde39"),
            Lines("petals/server/reachability.py", 126, 160, "7fe626ca8934"),
        ),
        replaces="peers that try whether others can be reached, and a web service that says so",
        why=f"{_OUTSIDE}; our routers reach servers behind a NAT or a firewall",
        test="tests/patches/test_upstream.py::test_an_upstream_client_generates_through_upstream_servers",
    ),
    Patch(
        name="version",
        changes={"petals.utils.version:validate_version": "patches.hosting.server_parts:validate_version"},
        upstream=(Lines("petals/utils/version.py", 14, 30, "b53efdcba73a"),),
        replaces="a question to the package index for a newer version",
        why=f"{_OUTSIDE}, and the patches fit this version",
        test="tests/patches/test_upstream.py::test_an_upstream_client_generates_through_upstream_servers",
    ),
    Patch(
        name="configurations",
        changes={
            "transformers.configuration_utils:PretrainedConfig.get_config_dict": "patches.hosting.configs:translating"
        },
        how="wrap",
        upstream=(Lines("transformers/configuration_utils.py", 600, 631, "2ccb862ba2ce"),),
        replaces="how transformers 4.34 reads config.json",
        why="it passes over what transformers 5 has renamed, and would compute with other numbers",
        test="tests/patches/hosting/test_configs.py::test_what_transformers_5_writes_is_said_in_older_words",
    ),
)
