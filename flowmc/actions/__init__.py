"""Targets: actions S(field) with their forces in the group's algebra."""

from flowmc.actions.anisotropic import AnisotropicWilson
from flowmc.actions.base import Action, ScaledAction, SumAction, check_force
from flowmc.actions.defect import DefectWilson
from flowmc.actions.external import ExternalAction
from flowmc.actions.gauge import Wilson
from flowmc.actions.improved import DBW2, ImprovedGauge, Iwasaki, LuescherWeisz, Symanzik
from flowmc.actions.path import DoubleWell
from flowmc.actions.scalar import FreeScalar, Phi4
from flowmc.actions.schroedinger import SchroedingerFunctional

__all__ = [
    "DBW2",
    "Action",
    "AnisotropicWilson",
    "DefectWilson",
    "DoubleWell",
    "ExternalAction",
    "FreeScalar",
    "ImprovedGauge",
    "Iwasaki",
    "LuescherWeisz",
    "Phi4",
    "ScaledAction",
    "SchroedingerFunctional",
    "SumAction",
    "Symanzik",
    "Wilson",
    "check_force",
]
