"""Explains a folder of images by Ray, in tasks of ten rows: `explain_by_ray.py ADDRESS FOLDER OUT`."""

import sys

import ray

from sagittal.client import Client
from sagittal.integrations.ray import explain_dataset

address, folder, out = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
try:
    # decoded pixels, as arrays, and the paths that they came from
    images = ray.data.read_images(folder, mode="RGB", include_paths=True)
    for _ in range(2):  # the second time nothing is computed again
        found = explain_dataset(
            images, lambda: Client(address), batch="by-ray", key="path", rows=10, concurrency=2, model="lamp"
        )
        found.write_parquet(out)
        out += "-again"
finally:
    ray.shutdown()
