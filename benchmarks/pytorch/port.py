"""Algorithm 2 in PyTorch, line by line, as `peers.plain_port` has it in JAX."""

import torch


def halving(embeddings, scores, k, base=20.0):
    """`(batch, n, d)` and `(batch, n)` to `(batch, k, d)` and `(batch, k)`; n / k a power of 2."""
    while scores.shape[1] > k:
        scores, order = torch.sort(scores, dim=1, descending=True)
        embeddings = torch.gather(embeddings, 1, order[..., None].expand(-1, -1, embeddings.shape[-1]))
        half = scores.shape[1] // 2
        high, low = scores[:, :half], scores[:, half:].flip(1)
        w = torch.sigmoid(base**high - base**low)
        best, worst = embeddings[:, :half], embeddings[:, half:].flip(1)
        embeddings = w[..., None] * best + (1 - w[..., None]) * worst
        scores = w * high + (1 - w) * low
    return embeddings, scores


def compiled():
    """The same, for shapes that do not change, by `torch.compile`."""
    return torch.compile(halving, dynamic=False)


class Pending:
    """What a call has put in the GPU's queue; `jax.block_until_ready` waits for it."""

    def __init__(self, outputs):
        self.outputs = outputs

    def block_until_ready(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self


def calls(function, k, embeddings, scores, weights):
    """A forward pass and a step of `function` on JAX arrays, without arguments.

    The loss is `sum(weights * outputs**2) / 2`.
    """
    embeddings, scores, *weights = map(torch.from_dlpack, (embeddings, scores, *weights))
    leaves = [x.clone().requires_grad_() for x in (embeddings, scores)]

    def forward():
        with torch.no_grad():
            return Pending(function(embeddings, scores, k))

    def step():
        outputs = function(*leaves, k)
        cotangents = [w * x.detach() for w, x in zip(weights, outputs, strict=True)]
        return Pending((outputs, torch.autograd.grad(outputs, leaves, cotangents)))

    return forward, step
