"""diffusers' pipeline in policy mode, as shipped: what a plan is timed and compared against."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from diffusers import Cosmos3OmniPipeline
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cosmos3_ros.engine.export import graph_parts
from cosmos3_ros.engine.export_model import Components, open_components
from cosmos3_ros.engine.recipe import Recipe
from cosmos3_ros.engine.session import Contract

StockPlan = tuple[np.ndarray, np.ndarray]


def use_threads(threads: int) -> None:
    """Have torch compute on so many CPU threads."""
    torch.set_num_threads(threads)


def stock_pipeline(components: Components) -> Cosmos3OmniPipeline:
    """The pipeline over components whose weights are in memory."""
    pipeline = Cosmos3OmniPipeline(
        transformer=components.transformer,
        text_tokenizer=components.tokenizer,
        vae=components.vae,
        scheduler=components.scheduler,
        enable_safety_checker=False,
        default_use_system_prompt=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_policy(
    components: Components, contract: Contract, tier: int, domain: str, view_point: str
) -> Callable[[str, np.ndarray, int, bool], StockPlan]:
    """A function of instruction, composed picture uint8 [H,W,3], seed, and whether to decode.

    It returns what the pipeline does: the video (latents [1,C,T,h,w], or frames where it decodes)
    and the rows [chunk, 64]. The pipeline knows no state row: its sequence is one token shorter
    where the contract has one.
    """
    pipeline = stock_pipeline(components)

    @torch.no_grad()
    def run(instruction: str, picture: np.ndarray, seed: int, decode: bool) -> StockPlan:
        made = pipeline(
            prompt=instruction,
            action=CosmosActionCondition(
                mode="policy",
                chunk_size=contract.chunk,
                domain_name=domain,
                resolution_tier=tier,
                image=Image.fromarray(picture),
                view_point=view_point,
            ),
            fps=contract.fps,
            num_inference_steps=contract.sampler.steps,
            guidance_scale=contract.sampler.guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="np" if decode else "latent",
        )
        return np.asarray(made.video), np.asarray(made.action[0])

    return run


def flops_of(run: Callable[[], object]) -> int:
    """Floating-point operations of the products, attentions and convolutions of a torch run.

    Attention is computed by its products here: the counter knows no fused attention on the CPU.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def graph_flops(recipe: Recipe, contract: Contract) -> dict[str, int]:
    """Floating-point operations of one run of each graph of a recipe, counted without computing."""
    parts = graph_parts(open_components(recipe, None), contract, recipe)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return {
            graph: sum(flops_of(partial(part.module, *part.taken)) for part in of_graph)
            for graph, of_graph in parts.items()
        }
