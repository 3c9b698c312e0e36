"""`simple_spread`, whose moves show early."""

from mpe2 import simple_spread_v3

from scripts.until_2023 import older

parallel_env = older(simple_spread_v3)
