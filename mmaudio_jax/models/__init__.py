"""The networks: shapes in, shapes out; they know no mesh, no disk and no config file."""
