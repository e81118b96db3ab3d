"""Explains a folder of images by Spark, in three partitions: `explain_by_spark.py ADDRESS FOLDER OUT`."""

import os
import sys

from pyspark.sql import SparkSession

from sagittal.client import Client
from sagittal.integrations.spark import explain_dataframe

address, folder, out = sys.argv[1:]
os.environ["PYSPARK_PYTHON"] = sys.executable
builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
spark = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1").getOrCreate()
try:
    files = spark.read.format("binaryFile").load(folder).repartition(3)
    for _ in range(2):  # the second time nothing is computed again
        found = explain_dataframe(
            files, lambda: Client(address), batch="by-spark", image="content", key="path", model="lamp"
        )
        found.write.parquet(out)
        out += "-again"
finally:
    spark.stop()
