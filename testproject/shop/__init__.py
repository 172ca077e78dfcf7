"""A small shop: its orders are charged, packed and confirmed by one durable workflow each."""
