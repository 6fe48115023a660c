"""Object stores behind one Protocol, and the run log kept in them."""
