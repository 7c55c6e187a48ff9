"""Per-example gradients, and sums over them, without a backward pass an example.

What happens to a chunk of n examples:

1.  The chunk is packed as *scalars*: one number an example, its loss or another, whose
    gradient is the example's row of length D (`scalars`).
2.  The first time, all is tried on a few examples. Their rows come from n backward
    passes, the reference (`sums`, `per_example`). Where these are all zero or not
    finite, nothing is decided, and the next chunk is tried.
3.  The network runs inside of a watch, which sees every function of PyTorch that it
    calls (`parameter_watch`).
4.  Where a parameter is broadcast to the examples, every example gets its own copy: the
    gradient of the copies is the rows.
5.  A function that is known (`linear`, `conv2d`, ...) is called with *aliases*: leaves
    of the same values, where the backward pass ends. Its *row rule* says how the rows
    follow from its input and the slope at its output (`row_rules`).
6.  Recurrent layers and attention are taken apart into linear maps, which have a rule
    (`recurrent`, `attention`).
7.  What is made of parameters alone (a normalised weight) counts as one parameter.
    What is made of nothing that depends on examples (buffers, frozen parameters,
    `torch.zeros`) is a constant, whose order of rows is no order of examples. A
    constant that examples are written into is *forgotten*: it, and all that share its
    memory, are constants no more.
8.  Anything else that takes a parameter has no fast path: it raises, and `sums` takes
    `vmap` or one example at a time. So does what puts the examples into another order,
    or chooses among them (`example_order`): rows would belong to other examples.
9.  Of each output its *edge* in autograd's graph is kept, not the tensor: an activation
    may overwrite that in place.
10. One `autograd.grad` goes from the sum of the scalars to all edges and to the
    parameters themselves. A slope at a parameter means a use that the watch has not
    seen, since all that it saw took aliases: it raises (`parameter_uses`).
11. What is made of parameters is pulled back: sums of rows times its own Jacobian.
12. A row is rule(input, slope), in an order of its own. *restore* puts it into the
    parameter's order: once a sum and not once a row, unless a parameter has several
    uses, whose rows must be added.
13. Norms, moments and sums of batches are taken block by block. The rows of several
    uses of a parameter are added before anything is squared, or pair by pair where rows
    are long and positions few (`parameter_sums`, `factors`).
14. The *signature* of the calls, names and shapes, must be that of the trial: a network
    may branch on its examples. Else the fast path is given up. (One example alone has
    a first dimension of one, and is not compared.)
15. Chunks are merged by Chan's formula, which cancels nowhere (`moments`).
"""
