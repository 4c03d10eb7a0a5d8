"""Errors about arguments, each with the argument, the value and the remedy; those about devices are in `_sharding`."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from shtopk._precision import accumulation_dtype

_ARRAYS = jax.Array, np.ndarray, np.generic
_MOST_CANDIDATES = 2**29  # the width of a bracket, up to 4n with a traced k, is counted in int32


def _array(name, value):
    """`value` as an array, if `jax.numpy` accepts it: arrays and scalars, no lists."""
    if _is_arraylike(value):
        try:
            return jnp.asarray(value)
        except TypeError:  # JAX refuses NumPy's bytes in another order, and more than 64 bits
            remedy = "convert it with numpy.asarray(x, numpy.float32)"
            raise TypeError(f"{name} must be an array of JAX, got {_kind(value)}; {remedy}") from None
    remedy = "pass numbers" if isinstance(value, _ARRAYS) else "convert it with jnp.asarray"
    raise TypeError(f"{name} must be an array, got {_kind(value)}; {_field_or(remedy, value)}")


def _field_or(remedy, value):
    """`remedy`, unless `value` is a named tuple, such as that of `anneal` or `topk`."""
    fields = getattr(value, "_fields", None)
    return f"pass one of its fields, {' or '.join(fields)}" if fields else remedy


def _is_arraylike(value):
    """Whether `jax.numpy` accepts `value` as an array: also an object with `__jax_array__`, as modules' parameters."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind not in "OSUMm"  # objects, strings and dates
    if isinstance(value, jax.Array):
        return not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return isinstance(value, (float, int, complex)) or hasattr(value, "__jax_array__")


def _kind(value):
    """The dtype of an array, the type of anything else: a tensor of another library has a dtype of its own."""
    return f"dtype {value.dtype}" if isinstance(value, _ARRAYS) else type(value).__name__


def _floating(name, value, instead="", of_complex="take {0}.real"):
    """`value` as a floating array. `instead` is a remedy before a cast, `of_complex` that for complex numbers."""
    value = _array(name, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        remedy = of_complex if jnp.iscomplexobj(value) else instead + "cast with {0}.astype(jnp.float32)"
        raise TypeError(f"{name} must be floating point, got dtype {value.dtype}; {remedy.format(name)}")
    return value


def scores(value):
    """Floating scores `(..., n)`."""
    value = _floating("scores", value)
    if value.ndim == 0:
        raise ValueError(
            "scores must have shape (..., n), got a scalar of shape (); pass one score for each candidate"
        )
    if value.shape[-1] == 0:
        raise ValueError(f"scores has shape {value.shape}, so n = 0; pass at least one candidate")
    if not isinstance(value.shape[-1], int):
        raise ValueError(
            f"scores has shape {value.shape}, and n = {value.shape[-1]} must be a number when tracing, because k is "
            "compared with it; export with a symbolic batch alone, pad n, and exclude padding with where="
        )
    if value.shape[-1] > _MOST_CANDIDATES:
        raise ValueError(
            f"scores has shape {value.shape}, so n is above {_MOST_CANDIDATES}, the limit of int32 indices; "
            "select in parts first, the best k of each"
        )
    return value


def embeddings(tree, lead, *, axis="n", name="embeddings", any_dtype=False):
    """Payload: every leaf `(*lead, *features)`, `lead` ending in n (or k) rows; other leading axes may be 1.

    Floating, or of `any_dtype`.
    """

    def leaf(path, value):
        label = name + jax.tree_util.keystr(path)
        if any_dtype:
            value = _array(label, value)
        else:
            instead = "gather such rows by TopK.indices of the result, or "
            value = _floating(label, value, instead, "pass {0}.real and {0}.imag")
        own = value.shape[: len(lead)]
        fits = len(own) == len(lead) and all(x in (1, y) for x, y in zip(own, lead, strict=True))
        if not fits or own[-1] != lead[-1]:
            raise ValueError(
                f"{label} has shape {value.shape}, which must begin with {lead}, the shape (..., {axis}) set by "
                f"scores (axes before {axis} may be 1); {_remedy(label, value.shape, lead)}"
            )
        return value

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _remedy(label, shape, lead):
    if lead[-1] == 1 and shape[: len(lead) - 1] == lead[:-1]:
        return "if scores end in an axis of size 1, pass scores[..., 0]"
    if shape == ():
        return "if it is part of a list of numbers, convert the list with jnp.asarray"
    if shape == lead[: len(shape)]:
        return "if scores and embeddings are swapped, pass embeddings first"
    if len(shape) > 1 + len(lead) and shape[1 : 1 + len(lead)] == lead:
        return "if embeddings are a batch, pass scores with the same leading axes, or use jax.vmap over embeddings"
    return _with_axes(label, shape, lead) or f"reshape or transpose {label} so that it does"


def _with_axes(label, shape, lead):
    """The remedy where axes of size 1 before n are missing in `shape` beside `lead`, `(..., n)`; None elsewhere."""
    for kept in reversed(range(len(lead) - 1)):
        if shape[: kept + 1] == (*lead[:kept], lead[-1]):
            index = [":"] * kept + ["None"] * (len(lead) - 1 - kept)
            return f"to share it over the other axes, pass {label}[{', '.join(index)}]"
    return None


def static_int(name, value, low, high, bounds):
    """An int known at trace time with `low <= value <= high`; `bounds` says that in words."""
    if isinstance(value, Tracer):
        remedy = f"mark it static (jax.jit(..., static_argnames='{name}')) or close over it"
        if name == "k":
            remedy += "; for a traced k use shtopk.topk_mask"
        raise TypeError(f"{name} must be a static int, got a traced {value.aval}: {remedy}")
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        convertible = isinstance(value, str) or hasattr(value, "__int__")
        remedy = f"convert it with int({name})" if convertible else "pass an int"
        raise TypeError(
            f"{name} must be an int, got {value!r} of type {type(value).__name__}; {remedy}"
        ) from None
    if not low <= number <= high:
        raise ValueError(f"{name} must satisfy {bounds}, got {name}={number}; pass {low} to {high}")
    return number


def k(value, n):
    """A static number of slots, `1 <= k <= n`."""
    return static_int("k", value, 1, n, "1 <= k <= n")


def real_or_traced_k(value, n):
    """The k of `topk_mask`: an int or a float, `1 <= k <= n`, or an array `()` of either, whose value may be traced."""
    if hasattr(value, "__jax_array__"):
        value = jnp.asarray(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    array = isinstance(value, (jax.Array, np.ndarray))
    if hasattr(value, "__index__") and not array:
        return k(value, n)
    real = jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.floating)
    whole = array and jnp.issubdtype(value.dtype, jnp.integer)
    if not (real or whole) or jnp.ndim(value):
        got = f"shape {value.shape} and dtype {value.dtype}" if real or whole else repr(value)
        raise TypeError(
            f"k must be an int, a float or a scalar array of either, got {got}; for a different k per row use "
            "jax.vmap over scores and k"
        )
    if array:
        return value
    value = float(value)  # in half precision, n could be infinite
    if not 1 <= value <= n:
        raise ValueError(f"k must satisfy 1 <= k <= n, got k={value}; pass 1 to {n}")
    return value


def candidates(value, k, n):
    """A static int with `k <= candidates <= n`; n for None."""
    return n if value is None else static_int("candidates", value, k, n, "k <= candidates <= n")


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
            f"where has shape {value.shape}, which does not broadcast to {shape}, the shape of scores; "
            + (_with_axes("where", value.shape, shape) or "give it one entry for each candidate")
        ) from None


def key(value):
    """A key of `jax.random`, new style or old."""
    if isinstance(value, (jax.Array, np.ndarray)):
        typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        if value.shape == () if typed else value.dtype == jnp.uint32 and value.ndim == 1:
            return jnp.asarray(value)
    got = f"{_kind(value)} and shape {value.shape}" if hasattr(value, "shape") else _kind(value)
    raise TypeError(
        f"key must be a single key, got {got}; make one by jax.random.key(seed), use jax.vmap over several"
    )


def draw(value, random_key, straight_through):
    """`draw` and `key` of `topk`: both or neither, a number in [0, 1] and a key."""
    if value is None and random_key is None:
        return None, None
    if value is None or random_key is None:
        raise ValueError(
            f"draw and key go together, got draw={value!r} and key={random_key!r}; pass both, "
            "for instance draw=1.0, key=jax.random.key(0), or neither"
        )
    if straight_through:
        raise ValueError("draw and straight_through both set the forward pass; pass one of them")
    return fraction("draw", value, "0 is the mixture, 1 a row"), key(random_key)


def fraction(name, value, meaning):
    """A scalar in [0, 1]: a number is checked, a traced value is clipped."""
    value = bare_number(name, value)
    array = number(name, value, jnp.result_type(float))
    if not isinstance(value, Tracer) and not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}; {meaning}")
    return _in_unit_interval(array)


def _in_unit_interval(x):
    """`x` clipped to [0, 1], with its whole derivative at 0 and at 1, where that of `jnp.clip` is half."""
    return jnp.where(x < 0, 0, jnp.where(x > 1, 1, x))


def sharpness_range(value):
    """The first and the last sharpness of `anneal`: two positive scalars, plain or traced."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"sharpness must be a pair (first, last), got {value!r}; for instance (0.1, 100.0)")
    numbers = [whole_as_float(bare_number("sharpness", x)) for x in value]
    known = [x for x in numbers if not (isinstance(x, Tracer) or jnp.ndim(x) or jnp.iscomplexobj(x))]
    if not all(0 < x < np.inf for x in known):
        raise ValueError(
            f"sharpness must be positive and finite, first and last, got {value!r}; for instance (0.1, 100.0)"
        )
    return numbers


def subset(value, shape):
    """Integer indices `(..., k)` whose leading axes broadcast with those of a selection of `shape` `(..., k)`."""
    value = _array("indices", value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"indices must be integers, got dtype {value.dtype}; pass what sample(key) returns")
    if value.dtype.itemsize < 4:  # may be too narrow for n
        value = value.astype(jnp.int32)
    try:
        jnp.broadcast_shapes(value.shape[:-1], shape[:-1])
        if value.shape[-1:] == shape[-1:]:
            return value
    except ValueError:
        pass
    raise ValueError(
        f"indices has shape {value.shape}, which must be (..., k) = {shape}, or broadcast to it before the last "
        "axis; pass one index for each slot"
    )


def sum_axis(value, axes):
    """None, or a static int, one of so many leading axes."""
    if value is None:
        return None
    if axes == 0:
        raise ValueError(
            f"sum_axis must name a leading axis of scores, which have none, got {value!r}; leave it out"
        )
    return static_int("sum_axis", value, 0, axes - 1, f"0 <= sum_axis < {axes}")


def choice(name, value, options):
    """One of a few words."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}; pick one")


def flag(name, value):
    """True or False, known at trace time."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(
        f"{name} must be True or False, got {value!r} of type {type(value).__name__}; "
        f"if it is traced, mark it static (jax.jit(..., static_argnames='{name}'))"
    )


def boost(value) -> Any:  # a `Boost`, whose module imports this one
    """A callable. If it is a pytree of numbers, its leaves must be numbers or arrays."""
    if not callable(value) or isinstance(value, type):
        got = _kind(value) if isinstance(value, tuple) else repr(value)
        remedy = "pass shtopk.Relative(), Scaled(...), Power(...) or a function of that form"
        raise TypeError(
            f"boost must be callable as boost(high, low, where), got {got}; {_field_or(remedy, value)}"
        )
    if any(callable(leaf) for leaf in jax.tree.leaves(value)):
        return value
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: bare_number("boost" + jax.tree_util.keystr(path), leaf), value
    )


def within(name, value, holds, bounds):
    """A number for which `holds`, which `bounds` says in words; a tracer or an array of JAX is not looked at."""
    value = bare_number(name, value)
    if isinstance(value, (int, float, np.number)) and not holds(value):
        raise ValueError(f"{name} must be {bounds}, got {value}")
    return whole_as_float(value)


def whole_as_float(value):
    """An integer of Python or NumPy as a float: `jit` would wrap it to 32 bits, or refuse it. Other values as given."""
    if isinstance(value, (np.integer, np.ndarray)):
        whole = value.dtype.kind in "iu" and value.ndim == 0
    else:
        whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole else value


def bare_number(name, value):
    """A number, checked before it goes through `jit`, whose errors name no argument."""
    if not _is_arraylike(value):
        remedy = "convert it with float" if isinstance(value, str) else "pass a number"
        raise TypeError(f"{name} must be a number or an array, got {_kind(value)}; {remedy}")
    return jnp.asarray(value) if hasattr(value, "__jax_array__") else value


def matches(high, low, where):
    """The arguments of a boost: the scores of the two sides, in float32 at least, and which matches are live."""
    high, low, where = _floating("high", high), _floating("low", low), _array("where", where)
    dtype = accumulation_dtype(high.dtype, low.dtype)
    return high.astype(dtype), low.astype(dtype), where


def win_weights(value, like):
    """The weights that a user's boost returned, in [0, 1] and in the dtype of the scores `like`.

    Their shape must be that of `like`. A function whose exact values are in [0, 1] may round to 1 + 1e-7. Without the
    clip, the other side would have a negative weight, whose logarithm is NaN: `sample` would always draw it.
    """
    value = _array("the result of boost", value)
    if value.shape != like.shape:
        raise ValueError(
            f"boost returned shape {value.shape} for matches of shape {like.shape}; it must "
            "return one weight in [0, 1] for each match, and its own numbers must be scalars"
        )
    return _in_unit_interval(value.astype(like.dtype))


def number(name, value, dtype):
    """A real scalar, plain or traced, in the dtype of the scores."""
    value = bare_number(name, value)
    if jnp.ndim(value):
        raise ValueError(
            f"{name} must be a scalar, got shape {jnp.shape(value)}; pass one number, or use jax.vmap over several"
        )
    if jnp.iscomplexobj(value):
        raise TypeError(f"{name} must be real, got dtype {jnp.result_type(value)}; take its real part")
    return jnp.asarray(value, dtype)


def clipped(number):
    """A number with which another may be multiplied: infinity times 0 would be NaN."""
    most = float(jnp.finfo(number.dtype).max) ** 0.5
    return jnp.clip(number, -most, most)


def same_vectors(reference, approximation):
    """Two floating arrays `(..., k, d)` of one shape."""
    reference = _floating("reference", reference)
    approximation = _floating("approximation", approximation)
    if reference.shape != approximation.shape or reference.ndim < 2:
        raise ValueError(
            f"reference and approximation must share one shape (..., k, d), got "
            f"{reference.shape} and {approximation.shape}; reshape one of them"
        )
    if 0 in reference.shape[-2:]:
        raise ValueError(
            f"reference has shape {reference.shape}, which has no rows or no features; pass at least one of each"
        )
    return reference, approximation
