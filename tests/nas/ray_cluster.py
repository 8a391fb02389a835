"""A Ray cluster of two nodes on this machine, as a process of its own: prints its address, then obeys stdin.

The first has four cores and a GPU, the second one core; `kill` kills the second, `add` adds another in its place, and
`add FOLDER` one that does not see what is in the folder. The end of stdin ends the cluster.
"""

import ctypes
import os
import subprocess
import sys

NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


def hide(folder):
    """Has what this process starts from here on see an empty folder; says whether that is allowed."""
    if ctypes.CDLL(None).unshare(NEW_MOUNTS):
        return False
    for command in ("--make-rprivate /", f"-t tmpfs tmpfs {folder}"):
        if subprocess.run(["mount", *command.split()], capture_output=True).returncode:
            return False
    return True


def main():
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_worker_niceness": "0",  # on a busy machine its 15 is for ever
        # Both nodes where nobody else can reach them; the driver joins the one at its own address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 * 2**20}
    # Nobody looks whether the cores and the GPU that a node is declared to have are there.
    head = small | {"num_cpus": 4, "num_gpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(node_ip_address="127.0.0.2", num_cpus=1, **small)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        what, *folders = line.split()
        if what == "kill":
            cluster.remove_node(second, allow_graceful=False)
        elif all(map(hide, folders)):
            second = cluster.add_node(node_ip_address="127.0.0.2", num_cpus=1, **small)
        else:
            what = "cannot"
        print(what, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
