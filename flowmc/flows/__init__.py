"""Invertible maps of fields that carry log-densities, and the priors they start from."""

from flowmc.flows.base import (
    Chain,
    Flow,
    Identity,
    Inverse,
    check_equivariance,
    check_inverse,
    check_log_det,
)
from flowmc.flows.cards.files import load_flow, load_local_flow, save_flow
from flowmc.flows.gauge.defect import DefectFlow
from flowmc.flows.gauge.plaquette import PlaquetteFlow
from flowmc.flows.gauge.residual import ResidualFlow
from flowmc.flows.local.block_coupling import BlockCouplingFlow
from flowmc.flows.local.block_gaussian import BlockGaussian
from flowmc.flows.local.blocks import Block
from flowmc.flows.local.models import ConditionalFlow, ConditionalPrior, LocalFlowModel
from flowmc.flows.mixture import SignMixture
from flowmc.flows.models import FlowModel, Model, Prior, as_model
from flowmc.flows.priors import EnsemblePrior, FreeFieldPrior, GaussianPrior, HaarPrior
from flowmc.flows.scalar.conditional import BetweenCouplings, ConditionalContinuousFlow
from flowmc.flows.scalar.continuous import ContinuousFlow
from flowmc.flows.scalar.coupling import AffineCouplingFlow
from flowmc.flows.scalar.multi_lattice import MultiLatticeFlow
from flowmc.flows.scalar.spline_coupling import SplineCouplingFlow
from flowmc.flows.scalar.super_resolution import FreeFieldBlocking, SuperResolutionPrior
from flowmc.flows.transforms import TransformFlow

__all__ = [
    "AffineCouplingFlow",
    "BetweenCouplings",
    "Block",
    "BlockCouplingFlow",
    "BlockGaussian",
    "Chain",
    "ConditionalContinuousFlow",
    "ConditionalFlow",
    "ConditionalPrior",
    "ContinuousFlow",
    "DefectFlow",
    "EnsemblePrior",
    "Flow",
    "FlowModel",
    "FreeFieldBlocking",
    "FreeFieldPrior",
    "GaussianPrior",
    "HaarPrior",
    "Identity",
    "Inverse",
    "LocalFlowModel",
    "Model",
    "MultiLatticeFlow",
    "PlaquetteFlow",
    "Prior",
    "ResidualFlow",
    "SignMixture",
    "SplineCouplingFlow",
    "SuperResolutionPrior",
    "TransformFlow",
    "as_model",
    "check_equivariance",
    "check_inverse",
    "check_log_det",
    "load_flow",
    "load_local_flow",
    "save_flow",
]
