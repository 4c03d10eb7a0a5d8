"""Frozen dataclasses as pytrees."""

from jax.tree_util import GetAttrKey, register_pytree_with_keys


def pytree(*data, meta=()):
    """Register a dataclass whose `data` fields are subtrees and whose `meta` fields are static.

    `jax.tree_util.register_dataclass` makes tree structures that compare equal across classes (as of JAX 0.10.2). A
    cache of compiled functions could then take one boost for another. The structures made here compare unequal.
    """

    def register(cls):
        def flatten_with_keys(node):
            children = [(GetAttrKey(name), getattr(node, name)) for name in data]
            return children, tuple(getattr(node, name) for name in meta)

        def unflatten(aux, children):
            return cls(**dict(zip(data, children, strict=True)), **dict(zip(meta, aux, strict=True)))

        register_pytree_with_keys(cls, flatten_with_keys, unflatten)
        return cls

    return register
