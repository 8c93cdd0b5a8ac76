"""The miniature's FCN as a network of one's own: it says where it is, and what every pass of an attack is over.

Such a pass takes half a second, time for a test to cancel the job in its midst.
"""

import os
import time

from torch import Tensor

from dag.networks.mini.fcn import FCN, fcn


def build(**arguments) -> FCN:
    job, node, gpu = map(os.environ.get, ("SLURM_JOB_ID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES"))
    print(f"job {job}, node {node}, GPU {gpu}")
    network = fcn(**arguments)
    body = network.body

    def slow_body(images: Tensor) -> Tensor:
        if images.requires_grad:
            print("a pass over {} x {} pixels".format(*images.shape[-2:]))
            time.sleep(0.5)
        return body(images)

    network.body = slow_body
    return network
