"""What linalg and risk both say of a process group of torch.distributed."""

__all__ = ["NO_PROCESS_GROUP", "TOLD_TO_RANKS"]

#: Of ``distributed=True`` in a process that has joined no others.
NO_PROCESS_GROUP = (
    "distributed=True takes the default process group of torch.distributed. Got none: "
    "call torch.distributed.init_process_group('gloo') first, in a program that is "
    "started by torchrun --nproc-per-node=2 FILE, or leave distributed at False."
)
#: Attribute of an error that all ranks of a process group raise.
TOLD_TO_RANKS = "_flatmin_told"
