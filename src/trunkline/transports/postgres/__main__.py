"""``python -m trunkline.transports.postgres [SCHEMA]`` prints the SQL that makes what Trunkline needs."""

import sys

from .schema import schema_sql

sys.stdout.write(schema_sql(*sys.argv[1:2]))
