"""Pure decisions and formats shared by library and operator: standard library and msgspec only, no I/O, no clock."""
