"""Models of other packages than ``transformers``, in small sizes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from _published_model import N, Published, classes, labels, squares
from torch import Tensor, nn

from flatmin.risk import ModuleLoss

__all__ = ["OTHERS"]


def pictures(n_channels: int, size: int) -> Tensor:
    return torch.randn(N, n_channels, size, size)


def classifier(module: nn.Module, X: Any, **options: Any) -> Published:
    return Published(module, X, labels(), "cross_entropy", classes, **options)


def regressor(module: nn.Module, X: Any, *shape: int, **options: Any) -> Published:
    y = torch.randn(N, *shape)
    return Published(module, X, y, "squared_error", squares, **options)


# Graphs in dense batches: features, adjacency and a mask.


def graphs() -> Published:
    geometric = importlib.import_module("torch_geometric.nn")
    module = geometric.Sequential(
        "x, adj, mask",
        [
            (geometric.DenseGCNConv(4, 8), "x, adj, mask -> x"),
            nn.Tanh(),
            (
                geometric.DenseGINConv(
                    nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
                ),
                "x, adj, mask -> x",
            ),
            (geometric.DenseSAGEConv(8, 8), "x, adj, mask -> x"),
            (lambda x: x.mean(1), "x -> x"),
            nn.Linear(8, 3),
        ],
    )
    edges = (torch.rand(N, 5, 5) < 0.5).float()
    mask = torch.arange(5) < torch.tensor([5, 2, 3, 5, 4, 3])[:, None]
    both = (mask[:, None] & mask[:, :, None]).float()
    adjacency = ((edges + edges.mT) > 0).float() * both
    X = {"x": torch.randn(N, 5, 4), "adj": adjacency, "mask": mask}
    return Published(module, X, labels(), "cross_entropy", classes)


# A physics-informed network: u_t = u_xx / 10 on points (x, t).


def heat(module: nn.Module, X: Tensor, _y: Tensor | None) -> Tensor:
    """Return the square of the residual at each point."""
    X = X.clone().requires_grad_()
    u = module(X)
    (slopes,) = torch.autograd.grad(u.sum(), X, create_graph=True)
    (curved,) = torch.autograd.grad(slopes[:, 0].sum(), X, create_graph=True)
    return (slopes[:, 1] - curved[:, 0] / 10).square()


def physics() -> Published:
    deepxde = importlib.import_module("deepxde")
    module = deepxde.nn.FNN([2, 12, 12, 1], "tanh", "Glorot uniform")
    return Published(module, torch.rand(N, 2), None, ModuleLoss(heat), heat)


def flow() -> Published:
    """Return a density by masked layers, whose loss is its own log-likelihood."""
    flows = importlib.import_module("nflows.flows")
    module = flows.MaskedAutoregressiveFlow(3, 6, 2, 1)
    X = torch.randn(N, 3)

    def loss(module: nn.Module, X: Tensor, _y: Tensor | None) -> Tensor:
        return -module.log_prob(X)

    return Published(module, X, None, ModuleLoss(loss), loss)


def x_transformer() -> Published:
    package = importlib.import_module("x_transformers")
    layers = package.Decoder(dim=8, depth=1, heads=2, attn_dim_head=4)
    module = package.TransformerWrapper(
        num_tokens=11, max_seq_len=6, attn_layers=layers
    )
    return sequence(module)


def performer() -> Published:
    package = importlib.import_module("performer_pytorch")
    return sequence(
        package.PerformerLM(
            num_tokens=11,
            max_seq_len=6,
            dim=8,
            depth=1,
            heads=2,
            dim_head=4,
            nb_features=6,
            feature_redraw_interval=None,
        )
    )


def sequence(module: nn.Module) -> Published:
    """Return a model that gives a word for each word."""

    def by_class(returned: Tensor) -> Tensor:
        return returned.transpose(1, 2)

    X, y = torch.randint(11, (2, N, 5))
    return Published(
        *(module, X, y, "cross_entropy", classes, by_class),
        options={"output_transform": by_class},
    )


def perceiver() -> Published:
    module = importlib.import_module("perceiver_pytorch").Perceiver(
        input_channels=3,
        input_axis=2,
        num_freq_bands=2,
        max_freq=4.0,
        depth=1,
        num_latents=3,
        latent_dim=8,
        cross_heads=1,
        latent_heads=2,
        cross_dim_head=4,
        latent_dim_head=4,
        num_classes=3,
    )
    return classifier(module, torch.randn(N, 4, 4, 3))


def efficientnet() -> Published:
    package = importlib.import_module("efficientnet_pytorch")
    parts = importlib.import_module("efficientnet_pytorch.utils")
    block = parts.BlockArgs(
        num_repeat=1,
        kernel_size=3,
        stride=[1],
        expand_ratio=2,
        input_filters=32,
        output_filters=16,
        se_ratio=0.25,
        id_skip=True,
    )
    settings = parts.GlobalParams(
        width_coefficient=0.25,
        depth_coefficient=1.0,
        image_size=16,
        dropout_rate=0.2,
        num_classes=3,
        batch_norm_momentum=0.99,
        batch_norm_epsilon=1e-3,
        drop_connect_rate=0.2,
        depth_divisor=4,
        min_depth=None,
        include_top=True,
    )
    return classifier(package.EfficientNet([block], settings), pictures(3, 16))


def unet() -> Published:
    nets = importlib.import_module("monai.networks.nets")
    module = nets.UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        channels=(4, 8),
        strides=(2,),
        num_res_units=1,
    )
    y = torch.randint(2, (N, 8, 8))
    return Published(module, pictures(1, 8), y, "cross_entropy", classes)


def convolutions_in_time() -> Published:
    package = importlib.import_module("pytorch_tcn")
    module = package.TCN(num_inputs=3, num_channels=[4, 4], kernel_size=3)
    # PyTorch's second derivative of its fused weight norm is wrong (2.13).
    return regressor(module, torch.randn(N, 3, 7), 4, 7, by_differences=True)


def mamba(**options: Any) -> Published:
    package = importlib.import_module("mambapy.mamba")
    module = package.Mamba(package.MambaConfig(d_model=4, n_layers=1, d_state=2))
    X = torch.randn(N, 5, 4)
    return regressor(module, X, 5, 4, options=options, by_differences=True)


def tabnet() -> Published:
    package = importlib.import_module("pytorch_tabnet.tab_network")
    module = package.TabNet(
        *(4, 3),
        n_d=4,
        n_a=4,
        n_steps=2,
        cat_idxs=[],
        cat_dims=[],
        cat_emb_dim=[],
        group_attention_matrix=torch.eye(4),
    )
    return classifier(module, torch.randn(N, 4), outputs=lambda returned: returned[0])


def tabular_transformer() -> Published:
    module = importlib.import_module("rtdl_revisiting_models").FTTransformer(
        n_cont_features=3,
        cat_cardinalities=[4, 5],
        d_out=3,
        n_blocks=1,
        d_block=8,
        attention_n_heads=2,
        attention_dropout=0.1,
        ffn_d_hidden_multiplier=1.0,
        ffn_dropout=0.1,
        residual_dropout=0.0,
    )
    kinds = torch.stack([torch.randint(4, (N,)), torch.randint(5, (N,))], 1)
    return classifier(module, (torch.randn(N, 3), kinds))


def splines() -> Published:
    package = importlib.import_module("kan")
    module = package.KAN(width=[2, 3, 1], grid=3, k=3, seed=0, auto_save=False)
    return regressor(module, torch.rand(N, 2) * 2 - 1, 1)


def siren() -> Published:
    package = importlib.import_module("siren_pytorch")
    module = package.SirenNet(dim_in=2, dim_hidden=8, dim_out=1, num_layers=2)
    return regressor(module, torch.rand(N, 2), 1)


def equivariant() -> Published:
    o3 = importlib.import_module("e3nn.o3")
    module = o3.FullyConnectedTensorProduct(*["2x0e + 1x1o"] * 3)
    return regressor(module, (torch.randn(N, 5), torch.randn(N, 5)), 5)


def fourier_operator() -> Published:
    module = importlib.import_module("neuralop.models").FNO(
        n_modes=(4, 4), hidden_channels=4, in_channels=1, out_channels=1, n_layers=1
    )
    return regressor(module, pictures(1, 8), 1, 8, 8)


def two_sequences() -> Published:
    module = nn.Transformer(8, 2, 1, 1, 8, batch_first=True)
    return regressor(module, (torch.randn(N, 4, 8), torch.randn(N, 3, 8)), 3, 8)


# Name -> package on PyPI, what makes the model and its data.
OTHERS: dict[str, tuple[str, Callable[[], Published]]] = {
    "graphs in dense batches": ("torch-geometric", graphs),
    "physics-informed FNN": ("deepxde", physics),
    "Transformer, two sequences": ("torch", two_sequences),
    "FTTransformer, two inputs": ("rtdl-revisiting-models", tabular_transformer),
    "TabNet": ("pytorch-tabnet", tabnet),
    "decoder of x-transformers": ("x-transformers", x_transformer),
    "Performer": ("performer-pytorch", performer),
    "Perceiver": ("perceiver-pytorch", perceiver),
    "Mamba": ("mambapy", mamba),
    'Mamba, hvp="finite_difference"': (
        "mambapy",
        lambda: mamba(hvp="finite_difference"),
    ),
    "TCN with weight norm": ("pytorch-tcn", convolutions_in_time),
    "EfficientNet": ("efficientnet-pytorch", efficientnet),
    "UNet": ("monai", unet),
    "masked autoregressive flow": ("nflows", flow),
    "KAN": ("pykan", splines),
    "SIREN": ("siren-pytorch", siren),
    "tensor product, two inputs": ("e3nn", equivariant),
    "FNO": ("neuraloperator", fourier_operator),
}
