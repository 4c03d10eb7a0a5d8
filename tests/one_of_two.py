"""One of two processes, with half of the devices and half of the rows each: `python one_of_two.py ID PORT FILE`.

Writes the result, and the gradients of its own rows, to FILE.
"""

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding

ROWS, DEVICES = 64, 8


def draw():
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, 3)), rng.normal(size=ROWS)


def step_of(call):
    def step(e, v):
        def loss(e, v):
            out = call(e, v)
            return jax.numpy.sum(jax.numpy.sin(out.embeddings)) + jax.numpy.sum(out.scores), out

        return jax.grad(loss, (0, 1), has_aux=True)(e, v)

    return jax.jit(step)


def main(process, port, path):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES // 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    from meshes import P, mapped, mesh  # once the processes know of each other

    import shtopk

    mine = slice(process * ROWS // 2, (process + 1) * ROWS // 2)
    sharding = NamedSharding(mesh("x"), P("x"))
    arrays = [jax.make_array_from_process_local_data(sharding, x[mine]) for x in draw()]
    step = step_of(mapped(lambda e, v: shtopk.topk(e, v, 5, axis_name="x"), P("x"), P()))
    (d_embeddings, d_scores), out = step(*arrays)
    local = [np.concatenate([s.data for s in x.addressable_shards]) for x in (d_embeddings, d_scores)]
    whole = [np.asarray(x.addressable_data(0)) for x in out]
    np.savez(path, d_embeddings=local[0], d_scores=local[1], embeddings=whole[0], scores=whole[1])
    jax.distributed.shutdown()


if __name__ == "__main__":
    sys.path[:0] = sys.argv[4:]
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
