"""Invertible maps of fields that carry log-densities, and the priors they start from."""

from flowmc.flows.base import (
    Chain,
    Flow,
    FlowModel,
    Identity,
    Inverse,
    Prior,
    check_equivariance,
    check_inverse,
    check_log_det,
)
from flowmc.flows.block_coupling import BlockCouplingFlow
from flowmc.flows.block_gaussian import BlockGaussian
from flowmc.flows.blocks import Block
from flowmc.flows.conditional import BetweenCouplings, ConditionalContinuousFlow
from flowmc.flows.continuous import ContinuousFlow
from flowmc.flows.coupling import AffineCouplingFlow
from flowmc.flows.defect import DefectFlow
from flowmc.flows.local import ConditionalFlow, ConditionalPrior, LocalFlowModel
from flowmc.flows.mixture import SignMixture
from flowmc.flows.multi_lattice import MultiLatticeFlow
from flowmc.flows.plaquette import PlaquetteFlow
from flowmc.flows.priors import EnsemblePrior, FreeFieldPrior, GaussianPrior, HaarPrior
from flowmc.flows.residual import ResidualFlow
from flowmc.flows.spline_coupling import SplineCouplingFlow
from flowmc.flows.super_resolution import FreeFieldBlocking, SuperResolutionPrior

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
    "MultiLatticeFlow",
    "PlaquetteFlow",
    "Prior",
    "ResidualFlow",
    "SignMixture",
    "SplineCouplingFlow",
    "SuperResolutionPrior",
    "check_equivariance",
    "check_inverse",
    "check_log_det",
]
