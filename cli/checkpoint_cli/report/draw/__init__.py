"""Pictures and page of a run as markup. Pure: nothing here reads a clock, a file outside the package, or a store."""
