"""A cluster of `trimaran up` hosts: join tokens, what the store holds of it, and its planner."""
