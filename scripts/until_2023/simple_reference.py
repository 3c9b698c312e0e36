"""`simple_reference`, whose moves show early."""

from mpe2 import simple_reference_v3

from scripts.until_2023 import older

parallel_env = older(simple_reference_v3)
