"""Every error a user can meet: each names the argument, the value and the remedy."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

_MOST_CANDIDATES = 2**30  # the bracket's width, up to 2n, is counted in int32


def _array(name, value):
    """`value` as an array, under the rule of `jax.numpy`: arrays and scalars, no lists."""
    if not _is_arraylike(value):
        raise TypeError(f"{name} must be an array, got {_kind(value)}; convert it with jnp.asarray")
    return jnp.asarray(value)


def _is_arraylike(value):
    """What `jax.numpy` takes for an array: also what turns itself into one, as modules' parameters do."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind not in "OSUMm"  # objects, strings and dates
    return isinstance(value, (jax.Array, float, int, complex)) or hasattr(value, "__jax_array__")


def _kind(value):
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"dtype {dtype}"


def _floating(name, value):
    value = _array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be floating point, got dtype {value.dtype}; "
            f"cast with {name.split('[')[0]}.astype(jnp.float32)"
        )
    return value


def scores(value):
    """Floating scores `(..., n)`."""
    value = _floating("scores", value)
    if value.ndim == 0:
        raise ValueError(
            "scores must have shape (..., n), got a scalar of shape (); pass one score for each candidate"
        )
    if value.shape[-1] == 0:
        raise ValueError(f"scores has shape {value.shape}, so n = 0: there is nothing to select from")
    if not isinstance(value.shape[-1], int):
        raise ValueError(
            f"scores has shape {value.shape}, and n = {value.shape[-1]} must be a number when tracing, because "
            "it sets the rounds; export with a symbolic batch alone, and pad n with where="
        )
    if value.shape[-1] > _MOST_CANDIDATES:
        raise ValueError(
            f"scores has shape {value.shape}, so n is above {_MOST_CANDIDATES}, the limit of int32 indices; "
            "select in parts first, the best k of each"
        )
    return value


def embeddings(tree, lead, *, axis="n", name="embeddings"):
    """Floating payload: every leaf `(*lead, *features)`, `lead` ending in n (or k) rows."""

    def leaf(path, value):
        label = name + jax.tree_util.keystr(path)
        value = _floating(label, value)
        if value.shape[: len(lead)] != lead:
            raise ValueError(
                f"{label} has shape {value.shape}, which must begin with {lead}, the shape "
                f"(..., {axis}) set by scores; reshape or transpose {label} so that it does"
            )
        return value

    return jax.tree_util.tree_map_with_path(leaf, tree)


def static_int(name, value, low, high, bounds):
    """An int known at trace time with `low <= value <= high`; `bounds` says that in words."""
    if isinstance(value, Tracer):
        remedy = f"mark it static (jax.jit(..., static_argnames='{name}')) or close over it"
        if name == "k":
            remedy += "; a traced k has a home in shtopk.topk_mask"
        raise TypeError(f"{name} must be a static int, got a traced {value.aval}: {remedy}")
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an int, got {value!r} of type {type(value).__name__}; "
            f"convert it with int({name})"
        ) from None
    if not low <= number <= high:
        raise ValueError(f"{name} must satisfy {bounds}, got {name}={number}: {low} to {high} here")
    return number


def k(value, n):
    """A static number of slots, `1 <= k <= n`."""
    return static_int("k", value, 1, n, "1 <= k <= n")


def traced_k(value, n):
    """A scalar integer array, for `topk_mask` alone: int32, and 0 in place of a number out of range."""
    if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(
            f"k must be an int or a scalar integer array, got shape {value.shape} and dtype "
            f"{value.dtype}; for a different k per row use jax.vmap over scores and k"
        )
    # Before the cast, in which a larger number would wrap into the range.
    return jnp.where((value >= 1) & (value <= min(n, jnp.iinfo(value.dtype).max)), value, 0).astype(jnp.int32)


def candidates(value, k, n):
    """None, or a static int with `k <= candidates <= n`."""
    return None if value is None else static_int("candidates", value, k, n, "k <= candidates <= n")


def where(value, shape):
    """None, or a boolean array broadcast to the shape of scores."""
    if value is None:
        return None
    value = _array("where", value)
    if value.dtype != jnp.bool_:
        raise TypeError(
            f"where must be boolean (True = takes part), got dtype {value.dtype}; "
            "compare first, for instance where != 0"
        )
    try:
        return jnp.broadcast_to(value, shape)
    except ValueError:
        raise ValueError(
            f"where has shape {value.shape}, which does not broadcast to {shape}, the shape "
            "of scores; give it one entry for each candidate"
        ) from None


def devices(axis_name):
    """How many devices share the candidates: the size of the mesh axis, 1 for None."""
    if axis_name is None:
        return 1
    try:
        hash(axis_name)
        return lax.psum(1, axis_name)
    except TypeError:
        raise TypeError(
            f"axis_name must be the name of a mesh axis or a tuple of names, got {axis_name!r}"
        ) from None
    except NameError:
        raise ValueError(
            f"axis_name={axis_name!r} is not bound here: call this inside jax.shard_map, over a mesh that has "
            "that axis, with scores and embeddings split along n"
        ) from None


def scatter(value, k, axis_name):
    """True only where k slots can be split evenly over the devices of an axis."""
    if not flag("scatter", value):
        return False
    if axis_name is None or k % devices(axis_name):
        raise ValueError(
            f"scatter=True splits k={k} slots over the {devices(axis_name)} devices of axis_name={axis_name!r}: "
            "select with an axis_name whose size divides k"
        )
    return True


def choice(name, value, options):
    """One of a few words."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}; pick one")
    return value


def flag(name, value):
    """True or False, known at trace time."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(
        f"{name} must be True or False, got {value!r} of type {type(value).__name__}; "
        f"if it is traced, mark it static (jax.jit(..., static_argnames='{name}'))"
    )


def boost(value):
    """Anything that can be called; its leaves, if it is a pytree of numbers, things that can be traced."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(
            f"boost must be callable as boost(high, low, where), got {value!r}; "
            "pass shtopk.Relative(), Scaled(...), Power(...) or a function of that form"
        )
    if any(callable(leaf) for leaf in jax.tree.leaves(value)):
        return value
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: bare_number("boost" + jax.tree_util.keystr(path), leaf), value
    )


def bare_number(name, value):
    """A number as it stands, before it goes through `jit`, which names nobody in its errors."""
    if not _is_arraylike(value):
        raise TypeError(f"{name} must be a number or an array, got {_kind(value)}; convert it with float")
    return jnp.asarray(value) if hasattr(value, "__jax_array__") else value


def matches(high, low, where):
    """What a boost is called with: the scores of a match's two sides, and which matches are live."""
    return _floating("high", high), _floating("low", low), _array("where", where)


def win_weights(value, like):
    """What a boost returned, in the type and shape of the scores it was given."""
    value = _array("what boost returns", value)
    if jnp.shape(value) != like.shape:
        raise ValueError(
            f"boost returned shape {jnp.shape(value)} for matches of shape {like.shape}; it must "
            "return one weight in [0, 1] for each match, and its own numbers must be scalars"
        )
    return value.astype(like.dtype)


def number(name, value, dtype):
    """A real scalar, plain or traced, in the dtype of the scores."""
    value = bare_number(name, value)
    if jnp.ndim(value):
        raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}; pass one number")
    if jnp.iscomplexobj(value):
        raise TypeError(f"{name} must be real, got dtype {jnp.result_type(value)}; take its real part")
    return jnp.asarray(value, dtype)


def same_vectors(reference, approximation):
    """Two floating arrays `(..., k, d)` of one shape."""
    reference = _floating("reference", reference)
    approximation = _floating("approximation", approximation)
    if reference.shape != approximation.shape or reference.ndim < 2:
        raise ValueError(
            f"reference and approximation must share one shape (..., k, d), got "
            f"{reference.shape} and {approximation.shape}; reshape one of them"
        )
    return reference, approximation
